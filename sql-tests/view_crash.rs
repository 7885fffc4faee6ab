//! Refreshes of views that are killed at random moments, and several at once: a view holds its old rows or its new
//! ones, never anything between, and the next refresh makes it right.
//!
//! `HEADWATER_SEED` and `HEADWATER_KILLS` choose another run than the ones that run by default.

use std::env;
use std::time::Duration;

use datafusion::arrow::array::AsArray;
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::scene::{Outcome, Scene, block_on};

const SEED: u64 = 20_261_121;
const KILLS: u64 = 10;
const ROWS: i64 = 60;
/// Processes that refresh one view at once.
const AT_ONCE: usize = 3;

/// Views with rows that take their time, with groups, and with a join.
const VIEWS: [(&str, &str); 3] = [
    ("v0", "SELECT id, sleep_ms(count_calls(x), 2) AS y FROM t"),
    (
        "v1",
        "SELECT id % 5 AS g, count(*) AS n, sum(sleep_ms(x, 1)) AS s FROM t GROUP BY id % 5",
    ),
    (
        "v2",
        "SELECT l.id, sleep_ms(r.x, 1) AS x FROM t l JOIN t r ON l.id = r.id + 1",
    ),
];

pub(crate) fn trials() -> Vec<Trial> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let (seed, kills) = (
        number("HEADWATER_SEED").unwrap_or(SEED),
        number("HEADWATER_KILLS").unwrap_or(KILLS),
    );
    vec![
        Trial::test(format!("view_crash/kills_seed_{seed}"), move || {
            block_on(async {
                kills_leave_old_or_new(seed, kills).await.map_err(|error| {
                    format!("HEADWATER_SEED={seed} HEADWATER_KILLS={kills}: {error}").into()
                })
            })
        }),
        Trial::test("view_crash/between_a_stage_and_its_view", || {
            block_on(between_a_stage_and_its_view())
        }),
        Trial::test("view_crash/several_at_once", || block_on(several_at_once())),
        Trial::test("view_crash/a_cascade_in_the_background", || {
            block_on(a_cascade_in_the_background())
        }),
    ]
}

async fn scene() -> Outcome<Scene> {
    let scene = Scene::new(&[&format!(
        "CREATE TABLE t AS SELECT value AS id, value AS x FROM generate_series(1, {ROWS})"
    )])
    .await?;
    for (name, query) in VIEWS {
        scene
            .run(&format!("CREATE MATERIALIZED VIEW {name} AS {query}"))
            .await?;
    }
    Ok(scene)
}

/// What a view holds, or a query gives: the number of rows, and a sum that tells two contents apart.
async fn content(scene: &Scene, rows: &str) -> Outcome<(i64, i64)> {
    let rows = format!("({rows}) AS c(a, b)");
    let count = scene
        .number(&format!("SELECT count(*) FROM {rows}"))
        .await?;
    let sum = scene
        .number(&format!(
            "SELECT coalesce(sum(a * 1000003 + b * 17), 0) FROM {rows}"
        ))
        .await?;
    Ok((count, sum))
}

/// The two numbers of a view's rows that are looked at.
fn columns(name: &str) -> &'static str {
    match name {
        "v1" => "g * 1000 + n, s",
        "v0" => "id, y",
        _ => "id, x",
    }
}

async fn held(scene: &Scene, name: &str) -> Outcome<(i64, i64)> {
    content(scene, &format!("SELECT {} FROM {name}", columns(name))).await
}

async fn wanted(scene: &Scene, name: &str, query: &str) -> Outcome<(i64, i64)> {
    let query = query.replace("count_calls(x)", "x");
    content(
        scene,
        &format!("SELECT {} FROM ({query}) AS q", columns(name)),
    )
    .await
}

async fn kills_leave_old_or_new(seed: u64, kills: u64) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let scene = scene().await?;
    for _ in 0..kills {
        let id = random.random_range(1..=ROWS);
        let change = match random.random_range(0..4) {
            0 => format!("DELETE FROM t WHERE id = {id}"),
            1 => format!("INSERT INTO t VALUES ({id}, {})", id * 3),
            2 => format!("UPDATE t SET x = x + 7 WHERE id % 9 = {}", id % 9),
            _ => "OPTIMIZE t".to_string(),
        };
        scene.run(&change).await?;
        let (name, query) = VIEWS[random.random_range(0..VIEWS.len())];
        let old = held(&scene, name).await?;
        let full = ["", " FULL"][random.random_range(0..2)];
        let statement = format!("REFRESH MATERIALIZED VIEW {name}{full}");
        let mut child = scene.shell.start(&[&statement])?;
        tokio::time::sleep(Duration::from_millis(random.random_range(20..400))).await;
        child.kill()?;
        child.wait()?;
        let now = held(&scene, name).await?;
        let new = wanted(&scene, name, query).await?;
        if now != old && now != new {
            return Err(format!(
                "{statement} was killed: {now:?}, neither the old {old:?} nor the new {new:?}"
            )
            .into());
        }
    }
    for (name, query) in VIEWS {
        scene
            .run(&format!("REFRESH MATERIALIZED VIEW {name}"))
            .await?;
        let (now, new) = (
            held(&scene, name).await?,
            wanted(&scene, name, query).await?,
        );
        if now != new {
            return Err(format!("{name}: {now:?} instead of {new:?}").into());
        }
    }
    Ok(())
}

