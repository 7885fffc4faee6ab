//! The jobs that this process drives.
//!
//! What a process says of itself is certain, whatever it could write down: a job that it does not drive any
//! more can be taken over at once, even if the store was full when the job wanted to write down its end.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Jobs, and the tokens of their drivers.
static DRIVEN: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Says that this process drives a job, as long as it lives.
#[derive(Debug)]
pub(super) struct Driven {
    token: String,
}

impl Driven {
    /// A driver of the job `id`, with a token that no other driver has.
    pub(super) fn new(id: &str) -> Self {
        let token = uuid::Uuid::new_v4().simple().to_string();
        lock().push((id.to_string(), token.clone()));
        Self { token }
    }

    /// Tells this driver from others of the same job.
    pub(super) fn token(&self) -> &str {
        &self.token
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        lock().retain(|(_, token)| *token != self.token);
    }
}

/// Whether this process drives the job `id`.
pub(super) fn is_driven(id: &str) -> bool {
    lock().iter().any(|(driven, _)| driven == id)
}

/// Whether the driver with this token is one of this process.
pub(super) fn is_driver(token: &str) -> bool {
    lock().iter().any(|(_, driver)| driver == token)
}

fn lock() -> MutexGuard<'static, Vec<(String, String)>> {
    DRIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}
