//! Opening a database: places that can't be one, and what a process makes of it.

use std::fs;
use std::path::Path;

use headwater::Result;
use headwater::session::Headwater;
use libtest_mimic::{Failed, Trial};

use crate::harness::Engine;
use crate::harness::command::take_calls;
use crate::harness::database::Place;
use crate::harness::process::TestShell;

type Test = fn() -> Result<(), Failed>;

/// A trial for each test.
pub fn trials() -> Vec<Trial> {
    let tests: [(&str, Test); 5] = [
        (
            "nothing_is_made_before_a_write",
            nothing_is_made_before_a_write,
        ),
        ("a_file_is_no_database", a_file_is_no_database),
        (
            "a_place_without_permission_is_named",
            a_place_without_permission_is_named,
        ),
        ("an_unknown_scheme_is_refused", an_unknown_scheme_is_refused),
        ("a_process_counts_and_fails", a_process_counts_and_fails),
    ];
    tests
        .into_iter()
        .map(|(name, test)| Trial::test(format!("opening/{name}"), test))
        .collect()
}

/// Opens `database` and runs one statement.
fn run(database: &str, statement: &str) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let session = Headwater::open(database).await?;
        session.sql(statement).await?.collect().await?;
        Ok(())
    })
}

fn expect(condition: bool, problem: impl Into<String>) -> Result<(), Failed> {
    match condition {
        true => Ok(()),
        false => Err(Failed::from(problem.into())),
    }
}

/// The statement fails, and its error names `name`.
fn expect_error(database: &str, statement: &str, name: &str) -> Result<(), Failed> {
    match run(database, statement) {
        Ok(()) => Err(Failed::from(format!("{statement} worked on {database}"))),
        Err(error) => {
            let message = error.message().unwrap_or_default();
            expect(
                message.contains(name),
                format!("'{name}' is not named in: {message}"),
            )
        }
    }
}

fn nothing_is_made_before_a_write() -> Result<(), Failed> {
    let place = Place::new(Engine::Local)?;
    let database = place.database.display().to_string();
    for statement in ["SELECT 1", "SHOW TABLES", "SELECT * FROM system.tables"] {
        run(&database, statement)?;
        expect(
            !place.database.exists(),
            format!("{statement} made the folder"),
        )?;
    }
    expect_error(&database, "SELECT * FROM nosuch", "nosuch")?;
    expect(
        !place.database.exists(),
        "a statement that failed made the folder",
    )?;
    run(&database, "CREATE TABLE t (a INT)")?;
    expect(
        place.database.join("t.lance").is_dir(),
        "there is no folder of the table",
    )
}

fn a_file_is_no_database() -> Result<(), Failed> {
    let place = Place::new(Engine::Local)?;
    let file = place.files.join("file");
    fs::write(&file, "no database")?;
    let path = file.display().to_string();
    expect_error(&path, "CREATE TABLE t (a INT)", &path)?;
    expect_error(&path, "SHOW TABLES", &path)?;
    let below = file.join("below").display().to_string();
    expect_error(&below, "CREATE TABLE t (a INT)", &path)?;
    expect(
        fs::read_to_string(&file)? == "no database",
        "the file was changed",
    )
}

/// Nobody may make a folder below `/proc`, not even the user of a container.
fn a_place_without_permission_is_named() -> Result<(), Failed> {
    if !Path::new("/proc/self").exists() {
        return Ok(());
    }
    expect_error(
        "/proc/headwater",
        "CREATE TABLE t (a INT)",
        "/proc/headwater",
    )
}

fn an_unknown_scheme_is_refused() -> Result<(), Failed> {
    expect_error("nosuch://bucket/path", "CREATE TABLE t (a INT)", "nosuch")
}

fn a_process_counts_and_fails() -> Result<(), Failed> {
    let place = Place::new(Engine::Local)?;
    let shell = TestShell::new(&place.database, &place.calls());
    let ended = shell.run(&[
        "CREATE TABLE t AS SELECT value AS x FROM generate_series(1, 5) ORDER BY x",
        "ALTER TABLE t ADD COLUMN y AS (count_calls(x * 2))",
        "ALTER TABLE t ADD COLUMN z AS (fail_if(sleep_ms(x, 1), 3))",
        "REFRESH COLUMN y ON t",
    ])?;
    expect(ended.code == Some(0), format!("{ended:?}"))?;
    expect(
        take_calls(&place.calls())? == 5,
        "not every row was counted once",
    )?;

    let ended = shell.run(&["REFRESH COLUMN z ON t"])?;
    expect(ended.code == Some(1), format!("{ended:?}"))?;
    expect(
        ended.stderr.contains("the value is 3"),
        format!("{ended:?}"),
    )?;
    expect(ended.stderr.contains("row id 2"), format!("{ended:?}"))?;

    let ended = shell.run(&["SELECT sum(y) AS total FROM t"])?;
    expect(ended.stdout.trim() == "total\n30", format!("{ended:?}"))
}
