//! Finds the `.slt` files and runs each as one trial, or rewrites what it expects.

use std::any::Any;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use libtest_mimic::{Failed, Trial};
use sqllogictest::{MakeConnection, Record, Runner, default_normalizer, default_validator};

use crate::harness::Engine;
use crate::harness::database::{Database, Place, within};
use crate::harness::render::ColumnKind;

/// Planning recurses deeply in a debug build.
const STACK_BYTES: usize = 16 << 20;

/// The folder of the tests.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sql-tests")
}

/// One trial for each file and engine, named `<engine>/<path below the folder>`.
pub fn trials() -> Vec<Trial> {
    let files = match find() {
        Ok(files) => files,
        Err(error) => {
            let failed = move || Err(Failed::from(format!("sql-tests can't be listed: {error}")));
            return vec![Trial::test("files", failed)];
        }
    };
    files
        .iter()
        .flat_map(|file| Engine::ALL.map(|engine| (file.clone(), engine)))
        .filter(|(file, engine)| engine.runs(&relative(file)))
        .map(|(file, engine)| {
            let name = format!("{}/{}", engine.name(), relative(&file));
            Trial::test(name, move || run_with_large_stack(file, engine))
        })
        .collect()
}

/// All `.slt` files below the folder, sorted.
pub fn find() -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "slt") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The path of a file below the folder.
pub fn relative(file: &Path) -> String {
    file.strip_prefix(root())
        .unwrap_or(file)
        .display()
        .to_string()
}

fn run_with_large_stack(file: PathBuf, engine: Engine) -> Result<(), Failed> {
    let thread = thread::Builder::new()
        .name(relative(&file))
        .stack_size(STACK_BYTES)
        .spawn(move || run(&file, engine))?;
    match thread.join() {
        Ok(result) => result,
        Err(panic) => Err(Failed::from(format!(
            "panicked: {}",
            panic_message(&*panic)
        ))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is no text")
}

fn run(file: &Path, engine: Engine) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()?;
    let place = Place::new(engine)?;
    // All engines answer the same, so one of them is enough to write it down.
    let complete = engine == Engine::Local
        && env::var_os("HEADWATER_COMPLETE").is_some_and(|value| value == "1");
    runtime.block_on(within(place.clone(), async {
        let mut runner = Runner::new(|| Database::open(place.clone()));
        runner.with_column_validator(same_kinds);
        let mut problems = if complete {
            rewrite(&mut runner, file).await
        } else {
            check(&mut runner, file).await
        };
        runner.shutdown_async().await;
        let bugs = place.take_bugs();
        problems.extend(bugs.iter().map(|bug| format!("an internal error: {bug}")));
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Failed::from(problems.join("\n"))),
        }
    }))
}

/// Runs every record and says what differs; a difference may follow from an earlier one.
async fn check<M: MakeConnection<Conn = Database>>(
    runner: &mut Runner<Database, M>,
    file: &Path,
) -> Vec<String> {
    let records = match sqllogictest::parse_file(file) {
        Ok(records) => records,
        Err(error) => return vec![error.to_string()],
    };
    let mut problems = Vec::new();
    for record in records {
        if matches!(record, Record::Halt { .. }) {
            break;
        }
        if let Err(error) = runner.run_async(record).await {
            problems.push(error.display(false).to_string());
        }
    }
    problems
}

/// Writes what the database answers into the file.
async fn rewrite<M: MakeConnection<Conn = Database>>(
    runner: &mut Runner<Database, M>,
    file: &Path,
) -> Vec<String> {
    let result = runner
        .update_test_file(file, " ", default_validator, default_normalizer, same_kinds)
        .await;
    // A query without types is written with a space at its end.
    let tidied = fs::read_to_string(file)
        .and_then(|text| fs::write(file, text.replace("\nquery \n", "\nquery\n")));
    let problems = [
        result.err().map(|error| error.to_string()),
        tidied.err().map(|error| error.to_string()),
    ];
    problems.into_iter().flatten().collect()
}

/// Whether the columns are of the kinds stated; a bare `query` states none.
#[allow(
    clippy::ptr_arg,
    reason = "sqllogictest's type for a validator takes vectors"
)]
fn same_kinds(actual: &Vec<ColumnKind>, expected: &Vec<ColumnKind>) -> bool {
    expected.is_empty() || actual == expected
}
