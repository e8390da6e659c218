//! A token that is simply given, for tests and for services that do not check.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{BearerToken, TokenError, TokenSource};

/// Always gives the same token and counts how often it was refused.
#[derive(Debug)]
pub struct FixedToken {
    name: String,
    token: BearerToken,
    invalidations: AtomicU32,
}

impl FixedToken {
    /// A source called `name` that gives `secret`, which never expires.
    pub fn new(name: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { name: name.into(), token: BearerToken::new(secret, Timestamp::MAX), invalidations: AtomicU32::new(0) }
    }

    /// How often the token was reported as refused.
    pub fn invalidations(&self) -> u32 {
        self.invalidations.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl TokenSource for FixedToken {
    async fn token(&self) -> Result<BearerToken, TokenError> {
        Ok(self.token.clone())
    }

    fn invalidate(&self, token: &BearerToken) {
        if *token == self.token {
            self.invalidations.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}