/// A refresh that is killed behind the commit of a stage leaves the view as it was; the next goes on from where the stage is,
/// whatever has changed meanwhile.
async fn between_a_stage_and_its_view() -> Outcome<()> {
    const ROWS_OF: &str = "FROM t JOIN (SELECT id % 40 AS k, sum(x) AS s FROM t GROUP BY id % 40) AS q ON k = id % 40";
    let scene = Scene::new(&[
        &format!(
            "CREATE TABLE t AS SELECT value AS id, value AS x FROM generate_series(1, {ROWS})"
        ),
        &format!("CREATE MATERIALIZED VIEW v AS SELECT id AS g, sleep_ms(s, 10) AS y {ROWS_OF}"),
    ])
    .await?;
    let commits = || -> Outcome<usize> {
        let files = scene.own_files("stages")?;
        Ok(files
            .iter()
            .filter(|file| file.ends_with(".manifest"))
            .count())
    };
    for change in [
        "UPDATE t SET x = x + 1",
        "DELETE FROM t WHERE id % 40 = 7",
        "INSERT INTO t SELECT id + 100 AS id, x FROM t",
    ] {
        scene.run("UPDATE t SET x = x - 3").await?;
        let old = content(&scene, "SELECT g, y FROM v").await?;
        let before = commits()?;
        let mut child = scene.shell.start(&["REFRESH MATERIALIZED VIEW v"])?;
        while commits()? == before {
            if child.try_wait()?.is_some() {
                return Err("it ended before it could be killed".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        child.kill()?;
        child.wait()?;
        let now = content(&scene, "SELECT g, y FROM v").await?;
        if now != old {
            return Err(format!("{change}: {now:?} instead of {old:?}").into());
        }
        scene.run(change).await?;
        scene.run("REFRESH MATERIALIZED VIEW v").await?;
        let now = content(&scene, "SELECT g, y FROM v").await?;
        let wanted = content(&scene, &format!("SELECT id AS g, s AS y {ROWS_OF}")).await?;
        if now != wanted {
            return Err(format!("{change}: {now:?} instead of {wanted:?}").into());
        }
    }
    let full = "SELECT count(*) FROM system.jobs WHERE mode = 'full' AND reason <> 'FIRST_REFRESH'";
    scene.expect(full, 0).await
}

/// One works, the others say who does, or find nothing to do; no row is there twice.
async fn several_at_once() -> Outcome<()> {
    let scene = scene().await?;
    for round in 0..3 {
        scene
            .run(&format!(
                "UPDATE t SET x = x + {round} + 1 WHERE id % 2 = 0"
            ))
            .await?;
        scene
            .run(&format!("INSERT INTO t VALUES ({}, 5)", 1000 + round))
            .await?;
        for (name, query) in VIEWS {
            let statement = format!("REFRESH MATERIALIZED VIEW {name}");
            let children = (0..AT_ONCE)
                .map(|_| scene.shell.start(&[&statement]))
                .collect::<Result<Vec<_>, _>>()?;
            let mut done = 0;
            for child in children {
                let output = child.wait_with_output()?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                match output.status.success() {
                    true => done += 1,
                    false if said.contains("is at work on it") => {}
                    false => return Err(format!("{statement}: {said}").into()),
                }
            }
            if done == 0 {
                return Err(format!("{statement}: nobody did it").into());
            }
            let (now, new) = (
                held(&scene, name).await?,
                wanted(&scene, name, query).await?,
            );
            if now != new {
                return Err(format!("{statement}: {now:?} instead of {new:?}").into());
            }
        }
    }
    Ok(())
}

/// A cascade whose process is killed while it refreshes what comes first is gone on with as a whole.
async fn a_cascade_in_the_background() -> Outcome<()> {
    let scene = Scene::new(&[
        "CREATE TABLE t AS SELECT value AS id FROM generate_series(1, 20)",
        "CREATE MATERIALIZED VIEW first AS SELECT sleep_ms(id, 50) AS id FROM t WITH NO DATA",
        "CREATE MATERIALIZED VIEW last AS SELECT count(*) AS n FROM first WITH NO DATA",
    ])
    .await?;
    let statement = "REFRESH MATERIALIZED VIEW last CASCADE ASYNC";
    let mut child = scene.shell.start(&[statement])?;
    let both = "SELECT count(*) FROM system.jobs WHERE state = 'running'";
    while scene.number(both).await? < 2 {
        if child.try_wait()?.is_some() {
            return Err("it ended before it was killed".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill()?;
    child.wait()?;
    let interrupted = "SELECT count(*) FROM system.jobs WHERE state = 'interrupted'";
    scene.expect(interrupted, 2).await?;
    let job = "SELECT job_id FROM system.jobs WHERE table_name = 'last'";
    let mut id = String::new();
    for batch in scene.run(job).await? {
        if batch.num_rows() > 0 {
            id = batch.column(0).as_string::<i32>().value(0).to_string();
        }
    }
    scene.run(&format!("RESUME JOB '{id}'")).await?;
    scene.expect("SELECT n FROM last", 20).await?;
    let done = "SELECT count(*) FROM system.jobs WHERE state = 'done'";
    scene.expect(done, 2).await
}
