//! `headwater serve-refresh` as a process: it keeps views within their lag, whatever happens to it.

use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, AsArray};
use libtest_mimic::Trial;

use crate::harness::daemon::Daemon;
use crate::harness::scene::{Outcome, Scene, block_on};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("serve/views_are_kept", || block_on(views_are_kept())),
        Trial::test("serve/failures", || block_on(failures())),
        Trial::test("serve/signals", || block_on(signals())),
        Trial::test("serve/killed", || block_on(killed())),
        Trial::test("serve/two_of_them", || block_on(two_of_them())),
        Trial::test("serve/jobs_of_others", || block_on(jobs_of_others())),
        Trial::test("serve/once", || block_on(once())),
    ]
}

/// Starts one over the database of a scene.
fn keep(scene: &Scene, arguments: &[&str]) -> Outcome<Daemon> {
    Daemon::new(scene.shell.serve(arguments)?)
}

/// Waits until a query gives a number.
async fn until(scene: &Scene, query: &str, expected: i64) -> Outcome<()> {
    let started = Instant::now();
    loop {
        let found = scene.number(query).await;
        if matches!(found, Ok(number) if number == expected) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{query}: {found:?}, never {expected}").into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The text that a query gives; empty for NULL or no row.
async fn text(scene: &Scene, query: &str) -> Outcome<String> {
    for batch in scene.run(query).await? {
        let column = batch.column(0);
        if batch.num_rows() > 0 && !column.is_null(0) {
            return Ok(column.as_string::<i32>().value(0).to_string());
        }
    }
    Ok(String::new())
}

fn contains(text: &str, words: &[&str]) -> Outcome<()> {
    match words.iter().find(|word| !text.contains(**word)) {
        Some(word) => Err(format!("no {word:?} in {text:?}").into()),
        None => Ok(()),
    }
}

async fn views_are_kept() -> Outcome<()> {
    let scene = Scene::new(&[
        "CREATE TABLE t (id BIGINT, x INT, twice INT GENERATED ALWAYS AS (x * 2))",
        "INSERT INTO t (id, x) VALUES (1, 10), (2, 20)",
        "CREATE MATERIALIZED VIEW parts WITH (target_lag = 'downstream') AS SELECT id, twice FROM t WITH NO DATA",
        "CREATE MATERIALIZED VIEW total WITH (target_lag = '1 second') AS SELECT count(*) AS n, sum(twice) AS s FROM parts WITH NO DATA",
        "CREATE MATERIALIZED VIEW later AS SELECT id FROM t",
    ])
    .await?;
    let mut daemon = keep(&scene, &[])?;
    daemon.until(&["keeping 2 view(s)"]).await?;
    // What has no rows yet gets them, sources first, computed columns too.
    until(&scene, "SELECT s FROM total", 60).await?;
    daemon.until(&["refreshed t.twice: full"]).await?;
    daemon
        .until(&["refreshed total: full (FIRST_REFRESH)", "job '"])
        .await?;

    scene.run("INSERT INTO t (id, x) VALUES (3, 30)").await?;
    until(&scene, "SELECT s FROM total", 120).await?;
    daemon
        .until(&[
            "refreshed parts: incremental, 1 rows inserted",
            "limit 1 second",
        ])
        .await?;
    until(
        &scene,
        "SELECT count(*) FROM system.materialized_views WHERE target_lag IS NOT NULL AND seconds_behind = 0",
        2,
    )
    .await?;
    scene.expect("SELECT count(*) FROM later", 2).await?;

    // What is made, altered and dropped while it runs.
    for statement in [
        "ALTER MATERIALIZED VIEW later SET (target_lag = '1 second')",
        "CREATE MATERIALIZED VIEW new WITH (target_lag = '1 second') AS SELECT max(id) AS m FROM t WITH NO DATA",
        "DROP MATERIALIZED VIEW total",
    ] {
        scene.run(statement).await?;
    }
    until(&scene, "SELECT count(*) FROM later", 3).await?;
    until(&scene, "SELECT m FROM new", 3).await?;
    // Nobody needs it any more.
    scene.run("INSERT INTO t (id, x) VALUES (4, 40)").await?;
    until(&scene, "SELECT m FROM new", 4).await?;
    scene.expect("SELECT count(*) FROM parts", 3).await?;
    daemon.terminate().await?;
    daemon.until(&["stopped"]).await?;
    let said = daemon.said();
    match said.iter().any(|line| line.contains("failed")) {
        true => Err(format!("{said:#?}").into()),
        false => Ok(()),
    }
}

async fn failures() -> Outcome<()> {
    let scene = Scene::new(&[
        "CREATE TABLE t (id BIGINT, x INT)",
        "INSERT INTO t VALUES (1, 10)",
        "CREATE MATERIALIZED VIEW bad WITH (target_lag = '1 second') AS SELECT id, fail_if(x, 13) AS x FROM t",
        "CREATE MATERIALIZED VIEW upon WITH (target_lag = '1 second') AS SELECT id FROM bad",
        "CREATE MATERIALIZED VIEW good WITH (target_lag = '1 second') AS SELECT count(*) AS n FROM t",
        "INSERT INTO t VALUES (2, 13)",
    ])
    .await?;
    let daemon = keep(&scene, &["--suspend-after", "2"])?;
    let line = daemon.until(&["failed bad (1 of 2 in a row)"]).await?;
    contains(&line, &["again in", "REFRESH MATERIALIZED VIEW bad", "13"])?;
    // It keeps back no other.
    until(&scene, "SELECT n FROM good", 2).await?;
    let line = daemon.until(&["suspended bad"]).await?;
    contains(&line, &["ALTER MATERIALIZED VIEW bad RESUME"])?;
    let of = "FROM system.materialized_views WHERE view_name = 'bad'";
    until(&scene, &format!("SELECT failures {of} AND suspended"), 2).await?;
    let because = text(&scene, &format!("SELECT suspended_because {of}")).await?;
    contains(&because, &["2 refreshes in a row failed", "13"])?;
    let last = text(&scene, &format!("SELECT last_failure {of}")).await?;
    contains(&last, &["REFRESH MATERIALIZED VIEW bad", "13"])?;
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE table_name = 'bad' AND state = 'failed'",
            2,
        )
        .await?;
    // Suspended, it is what those that read it find.
    scene
        .expect(
            "SELECT failures FROM system.materialized_views WHERE view_name = 'upon'",
            0,
        )
        .await?;

    scene.run("DELETE FROM t WHERE x = 13").await?;
    scene.run("INSERT INTO t VALUES (3, 30)").await?;
    scene.run("ALTER MATERIALIZED VIEW bad RESUME").await?;
    scene
        .expect(
            &format!("SELECT count(*) {of} AND failures = 0 AND suspended_because IS NULL"),
            1,
        )
        .await?;
    until(&scene, "SELECT count(*) FROM upon", 2).await?;
    scene.expect("SELECT count(*) FROM bad", 2).await?;
    Ok(())
}

/// A table, and a view that takes `ms` for each of 20 rows that are there and not in it.
async fn slow(ms: u32) -> Outcome<Scene> {
    let scene = Scene::new(&[
        "CREATE TABLE t AS SELECT value AS id FROM generate_series(1, 20)",
        &format!("CREATE MATERIALIZED VIEW v WITH (target_lag = '1 second') AS SELECT sleep_ms(count_calls(id), {ms}) AS id FROM t WITH NO DATA"),
    ])
    .await?;
    Ok(scene)
}

const RUNNING: &str =
    "SELECT count(*) FROM system.jobs WHERE table_name = 'v' AND state = 'running'";

async fn signals() -> Outcome<()> {
    // Within its grace a job ends by itself.
    let scene = slow(50).await?;
    let mut daemon = keep(&scene, &["--grace", "10s"])?;
    until(&scene, RUNNING, 1).await?;
    daemon.terminate().await?;
    daemon.until(&["1 job(s) may go on for 10.000 s"]).await?;
    scene.expect("SELECT count(*) FROM v", 20).await?;
    let left = scene.own_files("serve-refresh")?;
    if left.iter().any(|file| !file.ends_with("heartbeat.json")) {
        return Err(format!("it left {left:?}").into());
    }

    // After that it is cancelled, and its view is left as it was.
    let scene = slow(400).await?;
    let mut daemon = keep(&scene, &["--grace", "100ms"])?;
    until(&scene, RUNNING, 1).await?;
    daemon.signal("INT")?;
    daemon.until(&["cancelling job '"]).await?;
    let status = daemon.end().await?;
    if status.code() != Some(0) {
        return Err(format!("{status}: {:#?}", daemon.said()).into());
    }
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE table_name = 'v' AND state = 'cancelled'",
            1,
        )
        .await?;

    // A second signal does not wait.
    let mut daemon = keep(&scene, &[])?;
    until(&scene, RUNNING, 1).await?;
    daemon.signal("TERM")?;
    daemon.until(&["stopping"]).await?;
    daemon.signal("TERM")?;
    match daemon.end().await?.code() {
        Some(143) => Ok(()),
        other => Err(format!("{other:?}: {:#?}", daemon.said()).into()),
    }
}

