//! `system.executors`.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use futures::future::BoxFuture;

use crate::Result;
use crate::database::Database;
use crate::database::system::{SystemTable, batch, number, optional_text, seconds, text};
use crate::engine::ballista::Cluster;

/// The executors of a cluster; there are none where work is done in this process.
#[derive(Debug)]
pub struct Executors(pub Option<Cluster>);

impl SystemTable for Executors {
    fn name(&self) -> &'static str {
        "executors"
    }

    fn rows<'a>(&'a self, _: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let executors = match &self.0 {
                Some(cluster) => cluster.executors().await?,
                None => Vec::new(),
            };
            let all = || executors.iter().map(|seen| &seen.executor);
            batch(vec![
                text("executor_id", all().map(|executor| executor.id.clone())),
                optional_text("label", all().map(|executor| executor.label.clone())),
                number(
                    "slots",
                    all().map(|executor| Some(u64::from(executor.slots))),
                ),
                number(
                    "tasks",
                    executors.iter().map(|seen| Some(u64::from(seen.tasks))),
                ),
                number("memory", all().map(|executor| executor.memory)),
                number(
                    "memory_used",
                    executors.iter().map(|seen| Some(seen.memory_used)),
                ),
                text("host", all().map(|executor| executor.host.clone())),
                number("port", all().map(|executor| Some(u64::from(executor.port)))),
                text("release", all().map(|executor| executor.release.clone())),
                seconds(
                    "seconds_since_heartbeat",
                    executors
                        .iter()
                        .map(|seen| Some(seen.silent_for as f64 / 1e3)),
                ),
            ])
        })
    }
}
