//! TLS between the processes of a cluster, with certificates made for the trial.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use headwater::engine::Engine;
use headwater::engine::ballista::Certificates;
use headwater::session::Headwater;
use libtest_mimic::Trial;

use super::fill;
use crate::harness::certificates::Authority;
use crate::harness::cluster::executor;
use crate::harness::daemon::Daemon;
use crate::harness::process::TestShell;
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cluster/tls", || block_on(tls())),
        Trial::test("cluster/http", || block_on(http())),
    ]
}

/// The name that certificates of a cluster have.
const NAME: &str = "headwater-cluster";

fn path(scene: &Scene, name: &str) -> String {
    scene.file(name).display().to_string()
}

fn certificates(scene: &Scene, name: &str) -> Vec<String> {
    vec![
        format!("--cluster-ca={}", path(scene, "ca.pem")),
        format!(
            "--cluster-certificate={}",
            path(scene, &format!("{name}.pem"))
        ),
        format!("--cluster-key={}", path(scene, &format!("{name}.key"))),
    ]
}

fn as_str(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// A server with a cluster at the given address, and the URL of its scheduler.
async fn server(scene: &Scene, arguments: &[String]) -> Outcome<(Daemon, String)> {
    let mut all = vec![
        "--cluster-bind",
        "127.0.0.1:0",
        "--http-bind",
        "127.0.0.1:0",
    ];
    all.extend(as_str(arguments));
    let server = Daemon::new(scene.shell.server(&all)?)?;
    let line = server.until(&["Executors reach it at "]).await?;
    let url = line
        .split_whitespace()
        .last()
        .ok_or("it has no scheduler")?;
    Ok((server, url.to_string()))
}

/// Statements, exchanges among executors, units and calls work with certificates; whoever has none, or one of another
/// authority, is not let in.
async fn tls() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    fill(&scene, 50).await?;
    let authority = Authority::new(&scene, "ca")?;
    for name in ["server", "executor", "driver"] {
        authority.vouch(&scene, name, NAME)?;
    }
    authority.vouch(&scene, "misnamed", "example")?;
    Authority::new(&scene, "other")?.vouch(&scene, "stranger", NAME)?;
    let (mut server, url) = server(&scene, &certificates(&scene, "server")).await?;
    if !url.starts_with("df+tls://") {
        return Err(format!("the scheduler is at {url}").into());
    }
    let mut arguments = certificates(&scene, "executor");
    arguments.extend(["--slots".to_string(), "1".to_string()]);
    let executors = [
        executor(&url, &as_str(&arguments))?,
        executor(&url, &as_str(&arguments))?,
    ];
    for executor in &executors {
        executor.until(&["Executor ready"]).await?;
    }
    let clients = TestShell::new(server.url().await?.as_ref(), &scene.file("unused"));
    let ended = clients.run(&[
        "ALTER TABLE t ADD COLUMN y BIGINT AS (count_calls(x + 1))",
        "REFRESH COLUMN y ON t",
        // Both executors read, and exchange what they read.
        "CREATE MATERIALIZED VIEW g AS SELECT id % 11 AS k, sum(y) AS s FROM t GROUP BY id % 11",
        "CREATE MATERIALIZED VIEW v AS SELECT id, count_calls(y) AS z FROM t",
        "SELECT CAST(sum(s) AS BIGINT) FROM g",
        "SELECT CAST(sum(z) AS BIGINT) FROM v",
    ])?;
    let expected = scene
        .number("SELECT CAST(sum(x + 1) AS BIGINT) FROM t")
        .await?;
    let found: Vec<&str> = ended.stdout.lines().rev().collect();
    let expected = expected.to_string();
    if ended.code != Some(0)
        || found.first() != Some(&expected.as_str())
        || found.get(2) != Some(&expected.as_str())
    {
        return Err(format!("{ended:?}").into());
    }
    drives(&scene, &url).await?;
    // Strangers.
    let plain = url.replace("df+tls", "df");
    for (url, arguments, words) in [
        (&plain, vec![], vec!["refuses this executor", "df+tls://"]),
        (&url, vec![], vec!["asks for certificates", "--cluster-ca"]),
        (
            &url,
            certificates(&scene, "stranger"),
            vec!["refuses this executor"],
        ),
    ] {
        let mut arguments = arguments;
        arguments.push("--patience=1s".to_string());
        let mut refused = executor(url, &as_str(&arguments))?;
        let status = refused.end().await?;
        let said = refused.said().join("\n");
        if status.code() != Some(1) || words.iter().any(|word| !said.contains(word)) {
            return Err(format!("{arguments:?}: {status} {said}").into());
        }
    }
    let misnamed = certificates(&scene, "misnamed");
    let mut refused = executor(&url, &as_str(&misnamed))?;
    refused.until(&["alternative names"]).await?;
    refused.end().await?;
    let mut mixed = certificates(&scene, "executor");
    mixed.push("--bind=0.0.0.0".to_string());
    let mut refused = executor(&url, &as_str(&mixed))?;
    refused.until(&["listens at one address"]).await?;
    refused.end().await?;
    server.terminate().await
}