async fn killed() -> Outcome<()> {
    let scene = slow(40).await?;
    scene.run("REFRESH MATERIALIZED VIEW v").await?;
    scene
        .run("INSERT INTO t SELECT value AS id FROM generate_series(21, 40)")
        .await?;
    let mut daemon = keep(&scene, &[])?;
    until(&scene, RUNNING, 1).await?;
    daemon.kill()?;
    until(
        &scene,
        "SELECT count(*) FROM system.jobs WHERE state = 'interrupted'",
        1,
    )
    .await?;
    // A long lag: it is gone on with because it was interrupted.
    scene
        .run("ALTER MATERIALIZED VIEW v SET (target_lag = '1 day')")
        .await?;
    let mut daemon = keep(&scene, &[])?;
    daemon
        .until(&["refreshed v: incremental, 20 rows inserted"])
        .await?;
    scene.expect("SELECT count(*) FROM v", 40).await?;
    scene
        .expect("SELECT count(*) FROM system.jobs WHERE state = 'done'", 2)
        .await?;
    scene.expect("SELECT count(*) FROM system.jobs", 2).await?;
    daemon.terminate().await
}

async fn two_of_them() -> Outcome<()> {
    let scene = Scene::new(&[
        "CREATE TABLE t (id BIGINT)",
        "INSERT INTO t VALUES (1)",
        "CREATE MATERIALIZED VIEW v WITH (target_lag = '1 second') AS SELECT count(*) AS n FROM t",
    ])
    .await?;
    let mut first = keep(&scene, &[])?;
    first.until(&["keeping 1 view(s)"]).await?;
    let mut second = keep(&scene, &[])?;
    second.until(&["waiting: process"]).await?;
    scene.run("INSERT INTO t VALUES (2)").await?;
    until(&scene, "SELECT n FROM v", 2).await?;
    first.kill()?;
    second.until(&["keeping 1 view(s)"]).await?;
    scene.run("INSERT INTO t VALUES (3)").await?;
    until(&scene, "SELECT n FROM v", 3).await?;
    // One that waits ends at once.
    let mut third = keep(&scene, &[])?;
    third.until(&["waiting: process"]).await?;
    third.terminate().await?;
    second.terminate().await
}

