//! The use cases, and the one place where configuration becomes concrete parts.
