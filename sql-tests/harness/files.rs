//! Finds the `.slt` files and runs each as one trial, or rewrites what it expects.

use std::any::Any;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use libtest_mimic::{Failed, Trial};
use sqllogictest::{Runner, default_normalizer, default_validator};

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
    let complete = env::var_os("HEADWATER_COMPLETE").is_some_and(|value| value == "1");
    runtime.block_on(within(place.clone(), async {
        let mut runner = Runner::new(|| Database::open(place.clone()));
        runner.with_column_validator(same_kinds);
        let result = if complete {
            runner
                .update_test_file(
                    file,
                    " ",
                    default_validator,
                    default_normalizer,
                    same_kinds,
                )
                .await
                .map_err(|error| Failed::from(error.to_string()))
        } else {
            runner
                .run_file_async(file)
                .await
                .map_err(|error| Failed::from(error.display(false).to_string()))
        };
        runner.shutdown_async().await;
        result
    }))
}

/// Whether the columns are of the kinds stated; a bare `query` states none.
#[allow(
    clippy::ptr_arg,
    reason = "sqllogictest's type for a validator takes vectors"
)]
fn same_kinds(actual: &Vec<ColumnKind>, expected: &Vec<ColumnKind>) -> bool {
    expected.is_empty() || actual == expected
}
