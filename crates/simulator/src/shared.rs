//! What all requests share.
//!
//! Rows stand behind a read-write lock, so that pages print side by side; everything else behind one mutex that
//! is held for moments. Neither is held across an await.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::access::Controls;
use crate::config::{Config, FaultKind, Limits};
use crate::database::Database;
use crate::dataset::CALLERS;
use crate::entra::Authority;
use crate::faults::FaultState;
use crate::limits::Window;
use crate::stats::Counter;

/// The changeable part besides the rows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) controls: Arc<Controls>,
    pub(crate) authority: Authority,
    pub(crate) faults: FaultState,
    pub(crate) limits: Option<Limits>,
    pub(crate) windows: [Window; CALLERS],
    pub(crate) counter: Counter,
    /// How far the simulated clock is ahead of the real one.
    pub(crate) ahead: Duration,
}

/// One simulated environment.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) url: String,
    database: RwLock<Database>,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(config: Config, url: String, database: Database) -> Self {
        let state = State {
            controls: Arc::new(Controls {
                expiry_days: config.change_tracking_expiry_days,
                environment: config.environment,
                ..Controls::default()
            }),
            authority: Authority::new(&url, &config),
            faults: FaultState::new(config.faults.clone()),
            limits: config.limits.clone(),
            windows: std::array::from_fn(|_| Window::default()),
            counter: Counter::default(),
            ahead: Duration::ZERO,
        };
        Self { config, url, database: RwLock::new(database), state: Mutex::new(state) }
    }

    /// A panic elsewhere must not hide behind a second one here.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Database> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Database> {
        self.database.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The simulated time.
    pub(crate) fn now(&self) -> Timestamp {
        let ahead = self.state().ahead;
        Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn change_controls(&self, change: impl FnOnce(&mut Controls)) {
        change(Arc::make_mut(&mut self.state().controls));
    }

    /// Execution time charged for a request (dataverse 5.1).
    pub(crate) fn execution(&self) -> Duration {
        self.config.execution.unwrap_or(self.config.latency)
    }
}

/// A request being handled; counted out when dropped, also when the client went away.
pub(crate) struct InFlight {
    shared: Arc<Shared>,
    /// The application user whose window it was admitted to.
    pub(crate) user: Option<usize>,
    /// How many operations it holds; each costs execution time (dataverse 5.1).
    pub(crate) parts: u32,
}

impl InFlight {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Self {
        shared.state().counter.begin();
        Self { shared: Arc::clone(shared), user: None, parts: 1 }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let execution = self.shared.execution() * self.parts;
        let mut state = self.shared.state();
        state.counter.in_flight -= 1;
        if let Some(user) = self.user {
            state.windows[user].finish(Instant::now(), execution);
            state.counter.stats.execution_seconds += execution.as_secs_f64();
        }
    }
}

/// Number of a request to the environment and what goes wrong with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) fault: Option<FaultKind>,
}
