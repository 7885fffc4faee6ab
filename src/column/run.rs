//! Runs a refresh: as a job, pass after pass, unit after unit.
//!
//! A pass is computed from one version. Its units finish in any order; what is finished is
//! committed every so many fragments or seconds. What does not fit the newest version any more, because
//! others have compacted or overtaken it, is laid out anew in another round: its results are staged by row id,
//! so nothing is computed twice.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use futures::future::pending;
use lance::Dataset;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::assess::{Column, Rows, rows_changed};
use super::commit::{Committer, Outcome, Written};
use super::mirror::{mirror_states, needed_versions};
use super::plan::{Limits, Pass, Unit, Wanted};
use super::refresh::{
    CHECKPOINT_INTERVAL, COMMIT_EVERY, COMMIT_INTERVAL, ColumnReport, RanPass, Refresh, Settings,
    load_columns, order, plan_pass,
};
use super::staged::{Staged, Staging, discard, discard_all};
use super::state::ColumnState;
use super::work::{Pace, Work, is_stop};
use super::write::written_units;
use crate::database::Database;
use crate::engine::run_partitions;
use crate::job::counters::Count;
use crate::job::driver::{Driver, Ending, JobRequest, end_interrupted, stop_error};
use crate::job::jobs::{Attached, Jobs};
use crate::job::signal::{Signal, Stop};
use crate::storage::column_file::{SplitFile, files_that_fit};
use crate::storage::fragments::{all_live_ids, live_ids};
use crate::storage::properties::{COLUMN_STATE, COMPUTED_ROWS, JOB};
use crate::storage::{RowSet, pin, storage_error};
use crate::{Error, ErrorKind, Result};

/// How often a pass is laid out anew because others changed the table meanwhile.
const ROUNDS: usize = 5;
/// How long units that were told to stop are waited for: they write down what they have.
const GRACE: Duration = Duration::from_millis(700);
/// How long a written fragment may be known to its driver only.
const UNRECORDED: Duration = Duration::from_secs(1);

/// What a refresh runs in.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The database.
    pub database: Arc<Database>,
    /// The session, for planning.
    pub state: SessionState,
    /// The jobs of this process.
    pub jobs: Arc<Jobs>,
    /// Where units are computed.
    pub workers: Handle,
}

/// What a refresh came to.
#[derive(Debug)]
pub struct Refreshed {
    /// The job; `None` if there was nothing to do.
    pub job: Option<String>,
    /// The passes, in order.
    pub passes: Vec<RanPass>,
    /// What a user should know although it worked.
    pub notices: Vec<String>,
}

/// A refresh that has begun.
#[derive(Debug)]
pub enum Begun {
    /// There is nothing to do.
    Nothing(Refreshed),
    /// A job does it.
    Job(Attached<Refreshed>),
}

impl Begun {
    /// Waits for its end.
    pub async fn wait(self) -> Result<Refreshed> {
        match self {
            Self::Nothing(refreshed) => Ok(refreshed),
            Self::Job(job) => job.wait().await,
        }
    }
}

/// Begins a refresh. If there is nothing to do, nothing is written, not even a job.
pub async fn begin(environment: &Environment, request: &Refresh) -> Result<Begun> {
    let Environment {
        database, state, ..
    } = environment;
    let started = Instant::now();
    let table = database.table(&request.table).await?;
    let groups = order(database, state, &table, request).await?;
    check_version(environment, request, &groups).await?;
    let mut planned = Vec::with_capacity(groups.len());
    for columns in &groups {
        let pass = plan_pass(database, state, request, columns).await?;
        let is_empty = pass.is_empty();
        planned.push(pass);
        if !is_empty {
            break;
        }
    }
    let columns: Vec<String> = groups.iter().flatten().cloned().collect();
    let objects = load_columns(state, &table, &columns)?
        .iter()
        .map(|column| format!("{}/{}", table.name, column.field_id))
        .collect();
    if planned.iter().all(Pass::is_empty) {
        let passes: Vec<RanPass> = planned
            .into_iter()
            .map(|pass| nothing(pass, started))
            .collect();
        let reports = passes.iter().flat_map(|pass| &pass.reports);
        let pending = reports.map(|report| report.rows_pending).sum();
        let ledger = environment.jobs.ledger();
        let (statement, name) = (&request.statement, &table.name);
        if let Some(job) = end_interrupted(ledger, statement, name, pending).await? {
            discard_all(database, name, &job).await?;
        }
        return Ok(Begun::Nothing(Refreshed {
            job: None,
            passes,
            notices: Vec::new(),
        }));
    }
    let mut tasks = planned.iter().flat_map(|pass| &pass.tasks);
    let first = tasks.find(|task| task.rows > 0);
    let job = JobRequest {
        statement: request.statement.clone(),
        table: table.name.clone(),
        columns,
        mode: first.map(|task| task.mode.to_string()).unwrap_or_default(),
        reason: first.map(|task| task.reason.clone()).unwrap_or_default(),
        objects,
        request: serde_json::to_value(request)
            .map_err(|error| Error::internal(format!("a request can't be written: {error}")))?,
        version: table.version(),
        timeout: request.settings.timeout,
        max_time: request.settings.max_time,
    };
    let ledger = environment.jobs.ledger().clone();
    let (environment, request) = (environment.clone(), request.clone());
    let jobs = Arc::clone(&environment.jobs);
    let attached = jobs
        .start(
            move |signal| async move { Driver::begin(&ledger, job, signal).await },
            move |driver| async move {
                Run::new(environment, request, driver)
                    .all(groups, planned)
                    .await
            },
        )
        .await?;
    Ok(Begun::Job(attached))
}

