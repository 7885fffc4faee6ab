//! `headwater server`: one process that opens a database and takes statements by Arrow Flight SQL.
//!
//! - [`settings`] is what it is told when it starts,
//! - `access` looks at the token of each request, whatever service it is for,
//! - `sessions` are those of clients, `statements` what they run,
//! - `flight` is the protocol,
//! - `http` says whether a process lives, and gives its figures,
//! - `resume` goes on with jobs that an earlier process of it left.
//!
//! Statements run on workers of their own, so that the network is heard while all of them compute.
//!
//! ```no_run
//! # use headwater::server::{Server, Settings};
//! # use headwater::session::Headwater;
//! # async fn start() -> headwater::Result<()> {
//! let builder = Headwater::builder().database("./shop");
//! let workers = tokio::runtime::Handle::current();
//! let server = Server::bind(builder, &Settings::default(), workers).await?;
//! println!("{}", server.url());
//! // More gRPC services of the same port come here: server.add_service(…).
//! server.serve(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await
//! # }
//! ```

mod access;
mod flight;
pub(crate) mod http;
mod resume;
mod sessions;
pub mod settings;
mod statements;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_server::FlightServiceServer;
use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::Request as HttpRequest;
use tonic::server::NamedService;
use tonic::service::{InterceptorLayer, Routes, RoutesBuilder};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

pub use settings::{ClusterSettings, Settings};

use crate::engine::Engine;
use crate::engine::ballista::scheduler::Scheduler;
use crate::error::causes;
use crate::job::signal::{Signal, Stop};
use crate::session::{Headwater, HeadwaterBuilder};
use crate::tls::choose_cryptography;
use crate::{Error, ErrorKind, Result};
use access::Access;
use flight::Flight;
use http::{Http, State, server_metrics};
use resume::Resumer;
use sessions::Sessions;
use statements::Statements;

/// How large a message of a client may be: a statement, or values for its parameters.
const REQUEST_BYTES: usize = 64 << 20;
/// How often a client is asked whether it is there, and how long it has to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How much is sent before a client confirms it, in bytes: of one result, and of all of a connection.
const WINDOWS: (u32, u32) = (2 << 20, 8 << 20);
/// How often what nobody asks for any more is looked for.
const TIDY: Duration = Duration::from_secs(1);
/// How long statements have to end after the server was told to.
const GRACE: Duration = Duration::from_secs(5);
/// How long connections have to close after that.
const CLOSING: Duration = Duration::from_secs(1);

/// A server that listens.
pub struct Server {
    address: SocketAddr,
    is_encrypted: bool,
    listener: TcpListener,
    transport: tonic::transport::Server,
    routes: RoutesBuilder,
    access: Access,
    /// Of the cluster that it owns.
    scheduler: Option<Scheduler>,
    http: Option<Http>,
    sessions: Arc<Sessions>,
    statements: Statements,
    tell: Arc<dyn Fn(&Report) + Send + Sync>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What a server does by itself.
#[derive(Debug)]
pub enum Report {
    /// Goes on with a job: its name and statement.
    Resuming(String, String),
    /// The job is through.
    Resumed(String),
    /// The job failed.
    NotResumed(String, Error),
    /// The database could not be read; it is tried again.
    Unreadable(Error),
    /// It was told to end; so many jobs run.
    Ending(usize),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resuming(id, statement) => {
                write!(f, "job '{id}' was interrupted, and goes on: {statement}")
            }
            Self::Resumed(id) => write!(f, "job '{id}' is through"),
            Self::NotResumed(id, error) => write!(f, "job '{id}': {error}"),
            Self::Unreadable(error) => write!(f, "can't look for interrupted jobs: {error}"),
            Self::Ending(0) => f.write_str("ending"),
            Self::Ending(jobs) => write!(
                f,
                "ending; {jobs} job(s) stop, and go on when the server is started again"
            ),
        }
    }
}

/// Serves the database of `builder` as `settings` say, until `shutdown` is ready. Statements run on this runtime.
///
/// # Errors
///
/// If the database can't be opened, or the address can't be had.
pub async fn serve(
    builder: HeadwaterBuilder,
    settings: &Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let server = Server::bind(builder, settings, Handle::current()).await?;
    server.serve(shutdown).await
}

