//! A cluster on this machine: a scheduler in this process, and executors in processes of their own.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use headwater::engine::ballista::scheduler::{Scheduler, Settings};
use headwater::session::Headwater;
use tokio::runtime::Runtime;

use crate::functions;
use crate::harness::Failure;
use crate::harness::daemon::Daemon;
use crate::harness::scene::Outcome;

/// A cluster. Its executors end with it.
pub struct Cluster {
    scheduler: Scheduler,
    executors: Mutex<Vec<Child>>,
    runtime: Option<Runtime>,
}

impl Cluster {
    /// One for all files: two executors with a slot each, so that plans are those of two cores.
    pub async fn shared() -> Result<&'static Cluster, Failure> {
        static SHARED: OnceLock<Result<Cluster, Failure>> = OnceLock::new();
        let shared = tokio::task::spawn_blocking(|| {
            SHARED.get_or_init(|| {
                let cluster = Cluster::start(Duration::from_secs(30))?;
                for _ in 0..2 {
                    cluster.add_executor(&["--slots", "1"])?;
                }
                Ok(cluster)
            })
        });
        shared
            .await
            .map_err(Failure::new)?
            .as_ref()
            .map_err(Clone::clone)
    }

    /// A scheduler without executors; after such a silence one counts as lost.
    pub fn start(executor_timeout: Duration) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(Failure::new)?;
        let settings = Settings {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            external_host: "127.0.0.1".to_string(),
            executor_timeout,
            security: Default::default(),
        };
        let codecs = functions::all(None)
            .into_iter()
            .fold(Headwater::builder(), |builder, function| {
                builder.scalar_function(function)
            })
            .function_codec(Arc::new(functions::CallsCodec))
            .codecs();
        let scheduler = runtime
            .block_on(Scheduler::start(settings, codecs))
            .map_err(Failure::new)?;
        Ok(Self {
            scheduler,
            executors: Mutex::default(),
            runtime: Some(runtime),
        })
    }

    /// Where its scheduler is.
    pub fn url(&self) -> String {
        format!("df://{}", self.scheduler.address())
    }

    /// Starts an executor, and waits until it is there.
    pub fn add_executor(&self, arguments: &[&str]) -> Result<(), Failure> {
        let executor = start_executor(&self.url(), arguments).map_err(Failure::new)?;
        self.executors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(executor);
        Ok(())
    }
}

impl Cluster {
    /// Sends SIG`name` to the executor that was started as number `place`.
    pub fn signal(&self, place: usize, name: &str) -> Result<(), Failure> {
        let executors = self.executors.lock();
        let executors = executors.unwrap_or_else(PoisonError::into_inner);
        let id = executors[place].id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        match sent.map_err(Failure::new)?.success() {
            true => Ok(()),
            false => Err(Failure::new(format!("SIG{name} could not be sent"))),
        }
    }
}

/// An executor of the scheduler at a URL, as a process that is listened to.
pub fn executor(scheduler: &str, arguments: &[&str]) -> Outcome<Daemon> {
    Daemon::new(spawn_executor(scheduler, arguments)?)
}

fn spawn_executor(scheduler: &str, arguments: &[&str]) -> io::Result<Child> {
    Command::new(env::current_exe()?)
        .env("HEADWATER_TEST_SHELL", "1")
        .env("HEADWATER_TEST_LEASH", "1")
        .args(["executor", "--scheduler", scheduler])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

fn start_executor(scheduler: &str, arguments: &[&str]) -> io::Result<Child> {
    let mut executor = spawn_executor(scheduler, arguments)?;
    let stderr = executor.stderr.take();
    let mut lines = BufReader::new(stderr.ok_or_else(|| io::Error::other("no stderr"))?).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next().transpose()? {
        if line.starts_with("Executor ready") {
            // Read on, so that it never waits for a reader.
            std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
            return Ok(executor);
        }
        said.push(line);
    }
    Err(io::Error::other(format!(
        "the executor ended: {}",
        said.join("\n")
    )))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for executor in self
            .executors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter_mut()
        {
            let _ = executor.kill();
            let _ = executor.wait();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
