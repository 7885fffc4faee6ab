//! Units of a pass that other processes compute.
//!
//! A unit is sent as a description: which rows of which fragment, of which columns by which definitions. An executor
//! opens the table at the same version, plans the same computation, and writes the same kind of files as a worker of this
//! process. What it gives is one row: the file, or the error, and what was counted. That it runs twice, or twice at
//! once, does no harm: files that no driver hears of are never read.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::assess::{Column, Rows};
use super::computation::Computation;
use super::plan::{BatchSize, Unit};
use super::staged::{Staged, Staging};
use super::work::{Pace, Work};
use super::write::{WrittenUnit, written_units};
use crate::engine::ballista::board::{Demand, Inquiry};
use crate::engine::ballista::client::slots_for;
use crate::engine::ballista::{Cluster, Purpose};
use crate::engine::deferred::{Codecs, DeferredExec, NodeCodec};
use crate::engine::function::{read_function, write_function};
use crate::engine::units::{self, Units};
use crate::engine::wire::{find_error, write_error};
use crate::function::is_users;
use crate::job::admission::{INQUIRIES, InFlight, until_done};
use crate::job::counters::{Counters, Reading};
use crate::job::environment::Environment;
use crate::job::signal::{Signal, Signaller};
use crate::storage::RowSet;
use crate::storage::column_file::SplitFile;
use crate::{Error, ErrorKind, Result};

/// The name of the kind of node.
const KIND: &str = "column unit";
/// Units on their way for each slot: while one runs the next one waits in the scheduler, so that the slot has work when
/// its driver has yet to hear of the end.
pub(super) const PER_SLOT: usize = 2;
/// Units on their way or waiting to be, at most.
const MOST: usize = 1024;

/// A unit as it is sent.
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
    unit: Unit,
    /// The file that it writes a part of, if its fragment is divided.
    split: Option<String>,
    batches: BatchSize,
    fixed_batches: bool,
    checkpoint_interval: Duration,
    counts_reused: bool,
    /// Results of earlier runs that are used.
    staged: Earlier,
}

/// Which staged results of earlier runs a unit uses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Earlier {
    /// Those of any job.
    OfAll,
    /// Those of one job.
    Of(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct DescribedColumn {
    name: String,
    definition: String,
    /// Addresses of the rows to compute; `None` for all.
    rows: Option<RowSet>,
}

/// What a unit came to.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    /// The file, as JSON of Lance's.
    file: Option<String>,
    /// Why there is none.
    error: Option<String>,
    counted: Reading,
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
    /// Results of earlier runs that are used.
    pub(super) staged: Earlier,
    /// Whose work it is.
    pub(super) purpose: Purpose,
}

/// Has `units` computed by a cluster, as many at once as `in_flight` says. No more are begun when `go_on` says so.
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
        Ok(functions) => Arc::new(functions),
        Err(error) => return stream::iter([Err(error)]).boxed(),
    };
    let round = Arc::new(round);
    let config = environment.state.config().clone();
    let in_flight = Arc::new(in_flight);
    let watch = Watch::begin(Arc::clone(&cluster), &round, &in_flight, units.len());
    let go_on = Arc::new(go_on);
    stream::iter(units.into_iter().enumerate())
        .map(move |(place, unit)| {
            let (in_flight, go_on) = (Arc::clone(&in_flight), Arc::clone(&go_on));
            let (round, cluster) = (Arc::clone(&round), Arc::clone(&cluster));
            let (config, watch) = (config.clone(), watch.clone());
            let split = split.get(&unit.fragment).cloned();
            let functions = Arc::clone(&functions);
            async move {
                let _permit = in_flight.permit().await?;
                if !go_on() {
                    return Ok(Vec::new());
                }
                let attempt = || async {
                    let split = split.as_ref().map(SplitFile::write).transpose()?;
                    let description =
                        round.describe(unit.clone(), split, functions.as_ref().clone());
                    let watched = watch.unit(&description.token);
                    let bytes = serde_json::to_vec(&description).map_err(|error| {
                        Error::internal(format!("a unit can't be written: {error}"))
                    })?;
                    let text = format!(
                        "ColumnUnit: table={}, fragment={}",
                        description.table, unit.fragment
                    );
                    let node = DeferredExec::new(KIND, bytes, output_schema(), vec![Some(1)])
                        .with_text(text);
                    let outcome = cluster.run(Arc::new(node), &config, &round.purpose);
                    let outcome = outcome.await?;
                    let outcome = read_outcome(&outcome)?;
                    watched.end(&outcome.counted);
                    match (outcome.file, outcome.error) {
                        (Some(file), _) => Ok(vec![WrittenUnit { unit: place, file }]),
                        (None, Some(error)) => Err(find_error(&error)
                            .unwrap_or_else(|| Error::internal("a unit failed without a reason"))),
                        (None, None) => Err(Error::internal("a unit gave neither file nor error")),
                    }
                };
                until_done(&round.work.signal, attempt).await
            }
        })
        .buffer_unordered(MOST)
        .boxed()
}

