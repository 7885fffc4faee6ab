//! Runs a refresh of a view: as a job, with one commit at its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::assess::{Assessment, Scope, Wanted, assess};
use super::calls::Held;
use super::checkpoint;
use super::compare::SourceChange;
use super::failed::{OnError, check_skip};
use super::maintain::Maintenance;
use super::options::ViewOptions;
use super::reason::CHANGE_TOO_LARGE;
use crate::database::materialized_view::ViewDefinition;
use crate::database::{Database, Table};
use crate::job::admission::Placement;
use crate::job::counters::Count;
use crate::job::driver::{Driver, Ending, JobRequest, end_interrupted, stop_error};
use crate::job::environment::Environment;
use crate::job::jobs::Begun;
use crate::job::signal::{Signal, Stop};
use crate::storage::pin;
use crate::{Error, ErrorKind, Result};

/// How often a refresh is planned anew because the view was changed meanwhile, or executors were lost.
const ATTEMPTS: u32 = 5;
/// How long a cluster is left alone after it failed, times how often it has.
const RECOVERY: Duration = Duration::from_millis(500);
/// How long calls that were told to stop are waited for: their results are written down.
const GRACE: Duration = Duration::from_millis(700);
/// The same for calls that executors make: they take longer, and a stop should reach them within two seconds.
const REMOTE_GRACE: Duration = Duration::from_millis(1800);

/// What to refresh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ViewRefresh {
    /// The view.
    pub view: String,
    /// Which rows.
    pub scope: Scope,
    /// Versions of sources to read; of others the newest.
    #[serde(default)]
    pub as_of: BTreeMap<String, u64>,
    /// Write only the difference to what is stored, though all is computed.
    pub concurrently: bool,
    /// Cancels the job after so long.
    pub timeout: Option<Duration>,
    /// How much computing may be lost; `None` for the default.
    #[serde(default)]
    pub checkpoint_interval: Option<Duration>,
    /// What becomes of a row whose call fails.
    #[serde(default)]
    pub on_error: OnError,
    /// Evaluations of users' functions at once; `None` for as many as there are cores, or slots of the cluster.
    #[serde(default)]
    pub concurrency: Option<usize>,
    /// Executors that it wants.
    #[serde(flatten)]
    pub placement: Placement,
    /// The statement, in one form whatever was typed.
    pub statement: String,
}

impl ViewRefresh {
    /// What it asks of the view.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            scope: self.scope,
            as_of: self.as_of.clone(),
        }
    }
}

/// What a refresh came to.
#[derive(Debug, Clone)]
pub struct ViewReport {
    /// The view.
    pub view: String,
    /// `none`, `incremental`, `full`, or `filtered` (FAILED ONLY).
    pub mode: &'static str,
    /// The reason code of a full refresh; empty otherwise.
    pub reason: String,
    /// Rows that are new.
    pub rows_inserted: u64,
    /// Rows that were replaced.
    pub rows_updated: u64,
    /// Rows that are gone.
    pub rows_deleted: u64,
    /// The version of the view after it.
    pub version: u64,
    /// What changed in the sources.
    pub sources: Vec<SourceChange>,
    /// The job; `None` if there was nothing to do.
    pub job: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
    /// What a user should know although it worked.
    pub notices: Vec<String>,
}

/// Opens a view, and reads its definition.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if there is no such table; [`ErrorKind::InvalidInput`] if it is no materialized view.
pub async fn open_view(database: &Database, name: &str) -> Result<(Table, ViewDefinition)> {
    let table = database.table(name).await?;
    match ViewDefinition::of(&table)? {
        Some(definition) => Ok((table, definition)),
        None if database.materialized_view(name).await?.is_some() => Err(Error::invalid(format!(
            "DEFINITION_LOST: another program has overwritten materialized view '{name}'"
        ))
        .with_hint(format!(
            "DROP MATERIALIZED VIEW {name} removes what is there"
        ))),
        None => Err(Error::invalid(format!("'{name}' is no materialized view"))
            .with_hint("SHOW MATERIALIZED VIEWS lists them")),
    }
}

/// Begins a refresh. If there is nothing to do, nothing is written, not even a job.
pub async fn begin(environment: &Environment, request: &ViewRefresh) -> Result<Begun<ViewReport>> {
    let Environment {
        database, state, ..
    } = environment;
    let started = Instant::now();
    let (view, definition) = open_view(database, &request.view).await?;
    let assessment = assess(database, state, &view, &definition, &request.wanted()).await?;
    if request.on_error == OnError::Skip {
        check_skip(&view.name, assessment.query())?;
    }
    if assessment.mode() == "none" {
        // One that was killed behind its commit has nothing left to do.
        let ledger = environment.jobs.ledger();
        if let Some(id) = end_interrupted(ledger, &request.statement, &view.name, 0).await? {
            checkpoint::discard(database, &view.name, &[&id]).await?;
        }
        return Ok(Begun::Nothing(nothing(&view, assessment, started)));
    }
    request.placement.check(environment).await?;
    let job = JobRequest {
        mode: assessment.mode().to_string(),
        reason: assessment.view.reason.clone(),
        ..job_of(request, view.version())?
    };
    let ledger = environment.jobs.ledger().clone();
    let (environment, request) = (environment.clone(), request.clone());
    let jobs = Arc::clone(&environment.jobs);
    let attached = jobs
        .start(
            move |signal| async move { Driver::begin(&ledger, job, signal).await },
            move |driver| Box::pin(drive(environment, request, driver, started)),
        )
        .await?;
    Ok(Begun::Job(attached))
}

