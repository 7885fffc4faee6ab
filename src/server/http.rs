//! HTTP for those that watch a process: whether it lives, whether it is ready for work, and its figures.
//!
//! - `/health` answers 200 as long as the process runs,
//! - `/ready` answers 200 while it takes work, 503 before and when it ends,
//! - `/metrics` gives figures as Prometheus reads them.
//!
//! There is nothing secret in it, and no authentication.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Encoder, IntGauge, IntGaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::settings::resolve;
use crate::engine::ballista::board::{Board, Report};
use crate::{Error, ErrorKind, Result};

/// The pool of executors without a label, and of work without a pool.
const NO_POOL: &str = "default";

/// Gives figures as text.
type Metrics = Arc<dyn Fn() -> Result<String> + Send + Sync>;

/// What is answered. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct State(Arc<Mutex<Option<Metrics>>>);

impl State {
    /// The process takes work, and these are its figures.
    pub(crate) fn ready(&self, metrics: impl Fn() -> Result<String> + Send + Sync + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(metrics));
    }

    /// It takes no more.
    pub(crate) fn ending(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn metrics(&self) -> Option<Metrics> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Answers, until it is dropped.
pub(crate) struct Http {
    address: SocketAddr,
    state: State,
    _task: JoinSet<()>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Http {
    /// Begins to answer at `bind`.
    ///
    /// # Errors
    ///
    /// If that is no address, or is taken.
    pub(crate) async fn serve(bind: &str, state: State) -> Result<Self> {
        let bind = resolve("--http-bind", bind, "127.0.0.1:50080").await?;
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorKind::Storage,
                format!("can't listen on {bind}: {error}"),
            )
            .with_hint("--http-bind takes another address, and with port 0 any that is free")
        };
        let listener = TcpListener::bind(bind).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (is_ready, figures) = (state.clone(), state.clone());
        let router = Router::new()
            .route("/health", get(|| async { "ok\n" }))
            .route(
                "/ready",
                get(move || async move {
                    match is_ready.metrics() {
                        Some(_) => (StatusCode::OK, "ready\n"),
                        None => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
                    }
                }),
            )
            .route(
                "/metrics",
                get(move || async move {
                    match figures.metrics().map(|metrics| metrics()) {
                        Some(Ok(text)) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
                        Some(Err(error)) => {
                            log::warn!("{error}");
                            StatusCode::INTERNAL_SERVER_ERROR.into_response()
                        }
                        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                    }
                }),
            );
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                log::error!("nothing is answered by HTTP any more: {error}");
            }
        });
        Ok(Self {
            address,
            state,
            _task: task,
        })
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it answers.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }
}

/// The figures of a server, and of the cluster that it owns.
pub(crate) fn server_metrics(
    board: Option<&Board>,
    sessions: usize,
    statements: usize,
    jobs: usize,
) -> Result<String> {
    let mut figures = Figures::default();
    figures.one(
        "headwater_sessions",
        "Sessions of clients.",
        sessions as u64,
    )?;
    figures.one(
        "headwater_statements_running",
        "Statements that run.",
        statements as u64,
    )?;
    figures.one(
        "headwater_jobs_running",
        "Jobs that this server drives.",
        jobs as u64,
    )?;
    if let Some(board) = board {
        let pool = |label: Option<String>| label.unwrap_or_else(|| NO_POOL.to_string());
        let mut pools: BTreeMap<String, [u64; 5]> = BTreeMap::new();
        pools.insert(NO_POOL.to_string(), [0; 5]);
        for (label, units) in board.demand() {
            pools.entry(pool(label)).or_default()[0] += units;
        }
        for seen in board.executors() {
            let of_pool = pools.entry(pool(seen.executor.label)).or_default();
            of_pool[1] += 1;
            of_pool[2] += u64::from(seen.executor.slots);
            of_pool[3] += u64::from(seen.tasks);
            of_pool[4] += seen.memory_used;
        }
        for (place, (name, help)) in [
            (
                "headwater_pending_units",
                "Units of jobs that are not done, by the pool that they want.",
            ),
            ("headwater_executors", "Executors that live, by pool."),
            ("headwater_slots", "Tasks that they run at once, by pool."),
            ("headwater_tasks_running", "Tasks that run, by pool."),
            (
                "headwater_memory_used_bytes",
                "Memory that queries use in executors, by pool.",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let values = pools.iter().map(|(pool, all)| (pool.as_str(), all[place]));
            figures.by_pool(name, help, values)?;
        }
    }
    figures.text()
}

/// The figures of an executor.
pub(crate) fn executor_metrics(report: &Report) -> Result<String> {
    let mut figures = Figures::default();
    let executor = &report.executor;
    figures.one(
        "headwater_executor_slots",
        "Tasks that it runs at once.",
        u64::from(executor.slots),
    )?;
    figures.one(
        "headwater_executor_tasks_running",
        "Tasks that run.",
        u64::from(report.tasks),
    )?;
    figures.one(
        "headwater_executor_memory_used_bytes",
        "Memory that queries use.",
        report.memory_used,
    )?;
    if let Some(limit) = executor.memory {
        figures.one(
            "headwater_executor_memory_limit_bytes",
            "Memory that queries may use.",
            limit,
        )?;
    }
    figures.text()
}

/// Figures at one moment.
#[derive(Default)]
struct Figures(Registry);

impl Figures {
    fn one(&mut self, name: &str, help: &str, value: u64) -> Result<()> {
        let gauge = IntGauge::new(name, help).map_err(unusable)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.0.register(Box::new(gauge)).map_err(unusable)
    }

    fn by_pool<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (&'a str, u64)>,
    ) -> Result<()> {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &["pool"]).map_err(unusable)?;
        for (pool, value) in values {
            let of_pool = gauge.with_label_values(&[pool]);
            of_pool.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.0.register(Box::new(gauge)).map_err(unusable)
    }

    fn text(&self) -> Result<String> {
        let mut text = Vec::new();
        let encoder = TextEncoder::new();
        encoder
            .encode(&self.0.gather(), &mut text)
            .map_err(unusable)?;
        String::from_utf8(text).map_err(|error| Error::internal(format!("figures: {error}")))
    }
}

fn unusable(error: prometheus::Error) -> Error {
    Error::internal(format!("a figure can't be given: {error}"))
}
