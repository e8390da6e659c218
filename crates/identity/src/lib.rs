//! Configured credentials turned into bearer tokens for one audience.
