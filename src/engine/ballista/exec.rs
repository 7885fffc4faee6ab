//! The node that runs the plan below it on a cluster.

use std::fmt;
use std::sync::Arc;

use ballista_core::serde::protobuf::PartitionLocation;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::cast;
use datafusion::common::{Result as DataFusionResult, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use datafusion::prelude::SessionConfig;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::client::{Cluster, Purpose, Submitted};
use crate::{Error, Result};

/// Runs a plan on a cluster: all of its partitions at once, when the first of them is asked for.
#[derive(Debug)]
pub(super) struct ClusterExec {
    cluster: Cluster,
    /// The plan as it was planned, to be shown.
    plan: Arc<dyn ExecutionPlan>,
    /// The plan as it is sent.
    bytes: Arc<Vec<u8>>,
    /// It on its way: once for all partitions.
    running: Arc<OnceCell<Running>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// A plan that the cluster has run.
#[derive(Debug)]
struct Running {
    submitted: Submitted,
    /// Where the rows of each partition are.
    locations: Vec<Vec<PartitionLocation>>,
}

impl ClusterExec {
    /// Runs `plan`, which is sent as `bytes`.
    pub(super) fn new(cluster: Cluster, plan: Arc<dyn ExecutionPlan>, bytes: Vec<u8>) -> Self {
        let properties = Arc::clone(plan.properties());
        Self {
            cluster,
            plan,
            bytes: Arc::new(bytes),
            running: Arc::default(),
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    async fn run(
        cluster: &Cluster,
        config: &SessionConfig,
        bytes: Vec<u8>,
        partitions: usize,
    ) -> Result<Running> {
        // A job says in its session whose work its plans are; queries are each for themselves.
        let purpose = config.get_extension::<Purpose>().unwrap_or_default();
        let mut submitted = cluster.submit(bytes, config, &purpose).await?;
        let mut locations = vec![Vec::new(); partitions.max(1)];
        for location in submitted.wait().await? {
            let place = location.partition_id.as_ref();
            let place = place.map_or(0, |id| id.partition_id as usize);
            // Nodes above count on it: a plan that is divided in another way would give wrong rows.
            let place = locations.get_mut(place).ok_or_else(|| {
                Error::internal(format!(
                    "the cluster has divided a plan of {partitions} partitions in another way"
                ))
            })?;
            place.push(location);
        }
        Ok(Running {
            submitted,
            locations,
        })
    }
}

/// How much of what a plan has given on a cluster has arrived, from 0 to 1; `None` if `plan` does not run on one.
pub fn arrived(plan: &dyn ExecutionPlan) -> Option<f64> {
    let cluster = plan.downcast_ref::<ClusterExec>()?;
    let Some(running) = cluster.running.get() else {
        return Some(0.0);
    };
    let locations = running.locations.iter().flatten();
    let rows = locations.filter_map(|location| {
        let rows = location.partition_stats.as_ref()?.num_rows;
        u64::try_from(rows).ok()
    });
    let rows: u64 = rows.sum();
    let arrived = cluster.metrics.clone_inner().output_rows().unwrap_or(0);
    Some(match rows {
        0 => 1.0,
        rows => (arrived as f64 / rows as f64).min(1.0),
    })
}

impl DisplayAs for ClusterExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterExec")
    }
}

impl ExecutionPlan for ClusterExec {
    fn name(&self) -> &str {
        "ClusterExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.plan]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let plan = children
            .pop()
            .ok_or_else(|| Error::internal("ClusterExec has one child"))?;
        // Nothing changes plans once they are placed, but to run them anew.
        Ok(Arc::new(Self {
            cluster: self.cluster.clone(),
            properties: Arc::clone(plan.properties()),
            plan,
            bytes: Arc::clone(&self.bytes),
            running: Arc::default(),
            metrics: ExecutionPlanMetricsSet::new(),
        }))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        let schema = self.schema();
        let partitions = self.plan.output_partitioning().partition_count();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let cluster = self.cluster.clone();
        let (running, bytes) = (Arc::clone(&self.running), Arc::clone(&self.bytes));
        let shown = Arc::clone(&schema);
        let rows = async move {
            let run = running.get_or_try_init(|| {
                let config = context.session_config();
                Self::run(&cluster, config, bytes.as_ref().clone(), partitions)
            });
            let run = run.await?;
            let mut parts = Vec::new();
            for location in run.locations.get(partition).into_iter().flatten() {
                parts.push(run.submitted.fetch(location.clone()).await?);
            }
            // Held until all is read: with it goes what the executors keep.
            let held = Arc::clone(&running);
            let rows = stream::iter(parts).flatten().map(move |batch| {
                let _ = &held;
                let batch = batch?;
                metrics.record_output(batch.num_rows());
                // What comes back lacks what the schema says beside names and types; and there are literals whose
                // type is not written, such as FLOAT16.
                let columns = batch.columns().iter().zip(shown.fields());
                let columns = columns.map(|(column, field)| cast(column, field.data_type()));
                let columns = columns.collect::<Result<Vec<_>, _>>()?;
                let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                let shown = Arc::clone(&shown);
                Ok(RecordBatch::try_new_with_options(shown, columns, &rows)?)
            });
            Ok::<_, datafusion::common::DataFusionError>(rows)
        };
        let rows = stream::once(rows).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> DataFusionResult<Arc<Statistics>> {
        self.plan.partition_statistics(partition)
    }
}
