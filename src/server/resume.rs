//! Goes on with jobs of a server that were interrupted: its process was killed, or ended before they did.
//!
//! A job says whether a server took its statement. Those whose drivers are gone are looked for when a server starts, and
//! every few seconds from then on: a driver on another machine counts as gone only when it has not shown for a while that it
//! lives. Of several servers on one database one gets a job, since it has to claim it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Report;
use crate::engine::ballista::Cluster;
use crate::job::record::JobState;
use crate::session::Headwater;
use crate::{Error, ErrorKind, Result};

/// How often interrupted jobs are looked for.
const RHYTHM: Duration = Duration::from_secs(10);
/// How often a job is tried that can't even begin.
const ATTEMPTS: u32 = 3;

/// How long executors have to find a server that was started again.
const RETURN: Duration = Duration::from_secs(30);

/// Goes on with interrupted jobs of servers, until it is dropped.
pub(super) struct Resumer {
    session: Headwater,
    workers: Handle,
    tell: Arc<dyn Fn(&Report) + Send + Sync>,
    /// How often each job could not begin.
    failed: BTreeMap<String, u32>,
    underway: BTreeSet<String>,
    runs: JoinSet<(String, Result<()>)>,
}

impl Resumer {
    pub(super) fn new(
        session: Headwater,
        workers: Handle,
        tell: Arc<dyn Fn(&Report) + Send + Sync>,
    ) -> Self {
        Self {
            session,
            workers,
            tell,
            failed: BTreeMap::new(),
            underway: BTreeSet::new(),
            runs: JoinSet::new(),
        }
    }

    /// Looks for jobs, and goes on with them.
    pub(super) async fn run(mut self) {
        if let Some(cluster) = self.session.cluster() {
            executors_come(&cluster).await;
        }
        loop {
            if let Err(error) = self.look().await {
                (self.tell)(&Report::Unreadable(error));
            }
            let next = tokio::time::Instant::now() + RHYTHM;
            loop {
                tokio::select! {
                    Some(ended) = self.runs.join_next() => {
                        if let Ok((id, result)) = ended {
                            self.ended(id, result);
                        }
                    }
                    () = tokio::time::sleep_until(next) => break,
                }
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let ledger = self.session.jobs().ledger();
        for id in ledger.active().await? {
            if self.underway.contains(&id) || self.failed.get(&id) >= Some(&ATTEMPTS) {
                continue;
            }
            let Some(files) = ledger.read(&id).await? else {
                continue;
            };
            let is_ours = files.record.served;
            if !is_ours || ledger.summary(&files).state != JobState::Interrupted {
                continue;
            }
            // A job of another machine may only seem so: its claim is asked, and then its driver is watched.
            (self.tell)(&Report::Resuming(
                id.clone(),
                files.record.statement.clone(),
            ));
            self.underway.insert(id.clone());
            let session = self.session.new_session()?;
            let run = async move {
                let statement = format!("RESUME JOB '{id}'");
                let resumed = session.sql(&statement);
                let result = std::panic::AssertUnwindSafe(resumed).catch_unwind().await;
                let result = match result {
                    Ok(result) => result.map(|_| ()),
                    Err(_) => Err(Error::internal("it panicked")),
                };
                (id, result)
            };
            self.runs.spawn_on(run, &self.workers);
        }
        Ok(())
    }

    fn ended(&mut self, id: String, result: Result<()>) {
        self.underway.remove(&id);
        match result {
            Ok(()) => {
                self.failed.remove(&id);
                (self.tell)(&Report::Resumed(id));
            }
            // Another process was quicker, or it was told to end.
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Cancelled) => {}
            Err(error) => {
                *self.failed.entry(id.clone()).or_default() += 1;
                (self.tell)(&Report::NotResumed(id, error));
            }
        }
    }
}

/// Waits until there is an executor, but not for long: a job without one fails, and says so.
async fn executors_come(cluster: &Cluster) {
    let came = async {
        while cluster.admit(None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let _ = tokio::time::timeout(RETURN, came).await;
}
