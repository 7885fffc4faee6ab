//! Gives plans to a cluster, waits for them, and fetches what they give.
//!
//! A plan is planned here, written by the [codec](super::codec), and run by the scheduler of the server, which this
//! process may be, too. Ballista waits for ever where no executor is left, so whoever waits here looks at the
//! executors meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ballista_core::client::BallistaClient;
use ballista_core::config::BALLISTA_JOB_NAME;
use ballista_core::extension::{BallistaConfigGrpcEndpoint, SessionConfigHelperExt};
use ballista_core::serde::protobuf::execute_query_params::Query;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    CancelJobParams, CleanJobDataParams, ExecuteQueryParams, GetJobStatusParams, KeyValuePair,
    PartitionLocation, execute_query_result, job_status::Status,
};
use datafusion::arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionConfig;
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use futures::TryStreamExt;
use tonic::transport::Channel;
use url::Url;
use uuid::Uuid;

use super::actions::BoardClient;
use super::board::{Answer, Inquiry, Seen};
use super::codec::PhysicalCodec;
use super::{MESSAGE_BYTES, Security};
use crate::engine::deferred::Codecs;
use crate::engine::wire::find_error;
use crate::{Error, ErrorKind, Result};

/// How long it is from one question for the end of a plan to the next: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long the scheduler may not answer, or not know a plan that it was given.
const UNKNOWN: Duration = Duration::from_secs(20);
/// How often it is looked whether executors live while something is waited for.
const LOOKS: Duration = Duration::from_secs(1);
/// How long there may be no executor before what waits for one fails.
const NOBODY: Duration = Duration::from_secs(10);
/// How old what is known of executors may be when something is begun.
const FRESH: Duration = Duration::from_millis(500);

/// A cluster, as those see it that give it work. Clones are the same one.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    /// `http://host:port` of the scheduler, or `https`.
    address: String,
    codec: PhysicalCodec,
    codecs: Codecs,
    security: Security,
    channel: Channel,
    session: String,
    /// What was last heard of executors.
    seen: Mutex<Option<(Instant, Vec<Seen>)>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("address", &self.0.address)
            .finish_non_exhaustive()
    }
}

/// Whose work a plan is.
#[derive(Debug, Clone, Default)]
pub struct Purpose {
    /// The job; executors are shared equally among jobs. `None` for a query.
    pub job: Option<String>,
    /// Executors that may run it: those with this label; `None`: those without.
    pub pool: Option<String>,
    /// Whether it may wait in the scheduler for an executor, however long; otherwise it fails where there is none.
    pub waits: bool,
}

impl Purpose {
    /// As the name of a job of Ballista, where the scheduler finds it.
    pub(super) fn name(&self) -> String {
        let job = self.job.as_deref().unwrap_or_default();
        match &self.pool {
            Some(pool) => format!("{job}@{pool}"),
            None => job.to_string(),
        }
    }

    /// What a name says: the job, and the pool.
    pub(super) fn parse(name: &str) -> (&str, Option<&str>) {
        match name.split_once('@') {
            Some((job, pool)) => (job, Some(pool)),
            None => (name, None),
        }
    }
}

impl Cluster {
    /// The cluster whose scheduler is at `url`: `df://host:port`, or `df+tls://host:port`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// If the URL can't be understood.
    pub fn new(url: &str, security: Security, codecs: Codecs) -> Result<Self> {
        let address = address(url, &security)?;
        let endpoint = security.endpoint(&address)?;
        Ok(Self(Arc::new(Inner {
            codec: PhysicalCodec::new(codecs.clone()),
            codecs,
            channel: endpoint.connect_lazy(),
            security,
            address,
            session: Uuid::new_v4().to_string(),
            seen: Mutex::default(),
        })))
    }

    /// What can be sent to it.
    pub fn codecs(&self) -> &Codecs {
        &self.0.codecs
    }

    /// The executors that live.
    pub async fn executors(&self) -> Result<Vec<Seen>> {
        {
            let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((when, seen)) = seen.as_ref()
                && when.elapsed() < FRESH
            {
                return Ok(seen.clone());
            }
        }
        Ok(self.inquire(&Inquiry::default()).await?.executors)
    }

