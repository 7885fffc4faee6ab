//! Calls of users' functions in views, made by executors.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{END, ROWS, cancel, cluster, fill, kills, no_more_than, nothing_left, until_computed};
use crate::harness::cluster::Cluster;
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cluster/view_calls_killed", || block_on(calls_killed())),
        Trial::test("cluster/view_pools", || block_on(pools())),
        Trial::test("cluster/view_cancelled", || block_on(cancelled())),
    ]
}

const REFRESH: &str = "REFRESH MATERIALIZED VIEW v";

/// A view each of whose rows takes `milliseconds`, over a table of [`ROWS`] rows.
async fn slow(cluster: &Cluster, milliseconds: u64) -> Outcome<Scene> {
    let scene = Scene::on_cluster(&cluster.url(), &[]).await?;
    fill(&scene, 50).await?;
    let view = format!(
        "CREATE MATERIALIZED VIEW v AS SELECT id, x, count_calls(sleep_ms(x + 1, {milliseconds})) AS y FROM t WITH NO DATA"
    );
    scene.run(&view).await?;
    Ok(scene)
}

async fn is_right(scene: &Scene) -> Outcome<()> {
    let wrong = "SELECT count(*) FROM v WHERE y IS NULL OR y <> x + 1";
    scene.expect(wrong, 0).await?;
    scene.expect("SELECT count(*) FROM v", ROWS).await
}

/// Executors are killed at random moments: only the calls that they were making are made again.
async fn calls_killed() -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(20_261_125);
    let cluster = cluster(&[&["--slots", "2"], &["--slots", "2"]]).await?;
    for kill in 0..kills() {
        let scene = slow(&cluster, 20).await?;
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
        // Two pieces were on their way in the executor, of about a second each.
        no_more_than(&scene, 110)?;
        nothing_left(&scene).await?;
    }
    Ok(())
}

/// A view's work for a pool runs where its label is, or not at all.
async fn pools() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "1"]]).await?;
    let scene = slow(&cluster, 1).await?;
    let refused = format!("{REFRESH} WITH (pool = 'gpu')");
    match scene.run(&refused).await {
        Err(error) if error.to_string().contains("1 with no label") => {}
        other => return Err(format!("it was not refused: {other:?}").into()),
    }
    let headwater = scene.headwater.clone();
    let waiting = format!("{REFRESH} WITH (pool = 'gpu', admission = 'wait')");
    let refresh = tokio::spawn(async move { headwater.sql(&waiting).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    if scene.all_calls()? > 0 {
        return Err("work for another pool was done".into());
    }
    cluster.add_executor(&["--slots", "1", "--label", "gpu"])?;
    // Whoever has no label is not asked.
    cluster.signal(0, "KILL")?;
    refresh.await??;
    is_right(&scene).await?;
    no_more_than(&scene, 0)
}

/// CANCEL reaches the calls within two seconds, and what was computed is not computed again.
async fn cancelled() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "2"]]).await?;
    let scene = slow(&cluster, 20).await?;
    cancel(&scene, REFRESH, 60).await?;
    scene.run(REFRESH).await?;
    is_right(&scene).await?;
    no_more_than(&scene, 0)
}
