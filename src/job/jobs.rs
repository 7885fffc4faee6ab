//! The jobs of this process.
//!
//! Drivers run on a thread of their own: functions may keep all workers of the session's runtime
//! busy for minutes, and a driver has to show that it lives, hear what it is told and commit what is
//! done meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{oneshot, watch};

use super::counters::{Counters, Figures};
use super::driver::Driver;
use super::ledger::Ledger;
use super::signal::{Signal, Signaller, Stop};
use crate::{Error, Result};

/// Runs jobs, and knows those that run.
pub struct Jobs {
    ledger: Ledger,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
    thread: Arc<JobThread>,
    /// Names of the jobs that were begun through this value.
    begun: Arc<Mutex<Vec<String>>>,
}

/// Where drivers run, once there is one.
#[derive(Default)]
struct JobThread(Mutex<Option<Runtime>>);

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Running {
    statement: String,
    started: Instant,
    counters: Arc<Counters>,
    signal: Signaller,
    /// Closed when the job has ended.
    ended: watch::Receiver<()>,
}

/// A job that runs in this process.
#[derive(Debug, Clone)]
pub struct RunningJob {
    /// Its name.
    pub id: String,
    /// Its statement.
    pub statement: String,
    /// How long it has run.
    pub elapsed: Duration,
    /// What it has done.
    pub figures: Figures,
}

/// What a statement waits for. Dropping it cancels the job.
#[derive(Debug)]
pub struct Attached<T> {
    id: String,
    signal: Signaller,
    result: oneshot::Receiver<Result<T>>,
    detached: bool,
}

impl<T> Attached<T> {
    /// The name of the job.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for its result.
    pub async fn wait(mut self) -> Result<T> {
        let result = (&mut self.result).await;
        self.detached = true;
        result.unwrap_or_else(|_| Err(Error::internal("a job ended without a result")))
    }

    /// Leaves the job to itself.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl<T> Drop for Attached<T> {
    fn drop(&mut self) {
        if !self.detached {
            self.signal.tell(Signal::Stop(Stop::Cancelled));
        }
    }
}

/// Work that has begun, if there was any.
#[derive(Debug)]
pub enum Begun<T> {
    /// There is nothing to do.
    Nothing(T),
    /// A job does it.
    Job(Attached<T>),
}

impl<T> Begun<T> {
    /// Waits for its end.
    pub async fn wait(self) -> Result<T> {
        match self {
            Self::Nothing(result) => Ok(result),
            Self::Job(job) => job.wait().await,
        }
    }
}

