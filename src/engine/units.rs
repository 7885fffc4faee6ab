//! Units of work that this process does for jobs that others drive.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// A unit of work, as those see it that report about it.
pub trait Unit: Send + Sync {
    /// How far it is.
    fn progress(&self) -> Value;

    /// What its job is told.
    fn tell(&self, signal: &Value);
}

/// The units that run in this process. In a session's configuration it is an extension.
#[derive(Default)]
pub struct Units(Mutex<BTreeMap<String, Arc<dyn Unit>>>);

impl fmt::Debug for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Units").finish_non_exhaustive()
    }
}

impl Units {
    /// A unit begins; it is known by its token until what this gives is dropped.
    pub fn begin(self: &Arc<Self>, token: &str, unit: Arc<dyn Unit>) -> Begun {
        self.lock().insert(token.to_string(), unit);
        Begun {
            units: Arc::clone(self),
            token: token.to_string(),
        }
    }

    /// How far each is, by its token.
    pub fn progress(&self) -> BTreeMap<String, Value> {
        let units = self.lock().clone();
        units
            .into_iter()
            .map(|(token, unit)| (token, unit.progress()))
            .collect()
    }

    /// Tells units what their jobs are told.
    pub fn tell(&self, signals: &BTreeMap<String, Value>) {
        let units = self.lock().clone();
        for (token, signal) in signals {
            if let Some(unit) = units.get(token) {
                unit.tell(signal);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn Unit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A unit that has begun.
#[derive(Debug)]
pub struct Begun {
    units: Arc<Units>,
    token: String,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.units.lock().remove(&self.token);
    }
}
