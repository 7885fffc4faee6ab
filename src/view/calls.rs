//! The plan node that calls users' functions for the rows of a view.
//!
//! It computes the columns of the last projection that call them; its input gives all other columns, what these read, and
//! the key. A row that kept its value, or whose value an earlier run has computed, is not evaluated. Rows are
//! evaluated a few at a time, so that a job hears what it is told in between, and what is computed is kept in
//! [checkpoints](super::checkpoint). Columns that lack a value in the same row are evaluated together, so that a call that
//! several of them share is made once.

pub(super) mod evaluate;
pub(super) mod remote;
mod worker;

pub use remote::CallCodec;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{Result as DataFusionResult, project_schema};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties,
};
use futures::{StreamExt, stream};

use self::evaluate::Evaluator;
use self::remote::Remote;
use self::worker::{Pieces, Rows};
use super::checkpoint::{Checkpoints, Staged};
use super::failed::{self, FailedKeys, FailedRows, OnError};
use super::paid::PaidColumn;
use crate::column::work::Pace;
use crate::database::Database;
use crate::job::admission::InFlight;
use crate::job::counters::{Count, Counters};
use crate::job::driver::Driver;
use crate::job::ledger::Ledger;
use crate::job::signal::Signaller;
use crate::storage::RowSet;
use crate::{Error, Result};

/// Pieces of a partition that are on their way on a cluster, or whose rows wait to be taken, at most.
const AHEAD: usize = 256;

/// What the calls of one attempt at a refresh share.
#[derive(Debug)]
pub(super) struct Calls {
    /// The view.
    pub(super) view: String,
    /// The columns that call functions.
    pub(super) columns: Vec<PaidColumn>,
    /// Types of the key, and the table whose row ids each column of it holds.
    pub(super) keys: Vec<(DataType, Option<String>)>,
    /// The job.
    pub(super) job: String,
    /// What it is told.
    pub(super) signal: Signaller,
    /// What is counted.
    pub(super) counters: Arc<Counters>,
    /// Where errors are written down.
    pub(super) ledger: Ledger,
    /// Where results are kept.
    pub(super) checkpoints: Checkpoints,
    /// What earlier runs have computed.
    pub(super) staged: Staged,
    /// How many rows are evaluated together.
    pub(super) pace: Pace,
    /// Where calls are made; `None` for this process.
    pub(super) remote: Option<Remote>,
    /// Evaluations at once.
    pub(super) in_flight: InFlight,
    /// What becomes of a row whose call fails.
    pub(super) on_error: OnError,
    /// Rows on record as failed, by column.
    pub(super) failed_before: Vec<FailedKeys>,
    /// Whether only those are computed.
    pub(super) failed_only: bool,
    /// Rows that fail now, or stay failed, by column.
    pub(super) failed_now: Mutex<Vec<FailedKeys>>,
}

impl Calls {
    /// What the state has on record as failed once this is committed; `looked_at` as for [`failed::after`].
    pub(super) async fn failed_rows(
        &self,
        database: &Database,
        looked_at: Option<&[(usize, Arc<RowSet>)]>,
    ) -> Result<Vec<FailedRows>> {
        let now = {
            let mut now = self
                .failed_now
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *now)
        };
        failed::after(database, &self.columns, now, &self.failed_before, looked_at).await
    }
}

/// The calls that are on their way in a job, if it makes any.
#[derive(Debug, Default)]
pub(super) struct Held {
    calls: Mutex<Option<Arc<Calls>>>,
    /// Whether there were any so far.
    was_any: AtomicBool,
    /// Whether any of them found what others had staged.
    has_found: AtomicBool,
}

impl Held {
    fn get(&self) -> MutexGuard<'_, Option<Arc<Calls>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These calls begin, or there are no more.
    pub(super) fn hold(&self, calls: Option<Arc<Calls>>) {
        if let Some(calls) = &calls {
            self.was_any.store(true, Ordering::Relaxed);
            self.has_found
                .fetch_or(calls.staged.is_there, Ordering::Relaxed);
        }
        *self.get() = calls;
    }

    /// Whether results may be staged that a later refresh would find.
    pub(super) fn has_staged(&self, driver: &Driver) -> bool {
        let has_written = driver.counters().get(Count::Checkpoints) > 0;
        let may_have = has_written || driver.is_resumed();
        self.has_found.load(Ordering::Relaxed) || (may_have && self.was_any.load(Ordering::Relaxed))
    }

    /// Whether there are calls.
    pub(super) fn is_some(&self) -> bool {
        self.get().is_some()
    }

    /// Writes down results that are not committed and took their time.
    pub(super) async fn keep(&self) -> Result<()> {
        let calls = self.get().clone();
        match calls {
            Some(calls) => calls.checkpoints.keep().await,
            None => Ok(()),
        }
    }

    /// Writes down all results that are not committed.
    pub(super) async fn write(&self) -> Result<()> {
        let calls = self.get().clone();
        match calls {
            Some(calls) => calls.checkpoints.write().await,
            None => Ok(()),
        }
    }
}