/// A refresh that reads an older version must not lead behind what the columns reflect already.
async fn check_version(
    environment: &Environment,
    request: &Refresh,
    groups: &[Vec<String>],
) -> Result<()> {
    let Some(version) = request.settings.version else {
        return Ok(());
    };
    let newest = environment.database.table(&request.table).await?;
    let names: Vec<String> = groups.iter().flatten().cloned().collect();
    let columns = load_columns(&environment.state, &newest, &names)?;
    let then = environment
        .database
        .table_at(&request.table, Some(version))
        .await?;
    let columns_then = load_columns(&environment.state, &then, &names)
        .map_err(|error| error.context(format!("version {version}")))?;
    for (column, then) in columns.iter().zip(&columns_then) {
        if column.definition.digest() != then.definition.digest() {
            return Err(Error::invalid(format!(
                "column '{}' of table '{}' had another definition at version {version}",
                column.name(),
                newest.name
            ))
            .with_hint("leave 'version' out, or name a later one"));
        }
    }
    let ids: Vec<i32> = columns.iter().map(|column| column.field_id).collect();
    let states = super::state::find_states(&newest.name, &newest.dataset, &ids).await?;
    for (column, state) in columns.iter().zip(states) {
        if let super::state::FoundState::State(state) = state
            && state.watermark.version > version
        {
            return Err(Error::invalid(format!(
                "column '{}' of table '{}' reflects version {} already, so it can't be refreshed as of version {version}",
                column.name(),
                newest.name,
                state.watermark.version
            ))
            .with_hint("leave 'version' out, or name a later one"));
        }
    }
    Ok(())
}

fn nothing(pass: Pass, started: Instant) -> RanPass {
    let reports = pass
        .tasks
        .iter()
        .map(|task| ColumnReport {
            object: format!("{}.{}", pass.table.name, task.column.name()),
            mode: task.mode,
            reason: String::new(),
            rows_computed: 0,
            rows_reused: 0,
            rows_skipped: pass.table_rows.saturating_sub(task.rows),
            rows_pending: match task.assessment.todo() {
                Rows::All => pass.table_rows,
                Rows::Some(rows) => rows.len(),
            },
            rows_failed: 0,
            fragments: 0,
            version: pass.table.version(),
            elapsed: started.elapsed(),
        })
        .collect();
    RanPass {
        pass,
        plan: None,
        reports,
    }
}

/// A refresh that is running.
struct Run {
    environment: Environment,
    request: Refresh,
    driver: Driver,
    passes: Vec<RanPass>,
    /// What is left of the limits.
    limits: Limits,
    /// Whether files were staged that a later run might find.
    has_staged: bool,
    notices: Vec<String>,
}

/// What one round of a pass leaves.
struct Round {
    committer: Committer,
    /// Rows that were computed, but have not landed, by column.
    unfit: Vec<RowSet>,
    /// Rows that landed with values of an earlier run, by column.
    reused: Vec<RowSet>,
    plan: Option<Arc<dyn ExecutionPlan>>,
    /// Why it ended early.
    stopped: Option<Stop>,
    failed: Option<Error>,
}

impl Run {
    fn new(environment: Environment, request: Refresh, driver: Driver) -> Self {
        let limits = request.settings.limits();
        Self {
            environment,
            request,
            driver,
            passes: Vec::new(),
            limits,
            has_staged: false,
            notices: Vec::new(),
        }
    }

    fn settings(&self) -> &Settings {
        &self.request.settings
    }

