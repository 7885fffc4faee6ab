//! Where physical plans run: in this process, or on a [cluster](ballista).
//!
//! Nothing above this room knows where its plans run. For a cluster the nodes of other rooms are written as
//! [descriptions](deferred) by codecs that these rooms bring.

pub mod ballista;
pub mod deferred;
pub mod function;
pub mod units;
pub mod wire;

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::ready;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use self::ballista::{Certificates, Security};
use crate::{Error, ErrorKind, Result};

/// Where plans run.
#[derive(Debug, Clone, Default)]
pub enum Engine {
    /// In this process.
    #[default]
    Local,
    /// On a cluster.
    Ballista {
        /// Its scheduler: `df://host:port`, or `df+tls://host:port`.
        url: String,
        /// TLS.
        security: Security,
    },
}

impl Engine {
    /// The cluster whose scheduler is at `url`, such as `df://localhost:50060`, without TLS.
    pub fn ballista(url: impl Into<String>) -> Self {
        Self::Ballista {
            url: url.into(),
            security: Security::default(),
        }
    }

    /// The same for a cluster whose processes know one another by certificates.
    ///
    /// # Errors
    ///
    /// If a file can't be read, or can't be used for TLS.
    pub fn ballista_with_tls(url: impl Into<String>, certificates: &Certificates) -> Result<Self> {
        Ok(Self::Ballista {
            url: url.into(),
            security: Security::read(Some(certificates))?,
        })
    }
}

/// Runs every partition of `plan`, `concurrency` at once, each in a task of its own on `workers`, and
/// gives what each yields when it is whole. No more are begun when `go_on` says so. Dropping the stream
/// stops the tasks.
pub fn run_partitions(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    concurrency: usize,
    workers: Handle,
    go_on: impl Fn() -> bool + Send + Sync + 'static,
) -> BoxStream<'static, Result<Vec<RecordBatch>>> {
    let partitions = plan.properties().output_partitioning().partition_count();
    stream::iter(0..partitions)
        .take_while(move |_| ready(go_on()))
        .map(move |partition| {
            let plan = Arc::clone(&plan);
            let context = Arc::clone(&context);
            let workers = workers.clone();
            async move {
                // A set of one task: unlike a bare handle, it stops the task when dropped.
                let mut task = JoinSet::new();
                let run = async move {
                    let stream = plan.execute(partition, context)?;
                    stream.try_collect::<Vec<_>>().await
                };
                task.spawn_on(run, &workers);
                match task.join_next().await {
                    Some(Ok(batches)) => Ok(batches?),
                    Some(Err(error)) if error.is_panic() => {
                        Err(Error::internal(format!("a task failed: {error}")))
                    }
                    _ => Err(Error::new(ErrorKind::Cancelled, "the task was stopped")),
                }
            }
        })
        .buffer_unordered(concurrency.max(1))
        .boxed()
}
