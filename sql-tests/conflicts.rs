//! Other writers change a table while a column of it is refreshed.
//!
//! One process refreshes a column whose function takes its time. When it has begun, when it is in the
//! middle, or when all is computed but little is committed, another writer does something else: this
//! process by SQL, or release pylance. The refresh must end well, no value may be wrong, the next
//! refresh finds what is left, and nothing is computed twice without need.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::harness::python::python;
use crate::harness::scene::{Outcome, Scene, block_on};

const ROWS: usize = 160;
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// When the other writer comes.
#[derive(Debug, Clone, Copy)]
enum When {
    /// A few rows are computed.
    Start,
    /// A part of the fragments is committed.
    Middle,
    /// Most rows are computed, nothing is committed.
    BeforeCommit,
}

/// What the other writer does.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    /// Statements, or lines of Python in which `ds` is the table.
    change: Change,
    /// Rows that have to be computed because of it, at most.
    extra_calls: usize,
    /// What the refresh says if it can't go on.
    error: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Ours(&'static str),
    Pylance(&'static str),
}

const fn ours(name: &'static str, sql: &'static str, extra_calls: usize) -> Case {
    Case {
        name,
        change: Change::Ours(sql),
        extra_calls,
        error: None,
    }
}

const fn pylance(name: &'static str, script: &'static str, extra_calls: usize) -> Case {
    Case {
        name,
        change: Change::Pylance(script),
        extra_calls,
        error: None,
    }
}

const CASES: &[Case] = &[
    ours("append", "INSERT INTO t VALUES (1000, 1000, 'new', 0)", 1),
    ours("delete", "DELETE FROM t WHERE id % 7 = 0", 0),
    ours("delete_a_fragment", "DELETE FROM t WHERE id <= 40", 0),
    ours("update", "UPDATE t SET x = x + 1000 WHERE id % 9 = 0", 18),
    ours(
        "update_of_no_input",
        "UPDATE t SET note = 'u' WHERE id % 9 = 0",
        0,
    ),
    ours("compaction", "OPTIMIZE t", 0),
    ours(
        "add_column",
        "ALTER TABLE t ADD COLUMN more INT DEFAULT 1",
        0,
    ),
    ours("drop_column", "ALTER TABLE t DROP COLUMN spare", 0),
    ours(
        "rename_column",
        "ALTER TABLE t RENAME COLUMN spare TO rest",
        0,
    ),
    ours("refresh_of_another_column", "REFRESH COLUMN z ON t", 0),
    // What it undoes has to be computed again.
    ours("restore", "RESTORE TABLE t TO VERSION AS OF 4", ROWS),
    Case {
        name: "drop_of_the_column",
        change: Change::Ours("ALTER TABLE t DROP COLUMN y"),
        extra_calls: 0,
        error: Some("column 'y' of table 't' was dropped"),
    },
    Case {
        name: "set_expression",
        change: Change::Ours("ALTER TABLE t ALTER COLUMN y SET EXPRESSION AS (x + 0)"),
        extra_calls: 0,
        error: Some("got another definition"),
    },
    pylance(
        "append",
        "lance.write_dataset(pa.table({'id': [1000], 'x': [1000], 'note': ['new'], \
         'spare': pa.array([0], pa.int32())}), path, mode='append')",
        1,
    ),
    pylance("delete", "ds.delete('id % 7 = 0')", 0),
    pylance(
        "update",
        "ds.update({'x': 'x + 1000'}, where='id % 9 = 0')",
        18,
    ),
    pylance(
        "merge_insert",
        "ds.merge_insert('id').when_matched_update_all().execute(\
         ds.to_table(columns=['id', 'x', 'note', 'spare', 'z', 'y'], filter='id % 9 = 0')\
         .set_column(1, 'x', pa.array([i + 1000 for i in range(9, 161, 9)])))",
        18,
    ),
    pylance("compaction", "ds.optimize.compact_files()", 0),
    pylance("add_column", "ds.add_columns({'more': 'id + 1'})", 0),
    pylance("drop_column", "ds.drop_columns(['spare'])", 0),
    pylance(
        "rename_column",
        "ds.alter_columns({'path': 'spare', 'name': 'rest'})",
        0,
    ),
    pylance(
        "index_on_the_input",
        "ds.create_scalar_index('x', 'BTREE')",
        0,
    ),
    pylance(
        "index_on_the_column",
        "ds.create_scalar_index('y', 'BTREE')",
        0,
    ),
    pylance("restore", "ds.checkout_version(4).restore()", ROWS),
];

/// A trial for each case and moment.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in CASES {
        for when in [When::Start, When::Middle, When::BeforeCommit] {
            let who = match case.change {
                Change::Ours(_) => "ours",
                Change::Pylance(_) => "pylance",
            };
            let name = format!("conflicts/{who}_{}_{when:?}", case.name);
            trials.push(Trial::test(name, move || block_on(conflict(*case, when))));
        }
    }
    trials.push(Trial::test("conflicts/a_second_refresh", || {
        block_on(second_refresh())
    }));
    trials
}

