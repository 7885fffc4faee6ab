//! The scheduler of a cluster, as a part of the server.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use async_trait::async_trait;
use axum::extract::ConnectInfo;
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::serde::protobuf::AvailableTaskSlots;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer;
use ballista_core::serde::scheduler::PartitionId;
use ballista_core::{ConfigProducer, JobId};
use ballista_scheduler::cluster::{
    BallistaCluster, BoundTask, ClusterStateEvent, DistributionPolicy,
};
use ballista_scheduler::config::{SchedulerConfig, TaskDistributionPolicy};
use ballista_scheduler::scheduler_process::create_scheduler;
use ballista_scheduler::scheduler_server::SchedulerServer;
use ballista_scheduler::state::execution_graph::{TaskDescription, create_task_info};
use ballista_scheduler::state::task_manager::JobInfoCache;
use datafusion::arrow::datatypes::Schema;
use datafusion::common::Result as DataFusionResult;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use super::actions::Actions;
use super::board::Board;
use super::client::Purpose;
use super::codec::PhysicalCodec;
use super::place::configure;
use super::{MESSAGE_BYTES, Security};
use crate::engine::deferred::Codecs;
use crate::{Error, ErrorKind, Result};

/// How often it is looked for executors that are silent.
const LOOKS: Duration = Duration::from_secs(2);
/// How long it is remembered what became of a plan: whoever waits for it asks ten times a second.
const ENDED: Duration = Duration::from_secs(30);
/// What an executor that is lost is given until what it did is done elsewhere.
const SETTLE: Duration = Duration::from_secs(1);

type Ballista = SchedulerServer<LogicalPlanNode, PhysicalPlanNode>;

/// How a scheduler works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where executors and drivers reach it.
    pub bind: SocketAddr,
    /// The name that executors reach it by.
    pub external_host: String,
    /// After this silence an executor counts as lost.
    pub executor_timeout: Duration,
    /// TLS.
    pub security: Security,
}

