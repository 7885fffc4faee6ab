//! One side goes away: clients, connections, and the server itself.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use arrow_flight::sql::client::FlightSqlServiceClient;
use headwater::client::{Client, Options};
use libtest_mimic::Trial;

use super::{RUNNING, command, ended, has, headwater, remote, slow, start, until, within};
use crate::harness::scene::{Outcome, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("server/dropped_call", || block_on(dropped_call())),
        Trial::test("server/dropped_client", || block_on(dropped_client())),
        Trial::test("server/interrupted", || block_on(interrupted())),
        Trial::test("server/asynchronous", || block_on(asynchronous())),
        Trial::test("server/unreachable", || block_on(unreachable())),
        Trial::test("server/gone", || block_on(gone())),
        Trial::test("server/terminated", || block_on(terminated())),
        Trial::test("server/killed", || block_on(killed())),
    ]
}

const REFRESH: &str = "REFRESH COLUMN y ON t";
const CANCELLED: &str = "SELECT count(*) FROM system.jobs WHERE state = 'cancelled'";

/// `GetFlightInfo` of a refresh ends with the call.
async fn dropped_call() -> Outcome<()> {
    let scene = slow(3_000, 10).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let channel = tonic::transport::Endpoint::from_shared(url.replace("grpc://", "http://"))?;
    let mut client = FlightSqlServiceClient::new(channel.connect().await?);
    let call = tokio::spawn(async move { client.execute(REFRESH.to_string(), None).await.is_ok() });
    until(&scene, RUNNING, 1).await?;
    call.abort();
    let started = Instant::now();
    until(&scene, CANCELLED, 1).await?;
    within(started, Duration::from_secs(5))?;
    server.terminate().await
}

/// A refresh that is polled ends when the client is killed, and stops polling.
async fn dropped_client() -> Outcome<()> {
    let scene = slow(20_000, 5).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let mut client = remote(&scene, &url).start(&[REFRESH])?;
    until(&scene, RUNNING, 1).await?;
    client.kill()?;
    client.wait()?;
    let started = Instant::now();
    until(&scene, CANCELLED, 1).await?;
    within(started, Duration::from_secs(15))?;
    server.terminate().await
}

/// Ctrl-C ends a refresh on the server, and a query, within two seconds.
async fn interrupted() -> Outcome<()> {
    let scene = slow(20_000, 5).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let endless = "SELECT sum(value) FROM generate_series(1, 100000000000)";
    for statement in [REFRESH, endless] {
        let client = command(&url, &["-c", statement], &[])?.spawn()?;
        match statement {
            REFRESH => until(&scene, RUNNING, 1).await?,
            _ => tokio::time::sleep(Duration::from_secs(1)).await,
        }
        let started = Instant::now();
        let id = client.id().to_string();
        std::process::Command::new("kill")
            .args(["-s", "INT", &id])
            .status()?;
        let found = ended(&client.wait_with_output()?);
        within(started, Duration::from_secs(4))?;
        has(&found.stderr, &["the statement was cancelled"])?;
        if found.code != Some(130) {
            return Err(format!("{found:?}").into());
        }
    }
    until(&scene, CANCELLED, 1).await?;
    server.terminate().await
}

/// What was begun with ASYNC goes on when its client has left; what is done is shown as it is elsewhere.
async fn asynchronous() -> Outcome<()> {
    let scene = slow(300, 5).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let started = Instant::now();
    let found = remote(&scene, &url).run(&["REFRESH COLUMN y ON t ASYNC"])?;
    has(&found.stdout, &["running,t.y"])?;
    if found.code != Some(0) {
        return Err(format!("{found:?}").into());
    }
    within(started, Duration::from_secs(15))?;
    until(&scene, "SELECT count(y) FROM t", 300).await?;
    until(
        &scene,
        "SELECT count(*) FROM system.jobs WHERE state = 'done'",
        1,
    )
    .await?;
    server.terminate().await
}

