//! Units of a pass that other processes compute.
//!
//! Units are sent in groups, as descriptions: which rows of which fragments, of which columns by which definitions. An
//! [executor] opens the table at the same version, plans the same computation, and writes the same kind of files as
//! a worker of this process. What it gives is one row: the files, or the error, and what was counted. That a group runs
//! twice, or twice at once, does no harm: files that no driver hears of are never read.
//!
//! A group is as many units as take a moment, so that a table of many small fragments does not take a plan for each; an
//! executor that finds them to take longer gives back what is left.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionConfig;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use self::watch::Watch;
use super::assess::{Column, Rows};
use super::computation::Computation;
use super::plan::{BatchSize, Unit};
use super::work::{Pace, Work};
use super::write::WrittenUnit;
use crate::engine::ballista::{Cluster, Purpose};
use crate::engine::deferred::{Codecs, DeferredExec};
use crate::engine::function::write_function;
use crate::engine::wire::find_error;
use crate::function::is_users;
use crate::job::admission::{InFlight, until_done};
use crate::job::counters::Reading;
use crate::job::environment::Environment;
use crate::storage::RowSet;
use crate::storage::column_file::SplitFile;
use crate::storage::fragments::live_ids;
use crate::{Error, Result};

pub mod executor;
mod watch;

/// The name of the kind of node.
const KIND: &str = "column unit";
/// Groups on their way for each slot: while one runs the next one waits in the scheduler, so that the slot has work when
/// its driver has yet to hear of the end.
pub(super) const PER_SLOT: usize = 2;
/// Units of a group at most.
const GROUP: usize = 256;
/// How long the units of a group should take together: what is around it takes some hundredths of a second.
const GROUP_TIME: Duration = Duration::from_millis(250);

/// A group of units as it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Description {
    /// Tells it from others.
    token: String,
    database: String,
    storage_options: HashMap<String, String>,
    job: String,
    table: String,
    version: u64,
    /// When the version was made: a table that is made anew counts from 1 again.
    made: u128,
    columns: Vec<DescribedColumn>,
    /// The users' functions that these call, in base64.
    functions: BTreeMap<String, String>,
    keeps_values: bool,
    units: Vec<Unit>,
    /// By fragment: the file of which units write parts, if it is divided.
    split: BTreeMap<u64, String>,
    batches: BatchSize,
    fixed_batches: bool,
    checkpoint_interval: Duration,
    counts_reused: bool,
    /// Where the records are of staged results that are used, beside checkpoints of the job itself: an executor that was
    /// lost may have left some.
    staged: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct DescribedColumn {
    name: String,
    definition: String,
    /// Addresses of the rows to compute; `None` for all.
    rows: Option<RowSet>,
}

/// What a group came to.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    /// The files of the first units, as JSON of Lance's.
    files: Vec<String>,
    /// Why the next one has none; `None` if there was no time for it, or it is the end.
    error: Option<String>,
    counted: Reading,
    /// How long the units took.
    time: Duration,
}

fn output_schema() -> SchemaRef {
    let outcome = Field::new("outcome", DataType::Utf8, false);
    Arc::new(Schema::new(vec![outcome]))
}

/// What all units of a round share.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) computation: Computation,
    pub(super) work: Arc<Work>,
    pub(super) batches: BatchSize,
    pub(super) fixed_batches: bool,
    /// Whose work it is.
    pub(super) purpose: Purpose,
}

/// Has `units` computed by a cluster, as many groups at once as `in_flight` says. No more are begun when `go_on` says so.
/// Dropping the stream stops them.
pub(super) fn run_units(
    environment: &Environment,
    cluster: Arc<Cluster>,
    round: Round,
    units: Vec<Unit>,
    split: Arc<HashMap<u64, SplitFile>>,
    in_flight: InFlight,
    go_on: impl Fn() -> bool + Send + Sync + 'static,
) -> BoxStream<'static, Result<Vec<WrittenUnit>>> {
    let functions = match described_functions(&round.computation.columns, cluster.codecs()) {
        Ok(functions) => functions,
        Err(error) => return stream::iter([Err(error)]).boxed(),
    };
    let in_flight = Arc::new(in_flight);
    let sending = Sending {
        sender: Arc::new(Sender {
            watch: Watch::begin(Arc::clone(&cluster), &round, &in_flight, units.len()),
            config: environment.state.config().clone(),
            cluster,
            round,
            functions,
            split,
        }),
        in_flight,
        left: units.into_iter().enumerate().collect(),
        running: FuturesUnordered::new(),
        failed: None,
        pace: Pace::of(GROUP_TIME),
        go_on,
    };
    stream::unfold(sending, |mut sending| async move {
        let written = sending.next().await?;
        Some((written, sending))
    })
    .boxed()
}