async fn jobs_of_others() -> Outcome<()> {
    let scene = slow(100).await?;
    let mut other = scene.shell.start(&["REFRESH MATERIALIZED VIEW v FULL"])?;
    until(&scene, RUNNING, 1).await?;
    let mut daemon = keep(&scene, &[])?;
    daemon.until(&["waiting for job '", "works on v"]).await?;
    if !other.wait()?.success() {
        return Err("the refresh of the other process failed".into());
    }
    until(&scene, "SELECT count(*) FROM v", 20).await?;
    scene.run("INSERT INTO t VALUES (21)").await?;
    until(&scene, "SELECT count(*) FROM v", 21).await?;
    // What the other had done was not done again.
    if scene.all_calls()? > 22 {
        return Err(format!("{} calls", scene.all_calls()?).into());
    }
    scene
        .expect("SELECT failures FROM system.materialized_views", 0)
        .await?;
    daemon.terminate().await
}

async fn once() -> Outcome<()> {
    let scene = Scene::new(&[
        "CREATE TABLE t (id BIGINT, x INT)",
        "INSERT INTO t VALUES (1, 10), (2, 20)",
        "CREATE MATERIALIZED VIEW a WITH (target_lag = 'downstream') AS SELECT id, x FROM t",
        "CREATE MATERIALIZED VIEW b WITH (target_lag = 'downstream') AS SELECT id, x FROM t",
        "CREATE MATERIALIZED VIEW c WITH (target_lag = '1 hour') AS SELECT a.id, a.x - b.x AS d FROM a JOIN b ON a.id = b.id",
        "CREATE MATERIALIZED VIEW by_hand AS SELECT id FROM c",
        "INSERT INTO t VALUES (3, 30)",
        "UPDATE t SET x = 11 WHERE id = 1",
    ])
    .await?;
    let run = async |arguments: &[&str]| -> Outcome<(Option<i32>, Vec<String>)> {
        let mut daemon = keep(&scene, arguments)?;
        let status = daemon.end().await?;
        // What it said last is read by another thread.
        tokio::time::sleep(POLL).await;
        Ok((status.code(), daemon.said()))
    };
    // It will be within its lag when this runs again.
    let (code, said) = run(&["--once", "--every", "10m"]).await?;
    if code != Some(0) || !said.is_empty() {
        return Err(format!("{code:?}: {said:#?}").into());
    }
    let (code, said) = run(&["--once", "--jobs", "2"]).await?;
    if code != Some(0) || said.len() != 3 {
        return Err(format!("{code:?}: {said:#?}").into());
    }
    scene.expect("SELECT count(*) FROM c", 3).await?;
    scene
        .expect("SELECT count(*) FROM c WHERE d <> 0", 0)
        .await?;
    scene.expect("SELECT count(*) FROM by_hand", 2).await?;
    let (code, said) = run(&["--once"]).await?;
    if code != Some(0) || !said.is_empty() {
        return Err(format!("{code:?}: {said:#?}").into());
    }
    scene
        .run("CREATE MATERIALIZED VIEW bad WITH (target_lag = '1 hour') AS SELECT fail_if(id, 3) AS id FROM t WITH NO DATA")
        .await?;
    scene.run("INSERT INTO t VALUES (4, 40)").await?;
    let (code, said) = run(&["--once", "--quiet"]).await?;
    if code != Some(1) || said.len() != 1 {
        return Err(format!("{code:?}: {said:#?}").into());
    }
    scene.expect("SELECT count(*) FROM c", 4).await
}
