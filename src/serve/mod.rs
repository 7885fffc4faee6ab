//! Keeps the materialized views of a database within their lag.
//!
//! A [`Keeper`] looks at the views again and again. Which of them are kept, within which limits, and how far they are
//! behind, [`view::lag`](crate::view::lag) says. What is due is refreshed in a [run](run), with the kept views that it
//! reads before it, by the jobs that REFRESH would begin: so it can be watched, cancelled and gone on with like those.
//!
//! # What holds
//!
//! - A look changes nothing. What is kept between two looks, in memory and in [`failures`], saves work; the
//!   views say themselves what they lack. So a keeper may die at any moment, and another one goes on.
//! - A view is in one run at a time. Two keepers, or one and someone's REFRESH, meet at the claims of jobs: whoever comes
//!   second waits. The [lease](lease) only spares the second keeper the looking.
//! - A view that fails is tried again after a while that grows, and suspended when it has failed so often in a row.

mod lease;
mod look;
mod report;
mod run;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

use self::lease::Lease;
use self::look::Look;
pub use self::report::Report;
use self::run::{Finished, Outcome, Run};
use crate::database::Database;
use crate::job::environment::Environment;
use crate::job::signal::{Signal, Stop};
use crate::session::Headwater;
use crate::view::failures::{self, Failures};
use crate::view::lag::{Watch, in_one_line};
use crate::view::suspend::suspend;
use crate::{ErrorKind, Result};

/// How often views are looked at, whatever their limits are.
const RHYTHM: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A view is looked at so often within its limit.
const LOOKS_PER_LIMIT: u32 = 4;
/// How soon a view is looked at that another job works on.
const SOON: Duration = Duration::from_millis(200);
/// Views that are opened at once.
const READS: usize = 16;
/// How long a failed view is left alone at first, and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// How long jobs that were told to end are waited for.
const ENDING: Duration = Duration::from_secs(10);

/// How a keeper works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Views and computed columns that are refreshed at once.
    pub jobs: usize,
    /// After so many failures in a row a view is suspended; `None`: never.
    pub suspend_after: Option<u32>,
    /// How long it is from one look to the next; `None`: as the limits of the views ask for.
    pub every: Option<Duration>,
    /// How long jobs that run may go on when the keeper is told to stop.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            jobs: 4,
            suspend_after: Some(5),
            every: None,
            grace: Duration::from_secs(30),
        }
    }
}

/// What hears of all that a keeper does.
type Listener = Box<dyn Fn(&Report) + Send + Sync>;

/// Keeps the views of one database within their lag.
pub struct Keeper {
    environment: Environment,
    settings: Settings,
    tell: Listener,
    watch: Watch,
    /// The views of runs that have not ended.
    busy: BTreeSet<String>,
    runs: JoinSet<()>,
    views_of: HashMap<Id, BTreeSet<String>>,
    finished: (
        mpsc::UnboundedSender<Finished>,
        mpsc::UnboundedReceiver<Finished>,
    ),
    gate: Arc<Semaphore>,
    /// Views that other jobs work on, with the names of these.
    elsewhere: BTreeMap<String, Option<String>>,
    /// Views that were cancelled, and until when they are left alone.
    cancelled: HashMap<String, Instant>,
    /// How long the last refresh of a view took.
    took: HashMap<String, Duration>,
    /// Views whose job was interrupted before this began.
    interrupted: Option<HashSet<String>>,
    /// How many kept views there were at the last look.
    kept: Option<usize>,
    /// What was refreshed, and what could not be: for a single round.
    done: BTreeSet<String>,
    lost: BTreeSet<String>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("settings", &self.settings)
            .field("busy", &self.busy)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// A keeper of the views of `session`. Rows are computed on `workers`; all that it does it tells to `tell`.
    pub fn new(
        session: &Headwater,
        workers: Handle,
        settings: Settings,
        tell: impl Fn(&Report) + Send + Sync + 'static,
    ) -> Self {
        Self {
            environment: Environment {
                database: Arc::clone(session.database()),
                state: session.context().state(),
                jobs: Arc::clone(session.jobs()),
                workers,
            },
            gate: Arc::new(Semaphore::new(settings.jobs.max(1))),
            settings,
            tell: Box::new(tell),
            watch: Watch::default(),
            busy: BTreeSet::new(),
            runs: JoinSet::new(),
            views_of: HashMap::new(),
            finished: mpsc::unbounded_channel(),
            elsewhere: BTreeMap::new(),
            cancelled: HashMap::new(),
            took: HashMap::new(),
            interrupted: None,
            kept: None,
            done: BTreeSet::new(),
            lost: BTreeSet::new(),
        }
    }