/// What is no server, and what does not answer, is told within seconds.
async fn unreachable() -> Outcome<()> {
    // A port that was free a moment ago, and one where nobody ever answers.
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let cases = [
        (format!("grpc://{closed}"), "can't connect"),
        (format!("grpc+tls://{closed}"), "can't connect"),
        (format!("grpc://{}", silent.local_addr()?), "no answer"),
        ("grpc://127.0.0.1:0".to_string(), "port 0"),
        ("grpc://".to_string(), "host"),
        (
            "grpc://127.0.0.1/shop".to_string(),
            "after the port|follows the port",
        ),
        ("grpcs://127.0.0.1".to_string(), "grpc+tls://"),
        ("grpc://nosuch.invalid:1".to_string(), "can't connect"),
    ];
    for (url, words) in cases {
        let started = Instant::now();
        let found = headwater(&url, &["-c", "SELECT 1"], &[])?;
        if !words.split('|').any(|word| found.stderr.contains(word)) || found.code != Some(1) {
            return Err(format!("{url}: no {words:?} in {found:?}").into());
        }
        within(started, Duration::from_secs(15))?;
    }
    Ok(())
}

/// A server that goes away, or does not answer any more, in the middle of a statement.
async fn gone() -> Outcome<()> {
    for signal in ["KILL", "STOP"] {
        let scene = slow(20_000, 5).await?;
        let (server, url) = start(&scene, &[]).await?;
        let client = command(&url, &["-c", REFRESH, "-c", "SELECT 1"], &[])?.spawn()?;
        until(&scene, RUNNING, 1).await?;
        server.signal(signal)?;
        let started = Instant::now();
        let found = tokio::task::spawn_blocking(|| client.wait_with_output()).await??;
        let found = ended(&found);
        within(started, Duration::from_secs(15))?;
        has(&found.stderr, &["the connection to", "broke", "SHOW JOBS"])?;
        if found.code != Some(1) {
            return Err(format!("{found:?}").into());
        }
    }
    Ok(())
}

/// SIGTERM interrupts the jobs of a server, one that is started again goes on with them.
async fn terminated() -> Outcome<()> {
    let scene = slow(600, 5).await?;
    let (mut server, url) = start(&scene, &[]).await?;
    let waiting = command(&url, &["-c", REFRESH], &[])?.spawn()?;
    until(&scene, RUNNING, 1).await?;
    let started = Instant::now();
    server.terminate().await?;
    within(started, Duration::from_secs(8))?;
    let found = ended(&waiting.wait_with_output()?);
    has(&found.stderr, &["was interrupted", "RESUME JOB"])?;
    if found.code != Some(1) {
        return Err(format!("{found:?}").into());
    }
    until(
        &scene,
        "SELECT count(*) FROM system.jobs WHERE state = 'interrupted'",
        1,
    )
    .await?;
    // Nobody takes statements any more.
    let refused = Client::connect(&url, &Options::default()).await;
    has(
        &refused.err().ok_or("it still answers")?.to_string(),
        &["can't connect"],
    )?;

    let (mut server, _) = start(&scene, &[]).await?;
    server.until(&["was interrupted, and goes on"]).await?;
    server.until(&["is through"]).await?;
    scene.expect("SELECT count(y) FROM t", 600).await?;
    scene
        .expect("SELECT count(*) FROM system.jobs WHERE state = 'done'", 1)
        .await?;
    server.terminate().await
}

/// A server that is started after one was killed finishes what that had begun, and leaves alone what others had.
async fn killed() -> Outcome<()> {
    let scene = slow(600, 5).await?;
    for statement in [
        "CREATE TABLE other (id BIGINT, x BIGINT, z BIGINT AS (sleep_ms(x, 20)))",
        "INSERT INTO other (id, x) SELECT value AS id, value AS x FROM generate_series(1, 300)",
    ] {
        scene.run(statement).await?;
    }
    let (mut server, url) = start(&scene, &[]).await?;
    let mut shell = scene.shell.start(&["REFRESH COLUMN z ON other"])?;
    let client = remote(&scene, &url).start(&[REFRESH])?;
    until(&scene, RUNNING, 2).await?;
    shell.kill()?;
    shell.wait()?;
    server.kill()?;
    let found = ended(&client.wait_with_output()?);
    has(&found.stderr, &["the connection to"])?;

    let (mut server, _) = start(&scene, &[]).await?;
    server.until(&["is through"]).await?;
    scene.expect("SELECT count(y) FROM t", 600).await?;
    scene.expect("SELECT count(z) FROM other", 0).await?;
    until(
        &scene,
        "SELECT count(*) FROM system.jobs WHERE state = 'interrupted'",
        1,
    )
    .await?;
    server.terminate().await
}
