//! `headwater executor`: runs work for a server.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::Builder;

use super::arguments::size;
use super::serve::time;
use super::settings_file::{SettingsFile, given_or};
use super::signals::listen;
use super::{WORKER_STACK, no_runtime, report, say};
use crate::engine::ballista::executor::{self, Settings};
use crate::engine::ballista::{Certificates, Security};
use crate::server::http::{Http, State, executor_metrics};
use crate::session::HeadwaterBuilder;
use crate::{Error, Result};

/// The name of the subcommand.
pub(super) const NAME: &str = "executor";

const EXAMPLES: &str = "\
Examples:
  headwater executor --scheduler df://localhost:50060
  headwater executor --scheduler df://server:50060 --slots 8 --memory 16g --external-host worker-1
  headwater executor --scheduler df://server:50060 --slots 1 --label gpu      for WITH (pool = 'gpu')
  headwater executor --config /etc/headwater/executor.toml

A file of --config has the same names: slots = 8, label = \"gpu\". What the command line says counts most, then the
environment, then the file.

The scheduler is part of 'headwater server'; its port is that of --cluster-bind. Start as many executors as there is work
for, on any machines that reach the server, one another and the store of the database.

SIGINT (Ctrl-C) and SIGTERM end it: it takes nothing new, and what it was doing is done by others.
Exit status: 0; 1 if the scheduler can't be reached; 2 for wrong arguments.";

/// All names that a file of settings may have.
const NAMES: [&str; 14] = [
    "scheduler",
    "slots",
    "memory",
    "label",
    "bind",
    "external-host",
    "port",
    "task-port",
    "work-dir",
    "patience",
    "cluster-ca",
    "cluster-certificate",
    "cluster-key",
    "http-bind",
];
/// How long an executor waits for the scheduler unless it is said.
const PATIENCE: Duration = Duration::from_secs(30);

/// Run work for a headwater server
#[derive(Parser)]
#[command(name = "headwater executor", version, after_help = EXAMPLES)]
struct ExecutorArguments {
    /// The scheduler of the server: df://host:port, or df+tls://host:port
    #[arg(long, value_name = "URL", env = "HEADWATER_EXECUTOR_SCHEDULER")]
    scheduler: Option<String>,

    /// Tasks at once; by default as many as there are cores
    #[arg(long, value_name = "N", env = "HEADWATER_EXECUTOR_SLOTS", value_parser = slots)]
    slots: Option<usize>,

    /// How much memory queries may use together, such as 4g or 512m; by default there is no limit
    #[arg(long, value_name = "BYTES", env = "HEADWATER_EXECUTOR_MEMORY", value_parser = size)]
    memory: Option<u64>,

    /// What this executor is made for, such as gpu: only work that asks for it comes here
    #[arg(long, value_name = "NAME", env = "HEADWATER_EXECUTOR_LABEL", value_parser = label)]
    label: Option<String>,

    /// Where it listens [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "HEADWATER_EXECUTOR_BIND")]
    bind: Option<IpAddr>,

    /// The name that the server and other executors reach it by; by default the address that the server sees
    #[arg(long, value_name = "HOST", env = "HEADWATER_EXECUTOR_EXTERNAL_HOST")]
    external_host: Option<String>,

    /// The port for results; 0 for any that is free [default: 0]
    #[arg(long, value_name = "PORT", env = "HEADWATER_EXECUTOR_PORT")]
    port: Option<u16>,

    /// The port for tasks; 0 for any that is free [default: 0]
    #[arg(long, value_name = "PORT", env = "HEADWATER_EXECUTOR_TASK_PORT")]
    task_port: Option<u16>,

    /// A folder for what tasks give to one another; by default the one for temporary files
    #[arg(long, value_name = "FOLDER", env = "HEADWATER_EXECUTOR_WORK_DIR")]
    work_dir: Option<PathBuf>,

    /// How long it waits for the scheduler when it begins [default: 30s]
    #[arg(long, value_name = "TIME", env = "HEADWATER_EXECUTOR_PATIENCE", value_parser = time)]
    patience: Option<Duration>,

    /// Certificates that vouch for those of the server and of other executors, PEM
    #[arg(long, value_name = "FILE", env = "HEADWATER_EXECUTOR_CLUSTER_CA")]
    cluster_ca: Option<PathBuf>,

    /// The certificate that this executor shows to them, for the name headwater-cluster, PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "HEADWATER_EXECUTOR_CLUSTER_CERTIFICATE"
    )]
    cluster_certificate: Option<PathBuf>,

    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE", env = "HEADWATER_EXECUTOR_CLUSTER_KEY")]
    cluster_key: Option<PathBuf>,

    /// Answer by HTTP whether it lives (/health, /ready), and with its figures (/metrics), such as at 127.0.0.1:50081
    #[arg(long, value_name = "HOST:PORT", env = "HEADWATER_EXECUTOR_HTTP_BIND")]
    http_bind: Option<String>,

    /// A TOML file with these settings
    #[arg(long, value_name = "FILE", env = "HEADWATER_EXECUTOR_CONFIG")]
    config: Option<PathBuf>,
}

/// All that an executor is told, from the command line, the environment and the file.
struct Told {
    settings: Settings,
    http_bind: Option<String>,
}