impl Jobs {
    /// The jobs that are written down in `ledger`; none runs yet.
    pub fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            running: Arc::default(),
            thread: Arc::default(),
            begun: Arc::default(),
        }
    }

    /// The same jobs for another session on the database, or for one statement of several: what is begun
    /// through it, [`begun`](Self::begun) tells.
    pub(crate) fn beside(&self, ledger: Ledger) -> Self {
        Self {
            ledger,
            running: Arc::clone(&self.running),
            thread: Arc::clone(&self.thread),
            begun: Arc::default(),
        }
    }

    /// Where they are written down.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where drivers run. Only the first job makes the thread.
    fn handle(&self) -> Result<Handle> {
        let mut runtime = lock(&self.thread.0);
        if let Some(runtime) = &*runtime {
            return Ok(runtime.handle().clone());
        }
        let made = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("jobs")
            // A commit plans and encodes on it.
            .thread_stack_size(16 << 20)
            .enable_all()
            .build()
            .map_err(|error| {
                Error::internal(format!("no thread for jobs: {error}")).with_source(error)
            })?;
        Ok(runtime.insert(made).handle().clone())
    }

    /// Runs `begin`, which begins a job, and then `work`, beside what runs already.
    ///
    /// # Errors
    ///
    /// If the job can't begin.
    pub async fn start<T, B, Begun, W, Worked>(&self, begin: B, work: W) -> Result<Attached<T>>
    where
        T: Send + 'static,
        B: FnOnce(Signaller) -> Begun + Send + 'static,
        Begun: Future<Output = Result<Driver>> + Send + 'static,
        W: FnOnce(Driver) -> Worked + Send + 'static,
        Worked: Future<Output = Result<T>> + Send + 'static,
    {
        let signal = Signaller::default();
        let (begun, id) = oneshot::channel();
        let (sender, result) = oneshot::channel();
        // From here on: if nobody waits any more, the job is told so, even while it begins.
        let mut attached = Attached {
            id: String::new(),
            signal: signal.clone(),
            result,
            detached: false,
        };
        let running = Arc::clone(&self.running);
        let names = Arc::clone(&self.begun);
        self.handle()?.spawn(async move {
            let driver = match begin(signal.clone()).await {
                Ok(driver) => driver,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            let (ending, ended) = watch::channel(());
            let id = driver.id().to_string();
            let job = Running {
                statement: driver.record().statement.clone(),
                started: Instant::now(),
                counters: Arc::clone(driver.counters()),
                signal,
                ended,
            };
            lock(&running).insert(id.clone(), job);
            lock(&names).push(id.clone());
            let _listed = Listed {
                id: id.clone(),
                running,
                _ending: ending,
            };
            let _ = begun.send(id);
            let result = work(driver).await;
            // The statement may be gone.
            let _ = sender.send(result);
        });
        match id.await {
            Ok(id) => {
                attached.id = id;
                Ok(attached)
            }
            // It did not begin: its result says why.
            Err(_) => match attached.wait().await {
                Err(error) => Err(error),
                Ok(_) => Err(Error::internal("a job ended before it began")),
            },
        }
    }

    /// The jobs that run in this process, oldest first.
    pub fn running(&self) -> Vec<RunningJob> {
        lock(&self.running)
            .iter()
            .map(|(id, job)| job.described(id))
            .collect()
    }

    /// Those of them that were begun through this value, not by another session or statement.
    pub fn begun(&self) -> Vec<RunningJob> {
        let begun = lock(&self.begun);
        let running = lock(&self.running);
        begun
            .iter()
            .filter_map(|id| running.get(id).map(|job| job.described(id)))
            .collect()
    }

    /// Tells a job of this process something; false if it does not run here.
    pub fn tell(&self, id: &str, signal: Signal) -> bool {
        let running = lock(&self.running);
        let job = running.get(id);
        if let Some(job) = job {
            job.signal.tell(signal);
        }
        job.is_some()
    }

    /// Waits until a job of this process has ended; false at once if it does not run here.
    pub async fn wait(&self, id: &str) -> bool {
        let ended = lock(&self.running).get(id).map(|job| job.ended.clone());
        match ended {
            Some(mut ended) => {
                while ended.changed().await.is_ok() {}
                true
            }
            None => false,
        }
    }

    /// Waits until the jobs of this process that were told to stop have ended.
    pub async fn settled(&self) {
        loop {
            let stopping = lock(&self.running)
                .iter()
                .find(|(_, job)| matches!(job.signal.now(), Signal::Stop(_)))
                .map(|(id, _)| id.clone());
            match stopping {
                Some(id) => self.wait(&id).await,
                None => return,
            };
        }
    }

    /// Waits until all jobs of this process have ended.
    pub async fn wait_for_all(&self) {
        while let Some(job) = self.running().first() {
            self.wait(&job.id).await;
        }
    }
}

impl Running {
    fn described(&self, id: &str) -> RunningJob {
        RunningJob {
            id: id.to_string(),
            statement: self.statement.clone(),
            elapsed: self.started.elapsed(),
            figures: self.counters.figures(),
        }
    }
}

impl Drop for JobThread {
    fn drop(&mut self) {
        let Some(runtime) = lock(&self.0).take() else {
            return;
        };
        // Dropping a runtime waits for its threads, which is not allowed inside another one. To let go of them while they
        // end is a race in glibc (bug 19951), which ends the process.
        let held = Arc::new(Mutex::new(Some(runtime)));
        let taken = Arc::clone(&held);
        let waits = std::thread::Builder::new().spawn(move || drop(lock(&taken).take()));
        if waits.is_err()
            && let Some(runtime) = lock(&held).take()
        {
            runtime.shutdown_background();
        }
    }
}

/// Takes a job off the list when it ends, even by a panic.
struct Listed {
    id: String,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
    _ending: watch::Sender<()>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
