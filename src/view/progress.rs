//! How far a refresh of a view is: the rows of its sources that the plan which computes it has to read, and has read.
//!
//! It is asked of the nodes that scan tables, so it costs the query nothing. What is read to find keys before this plan
//! begins is not counted.

use std::sync::{Arc, OnceLock};

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::UInt8Type;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::TryStreamExt;

use super::pass::Pass;
use crate::Result;
use crate::engine::ballista::exec::arrived;
use crate::job::counters::{Count, Counters};
use crate::storage::change::{CHANGE, DELETE};
use crate::storage::scan::LanceScanExec;

/// The plan that computes a view, once it runs.
#[derive(Debug)]
pub(super) struct Progress {
    /// The view, whose own rows are none of its sources'.
    view: String,
    plan: OnceLock<Arc<dyn ExecutionPlan>>,
}

impl Progress {
    /// Of a refresh of `view` that reads nothing yet.
    pub(super) fn new(view: &str) -> Self {
        Self {
            view: view.to_string(),
            plan: OnceLock::new(),
        }
    }

    /// Runs `plan`, and looks at how far it is from now on.
    pub(super) async fn execute(
        &self,
        pass: &Pass,
        plan: &LogicalPlan,
    ) -> Result<SendableRecordBatchStream> {
        let plan = physical_plan(pass, plan).await?;
        // One plan computes all the rows.
        let _ = self.plan.set(Arc::clone(&plan));
        Ok(execute_stream(plan, pass.state.task_ctx())?)
    }

    /// Counts what is read by now.
    pub(super) fn count(&self, counters: &Counters) {
        let (mut planned, mut read) = (0, 0);
        if let Some(plan) = self.plan.get() {
            self.scanned(plan, &mut planned, &mut read);
        }
        counters.set(Count::SourceRows, planned);
        counters.set(Count::SourceRowsRead, read.min(planned));
    }

    /// Adds up the rows of all scans below a node, and those that they gave.
    fn scanned(&self, plan: &Arc<dyn ExecutionPlan>, planned: &mut u64, read: &mut u64) {
        if let Some(scan) = plan.downcast_ref::<LanceScanExec>()
            && scan.description().table() != self.view
        {
            let rows = plan.partition_statistics(None).ok();
            let rows = rows.and_then(|statistics| statistics.num_rows.get_value().copied());
            *planned += rows.unwrap_or(0) as u64;
            let metrics = plan.metrics();
            *read += metrics.and_then(|all| all.output_rows()).unwrap_or(0) as u64;
        }
        let (before, read_before) = (*planned, *read);
        for child in plan.children() {
            self.scanned(child, planned, read);
        }
        // What executors read is not seen here, only what has come of it.
        if let Some(arrived) = arrived(plan.as_ref()) {
            *read = read_before + ((*planned - before) as f64 * arrived) as u64;
        }
    }
}

/// `changes`, which are on their way to be written, each counted when it is taken.
pub(super) fn counted(
    changes: SendableRecordBatchStream,
    counters: Arc<Counters>,
) -> SendableRecordBatchStream {
    let schema = changes.schema();
    let counted = changes.inspect_ok(move |batch| {
        let kinds = batch.column_by_name(CHANGE);
        let kinds = kinds.and_then(|kinds| kinds.as_primitive_opt::<UInt8Type>());
        let written = kinds.map_or(0, |kinds| {
            kinds.iter().filter(|k| *k != Some(DELETE)).count()
        });
        counters.add(Count::RowsComputed, written as u64);
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, counted))
}

/// Plans what runs.
pub(super) async fn physical_plan(
    pass: &Pass,
    plan: &LogicalPlan,
) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = pass.state.optimize(plan)?;
    let planner = pass.state.query_planner();
    Ok(planner.create_physical_plan(&plan, &pass.state).await?)
}
