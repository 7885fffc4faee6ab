//! Runs a refresh: as a job, pass after pass, unit after unit.
//!
//! A pass is computed from one version. Its units finish in any order; what is finished is
//! committed every so many fragments or seconds. What does not fit the newest version any more, because
//! others have compacted or overtaken it, is laid out anew in another round: its results are staged by row id,
//! so nothing is computed twice.

mod round;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use datafusion::physical_plan::ExecutionPlan;

use super::assess::Rows;
use super::commit::Committer;
use super::mirror::{mirror_states, needed_versions};
use super::plan::{Limits, Pass, Wanted};
use super::refresh::{ColumnReport, RanPass, Refresh, Settings, load_columns, order, plan_pass};
use super::staged::discard;
use crate::database::Table;
use crate::job::counters::Count;
use crate::job::driver::{Driver, Ending, JobRequest, end_interrupted, stop_error};
use crate::job::environment::Environment;
use crate::job::jobs::Begun;
use crate::job::ledger::Ledger;
use crate::job::signal::Stop;
use crate::job::staged::discard_all;
use crate::storage::fragments::all_live_ids;
use crate::storage::{RowSet, pin, storage_error};
use crate::{Error, ErrorKind, Result};

/// How often a pass is laid out anew because others changed the table meanwhile.
const ROUNDS: usize = 5;

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

/// Begins a refresh. If there is nothing to do, nothing is written, not even a job.
pub async fn begin(environment: &Environment, request: &Refresh) -> Result<Begun<Refreshed>> {
    let Environment {
        database, state, ..
    } = environment;
    let started = Instant::now();
    let table = database.table(&request.table).await?;
    let groups = order(database, state, &table, request).await?;
    check_version(environment, request, &table, &groups).await?;
    let mut planned = Vec::with_capacity(groups.len());
    for columns in &groups {
        let pass = plan_pass(database, state, table.clone(), request, columns).await?;
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
    request.settings.placement.check(environment).await?;
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
    newest: &Table,
    groups: &[Vec<String>],
) -> Result<()> {
    let Some(version) = request.settings.version else {
        return Ok(());
    };
    let names: Vec<String> = groups.iter().flatten().cloned().collect();
    let columns = load_columns(&environment.state, newest, &names)?;
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
        let Self {
            environment,
            request,
            driver,
            passes,
            notices,
            ..
        } = self;
        let (id, ledger) = (driver.id().to_string(), driver.ledger().clone());
        let ending = match &result {
            Ok(None) => {
                let rows = driver.counters().get(Count::RowsComputed);
                let pending = driver.counters().get(Count::RowsPending);
                Ending::Done(format!("{rows} rows computed, {pending} pending"))
            }
            Ok(Some(stop)) => Ending::Stopped(*stop),
            Err(error) => Ending::Failed(error),
        };
        let keep = async {
            if !is_store_ill
                && let Err(error) = keep_versions(&environment, &request.table, &ledger, &id).await
            {
                log::warn!("job '{id}': {error}");
            }
        };
        let (finished, ()) = tokio::join!(driver.finish(ending), keep);
        // An error of the job matters more than one of its record.
        match result? {
            None | Some(Stop::OutOfTime) => finished?,
            Some(stop) => {
                finished?;
                return Err(stop_error(stop, &id));
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
                    let newest = database.table(&self.request.table).await?;
                    plan_pass(database, state, newest, &self.request, &columns).await?
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
}

/// Lets go of the versions that no column of the table goes back to any more, and sees to it that the states
/// outlive the versions that carry them. For the end of the job `own`.
async fn keep_versions(
    environment: &Environment,
    table: &str,
    ledger: &Ledger,
    own: &str,
) -> Result<()> {
    let table = environment.database.table(table).await?;
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
    if let Some(first) = ledger.first_version_read(&table.name, Some(own)).await? {
        let pinned = pin::pinned(&table.name, dataset).await?;
        keep.extend(pinned.range(first..));
    }
    pin::release_except(&table.name, dataset, &keep).await
}

async fn newest_version(pass: &Pass) -> Result<u64> {
    pass.table
        .dataset
        .latest_version_id()
        .await
        .map_err(|error| storage_error(&pass.table.name, error))
}
