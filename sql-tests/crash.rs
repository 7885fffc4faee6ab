//! Refreshes that are killed at random moments lose nothing that is finished.
//!
//! A process refreshes a column whose function takes its time and counts its calls. It is killed, another
//! one goes on, and so on; between two of them the table may change. In the end every value is right,
//! few rows were computed twice, and nothing is left behind.
//!
//! `HEADWATER_SEED` and `HEADWATER_KILLS` choose another run than the ones that run by default.

use std::env;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::scene::{Outcome, Scene, block_on};

const SEEDS: [u64; 2] = [3, 20261121];
const KILLS: u64 = 12;
/// Most kills of one table.
const KILLS_OF_ONE: u64 = 8;
/// Milliseconds after which a process that computes has written it down.
const CHECKPOINT: u64 = 60;
/// Milliseconds that a row takes.
const CALL: u64 = 5;
const ROWS: i64 = 240;

/// A trial for each seed.
pub fn trials() -> Vec<Trial> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let kills = number("HEADWATER_KILLS").unwrap_or(KILLS);
    let seeds = match number("HEADWATER_SEED") {
        Some(seed) => vec![seed],
        None => SEEDS.to_vec(),
    };
    let named = [
        Trial::test("crash/a_full_refresh_goes_on", || {
            block_on(a_full_refresh_goes_on())
        }),
        Trial::test("crash/another_statement_takes_the_work_over", || {
            block_on(another_statement_takes_the_work_over())
        }),
        Trial::test("crash/ctrl_c_keeps_what_is_done", || {
            block_on(ctrl_c_keeps_what_is_done())
        }),
    ];
    let random = seeds.into_iter().map(|seed| {
        Trial::test(format!("crash/kills_seed_{seed}"), move || {
            block_on(async {
                kills_lose_nothing(seed, kills).await.map_err(|error| {
                    format!("HEADWATER_SEED={seed} HEADWATER_KILLS={kills}: {error}").into()
                })
            })
        })
    });
    random.chain(named).collect()
}

async fn kills_lose_nothing(seed: u64, kills: u64) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut left = kills;
    while left > 0 {
        left = left.saturating_sub(one_table(&mut random, left).await?);
    }
    Ok(())
}

/// Fills a column in spite of at most `most` kills, and says how many there were, but at least 1.
async fn one_table(random: &mut StdRng, most: u64) -> Outcome<u64> {
    let scene = slow_table().await?;
    let every = ["1", "2", "'all'"][random.random_range(0..3)];
    let full = if random.random_bool(0.3) { "FULL " } else { "" };
    let workers = random.random_range(1..=4);
    let statement = format!(
        "REFRESH COLUMN y ON t {full}WITH (checkpoint_interval = {}, commit_every = {every}, concurrency = {workers})",
        CHECKPOINT as f64 / 1e3,
    );
    let mut kills = 0;
    // Rows whose inputs changed after they may have been computed.
    let mut changed: i64 = 0;
    let mut next_id = ROWS + 1;
    loop {
        let mut child = scene.shell.start(&[&statement])?;
        if kills == most.min(KILLS_OF_ONE) {
            let status = child.wait()?;
            check_status(child, status)?;
            break;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..500))).await;
        if let Some(status) = child.try_wait()? {
            check_status(child, status)?;
            break;
        }
        child.kill()?;
        child.wait()?;
        kills += 1;
        let id = random.random_range(1..=ROWS);
        let change = match random.random_range(0..6) {
            0 => "OPTIMIZE t WITH (target_rows_per_fragment = 100)".to_string(),
            1 => {
                changed += 1;
                format!("UPDATE t SET x = x + 1000 WHERE id = {id}")
            }
            2 => {
                (next_id, changed) = (next_id + 1, changed + 1);
                format!("INSERT INTO t (id, x) VALUES ({next_id}, {next_id})")
            }
            3 => format!("DELETE FROM t WHERE id = {id}"),
            _ => continue,
        };
        scene.run(&change).await?;
    }
    // What was added meanwhile may belong to the next refresh.
    scene.run("REFRESH COLUMN y ON t").await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    // Each worker of a killed process loses what it computed since its last checkpoint, and what it was
    // writing down; on a busy machine it may be late with that.
    let twice = scene.all_calls()? as i64 - ROWS - changed;
    let lost = workers * 2 * (CHECKPOINT / CALL) as i64;
    if twice > kills as i64 * lost {
        return Err(format!("{twice} calls too many after {kills} kills of {statement}").into());
    }
    for folder in ["staged", "active-jobs"] {
        let mut left = scene.own_files(folder)?;
        // One that was killed between its marker and its job is none; the marker goes later.
        left.retain(|path| {
            let id = Path::new(path).file_name().unwrap_or_default();
            let job = scene.database().join("_headwater/jobs").join(id);
            folder != "active-jobs" || job.exists()
        });
        if !left.is_empty() {
            return Err(format!("{statement} left {left:?}").into());
        }
    }
    scene
        .expect("SELECT count(*) FROM system.jobs WHERE state <> 'done'", 0)
        .await?;
    Ok(kills.max(1))
}

