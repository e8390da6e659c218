//! One accounting: counters that feed progress, reports and tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of one table or one run. A tally made with [`Tally::child`] adds to its parent too, so the run's
        /// figures are the sum of its tables by construction.
        #[derive(Debug, Default)]
        pub struct Tally {
            parent: Option<Arc<Tally>>,
            $($name: AtomicU64,)+
        }

        /// The counters of a [`Tally`] at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub struct TallyTotals {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Tally {
            $($(#[$doc])* pub fn $name(&self, by: u64) {
                self.$name.fetch_add(by, Ordering::Relaxed);
                if let Some(parent) = &self.parent {
                    parent.$name(by);
                }
            })+

            /// The counters now.
            pub fn totals(&self) -> TallyTotals {
                TallyTotals { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Requests sent to the environment, retries included.
    requests,
    /// Requests sent again after a failure.
    retries,
    /// Answers that asked us to slow down (429).
    throttled,
    /// Bytes of reply bodies on the wire, before decompression.
    bytes_received,
    /// Bytes of row JSON written into segments.
    bytes_raw,
    /// Bytes of objects written to the vault.
    bytes_stored,
    /// Rows the service sent, pages that were read again included.
    rows_read,
    /// Rows written into segments.
    rows_stored,
}

impl Tally {
    /// A tally whose counts also go to `parent`.
    pub fn child(parent: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self { parent: Some(Arc::clone(parent)), ..Self::default() })
    }
}
