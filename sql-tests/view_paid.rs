//! Calls that a view's refresh has paid for are not lost when it is killed, cancelled or fails: the next one takes their
//! results, where they are still right.

use std::process::Command;
use std::time::Duration;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use libtest_mimic::Trial;

use crate::harness::scene::{Outcome, Scene, block_on};

const ROWS: i64 = 240;
/// Milliseconds that a row takes.
const CALL: i64 = 5;
/// Rows whose results a killed process may lose: what it computed since its last checkpoint, and what it was writing down.
/// Each of four workers at most; late ones on a busy machine included.
const LOST: i64 = 4 * 2 * 60 / CALL;
/// Ends of a statement that make it write checkpoints often.
const OFTEN: &str = "WITH (checkpoint_interval = 0.06)";

/// The trials.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("view_paid/a_first_fill_goes_on", || {
            block_on(a_first_fill_goes_on())
        }),
        Trial::test("view_paid/full_goes_on_with_its_own_job_only", || {
            block_on(full_goes_on_with_its_own_job_only())
        }),
        Trial::test("view_paid/ctrl_c_keeps_what_is_done", || {
            block_on(ctrl_c_keeps_what_is_done())
        }),
        Trial::test("view_paid/a_failure_keeps_what_is_done", || {
            block_on(a_failure_keeps_what_is_done())
        }),
        Trial::test("view_paid/calls_below_a_group_go_on", || {
            block_on(calls_below_a_group_go_on())
        }),
        Trial::test("view_paid/explain_says_what_calls_took", || {
            block_on(explain_says_what_calls_took())
        }),
        Trial::test("view_paid/another_definition_takes_nothing", || {
            block_on(another_definition_takes_nothing())
        }),
    ]
}

fn query() -> String {
    format!("SELECT id, note, count_calls(sleep_ms(x, {CALL})) AS y FROM t")
}

async fn scene() -> Outcome<Scene> {
    Scene::new(&[
        &format!(
            "CREATE TABLE t AS SELECT value AS id, value AS x, 'a' AS note FROM generate_series(1, {ROWS})"
        ),
        &format!("CREATE MATERIALIZED VIEW v AS {} WITH NO DATA", query()),
    ])
    .await
}

