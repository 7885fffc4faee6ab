//! Whether a job finds executors for its work, and what becomes of work that a cluster is to blame for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::driver::Driver;
use super::environment::Environment;
use super::signal::{Signal, Signaller};
use crate::engine::ballista::board::{Demand, Inquiry};
use crate::engine::ballista::{Cluster, Purpose};
use crate::{Error, ErrorKind, Result};

/// How long a job waits for an executor unless it is said.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(600);
/// How often a cluster is asked what there is by now, and told what jobs are told.
pub const INQUIRIES: Duration = Duration::from_millis(200);
/// How long a job that was interrupted waits for an executor at least.
const RESUMED: Duration = Duration::from_secs(60);
/// How often work is given to the cluster again that the cluster is to blame for.
const ATTEMPTS: usize = 4;

/// What becomes of a job for which a cluster has no executor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// It fails at once.
    #[default]
    Strict,
    /// It waits for one, so long at most.
    Wait(Duration),
    /// Nobody looks: its units wait in the scheduler.
    Off,
}

/// Which executors a job wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// Executors of a cluster that compute: those with this label; `None` for those without.
    pub pool: Option<String>,
    /// What becomes of the job if there is none.
    pub admission: Admission,
}

impl Placement {
    /// Whose work the units of a job are.
    pub fn purpose(&self, job: &str) -> Purpose {
        Purpose {
            job: Some(job.to_string()),
            pool: self.pool.clone(),
            waits: self.admission == Admission::Off,
        }
    }

    /// Fails, before there is a job, if nobody can do its work and it shall not wait.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cluster`]: what is missing, and what there is.
    pub async fn check(&self, environment: &Environment) -> Result<()> {
        match (environment.cluster(), &self.pool, self.admission) {
            (_, _, Admission::Off) | (None, None, _) | (Some(_), _, Admission::Wait(_)) => Ok(()),
            (Some(cluster), pool, Admission::Strict) => cluster.admit(pool.as_deref()).await,
            (None, Some(pool), _) => Err(Error::new(
                ErrorKind::Cluster,
                format!("there is no executor with label '{pool}': statements run in this process"),
            )
            .with_hint(
                "leave 'pool' out, or use a cluster: headwater server --cluster-bind, and headwater executor",
            )),
        }
    }

    /// Waits until there is an executor for the job of `driver`, as long as it may; meanwhile the `units` that are left are
    /// demand that an autoscaler sees.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check), once the time is up.
    pub async fn admitted(&self, cluster: &Cluster, driver: &Driver, units: usize) -> Result<()> {
        let began = Instant::now();
        let patience = match self.admission {
            Admission::Off => return Ok(()),
            // The server was started again, and executors take a moment to come back.
            Admission::Strict if driver.is_resumed() => RESUMED,
            Admission::Strict => Duration::ZERO,
            Admission::Wait(patience) if driver.is_resumed() => patience.max(RESUMED),
            Admission::Wait(patience) => patience,
        };
        loop {
            let Err(error) = cluster.admit(self.pool.as_deref()).await else {
                return Ok(());
            };
            if began.elapsed() >= patience {
                return Err(match patience.is_zero() {
                    true => error,
                    false => error.context(format!("waited {patience:?} for an executor")),
                });
            }
            let inquiry = Inquiry {
                units: BTreeMap::new(),
                demand: Some(Demand {
                    job: driver.id().to_string(),
                    pool: self.pool.clone(),
                    units: units as u64,
                }),
            };
            // Whether it is heard does not matter: it is said again.
            let _ = cluster.inquire(&inquiry).await;
            tokio::time::sleep(INQUIRIES).await;
        }
    }
}

/// How much work of a job may be on its way at once: as much as was asked for, otherwise as much as there are slots, also
/// when these become more while it runs.
#[derive(Debug)]
pub struct InFlight {
    permits: Arc<Semaphore>,
    most: AtomicUsize,
    is_given: bool,
}

impl InFlight {
    /// As much as `given`, otherwise as `slots`; one at least.
    pub fn new(given: Option<usize>, slots: usize) -> Self {
        let most = given.unwrap_or(slots).max(1);
        Self {
            permits: Arc::new(Semaphore::new(most)),
            most: AtomicUsize::new(most),
            is_given: given.is_some(),
        }
    }

    /// How much may be on its way by now.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// There are so many slots by now. Where they become fewer, work waits in the scheduler.
    pub fn grow(&self, slots: usize) {
        if self.is_given {
            return;
        }
        let before = self.most.fetch_max(slots, Ordering::SeqCst);
        self.permits.add_permits(slots.saturating_sub(before));
    }

    /// Waits until more may be on its way; it is as long as this is held.
    ///
    /// # Errors
    ///
    /// None in practice: nobody closes it.
    pub async fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map_err(|error| Error::internal(format!("no permit: {error}")))
    }

    /// Waits until nothing is on its way.
    pub async fn settled(&self) {
        let all = u32::try_from(self.most()).unwrap_or(u32::MAX);
        drop(self.permits.acquire_many(all).await);
    }
}

/// Gives work to a cluster, again if it is the cluster that failed and the job that `signal` is of goes on.
///
/// # Errors
///
/// What the last attempt failed with.
pub async fn until_done<T, F>(signal: &Signaller, attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let retries = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_times(ATTEMPTS - 1);
    let may_help = |error: &Error| {
        error.kind() == ErrorKind::Cluster && !matches!(signal.now(), Signal::Stop(_))
    };
    attempt
        .retry(retries)
        .when(may_help)
        .notify(|error, _| log::warn!("work of a job is given out again: {error}"))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_slots_let_more_be_on_its_way() {
        let (free, bound) = (InFlight::new(None, 1), InFlight::new(Some(1), 4));
        for in_flight in [&free, &bound] {
            in_flight.grow(3);
            in_flight.grow(2);
        }
        let held = [free.permit().await.unwrap(), free.permit().await.unwrap()];
        assert_eq!(free.permits.available_permits(), 1);
        assert_eq!(bound.permits.available_permits(), 1);
        drop(held);
        free.settled().await;
        assert_eq!(free.permits.available_permits(), 3);
    }
}