/// A unit, and its place in its pass.
type Placed = (usize, Unit);

/// Groups of units that are on their way, and the units that are left.
struct Sending<G> {
    sender: Arc<Sender>,
    in_flight: Arc<InFlight>,
    left: VecDeque<Placed>,
    running: FuturesUnordered<BoxFuture<'static, Result<Ended>>>,
    /// What is to be told after what was written before it.
    failed: Option<Error>,
    pace: Pace,
    go_on: G,
}

/// What has become of a group.
struct Ended {
    written: Vec<WrittenUnit>,
    /// What there was no time for.
    left: Vec<Placed>,
    failed: Option<Error>,
    time: Duration,
}

impl<G: Fn() -> bool> Sending<G> {
    /// The next units that are written; `None` if there are no more.
    async fn next(&mut self) -> Option<Result<Vec<WrittenUnit>>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        loop {
            if !(self.go_on)() {
                self.left.clear();
            }
            tokio::select! {
                biased;
                permit = self.in_flight.permit(), if !self.left.is_empty() => match permit {
                    // It may have been told to stop while it waited.
                    Ok(permit) => if (self.go_on)() { self.send(permit) },
                    Err(error) => return Some(Err(error)),
                },
                Some(ended) = self.running.next() => {
                    let ended = match ended {
                        Ok(ended) => ended,
                        Err(error) => return Some(Err(error)),
                    };
                    self.pace.learn(ended.written.len(), ended.time);
                    for unit in ended.left.into_iter().rev() {
                        self.left.push_front(unit);
                    }
                    self.failed = ended.failed;
                    return Some(Ok(ended.written));
                }
                else => return None,
            }
        }
    }

    /// Sends a group. Towards the end groups are smaller, so that all slots have work to the last.
    fn send(&mut self, permit: OwnedSemaphorePermit) {
        let share = self.left.len().div_ceil(2 * self.in_flight.most());
        let units = self.pace.rows().min(share).clamp(1, GROUP);
        let group = self.left.drain(..units.min(self.left.len())).collect();
        let sender = Arc::clone(&self.sender);
        self.running.push(
            async move {
                let _permit = permit;
                sender.send(group).await
            }
            .boxed(),
        );
    }
}

/// Sends groups of units of a round.
struct Sender {
    cluster: Arc<Cluster>,
    config: SessionConfig,
    round: Round,
    /// As in [`Description`].
    functions: BTreeMap<String, String>,
    split: Arc<HashMap<u64, SplitFile>>,
    watch: Watch,
}

impl Sender {
    /// Has a group computed.
    async fn send(&self, mut group: Vec<Placed>) -> Result<Ended> {
        let units: Vec<Unit> = group.iter().map(|(_, unit)| unit.clone()).collect();
        let description = self.describe(units).await?;
        let attempt = || self.attempt(&description);
        let outcome = until_done(&self.round.work.signal, attempt).await?;
        if outcome.files.len() > group.len()
            || (outcome.files.is_empty() && outcome.error.is_none())
        {
            return Err(Error::internal("a group gave neither files nor an error"));
        }
        let left = group.split_off(outcome.files.len());
        let written = group.into_iter().zip(outcome.files);
        Ok(Ended {
            written: written
                .map(|((unit, _), file)| WrittenUnit { unit, file })
                .collect(),
            left: match outcome.error {
                None => left,
                Some(_) => Vec::new(),
            },
            failed: outcome.error.map(|error| {
                find_error(&error)
                    .unwrap_or_else(|| Error::internal("a unit failed without a reason"))
            }),
            time: outcome.time,
        })
    }

