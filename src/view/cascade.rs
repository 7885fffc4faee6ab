//! REFRESH … CASCADE: what a view reads is refreshed before it, all at one set of versions.
//!
//! Tables come first: their computed columns that some view reads. Then the views, each behind those that it reads, with
//! its own computed columns where another view reads them. The versions of the tables are fixed once, so that two ways
//! from a view to the same table lead to the same rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::assess::Scope;
use super::calls::Held;
use super::declare::tables_read;
use super::failed::OnError;
use super::query::Query;
use super::refresh::{
    ViewRefresh, ViewReport, attempts, begin, conclude, job_of, open_view, until_stopped,
};
use crate::column::refresh::{self as columns, Refresh, Settings};
use crate::column::run;
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;
use crate::job::driver::{Driver, stop_error};
use crate::job::environment::Environment;
use crate::job::jobs::{Attached, Begun};
use crate::{Error, Result};

/// The mode of a job that refreshes all of a cascade, and the mark of its request.
const CASCADE: &str = "cascade";

/// One object to refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Computed columns of a table.
    Columns {
        /// The table.
        table: String,
        /// The columns.
        columns: Vec<String>,
    },
    /// A view.
    View(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Columns { table, columns } => write!(f, "{table} ({})", columns.join(", ")),
            Self::View(view) => f.write_str(view),
        }
    }
}

/// What was done for one object.
#[derive(Debug)]
pub enum Ran {
    /// Computed columns.
    Columns(run::Refreshed),
    /// A view.
    View(ViewReport),
}

/// What views read, directly or through others, and in which order to refresh it.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Materialized views, each behind those that it reads.
    pub views: Vec<String>,
    /// What each of them reads: tables and materialized views, also through other views.
    pub reads: BTreeMap<String, BTreeSet<String>>,
    /// Tables, and the stored computed columns of them that a view reads.
    pub computed: BTreeMap<String, BTreeSet<String>>,
    /// What is read as it is: tables, and materialized views that are not refreshed along.
    pub tables: BTreeSet<String>,
    seen: BTreeSet<String>,
}

/// The steps of a refresh, in order. What `AS OF` names is read as it was then, and not refreshed.
///
/// # Errors
///
/// If `AS OF` names what none of the views reads.
pub async fn steps(environment: &Environment, request: &ViewRefresh) -> Result<Vec<Step>> {
    Ok(find(environment, request).await?.steps())
}

impl Found {
    /// Adds a view with all that it reads. Of the materialized views that it reads `is_followed` says which are
    /// refreshed along; `as_of` has the versions of those that are read as they were.
    ///
    /// # Errors
    ///
    /// If one of them can't be opened or planned; then something of it may have been added.
    pub async fn add(
        &mut self,
        environment: &Environment,
        view: &str,
        as_of: &BTreeMap<String, u64>,
        is_followed: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<()> {
        let finder = Finder {
            environment,
            as_of,
            is_followed,
        };
        finder.visit(view.to_string(), self).await
    }

    /// The stored computed columns of a table that one of the views reads.
    pub fn columns_of(&self, table: &str) -> Option<Step> {
        let columns = self.computed.get(table).filter(|c| !c.is_empty())?;
        Some(Step::Columns {
            table: table.to_string(),
            columns: columns.iter().cloned().collect(),
        })
    }

    fn steps(self) -> Vec<Step> {
        let of_tables = self
            .tables
            .iter()
            .filter_map(|table| self.columns_of(table));
        let mut steps: Vec<Step> = of_tables.collect();
        for view in &self.views {
            steps.push(Step::View(view.clone()));
            steps.extend(self.columns_of(view));
        }
        steps
    }
}

async fn find(environment: &Environment, request: &ViewRefresh) -> Result<Found> {
    let mut found = Found::default();
    found
        .add(environment, &request.view, &request.as_of, &|_| true)
        .await?;
    for table in request.as_of.keys() {
        if !found.tables.contains(table) && !found.seen.contains(table) {
            let known = found.tables.iter().chain(&found.seen);
            let known: Vec<&str> = known.map(String::as_str).collect();
            return Err(not_read(&request.view, table, &known));
        }
    }
    Ok(found)
}

/// Goes through what views read.
struct Finder<'a> {
    environment: &'a Environment,
    as_of: &'a BTreeMap<String, u64>,
    is_followed: &'a (dyn Fn(&str) -> bool + Sync),
}

