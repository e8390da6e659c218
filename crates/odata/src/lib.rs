//! One polite HTTP client towards environments: paging, throttle governor, the only retry loop.
//!
//! [`Client`] sends every request of a backup. It signs in as one of several application users, each held just under the
//! service's limits by its own [`governor`]; it tries again where that helps and nowhere else ([`retry`], [`fault`]); it
//! splits pages into rows while they arrive ([`page`]), so that no page is ever held; and it sends a token only to the
//! environment it was made for.
//!
//! What it does not do: it knows no tables and no queries, and it never writes.

mod client;
mod exchange;
pub mod fault;
pub mod governor;
mod intake;
mod link;
pub mod page;
pub mod retry;

pub use client::{Client, ClientConfig, Downloaded, Reply, ReplyHeaders, UserSlot};
pub use fault::{ErrorBody, RequestError};
pub use retry::RetryPolicy;
