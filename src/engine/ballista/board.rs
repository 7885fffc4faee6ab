//! What a cluster tells about itself, beside what Ballista tells: which executors live, how far the work is that they
//! do, and what they are told.
//!
//! Executors report to the server four times a second, and hear what the jobs are told that they work for. Whoever drives
//! jobs asks the server what executors have reported, and says what its jobs are told. Both speak Flight actions on
//! the port of the scheduler.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How often executors report.
pub const REPORTS: Duration = Duration::from_millis(250);
/// How long what a unit of work did is remembered after its executor or its driver was last heard of.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// How long a driver may not ask for a unit before it is told to stop: nobody waits for it any more.
const ABANDONED: Duration = Duration::from_secs(30);
/// How long what a driver says of its demand holds.
const DEMAND_HOLDS: Duration = Duration::from_secs(5);

/// An executor, as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Executor {
    /// Its name in the cluster.
    pub id: String,
    /// Where it is reached.
    pub host: String,
    /// The port for results.
    pub port: u16,
    /// What it is made for, if for something.
    pub label: Option<String>,
    /// Tasks at once.
    pub slots: u32,
    /// Bytes that queries may use together; `None` if that is not limited.
    pub memory: Option<u64>,
    /// The release.
    pub release: String,
}

/// What an executor reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Which one it is.
    pub executor: Executor,
    /// Bytes that queries use.
    pub memory_used: u64,
    /// Tasks that run.
    pub tasks: u32,
    /// Units of work by their tokens: how far they are.
    pub units: BTreeMap<String, Value>,
}

/// What an executor is told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Orders {
    /// By the token of a unit of work: what its job is told.
    pub signals: BTreeMap<String, Value>,
}

/// What a driver says of the work that it has given out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Inquiry {
    /// By the token of a unit of work: what its job is told now.
    pub units: BTreeMap<String, Value>,
    /// The work that is left.
    #[serde(default)]
    pub demand: Option<Demand>,
}

/// Work that is left of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Demand {
    /// The job.
    pub job: String,
    /// The label of the executors that it wants.
    pub pool: Option<String>,
    /// Units that are not done.
    pub units: u64,
}

/// What a driver gets to know.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    /// The executors that live.
    pub executors: Vec<Seen>,
    /// How far the units are that were asked for, of those that have begun.
    pub units: BTreeMap<String, Value>,
}

/// An executor, and when it was last heard of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// The executor.
    pub executor: Executor,
    /// Bytes that queries use.
    pub memory_used: u64,
    /// Tasks that run.
    pub tasks: u32,
    /// Milliseconds since its last report.
    pub silent_for: u64,
}

/// Where the reports of executors and the orders of drivers meet.
#[derive(Debug, Clone)]
pub struct Board {
    state: Arc<Mutex<State>>,
    /// After this silence an executor counts as lost.
    executor_timeout: Duration,
    /// When units are told to stop that nobody asks for, and how.
    abandoned: Duration,
    abandon: Value,
}

#[derive(Debug, Default)]
struct State {
    executors: BTreeMap<String, (Report, Instant)>,
    units: HashMap<String, Unit>,
    demands: BTreeMap<String, (Demand, Instant)>,
}

#[derive(Debug)]
struct Unit {
    done: Option<Value>,
    signal: Option<Value>,
    heard: Instant,
    /// When its driver asked for it; at first when it was first heard of.
    asked: Instant,
}

impl Unit {
    fn new() -> Self {
        Self {
            done: None,
            signal: None,
            heard: Instant::now(),
            asked: Instant::now(),
        }
    }
}

impl Board {
    /// An empty one.
    pub fn new(executor_timeout: Duration) -> Self {
        Self {
            state: Arc::default(),
            executor_timeout,
            abandoned: ABANDONED,
            // A job whose driver is gone has another one, or none.
            abandon: serde_json::json!({ "stop": "superseded" }),
        }
    }

    /// Takes a report, and gives the orders for it.
    pub fn report(&self, report: Report) -> Orders {
        let mut state = self.lock();
        let mut orders = Orders::default();
        for (token, done) in &report.units {
            let unit = state.units.entry(token.clone()).or_insert_with(Unit::new);
            unit.done = Some(done.clone());
            unit.heard = Instant::now();
            let signal = match unit.asked.elapsed() > self.abandoned {
                true => Some(self.abandon.clone()),
                false => unit.signal.clone(),
            };
            orders
                .signals
                .extend(signal.map(|signal| (token.clone(), signal)));
        }
        let id = report.executor.id.clone();
        state.executors.insert(id, (report, Instant::now()));
        orders
    }

