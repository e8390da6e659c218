//! The `Clock` port: the only way any layer learns the time or waits, so that a test can replay a run.

use std::time::Duration;

use async_trait::async_trait;

/// Time and waiting.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Wall-clock time, for ids, manifests and reports.
    fn now(&self) -> jiff::Timestamp;

    /// Time since an arbitrary fixed point; never goes backwards. For intervals and budgets.
    fn elapsed(&self) -> Duration;

    /// Waits; cancel-safe.
    async fn sleep(&self, duration: Duration);
}
