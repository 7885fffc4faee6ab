//! A database in S3: statements, several processes at once, and one that is killed.
//!
//! The store is moto's server, which knows conditional requests. Names and credentials that are wrong are
//! here, too; what else can go wrong with a store is in `faults.rs`.

use std::time::{Duration, Instant};

use headwater::session::Headwater;
use libtest_mimic::Trial;

use crate::harness::s3::S3;
use crate::harness::scene::{Outcome, Scene, block_on};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: usize = 160;
/// Processes that do the same at once.
const CROWD: usize = 3;

/// All trials.
pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("s3/statements", || block_on(statements())),
        Trial::test("s3/processes", || block_on(processes())),
    ]
}

/// One of each kind of statement that does something with the store.
async fn statements() -> Outcome<()> {
    let s3 = S3::start()?;
    let scene = Scene::at_url("s3://bucket/shop", s3.options(), &[]).await?;
    for statement in [
        "CREATE TABLE boxes (id BIGINT, x INT, y INT, area INT GENERATED ALWAYS AS (x * y))",
        "INSERT INTO boxes SELECT value AS id, CAST(value AS INT) AS x, 2 AS y FROM generate_series(1, 100)",
        "REFRESH COLUMN area ON boxes",
        "UPDATE boxes SET y = 5 WHERE id <= 7",
        "REFRESH COLUMN area ON boxes",
    ] {
        scene.run(statement).await?;
    }
    let wrong = "SELECT count(*) FROM boxes WHERE area IS DISTINCT FROM x * y";
    scene.expect(wrong, 0).await?;
    let computed =
        "SELECT CAST(sum(rows_computed) AS BIGINT) FROM system.jobs WHERE state = 'done'";
    scene.expect(computed, 107).await?;
    for statement in [
        "CREATE TAG 'v1' ON boxes",
        "DELETE FROM boxes WHERE id > 90",
        "RESTORE TABLE boxes TO VERSION AS OF 'v1'",
        "INSERT INTO boxes (id, x, y) VALUES (101, 2, 3)",
        "OPTIMIZE boxes",
        "VACUUM boxes RETAIN 0 HOURS",
        "ALTER TABLE boxes RENAME TO crates",
        "REFRESH COLUMN area ON crates",
        "CREATE VIEW large AS SELECT * FROM crates WHERE area > 100",
        // The first file that is named by a URL, and it is written.
        "COPY large TO 's3://bucket/files/large.parquet'",
        "CREATE TABLE copied AS SELECT * FROM 's3://bucket/files/large.parquet'",
    ] {
        scene.run(statement).await?;
    }
    scene.expect(computed, 108).await?;
    scene.expect("SELECT count(*) FROM crates", 101).await?;
    scene.expect("SELECT count(*) FROM large", 50).await?;
    scene.expect("SELECT count(*) FROM copied", 50).await?;
    let direct = "SELECT count(*) FROM 's3://bucket/shop/copied.lance'";
    scene.expect(direct, 50).await?;
    for statement in ["DROP VIEW large", "DROP TABLE copied", "DROP TABLE crates"] {
        scene.run(statement).await?;
    }
    scene
        .expect("SELECT count(*) FROM system.tables", 0)
        .await?;
    wrong_places(&s3).await
}

/// What is wrong with a place is said when it is opened.
async fn wrong_places(s3: &S3) -> Outcome<()> {
    let without = |name: &str| {
        let mut options = s3.options();
        options.remove(name);
        options
    };
    let cases = [
        ("s3://none/shop", s3.options(), "there is no bucket 'none'"),
        ("s3://bucket/shop", without("allow_http"), "allow_http=true"),
    ];
    for (url, options, expected) in cases {
        let builder = Headwater::builder().database(url).storage_options(options);
        let error = builder.build().await.err().ok_or("a wrong place opened")?;
        let said = format!("{error} {}", error.hint().unwrap_or_default());
        if !said.contains(expected) {
            return Err(format!("{url}: not '{expected}', but: {said}").into());
        }
    }
    Ok(())
}

/// Processes that write and refresh one table at once; only one of them computes, and when it is killed,
/// the next goes on from there.
async fn processes() -> Outcome<()> {
    let s3 = S3::start()?;
    let scene = Scene::at_url(
        "s3://bucket/shop",
        s3.options(),
        &[
            &format!(
                "CREATE TABLE t WITH (max_rows_per_fragment = 40) AS \
                 SELECT value AS id, value AS x FROM generate_series(1, {ROWS})"
            ),
            "ALTER TABLE t ADD COLUMN y BIGINT AS (count_calls(sleep_ms(x, 40)))",
            "CREATE TABLE notes (id BIGINT)",
        ],
    )
    .await?;

    // Each takes the next version, and nobody writes over another's.
    let ended = crowd(&scene, "INSERT INTO notes VALUES (1)").await?;
    if let Some((_, said)) = ended.iter().find(|(worked, _)| !worked) {
        return Err(format!("an INSERT failed: {said}").into());
    }
    let rows = CROWD as i64;
    scene.expect("SELECT count(*) FROM notes", rows).await?;

    let statement = "REFRESH COLUMN y ON t WITH (commit_every = 1, concurrency = 1)";
    let mut killed = scene.shell.start(&[statement])?;
    let started = Instant::now();
    while scene.number("SELECT count(y) FROM t").await? < 40 {
        if started.elapsed() > PATIENCE || killed.try_wait()?.is_some() {
            return Err("the refresh ended before it could be killed".into());
        }
    }
    let second = scene.shell.run(&[statement])?;
    if second.code != Some(1)
        || !second
            .stderr
            .contains("is at work on it, driven by process")
    {
        return Err(format!("a second refresh: {second:?}").into());
    }
    killed.kill()?;
    killed.wait()?;

    // All see that it is dead, and one takes over.
    let ended = crowd(&scene, statement).await?;
    for (worked, said) in &ended {
        if !worked && !said.contains("is at work on it, driven by process") {
            return Err(format!("a refresh in a crowd: {said}").into());
        }
    }
    // One that was slow to start may have found all done.
    if !ended.iter().any(|(worked, _)| *worked) {
        return Err(format!("no refresh of a crowd worked: {ended:?}").into());
    }
    let wrong = "SELECT count(*) FROM t WHERE y IS DISTINCT FROM x";
    scene.expect(wrong, 0).await?;
    // A fragment was on its way.
    match scene.all_calls()?.checked_sub(ROWS) {
        Some(0..=40) => Ok(()),
        _ => Err(format!("{} calls for {ROWS} rows", scene.all_calls()?).into()),
    }
}

/// Runs a statement in several processes at once, and says of each whether it worked, and what it said.
async fn crowd(scene: &Scene, statement: &str) -> Outcome<Vec<(bool, String)>> {
    let started: Result<Vec<_>, _> = (0..CROWD)
        .map(|_| scene.shell.start(&[statement]))
        .collect();
    let mut ended = Vec::new();
    for child in started? {
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ended.push((output.status.success(), said));
    }
    Ok(ended)
}
