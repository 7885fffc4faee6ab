//! The statements that run, and the results that wait to be fetched.
//!
//! A statement belongs to whoever waits for it: to the call that began it, or to the client that polls it. When nobody
//! waits any more it is cancelled, and so is the job that it waits for; `… ASYNC` leaves a job that goes on. A result
//! is fetched once, and is dropped if that does not happen for [`KEPT`].

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow_flight::FlightData;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::job::signal::{Signal, Stop};
use crate::protocol::{JobState, StatementState, status, status_of};
use crate::session::Headwater;
use crate::{Error, ErrorKind, Result};

/// How long a statement runs on that nobody polls.
pub(super) const UNPOLLED: Duration = Duration::from_secs(10);
/// How long a result waits to be fetched.
pub(super) const KEPT: Duration = Duration::from_secs(300);
/// How long a poll waits for the end of a statement before it says how far it is.
const POLL: Duration = Duration::from_millis(250);
/// How long a job that is cancelled is waited for, so that what it has is written down.
const SETTLE: Duration = Duration::from_millis(1500);
/// How long a server that ends waits for a client to hear of the end of its statement.
const TOLD: Duration = Duration::from_millis(500);
/// How large a message with rows is to be, in bytes, if a row is not larger.
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages that are made before the client has taken the one before.
const AHEAD: usize = 2;

/// The statements of a server.
#[derive(Clone)]
pub(super) struct Statements {
    shared: Arc<Shared>,
}

struct Shared {
    /// Where statements run: apart from the network, which must answer while all of them compute.
    workers: Handle,
    entries: Mutex<HashMap<String, Entry>>,
    /// Statements that run, however they were begun.
    running: AtomicUsize,
    ending: AtomicBool,
}

/// What a name stands for.
enum Entry {
    Running(Arc<Polled>),
    /// It could not be run. Whoever polls next is told.
    Failed(Error, Instant),
    Ready(Box<Answer>, Instant),
    /// Its rows are being fetched.
    Fetched(Arc<Task>),
}

/// A statement that is polled.
struct Polled {
    session: Headwater,
    started: Instant,
    /// Runs it, and puts its result in the place of this.
    _task: Task,
    /// Closed at its end.
    ended: watch::Receiver<()>,
    /// When a poll came, or ended, last; and how many wait.
    seen: Mutex<(Instant, usize)>,
}

/// The result of a statement. Its rows are computed while they are fetched.
pub(super) struct Answer {
    /// Its name.
    pub(super) id: String,
    /// The type of its rows.
    pub(super) schema: SchemaRef,
    /// How it went.
    pub(super) state: StatementState,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    /// Its tables must not go.
    _session: Headwater,
}

/// How far a statement is that is polled.
pub(super) enum Polling {
    /// It runs.
    Running(StatementState),
    /// Its result can be fetched: its schema and how it went.
    Ready(String, SchemaRef, StatementState),
}