/// A scheduler that runs. Dropping it ends it.
pub struct Scheduler {
    address: SocketAddr,
    external_host: String,
    security: Security,
    board: Board,
    tasks: JoinSet<()>,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Begins to take executors and work.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub async fn start(settings: Settings, codecs: Codecs) -> Result<Self> {
        let failed = |what: &dyn fmt::Display| {
            Error::new(
                ErrorKind::Cluster,
                format!("can't start the scheduler at {}: {what}", settings.bind),
            )
        };
        let listener = TcpListener::bind(settings.bind).await.map_err(|error| {
            failed(&error).with_hint("another address is chosen with --cluster-bind")
        })?;
        let address = listener.local_addr().map_err(|error| failed(&error))?;
        let config: ConfigProducer = Arc::new(|| configure(SessionConfig::new()));
        let mut scheduler = SchedulerConfig {
            external_host: settings.external_host.clone(),
            bind_host: address.ip().to_string(),
            bind_port: address.port(),
            scheduling_policy: TaskSchedulingPolicy::PushStaged,
            executor_timeout_seconds: settings.executor_timeout.as_secs().max(1),
            expire_dead_executor_interval_seconds: LOOKS.as_secs(),
            // Whoever gave a plan says when what it gave can go; this is for those that could not.
            finished_job_data_clean_up_interval_seconds: 24 * 3600,
            // With it goes the plan, and what it carries: rows in memory, arguments of calls.
            finished_job_state_clean_up_interval_seconds: ENDED.as_secs(),
            grpc_server_max_decoding_message_size: MESSAGE_BYTES as u32,
            grpc_server_max_encoding_message_size: MESSAGE_BYTES as u32,
            override_config_producer: Some(config),
            override_session_builder: Some(Arc::new(|config| {
                let state = SessionStateBuilder::new().with_default_features();
                Ok(state.with_config(config).build())
            })),
            override_physical_codec: Some(Arc::new(PhysicalCodec::new(codecs))),
            override_create_grpc_client_endpoint: settings.security.endpoints(),
            use_tls: settings.security.is_on(),
            ..Default::default()
        };
        let cluster = BallistaCluster::new_from_config(&scheduler)
            .await
            .map_err(|error| failed(&error))?;
        let board = Board::new(settings.executor_timeout);
        let policy = FairByLabel {
            board: board.clone(),
        };
        scheduler.task_distribution = TaskDistributionPolicy::Custom(Arc::new(policy));
        let state = cluster.cluster_state();
        let mut events = state
            .cluster_state_events()
            .await
            .map_err(|error| failed(&error))?;
        let scheduler: Ballista = create_scheduler(cluster, Arc::new(scheduler))
            .await
            .map_err(|error| failed(&error))?;
        let mut tasks = JoinSet::new();
        let (nudged, seen) = (scheduler.clone(), board.clone());
        tasks.spawn(async move {
            while let Some(event) = events.next().await {
                if let ClusterStateEvent::RemovedExecutor { executor_id } = event {
                    log::warn!("executor '{executor_id}' is lost");
                    // Where there was one without a label, work without a pool waits for it.
                    seen.goodbye(&executor_id);
                    tokio::time::sleep(SETTLE).await;
                    nudge(&nudged).await;
                }
            }
        });
        let ballista = SchedulerGrpcServer::new(scheduler)
            .max_encoding_message_size(MESSAGE_BYTES)
            .max_decoding_message_size(MESSAGE_BYTES);
        // Ballista expects what axum says of a connection.
        let ballista = InterceptedService::new(ballista, |mut request: Request<()>| {
            if let Some(address) = request.remote_addr() {
                request.extensions_mut().insert(ConnectInfo(address));
            }
            Ok(request)
        });
        let actions = FlightServiceServer::new(Actions(board.clone()))
            .max_encoding_message_size(MESSAGE_BYTES)
            .max_decoding_message_size(MESSAGE_BYTES);
        let mut server = Server::builder()
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)));
        if let Some(tls) = settings.security.server() {
            server = server
                .tls_config(tls)
                .map_err(|error| failed(&format!("TLS can't be set up: {error}")))?;
        }
        let serving = server
            .add_service(ballista)
            .add_service(actions)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                log::error!("the scheduler has ended: {error}");
            }
        });
        Ok(Self {
            address,
            external_host: settings.external_host,
            security: settings.security,
            board,
            tasks,
        })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL by which executors reach it.
    pub fn url(&self) -> String {
        let (host, port) = (&self.external_host, self.address.port());
        format!("{}://{host}:{port}", self.security.scheme())
    }

    /// What executors report.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Ends it.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Gives the scheduler something to do: it looks for work only when something happens, and the loss of an executor is
/// nothing to it where the others are idle.
async fn nudge(scheduler: &Ballista) {
    let context = SessionContext::new_with_config(configure(SessionConfig::new()));
    let nothing = EmptyExec::new(Arc::new(Schema::empty()));
    let nudged = scheduler.submit_physical_plan("", Arc::new(context), Arc::new(nothing), None);
    if let Err(error) = nudged.await {
        log::warn!("the scheduler can't be woken: {error}");
    }
}

/// The label in the name of an executor.
pub(super) fn label_of(executor: &str) -> Option<&str> {
    executor
        .split_once('~')
        .map(|(label, _)| label)
        .filter(|label| !label.is_empty())
}

/// Gives tasks to executors with the label that they ask for, to the one with the most free slots first; of the jobs that
/// have any to give, to the one that has the fewest running.
#[derive(Debug)]
struct FairByLabel {
    board: Board,
}

/// A task that could be given.
struct Waiting {
    job: JobId,
    /// Whose work it is.
    purpose: String,
    pool: Option<String>,
    stage: usize,
    partition: usize,
}

#[async_trait]
impl DistributionPolicy for FairByLabel {
    fn name(&self) -> &str {
        "fair by label"
    }