    /// All passes; `planned` are the first of them.
    async fn all(mut self, groups: Vec<Vec<String>>, planned: Vec<Pass>) -> Result<Refreshed> {
        let columns: Vec<String> = groups.iter().flatten().cloned().collect();
        let result = self.passes(groups, planned).await;
        self.count_pending(None);
        let is_through = matches!(result, Ok(None));
        // The error itself matters more than a figure.
        if !is_through && let Err(error) = self.count_unreported(&columns).await {
            log::warn!("job '{}': {error}", self.driver.id());
        }
        if is_through && (self.has_staged || self.driver.is_resumed()) {
            let database = &self.environment.database;
            discard_all(database, &self.request.table, self.driver.id()).await?;
        }
        // Failing at it makes the next refresh dearer, not this one wrong. A store that is away or full does
        // not get better by it.
        let is_store_ill = matches!(&result, Err(error) if error.kind() == ErrorKind::Storage);
        if !is_store_ill && let Err(error) = self.keep_versions().await {
            log::warn!("job '{}': {error}", self.driver.id());
        }
        let Self {
            driver,
            passes,
            notices,
            ..
        } = self;
        let id = driver.id().to_string();
        match result {
            Ok(None) => {
                let rows = driver.counters().get(Count::RowsComputed);
                let pending = driver.counters().get(Count::RowsPending);
                let message = format!("{rows} rows computed, {pending} pending");
                driver.finish(Ending::Done(message)).await?;
            }
            Ok(Some(Stop::OutOfTime)) => driver.finish(Ending::Stopped(Stop::OutOfTime)).await?,
            Ok(Some(stop)) => {
                driver.finish(Ending::Stopped(stop)).await?;
                return Err(stop_error(stop, &id));
            }
            Err(error) => {
                // The error itself matters more than its record.
                let _ = driver.finish(Ending::Failed(&error)).await;
                return Err(error);
            }
        }
        Ok(Refreshed {
            job: Some(id),
            passes,
            notices,
        })
    }

    /// Counts the rows that are pending and skipped: of the passes that have ended, and of the one that
    /// is on its way.
    fn count_pending(&self, pass: Option<(&Pass, &Committer)>) {
        let reports = || self.passes.iter().flat_map(|pass| &pass.reports);
        let mut pending: u64 = reports().map(|r| r.rows_pending).sum();
        let mut skipped: u64 = reports().map(|r| r.rows_skipped).sum();
        if let Some((pass, committer)) = pass {
            for (place, task) in pass.tasks.iter().enumerate() {
                pending += committer.pending(place).len();
                skipped += pass.table_rows.saturating_sub(task.rows);
            }
        }
        let counters = self.driver.counters();
        counters.set(Count::RowsPending, pending);
        counters.set(Count::RowsSkipped, skipped);
    }

    /// Counts what the columns lack of whose pass nothing is reported: it never began, or broke off.
    async fn count_unreported(&self, columns: &[String]) -> Result<()> {
        let Environment {
            database, state, ..
        } = &self.environment;
        let tasks = || self.passes.iter().flat_map(|ran| &ran.pass.tasks);
        let rest: Vec<String> = columns
            .iter()
            .filter(|name| !tasks().any(|task| task.column.name() == *name))
            .cloned()
            .collect();
        if rest.is_empty() {
            return Ok(());
        }
        let table = database.table(&self.request.table).await?;
        let columns = load_columns(state, &table, &rest)?;
        let rows = table.dataset.count_rows(None).await? as u64;
        for assessment in super::assess::assess(database, &table, &columns).await? {
            let pending = match assessment.todo() {
                Rows::All => rows,
                Rows::Some(todo) => todo.len(),
            };
            self.driver.counters().add(Count::RowsPending, pending);
        }
        Ok(())
    }

    /// Lets go of the versions that no column of the table goes back to any more, and sees to it that
    /// the states outlive the versions that carry them.
    async fn keep_versions(&self) -> Result<()> {
        let table = self.environment.database.table(&self.request.table).await?;
        let dataset = table.dataset.as_ref();
        let columns: Vec<i32> = table
            .definitions
            .stored
            .keys()
            .filter_map(|name| dataset.schema().field(name))
            .map(|field| field.id)
            .collect();
        mirror_states(&table.name, dataset, &columns).await?;
        let needed = needed_versions(&table.name, dataset, &columns).await?;
        let mut keep: BTreeSet<u64> = needed.into_keys().collect();
        let (ledger, own) = (self.driver.ledger(), self.driver.id());
        if let Some(first) = ledger.first_version_read(&table.name, Some(own)).await? {
            let pinned = pin::pinned(&table.name, dataset).await?;
            keep.extend(pinned.range(first..));
        }
        pin::release_except(&table.name, dataset, &keep).await
    }

