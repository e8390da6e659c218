//! One polite HTTP client towards environments: paging, throttle governor, the only retry loop.
//!
//! [`Client`] sends every request of a backup and of a restore. It signs in as one of several application users, each held
//! just under the service's limits by its own [`governor`]; it tries again where that helps and nowhere else ([`retry`],
//! [`fault`]); it splits pages into rows while they arrive ([`page`]), so that no page is ever held; and it sends a token
//! only to the environment it was made for.
//!
//! It writes only when it was made for that ([`ClientConfig::writes`]), and never sends a write twice unless the first one
//! surely did nothing ([`mod@write`], [`mod@batch`]). What the service refuses is data, with a meaning ([`refusal`]).
//!
//! What it does not do: it knows no tables and no queries.

pub mod batch;
mod client;
mod exchange;
pub mod fault;
pub mod governor;
mod intake;
mod link;
pub mod page;
pub mod refusal;
pub mod retry;
pub mod write;

pub use batch::{BatchReply, BatchRequest, Item, OnError, Part, PartReply};
pub use client::{Client, ClientConfig, Downloaded, Reply, ReplyHeaders, UserSlot};
pub use fault::{ErrorBody, RequestError};
pub use refusal::{Refusal, RefusalClass};
pub use retry::RetryPolicy;
pub use write::{Atomicity, Method, WriteFault, WriteReply, WriteRequest};