async fn table() -> Outcome<Scene> {
    let scene = Scene::new(&[
        &format!(
            "CREATE TABLE t WITH (max_rows_per_fragment = 40) AS SELECT value AS id, value AS x, \
             'n' AS note, CAST(0 AS INT) AS spare FROM generate_series(1, {ROWS})"
        ),
        "ALTER TABLE t ADD COLUMN z BIGINT AS (x + 1)",
        "ALTER TABLE t ADD COLUMN y BIGINT AS (count_calls(sleep_ms(x, 3)))",
        "UPDATE t SET note = 'm' WHERE id = 1",
    ])
    .await?;
    Ok(scene)
}

/// The refresh in a process of its own, when it has computed so many rows.
async fn refresh_until(scene: &Scene, when: When) -> Outcome<Child> {
    let (commit_every, calls) = match when {
        When::Start => ("1", 1),
        When::Middle => ("1", ROWS / 2),
        When::BeforeCommit => ("'all'", ROWS * 3 / 4),
    };
    let refresh = format!("REFRESH COLUMN y ON t WITH (commit_every = {commit_every})");
    let mut child = scene.shell.start(&[&refresh])?;
    let started = Instant::now();
    while scene.all_calls()? < calls && child.try_wait()?.is_none() {
        if started.elapsed() > PATIENCE {
            return Err("the refresh does not begin".into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(child)
}

async fn conflict(case: Case, when: When) -> Outcome<()> {
    let scene = table().await?;
    let waiting = match case.change {
        Change::Ours(_) => None,
        Change::Pylance(script) => Some(waiting_python(&scene, script)?),
    };
    let child = refresh_until(&scene, when).await?;
    match (case.change, waiting) {
        (Change::Ours(sql), _) => {
            scene.run(sql).await?;
        }
        (_, Some(python)) => {
            fs::write(scene.file("go"), "")?;
            let output = python.wait_with_output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(format!("pylance failed: {said}").into());
            }
        }
        (Change::Pylance(_), None) => return Err("there is no Python".into()),
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if let Some(error) = case.error {
        return match output.status.success() || !said.contains(error) {
            false => Ok(()),
            // It was quicker.
            true if output.status.success() => Ok(()),
            true => Err(format!("not '{error}', but: {said}").into()),
        };
    }
    if !output.status.success() {
        return Err(format!("the refresh failed: {said}").into());
    }
    // A row that was updated meanwhile has the value of its old input, or none.
    scene
        .expect(
            "SELECT count(*) FROM t WHERE y IS NOT NULL AND y <> x AND y <> x - 1000",
            0,
        )
        .await?;
    scene.run("REFRESH COLUMN y ON t").await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    scene
        .expect("SELECT sum(rows_pending + rows_stale) FROM system.computed_columns WHERE column_name = 'y'", 0)
        .await?;
    let calls = scene.all_calls()?;
    if calls > ROWS + case.extra_calls {
        let most = ROWS + case.extra_calls;
        return Err(format!("{calls} calls, not {most}; {said}").into());
    }
    let left = scene.own_files("staged")?;
    match left.is_empty() {
        true => Ok(()),
        false => Err(format!("left: {left:?}").into()),
    }
}

/// A Python that has opened the table and waits for the file `go`. What fails because of a conflict it
/// tries again, as a user would.
fn waiting_python(scene: &Scene, script: &str) -> Outcome<Child> {
    let table = scene.database().join("t.lance");
    let ready = scene.file("ready");
    let program = format!(
        "import lance, os, time\nimport pyarrow as pa\npath = {table:?}\nds = lance.dataset(path)\n\
         open({ready:?}, 'w').close()\n\
         while not os.path.exists({go:?}): time.sleep(0.002)\n\
         for attempt in range(20):\n    try:\n        {script}\n        break\n    \
         except Exception as error:\n        last = error\n        ds = lance.dataset(path)\n\
         else: raise last\n",
        go = scene.file("go"),
    );
    let child = Command::new(python()?)
        .arg("-c")
        .arg(program)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    wait_for(&ready)?;
    Ok(child)
}

fn wait_for(file: &Path) -> Outcome<()> {
    let started = Instant::now();
    while !file.exists() {
        if started.elapsed() > PATIENCE {
            return Err("pylance does not start".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// One works, the other says who does.
async fn second_refresh() -> Outcome<()> {
    let scene = table().await?;
    let child = refresh_until(&scene, When::Start).await?;
    for statement in ["REFRESH COLUMN y ON t FULL", "REFRESH COLUMN z, y ON t"] {
        match scene.run(statement).await {
            Ok(_) => return Err(format!("{statement} went on beside another").into()),
            Err(error) => {
                let error = error.to_string();
                if !error.contains("is at work on it, driven by process") {
                    return Err(format!("{statement}: {error}").into());
                }
            }
        }
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    scene.expect("SELECT count(*) FROM system.jobs", 1).await?;
    match scene.all_calls()? {
        ROWS => Ok(()),
        calls => Err(format!("{calls} calls").into()),
    }
}