    async fn passes(
        &mut self,
        groups: Vec<Vec<String>>,
        planned: Vec<Pass>,
    ) -> Result<Option<Stop>> {
        let mut planned = planned.into_iter();
        for columns in groups {
            let started = Instant::now();
            let mut pass = planned.next();
            if let Some(planned) = &pass {
                // Before the claim another job may have done it.
                let as_of = self.settings().version.is_some();
                if !as_of && newest_version(planned).await? != planned.table.version() {
                    pass = None;
                }
            }
            let pass = match pass {
                Some(pass) => pass,
                None => {
                    let Environment {
                        database, state, ..
                    } = &self.environment;
                    plan_pass(database, state, &self.request, &columns).await?
                }
            };
            if let Some(stop) = self.pass(pass, started).await? {
                return Ok(Some(stop));
            }
        }
        Ok(None)
    }

    /// One pass, in as many rounds as it takes.
    async fn pass(&mut self, pass: Pass, started: Instant) -> Result<Option<Stop>> {
        if pass.is_empty() {
            self.passes.push(nothing(pass, started));
            return Ok(None);
        }
        let columns = pass.tasks.len();
        let mut landed = vec![RowSet::default(); columns];
        let mut reused = vec![RowSet::default(); columns];
        let mut fragments = 0;
        let mut first: Option<(Pass, Option<Arc<dyn ExecutionPlan>>)> = None;
        let mut next = Some(pass);
        let mut round_number = 0;
        let (mut stopped, mut failed) = (None, None);
        let mut pending: Vec<u64> = Vec::new();
        let mut version = 0;
        while let Some(mut pass) = next.take() {
            let mut round = self.round(&mut pass, round_number).await?;
            for place in 0..columns {
                landed[place].union_with(round.committer.landed(place));
                if round_number == 0 {
                    reused[place].union_with(&round.reused[place]);
                }
            }
            fragments += round.committer.fragments;
            version = round.committer.version;
            pending = (0..columns)
                .map(|place| round.committer.pending(place).len())
                .collect();
            (stopped, failed) = (round.stopped, round.failed.take());
            round_number += 1;
            let is_unfit = round.unfit.iter().any(|rows| !rows.is_empty());
            if is_unfit {
                // Rows that others deleted meanwhile lack nothing.
                let table = self.environment.database.table(&pass.table.name).await?;
                let live = all_live_ids(&table.name, &table.dataset).await?;
                pending = (0..columns)
                    .map(|place| round.committer.pending(place).intersection(&live).len())
                    .collect();
            }
            if is_unfit && stopped.is_none() && failed.is_none() && round_number < ROUNDS {
                let again = self.plan_again(&pass, &round.unfit).await?;
                if !again.is_empty() {
                    let rows: u64 = again.tasks.iter().map(|task| task.rows).sum();
                    let message = format!(
                        "others changed the table meanwhile: {rows} rows are laid out anew"
                    );
                    self.driver.event("replanned", message, None).await?;
                    next = Some(again);
                }
            }
            first.get_or_insert((pass, round.plan));
        }
        let (pass, plan) = first.ok_or_else(|| Error::internal("a pass had no round"))?;
        if stopped.is_none() && failed.is_none() && self.has_staged {
            let ids: Vec<i32> = pass.tasks.iter().map(|t| t.column.field_id).collect();
            discard(&self.environment.database, &pass.table.name, &ids).await?;
        }
        let reports = pass
            .tasks
            .iter()
            .enumerate()
            .map(|(place, task)| {
                let known = reused[place].clone().intersection(&landed[place]).len();
                ColumnReport {
                    object: format!("{}.{}", pass.table.name, task.column.name()),
                    mode: task.mode,
                    reason: match task.mode {
                        "none" => String::new(),
                        _ => task.reason.clone(),
                    },
                    rows_computed: landed[place].len() - known,
                    rows_reused: known,
                    rows_skipped: pass.table_rows.saturating_sub(task.rows),
                    rows_pending: pending[place],
                    rows_failed: 0,
                    fragments,
                    version,
                    elapsed: started.elapsed(),
                }
            })
            .collect();
        self.passes.push(RanPass {
            pass,
            plan,
            reports,
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(stopped),
        }
    }

    /// Plans the rows of `unfit`, by column, at the newest version.
    async fn plan_again(&self, pass: &Pass, unfit: &[RowSet]) -> Result<Pass> {
        let Environment {
            database, state, ..
        } = &self.environment;
        let table = database.table(&pass.table.name).await?;
        let names: Vec<String> = pass
            .column_names()
            .into_iter()
            .map(str::to_string)
            .collect();
        let columns = load_columns(state, &table, &names)?;
        let assessments = super::assess::assess(database, &table, &columns).await?;
        let wanted = unfit
            .iter()
            .map(|rows| match self.request.is_forced() {
                true => Wanted::Among(rows.clone()),
                // What others have computed meanwhile is left as it is.
                false => Wanted::ChangedAmong(rows.clone()),
            })
            .collect();
        Pass::plan(table, columns, assessments, wanted).await
    }

    /// Computes and commits a pass, as far as it goes.
    async fn round(&mut self, pass: &mut Pass, number: usize) -> Result<Round> {
        let database = Arc::clone(&self.environment.database);
        let columns = pass.tasks.len();
        let own_only = self.request.is_forced().then_some(self.driver.id());
        let staged = {
            let columns: Vec<&Column> = pass.tasks.iter().map(|task| &task.column).collect();
            Staged::find(&database, &pass.table, &columns, own_only).await?
        };
        self.has_staged |= !staged.is_empty();
        let mut reused = vec![RowSet::default(); columns];
        if self.request.is_forced() && number == 0 && self.driver.is_resumed() {
            // What this very job has landed before it was interrupted is not computed again.
            let there = self.landed_before(pass).await?;
            pass.leave_out(&there).await?;
        }
        let known: Vec<RowSet> = (0..columns).map(|place| staged.rows(place)).collect();
        if number == 0 {
            let left = pass.limit(self.limits, &known).await?;
            self.limits.max_calls = left;
            if let Some(max) = &mut self.limits.max_fragments {
                *max = max.saturating_sub(pass.fragments.len());
            }
        }
        for (place, known) in known.iter().enumerate() {
            reused[place] = pass.todo_ids(place).await?.intersection(known);
        }
        let counters = self.driver.counters();
        let is_first = number == 0;
        if is_first {
            // What another round lays out anew is planned already.
            counters.add(Count::RowsPlanned, pass.tasks.iter().map(|t| t.rows).sum());
        }
        counters.add(Count::FragmentsPlanned, pass.fragments.len() as u64);
        let committer = Committer::new(pass).await?;
        self.count_pending(Some((pass, &committer)));
        let whole = whole_files(pass, &staged).await?;
        if is_first {
            let reused_rows = whole.values().flat_map(|w| &w.rows).map(RowSet::len).sum();
            counters.add(Count::RowsReused, reused_rows);
        }
        let concurrency = self.concurrency();
        let units: Vec<Unit> = pass
            .units(concurrency)
            .into_iter()
            .filter(|unit| !whole.contains_key(&unit.fragment))
            .collect();
        let checkpoint_interval = self
            .settings()
            .checkpoint_interval
            .unwrap_or(CHECKPOINT_INTERVAL);
        let work = Arc::new(Work {
            job: self.driver.id().to_string(),
            signal: self.driver.signal().clone(),
            counters: Arc::clone(counters),
            checkpoint_interval,
            ledger: self.driver.ledger().clone(),
            database: Arc::clone(&database),
            staging: Staging::new(Arc::clone(&database), pass, self.driver.id()).await?,
            staged: Arc::new(staged),
            counts_reused: is_first,
            pace: match self.settings().fixed_batches {
                true => Pace::fixed(),
                false => Pace::adaptive(checkpoint_interval),
            },
        });
        let pinning = {
            let (name, dataset) = (pass.table.name.clone(), Arc::clone(&pass.table.dataset));
            let version = pass.table.version();
            // Beside the work: it has to be there when the first state goes back to this version.
            tokio::spawn(async move { pin::pin(&name, &dataset, version).await })
        };
        let mut flight = Flight {
            pinning: Some(pinning),
            run: self,
            pass,
            work,
            committer,
            done: whole,
            unrecorded: BTreeMap::new(),
            unrecorded_since: None,
            unfit: vec![RowSet::default(); columns],
            committed_at: Instant::now(),
            parts: HashMap::new(),
            overtaken: Arc::default(),
        };
        let mut plan = None;
        let (mut stopped, mut failed) = (None, None);
        if !units.is_empty() {
            let split = flight.split(&units)?;
            let made = flight.plan(&units, split.clone()).await?;
            plan = Some(Arc::clone(&made));
            match flight.fly(made, &units, &split, concurrency).await? {
                Landing::Through => {}
                Landing::Stopped(stop) => stopped = Some(stop),
                Landing::Failed(error) => failed = Some(error),
            }
        }
        if stopped != Some(Stop::Superseded) {
            flight.commit(true).await?;
        }
        let Flight {
            committer,
            mut unfit,
            work,
            overtaken,
            ..
        } = flight;
        if overtaken.load(Ordering::Relaxed) {
            for (place, unfit) in unfit.iter_mut().enumerate() {
                *unfit = pass
                    .todo_ids(place)
                    .await?
                    .difference(committer.landed(place));
            }
        }
        self.has_staged |=
            work.counters.get(Count::Checkpoints) > 0 || unfit.iter().any(|rows| !rows.is_empty());
        Ok(Round {
            committer,
            unfit,
            reused,
            plan,
            stopped,
            failed,
        })
    }

    /// The rows, by column, that earlier drivers of this job have committed, and whose inputs have not
    /// changed since. Where a commit does not say which rows, they are computed again.
    async fn landed_before(&self, pass: &Pass) -> Result<Vec<RowSet>> {
        let table = &pass.table;
        let mut landed = vec![RowSet::default(); pass.tasks.len()];
        let own = format!("{}/", self.driver.id());
        for version in self.driver.record().version + 1..=table.version() {
            let transaction = table.dataset.read_transaction_by_version(version).await;
            let Some(properties) = transaction
                .ok()
                .flatten()
                .and_then(|transaction| transaction.transaction_properties)
            else {
                continue;
            };
            if !properties
                .get(JOB)
                .is_some_and(|mark| mark.starts_with(&own))
            {
                continue;
            }
            for (task, landed) in pass.tasks.iter().zip(&mut landed) {
                let column = &task.column;
                let state = properties.get(&format!("{COLUMN_STATE}{}", column.field_id));
                let rows = properties.get(&format!("{COMPUTED_ROWS}{}", column.field_id));
                let state = state.and_then(|text| serde_json::from_str::<ColumnState>(text).ok());
                if let (Some(state), Some(rows)) = (state, rows)
                    && state.definition == column.definition.digest()
                    && let Some(changed) = rows_changed(table, column, &state.watermark).await?
                {
                    landed.union_with(&RowSet::decode(rows)?.difference(&changed));
                }
            }
        }
        Ok(landed)
    }

    fn concurrency(&self) -> usize {
        let cores = self.environment.state.config().target_partitions();
        self.settings().concurrency.unwrap_or(cores)
    }
}

/// How the units of a round came to their end.
enum Landing {
    Through,
    Stopped(Stop),
    Failed(Error),
}

/// A round whose units are on their way.
struct Flight<'a> {
    /// Pins the version that is read.
    pinning: Option<JoinHandle<Result<bool>>>,
    run: &'a mut Run,
    pass: &'a Pass,
    work: Arc<Work>,
    committer: Committer,
    /// Fragments that wait for a commit.
    done: BTreeMap<u64, Written>,
    /// Of these, the ones that only this process knows.
    unrecorded: BTreeMap<u64, Written>,
    unrecorded_since: Option<Instant>,
    /// Rows whose files did not fit, by column.
    unfit: Vec<RowSet>,
    committed_at: Instant,
    /// Parts of fragments that are not whole, by fragment and first row.
    parts: HashMap<u64, BTreeMap<u32, String>>,
    /// Whether what was planned is no longer true: then what is on its way is staged, and laid out
    /// anew with the rest.
    overtaken: Arc<AtomicBool>,
}