impl Round {
    fn describe(
        &self,
        unit: Unit,
        split: Option<String>,
        functions: BTreeMap<String, String>,
    ) -> Description {
        let Computation {
            table,
            columns,
            rows,
            keeps_values,
        } = &self.computation;
        let addresses = unit.fragment << 32..(unit.fragment + 1) << 32;
        let columns = columns
            .iter()
            .zip(rows)
            .map(|(column, rows)| DescribedColumn {
                name: column.name().to_string(),
                definition: column.definition.digest(),
                rows: match rows {
                    Rows::All => None,
                    Rows::Some(rows) => Some(rows.range(addresses.clone()).collect()),
                },
            });
        let root = self.work.database.root();
        Description {
            token: Uuid::new_v4().to_string(),
            database: root.url().to_string(),
            storage_options: root.settings().options().clone(),
            job: self.work.job.clone(),
            table: table.name.clone(),
            version: table.version(),
            made: table.dataset.manifest().timestamp_nanos,
            columns: columns.collect(),
            functions,
            keeps_values: *keeps_values,
            unit,
            split,
            batches: self.batches,
            fixed_batches: self.fixed_batches,
            checkpoint_interval: self.work.checkpoint_interval,
            counts_reused: self.work.counts_reused,
            staged: self.staged.clone(),
        }
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
    let broken = || Error::internal("what a unit gave can't be read");
    let [batch] = batches else {
        return Err(broken());
    };
    let outcomes = batch.column(0).as_string_opt::<i32>().ok_or_else(broken)?;
    match outcomes.len() {
        1 => serde_json::from_str(outcomes.value(0)).map_err(|error| broken().with_source(error)),
        _ => Err(broken()),
    }
}

/// Tells the units of a round what their job is told, and counts how far they are.
#[derive(Debug, Clone)]
struct Watch {
    readings: Arc<Mutex<BTreeMap<String, Reading>>>,
    counters: Arc<Counters>,
    /// Units that are not done.
    left: Arc<AtomicU64>,
    _task: Arc<JoinSet<()>>,
}

impl Watch {
    fn begin(
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

    fn unit(&self, token: &str) -> Watched {
        lock(&self.readings).insert(token.to_string(), Reading::default());
        Watched {
            watch: self.clone(),
            token: token.to_string(),
        }
    }
}

/// A unit that is watched. What it counted is taken back if it does not [end](Self::end).
struct Watched {
    watch: Watch,
    token: String,
}

impl Watched {
    /// It has ended, and counted this.
    fn end(self, counted: &Reading) {
        if let Some(before) = lock(&self.watch.readings).remove(&self.token) {
            self.watch.counters.absorb(&before, counted);
        }
        self.watch.left.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(before) = lock(&self.watch.readings).remove(&self.token) {
            self.watch.counters.absorb(&before, &Reading::default());
        }
    }
}

fn lock(
    readings: &Mutex<BTreeMap<String, Reading>>,
) -> std::sync::MutexGuard<'_, BTreeMap<String, Reading>> {
    readings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens databases for work of others.
#[async_trait]
pub trait Opener: fmt::Debug + Send + Sync {
    /// What work on the database at `url` runs in.
    async fn open(&self, url: &str, options: &HashMap<String, String>) -> Result<Environment>;
}

/// Runs units that other processes send.
#[derive(Debug)]
pub struct UnitCodec {
    opener: Arc<dyn Opener>,
}

impl UnitCodec {
    /// With databases that `opener` opens.
    pub fn new(opener: Arc<dyn Opener>) -> Self {
        Self { opener }
    }
}

impl NodeCodec for UnitCodec {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn encode(&self, _: &dyn ExecutionPlan, _: &Codecs) -> Option<Result<Vec<u8>>> {
        // A round describes its units itself.
        None
    }

    fn execute(
        self: Arc<Self>,
        description: &[u8],
        _: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let description: Description = serde_json::from_slice(description)
            .map_err(|error| Error::internal(format!("a unit can't be read: {error}")))?;
        let outcome = stream::once(async move {
            let outcome = self.run(description, context).await;
            let outcome = serde_json::to_string(&outcome)
                .map_err(|error| Error::internal(format!("an outcome: {error}")))?;
            let outcome: ArrayRef = Arc::new(StringArray::from(vec![outcome]));
            Ok(RecordBatch::try_new(output_schema(), vec![outcome])?)
        });
        let outcome = RecordBatchStreamAdapter::new(output_schema(), outcome);
        Ok(Box::pin(outcome))
    }
}

impl UnitCodec {
    async fn run(&self, description: Description, context: Arc<TaskContext>) -> Outcome {
        let running = Arc::new(Running::default());
        let units = context.session_config().get_extension::<Units>();
        let _begun = units.map(|units| {
            units.begin(
                &description.token,
                Arc::clone(&running) as Arc<dyn units::Unit>,
            )
        });
        let file = Box::pin(self.write(description, &running, context)).await;
        let counted = running.counters.reading();
        match file {
            Ok(file) => Outcome {
                file: Some(file),
                error: None,
                counted,
            },
            Err(error) => Outcome {
                file: None,
                error: Some(write_error(&error)),
                counted,
            },
        }
    }

