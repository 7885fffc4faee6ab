//! `headwater executor`: runs work for a server.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::Builder;

use super::arguments::size;
use super::serve::time;
use super::signals::listen;
use super::{WORKER_STACK, no_runtime, report, say};
use crate::engine::ballista::Security;
use crate::engine::ballista::executor::{self, Settings};
use crate::session::HeadwaterBuilder;
use crate::{Error, Result};

/// The name of the subcommand.
pub(super) const NAME: &str = "executor";

const EXAMPLES: &str = "\
Examples:
  headwater executor --scheduler df://localhost:50060
  headwater executor --scheduler df://server:50060 --slots 8 --memory 16g --external-host worker-1
  headwater executor --scheduler df://server:50060 --slots 1 --label gpu      for WITH (pool = 'gpu')

The scheduler is part of 'headwater server'; its port is that of --cluster-bind. Start as many executors as there is work
for, on any machines that reach the server, one another and the store of the database.

SIGINT (Ctrl-C) and SIGTERM end it: it takes nothing new, and what it was doing is done by others.
Exit status: 0; 1 if the scheduler can't be reached; 2 for wrong arguments.";

/// Run work for a headwater server
#[derive(Parser)]
#[command(name = "headwater executor", version, after_help = EXAMPLES)]
pub(super) struct ExecutorArguments {
    /// The scheduler of the server: df://host:port, or df+tls://host:port
    #[arg(long, value_name = "URL", env = "HEADWATER_EXECUTOR_SCHEDULER")]
    scheduler: String,

    /// Tasks at once; by default as many as there are cores
    #[arg(long, value_name = "N", env = "HEADWATER_EXECUTOR_SLOTS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    slots: Option<u16>,

    /// How much memory queries may use together, such as 4g or 512m; by default there is no limit
    #[arg(long, value_name = "BYTES", env = "HEADWATER_EXECUTOR_MEMORY", value_parser = size)]
    memory: Option<u64>,

    /// What this executor is made for, such as gpu: only work that asks for it comes here
    #[arg(long, value_name = "NAME", env = "HEADWATER_EXECUTOR_LABEL", value_parser = label)]
    label: Option<String>,

    /// Where it listens
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1",
        env = "HEADWATER_EXECUTOR_BIND"
    )]
    bind: IpAddr,

    /// The name that the server and other executors reach it by; by default the address that the server sees
    #[arg(long, value_name = "HOST", env = "HEADWATER_EXECUTOR_EXTERNAL_HOST")]
    external_host: Option<String>,

    /// The port for results; 0 for any that is free
    #[arg(
        long,
        value_name = "PORT",
        default_value = "0",
        env = "HEADWATER_EXECUTOR_PORT"
    )]
    port: u16,

    /// The port for tasks; 0 for any that is free
    #[arg(
        long,
        value_name = "PORT",
        default_value = "0",
        env = "HEADWATER_EXECUTOR_TASK_PORT"
    )]
    task_port: u16,

    /// A folder for what tasks give to one another; by default the one for temporary files
    #[arg(long, value_name = "FOLDER", env = "HEADWATER_EXECUTOR_WORK_DIR")]
    work_dir: Option<PathBuf>,

    /// How long it waits for the scheduler when it begins, such as 30s
    #[arg(long, value_name = "TIME", default_value = "30s", env = "HEADWATER_EXECUTOR_PATIENCE",
          value_parser = time)]
    patience: Duration,
}

/// Reads a label.
fn label(text: &str) -> Result<String, String> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !text.is_empty() && text.chars().all(is_fine) {
        true => Ok(text.to_string()),
        false => Err("a label is made of letters, digits, - and _".to_string()),
    }
}

/// Runs the subcommand; `args` begin with its name.
pub(super) fn run(args: Vec<OsString>, builder: HeadwaterBuilder) -> ExitCode {
    let arguments = match ExecutorArguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Also --help and --version come this way.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match start(arguments, builder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: ExecutorArguments, builder: HeadwaterBuilder) -> Result<()> {
    let cores = available_parallelism().map_or(1, usize::from);
    let settings = Settings {
        slots: arguments.slots.map_or(cores, usize::from),
        security: Security::default(),
        scheduler: arguments.scheduler,
        bind: arguments.bind,
        port: arguments.port,
        task_port: arguments.task_port,
        external_host: arguments.external_host,
        memory: arguments.memory,
        label: arguments.label,
        work_dir: arguments.work_dir,
        patience: arguments.patience,
    };
    // Tasks run on threads of their own: these report, and serve results.
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name("headwater")
        .thread_stack_size(WORKER_STACK)
        .build()
        .map_err(no_runtime)?;
    let stop = runtime.block_on(async { listen() }).map_err(no_runtime)?;
    let codecs = builder.codecs();
    let work = executor::run(settings, codecs, stop, |executor| {
        say(&format!(
            "Executor ready: {} slot(s){}, results at port {}.",
            executor.slots,
            match &executor.label {
                Some(label) => format!(", label {label}"),
                None => String::new(),
            },
            executor.port
        ));
    });
    let ended = runtime.block_on(runtime.spawn(work));
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| Err(Error::internal(format!("the executor failed: {error}"))))
}