impl ExecutorArguments {
    fn told(self) -> Result<Told> {
        let file = match &self.config {
            Some(path) => SettingsFile::read(path, &NAMES)?,
            None => SettingsFile::default(),
        };
        let port = |given: Option<u16>, name: &str| {
            given_or(given, || file.number(name)).map(Option::unwrap_or_default)
        };
        let cores = available_parallelism().map_or(1, usize::from);
        let certificates = Certificates::all(
            file.path_or(self.cluster_ca, "cluster-ca")?,
            file.path_or(self.cluster_certificate, "cluster-certificate")?,
            file.path_or(self.cluster_key, "cluster-key")?,
        )?;
        let settings = Settings {
            scheduler: file.text_or(self.scheduler, "scheduler")?.ok_or_else(|| {
                Error::invalid("there is no --scheduler")
                    .with_hint("it is the URL that 'headwater server --cluster-bind …' says, such as df://localhost:50060")
            })?,
            slots: given_or(self.slots, || file.number("slots"))?.unwrap_or(cores),
            memory: given_or(self.memory, || file.parsed("memory", size))?,
            label: given_or(self.label, || file.parsed("label", label))?,
            bind: given_or(self.bind, || file.parsed("bind", address))?
                .unwrap_or(Ipv4Addr::LOCALHOST.into()),
            external_host: file.text_or(self.external_host, "external-host")?,
            port: port(self.port, "port")?,
            task_port: port(self.task_port, "task-port")?,
            work_dir: file.path_or(self.work_dir, "work-dir")?,
            patience: given_or(self.patience, || file.parsed("patience", time))?
                .unwrap_or(PATIENCE),
            security: Security::read(certificates.as_ref())?,
        };
        slots(&settings.slots.to_string())
            .map_err(|error| Error::invalid(format!("slots: {error}")))?;
        Ok(Told {
            settings,
            http_bind: file.text_or(self.http_bind, "http-bind")?,
        })
    }
}

/// Reads a number of slots.
fn slots(text: &str) -> Result<usize, String> {
    let slots = text.parse().ok().filter(|slots| (1..=1024).contains(slots));
    slots.ok_or_else(|| "a number from 1 to 1024 is wanted".to_string())
}

/// Reads the address of this machine.
fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|error| format!("{error}"))
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
    match arguments.told().and_then(|told| start(told, builder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(told: Told, builder: HeadwaterBuilder) -> Result<()> {
    // Tasks run on threads of their own: these report, and serve results.
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name("headwater")
        .thread_stack_size(WORKER_STACK)
        .build()
        .map_err(no_runtime)?;
    let stop = runtime.block_on(async { listen() }).map_err(no_runtime)?;
    let codecs = builder.codecs();
    let work = async move {
        let state = State::default();
        let http = match &told.http_bind {
            Some(bind) => Some(Http::serve(bind, state.clone()).await?),
            None => None,
        };
        if let Some(http) = &http {
            // Whoever asks whether it is ready hears that it is not, once it is told to end.
            let (state, mut ends) = (http.state().clone(), stop.clone());
            tokio::spawn(async move {
                let _ = ends.wait_for(|stop| *stop).await;
                state.ending();
            });
            say(&format!("Figures are at http://{}/metrics", http.address()));
        }
        executor::run(told.settings, codecs, stop, |executor, figures| {
            state.ready(move || executor_metrics(&figures()));
            say(&format!(
                "Executor ready: {} slot(s){}, results at port {}.",
                executor.slots,
                match &executor.label {
                    Some(label) => format!(", label {label}"),
                    None => String::new(),
                },
                executor.port
            ));
        })
        .await
    };
    let ended = runtime.block_on(runtime.spawn(work));
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| Err(Error::internal(format!("the executor failed: {error}"))))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn told(args: &[&str]) -> Result<Told> {
        let args = std::iter::once(NAME).chain(args.iter().copied());
        let arguments = ExecutorArguments::try_parse_from(args);
        arguments.unwrap_or_else(|error| panic!("{error}")).told()
    }

    #[test]
    fn the_declaration_is_consistent() {
        ExecutorArguments::command().debug_assert();
    }

    #[test]
    fn the_command_line_counts_more_than_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("e.toml");
        let text = "scheduler = 'df://h:1'\nslots = 3\nlabel = 'gpu'\nmemory = '1g'\npatience = '5m'\nport = 7\nbind = '::1'";
        std::fs::write(&file, text).unwrap();
        let config = format!("--config={}", file.display());
        let settings = told(&[&config, "--slots=4"]).unwrap().settings;
        assert_eq!(
            (settings.slots, settings.port, settings.task_port),
            (4, 7, 0)
        );
        assert_eq!(settings.label.as_deref(), Some("gpu"));
        assert_eq!(settings.memory, Some(1 << 30));
        assert_eq!(settings.patience, Duration::from_secs(300));
        assert!(settings.bind.is_loopback() && settings.bind.is_ipv6());
    }

    #[test]
    fn slips_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("e.toml");
        for (text, word) in [
            ("slots = 0\nscheduler = 'df://h:1'", "1 to 1024"),
            ("label = 'a b'\nscheduler = 'df://h:1'", "label"),
            ("slot = 1", "'slots'"),
            ("slots = 1", "--scheduler"),
            ("port = 70000\nscheduler = 'df://h:1'", "port"),
            ("cluster-ca = 'x'\nscheduler = 'df://h:1'", "--cluster-key"),
        ] {
            std::fs::write(&file, text).unwrap();
            let Err(error) = told(&["--config", &file.display().to_string()]) else {
                panic!("{text} was accepted");
            };
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
