//! What several jobs share: slots, and the memory of an executor.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::{END, cluster};
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cluster/fair", || block_on(fair())),
        Trial::test("cluster/memory", || block_on(memory())),
        Trial::test("cluster/groups", || block_on(groups())),
    ]
}

/// Values of the second table begin here.
const SECOND: i64 = 1_000_000;

/// Of two equal jobs each gets about half of the slots.
async fn fair() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "4"]]).await?;
    let scene = Scene::on_cluster(&cluster.url(), &[]).await?;
    for (table, first) in [("t", 0), ("u", SECOND)] {
        scene
            .run(&format!(
                "CREATE TABLE {table} WITH (max_rows_per_fragment = 5) AS \
                 SELECT value AS id FROM generate_series({first}, {first} + 399)"
            ))
            .await?;
        scene
            .run(&format!(
                "ALTER TABLE {table} ADD COLUMN y BIGINT AS (count_calls(sleep_ms(id, 20)))"
            ))
            .await?;
    }
    let refresh = |table: &str| {
        let headwater = scene.headwater.clone();
        let statement = format!("REFRESH COLUMN y ON {table}");
        tokio::spawn(async move { headwater.sql(&statement).await.map(drop) })
    };
    let both = [refresh("t"), refresh("u")];
    let started = Instant::now();
    loop {
        let calls = scene.calls()?;
        let of_second = |value: &&String| value.parse::<i64>().is_ok_and(|value| value >= SECOND);
        let second = calls.keys().filter(of_second).count();
        // The first may have begun a little earlier.
        if calls.len() >= 400 {
            let share = second as f64 / calls.len() as f64;
            if !(0.4..=0.6).contains(&share) {
                return Err(format!("{second} of {} rows are of the second", calls.len()).into());
            }
            break;
        }
        if started.elapsed() > END {
            return Err("they take too long".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for refresh in both {
        refresh.await??;
    }
    Ok(())
}

/// Fragments that take no time go to an executor together. Of a group whose others take long the rest comes back, and
/// each row is computed once.
async fn groups() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "1"], &["--slots", "1"]]).await?;
    let scene = Scene::on_cluster(&cluster.url(), &[]).await?;
    scene
        .run(
            "CREATE TABLE t WITH (max_rows_per_fragment = 2) AS \
             SELECT value AS id FROM generate_series(0, 299)",
        )
        .await?;
    // From the first of these on, a fragment takes as long as a group should.
    scene
        .run(
            "ALTER TABLE t ADD COLUMN y BIGINT AS \
             (count_calls(CASE WHEN id < 260 THEN id ELSE sleep_ms(id, 125) END))",
        )
        .await?;
    scene.run("REFRESH COLUMN y ON t").await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y = id", 300)
        .await?;
    match scene.all_calls()? {
        300 => Ok(()),
        calls => Err(format!("{calls} calls for 300 rows").into()),
    }
}

/// A query that needs more memory than an executor has fails, and says so; the executor goes on.
async fn memory() -> Outcome<()> {
    let cluster = cluster(&[&["--slots", "2", "--memory", "2m"]]).await?;
    let scene = Scene::on_cluster(
        &cluster.url(),
        &["CREATE TABLE t AS SELECT value AS id, value % 1000 AS x FROM generate_series(1, 300000)"],
    )
    .await?;
    let large = "SELECT count(*) FROM t a JOIN t b ON a.id = b.id WHERE a.x < b.x + 5";
    match scene.run(large).await {
        Err(error) if error.to_string().contains("Resources exhausted") => {}
        other => return Err(format!("it should not fit: {other:?}").into()),
    }
    scene
        .expect("SELECT count(*) FROM t WHERE x = 7", 300)
        .await?;
    scene
        .expect("SELECT memory FROM system.executors", 2 << 20)
        .await
}