/// The job of a request, but for its mode and reason; the view is at `version`.
pub(super) fn job_of(request: &ViewRefresh, version: u64) -> Result<JobRequest> {
    Ok(JobRequest {
        statement: request.statement.clone(),
        table: request.view.clone(),
        columns: Vec::new(),
        mode: String::new(),
        reason: String::new(),
        objects: vec![format!("{}/view", request.view)],
        request: serde_json::to_value(request)
            .map_err(|error| Error::internal(format!("a request can't be written: {error}")))?,
        version,
        timeout: request.timeout,
        max_time: None,
    })
}

fn nothing(view: &Table, assessment: Assessment, started: Instant) -> ViewReport {
    ViewReport {
        view: view.name.clone(),
        mode: "none",
        reason: String::new(),
        rows_inserted: 0,
        rows_updated: 0,
        rows_deleted: 0,
        version: view.version(),
        sources: assessment.changes,
        job: None,
        elapsed: started.elapsed(),
        notices: Vec::new(),
    }
}

/// Does the work of a job.
async fn drive(
    environment: Environment,
    request: ViewRefresh,
    driver: Driver,
    started: Instant,
) -> Result<ViewReport> {
    let held = Held::default();
    let work = attempts(&environment, &request, &driver, &held, started);
    let result = until_stopped(&environment, &driver, &held, work).await;
    conclude(driver, result).await
}

/// The result of a job's work, or why it was told to stop: what is on its way stops here. Results of calls that were
/// paid for are kept.
pub(super) async fn until_stopped(
    environment: &Environment,
    driver: &Driver,
    held: &Held,
    work: impl Future<Output = Result<ViewReport>>,
) -> Result<Result<ViewReport>, Stop> {
    let mut work = Box::pin(work);
    let mut result = tokio::select! {
        biased;
        stop = driver.signal().stopped() => Err(stop),
        result = &mut work => Ok(result),
    };
    if result.is_err() && held.is_some() {
        // What is being evaluated is paid for.
        let grace = match environment.cluster() {
            Some(_) => REMOTE_GRACE,
            None => GRACE,
        };
        if let Ok(Ok(report)) = tokio::time::timeout(grace, &mut work).await {
            result = Ok(Ok(report));
        }
    }
    drop(work);
    // Whoever has taken over does not look for it any more.
    if !matches!(result, Ok(Ok(_)) | Err(Stop::Superseded))
        && let Err(error) = held.keep().await
    {
        log::warn!("job '{}': {error}", driver.id());
    }
    result
}

/// Ends a job with the result of its work.
pub(super) async fn conclude(
    driver: Driver,
    result: Result<Result<ViewReport>, Stop>,
) -> Result<ViewReport> {
    let id = driver.id().to_string();
    let ending = match &result {
        Ok(Ok(report)) => Ending::Done(format!(
            "{} rows inserted, {} updated, {} deleted",
            report.rows_inserted, report.rows_updated, report.rows_deleted
        )),
        Ok(Err(error)) => Ending::Failed(error),
        Err(stop) => Ending::Stopped(*stop),
    };
    let finished = driver.finish(ending).await;
    match result {
        Ok(Ok(mut report)) => {
            finished?;
            report.job = Some(id);
            Ok(report)
        }
        Ok(Err(error)) => Err(error),
        Err(Stop::OutOfTime) => Err(stop_error(Stop::OutOfTime, &id)),
        Err(stop) => {
            finished?;
            Err(stop_error(stop, &id))
        }
    }
}

/// Tries until no other writer was quicker, and no executor was lost that had rows: what that means for ours is found
/// out by planning anew.
pub(super) async fn attempts(
    environment: &Environment,
    request: &ViewRefresh,
    driver: &Driver,
    held: &Held,
    started: Instant,
) -> Result<ViewReport> {
    let (mut attempt, mut is_admitted) = (1, false);
    loop {
        let done = attempt_once(
            environment,
            request,
            driver,
            held,
            &mut is_admitted,
            started,
        );
        match done.await {
            Err(error)
                if attempt < ATTEMPTS
                    && !matches!(driver.signal().now(), Signal::Stop(_))
                    && match error.kind() {
                        ErrorKind::Conflict => true,
                        // Rows that executors had read go with them. That there was nobody from the start is no news.
                        ErrorKind::Cluster => is_admitted,
                        _ => false,
                    } =>
            {
                if error.kind() == ErrorKind::Cluster {
                    tokio::time::sleep(RECOVERY * attempt).await;
                }
                // The next attempt takes it from there.
                held.write().await?;
                attempt += 1;
                driver.counters().add(Count::Retries, 1);
                driver.counters().set(Count::RowsFailed, 0);
                driver
                    .event("replanned", error.message().to_string(), None)
                    .await?;
            }
            result => return result,
        }
    }
}