    /// Says what jobs are told, and hears how far their units are.
    pub async fn inquire(&self, inquiry: &Inquiry) -> Result<Answer> {
        let board = BoardClient::new(self.0.channel.clone());
        let answer = board.inquire(inquiry).await?;
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Some((Instant::now(), answer.executors.clone()));
        Ok(answer)
    }

    /// Tasks that it runs at once for `pool`.
    pub async fn slots(&self, pool: Option<&str>) -> Result<usize> {
        Ok(slots_for(&self.executors().await?, pool))
    }

    /// Tasks that it runs at once for work without a pool, as far as that is known.
    pub fn known_slots(&self) -> Option<usize> {
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, executors) = seen.as_ref()?;
        Some(slots_for(executors, None)).filter(|slots| *slots > 0)
    }

    /// Fails if no executor can run work for `pool`.
    ///
    /// # Errors
    ///
    /// What is missing, and what there is.
    pub async fn admit(&self, pool: Option<&str>) -> Result<()> {
        if eligible(&self.executors().await?, pool).next().is_some() {
            return Ok(());
        }
        // One may just have come.
        let executors = self.inquire(&Inquiry::default()).await?.executors;
        match eligible(&executors, pool).next() {
            Some(_) => Ok(()),
            None => Err(nobody(&executors, pool)),
        }
    }

    /// `plan` as it is sent.
    ///
    /// # Errors
    ///
    /// If a node or an expression of it can't be written.
    pub(super) fn write(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<u8>> {
        let node = PhysicalPlanNode::try_from_physical_plan(Arc::clone(plan), &self.0.codec)?;
        let mut bytes = Vec::new();
        node.try_encode(&mut bytes)?;
        Ok(bytes)
    }

    /// Gives a plan to the cluster.
    ///
    /// # Errors
    ///
    /// If it can't be sent, or there is nobody to run it.
    pub async fn submit(
        &self,
        plan: Vec<u8>,
        config: &SessionConfig,
        purpose: &Purpose,
    ) -> Result<Submitted> {
        if plan.len() > MESSAGE_BYTES - (1 << 20) {
            return Err(Error::internal(
                "a plan is too large to be sent to a cluster",
            ));
        }
        if !purpose.waits {
            self.admit(purpose.pool.as_deref()).await?;
        }
        let mut settings: Vec<KeyValuePair> = config.to_key_value_pairs();
        settings.retain(|pair| pair.key != BALLISTA_JOB_NAME);
        settings.push(KeyValuePair {
            key: BALLISTA_JOB_NAME.to_string(),
            value: Some(purpose.name()),
        });
        let query = ExecuteQueryParams {
            query: Some(Query::PhysicalPlan(plan)),
            settings,
            session_id: self.0.session.clone(),
            operation_id: Uuid::new_v4().to_string(),
        };
        let mut scheduler = self.scheduler();
        let given = scheduler.execute_query(query).await;
        let given = given.map_err(|status| self.away(&status))?.into_inner();
        let id = match given.result {
            Some(execute_query_result::Result::Success(success)) => success.job_id,
            Some(execute_query_result::Result::Failure(failure)) => {
                return Err(Error::internal(format!(
                    "the scheduler does not understand a plan: {failure:?}"
                )));
            }
            None => return Err(Error::internal("the scheduler gives no answer to a plan")),
        };
        Ok(Submitted {
            cluster: self.clone(),
            id,
            is_over: false,
            pool: purpose.pool.clone(),
            waits: purpose.waits,
        })
    }

    /// Runs a plan to its end, and gives all its rows.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit) and [`Submitted::wait`].
    pub async fn run(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &SessionConfig,
        purpose: &Purpose,
    ) -> Result<Vec<RecordBatch>> {
        let mut submitted = self.submit(self.write(&plan)?, config, purpose).await?;
        let mut rows = Vec::new();
        for location in submitted.wait().await? {
            let fetched = submitted.fetch(location).await?;
            rows.extend(fetched.try_collect::<Vec<_>>().await?);
        }
        Ok(rows)
    }

    fn scheduler(&self) -> SchedulerGrpcClient<Channel> {
        SchedulerGrpcClient::new(self.0.channel.clone())
            .max_encoding_message_size(MESSAGE_BYTES)
            .max_decoding_message_size(MESSAGE_BYTES)
    }

    fn away(&self, status: &tonic::Status) -> Error {
        if let Some(error) = find_error(status.message()) {
            return error;
        }
        Error::new(
            ErrorKind::Cluster,
            format!(
                "the scheduler at {} does not answer: {}",
                self.0.address,
                status.message()
            ),
        )
        .with_hint("is 'headwater server' running there?")
    }
}