/// A task that ends when this is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Statements {
    /// None yet; they will run on `workers`.
    pub(super) fn new(workers: Handle) -> Self {
        Self {
            shared: Arc::new(Shared {
                workers,
                entries: Mutex::default(),
                running: AtomicUsize::new(0),
                ending: AtomicBool::new(false),
            }),
        }
    }

    /// Runs a statement to its end, or to where its rows can be fetched. Dropping the future cancels it.
    pub(super) async fn run(&self, session: Headwater, sql: String) -> Result<Answer, Status> {
        self.check_open()?;
        let answer = self.attend(session, sql).await;
        answer.map_err(|error| status(&error))
    }

    /// As [`run`](Self::run), and keeps the result to be fetched.
    pub(super) async fn keep(
        &self,
        session: Headwater,
        sql: String,
    ) -> Result<(String, SchemaRef, StatementState), Status> {
        let answer = self.run(session, sql).await?;
        let kept = answer.described();
        let entry = Entry::Ready(Box::new(answer), Instant::now());
        self.entries().insert(kept.0.clone(), entry);
        Ok(kept)
    }

    /// Begins a statement that will be polled, and gives its name.
    pub(super) fn begin(&self, session: Headwater, sql: String) -> Result<String, Status> {
        self.check_open()?;
        let id = Uuid::new_v4().simple().to_string();
        let (ending, ended) = watch::channel(());
        // Held until the statement has its place, so that its end finds it.
        let mut entries = self.entries();
        let task = {
            let (statements, id, session) = (self.clone(), id.clone(), session.clone());
            tokio::spawn(async move {
                let result = statements.attend(session, sql).await;
                let now = Instant::now();
                let entry = match result {
                    Ok(mut answer) => {
                        answer.rename(&id);
                        Entry::Ready(Box::new(answer), now)
                    }
                    Err(error) => Entry::Failed(error, now),
                };
                // Not if it was cancelled just now.
                if let Some(place) = statements.entries().get_mut(&id) {
                    *place = entry;
                }
                drop(ending);
            })
        };
        let polled = Polled {
            session,
            started: Instant::now(),
            _task: Task(task),
            ended,
            seen: Mutex::new((Instant::now(), 0)),
        };
        entries.insert(id.clone(), Entry::Running(Arc::new(polled)));
        Ok(id)
    }

    /// Waits a moment for the end of a statement, and says how far it is.
    pub(super) async fn poll(&self, id: &str) -> Result<Polling, Status> {
        let running = match self.entries().get(id) {
            Some(Entry::Running(polled)) => Some(Arc::clone(polled)),
            _ => None,
        };
        if let Some(polled) = running {
            let _waiting = Waiting::new(&polled);
            let mut ended = polled.ended.clone();
            let _ =
                tokio::time::timeout(POLL, async { while ended.changed().await.is_ok() {} }).await;
        }
        let mut entries = self.entries();
        match entries.get_mut(id) {
            Some(Entry::Running(polled)) => Ok(Polling::Running(polled.state(id))),
            Some(Entry::Ready(answer, since)) => {
                *since = Instant::now();
                let (id, schema, state) = answer.described();
                Ok(Polling::Ready(id, schema, state))
            }
            Some(Entry::Failed(..)) => match entries.remove(id) {
                Some(Entry::Failed(error, _)) => Err(status(&error)),
                _ => Err(gone(id)),
            },
            Some(Entry::Fetched(_)) | None => Err(gone(id)),
        }
    }

    /// The rows of a result, which is not kept any longer.
    pub(super) fn fetch(&self, id: &str) -> Result<Rows, Status> {
        let mut entries = self.entries();
        let answer = match entries.remove(id) {
            Some(Entry::Ready(answer, _)) => answer,
            Some(other) => {
                entries.insert(id.to_string(), other);
                return Err(gone(id));
            }
            None => return Err(gone(id)),
        };
        let (rows, task) = answer.rows(&self.shared.workers, Some((self.clone(), id.to_string())));
        entries.insert(id.to_string(), Entry::Fetched(task));
        Ok(rows)
    }

    /// The rows of an answer that has no name.
    pub(super) fn rows(&self, answer: Answer) -> Rows {
        answer.rows(&self.shared.workers, None).0
    }

    /// Cancels a statement, or drops its result; false if there is none of that name.
    pub(super) async fn cancel(&self, id: &str) -> bool {
        let entry = self.entries().remove(id);
        match entry {
            None => false,
            Some(Entry::Running(polled)) => {
                let jobs = Arc::clone(polled.session.jobs());
                let begun = jobs.begun();
                for job in &begun {
                    jobs.tell(&job.id, Signal::Stop(Stop::Cancelled));
                }
                drop(polled);
                let settled = async {
                    for job in &begun {
                        jobs.wait(&job.id).await;
                    }
                };
                let _ = tokio::time::timeout(SETTLE, settled).await;
                true
            }
            Some(Entry::Fetched(task)) => {
                task.0.abort();
                true
            }
            Some(Entry::Ready(..) | Entry::Failed(..)) => true,
        }
    }

    /// As [`cancel`](Self::cancel), without waiting.
    pub(super) fn drop_statement(&self, id: &str) {
        let entry = self.entries().remove(id);
        if let Some(Entry::Fetched(task)) = &entry {
            task.0.abort();
        }
    }

    /// Cancels what nobody polls, and drops what nobody fetches.
    pub(super) fn tidy(&self) {
        let mut dropped = Vec::new();
        let mut entries = self.entries();
        let old: Vec<String> = entries
            .iter()
            .filter(|(_, entry)| match entry {
                Entry::Running(polled) => {
                    let (at, waiting) = *lock(&polled.seen);
                    waiting == 0 && at.elapsed() > UNPOLLED
                }
                Entry::Ready(_, since) | Entry::Failed(_, since) => since.elapsed() > KEPT,
                Entry::Fetched(_) => false,
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in old {
            dropped.extend(entries.remove(&id));
        }
        // Dropping takes its time, and may come back here.
        drop(entries);
        drop(dropped);
    }

    /// Takes no more statements.
    pub(super) fn close(&self) {
        self.shared.ending.store(true, Ordering::SeqCst);
    }

    /// Whether no statement runs, and none is being fetched or waits to be told its end.
    pub(super) fn are_through(&self) -> bool {
        let is_of_use = |entry: &Entry| match entry {
            Entry::Running(_) | Entry::Fetched(_) => true,
            // Whoever polls it does so within this time.
            Entry::Failed(_, since) => since.elapsed() < TOLD,
            Entry::Ready(..) => false,
        };
        self.shared.running.load(Ordering::SeqCst) == 0 && !self.entries().values().any(is_of_use)
    }

    /// Statements that run.
    pub(super) fn running(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// Where statements run.
    pub(super) fn workers(&self) -> &Handle {
        &self.shared.workers
    }

    fn check_open(&self) -> Result<(), Status> {
        if !self.shared.ending.load(Ordering::SeqCst) {
            return Ok(());
        }
        let error = Error::new(
            ErrorKind::Cancelled,
            "the server is ending: it takes no more statements",
        )
        .with_hint("try again when it was started again");
        Err(status_of(Code::Unavailable, &error))
    }

    /// Runs a statement on the workers, as long as this is waited for.
    async fn attend(&self, session: Headwater, sql: String) -> Result<Answer> {
        let started = Instant::now();
        let mut attended = Attended::new(Arc::clone(&self.shared), session.clone(), {
            let session = session.clone();
            self.shared.workers.spawn(async move {
                let frame = session.sql(&sql).await?;
                let context = Arc::new(frame.task_ctx());
                let plan = frame.create_physical_plan().await?;
                Ok((plan, context))
            })
        });
        let ended = (&mut attended.task).await;
        attended.is_through = true;
        let (plan, context) = match ended {
            Ok(result) => result?,
            Err(error) if error.is_panic() => {
                return Err(
                    Error::internal(format!("the statement panicked: {error}")).with_hint(
                        "this is a bug, of Headwater or of a function that the statement calls",
                    ),
                );
            }
            Err(_) => {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    "the statement was cancelled",
                ));
            }
        };
        let id = Uuid::new_v4().simple().to_string();
        Ok(Answer {
            schema: plan.schema(),
            state: StatementState {
                statement: id.clone(),
                running: false,
                elapsed_seconds: started.elapsed().as_secs_f64(),
                job: None,
                notices: session.take_notices(),
            },
            id,
            plan,
            context,
            _session: session,
        })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        lock(&self.shared.entries)
    }
}

