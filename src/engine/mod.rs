//! Where a physical plan runs: in this process.
//!
//! Nothing above this room knows where its plans run: it gives a plan and gets the batches of
//! all its partitions, in any order.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::JoinSet;

use crate::{Error, ErrorKind, Result};

/// Runs every partition of `plan`, `concurrency` at once, each in a task of its own, and gives what each
/// yields when it is whole. Dropping the stream stops the tasks.
pub fn run_partitions(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    concurrency: usize,
) -> BoxStream<'static, Result<Vec<RecordBatch>>> {
    let partitions = plan.properties().output_partitioning().partition_count();
    stream::iter(0..partitions)
        .map(move |partition| {
            let plan = Arc::clone(&plan);
            let context = Arc::clone(&context);
            async move {
                // A set of one task: unlike a bare handle, it stops the task when dropped.
                let mut task = JoinSet::new();
                task.spawn(async move {
                    let stream = plan.execute(partition, context)?;
                    stream.try_collect::<Vec<_>>().await
                });
                match task.join_next().await {
                    Some(Ok(batches)) => Ok(batches?),
                    Some(Err(error)) => Err(Error::internal(format!("a task failed: {error}"))),
                    None => Err(Error::new(ErrorKind::Cancelled, "the task was stopped")),
                }
            }
        })
        .buffer_unordered(concurrency.max(1))
        .boxed()
}