/// Executors that may run work for a pool: those with its label. Work for none runs where there is no label, and
/// anywhere if there is no such executor.
pub(super) fn eligible<'a>(
    executors: &'a [Seen],
    pool: Option<&'a str>,
) -> impl Iterator<Item = &'a Seen> {
    let is_plain = |seen: &Seen| seen.executor.label.is_none();
    let any_plain = executors.iter().any(is_plain);
    executors.iter().filter(move |seen| match pool {
        Some(pool) => seen.executor.label.as_deref() == Some(pool),
        None => !any_plain || is_plain(seen),
    })
}

/// Tasks that `executors` run at once for a pool.
pub fn slots_for(executors: &[Seen], pool: Option<&str>) -> usize {
    let slots = eligible(executors, pool).map(|seen| seen.executor.slots as usize);
    slots.sum()
}

fn nobody(executors: &[Seen], pool: Option<&str>) -> Error {
    let (missing, start) = match pool {
        None => (
            "there is no executor".to_string(),
            "start one with 'headwater executor'".to_string(),
        ),
        Some(pool) => {
            let mut there: BTreeMap<&str, usize> = BTreeMap::new();
            for seen in executors {
                let label = seen.executor.label.as_deref().unwrap_or("no label");
                *there.entry(label).or_default() += 1;
            }
            let there: Vec<String> = there
                .into_iter()
                .map(|(label, count)| format!("{count} with {label}"))
                .collect();
            let there = match there.is_empty() {
                true => "there is none at all".to_string(),
                false => format!("there are {}", there.join(", ")),
            };
            (
                format!("there is no executor with label '{pool}'; {there}"),
                format!(
                    "start one with 'headwater executor --label {pool}', or wait for one with admission = 'wait'"
                ),
            )
        }
    };
    Error::new(ErrorKind::Cluster, missing).with_hint(start)
}

/// A plan that the cluster runs. Dropping it cancels it, or lets go of what it has given.
pub struct Submitted {
    cluster: Cluster,
    /// The name of the plan in the scheduler.
    id: String,
    is_over: bool,
    pool: Option<String>,
    waits: bool,
}

