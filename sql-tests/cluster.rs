//! A cluster of processes: what a job does when executors end, or stand still.
//!
//! Each trial has a cluster of its own, whose scheduler is in this process or in a server's. `HEADWATER_KILLS` says how
//! often each trial of kills kills one; two times if nothing is said.

mod processes;
mod sharing;
mod store;
mod tls;
mod views;

use std::env;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::cluster::Cluster;
use crate::harness::scene::{Outcome, Scene, block_on};

/// After this silence an executor counts as lost.
const EXECUTOR_TIMEOUT: Duration = Duration::from_secs(6);
/// However a cluster breaks, a statement ends within this time.
const END: Duration = Duration::from_secs(60);
/// Rows of the table, in eight fragments.
const ROWS: i64 = 400;
const REFRESH: &str = "REFRESH COLUMN y ON t";

/// All trials.
pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cluster/executors_killed", || block_on(executors_killed())),
        Trial::test("cluster/all_executors_lost", || {
            block_on(all_executors_lost())
        }),
        Trial::test("cluster/silent_executor", || block_on(silent_executor())),
        Trial::test("cluster/pools", || block_on(pools())),
        Trial::test("cluster/explain", || block_on(explain())),
        Trial::test("cluster/cancelled", || block_on(cancelled())),
    ]
    .into_iter()
    .chain(processes::trials())
    .chain(sharing::trials())
    .chain(store::trials())
    .chain(tls::trials())
    .chain(views::trials())
    .collect()
}

/// EXPLAIN says what of a query runs on the cluster.
async fn explain() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "2"]]).await?;
    let scene = Scene::on_cluster(&cluster.url(), &[]).await?;
    fill(&scene, 50).await?;
    for explain in ["EXPLAIN FORMAT INDENT", "EXPLAIN ANALYZE"] {
        for (query, is_sent) in [
            ("SELECT x % 3, sum(x) FROM t GROUP BY 1", true),
            ("SELECT 1", false),
        ] {
            let shown = scene.headwater.sql(&format!("{explain} {query}")).await?;
            let shown = shown.to_string().await?;
            let sent = shown.split_once("ClusterExec").map(|(_, below)| below);
            if sent.is_some_and(|below| below.contains("LanceScanExec")) != is_sent {
                return Err(shown.into());
            }
        }
    }
    Ok(())
}

async fn cluster(executors: &[&[&str]]) -> Outcome<Cluster> {
    let start = || Cluster::start(EXECUTOR_TIMEOUT);
    let cluster = tokio::task::spawn_blocking(start).await??;
    for arguments in executors {
        cluster.add_executor(arguments)?;
    }
    Ok(cluster)
}

/// A table with a column that takes `milliseconds` a row and counts its calls.
async fn slow(cluster: &Cluster, milliseconds: u64) -> Outcome<Scene> {
    let scene = Scene::on_cluster(&cluster.url(), &[]).await?;
    fill(&scene, 50).await?;
    scene.run(&column(milliseconds)).await?;
    Ok(scene)
}

/// The same column as a statement.
fn column(milliseconds: u64) -> String {
    format!("ALTER TABLE t ADD COLUMN y BIGINT AS (count_calls(sleep_ms(x + 1, {milliseconds})))")
}

/// Makes a table with [`ROWS`] rows in fragments of `each`.
async fn fill(scene: &Scene, each: i64) -> Outcome<()> {
    let statement = format!(
        "CREATE TABLE t WITH (max_rows_per_fragment = {each}) AS \
         SELECT value AS id, value * 2 AS x FROM generate_series(0, {})",
        ROWS - 1
    );
    scene.run(&statement).await?;
    Ok(())
}

/// How often trials of kills kill.
fn kills() -> usize {
    let kills = env::var("HEADWATER_KILLS").ok();
    kills.and_then(|kills| kills.parse().ok()).unwrap_or(2)
}

/// Fails if more than [`ROWS`] rows, and `more` that were on their way, were computed.
fn no_more_than(scene: &Scene, more: usize) -> Outcome<()> {
    match scene.all_calls()? {
        calls if calls <= ROWS as usize + more => Ok(()),
        calls => Err(format!("{calls} calls for {ROWS} rows").into()),
    }
}

/// Fails if anything is left of jobs once VACUUM has run.
async fn nothing_left(scene: &Scene) -> Outcome<()> {
    for table in ["t", "v"] {
        // There is not everywhere a view.
        let _ = scene.run(&format!("VACUUM {table} RETAIN 0 HOURS")).await;
    }
    let left = scene.own_files("staged")?;
    match left.is_empty() {
        true => Ok(()),
        false => Err(format!("VACUUM left {left:?}").into()),
    }
}

