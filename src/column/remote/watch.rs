//! What becomes of units while other processes compute them: what their job is told goes there, what they count comes back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::task::JoinSet;

use super::{PER_SLOT, Round};
use crate::engine::ballista::Cluster;
use crate::engine::ballista::board::{Demand, Inquiry};
use crate::engine::ballista::client::slots_for;
use crate::job::admission::{INQUIRIES, InFlight};
use crate::job::counters::{Counters, Reading};

/// Tells the units of a round what their job is told, and counts how far they are.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    readings: Arc<Mutex<BTreeMap<String, Reading>>>,
    counters: Arc<Counters>,
    /// Units that are not done.
    left: Arc<AtomicU64>,
    _task: Arc<JoinSet<()>>,
}

impl Watch {
    /// Begins for a round of `units` units. `in_flight` grows with the cluster.
    pub(super) fn begin(
        cluster: Arc<Cluster>,
        round: &Round,
        in_flight: &Arc<InFlight>,
        units: usize,
    ) -> Self {
        let work = &round.work;
        let left = Arc::new(AtomicU64::new(units as u64));
        let (job, pool, units_left) = (
            work.job.clone(),
            round.purpose.pool.clone(),
            Arc::clone(&left),
        );
        let readings: Arc<Mutex<BTreeMap<String, Reading>>> = Arc::default();
        let mut task = JoinSet::new();
        let in_flight = Arc::clone(in_flight);
        let (watched, counters, signal) = (
            Arc::clone(&readings),
            Arc::clone(&work.counters),
            work.signal.clone(),
        );
        task.spawn(async move {
            loop {
                tokio::time::sleep(INQUIRIES).await;
                let said = serde_json::to_value(signal.now()).unwrap_or(Value::Null);
                let tokens: Vec<String> = lock(&watched).keys().cloned().collect();
                let units = tokens.into_iter().map(|token| (token, said.clone()));
                let inquiry = Inquiry {
                    units: units.collect(),
                    demand: Some(Demand {
                        job: job.clone(),
                        pool: pool.clone(),
                        units: units_left.load(Ordering::Relaxed),
                    }),
                };
                let Ok(answer) = cluster.inquire(&inquiry).await else {
                    continue;
                };
                in_flight.grow(PER_SLOT * slots_for(&answer.executors, pool.as_deref()));
                for (token, progress) in answer.units {
                    if let Ok(now) = serde_json::from_value::<Reading>(progress)
                        && let Some(before) = lock(&watched).get_mut(&token)
                    {
                        counters.absorb(before, &now);
                        *before = now;
                    }
                }
            }
        });
        Self {
            readings,
            counters: Arc::clone(&work.counters),
            left,
            _task: Arc::new(task),
        }
    }

    /// A group is sent by this name.
    pub(super) fn group(&self, token: &str) -> Watched {
        lock(&self.readings).insert(token.to_string(), Reading::default());
        Watched {
            watch: self.clone(),
            token: token.to_string(),
        }
    }
}

/// A group that is watched. What it counted is taken back if it does not [end](Self::end).
pub(super) struct Watched {
    watch: Watch,
    token: String,
}

impl Watched {
    /// It has ended, counted this, and so many of its units are done.
    pub(super) fn end(self, counted: &Reading, done: usize) {
        if let Some(before) = lock(&self.watch.readings).remove(&self.token) {
            self.watch.counters.absorb(&before, counted);
        }
        self.watch.left.fetch_sub(done as u64, Ordering::Relaxed);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(before) = lock(&self.watch.readings).remove(&self.token) {
            self.watch.counters.absorb(&before, &Reading::default());
        }
    }
}

fn lock(readings: &Mutex<BTreeMap<String, Reading>>) -> MutexGuard<'_, BTreeMap<String, Reading>> {
    readings.lock().unwrap_or_else(PoisonError::into_inner)
}