/// A table of which a fragment takes 200 ms.
async fn slow_table() -> Outcome<Scene> {
    Scene::new(&[
        &format!(
            "CREATE TABLE t WITH (max_rows_per_fragment = 40) AS \
             SELECT value AS id, value AS x FROM generate_series(1, {ROWS})"
        ),
        &format!("ALTER TABLE t ADD COLUMN y BIGINT AS (count_calls(sleep_ms(x, {CALL})))"),
    ])
    .await
}

/// Starts a refresh and kills it when `is_time`.
async fn kill_when(
    scene: &Scene,
    statement: &str,
    is_time: impl AsyncFn(&Scene) -> Outcome<bool>,
) -> Outcome<()> {
    let mut child = scene.shell.start(&[statement])?;
    while !is_time(scene).await? {
        if let Some(status) = child.try_wait()? {
            check_status(child, status)?;
            return Err("the refresh ended before it could be killed".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// FULL computes every row once, however often it is interrupted: what is committed stays.
async fn a_full_refresh_goes_on() -> Outcome<()> {
    let scene = slow_table().await?;
    let full = "REFRESH COLUMN y ON t FULL WITH (commit_every = 1, concurrency = 1)";
    kill_when(&scene, full, async |scene| {
        Ok(scene.number("SELECT count(y) FROM t").await? >= 80)
    })
    .await?;
    let child = scene.shell.start(&[full])?.wait_with_output()?;
    if !child.status.success() {
        return Err(String::from_utf8_lossy(&child.stderr).into_owned().into());
    }
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    // One fragment was on its way.
    match scene.all_calls()? as i64 - ROWS {
        0..=40 => Ok(()),
        twice => Err(format!("{twice} calls too many").into()),
    }
}

/// What a killed job has staged serves whatever statement comes next, and its own end is written down.
async fn another_statement_takes_the_work_over() -> Outcome<()> {
    let scene = slow_table().await?;
    let first = "REFRESH COLUMN y ON t WITH (commit_every = 'all', checkpoint_interval = 0.05)";
    kill_when(&scene, first, async |scene| Ok(scene.all_calls()? > 120)).await?;
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE state = 'interrupted'",
            1,
        )
        .await?;
    scene.run("REFRESH COLUMN y ON t WHERE id <= 40").await?;
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE state = 'failed' AND message LIKE '%works on it now'",
            1,
        )
        .await?;
    scene.run("REFRESH COLUMN y ON t").await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    scene
        .expect(
            "SELECT CAST(max(rows_reused) > 0 AS INT) FROM system.jobs WHERE state = 'done'",
            1,
        )
        .await?;
    // WHERE computes the rows that it names again.
    match scene.all_calls()? as i64 - ROWS - 40 {
        ..=40 => Ok(()),
        twice => Err(format!("{twice} calls too many").into()),
    }
}

/// Ctrl-C ends the refresh soon, as a job that was cancelled, and what it has computed is there.
async fn ctrl_c_keeps_what_is_done() -> Outcome<()> {
    let scene = slow_table().await?;
    let statement = "REFRESH COLUMN y ON t WITH (concurrency = 2)";
    let child = scene.shell.start(&[statement])?;
    while scene.all_calls()? < 100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pressed = Instant::now();
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()?;
    if !interrupt.success() {
        return Err("kill -INT failed".into());
    }
    let output = child.wait_with_output()?;
    let (took, said) = (
        pressed.elapsed(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    if output.status.code() != Some(130) || !said.contains("cancelled") {
        return Err(format!("{}: {said}", output.status).into());
    }
    // Within a second; the rest is for a busy machine.
    if took > Duration::from_secs(5) {
        return Err(format!("it took {took:?}").into());
    }
    let computed = scene.all_calls()? as i64;
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE state = 'cancelled'",
            1,
        )
        .await?;
    scene.run("REFRESH COLUMN y ON t").await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    match scene.all_calls()? as i64 - ROWS {
        0 => Ok(()),
        twice => Err(format!("{twice} of {computed} calls were made again").into()),
    }
}

/// Fails with what a process said if it failed.
fn check_status(mut child: Child, status: ExitStatus) -> Outcome<()> {
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.read_to_string(&mut said)?;
    }
    Err(format!("a refresh ended with {status}: {said}").into())
}
