//! Those that drive a cluster go away: the server, and programs that drive one by themselves.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{
    END, REFRESH, ROWS, cluster, column, fill, is_right, kills, no_more_than, nothing_left, slow,
    until_computed,
};
use crate::harness::cluster::executor;
use crate::harness::daemon::Daemon;
use crate::harness::process::TestShell;
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cluster/server_killed", || block_on(server_killed())),
        Trial::test("cluster/driver_killed", || block_on(driver_killed())),
        Trial::test("cluster/two_drivers", || block_on(two_drivers())),
        Trial::test("cluster/unit_twice", || block_on(unit_twice())),
    ]
}

/// Rows that are lost with a driver: each of four slots has a unit of ten rows on its way, and what was written in the last
/// second only the driver knew, at forty milliseconds a row.
const LOST: usize = 4 * 10 + 4 * 25 + 20;

/// A server that owns a cluster, with the URL of its scheduler.
async fn server(scene: &Scene, cluster_bind: &str) -> Outcome<(Daemon, String)> {
    let arguments = ["--cluster-bind", cluster_bind, "--executor-timeout", "10s"];
    let server = Daemon::new(scene.shell.server(&arguments)?)?;
    let line = server.until(&["Executors reach it at "]).await?;
    let url = line.split_whitespace().last();
    let url = url.ok_or("it does not say where its scheduler is")?;
    Ok((server, url.to_string()))
}

/// The server is killed at random moments of a refresh and started again: its executors find it, and the job goes on.
async fn server_killed() -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(20_261_123);
    for _ in 0..kills() {
        let scene = Scene::new(&[]).await?;
        fill(&scene, 10).await?;
        scene.run(&column(40)).await?;
        let (mut killed, url) = server(&scene, "127.0.0.1:0").await?;
        let _executors = [
            executor(&url, &["--slots", "2"])?,
            executor(&url, &["--slots", "2"])?,
        ];
        let clients = TestShell::new(killed.url().await?.as_ref(), &scene.file("unused"));
        for wanted in 1..=2 {
            let wanted =
                format!("SELECT CAST(count(*) AS BIGINT) >= {wanted} FROM system.executors");
            until(&clients, &wanted, "true").await?;
        }
        let begun = clients.run(&[format!("{REFRESH} ASYNC")])?;
        if begun.code != Some(0) {
            return Err(format!("{begun:?}").into());
        }
        until_computed(&scene, random.random_range(1..300)).await?;
        killed.kill()?;
        let address = url.trim_start_matches("df://");
        let (mut again, _) = server(&scene, address).await?;
        let started = Instant::now();
        while scene
            .number("SELECT count(*) FROM t WHERE y IS NULL")
            .await?
            > 0
        {
            if started.elapsed() > END {
                let said = again.said();
                return Err(format!("the refresh did not go on: {said:#?}").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let ended = "SELECT count(*) FROM system.jobs WHERE state = 'done'";
        while scene.number(ended).await? == 0 && started.elapsed() < END {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        scene.expect(ended, 1).await?;
        is_right(&scene).await?;
        no_more_than(&scene, LOST)?;
        again.terminate().await?;
        nothing_left(&scene).await?;
    }
    Ok(())
}

/// Waits until a query that is asked of a server gives `expected`.
async fn until(clients: &TestShell, query: &str, expected: &str) -> Outcome<()> {
    let started = Instant::now();
    loop {
        let found = clients.run(&[query])?;
        if found.stdout.lines().last() == Some(expected) {
            return Ok(());
        }
        if started.elapsed() > END {
            return Err(format!("{query}: {found:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A program that drives the cluster is killed at random moments of a refresh; another one goes on with the job.
async fn driver_killed() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "2"], &["--slots", "2"]]).await?;
    let mut random = StdRng::seed_from_u64(20_261_124);
    for _ in 0..kills() {
        let scene = Scene::on_cluster(&cluster.url(), &[]).await?;
        fill(&scene, 10).await?;
        scene.run(&column(40)).await?;
        let driver = scene.shell.clone().with_cluster(&cluster.url());
        let mut killed = driver.start(&[REFRESH])?;
        until_computed(&scene, random.random_range(1..300)).await?;
        killed.kill()?;
        killed.wait()?;
        let ended = driver.run(&[REFRESH])?;
        if ended.code != Some(0) {
            return Err(format!("{ended:?}").into());
        }
        is_right(&scene).await?;
        no_more_than(&scene, LOST)?;
        nothing_left(&scene).await?;
    }
    Ok(())
}

/// Two programs refresh one column on one cluster at the same time: one of them does it, the other is told.
async fn two_drivers() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "2"]]).await?;
    let scene = slow(&cluster, 5).await?;
    let driver = scene.shell.clone().with_cluster(&cluster.url());
    let both = [driver.start(&[REFRESH])?, driver.start(&[REFRESH])?];
    let mut worked = 0;
    for driver in both {
        let output = driver.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() {
            true => worked += 1,
            false if said.contains("is at work on it") => {}
            false => return Err(said.into()),
        }
    }
    if worked == 0 {
        return Err("neither of them did it".into());
    }
    is_right(&scene).await?;
    no_more_than(&scene, 0)
}

/// An executor stands still, counts as lost, and goes on while another computes its unit again: two compute the same rows
/// at once, and each row has one value.
async fn unit_twice() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "1"], &["--slots", "1"]]).await?;
    // A unit takes more than four seconds.
    let scene = slow(&cluster, 80).await?;
    let headwater = scene.headwater.clone();
    let only = "REFRESH COLUMN y ON t WITH (concurrency = 1, max_fragments = 1)";
    let refresh = tokio::spawn(async move { headwater.sql(only).await.map(drop) });
    until_computed(&scene, 3).await?;
    // One of them has the unit; the other one has nothing to lose.
    let mut stopped = 0;
    cluster.signal(stopped, "STOP")?;
    if goes_on(&scene).await? {
        cluster.signal(stopped, "CONT")?;
        stopped = 1;
        cluster.signal(stopped, "STOP")?;
    }
    let before = scene.all_calls()?;
    until_computed(&scene, before + 3).await?;
    cluster.signal(stopped, "CONT")?;
    refresh.await??;
    let calls = scene.calls()?;
    if !calls.values().any(|times| *times == 2) || calls.len() != 50 {
        return Err(format!("no row was computed twice: {calls:?}").into());
    }
    scene
        .expect("SELECT count(*) FROM t WHERE y IS NOT NULL", 50)
        .await?;
    // What it finishes now nobody reads.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let wrong = "SELECT count(*) FROM t WHERE y <> x + 1";
    scene.expect(wrong, 0).await?;
    scene.expect("SELECT count(y) FROM t", 50).await?;
    scene.expect("SELECT count(*) FROM t", ROWS).await?;
    nothing_left(&scene).await
}

/// Whether any executor computes.
async fn goes_on(scene: &Scene) -> Outcome<bool> {
    // What was on its way when one was stopped.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = scene.all_calls()?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(scene.all_calls()? > before)
}
