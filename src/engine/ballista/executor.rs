//! An executor of a cluster: the process that runs tasks.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use ballista_core::extension::SessionConfigExt as _;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{ExecutorStoppedParams, ShuffleWritePartition};
use ballista_core::serde::{BallistaCodec, BallistaLogicalExtensionCodec};
use ballista_core::{ConfigProducer, JobId, RuntimeProducer};
use ballista_executor::execution_engine::{
    DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor,
};
use ballista_executor::executor::Executor;
use ballista_executor::executor_process::{ExecutorProcessConfig, structure_executor_metadata};
use ballista_executor::executor_server::{self, TERMINATING};
use ballista_executor::flight_service::BallistaFlightService;
use ballista_executor::metrics::LoggingMetricsCollector;
use ballista_executor::shutdown::ShutdownNotifier;
use datafusion::common::Result as DataFusionResult;
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryPool, TrackConsumersPool, UnboundedMemoryPool,
};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use futures::TryStreamExt;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Server;
use url::Url;
use uuid::Uuid;

use super::actions::BoardClient;
use super::board::{self, Report};
use super::codec::PhysicalCodec;
use super::gate::{self, behind};
use super::place::configure;
use super::work_dir::WorkDir;
use super::{MESSAGE_BYTES, Security};
use crate::engine::deferred::{Codecs, RELEASE};
use crate::engine::units::Units;
use crate::engine::wire::carried;
use crate::{Error, ErrorKind, Result};

/// How often an executor says to the scheduler that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Users of memory that are named when there is none left.
const NAMED_CONSUMERS: usize = 5;
/// Stack of a thread that computes, in bytes. Planning recurses with the depth of a query.
const STACK: usize = 16 << 20;
/// Ports that are taken where none is wanted, and how many are tried.
const PORTS: (u16, u16) = (20_000, 32_000);
const TRIED_PORTS: usize = 50;
/// How long tasks may go on when an executor is told to end.
const GRACE: Duration = Duration::from_secs(10);

/// How an executor works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The scheduler: `df://host:port`, or `df+tls://host:port`.
    pub scheduler: String,
    /// Where it listens.
    pub bind: IpAddr,
    /// The port for results; 0 for any.
    pub port: u16,
    /// The port for tasks; 0 for any.
    pub task_port: u16,
    /// The name that others reach it by; `None` for the address that the scheduler sees.
    pub external_host: Option<String>,
    /// Tasks at once.
    pub slots: usize,
    /// Bytes that queries may use together; `None` for no limit.
    pub memory: Option<u64>,
    /// What it is made for.
    pub label: Option<String>,
    /// A folder for what tasks give to one another; `None` for one of its own that goes with it.
    pub work_dir: Option<PathBuf>,
    /// How long it waits for the scheduler when it begins.
    pub patience: Duration,
    /// TLS.
    pub security: Security,
}

/// What an executor reports, whenever it is asked for.
pub type Figures = Box<dyn Fn() -> Report + Send + Sync>;