    async fn bind_tasks(
        &self,
        mut slots: Vec<&mut AvailableTaskSlots>,
        jobs: Arc<HashMap<JobId, JobInfoCache>>,
    ) -> DataFusionResult<Vec<BoundTask>> {
        // Of all executors: these are only those that have a slot free.
        let executors = self.board.executors();
        let any_plain = executors.iter().any(|seen| seen.executor.label.is_none());
        // What waits, by job; and how many tasks of each run.
        let mut waiting: HashMap<String, Vec<Waiting>> = HashMap::new();
        let mut running: HashMap<String, usize> = HashMap::new();
        let mut in_order: Vec<(&JobId, &JobInfoCache)> = jobs.iter().collect();
        in_order.sort_by_key(|(id, _)| id.to_string());
        for (id, info) in in_order {
            let mut graph = info.execution_graph.write().await;
            let name = graph.job_name().to_string();
            let (job, pool) = Purpose::parse(&name);
            // Queries are each for themselves.
            let purpose = match job.is_empty() {
                true => id.to_string(),
                false => job.to_string(),
            };
            *running.entry(purpose.clone()).or_default() += graph.running_tasks().len();
            let mut seen = Vec::new();
            while let Some((stage, _)) = graph.fetch_running_stage(&seen) {
                seen.push(stage.stage_id);
                let partitions = stage.task_infos.iter().enumerate();
                let free = partitions.filter(|(_, info)| info.is_none());
                let tasks = free.map(|(partition, _)| Waiting {
                    job: id.clone(),
                    purpose: purpose.clone(),
                    pool: pool.map(str::to_string),
                    stage: stage.stage_id,
                    partition,
                });
                waiting.entry(purpose.clone()).or_default().extend(tasks);
            }
        }
        for tasks in waiting.values_mut() {
            tasks.reverse();
        }
        let mut bound = Vec::new();
        loop {
            let least = waiting
                .iter()
                .filter(|(_, tasks)| !tasks.is_empty())
                .map(|(purpose, _)| purpose)
                .min_by_key(|purpose| (running.get(*purpose).copied().unwrap_or(0), *purpose))
                .cloned();
            let Some(task) = least.and_then(|least| waiting.get_mut(&least)?.pop()) else {
                break;
            };
            let fits = |slots: &&mut &mut AvailableTaskSlots| {
                let label = label_of(&slots.executor_id);
                slots.slots > 0
                    && match &task.pool {
                        Some(pool) => label == Some(pool.as_str()),
                        None => !any_plain || label.is_none(),
                    }
            };
            let best = slots
                .iter_mut()
                .filter(fits)
                .max_by_key(|slots| slots.slots);
            let Some(best) = best else { continue };
            let Some(given) = give(&jobs, &task, &best.executor_id).await else {
                continue;
            };
            best.slots -= 1;
            *running.entry(task.purpose).or_default() += 1;
            bound.push((best.executor_id.clone(), given));
        }
        Ok(bound)
    }
}

/// Notes that an executor has a task.
async fn give(
    jobs: &HashMap<JobId, JobInfoCache>,
    task: &Waiting,
    executor: &str,
) -> Option<TaskDescription> {
    let mut graph = jobs.get(&task.job)?.execution_graph.write().await;
    let session_id = graph.session_id().to_string();
    let mut seen = Vec::new();
    while let Some((stage, next_id)) = graph.fetch_running_stage(&seen) {
        seen.push(stage.stage_id);
        if stage.stage_id != task.stage {
            continue;
        }
        let info = stage.task_infos.get_mut(task.partition)?;
        if info.is_some() {
            return None;
        }
        let task_id = *next_id;
        *next_id += 1;
        *info = Some(create_task_info(executor.to_string(), task_id));
        return Some(TaskDescription {
            session_id,
            partition: PartitionId {
                job_id: task.job.clone(),
                stage_id: task.stage,
                partition_id: task.partition,
            },
            stage_attempt_num: stage.stage_attempt_num,
            task_id,
            task_attempt: stage.task_failure_numbers[task.partition],
            plan: Arc::clone(&stage.plan),
            session_config: Arc::clone(&stage.session_config),
        });
    }
    None
}