impl Finder<'_> {
    fn visit<'a>(&'a self, view: String, found: &'a mut Found) -> BoxFuture<'a, Result<()>> {
        async move {
            if !found.seen.insert(view.clone()) {
                return Ok(());
            }
            let database = &self.environment.database;
            let (_, definition) = open_view(database, &view).await?;
            let reading = Reading {
                versions: self.as_of.clone(),
                unpopulated: true,
                ..definition.reading()
            };
            let query = Query::plan(&self.environment.state, &definition, reading)
                .await
                .map_err(|error| error.context(format!("materialized view '{view}'")))?;
            let reads = tables_read(database, &definition).await?;
            for name in &reads {
                let table = database.table(name).await?;
                let is_fixed = self.as_of.contains_key(name);
                let is_view = ViewDefinition::of(&table)?.is_some();
                if is_view && !is_fixed && (self.is_followed)(name) {
                    self.visit(name.clone(), found).await?;
                } else {
                    found.tables.insert(name.clone());
                }
                if is_fixed {
                    continue;
                }
                let computed = found.computed.entry(name.clone()).or_default();
                for (source, _) in query.tables().filter(|(source, _)| source.table == *name) {
                    let stored = &table.definitions.stored;
                    let read = source.columns.iter().filter(|c| stored.contains_key(*c));
                    computed.extend(read.cloned());
                }
            }
            found.reads.insert(view.clone(), reads);
            found.views.push(view);
            Ok(())
        }
        .boxed()
    }
}

/// Refuses versions of tables that a view does not read.
///
/// # Errors
///
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound), with the nearest that it reads.
pub async fn check_as_of(environment: &Environment, request: &ViewRefresh) -> Result<()> {
    let (_, definition) = open_view(&environment.database, &request.view).await?;
    let tables = tables_read(&environment.database, &definition).await?;
    for table in request.as_of.keys() {
        if !tables.contains(table) {
            let known: Vec<&str> = tables.iter().map(String::as_str).collect();
            return Err(not_read(&request.view, table, &known));
        }
    }
    Ok(())
}

fn not_read(view: &str, table: &str, known: &[&str]) -> Error {
    Error::not_found("source", table, known.iter().copied()).context(format!(
        "AS OF: materialized view '{view}' reads no table '{table}'"
    ))
}

/// Refreshes a view, and what it reads before it. What a step has committed stays when a later one fails.
///
/// # Errors
///
/// As those of the steps.
pub async fn refresh(environment: &Environment, request: &ViewRefresh) -> Result<Vec<Ran>> {
    let (mut ran, last) = before(environment, request, None).await?;
    let report = begin(environment, &last).await?.wait().await?;
    ran.push(Ran::View(report));
    Ok(ran)
}

/// Begins the same in the background: as the job of the view that is named, which refreshes what that reads before it,
/// each as a job of its own. There is a job also if nothing turns out to be to do.
///
/// # Errors
///
/// If the view, or what it reads, can't be planned; as [`begin`].
pub async fn submit(
    environment: &Environment,
    request: &ViewRefresh,
) -> Result<Attached<ViewReport>> {
    // What is wrong with the statement is told at once.
    find(environment, request).await?;
    request.placement.check(environment).await?;
    let started = Instant::now();
    let table = environment.database.table(&request.view).await?;
    let mut job = job_of(request, table.version())?;
    job.mode = CASCADE.to_string();
    if let Some(fields) = job.request.as_object_mut() {
        fields.insert(CASCADE.to_string(), true.into());
    }
    let ledger = environment.jobs.ledger().clone();
    let (environment, request) = (environment.clone(), request.clone());
    let jobs = Arc::clone(&environment.jobs);
    jobs.start(
        move |signal| async move { Driver::begin(&ledger, job, signal).await },
        move |driver| Box::pin(drive(environment, request, driver, started)),
    )
    .await
}

/// Whether a job with this request is one of [`submit`].
pub fn is_submitted(request: &serde_json::Value) -> bool {
    request.get(CASCADE).and_then(serde_json::Value::as_bool) == Some(true)
}

async fn drive(
    environment: Environment,
    request: ViewRefresh,
    driver: Driver,
    started: Instant,
) -> Result<ViewReport> {
    let progress = Progress {
        driver: &driver,
        step: Mutex::default(),
    };
    let held = Held::default();
    let work = async {
        let (_, last) = before(&environment, &request, Some(&progress)).await?;
        attempts(&environment, &last, &driver, &held, started).await
    };
    let result = until_stopped(&environment, &driver, &held, work).await;
    // A step that ran when this was told to stop has been told so, too: nobody waits for it any more.
    let step = lock(&progress.step).take();
    if let (Err(_), Some(step)) = (&result, step) {
        environment.jobs.wait(&step).await;
    }
    conclude(driver, result).await
}