    /// An executor ends.
    pub fn goodbye(&self, executor: &str) {
        self.lock().executors.remove(executor);
    }

    /// Takes what a driver says, and answers.
    pub fn inquire(&self, inquiry: Inquiry) -> Answer {
        let mut state = self.lock();
        let mut units = BTreeMap::new();
        for (token, signal) in inquiry.units {
            let unit = state.units.entry(token.clone()).or_insert_with(Unit::new);
            unit.signal = Some(signal);
            unit.heard = Instant::now();
            unit.asked = Instant::now();
            if let Some(done) = &unit.done {
                units.insert(token, done.clone());
            }
        }
        state
            .units
            .retain(|_, unit| unit.heard.elapsed() < FORGOTTEN);
        if let Some(demand) = inquiry.demand {
            let job = demand.job.clone();
            state.demands.insert(job, (demand, Instant::now()));
        }
        drop(state);
        Answer {
            executors: self.executors(),
            units,
        }
    }

    /// Units that are not done, by the label that they want.
    pub fn demand(&self) -> BTreeMap<Option<String>, u64> {
        let mut state = self.lock();
        state
            .demands
            .retain(|_, (_, said)| said.elapsed() < DEMAND_HOLDS);
        let mut units: BTreeMap<Option<String>, u64> = BTreeMap::new();
        for (demand, _) in state.demands.values() {
            *units.entry(demand.pool.clone()).or_default() += demand.units;
        }
        units
    }

    /// The executors that live.
    pub fn executors(&self) -> Vec<Seen> {
        let mut state = self.lock();
        let timeout = self.executor_timeout;
        state
            .executors
            .retain(|_, (_, heard)| heard.elapsed() < timeout);
        let seen = state.executors.values().map(|(report, heard)| Seen {
            executor: report.executor.clone(),
            memory_used: report.memory_used,
            tasks: report.tasks,
            silent_for: heard.elapsed().as_millis() as u64,
        });
        seen.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(units: &[(&str, u64)]) -> Report {
        Report {
            executor: Executor {
                id: "e".to_string(),
                host: "h".to_string(),
                port: 1,
                label: None,
                slots: 2,
                memory: None,
                release: "1".to_string(),
            },
            memory_used: 0,
            tasks: 1,
            units: units
                .iter()
                .map(|(token, rows)| (token.to_string(), json!(rows)))
                .collect(),
        }
    }

    #[test]
    fn what_a_driver_says_reaches_the_executor_and_back() {
        let board = Board::new(Duration::from_secs(30));
        assert!(board.report(report(&[("u", 1)])).signals.is_empty());
        let inquiry = || Inquiry {
            units: [
                ("u".to_string(), json!("pause")),
                ("v".to_string(), json!("run")),
            ]
            .into(),
            demand: Some(Demand {
                job: "j".to_string(),
                pool: Some("gpu".to_string()),
                units: 3,
            }),
        };
        let answer = board.inquire(inquiry());
        assert_eq!(answer.units, [("u".to_string(), json!(1))].into());
        assert_eq!(answer.executors.len(), 1);
        let orders = board.report(report(&[("u", 2)]));
        assert_eq!(orders.signals, [("u".to_string(), json!("pause"))].into());
        assert_eq!(board.inquire(inquiry()).units["u"], json!(2));
        assert_eq!(board.demand(), [(Some("gpu".to_string()), 3)].into());
    }

    #[test]
    fn units_that_nobody_asks_for_are_told_to_stop() {
        let mut board = Board::new(Duration::from_secs(30));
        board.abandoned = Duration::ZERO;
        let orders = board.report(report(&[("u", 1)]));
        assert_eq!(orders.signals["u"], json!({ "stop": "superseded" }));
    }

    #[test]
    fn a_silent_executor_is_lost() {
        let board = Board::new(Duration::ZERO);
        board.report(report(&[]));
        assert!(board.executors().is_empty());
    }
}