/// Where the node finds things in its input, and what it computes.
#[derive(Debug)]
pub(super) struct CallLayout {
    /// By column of the projection: its place in the input, or among the columns that call functions.
    pub(super) values: Vec<Value>,
    /// Places of the key in the input.
    pub(super) keys: Vec<usize>,
    /// By column that calls functions: places of whether a row keeps its value, and of that value.
    pub(super) kept: Vec<Option<(usize, usize)>>,
    /// Places of what the expressions read.
    pub(super) inputs: Vec<usize>,
    /// The expressions, over what they read, under the names that this has in them.
    pub(super) evaluator: Evaluator,
}

/// Where a column of the projection comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    /// It is this column of the input.
    Given(usize),
    /// It is computed: a place among the columns that call functions.
    Called(usize),
}

/// Calls functions. Its partitions are those of its input; its output is the projection, and the key behind it.
#[derive(Debug)]
pub(super) struct CallExec {
    input: Arc<dyn ExecutionPlan>,
    calls: Arc<Calls>,
    layout: Arc<CallLayout>,
    properties: Arc<PlanProperties>,
}

impl CallExec {
    /// Computes what `layout` says from the rows of `input`.
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        calls: Arc<Calls>,
        layout: Arc<CallLayout>,
    ) -> Self {
        let given = input.schema();
        let value = |(place, value): (usize, &Value)| {
            let data_type = match value {
                Value::Given(at) => given.field(*at).data_type(),
                Value::Called(at) => &calls.columns[*at].data_type,
            };
            Field::new(value_name(place), data_type.clone(), true)
        };
        let values = layout.values.iter().enumerate().map(value);
        let keys = layout.keys.iter().enumerate();
        let keys = keys.map(|(place, at)| {
            Field::new(key_name(place), given.field(*at).data_type().clone(), true)
        });
        let schema = Schema::new(values.chain(keys).collect::<Vec<_>>());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(schema)),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            input,
            calls,
            layout,
            properties: Arc::new(properties),
        }
    }
}

/// The name of a column of the projection in the output of the node.
pub(super) fn value_name(place: usize) -> String {
    format!("__value_{place}")
}

/// The name of a column of the key there.
pub(super) fn key_name(place: usize) -> String {
    format!("__row_key_{place}")
}

impl DisplayAs for CallExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.calls.columns.iter();
        let columns: Vec<String> = columns
            .map(|column| format!("{}={}", column.name, column.text))
            .collect();
        write!(f, "CallExec: {}", columns.join(", "))
    }
}

impl ExecutionPlan for CallExec {
    fn name(&self) -> &str {
        "CallExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let input = children
            .pop()
            .ok_or_else(|| Error::internal("CallExec has one child"))?;
        let (calls, layout) = (Arc::clone(&self.calls), Arc::clone(&self.layout));
        Ok(Arc::new(Self::new(input, calls, layout)))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        let schema = self.schema();
        let input = self.input.execute(partition, context)?;
        let (calls, layout) = (Arc::clone(&self.calls), Arc::clone(&self.layout));
        let is_remote = calls.remote.is_some();
        let rows = Arc::new(Rows::new(calls, layout, Arc::clone(&schema))?);
        let pieces = Pieces::new(input, Arc::clone(&rows));
        let pieces = stream::try_unfold(pieces, |mut pieces| async move {
            let piece = pieces.next().await?;
            Ok::<_, Error>(piece.map(|piece| (piece, pieces)))
        });
        let stream = pieces.map(move |piece| {
            let rows = Arc::clone(&rows);
            async move { Ok(rows.compute(piece?).await?) }
        });
        if !is_remote {
            return Ok(Box::pin(RecordBatchStreamAdapter::new(
                schema,
                stream.buffered(1),
            )));
        }
        // Each a task of its own: one that nobody asks for goes on, and does not keep others from their calls.
        let stream = stream
            .map(|rows| {
                let task = SpawnedTask::spawn(rows);
                async move {
                    let joined = task.join().await;
                    joined.map_err(|error| Error::internal(format!("a task failed: {error}")))?
                }
            })
            .buffer_unordered(AHEAD);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream)))
    }
}

/// The node as a table, so that a query can go on from it.
#[derive(Debug)]
pub(super) struct CallTable(pub(super) Arc<CallExec>);

#[async_trait]
impl TableProvider for CallTable {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let all: Arc<dyn ExecutionPlan> = Arc::clone(&self.0) as Arc<dyn ExecutionPlan>;
        let Some(places) = projection else {
            return Ok(all);
        };
        let schema = project_schema(&self.0.schema(), projection)?;
        let columns = places.iter().zip(schema.fields()).map(|(place, field)| {
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), *place));
            (column, field.name().clone())
        });
        let columns: Vec<_> = columns.collect();
        Ok(Arc::new(ProjectionExec::try_new(columns, all)?))
    }
}
