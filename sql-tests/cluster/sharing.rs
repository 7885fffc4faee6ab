//! What several jobs share: slots, and the memory of an executor.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::{END, cluster};
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cluster/fair", || block_on(fair())),
        Trial::test("cluster/memory", || block_on(memory())),
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