/// Starts a statement and kills it after some more calls.
async fn kill_after(scene: &Scene, statement: &str, calls: usize) -> Outcome<()> {
    let before = scene.all_calls()?;
    let mut child = scene.shell.start(&[statement])?;
    while scene.all_calls()? < before + calls {
        if child.try_wait()?.is_some() {
            return Err(format!("{statement} ended before it could be killed").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

async fn run_elsewhere(scene: &Scene, statement: &str) -> Outcome<()> {
    let ended = scene.shell.run(&[statement])?;
    match ended.code {
        Some(0) => Ok(()),
        _ => Err(format!("{statement}: {}", ended.stderr).into()),
    }
}

/// Fails unless the view is as its query, and nothing is left but what is committed.
async fn check(scene: &Scene) -> Outcome<()> {
    scene
        .expect(
            "SELECT count(*) FROM t FULL JOIN v ON t.id = v.id WHERE (v.y IS DISTINCT FROM t.x) OR (v.note IS DISTINCT FROM t.note)",
            0,
        )
        .await?;
    for folder in ["staged", "active-jobs"] {
        let left = scene.own_files(folder)?;
        if !left.is_empty() {
            return Err(format!("left: {left:?}").into());
        }
    }
    Ok(())
}

fn check_calls(scene: &Scene, least: i64, more: i64) -> Outcome<()> {
    let calls = scene.all_calls()? as i64;
    match (least..=least + more).contains(&calls) {
        true => Ok(()),
        false => Err(format!("{calls} calls instead of {least} and at most {more} more").into()),
    }
}

/// The first fill is killed twice; another process goes on, while rows changed.
async fn a_first_fill_goes_on() -> Outcome<()> {
    let scene = scene().await?;
    let statement = format!("REFRESH MATERIALIZED VIEW v {OFTEN}");
    kill_after(&scene, &statement, 100).await?;
    if scene.own_files("staged")?.is_empty() {
        return Err("no checkpoint was written".into());
    }
    // Another column: no value is lost. What the function reads, a new row, and one that is gone.
    for change in [
        "UPDATE t SET note = 'b' WHERE id <= 20",
        "UPDATE t SET x = x + 1000 WHERE id <= 5",
        "INSERT INTO t VALUES (1001, 1001, 'c')",
        "DELETE FROM t WHERE id = 6",
        "OPTIMIZE t",
    ] {
        scene.run(change).await?;
    }
    kill_after(&scene, &statement, 60).await?;
    run_elsewhere(&scene, &statement).await?;
    check_calls(&scene, ROWS, 6 + 2 * LOST)?;
    scene
        .expect("SELECT CAST(rows_reused > 80 AS INT) FROM system.jobs", 1)
        .await?;
    scene
        .expect("SELECT rows_reused + rows_computed FROM system.jobs", ROWS)
        .await?;
    check(&scene).await
}

/// FULL calls for every row again, but not for those that the same job has computed before it was killed.
async fn full_goes_on_with_its_own_job_only() -> Outcome<()> {
    let scene = scene().await?;
    scene.run("REFRESH MATERIALIZED VIEW v").await?;
    check_calls(&scene, ROWS, 0)?;
    let full = format!("REFRESH MATERIALIZED VIEW v FULL {OFTEN}");
    kill_after(&scene, &full, 150).await?;
    run_elsewhere(&scene, &full).await?;
    check_calls(&scene, 2 * ROWS, LOST)?;
    check(&scene).await?;
    let before = scene.all_calls()? as i64;
    kill_after(&scene, &full, 150).await?;
    let killed = scene.all_calls()? as i64;
    if killed - before >= ROWS {
        return Err("it was killed too late".into());
    }
    // Another job: all of it again.
    scene
        .run("REFRESH MATERIALIZED VIEW CONCURRENTLY v FULL")
        .await?;
    check_calls(&scene, killed + ROWS, 0)?;
    check(&scene).await
}

/// Ctrl-C ends it as a job that was cancelled, and loses nothing.
async fn ctrl_c_keeps_what_is_done() -> Outcome<()> {
    let scene = scene().await?;
    let child = scene.shell.start(&["REFRESH MATERIALIZED VIEW v"])?;
    while scene.all_calls()? < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !interrupt.success() || output.status.code() != Some(130) || !said.contains("cancelled") {
        return Err(format!("{}: {said}", output.status).into());
    }
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE state = 'cancelled'",
            1,
        )
        .await?;
    scene.run("REFRESH MATERIALIZED VIEW v").await?;
    check_calls(&scene, ROWS, 0)?;
    check(&scene).await
}

/// A row that fails fails the refresh; others need not be called for again but those that were evaluated with it.
async fn a_failure_keeps_what_is_done() -> Outcome<()> {
    let scene = Scene::new(&[
        &format!(
            "CREATE TABLE t AS SELECT value AS id, value AS x, 'a' AS note FROM generate_series(1, {ROWS})"
        ),
        &format!(
            "CREATE MATERIALIZED VIEW v AS SELECT id, note, fail_if(count_calls(sleep_ms(x, {CALL})), 200) AS y FROM t WITH NO DATA"
        ),
    ])
    .await?;
    let error = match scene.run("REFRESH MATERIALIZED VIEW v").await {
        Ok(_) => return Err("it did not fail".into()),
        Err(error) => error.to_string(),
    };
    if !error.contains("column 'y' of materialized view 'v', row id 199 of 't'") {
        return Err(error.into());
    }
    scene.run("UPDATE t SET x = 201 WHERE id = 200").await?;
    let before = scene.all_calls()? as i64;
    scene.run("REFRESH MATERIALIZED VIEW v").await?;
    let calls = scene.all_calls()? as i64 - before;
    if calls > ROWS - 100 {
        return Err(format!("{calls} calls again").into());
    }
    check(&scene).await
}

/// Calls whose results are stored in a stage are kept like those of a view's own columns.
async fn calls_below_a_group_go_on() -> Outcome<()> {
    let scene = Scene::new(&[
        &format!("CREATE TABLE t AS SELECT value AS id, value AS x FROM generate_series(1, {ROWS})"),
        &format!(
            "CREATE MATERIALIZED VIEW v AS SELECT g, max(y) AS y FROM \
             (SELECT id % 7 AS g, count_calls(sleep_ms(x, {CALL})) AS y FROM t) GROUP BY g WITH NO DATA"
        ),
    ])
    .await?;
    let statement = format!("REFRESH MATERIALIZED VIEW v {OFTEN}");
    kill_after(&scene, &statement, 150).await?;
    run_elsewhere(&scene, &statement).await?;
    check_calls(&scene, ROWS, LOST)?;
    scene
        .expect("SELECT sum(y) FROM v", (0..7).map(|g| ROWS - g).sum())
        .await?;
    match scene.own_files("staged")?.as_slice() {
        [] => Ok(()),
        left => Err(format!("left: {left:?}").into()),
    }
}

/// What was staged for another definition is not used.
async fn another_definition_takes_nothing() -> Outcome<()> {
    let scene = scene().await?;
    let statement = format!("REFRESH MATERIALIZED VIEW v {OFTEN}");
    kill_after(&scene, &statement, 100).await?;
    let before = scene.all_calls()? as i64;
    scene
        .run("ALTER MATERIALIZED VIEW v AS SELECT id, note, count_calls(x + 0) AS y FROM t")
        .await?;
    scene.run("REFRESH MATERIALIZED VIEW v").await?;
    check_calls(&scene, before + ROWS, 0)?;
    check(&scene).await
}

/// EXPLAIN of a refresh knows what calls took in earlier jobs, of views and of columns.
async fn explain_says_what_calls_took() -> Outcome<()> {
    let scene = Scene::new(&[
        "CREATE TABLE t AS SELECT value AS id, value AS x FROM generate_series(1, 100)",
        "CREATE MATERIALIZED VIEW v AS SELECT id, sleep_ms(x, 3) AS y FROM t WITH NO DATA",
    ])
    .await?;
    let explain = async |item: &str| -> Outcome<Vec<String>> {
        let mut found = Vec::new();
        for batch in scene.run("EXPLAIN REFRESH MATERIALIZED VIEW v").await? {
            let texts = batch
                .columns()
                .iter()
                .map(|column| cast(column, &DataType::Utf8));
            let texts = texts.collect::<Result<Vec<_>, _>>()?;
            let rows = texts[0]
                .as_string::<i32>()
                .iter()
                .zip(texts[1].as_string::<i32>());
            let values = rows.filter(|(name, _)| *name == Some(item));
            found.extend(values.filter_map(|(_, value)| Some(value?.to_string())));
        }
        Ok(found)
    };
    let before = explain("function").await?;
    if before != ["sleep_ms: no job has measured its calls yet"] {
        return Err(format!("{before:?}").into());
    }
    for (refresh, calls) in [
        ("REFRESH MATERIALIZED VIEW v", 100),
        ("ALTER TABLE t ADD COLUMN z AS (sleep_ms(x + 1, 3))", 0),
        ("REFRESH COLUMN z ON t WHERE id <= 40", 40),
    ] {
        scene.run(refresh).await?;
        if calls == 0 {
            continue;
        }
        let said = explain("function").await?.concat();
        let seconds = said
            .strip_prefix("sleep_ms: ")
            .and_then(|said| said.split(' ').next()?.parse::<f64>().ok());
        let is_right = seconds.is_some_and(|seconds| (0.003..0.1).contains(&seconds));
        if !is_right || !said.contains(&format!("from {calls} calls of job 2")) {
            return Err(said.into());
        }
    }
    scene.run("UPDATE t SET x = x + 1 WHERE id <= 10").await?;
    let costs = [
        explain("cost of changes").await?,
        explain("cost of all").await?,
    ]
    .concat();
    let costs: Vec<f64> = costs.iter().filter_map(|cost| cost.parse().ok()).collect();
    match costs[..] {
        // 10 and 100 calls of 3 milliseconds, in units of 50 nanoseconds.
        [changes, all] if changes > 500_000.0 && all > 9.0 * changes && all < 11.0 * changes => {
            Ok(())
        }
        _ => Err(format!("{costs:?}").into()),
    }
}
