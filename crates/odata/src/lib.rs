//! One polite HTTP client towards environments: paging, throttle governor, the only retry loop.