    /// Computes a unit, and writes it.
    async fn write(
        &self,
        description: Description,
        running: &Running,
        context: Arc<TaskContext>,
    ) -> Result<String> {
        let Description {
            database,
            storage_options,
            unit,
            ..
        } = &description;
        let environment = self.opener.open(database, storage_options).await?;
        let mut state = environment.state.clone();
        let codecs = context.session_config().get_extension::<Codecs>();
        let codecs = codecs.unwrap_or_default();
        for (name, text) in &description.functions {
            let bytes = BASE64.decode(text).map_err(|error| {
                Error::internal(format!("function '{name}' can't be read: {error}"))
            })?;
            state.register_udf(read_function(&codecs, name, &bytes))?;
        }
        let state = &state;
        let database = Arc::clone(&environment.database);
        let version = Some(description.version);
        let mut table = database.table_at(&description.table, version).await?;
        if table.dataset.manifest().timestamp_nanos != description.made {
            // What is cached is of a table that was there before.
            database.root().forget();
            table = database.table_at(&description.table, version).await?;
        }
        if table.dataset.manifest().timestamp_nanos != description.made {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("table '{}' was made anew meanwhile", table.name),
            ));
        }
        let mut columns = Vec::with_capacity(description.columns.len());
        let mut rows = Vec::with_capacity(description.columns.len());
        for described in &description.columns {
            let column = Column::load(state, &table, &described.name)?;
            if column.definition.digest() != described.definition {
                return Err(Error::internal(format!(
                    "column '{}' of table '{}' has another definition here",
                    described.name, table.name
                )));
            }
            columns.push(column);
            rows.push(match &described.rows {
                None => Rows::All,
                Some(rows) => Rows::Some(rows.clone()),
            });
        }
        let names: Vec<&str> = columns.iter().map(Column::name).collect();
        let split = match &description.split {
            Some(text) => {
                let file = SplitFile::read(text, &table.name, &table.dataset, &names)?;
                HashMap::from([(unit.fragment, file)])
            }
            None => HashMap::new(),
        };
        let only = match &description.staged {
            Earlier::Of(job) => Some(job.as_str()),
            Earlier::OfAll => None,
        };
        let wanted: Vec<&Column> = columns.iter().collect();
        let staged = Staged::find(&database, &table, &wanted, only).await?;
        let staging = Staging::new(Arc::clone(&database), &table, &columns, &description.job);
        let work = Work {
            job: description.job.clone(),
            signal: running.signal.clone(),
            counters: Arc::clone(&running.counters),
            checkpoint_interval: description.checkpoint_interval,
            ledger: environment.jobs.ledger().clone(),
            staging: staging.await?,
            staged: Arc::new(staged),
            counts_reused: description.counts_reused,
            pace: match description.fixed_batches {
                true => Pace::fixed(),
                false => Pace::adaptive(description.checkpoint_interval),
            },
            database,
        };
        let computation = Computation {
            table,
            columns,
            rows,
            keeps_values: description.keeps_values,
        };
        let plan = computation.physical_plan(
            state,
            description.batches,
            std::slice::from_ref(unit),
            Arc::new(split),
            Some(Arc::new(work)),
        );
        let plan = plan.await?;
        let batches: Vec<RecordBatch> = plan.execute(0, context)?.try_collect().await?;
        let mut written = batches.iter().map(written_units);
        match written.next() {
            Some(units) => Ok(units?
                .pop()
                .ok_or_else(|| Error::internal("a unit wrote nothing"))?
                .file),
            None => Err(Error::internal("a unit wrote nothing")),
        }
    }
}

/// A unit that runs in this process for another.
#[derive(Default)]
struct Running {
    signal: Signaller,
    counters: Arc<Counters>,
}

impl units::Unit for Running {
    fn progress(&self) -> Value {
        serde_json::to_value(self.counters.reading()).unwrap_or(Value::Null)
    }

    fn tell(&self, signal: &Value) {
        if let Ok(signal) = serde_json::from_value::<Signal>(signal.clone()) {
            self.signal.tell(signal);
        }
    }
}
