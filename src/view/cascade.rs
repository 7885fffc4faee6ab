//! REFRESH … CASCADE: what a view reads is refreshed before it, all at one set of versions.
//!
//! Tables come first: their computed columns that some view reads. Then the views, each behind those that it reads, with
//! its own computed columns where another view reads them. The versions of the tables are fixed once, so that two ways
//! from a view to the same table lead to the same rows.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use futures::future::BoxFuture;

use super::assess::Scope;
use super::declare::tables_read;
use super::failed::OnError;
use super::query::Query;
use super::refresh::{ViewRefresh, ViewReport, begin, open_view};
use crate::column::refresh::{self as columns, Refresh, Settings};
use crate::column::run;
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;
use crate::job::environment::Environment;
use crate::{Error, Result};

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

/// What was done for one object.
#[derive(Debug)]
pub enum Ran {
    /// Computed columns.
    Columns(run::Refreshed),
    /// A view.
    View(ViewReport),
}

/// What a view reads, directly or through others.
#[derive(Debug, Default)]
struct Found {
    /// Materialized views, each behind those that it reads.
    views: Vec<String>,
    seen: BTreeSet<String>,
    /// Tables, and the stored computed columns of them that a view reads.
    computed: BTreeMap<String, BTreeSet<String>>,
    /// Tables that are no materialized views.
    tables: BTreeSet<String>,
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
    fn steps(self) -> Vec<Step> {
        let columns_of = |table: &String| {
            let columns = self.computed.get(table).filter(|c| !c.is_empty())?;
            Some(Step::Columns {
                table: table.clone(),
                columns: columns.iter().cloned().collect(),
            })
        };
        let mut steps: Vec<Step> = self.tables.iter().filter_map(columns_of).collect();
        for view in &self.views {
            steps.push(Step::View(view.clone()));
            steps.extend(columns_of(view));
        }
        steps
    }
}

async fn find(environment: &Environment, request: &ViewRefresh) -> Result<Found> {
    let mut found = Found::default();
    visit(environment, request, request.view.clone(), &mut found).await?;
    for table in request.as_of.keys() {
        if !found.tables.contains(table) && !found.seen.contains(table) {
            let known = found.tables.iter().chain(&found.seen);
            let known: Vec<&str> = known.map(String::as_str).collect();
            return Err(not_read(&request.view, table, &known));
        }
    }
    Ok(found)
}

fn visit<'a>(
    environment: &'a Environment,
    request: &'a ViewRefresh,
    view: String,
    found: &'a mut Found,
) -> BoxFuture<'a, Result<()>> {
    async move {
        if !found.seen.insert(view.clone()) {
            return Ok(());
        }
        let database = &environment.database;
        let (_, definition) = open_view(database, &view).await?;
        let reading = Reading {
            versions: request.as_of.clone(),
            unpopulated: true,
            ..definition.reading()
        };
        let query = Query::plan(&environment.state, &definition, reading)
            .await
            .map_err(|error| error.context(format!("materialized view '{view}'")))?;
        for name in tables_read(database, &definition).await? {
            let table = database.table(&name).await?;
            let is_fixed = request.as_of.contains_key(&name);
            if ViewDefinition::of(&table)?.is_some() && !is_fixed {
                visit(environment, request, name.clone(), found).await?;
            } else {
                found.tables.insert(name.clone());
            }
            if is_fixed {
                continue;
            }
            let computed = found.computed.entry(name.clone()).or_default();
            for (source, _) in query.tables().filter(|(source, _)| source.table == name) {
                let stored = &table.definitions.stored;
                let read = source.columns.iter().filter(|c| stored.contains_key(*c));
                computed.extend(read.cloned());
            }
        }
        found.views.push(view);
        Ok(())
    }
    .boxed()
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
    let database = &environment.database;
    let found = find(environment, request).await?;
    let tables = found.tables.clone();
    let (before, views): (Vec<Step>, Vec<Step>) = found
        .steps()
        .into_iter()
        .partition(|step| matches!(step, Step::Columns { table, .. } if tables.contains(table)));
    let mut ran = Vec::new();
    for step in &before {
        if let Step::Columns { table, columns } = step {
            ran.push(Ran::Columns(
                refresh_columns(environment, request, table, columns).await?,
            ));
        }
    }
    let mut versions = request.as_of.clone();
    for table in &tables {
        if !versions.contains_key(table) {
            versions.insert(table.clone(), database.table(table).await?.version());
        }
    }
    for step in &views {
        match step {
            Step::View(view) => {
                let one = of_step(environment, request, view, &versions).await?;
                let report = begin(environment, &one).await?.wait().await?;
                versions.insert(view.clone(), report.version);
                ran.push(Ran::View(report));
            }
            Step::Columns { table, columns } => {
                let refreshed = refresh_columns(environment, request, table, columns).await?;
                versions.insert(table.clone(), database.table(table).await?.version());
                ran.push(Ran::Columns(refreshed));
            }
        }
    }
    Ok(ran)
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

async fn refresh_columns(
    environment: &Environment,
    request: &ViewRefresh,
    table: &str,
    columns: &[String],
) -> Result<run::Refreshed> {
    let refresh = Refresh {
        table: table.to_string(),
        columns: columns.to_vec(),
        filter: None,
        scope: columns::Scope::Changed,
        cascade: true,
        settings: Settings {
            timeout: request.timeout,
            ..Default::default()
        },
        statement: request.statement.clone(),
    };
    run::begin(environment, &refresh).await?.wait().await
}
