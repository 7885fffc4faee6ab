//! The terminal: a shell built on the printing, completion and commands of datafusion-cli.
//!
//! Results go to stdout and nothing else does: notices, timing, progress and errors go to
//! stderr. Exit status: 0, 1 when a statement failed, 2 for wrong arguments, 130 after
//! Ctrl-C, 141 when the reader of the output went away.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use datafusion_cli::object_storage::instrumented::InstrumentedObjectStoreRegistry;
use datafusion_cli::print_options::PrintOptions;
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::session::{Headwater, HeadwaterBuilder};
use crate::{Error, ErrorKind, Result};

mod arguments;
mod completion;
mod executor;
mod help;
mod interactive;
mod interrupt;
mod output;
pub mod progress;
mod runner;
mod script;
mod serve;
mod server;
mod settings_file;
mod signals;
mod target;

use arguments::{Arguments, Input, misplaced_subcommand};
use interrupt::Interrupts;
use runner::{Halt, Runner};
use target::Target;

/// Stack of a worker thread, in bytes. Planning recurses with the depth of a query;
/// the system maps only what is used.
const WORKER_STACK: usize = 16 << 20;

/// What a script on standard input is called in errors.
const STDIN: &str = "stdin";

/// Runs the `headwater` command: `args` as the process got them, the program's name first.
///
/// The database, and the storage options if there are any, are set on `builder`; what else
/// it brings, functions for instance, the statements can use. This starts the runtime, the
/// logging and the handling of Ctrl-C, so it is meant to be all that a `main` does. Errors
/// are printed; the exit status tells of them.
pub fn run(args: impl IntoIterator<Item = OsString>, builder: HeadwaterBuilder) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|arg| arg == serve::NAME) {
        log_to_stderr();
        return serve::run(args.into_iter().skip(1).collect(), builder);
    }
    if args.get(1).is_some_and(|arg| arg == executor::NAME) {
        log_to_stderr();
        return executor::run(args.into_iter().skip(1).collect(), builder);
    }
    if args.get(1).is_some_and(|arg| arg == server::NAME) {
        log_to_stderr();
        return server::run(args.into_iter().skip(1).collect(), builder);
    }
    // A subcommand has arguments of its own, which must not be taken for wrong ones of ours.
    if let Some(error) = args
        .get(1)
        .and_then(|arg| misplaced_subcommand(&arg.to_string_lossy()))
    {
        report(&error);
        return ExitCode::FAILURE;
    }
    let arguments = match Arguments::parse(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Also --help and --version come this way.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    log_to_stderr();
    match start(&arguments, builder) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    // An embedding program may have set up a logger already.
    let _ = env_logger::Builder::from_default_env()
        .target(env_logger::Target::Stderr)
        .try_init();
}

fn start(arguments: &Arguments, builder: HeadwaterBuilder) -> Result<ExitCode> {
    if let Some(error) = misplaced_subcommand(&arguments.database) {
        return Err(error);
    }
    let server = arguments.server_options()?;
    let options = arguments.storage_options()?;
    // All of them before anything runs: a name mistyped should not leave half of the work done.
    let inputs = open(&arguments.inputs)?;

    let runtime = runtime("headwater", None)?;
    let target = match server {
        Some(options) => runtime
            .block_on(Client::connect(&arguments.database, &options))
            .map(|client| Target::Server(Box::new(client))),
        None => runtime
            .block_on(open_database(arguments, builder, options))
            .map(Target::Here),
    };
    let code = target.and_then(|target| {
        let code = serve(&runtime, target.clone(), arguments, inputs);
        if let Target::Server(client) = target {
            runtime.block_on(client.close());
        }
        code
    });
    // Nothing that is left may keep the user waiting: what mattered has ended with its statement.
    runtime.shutdown_background();
    code
}