/// Waits until so many rows are computed.
async fn until_computed(scene: &Scene, rows: usize) -> Outcome<()> {
    let started = Instant::now();
    while scene.all_calls()? < rows {
        if started.elapsed() > END {
            return Err(format!("{rows} rows were never computed").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn is_right(scene: &Scene) -> Outcome<()> {
    let wrong = "SELECT count(*) FROM t WHERE y IS NULL OR y <> x + 1";
    scene.expect(wrong, 0).await?;
    scene.expect("SELECT count(*) FROM t", ROWS).await
}

/// Executors are killed at random moments, and others take their place: the refresh goes on, and computes again only what
/// was on its way.
async fn executors_killed() -> Outcome<()> {
    let kills = kills();
    let mut random = StdRng::seed_from_u64(20_261_122);
    let cluster = cluster(&[&["--slots", "2"], &["--slots", "2"]]).await?;
    for kill in 0..kills {
        let scene = slow(&cluster, 10).await?;
        let headwater = scene.headwater.clone();
        let refresh = tokio::spawn(async move { headwater.sql(REFRESH).await.map(drop) });
        until_computed(&scene, random.random_range(1..300)).await?;
        cluster.signal(kill, "KILL")?;
        let started = Instant::now();
        cluster.add_executor(&["--slots", "2"])?;
        refresh.await??;
        if started.elapsed() > END {
            return Err(format!("it took {:?}", started.elapsed()).into());
        }
        is_right(&scene).await?;
        // Two units were on their way in the executor, of fifty rows each.
        no_more_than(&scene, 100)?;
        nothing_left(&scene).await?;
    }
    Ok(())
}

/// Without executors a job fails, soon and with its reason; with a new one it goes on.
async fn all_executors_lost() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "1"]]).await?;
    let scene = slow(&cluster, 20).await?;
    let headwater = scene.headwater.clone();
    let refresh = tokio::spawn(async move { headwater.sql(REFRESH).await.map(drop) });
    until_computed(&scene, 70).await?;
    cluster.signal(0, "KILL")?;
    let started = Instant::now();
    let Err(error) = refresh.await? else {
        return Err("it went on without executors".into());
    };
    if started.elapsed() > END || !error.to_string().contains("no executor") {
        return Err(format!("after {:?}: {error}", started.elapsed()).into());
    }
    let query = scene.run("SELECT count(*) FROM t WHERE x > 3").await;
    match query {
        Err(error) if error.to_string().contains("no executor") => {}
        other => return Err(format!("a query gave {other:?}").into()),
    }
    cluster.add_executor(&["--slots", "4"])?;
    scene.run(REFRESH).await?;
    is_right(&scene).await
}

/// An executor that stands still for longer than the timeout is lost; that it comes back does no harm.
async fn silent_executor() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "2"], &["--slots", "2"]]).await?;
    let scene = slow(&cluster, 10).await?;
    let headwater = scene.headwater.clone();
    let refresh = tokio::spawn(async move { headwater.sql(REFRESH).await.map(drop) });
    until_computed(&scene, 30).await?;
    cluster.signal(0, "STOP")?;
    let started = Instant::now();
    refresh.await??;
    if started.elapsed() > END {
        return Err(format!("it took {:?}", started.elapsed()).into());
    }
    is_right(&scene).await?;
    // It finishes what nobody waits for.
    cluster.signal(0, "CONT")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    is_right(&scene).await?;
    scene.run("UPDATE t SET x = x + 1 WHERE id < 10").await?;
    scene.run(REFRESH).await?;
    is_right(&scene).await
}

/// Work for a pool runs where its label is, or not at all.
async fn pools() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "1"]]).await?;
    let scene = slow(&cluster, 1).await?;
    let refused = scene.run("REFRESH COLUMN y ON t WITH (pool = 'gpu')").await;
    match refused {
        Err(error) if error.to_string().contains("1 with no label") => {}
        other => return Err(format!("it was not refused: {other:?}").into()),
    }
    let late =
        "REFRESH COLUMN y ON t WITH (pool = 'gpu', admission = 'wait', admission_timeout = 1)";
    match scene.run(late).await {
        Err(error) if error.to_string().contains("waited") => {}
        other => return Err(format!("it did not wait: {other:?}").into()),
    }
    let headwater = scene.headwater.clone();
    let waiting = "REFRESH COLUMN y ON t WITH (pool = 'gpu', admission = 'wait')";
    let refresh = tokio::spawn(async move { headwater.sql(waiting).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    if scene.all_calls()? > 0 {
        return Err("work for another pool was done".into());
    }
    cluster.add_executor(&["--slots", "1", "--label", "gpu"])?;
    refresh.await??;
    is_right(&scene).await?;
    scene
        .expect(
            "SELECT count(*) FROM system.executors WHERE label = 'gpu'",
            1,
        )
        .await
}

/// CANCEL reaches executors within two seconds, and what they had computed is kept.
async fn cancelled() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "2"]]).await?;
    let scene = slow(&cluster, 20).await?;
    cancel(&scene, REFRESH, 40).await?;
    scene.run(REFRESH).await?;
    is_right(&scene).await?;
    no_more_than(&scene, 30)
}

/// Cancels a refresh once it has computed so many rows; fails unless executors hear of it within seconds.
async fn cancel(scene: &Scene, refresh: &'static str, rows: usize) -> Outcome<()> {
    let headwater = scene.headwater.clone();
    let refresh = tokio::spawn(async move { headwater.sql(refresh).await.map(drop) });
    until_computed(scene, rows).await?;
    let running = scene.headwater.jobs().running();
    let job = running.first().ok_or("no job runs")?;
    scene.run(&format!("CANCEL JOB '{}'", job.id)).await?;
    let started = Instant::now();
    let Err(error) = refresh.await? else {
        return Err("it was not cancelled".into());
    };
    if started.elapsed() > Duration::from_secs(4) {
        return Err(format!("after {:?}: {error}", started.elapsed()).into());
    }
    let calls = scene.all_calls()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    if scene.all_calls()? != calls {
        return Err("executors went on".into());
    }
    Ok(())
}
