//! The benchmarks.

mod append;
pub mod cluster;
mod jobs;
pub mod memory;
mod metadata;
mod pylance;
mod query;
mod refresh;
mod server;
mod views;

use crate::kit::{Report, Result, Settings};

/// Names of all benchmarks.
pub fn names() -> Vec<&'static str> {
    vec![
        "refresh",
        "pylance",
        "memory",
        "append",
        "nothing",
        "describe",
        "start",
        "server",
        "cluster",
        "cluster_memory",
        "query",
        "ledger",
        "jobs",
        "at_once",
        "views",
        "view_queries",
        "view_growth",
    ]
}

/// Runs the benchmark `name`.
pub async fn run(name: &str, settings: &Settings) -> Result<Report> {
    match name {
        "refresh" => refresh::run(settings).await,
        "pylance" => pylance::run(settings).await,
        "memory" => memory::run(settings).await,
        "append" => append::run(settings).await,
        "nothing" => metadata::nothing(settings).await,
        "describe" => metadata::describe(settings).await,
        "start" => metadata::start(settings).await,
        "server" => server::run(settings).await,
        "cluster" => cluster::run(settings).await,
        "cluster_memory" => cluster::memory(settings).await,
        "query" => query::run(settings).await,
        "ledger" => jobs::ledger(settings).await,
        "jobs" => jobs::show(settings).await,
        "at_once" => jobs::at_once(settings).await,
        "views" => views::run(settings).await,
        "view_queries" => views::queries(settings).await,
        "view_growth" => views::growth(settings).await,
        other => Err(format!("there is no benchmark '{other}'").into()),
    }
}