impl Flight<'_> {
    /// The files of the fragments that several units write.
    fn split(&self, units: &[Unit]) -> Result<Arc<HashMap<u64, SplitFile>>> {
        let names = self.pass.column_names();
        let table = &self.pass.table;
        let mut split = HashMap::new();
        for unit in units.iter().filter(|unit| unit.rows.is_some()) {
            if let Entry::Vacant(entry) = split.entry(unit.fragment) {
                entry.insert(SplitFile::new(&table.name, &table.dataset, &names)?);
            }
        }
        Ok(Arc::new(split))
    }

    async fn plan(
        &self,
        units: &[Unit],
        split: Arc<HashMap<u64, SplitFile>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let work = Some(Arc::clone(&self.work));
        let state = &self.run.environment.state;
        let batches = self.run.settings().batches;
        self.pass
            .physical_plan(state, batches, units, split, work)
            .await
    }

    /// Runs the units, and commits what is due meanwhile.
    async fn fly(
        &mut self,
        plan: Arc<dyn ExecutionPlan>,
        units: &[Unit],
        split: &HashMap<u64, SplitFile>,
        concurrency: usize,
    ) -> Result<Landing> {
        let signal = self.work.signal.clone();
        let go_on = {
            let (signal, overtaken) = (signal.clone(), Arc::clone(&self.overtaken));
            move || !matches!(signal.now(), Signal::Stop(_)) && !overtaken.load(Ordering::Relaxed)
        };
        let environment = &self.run.environment;
        let mut writing = run_partitions(
            plan,
            environment.state.task_ctx(),
            concurrency,
            environment.workers.clone(),
            go_on,
        );
        let mut failed = None;
        let mut grace: Option<Instant> = None;
        let stopped = loop {
            let due = self.next_due();
            tokio::select! {
                biased;
                unit = writing.next() => match unit {
                    None => break match signal.now() {
                        Signal::Stop(stop) => Some(stop),
                        _ => None,
                    },
                    Some(Ok(batches)) => {
                        for batch in batches {
                            for written in written_units(&batch)? {
                                self.written(written.unit, units, written.file, split).await?;
                            }
                        }
                    }
                    Some(Err(error)) if is_stop(&error) => {}
                    Some(Err(error)) => {
                        // The others write down what they have.
                        signal.tell(Signal::Stop(Stop::Failed));
                        failed.get_or_insert(error);
                    }
                },
                stop = signal.stopped(), if grace.is_none() => {
                    let _ = stop;
                    grace = Some(Instant::now() + GRACE);
                }
                () = until(grace), if grace.is_some() => break match signal.now() {
                    Signal::Stop(stop) => Some(stop),
                    _ => None,
                },
                () = until(due), if due.is_some() => {}
            }
            if signal.now() != Signal::Stop(Stop::Superseded) {
                self.do_what_is_due().await?;
            }
        };
        drop(writing);
        Ok(match (failed, stopped) {
            (Some(error), _) => Landing::Failed(error),
            (None, Some(stop)) => Landing::Stopped(stop),
            (None, None) => Landing::Through,
        })
    }

    /// Takes note of a unit that is written; puts its fragment together when it is whole.
    async fn written(
        &mut self,
        unit: usize,
        units: &[Unit],
        file: String,
        split: &HashMap<u64, SplitFile>,
    ) -> Result<()> {
        let unit = &units[unit];
        let fragment = unit.fragment;
        let file = match (&unit.rows, split.get(&fragment)) {
            (Some(rows), Some(target)) => {
                let parts = self.parts.entry(fragment).or_default();
                parts.insert(rows.start, file);
                if parts.len() < units.iter().filter(|u| u.fragment == fragment).count() {
                    return Ok(());
                }
                let parts: Vec<String> = parts.values().cloned().collect();
                self.parts.remove(&fragment);
                target.join(&parts).await?.json
            }
            _ => file,
        };
        let rows = self.rows_of(fragment).await?;
        let written = Written {
            file,
            rows,
            is_reused: false,
        };
        self.work.counters.add(Count::FragmentsWritten, 1);
        self.unrecorded_since.get_or_insert_with(Instant::now);
        self.unrecorded.insert(fragment, written.clone());
        self.done.insert(fragment, written);
        Ok(())
    }

    /// The rows of a fragment that were to be computed, by column.
    async fn rows_of(&self, fragment: u64) -> Result<Vec<RowSet>> {
        let table = &self.pass.table;
        let file = table.dataset.get_fragment(fragment as usize);
        let file = file.ok_or_else(|| Error::internal(format!("fragment {fragment} is gone")))?;
        let live = live_ids(&table.name, &table.dataset, file.metadata()).await?;
        let rows = self.pass.tasks.iter().map(|task| match &task.todo {
            Rows::All => live.clone(),
            Rows::Some(todo) => todo.clone().intersection(&live),
        });
        Ok(rows.collect())
    }

    /// When something is to be done next.
    fn next_due(&self) -> Option<Instant> {
        let interval = self.commit_interval().filter(|_| !self.done.is_empty());
        let commit = interval.map(|interval| self.committed_at + interval);
        let record = self.unrecorded_since.map(|since| since + UNRECORDED);
        [commit, record].into_iter().flatten().min()
    }

    /// `None` if all is to be committed at once, and nobody said how long that may take.
    fn commit_interval(&self) -> Option<Duration> {
        let settings = self.run.settings();
        match (settings.commit_interval, settings.commit_every) {
            (Some(interval), _) => Some(interval),
            (None, Some(0)) => None,
            (None, _) => Some(COMMIT_INTERVAL),
        }
    }

    async fn do_what_is_due(&mut self) -> Result<()> {
        let every = match self.run.settings().commit_every.unwrap_or(COMMIT_EVERY) {
            0 => usize::MAX,
            every => every,
        };
        let interval = self.commit_interval();
        let late = interval.is_some_and(|interval| self.committed_at.elapsed() >= interval);
        if self.done.len() >= every || (late && !self.done.is_empty()) {
            self.commit(false).await?;
        }
        if self
            .unrecorded_since
            .is_some_and(|since| since.elapsed() >= UNRECORDED)
        {
            self.record().await?;
        }
        Ok(())
    }

    /// Writes down which fragments are written, so that another process may commit them.
    async fn record(&mut self) -> Result<()> {
        self.unrecorded_since = None;
        let unrecorded = std::mem::take(&mut self.unrecorded);
        if !unrecorded.is_empty() {
            self.run.has_staged = true;
        }
        for (fragment, written) in unrecorded {
            let staging = &self.work.staging;
            staging
                .column_file(fragment, &written.file, written.rows)
                .await?;
        }
        Ok(())
    }

    /// Waits until the version that is read is pinned.
    async fn pinned(&mut self) -> Result<()> {
        let Some(pinning) = self.pinning.take() else {
            return Ok(());
        };
        let is_pinned = pinning
            .await
            .map_err(|error| Error::internal(format!("pinning failed: {error}")))??;
        if !is_pinned {
            let (name, version) = (&self.pass.table.name, self.pass.table.version());
            self.run.notices.push(format!(
                "SOURCE_NOT_PINNED: version {version} of table '{name}' can't be kept from others' clean-up; if it is removed, the next refresh is full"
            ));
        }
        Ok(())
    }

    /// Commits what is written; `is_last` if nothing more comes.
    async fn commit(&mut self, is_last: bool) -> Result<()> {
        self.pinned().await?;
        let done = std::mem::take(&mut self.done);
        let unfit = match self.overtaken.load(Ordering::Relaxed) {
            true => done,
            false => {
                let run = &self.run;
                let Outcome { unfit, overtaken } = self
                    .committer
                    .commit(
                        &run.environment.database,
                        &run.driver,
                        self.pass,
                        done,
                        is_last,
                    )
                    .await?;
                if let Some(why) = overtaken {
                    self.run.driver.event("overtaken", why, None).await?;
                    self.overtaken.store(true, Ordering::Relaxed);
                }
                unfit
            }
        };
        self.committed_at = Instant::now();
        self.run.count_pending(Some((self.pass, &self.committer)));
        self.unrecorded
            .retain(|fragment, _| unfit.contains_key(fragment));
        // Their results are paid for: another round, or another run, finds them here.
        self.record().await?;
        for (_, written) in unfit {
            for (place, (all, rows)) in self.unfit.iter_mut().zip(written.rows).enumerate() {
                all.union_with(&rows.difference(self.committer.landed(place)));
            }
        }
        Ok(())
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => pending().await,
    }
}