type Planned = (Arc<dyn ExecutionPlan>, Arc<TaskContext>);

/// A statement that runs. It ends, and so does its job, when this is dropped before.
struct Attended {
    shared: Arc<Shared>,
    session: Headwater,
    task: JoinHandle<Result<Planned>>,
    is_through: bool,
}

impl Attended {
    fn new(shared: Arc<Shared>, session: Headwater, task: JoinHandle<Result<Planned>>) -> Self {
        shared.running.fetch_add(1, Ordering::SeqCst);
        Self {
            shared,
            session,
            task,
            is_through: false,
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.shared.running.fetch_sub(1, Ordering::SeqCst);
        if self.is_through {
            return;
        }
        self.task.abort();
        // At once, though the statement may have no worker left to hear of it.
        let jobs = self.session.jobs();
        for job in jobs.begun() {
            jobs.tell(&job.id, Signal::Stop(Stop::Cancelled));
        }
    }
}

impl Polled {
    fn state(&self, id: &str) -> StatementState {
        StatementState {
            statement: id.to_string(),
            running: true,
            elapsed_seconds: self.started.elapsed().as_secs_f64(),
            job: self.session.jobs().begun().pop().map(JobState::from),
            notices: Vec::new(),
        }
    }
}

/// A poll that waits.
struct Waiting<'a>(&'a Polled);

