//! What it costs that a statement runs on a server.

use std::time::{Duration, Instant};

use headwater::client::{Client, Options};
use headwater::server::{Server, Settings as ServerSettings};
use headwater::session::Headwater;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::kit::{Best, Database, Report, Result, Settings};

/// Statements that are measured.
const STATEMENTS: usize = 200;

/// `SELECT 1` by Flight SQL.
pub async fn run(_: &Settings) -> Result<Report> {
    let database = Database::new().await?;
    let settings = ServerSettings {
        bind: Some("127.0.0.1:0".to_string()),
        ..ServerSettings::default()
    };
    // As the command has it: the network on threads of its own.
    let network = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let builder = Headwater::builder().database(database.url());
    let workers = tokio::runtime::Handle::current();
    let server = network.spawn(async move { Server::bind(builder, &settings, workers).await });
    let server = server.await??;
    let url = server.url();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = network.spawn(server.serve(async {
        let _ = stopped.await;
    }));
    let client = Client::connect(&url, &Options::default()).await?;
    let mut ours = Vec::with_capacity(STATEMENTS);
    let mut floor = Vec::with_capacity(STATEMENTS);
    // The first of each warms up, and does not count.
    for run in 0..=STATEMENTS {
        let started = Instant::now();
        let rows: usize = database
            .run("SELECT 1")
            .await?
            .iter()
            .map(|batch| batch.num_rows())
            .sum();
        let here = started.elapsed();
        let started = Instant::now();
        let batches = client.execute("SELECT 1").await?.collect().await?;
        let there = started.elapsed();
        if rows != 1 || batches.iter().map(|batch| batch.num_rows()).sum::<usize>() != 1 {
            return Err("SELECT 1 has not one row".into());
        }
        if run > 0 {
            floor.push(here);
            ours.push(there);
        }
    }
    client.close().await;
    let _ = stop.send(());
    serving.await??;
    network.shutdown_background();
    let mut report = Report::new(
        "server",
        "`SELECT 1` on a server of the same machine, by Flight SQL, warm; the median. Floor: the same in this process.",
    );
    let times = Best {
        floor: median(floor),
        ours: median(ours),
    };
    report.time(
        format!("SELECT 1, median of {STATEMENTS}"),
        times,
        "≤ 20 ms",
    );
    Ok(report)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