/// Where a job of [`submit`] is.
struct Progress<'a> {
    driver: &'a Driver,
    /// The job of the step that runs, or ran last.
    step: Mutex<Option<String>>,
}

impl Progress<'_> {
    /// Writes down which step comes next, once it may.
    async fn announce(&self, step: &Step) -> Result<()> {
        if let Some(stop) = self.driver.signal().proceed().await {
            return Err(stop_error(stop, self.driver.id()));
        }
        self.driver.event("before", step.to_string(), None).await?;
        Ok(())
    }
}

/// Waits for the end of a step.
async fn wait_for<T>(progress: Option<&Progress<'_>>, begun: Begun<T>) -> Result<T> {
    if let (Some(progress), Begun::Job(job)) = (progress, &begun) {
        *lock(&progress.step) = Some(job.id().to_string());
    }
    begun.wait().await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All steps but the last; gives what is to be asked of that. Between two steps a job hears what it is told.
async fn before(
    environment: &Environment,
    request: &ViewRefresh,
    progress: Option<&Progress<'_>>,
) -> Result<(Vec<Ran>, ViewRefresh)> {
    let database = &environment.database;
    let found = find(environment, request).await?;
    let tables = found.tables.clone();
    let mut steps = found.steps();
    // Nothing of the cascade reads the view that is named.
    steps.retain(|step| *step != Step::View(request.view.clone()));
    let (columns, views): (Vec<Step>, Vec<Step>) = steps
        .into_iter()
        .partition(|step| matches!(step, Step::Columns { table, .. } if tables.contains(table)));
    let mut ran = Vec::new();
    for step in &columns {
        if let Step::Columns { table, columns } = step {
            if let Some(progress) = progress {
                progress.announce(step).await?;
            }
            let begun = begin_columns(environment, request, table, columns).await?;
            ran.push(Ran::Columns(wait_for(progress, begun).await?));
        }
    }
    let mut versions = request.as_of.clone();
    for table in &tables {
        if !versions.contains_key(table) {
            versions.insert(table.clone(), database.table(table).await?.version());
        }
    }
    for step in &views {
        if let Some(progress) = progress {
            progress.announce(step).await?;
        }
        match step {
            Step::View(view) => {
                let one = of_step(environment, request, view, &versions).await?;
                let begun = begin(environment, &one).await?;
                let report = wait_for(progress, begun).await?;
                versions.insert(view.clone(), report.version);
                ran.push(Ran::View(report));
            }
            Step::Columns { table, columns } => {
                let begun = begin_columns(environment, request, table, columns).await?;
                let refreshed = wait_for(progress, begun).await?;
                versions.insert(table.clone(), database.table(table).await?.version());
                ran.push(Ran::Columns(refreshed));
            }
        }
    }
    let last = of_step(environment, request, &request.view, &versions).await?;
    Ok((ran, last))
}

/// What one view of a cascade is asked.
pub async fn of_step(
    environment: &Environment,
    request: &ViewRefresh,
    view: &str,
    versions: &BTreeMap<String, u64>,
) -> Result<ViewRefresh> {
    let (_, definition) = open_view(&environment.database, view).await?;
    let read = tables_read(&environment.database, &definition).await?;
    let versions = versions.iter().filter(|(table, _)| read.contains(*table));
    Ok(ViewRefresh {
        view: view.to_string(),
        scope: match view == request.view {
            true => request.scope,
            false => Scope::Auto,
        },
        as_of: versions.map(|(table, v)| (table.clone(), *v)).collect(),
        on_error: match view == request.view {
            true => request.on_error,
            false => OnError::default(),
        },
        ..request.clone()
    })
}

async fn begin_columns(
    environment: &Environment,
    request: &ViewRefresh,
    table: &str,
    columns: &[String],
) -> Result<Begun<run::Refreshed>> {
    let refresh = Refresh {
        table: table.to_string(),
        columns: columns.to_vec(),
        filter: None,
        scope: columns::Scope::Changed,
        cascade: true,
        settings: Settings {
            timeout: request.timeout,
            concurrency: request.concurrency,
            placement: request.placement.clone(),
            ..Default::default()
        },
        statement: request.statement.clone(),
    };
    run::begin(environment, &refresh).await
}