    async fn attempt(&self, description: &Description) -> Result<Outcome> {
        // Another name each time: an earlier attempt may be at work still.
        let description = Description {
            token: Uuid::new_v4().to_string(),
            ..description.clone()
        };
        let watched = self.watch.group(&description.token);
        let bytes = serde_json::to_vec(&description)
            .map_err(|error| Error::internal(format!("units can't be written: {error}")))?;
        let (table, units) = (&description.table, description.units.len());
        let text = format!("ColumnUnits: table={table}, units={units}");
        let node = DeferredExec::new(KIND, bytes, output_schema(), vec![Some(1)]).with_text(text);
        let outcome = self
            .cluster
            .run(Arc::new(node), &self.config, &self.round.purpose);
        let outcome = read_outcome(&outcome.await?)?;
        watched.end(&outcome.counted, outcome.files.len());
        Ok(outcome)
    }

    async fn describe(&self, units: Vec<Unit>) -> Result<Description> {
        let work = &self.round.work;
        let Computation {
            table,
            columns,
            rows,
            keeps_values,
        } = &self.round.computation;
        let fragments: BTreeSet<u64> = units.iter().map(|unit| unit.fragment).collect();
        let of_fragments = |rows: &RowSet| {
            let mut found = RowSet::default();
            for fragment in &fragments {
                found.extend(rows.range(fragment << 32..(fragment + 1) << 32));
            }
            found
        };
        let columns = columns
            .iter()
            .zip(rows)
            .map(|(column, rows)| DescribedColumn {
                name: column.name().to_string(),
                definition: column.definition.digest(),
                rows: match rows {
                    Rows::All => None,
                    Rows::Some(rows) => Some(of_fragments(rows)),
                },
            });
        let mut split = BTreeMap::new();
        for fragment in &fragments {
            if let Some(file) = self.split.get(fragment) {
                split.insert(*fragment, file.write()?);
            }
        }
        let root = work.database.root();
        Ok(Description {
            token: String::new(),
            database: root.url().to_string(),
            storage_options: root.settings().options().clone(),
            job: work.job.clone(),
            table: table.name.clone(),
            version: table.version(),
            made: table.dataset.manifest().timestamp_nanos,
            columns: columns.collect(),
            functions: self.functions.clone(),
            keeps_values: *keeps_values,
            staged: self.staged_of(&fragments).await?,
            units,
            split,
            batches: self.round.batches,
            fixed_batches: self.round.fixed_batches,
            checkpoint_interval: work.checkpoint_interval,
            counts_reused: work.counts_reused,
        })
    }

    /// Where the records are of staged results for rows of fragments.
    async fn staged_of(&self, fragments: &BTreeSet<u64>) -> Result<Vec<String>> {
        let staged = &self.round.work.staged;
        if staged.is_empty() {
            return Ok(Vec::new());
        }
        let table = &self.round.computation.table;
        let mut ids = RowSet::default();
        for fragment in fragments {
            if let Some(file) = table.dataset.get_fragment(*fragment as usize) {
                ids.union_with(&live_ids(&table.name, &table.dataset, file.metadata()).await?);
            }
        }
        Ok(staged.records_of(&ids))
    }
}

/// The users' functions that columns call.
fn described_functions(columns: &[Column], codecs: &Codecs) -> Result<BTreeMap<String, String>> {
    let mut functions = BTreeMap::new();
    for column in columns {
        column.expression.apply(|part| {
            if let Expr::ScalarFunction(call) = part
                && is_users(call.func.name())
            {
                let mut bytes = Vec::new();
                write_function(codecs, &call.func, &mut bytes)?;
                functions.insert(call.func.name().to_string(), BASE64.encode(bytes));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(functions)
}

fn read_outcome(batches: &[RecordBatch]) -> Result<Outcome> {
    let broken = || Error::internal("what a group of units gave can't be read");
    let [batch] = batches else {
        return Err(broken());
    };
    let outcomes = batch.column(0).as_string_opt::<i32>().ok_or_else(broken)?;
    match outcomes.len() {
        1 => serde_json::from_str(outcomes.value(0)).map_err(|error| broken().with_source(error)),
        _ => Err(broken()),
    }
}