impl fmt::Debug for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Submitted {
    /// Waits for its end, and says where its rows are.
    ///
    /// # Errors
    ///
    /// What a task failed with; [`ErrorKind::Cluster`] if the cluster is to blame.
    pub async fn wait(&mut self) -> Result<Vec<PartitionLocation>> {
        let mut pause = PAUSES.0;
        let mut looked = Instant::now();
        let (mut lonely_since, mut silent_since) = (None, None);
        loop {
            let asked = GetJobStatusParams {
                job_id: self.id.clone(),
            };
            let answer = self.cluster.scheduler().get_job_status(asked).await;
            let known = answer.and_then(|answer| {
                let status = answer.into_inner().status.and_then(|status| status.status);
                status.ok_or_else(|| {
                    tonic::Status::not_found(
                        "it was restarted, and does not know the plan any more",
                    )
                })
            });
            match known {
                Ok(Status::Failed(failed)) => {
                    self.is_over = true;
                    return Err(task_error(&failed.error));
                }
                Ok(Status::Successful(successful)) => {
                    self.is_over = true;
                    return Ok(successful.partition_location);
                }
                Ok(_) => silent_since = None,
                Err(status) => {
                    let since: Instant = *silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > UNKNOWN {
                        return Err(self.cluster.away(&status));
                    }
                }
            }
            if !self.waits && looked.elapsed() > LOOKS {
                looked = Instant::now();
                self.look_for_executors(&mut lonely_since).await?;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    /// Fails if there has been nobody for a while who could do the work.
    async fn look_for_executors(&self, lonely_since: &mut Option<Instant>) -> Result<()> {
        // Whether the server answers is looked after where the status is asked for.
        let Ok(executors) = self.cluster.executors().await else {
            return Ok(());
        };
        let pool = self.pool.as_deref();
        if eligible(&executors, pool).next().is_some() {
            *lonely_since = None;
            return Ok(());
        }
        match lonely_since {
            Some(since) if since.elapsed() > NOBODY => {
                Err(nobody(&executors, pool).context("all executors were lost"))
            }
            Some(_) => Ok(()),
            None => {
                *lonely_since = Some(Instant::now());
                Ok(())
            }
        }
    }

    /// The rows of one of the places that [`wait`](Self::wait) has given.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cluster`] if the executor that has them is gone.
    pub async fn fetch(&self, location: PartitionLocation) -> Result<SendableRecordBatchStream> {
        let lost = |what: &dyn fmt::Display| {
            Error::new(
                ErrorKind::Cluster,
                format!("an executor that has results was lost: {what}"),
            )
            .with_hint("run the statement again")
        };
        let executor = location
            .executor_meta
            .ok_or_else(|| lost(&"it is not named"))?;
        let partition = location
            .partition_id
            .ok_or_else(|| lost(&"a part is not named"))?;
        let security = &self.cluster.0.security;
        let port = u16::try_from(executor.port).map_err(|error| lost(&error))?;
        let client = BallistaClient::try_new(
            &executor.host,
            port,
            MESSAGE_BYTES,
            security.is_on(),
            security
                .endpoints()
                .map(|f| Arc::new(BallistaConfigGrpcEndpoint::new(f))),
            3,
            250,
            0,
            0,
        );
        let mut client = client.await.map_err(|error| lost(&error))?;
        let partition = partition.into();
        let fetched = client.fetch_partition(
            &executor.id,
            &partition,
            location.file_id,
            location.is_sort_shuffle,
            true,
        );
        let rows = fetched.await.map_err(|error| lost(&error))?;
        let schema = rows.schema();
        // It may also be lost in between.
        let rows = rows.map_err(move |error| lost(&error).into());
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        let job_id = std::mem::take(&mut self.id);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (mut scheduler, is_over) = (self.cluster.scheduler(), self.is_over);
        runtime.spawn(async move {
            let done = match is_over {
                false => {
                    let cancel = CancelJobParams { job_id };
                    scheduler.cancel_job(cancel).await.map(|_| ())
                }
                true => {
                    let clean = CleanJobDataParams {
                        job_id,
                        remove_stage_ids: Vec::new(),
                    };
                    scheduler.clean_job_data(clean).await.map(|_| ())
                }
            };
            if let Err(status) = done {
                log::debug!("a plan of the cluster can't be ended: {status}");
            }
        });
    }
}

/// What a task failed with, without what Ballista says around it.
fn task_error(text: &str) -> Error {
    if let Some(error) = find_error(text) {
        return error;
    }
    Error::new(ErrorKind::Cluster, format!("the cluster failed: {text}"))
}

/// The address of a scheduler as gRPC writes it.
pub(super) fn address(url: &str, security: &Security) -> Result<String> {
    let wrong = || {
        Error::invalid(format!("'{url}' is not the URL of a cluster")).with_hint(
            "write df://host:port, or df+tls://host:port; the port is that of --cluster-bind",
        )
    };
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let scheme = match (parsed.scheme(), security.is_on()) {
        ("df", false) => "http",
        ("df" | "df+tls", true) => "https",
        ("df+tls", false) => {
            return Err(Error::invalid(format!("'{url}' asks for certificates")).with_hint(
                "name them with --cluster-ca, --cluster-certificate and --cluster-key, in a program with Engine::ballista_with_tls",
            ));
        }
        _ => return Err(wrong()),
    };
    match (parsed.host_str(), parsed.port()) {
        (Some(host), Some(port)) => Ok(format!("{scheme}://{host}:{port}")),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_clusters() {
        let open = Security::default();
        assert_eq!(address("df://h:1", &open).unwrap(), "http://h:1");
        for wrong in ["h:1", "df://h", "http://h:1", "df:1", "df+tls://h:1"] {
            assert!(address(wrong, &open).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_purpose_travels_as_a_name() {
        let purpose = Purpose {
            job: Some("j".to_string()),
            pool: Some("gpu".to_string()),
            waits: false,
        };
        assert_eq!(Purpose::parse(&purpose.name()), ("j", Some("gpu")));
        assert_eq!(Purpose::parse(&Purpose::default().name()), ("", None));
    }
}