async fn open_database(
    arguments: &Arguments,
    builder: HeadwaterBuilder,
    options: HashMap<String, String>,
) -> Result<Headwater> {
    let mut builder = builder.database(arguments.database.as_str());
    if !options.is_empty() {
        builder = builder.storage_options(options);
    }
    let session = builder.build().await?;
    arguments.limit_memory(session.context()).await?;
    // In a table an empty cell could be an empty text.
    let context = session.context();
    context.sql("SET datafusion.format.null = 'NULL'").await?;
    Ok(session)
}

/// A runtime whose workers can plan deep queries; as many as there are cores, if nothing is said.
fn runtime(name: &str, workers: Option<usize>) -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder
        .enable_all()
        .thread_name(name)
        .thread_stack_size(WORKER_STACK)
        .build()
        .map_err(no_runtime)
}

/// Runs the inputs in their order, or the shell if there are none.
fn serve(
    runtime: &Runtime,
    target: Target,
    arguments: &Arguments,
    inputs: Vec<Source>,
) -> Result<ExitCode> {
    let interactive = inputs.is_empty() && io::stdin().is_terminal();
    let settings = PrintOptions {
        format: arguments.format,
        quiet: arguments.quiet,
        maxrows: arguments.maxrows,
        color: arguments.color(),
        instrumented_registry: Arc::new(InstrumentedObjectStoreRegistry::new()),
    };
    let interrupts = Interrupts::listen(interactive).map_err(no_runtime)?;
    let mut runner = Runner::new(
        runtime.handle().clone(),
        target,
        settings,
        arguments.keep_going,
        interrupts,
    );
    if interactive {
        let code = interactive::run(&mut runner, &arguments.database);
        runner.wait_for_jobs();
        return Ok(code);
    }
    let inputs = if inputs.is_empty() {
        vec![stdin()]
    } else {
        inputs
    };
    for input in inputs {
        match runner.script(input.reader, input.name.as_deref()) {
            Ok(()) => {}
            Err(Halt::Quit) => break,
            Err(Halt::Failed) if arguments.keep_going => {}
            Err(Halt::Failed) => break,
            Err(Halt::Interrupted) => return Ok(ExitCode::from(interrupt::EXIT_STATUS)),
            // As a program that the signal SIGPIPE ends.
            Err(Halt::BrokenPipe) => return Ok(ExitCode::from(141)),
        }
    }
    runner.wait_for_jobs();
    Ok(if runner.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn no_runtime(error: io::Error) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("can't start the threads that statements run on: {error}"),
    )
    .with_source(error)
}

/// A script that is open.
struct Source {
    reader: Box<dyn BufRead>,
    /// What errors call it; `None` for text from the command line.
    name: Option<String>,
}

fn stdin() -> Source {
    Source {
        reader: Box::new(BufReader::new(io::stdin())),
        name: Some(STDIN.to_string()),
    }
}

fn open(inputs: &[Input]) -> Result<Vec<Source>> {
    inputs
        .iter()
        .map(|input| match input {
            Input::Sql(text) => Ok(Source {
                reader: Box::new(io::Cursor::new(text.clone())),
                name: None,
            }),
            Input::Stdin => Ok(stdin()),
            Input::File(path) => Ok(Source {
                reader: Box::new(open_script(path)?),
                name: Some(path.display().to_string()),
            }),
        })
        .collect()
}

/// Opens a file of statements.
fn open_script(path: &Path) -> Result<BufReader<File>> {
    let problem = |message: String| {
        Error::new(
            ErrorKind::Storage,
            format!("can't read the script '{}': {message}", path.display()),
        )
    };
    let file = File::open(path).map_err(|error| problem(error.to_string()).with_source(error))?;
    // A folder can be opened, and fails only when it is read.
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(problem("it is a folder".to_string()));
    }
    Ok(BufReader::new(file))
}

/// Prints an error and its mend to stderr.
fn report(error: &Error) {
    say(&format!("Error: {error}"));
}

/// Prints a line to stderr. Where stderr is closed there is nobody to tell.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests;
