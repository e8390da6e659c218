//! Sign-in against a scripted service on loopback.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

mod app;
mod browser;
mod device;
mod federated;
mod machine;
mod renewal;
mod silence;
mod support;
mod tenant;