impl<'a> Waiting<'a> {
    fn new(polled: &'a Polled) -> Self {
        lock(&polled.seen).1 += 1;
        Self(polled)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut seen = lock(&self.0.seen);
        *seen = (Instant::now(), seen.1.saturating_sub(1));
    }
}

impl Answer {
    fn rename(&mut self, id: &str) {
        self.id = id.to_string();
        self.state.statement = id.to_string();
    }

    fn described(&self) -> (String, SchemaRef, StatementState) {
        (
            self.id.clone(),
            Arc::clone(&self.schema),
            self.state.clone(),
        )
    }

    /// Computes the rows.
    pub(super) fn execute(&self) -> Result<SendableRecordBatchStream> {
        Ok(execute_stream(
            Arc::clone(&self.plan),
            Arc::clone(&self.context),
        )?)
    }

    /// The rows as messages. They are computed on `workers`, not much faster than they are taken.
    fn rows(self, workers: &Handle, named: Option<(Statements, String)>) -> (Rows, Arc<Task>) {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let complete = Arc::new(AtomicBool::new(false));
        let completed = Arc::clone(&complete);
        let task = workers.spawn(async move {
            let batches = match self.execute() {
                Ok(batches) => batches,
                Err(error) => {
                    let _ = sender.send(Err(status(&error))).await;
                    return;
                }
            };
            let failed = |error| FlightError::Tonic(Box::new(status(&Error::from(error))));
            let mut messages = FlightDataEncoderBuilder::new()
                .with_schema(Arc::clone(&self.schema))
                .with_max_flight_data_size(MESSAGE_BYTES)
                // As they are: what a client gets has the types that it was told.
                .with_dictionary_handling(DictionaryHandling::Resend)
                .build(batches.map_err(failed));
            while let Some(message) = messages.next().await {
                let message = message.map_err(Status::from);
                let is_last = message.is_err();
                if sender.send(message).await.is_err() || is_last {
                    return;
                }
            }
            completed.store(true, Ordering::SeqCst);
        });
        let task = Arc::new(Task(task));
        let rows = Rows {
            receiver,
            complete,
            task: Arc::clone(&task),
            named,
        };
        (rows, task)
    }
}

/// The rows of a result as messages. Dropping it ends the query.
pub(super) struct Rows {
    receiver: mpsc::Receiver<Result<FlightData, Status>>,
    /// Whether all rows were sent. Without, the end is none.
    complete: Arc<AtomicBool>,
    task: Arc<Task>,
    named: Option<(Statements, String)>,
}

impl Stream for Rows {
    type Item = Result<FlightData, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = std::task::ready!(self.receiver.poll_recv(context));
        if let Some(Err(_)) = &message {
            // It says itself that it is the end.
            self.complete.store(true, Ordering::SeqCst);
        }
        if message.is_none() && !self.complete.swap(true, Ordering::SeqCst) {
            let error = Error::new(ErrorKind::Cancelled, "the statement was cancelled");
            return Poll::Ready(Some(Err(status(&error))));
        }
        Poll::Ready(message)
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.task.0.abort();
        if let Some((statements, id)) = &self.named {
            let entry = statements.entries().remove(id);
            drop(entry);
        }
    }
}

fn gone(id: &str) -> Status {
    let error = Error::new(
        ErrorKind::NotFound,
        format!("there is no statement or result '{id}' on this server"),
    )
    .with_hint(format!(
        "a result can be fetched once, within {} minutes; a statement that is not polled for {} seconds is cancelled; run it again",
        KEPT.as_secs() / 60,
        UNPOLLED.as_secs()
    ));
    status(&error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