    /// Keeps the views within their limits until `stop` says true. Waits while another process does.
    ///
    /// # Errors
    ///
    /// If the database can't be read when it begins; later that is told, and tried again.
    pub async fn serve(&mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let Some(mut lease) = self.lease(&mut stop).await? else {
            return Ok(());
        };
        let mut patience = backoff(PATIENCE.0, RHYTHM.1);
        let mut next = tokio::time::Instant::now();
        let mut beat = tokio::time::interval(lease::BEAT);
        let is_told = loop {
            tokio::select! {
                () = told(&mut stop) => break true,
                Some(finished) = self.finished.1.recv() => {
                    self.take(finished).await;
                    continue;
                }
                Some(ended) = self.runs.join_next_with_id() => {
                    self.ended(ended).await;
                    continue;
                }
                _ = beat.tick() => {
                    if !lease.keep().await.unwrap_or(true) {
                        break false;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(next) => {}
            }
            let wait = match Box::pin(self.look(false)).await {
                Ok(look) => {
                    patience = backoff(PATIENCE.0, RHYTHM.1);
                    let next = look.next;
                    self.start(look);
                    next
                }
                Err(error) if self.kept.is_none() => {
                    lease.release().await;
                    return Err(error);
                }
                Err(error) => {
                    (self.tell)(&Report::Unreadable(in_one_line(&error)));
                    patience.next().unwrap_or(RHYTHM.1)
                }
            };
            next = tokio::time::Instant::now() + wait;
        };
        if !is_told {
            (self.tell)(&Report::Superseded);
        }
        self.stop().await;
        lease.release().await;
        Ok(())
    }

    /// The lease, once no other process has it; `None` if it is told to stop before.
    async fn lease(&self, stop: &mut watch::Receiver<bool>) -> Result<Option<Lease>> {
        let mut said = None;
        loop {
            let holder = match Lease::acquire(self.environment.jobs.ledger()).await? {
                Ok(lease) => return Ok(Some(lease)),
                Err(holder) => holder,
            };
            if said.as_ref() != Some(&holder) {
                (self.tell)(&Report::Waiting(holder.to_string()));
                said = Some(holder);
            }
            tokio::select! {
                () = told(stop) => return Ok(None),
                () = tokio::time::sleep(lease::RETRY) => {}
            }
        }
    }

    /// Refreshes once all kept views that are behind, waits for their ends, and says whether nothing failed. With
    /// [`Settings::every`] it leaves alone what will be within its limit when so much time is over.
    ///
    /// # Errors
    ///
    /// If the database can't be read.
    pub async fn once(&mut self, mut stop: watch::Receiver<bool>) -> Result<bool> {
        loop {
            let mut look = Box::pin(self.look(true)).await?;
            // What failed, and what reads it, is not tried again; nor what was refreshed, whatever came since.
            look.due.retain(|view| {
                !self.done.contains(view)
                    && !self.lost.contains(view)
                    && look.lags.before(view).is_disjoint(&self.lost)
            });
            if look.due.is_empty() && self.elsewhere.is_empty() {
                return Ok(self.lost.is_empty());
            }
            self.start(look);
            while !self.runs.is_empty() {
                tokio::select! {
                    () = told(&mut stop) => {
                        self.stop().await;
                        return Ok(false);
                    }
                    Some(finished) = self.finished.1.recv() => self.take(finished).await,
                    Some(ended) = self.runs.join_next_with_id() => self.ended(ended).await,
                }
            }
            // What others work on is looked at again when they are through.
            while !self.elsewhere.is_empty() {
                tokio::select! {
                    () = told(&mut stop) => return Ok(false),
                    () = tokio::time::sleep(SOON) => self.come_back().await?,
                }
            }
        }
    }

    fn database(&self) -> &Arc<Database> {
        &self.environment.database
    }

    fn now(&self) -> i64 {
        self.environment.jobs.ledger().now()
    }

    /// Starts a run of what is due, as far as none of it is in another.
    fn start(&mut self, look: Look) {
        let mut due = Vec::new();
        let mut views: BTreeSet<String> = BTreeSet::new();
        for one in look.due {
            let mut all = look.lags.before(&one);
            all.insert(one.clone());
            let is_free =
                |name: &String| !self.busy.contains(name) && !self.elsewhere.contains_key(name);
            if all.iter().all(is_free) {
                views.extend(all);
                due.push(one);
            }
        }
        if due.is_empty() {
            return;
        }
        // What others read comes first.
        due.sort_by_key(|one: &String| look.lags.before(one).len());
        self.busy.extend(views.iter().cloned());
        let run = Run {
            environment: self.environment.clone(),
            lags: look.lags,
            definitions: look.definitions,
            behind: look.behind,
            due,
            gate: Arc::clone(&self.gate),
            sender: self.finished.0.clone(),
        };
        let handle = self.runs.spawn(run.all());
        self.views_of.insert(handle.id(), views);
    }

    /// Takes note that a run has ended, in whatever way.
    async fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        // What it said last may not have been heard.
        while let Ok(finished) = self.finished.1.try_recv() {
            self.take(finished).await;
        }
        let views = self.views_of.remove(&id).unwrap_or_default();
        if let Err(error) = ended {
            (self.tell)(&Report::Unreadable(format!("a run failed: {error}")));
            self.lost.extend(views.iter().cloned());
        }
        for view in views {
            self.busy.remove(&view);
        }
    }

    /// Takes note of what became of a view.
    async fn take(&mut self, finished: Finished) {
        let Finished {
            view,
            definition,
            behind,
            limit,
            outcome,
        } = finished;
        let now = self.now();
        match outcome {
            Outcome::Columns(refreshed) => {
                if refreshed.job.is_some() {
                    (self.tell)(&Report::Columns(refreshed));
                }
                return;
            }
            Outcome::Refreshed(report, sources) => {
                self.took.insert(view.clone(), report.elapsed);
                self.cancelled.remove(&view);
                if report.mode == "none" {
                    self.watch.settle(&view, report.version, sources);
                }
                let forgotten = failures::forget(self.database(), &view).await;
                if let Err(error) = forgotten {
                    (self.tell)(&Report::Unreadable(in_one_line(&error)));
                }
                self.done.insert(view.clone());
                if report.mode != "none" {
                    (self.tell)(&Report::Refreshed {
                        report,
                        behind: behind.age(now),
                        limit,
                    });
                }
            }
            Outcome::Busy(job) => {
                (self.tell)(&Report::Elsewhere(view.clone(), job.clone()));
                self.elsewhere.insert(view.clone(), job);
            }
            // The next look finds what to do.
            Outcome::Overtaken => {
                self.elsewhere.insert(view.clone(), None);
            }
            Outcome::Skipped => {}
            Outcome::Failed(error) if error.kind() == ErrorKind::Cancelled => {
                (self.tell)(&Report::Cancelled(view.clone(), in_one_line(&error)));
                self.cancelled.insert(view.clone(), Instant::now() + limit);
                self.lost.insert(view.clone());
            }
            Outcome::Failed(error) => self.fail(&view, definition, &error, now).await,
        }
        self.busy.remove(&view);
    }

    /// Takes note of a failure: when the view is tried again, or that it is not.
    async fn fail(
        &mut self,
        view: &str,
        definition: Option<String>,
        error: &crate::Error,
        now: i64,
    ) {
        let database = Arc::clone(self.database());
        let there = database.materialized_view(view).await;
        let Some(definition) = definition.filter(|id| {
            // It was dropped or made again meanwhile: that is no failure.
            !matches!(&there, Ok(there) if there.as_ref().is_none_or(|there| there.id != *id))
        }) else {
            return;
        };
        self.lost.insert(view.to_string());
        let text = in_one_line(error);
        let before = failures::read(&database, view).await.ok().flatten();
        let before = before.filter(|before| before.definition == definition);
        let count = before.map_or(0, |before| before.count).saturating_add(1);
        let rest = backoff(PATIENCE.0, PATIENCE.1)
            .nth(count as usize - 1)
            .unwrap_or(PATIENCE.1);
        let failures = Failures {
            definition: definition.clone(),
            count,
            error: text.clone(),
            at: now,
            next: now.saturating_add(i64::try_from(rest.as_millis()).unwrap_or(i64::MAX)),
        };
        (self.tell)(&Report::Failed {
            view: view.to_string(),
            error: text.clone(),
            count,
            of: self.settings.suspend_after,
            rest,
        });
        if let Err(error) = failures::store(&database, view, &failures).await {
            (self.tell)(&Report::Unreadable(in_one_line(&error)));
            // Nothing says when to try again: not at once.
            self.cancelled
                .insert(view.to_string(), Instant::now() + rest);
        }
        if self.settings.suspend_after.is_none_or(|most| count < most) {
            return;
        }
        let times = if count == 1 {
            "refresh"
        } else {
            "refreshes in a row"
        };
        let because = format!("{count} {times} failed; the last: {text}");
        match suspend(&database, view, &definition, &because).await {
            Ok(true) => (self.tell)(&Report::Suspended(view.to_string(), count)),
            Ok(false) => {}
            Err(error) => (self.tell)(&Report::Unreadable(in_one_line(&error))),
        }
    }

    /// Lets jobs that run go on for a while, then cancels them, and waits for their ends.
    async fn stop(&mut self) {
        let running = self.environment.jobs.running().len();
        (self.tell)(&Report::Stopping(running, self.settings.grace));
        let grace = tokio::time::Instant::now() + self.settings.grace;
        // Only what runs: a view that has not begun can wait for the next keeper.
        self.gate.close();
        while !self.runs.is_empty() {
            tokio::select! {
                Some(finished) = self.finished.1.recv() => self.take(finished).await,
                Some(ended) = self.runs.join_next_with_id() => self.ended(ended).await,
                () = tokio::time::sleep_until(grace) => break,
            }
        }
        let jobs = Arc::clone(&self.environment.jobs);
        for job in jobs.running() {
            (self.tell)(&Report::Cancelling(job.id.clone(), job.statement));
            jobs.tell(&job.id, Signal::Stop(Stop::Cancelled));
        }
        let _ = tokio::time::timeout(ENDING, jobs.settled()).await;
        self.runs.shutdown().await;
        (self.tell)(&Report::Stopped);
    }
}

/// Waits until it is told to stop, or nobody is there who could.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Times that grow, with some chance in them, so that what failed together is not tried together.
fn backoff(first: Duration, longest: Duration) -> impl Iterator<Item = Duration> + Send {
    // Random: without a seed it would be the same in every process.
    let seed = uuid::Uuid::new_v4().as_u128() as u64;
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(seed)
        .build()
}