impl Server {
    /// Opens the database and begins to listen. Statements will run on `workers`; the runtime that this is called on
    /// is for the network.
    ///
    /// # Errors
    ///
    /// If the settings are wrong, the database can't be opened, or the address can't be had.
    pub async fn bind(
        builder: HeadwaterBuilder,
        settings: &Settings,
        workers: Handle,
    ) -> Result<Self> {
        let address = settings.address().await?;
        let certificates = settings.certificates()?;
        let mut transport = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1);
        let is_encrypted = certificates.is_some();
        if let Some(read) = certificates {
            choose_cryptography();
            let identity = Identity::from_pem(read.certificate, read.key);
            let mut tls = ServerTlsConfig::new().identity(identity);
            if let Some(roots) = read.client_ca {
                tls = tls.client_ca_root(Certificate::from_pem(roots));
            }
            transport = transport.tls_config(tls).map_err(|error| {
                Error::invalid(format!(
                    "the certificate or its key can't be used: {}",
                    causes(&error)
                ))
                .with_hint("--tls-certificate and --tls-key name PEM files that belong together")
            })?;
        }
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::new(ErrorKind::Storage, format!("can't listen on {address}: {error}"))
                .with_hint("does another process? --bind takes another address, and with port 0 any that is free")
                .with_source(error)
        })?;
        let address = listener.local_addr().map_err(|error| {
            Error::internal(format!("the address is not known: {error}")).with_source(error)
        })?;
        let (builder, scheduler) = match &settings.cluster {
            None => (builder, None),
            Some(cluster) => {
                let scheduler = cluster.scheduler(settings.insecure).await?;
                let security = scheduler.security.clone();
                let scheduler = Scheduler::start(scheduler, builder.codecs()).await?;
                // It is the first client of its own cluster.
                let mut reached = scheduler.address();
                if reached.ip().is_unspecified() {
                    reached.set_ip(Ipv4Addr::LOCALHOST.into());
                }
                let engine = Engine::Ballista {
                    url: format!("df://{reached}"),
                    security,
                };
                (builder.engine(engine), Some(scheduler))
            }
        };
        let session = builder.served().build().await?;
        // A database that can't be read is told now, not to the first client.
        session.database().object_names().await?;
        let sessions = Arc::new(Sessions::new(session));
        let statements = Statements::new(workers);
        let flight = Flight::new(Arc::clone(&sessions), statements.clone())?;
        let mut routes = Routes::builder();
        routes
            .add_service(FlightServiceServer::new(flight).max_decoding_message_size(REQUEST_BYTES));
        let http = match &settings.http_bind {
            Some(bind) => {
                let state = State::default();
                let board = scheduler
                    .as_ref()
                    .map(|scheduler| scheduler.board().clone());
                let (sessions, statements) = (Arc::clone(&sessions), statements.clone());
                state.ready(move || {
                    let jobs = sessions.base().jobs().running().len();
                    server_metrics(board.as_ref(), sessions.count(), statements.running(), jobs)
                });
                Some(Http::serve(bind, state).await?)
            }
            None => None,
        };
        Ok(Self {
            address,
            is_encrypted,
            listener,
            transport,
            routes,
            access: Access::new(settings.token.as_deref()),
            scheduler,
            http,
            sessions,
            statements,
            tell: Arc::new(|_| {}),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL that clients connect to.
    pub fn url(&self) -> String {
        let scheme = if self.is_encrypted {
            "grpc+tls"
        } else {
            "grpc"
        };
        format!("{scheme}://{}", self.address)
    }

    /// The URL by which executors reach the scheduler, if it owns a cluster.
    pub fn cluster_url(&self) -> Option<String> {
        self.scheduler.as_ref().map(Scheduler::url)
    }

    /// Where it answers by HTTP, if it does.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(Http::address)
    }

    /// The first session on its database, from which those of clients are made.
    pub fn session(&self) -> &Headwater {
        self.sessions.base()
    }

    /// Adds another gRPC service to the port, behind the same token and TLS.
    pub fn add_service<S>(&mut self, service: S)
    where
        S: Service<HttpRequest<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
    }

    /// What it does by itself it says to `tell`.
    pub fn tell(mut self, tell: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        self.tell = Arc::new(tell);
        self
    }

    /// Takes statements until `shutdown` is ready. Then jobs are interrupted, so that a server which is started again
    /// goes on with them, and other statements have some seconds to end.
    ///
    /// # Errors
    ///
    /// If the network fails altogether.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let Self {
            listener,
            transport,
            routes,
            access,
            scheduler,
            http,
            sessions,
            statements,
            tell,
            ..
        } = self;
        let (close, closed) = oneshot::channel::<()>();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = transport
            .layer(InterceptorLayer::new(move |request| access.check(request)))
            .add_routes(routes.routes())
            .serve_with_incoming_shutdown(incoming, async {
                let _ = closed.await;
            });
        let mut serving = tokio::spawn(serving);
        let tidying = {
            let (sessions, statements) = (Arc::clone(&sessions), statements.clone());
            tokio::spawn(async move {
                let mut rhythm = tokio::time::interval(TIDY);
                loop {
                    rhythm.tick().await;
                    statements.tidy();
                    sessions.tidy();
                }
            })
        };
        let base = sessions.base().clone();
        let resumer = Resumer::new(base, statements.workers().clone(), Arc::clone(&tell));
        let resuming = tokio::spawn(resumer.run());
        let failed = tokio::select! {
            () = shutdown => None,
            ended = &mut serving => Some(ended),
        };
        if let Some(ended) = failed {
            return Err(match ended {
                Ok(Err(error)) => Error::new(
                    ErrorKind::Storage,
                    format!("the server failed: {}", causes(&error)),
                ),
                Ok(Ok(())) => Error::internal("the server ended by itself"),
                Err(error) => Error::internal(format!("the server failed: {error}")),
            });
        }
        statements.close();
        // Whoever asks whether it is ready hears that it is not.
        if let Some(http) = &http {
            http.state().ending();
        }
        interrupt(&sessions, &statements, &tell).await;
        resuming.abort();
        tidying.abort();
        let _ = close.send(());
        let _ = tokio::time::timeout(CLOSING, serving).await;
        if let Some(scheduler) = scheduler {
            scheduler.stop().await;
        }
        Ok(())
    }
}

/// Interrupts the jobs that run, and waits for the statements, but not for long.
async fn interrupt(
    sessions: &Sessions,
    statements: &Statements,
    tell: &Arc<dyn Fn(&Report) + Send + Sync>,
) {
    let jobs = sessions.base().jobs();
    tell(&Report::Ending(jobs.running().len()));
    let started = Instant::now();
    loop {
        // Again and again: one may just have begun.
        let running = jobs.running();
        for job in &running {
            jobs.tell(&job.id, Signal::Stop(Stop::Interrupted));
        }
        if (running.is_empty() && statements.are_through()) || started.elapsed() > GRACE {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
