//! A cluster over an object store: the server, executors and other programs read and write it at once.

use std::time::Instant;

use libtest_mimic::Trial;

use super::{END, ROWS, cluster};
use crate::harness::s3::S3;
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test("cluster/store", || block_on(store()))]
}

/// A column and a view are refreshed by executors while another program commits to the same table.
async fn store() -> Outcome<()> {
    let s3 = S3::start()?;
    let cluster = cluster(&[&["--slots", "1"], &["--slots", "1"]]).await?;
    let rows = ROWS / 2;
    let scene = Scene::at_url_on_cluster(
        &cluster.url(),
        "s3://bucket/shop",
        s3.options(),
        &[
            &format!(
                "CREATE TABLE t WITH (max_rows_per_fragment = 50) AS \
                 SELECT value AS id, value AS x FROM generate_series(1, {rows})"
            ),
            "ALTER TABLE t ADD COLUMN y BIGINT AS (count_calls(sleep_ms(x + 1, 20)))",
            "CREATE MATERIALIZED VIEW v AS SELECT x % 7 AS k, count(*) AS n, sum(y) AS s FROM t GROUP BY x % 7 WITH NO DATA",
        ],
    )
    .await?;
    let headwater = scene.headwater.clone();
    let refresh = "REFRESH COLUMN y ON t WITH (commit_every = 1)";
    let refresh = tokio::spawn(async move { headwater.sql(refresh).await.map(drop) });
    super::until_computed(&scene, 10).await?;
    // A program without the cluster: each of them takes the next version, by a conditional request.
    let mut inserted = 0;
    while !refresh.is_finished() && inserted < 5 {
        let id = rows + inserted + 1;
        let statement = format!("INSERT INTO t (id, x) VALUES ({id}, {id})");
        let ended = scene.shell.run(&[statement])?;
        if ended.code != Some(0) {
            return Err(format!("{ended:?}").into());
        }
        inserted += 1;
    }
    if inserted == 0 {
        return Err("the refresh was through before anything could be inserted".into());
    }
    refresh.await??;
    scene.run("REFRESH COLUMN y ON t").await?;
    let started = Instant::now();
    scene.run("REFRESH MATERIALIZED VIEW v").await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x + 1", 0)
        .await?;
    scene
        .expect("SELECT CAST(sum(n) AS BIGINT) FROM v", rows + inserted)
        .await?;
    let same = "SELECT (SELECT sum(s) FROM v) - (SELECT sum(x + 1) FROM t)";
    scene.expect(same, 0).await?;
    // Nothing was computed twice but what the commits of others made anew, which is nothing.
    let calls = scene.all_calls()? as i64;
    if calls != rows + inserted || started.elapsed() > END {
        return Err(format!("{calls} calls for {} rows", rows + inserted).into());
    }
    Ok(())
}