/// A program with a certificate drives the cluster; one without does not.
async fn drives(scene: &Scene, url: &str) -> Outcome<()> {
    let engine = Engine::ballista_with_tls(
        url,
        &Certificates {
            authority: scene.file("ca.pem"),
            certificate: scene.file("driver.pem"),
            key: scene.file("driver.key"),
        },
    )?;
    let database = scene.database().display().to_string();
    let builder = Headwater::builder().database(&database).engine(engine);
    let headwater = builder.build().await?;
    let rows = headwater.sql("SELECT * FROM t WHERE x > 100").await?;
    if rows.collect().await?.is_empty() {
        return Err("a query of a driver gave nothing".into());
    }
    let open = Engine::ballista(url.replace("df+tls", "df"));
    let builder = Headwater::builder().database(&database).engine(open);
    match builder.build().await {
        Ok(_) => Err("a driver without a certificate was let in".into()),
        Err(_) => Ok(()),
    }
}

/// What a server and an executor answer by HTTP.
async fn http() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    fill(&scene, 50).await?;
    let (mut server, url) = server(&scene, &[]).await?;
    let one = executor(
        &url,
        &[
            "--slots",
            "3",
            "--label",
            "gpu",
            "--http-bind",
            "127.0.0.1:0",
        ],
    )?;
    one.until(&["Executor ready"]).await?;
    let of_server = address(&server).await?;
    let of_executor = address(&one).await?;
    for (address, request, words) in [
        (&of_server, "/health", vec!["200", "ok"]),
        (&of_server, "/ready", vec!["200", "ready"]),
        (&of_server, "/nothing", vec!["404"]),
        (
            &of_server,
            "/metrics",
            vec![
                "headwater_slots{pool=\"gpu\"} 3",
                "headwater_executors{pool=\"default\"} 0",
                "headwater_pending_units{pool=\"default\"} 0",
                "headwater_jobs_running 0",
            ],
        ),
        (&of_executor, "/ready", vec!["200", "ready"]),
        (&of_executor, "/metrics", vec!["headwater_executor_slots 3"]),
    ] {
        let answer = get(address, request)?;
        if let Some(word) = words.iter().find(|word| !answer.contains(**word)) {
            return Err(format!("{request}: no {word:?} in {answer}").into());
        }
    }
    // What waits for executors is demand.
    fs::write(scene.file("calls"), "")?;
    let clients = TestShell::new(server.url().await?.as_ref(), &scene.file("unused"));
    let begun = clients.run(&[
        "ALTER TABLE t ADD COLUMN y BIGINT AS (x + 1)",
        "REFRESH COLUMN y ON t WITH (pool = 'tpu', admission = 'wait') ASYNC",
    ])?;
    if begun.code != Some(0) {
        return Err(format!("{begun:?}").into());
    }
    let wanted = "headwater_pending_units{pool=\"tpu\"} 8";
    for _ in 0..100 {
        if get(&of_server, "/metrics")?.contains(wanted) {
            return server.terminate().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("no {wanted} in {}", get(&of_server, "/metrics")?).into())
}

async fn address(process: &Daemon) -> Outcome<String> {
    let line = process.until(&["Figures are at http://"]).await?;
    let address = line.split("http://").nth(1);
    let address = address.and_then(|rest| rest.split('/').next());
    Ok(address.ok_or("no address")?.to_string())
}

fn get(address: &str, path: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