async fn newest_version(pass: &Pass) -> Result<u64> {
    pass.table
        .dataset
        .latest_version_id()
        .await
        .map_err(|error| storage_error(&pass.table.name, error))
}

/// Fragments of a pass that an earlier run has written as they are needed now.
async fn whole_files(pass: &Pass, staged: &Staged) -> Result<BTreeMap<u64, Written>> {
    let mut whole = BTreeMap::new();
    if staged.is_empty() {
        return Ok(whole);
    }
    let table = &pass.table;
    let names = pass.column_names();
    let mut versions: HashMap<u64, Option<Dataset>> = HashMap::new();
    for fragment in &pass.fragments {
        let Some(file) = table.dataset.get_fragment(*fragment as usize) else {
            continue;
        };
        let live = live_ids(&table.name, &table.dataset, file.metadata()).await?;
        for (version, json, rows) in staged.column_files(*fragment) {
            let todo: Vec<RowSet> = pass
                .tasks
                .iter()
                .map(|task| match &task.todo {
                    Rows::All => live.clone(),
                    Rows::Some(todo) => todo.clone().intersection(&live),
                })
                .collect();
            if !todo
                .iter()
                .zip(&rows)
                .all(|(todo, rows)| todo.is_subset(rows))
            {
                continue;
            }
            if let Entry::Vacant(entry) = versions.entry(version.version) {
                let then = table.dataset.checkout_version(version.version).await;
                entry.insert(then.ok());
            }
            let Some(Some(then)) = versions.get(&version.version) else {
                continue;
            };
            let files = HashMap::from([(*fragment, json.to_string())]);
            if files_that_fit(then, &table.dataset, &names, &files)?.contains(fragment) {
                let written = Written {
                    file: json.to_string(),
                    rows: todo,
                    is_reused: true,
                };
                whole.insert(*fragment, written);
                break;
            }
        }
    }
    Ok(whole)
}