/// Runs tasks until `stop` says true. `ready` hears when it is registered, and how to ask for its figures.
///
/// # Errors
///
/// If the scheduler can't be reached, or a port is taken.
pub async fn run(
    settings: Settings,
    codecs: Codecs,
    mut stop: watch::Receiver<bool>,
    ready: impl FnOnce(&board::Executor, Figures),
) -> Result<()> {
    let acceptor = settings.security.acceptor();
    if acceptor.is_some() && settings.bind.is_unspecified() {
        return Err(Error::invalid(format!(
            "with certificates an executor listens at one address, not at {}",
            settings.bind
        ))
        .with_hint("name that of this machine which others reach with --bind"));
    }
    let inner = match acceptor {
        Some(_) => behind(settings.bind),
        None => settings.bind,
    };
    let port = free_port(&[settings.bind], settings.port)?;
    let task_port = free_port(&[settings.bind, inner], settings.task_port)?;
    let id = format!(
        "{}~{}",
        settings.label.as_deref().unwrap_or_default(),
        Uuid::new_v4()
    );
    let work_dir = WorkDir::make(settings.work_dir.as_deref(), &id)?;
    let (scheduler_host, scheduler_port, address) =
        scheduler(&settings.scheduler, &settings.security)?;
    let process = ExecutorProcessConfig {
        bind_host: match inner {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        },
        external_host: settings.external_host.clone(),
        port,
        grpc_port: task_port,
        scheduler_host,
        scheduler_port,
        concurrent_tasks: settings.slots,
        work_dir: Some(work_dir.path().display().to_string()),
        // All tasks that an executor is given at once come in one message, each with its plan.
        grpc_max_decoding_message_size: u32::MAX,
        grpc_max_encoding_message_size: MESSAGE_BYTES as u32,
        executor_heartbeat_interval_seconds: HEARTBEAT.as_secs(),
        override_create_grpc_client_endpoint: settings.security.endpoints(),
        ..Default::default()
    };
    let process = Arc::new(process);
    let metadata = structure_executor_metadata(&id, &process, settings.slots as u32);
    let pool = memory_pool(settings.memory);
    let runtime = RuntimeEnvBuilder::new()
        .with_temp_file_path(work_dir.path())
        .with_memory_pool(Arc::clone(&pool))
        .build_arc()?;
    let runtime: RuntimeProducer = Arc::new(move |_| Ok(Arc::clone(&runtime)));
    let units = Arc::new(Units::default());
    let config: ConfigProducer = {
        let (codecs, units) = (Arc::new(codecs.clone()), Arc::clone(&units));
        let endpoints = settings.security.endpoints();
        Arc::new(move || {
            let mut config = configure(SessionConfig::new())
                .with_extension(Arc::clone(&codecs))
                .with_extension(Arc::clone(&units));
            if let Some(endpoints) = &endpoints {
                let endpoints = Arc::clone(endpoints);
                config = config.with_ballista_override_create_grpc_client_endpoint(endpoints);
            }
            config
        })
    };
    let computing = Builder::new_multi_thread()
        .worker_threads(settings.slots)
        .thread_name("tasks")
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .map_err(|error| Error::internal(format!("no threads for tasks: {error}")))?;
    let computing = Computing(Some(computing));
    let engine = Arc::new(Engine {
        ballista: DefaultExecutionEngine::new(),
        computing: computing.handle(),
    });
    let executor = Arc::new(Executor::new(
        metadata,
        &work_dir.path().display().to_string(),
        runtime,
        config,
        Arc::new(functions()),
        Arc::new(LoggingMetricsCollector::default()),
        settings.slots,
        engine,
    ));
    let channel = settings.security.endpoint(&address)?;
    let connect = || async { channel.connect().await };
    let retries = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_total_delay(Some(settings.patience))
        .without_max_times();
    let channel = connect.retry(retries).await.map_err(|error| {
        Error::new(
            ErrorKind::Cluster,
            format!(
                "can't reach the scheduler at {}: {error}",
                settings.scheduler
            ),
        )
        .with_hint("is 'headwater server' running there? the port is that of --cluster-bind")
        .with_source(error)
    })?;
    let scheduler = SchedulerGrpcClient::new(channel.clone())
        .max_encoding_message_size(MESSAGE_BYTES)
        .max_decoding_message_size(MESSAGE_BYTES);
    let shutdown = ShutdownNotifier::new();
    let (stop_tasks, mut told_to_stop) = mpsc::channel(1);
    let codec: BallistaCodec<LogicalPlanNode, PhysicalPlanNode> = BallistaCodec::new(
        Arc::new(BallistaLogicalExtensionCodec::default()),
        Arc::new(PhysicalCodec::new(codecs)),
    );
    let results = serve_results(&settings, port, work_dir.path())?;
    let mut gate = JoinSet::new();
    if let Some(acceptor) = acceptor {
        let outer = SocketAddr::new(settings.bind, task_port);
        let listener = tokio::net::TcpListener::bind(outer).await;
        let listener = listener.map_err(|error| taken(outer, error))?;
        let inner = SocketAddr::new(inner, task_port);
        gate.spawn(gate::pass(listener, acceptor, inner));
    }
    let tasks = executor_server::startup(
        scheduler.clone(),
        process,
        Arc::clone(&executor),
        codec,
        stop_tasks,
        &shutdown,
    );
    let tasks = tasks.await.map_err(|error| {
        Error::new(
            ErrorKind::Cluster,
            format!(
                "the scheduler at {} refuses this executor: {error}",
                settings.scheduler
            ),
        )
        .with_hint("if it asks for certificates, write df+tls:// and name them with --cluster-ca, --cluster-certificate and --cluster-key")
    })?;
    let described = board::Executor {
        id: id.clone(),
        host: settings.external_host.clone().unwrap_or_default(),
        port,
        label: settings.label.clone(),
        slots: settings.slots as u32,
        memory: settings.memory,
        release: RELEASE.to_string(),
    };
    let client = BoardClient::new(channel);
    let first = report(&described, &executor, pool.as_ref(), &units);
    client.report(&first).await?;
    let figures = {
        let (described, executor) = (described.clone(), Arc::clone(&executor));
        let (pool, units) = (Arc::clone(&pool), Arc::clone(&units));
        move || report(&described, &executor, pool.as_ref(), &units)
    };
    ready(&described, Box::new(figures));
    let reporting = async {
        let mut ticks = tokio::time::interval(board::REPORTS);
        let mut is_heard = true;
        loop {
            ticks.tick().await;
            let now = report(&described, &executor, pool.as_ref(), &units);
            match client.report(&now).await {
                Ok(orders) => {
                    units.tell(&orders.signals);
                    is_heard = true;
                }
                Err(error) if is_heard => {
                    log::warn!("{error}; going on with what there is to do");
                    is_heard = false;
                }
                Err(_) => {}
            }
        }
    };
    let why: Result<()> = tokio::select! {
        () = reporting => Ok(()),
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        _ = told_to_stop.recv() => Err(Error::new(
            ErrorKind::Cluster,
            "the scheduler has told this executor to end: it counted as lost",
        )
        .with_hint("start it again; --executor-timeout of the server says after which silence")),
        ended = tasks => Err(Error::new(
            ErrorKind::Cluster,
            format!("the port for tasks is closed: {ended:?}"),
        )),
        ended = results => Err(Error::new(
            ErrorKind::Cluster,
            format!("the port for results is closed: {ended:?}"),
        )),
    };
    // Nothing new, and an end to what runs.
    TERMINATING.store(true, std::sync::atomic::Ordering::Release);
    let _ = client.goodbye(&id).await;
    let stopped = ExecutorStoppedParams {
        executor_id: id,
        reason: "it was told to end".to_string(),
    };
    let _ = scheduler.clone().executor_stopped(stopped).await;
    let drained = async {
        while executor.active_task_count() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let _ = tokio::time::timeout(GRACE, drained).await;
    let _ = shutdown.notify_shutdown.send(());
    why
}

/// DataFusion's functions, by all of their names: the same as sessions have.
fn functions() -> BallistaFunctionRegistry {
    let state = SessionStateBuilder::new().with_default_features().build();
    BallistaFunctionRegistry {
        scalar_functions: state.scalar_functions().clone(),
        aggregate_functions: state.aggregate_functions().clone(),
        window_functions: state.window_functions().clone(),
        ..Default::default()
    }
}

fn report(
    described: &board::Executor,
    executor: &Executor,
    pool: &dyn MemoryPool,
    units: &Units,
) -> Report {
    Report {
        executor: described.clone(),
        memory_used: pool.reserved() as u64,
        tasks: executor.active_task_count() as u32,
        units: units.progress(),
    }
}

fn memory_pool(memory: Option<u64>) -> Arc<dyn MemoryPool> {
    let Some(memory) = memory else {
        return Arc::new(UnboundedMemoryPool::default());
    };
    let named = std::num::NonZeroUsize::MIN.saturating_add(NAMED_CONSUMERS - 1);
    let pool = FairSpillPool::new(usize::try_from(memory).unwrap_or(usize::MAX));
    Arc::new(TrackConsumersPool::new(pool, named))
}

/// Serves what tasks have written to those that read it.
fn serve_results(
    settings: &Settings,
    port: u16,
    work_dir: &Path,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>> {
    let service = BallistaFlightService::new(work_dir.display().to_string());
    let service = FlightServiceServer::new(service)
        .max_encoding_message_size(MESSAGE_BYTES)
        .max_decoding_message_size(MESSAGE_BYTES);
    let mut server = Server::builder().tcp_nodelay(true);
    if let Some(tls) = settings.security.server() {
        server = server.tls_config(tls).map_err(|error| {
            Error::invalid(format!("TLS can't be set up: {error}")).with_source(error)
        })?;
    }
    let address = SocketAddr::new(settings.bind, port);
    Ok(server.add_service(service).serve(address))
}

/// A port that is free at all of these addresses; `wanted` if it is not 0.
///
/// Ballista binds it later. So it is none of those that systems give to connections by themselves.
fn free_port(addresses: &[IpAddr], wanted: u16) -> Result<u16> {
    let free = |port: u16| {
        for address in addresses {
            let at = SocketAddr::new(*address, port);
            TcpListener::bind(at).map_err(|error| taken(at, error))?;
        }
        Ok(port)
    };
    if wanted != 0 {
        return free(wanted);
    }
    let mut found = free(any_port());
    for _ in 0..TRIED_PORTS {
        if found.is_err() {
            found = free(any_port());
        }
    }
    found
}

fn taken(at: SocketAddr, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Cluster, format!("can't listen at {at}: {error}")).with_source(error)
}

fn any_port() -> u16 {
    let (low, high) = PORTS;
    let random = Uuid::new_v4().as_u128() % u128::from(high - low);
    low + u16::try_from(random).unwrap_or(0)
}

/// Host, port and address of a scheduler.
fn scheduler(url: &str, security: &Security) -> Result<(String, u16, String)> {
    let address = super::client::address(url, security)?;
    let parsed = Url::parse(&address)
        .map_err(|error| Error::invalid(format!("'{url}' can't be read: {error}")))?;
    let host = parsed.host_str().unwrap_or_default().to_string();
    Ok((host, parsed.port_or_known_default().unwrap_or(0), address))
}

/// The threads that compute. They may be busy for long, and stay so when the executor ends.
struct Computing(Option<Runtime>);

impl Computing {
    fn handle(&self) -> Handle {
        // There until it is dropped.
        self.0
            .as_ref()
            .map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs stages as Ballista does, but on threads with the stack that planning needs, and so that errors keep what they
/// say.
struct Engine {
    ballista: DefaultExecutionEngine,
    computing: Handle,
}

impl ExecutionEngine for Engine {
    fn create_query_stage_exec(
        &self,
        job_id: JobId,
        stage_id: usize,
        partition_id: usize,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> DataFusionResult<Arc<dyn QueryStageExecutor>> {
        // Ballista makes text of the errors below its root.
        let below = plan.children().into_iter();
        let below = below
            .map(|plan| Arc::new(CarriedExec(Arc::clone(plan))) as _)
            .collect();
        let plan = plan.with_new_children(below).map_err(carried)?;
        let stage = self.ballista.create_query_stage_exec(
            job_id,
            stage_id,
            partition_id,
            plan,
            work_dir,
            config,
        );
        Ok(Arc::new(Stage {
            stage: stage.map_err(carried)?,
            computing: self.computing.clone(),
        }))
    }
}

/// A stage whose errors reach who waits for it.
#[derive(Debug)]
struct Stage {
    stage: Arc<dyn QueryStageExecutor>,
    computing: Handle,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stage.fmt(f)
    }
}

#[async_trait]
impl QueryStageExecutor for Stage {
    async fn execute_query_stage(
        &self,
        input_partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<Vec<ShuffleWritePartition>> {
        let stage = Arc::clone(&self.stage);
        // A set of one task: unlike a bare handle, it stops the task when dropped.
        let mut task = JoinSet::new();
        let run = async move { stage.execute_query_stage(input_partition, context).await };
        task.spawn_on(run, &self.computing);
        match task.join_next().await {
            Some(Ok(written)) => written.map_err(carried),
            Some(Err(error)) => Err(carried(
                Error::internal(format!("a task failed: {error}")).into(),
            )),
            None => Err(carried(Error::internal("a task gave nothing").into())),
        }
    }

    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        self.stage.collect_plan_metrics()
    }
}

/// Gives what its input gives, with errors that keep what they say.
#[derive(Debug)]
struct CarriedExec(Arc<dyn ExecutionPlan>);

impl DisplayAs for CarriedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CarriedExec")
    }
}

impl ExecutionPlan for CarriedExec {
    fn name(&self) -> &str {
        "CarriedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.0.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.0]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let child = children.pop();
        let child = child.ok_or_else(|| Error::internal("CarriedExec has one child"))?;
        Ok(Arc::new(Self(child)))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        let rows = self.0.execute(partition, context).map_err(carried)?;
        let schema = rows.schema();
        let rows = rows.map_err(carried);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}
