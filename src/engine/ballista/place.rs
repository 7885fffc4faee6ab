//! Which parts of a plan run on the cluster.
//!
//! A plan is planned as ever. Then its largest parts that read tables and can be sent become
//! [`ClusterExec`]s; what is left above them, and plans that read no table, run in this process. What is sent has to mean the
//! same where each partition is run by itself: nodes whose partitions share something in memory stay here.

use std::sync::Arc;

use ballista_core::config::BallistaConfig;
use ballista_core::extension::SessionConfigHelperExt;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{JoinType, Result as DataFusionResult};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlanProperties, Partitioning};
use datafusion::prelude::SessionConfig;

use super::client::Cluster;
use super::exec::ClusterExec;
use crate::Result;

/// Bytes in memory that are sent with a plan, at most.
const MOST_MEMORY: usize = 8 << 20;

/// Nodes of DataFusion that run anywhere, partition by partition.
const ANYWHERE: [&str; 21] = [
    "AggregateExec",
    "BoundedWindowAggExec",
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "CrossJoinExec",
    "EmptyExec",
    "FilterExec",
    "GlobalLimitExec",
    "HashJoinExec",
    "InterleaveExec",
    "LocalLimitExec",
    "NestedLoopJoinExec",
    "PlaceholderRowExec",
    "ProjectionExec",
    "RepartitionExec",
    "SortExec",
    "SortMergeJoinExec",
    "SortPreservingMergeExec",
    "UnionExec",
    "WindowAggExec",
];

/// Places plans: the last of the rules that plan them.
#[derive(Debug)]
pub struct PlaceOnCluster {
    cluster: Cluster,
}

impl PlaceOnCluster {
    /// For `cluster`.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

impl PhysicalOptimizerRule for PlaceOnCluster {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(place(&self.cluster, plan)?)
    }

    fn name(&self) -> &str {
        "place_on_cluster"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What sessions have to be set to so that their plans can be sent.
pub fn configure(config: SessionConfig) -> SessionConfig {
    let config = config
        .with_option_extension(BallistaConfig::default())
        .ballista_restricted_configuration();
    config
        // A plan that is sent is the plan that was shown.
        .set_u64("ballista.optimizer.broadcast_join_threshold_bytes", 0)
        .set_bool("datafusion.optimizer.prefer_hash_join", true)
}

/// A part of a plan on its way.
struct Placed {
    plan: Arc<dyn ExecutionPlan>,
    /// It as it is sent, if it can be.
    sent: Option<Arc<dyn ExecutionPlan>>,
    /// Whether it reads tables.
    reads: bool,
}

/// Replaces the parts of `plan` that can be sent.
///
/// # Errors
///
/// If a node can't be described.
fn place(cluster: &Cluster, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let placed = look(cluster, plan)?;
    finish(cluster, placed)
}

/// A part above which nothing can be sent.
fn finish(cluster: &Cluster, placed: Placed) -> Result<Arc<dyn ExecutionPlan>> {
    let Placed { plan, sent, reads } = placed;
    let Some(sent) = sent.filter(|_| reads) else {
        return Ok(plan);
    };
    match cluster.write(&sent) {
        Ok(bytes) => Ok(Arc::new(ClusterExec::new(cluster.clone(), plan, bytes))),
        Err(error) => {
            log::warn!("a plan runs in this process, because it can't be sent: {error}");
            Ok(plan)
        }
    }
}

fn look(cluster: &Cluster, plan: Arc<dyn ExecutionPlan>) -> Result<Placed> {
    let codecs = cluster.codecs();
    if let Some(deferred) = codecs.defer(&plan) {
        return Ok(Placed {
            sent: Some(Arc::new(deferred?)),
            plan,
            reads: true,
        });
    }
    let children: Vec<Placed> = plan
        .children()
        .into_iter()
        .map(|child| look(cluster, Arc::clone(child)))
        .collect::<Result<_>>()?;
    let reads = children.iter().any(|child| child.reads);
    let sent: Option<Vec<Arc<dyn ExecutionPlan>>> =
        children.iter().map(|child| child.sent.clone()).collect();
    if let Some(sent) = sent
        && runs_anywhere(&plan)
    {
        let sent = match sent.is_empty() {
            true => Arc::clone(&plan),
            false => Arc::clone(&plan).with_new_children(sent)?,
        };
        return Ok(Placed {
            plan,
            sent: Some(sent),
            reads,
        });
    }
    if children.is_empty() {
        return Ok(Placed {
            plan,
            sent: None,
            reads: false,
        });
    }
    let children = children.into_iter();
    let children = children.map(|child| finish(cluster, child));
    let plan = plan.with_new_children(children.collect::<Result<_>>()?)?;
    Ok(Placed {
        plan,
        sent: None,
        reads: false,
    })
}

/// Whether a node means the same where each of its partitions is run by itself.
fn runs_anywhere(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(source) = plan.downcast_ref::<DataSourceExec>() {
        let Some(memory) = source.data_source().downcast_ref::<MemorySourceConfig>() else {
            // Files that a statement names are those of this process.
            return false;
        };
        let batches = memory.partitions().iter().flatten();
        return batches
            .map(|batch| batch.get_array_memory_size())
            .sum::<usize>()
            <= MOST_MEMORY;
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        // Where tasks share the left side, each would give the rows of it that it found no match for; Ballista makes another
        // join of it, which has another number of partitions than the nodes above it were planned for.
        let is_shared = *join.partition_mode() == PartitionMode::CollectLeft;
        return !join.null_aware && (!is_shared || is_by_right(*join.join_type()));
    }
    if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        // Each task would give the rows of the left side that it found no match for.
        return is_by_right(*join.join_type())
            || join.right().output_partitioning().partition_count() == 1;
    }
    if let Some(repartition) = plan.downcast_ref::<RepartitionExec>() {
        return matches!(repartition.partitioning(), Partitioning::Hash(..));
    }
    ANYWHERE.contains(&plan.name()) || plan.name() == "UnnestExec"
}

/// Whether a join gives rows only on behalf of its right side.
fn is_by_right(join: JoinType) -> bool {
    matches!(
        join,
        JoinType::Inner
            | JoinType::Right
            | JoinType::RightSemi
            | JoinType::RightAnti
            | JoinType::RightMark
    )
}