async fn attempt_once(
    environment: &Environment,
    request: &ViewRefresh,
    driver: &Driver,
    held: &Held,
    is_admitted: &mut bool,
    started: Instant,
) -> Result<ViewReport> {
    let Environment {
        database, state, ..
    } = environment;
    let (view, definition) = open_view(database, &request.view).await?;
    let began = Instant::now();
    let assessment = assess(database, state, &view, &definition, &request.wanted()).await?;
    log::debug!("view '{}' assessed in {:?}", view.name, began.elapsed());
    // A cascade that goes on in the background does not begin here.
    if request.on_error == OnError::Skip {
        check_skip(&view.name, assessment.query())?;
    }
    if assessment.mode() == "none" {
        // Of a cascade: that was not known when its job began.
        return Ok(nothing(&view, assessment, started));
    }
    let mut session = definition.session(state)?;
    if let Some(cluster) = environment.cluster() {
        if !*is_admitted {
            request.placement.admitted(&cluster, driver, 1).await?;
            *is_admitted = true;
        }
        let purpose = Arc::new(request.placement.purpose(driver.id()));
        session.config_mut().set_extension(purpose);
    }
    let (mode, reason) = (assessment.mode(), assessment.view.reason.clone());
    let mut notices = Vec::new();
    let mut read: BTreeMap<String, u64> = BTreeMap::new();
    for (source, dataset) in assessment.query().tables() {
        let version = dataset.version().version;
        if read.insert(source.table.clone(), version).is_none()
            && !pin::pin_for(&source.table, dataset, version, &definition.id).await?
        {
            notices.push(format!(
                "SOURCE_NOT_PINNED: version {version} of table '{}' can't be kept from others' clean-up; if it is removed, the next refresh is full",
                source.table
            ));
        }
    }
    let maintenance = Maintenance {
        environment,
        driver,
        request,
        held,
        session,
    };
    let Assessment {
        view: part,
        stages: parts,
        changes,
        ..
    } = assessment;
    let query = Arc::clone(&part.query);
    let options = ViewOptions::of(&definition)?;
    let of_stages = ViewOptions {
        index_sources: options.index_sources,
        ..ViewOptions::default()
    };
    let mut stages = Vec::with_capacity(parts.len());
    for (stage, (table, part)) in query.stages.iter().zip(parts) {
        let table = match table {
            // What was compared: if another refresh has moved it since, the commit is refused.
            Some(table) => table,
            None => stage.create(database).await?,
        };
        let part = part.complete(database, &stages).await?;
        stages.push(match part.is_current() {
            true => table.dataset,
            false => {
                let keeps_rows = part.state.reason == CHANGE_TOO_LARGE;
                let done = maintenance.maintain(&table, &of_stages, part, keeps_rows);
                let done = done.await?;
                notices.extend(done.notices);
                done.dataset
            }
        });
    }
    let part = part.complete(database, &stages).await?;
    // Whoever chose it for its cost did not ask for new rows: those that stay equal do.
    let keeps_rows = request.concurrently || reason == CHANGE_TOO_LARGE;
    let done = maintenance.maintain(&view, &options, part, keeps_rows);
    let done = done.await?;
    notices.extend(done.notices);
    if held.has_staged(driver) || !driver.replaced().is_empty() {
        let mut jobs: Vec<&str> = driver.replaced().iter().map(String::as_str).collect();
        jobs.push(driver.id());
        if let Err(error) = checkpoint::discard(database, &view.name, &jobs).await {
            log::warn!("job '{}': {error}", driver.id());
        }
    }
    let failed = driver.counters().get(Count::RowsFailed);
    if failed > 0 {
        notices.push(format!(
            "ROWS_FAILED: {failed} values are NULL because a call failed: SHOW ERRORS FOR VIEW {} says why, FAILED ONLY calls again",
            view.name
        ));
    }
    for (table, version) in read {
        let released = async {
            let table = database.table(&table).await?;
            let keep = [version].into();
            pin::release_owner(&table.name, &table.dataset, &definition.id, &keep).await
        };
        if let Err(error) = released.await {
            log::warn!("job '{}': {error}", driver.id());
        }
    }
    for (stage, dataset) in query.stages.iter().zip(&stages) {
        if let Err(error) = stage.tidy(dataset).await {
            log::warn!("job '{}': {error}", driver.id());
        }
    }
    Ok(ViewReport {
        view: view.name.clone(),
        mode,
        reason,
        rows_inserted: done.rows_inserted,
        rows_updated: done.rows_updated,
        rows_deleted: done.rows_deleted,
        version: done.dataset.version().version,
        sources: changes,
        job: None,
        elapsed: started.elapsed(),
        notices,
    })
}
