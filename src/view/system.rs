//! `system.materialized_views` and `system.dependencies`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::execution::SessionState;
use futures::future::BoxFuture;

use super::assess::{Assessment, Wanted, assess};
use super::declare::maintenance;
use super::failures;
use super::lag::{Lags, Watch};
use super::options::{TargetLag, ViewOptions};
use super::refresh::open_view;
use super::state::{FoundState, find_state};
use crate::Result;
use crate::database::materialized_view::ViewDefinition;
use crate::database::system::{
    SystemColumn, SystemTable, batch, number, optional_text, seconds, text,
};
use crate::database::{Database, Table};
use crate::job::clock::Clock;
use crate::job::ledger::Ledger;

/// The system tables of this room, which tell the time by `clock`.
pub fn system_tables(clock: &Arc<dyn Clock>) -> Vec<Arc<dyn SystemTable>> {
    let clock = Arc::clone(clock);
    vec![
        Arc::new(MaterializedViews { clock }),
        Arc::new(Dependencies),
    ]
}

/// One row of `system.materialized_views`.
#[derive(Debug, Default)]
struct ViewRow {
    name: String,
    query: Option<String>,
    options: String,
    populated: Option<bool>,
    last_mode: Option<String>,
    last_reason: Option<String>,
    maintenance: Option<&'static str>,
    classes: Option<String>,
    obstacle: Option<String>,
    reflects: Option<String>,
    newest: Option<String>,
    next_mode: Option<String>,
    full_reason: Option<String>,
    rows_behind: Option<u64>,
    rows_pending: Option<u64>,
    rows_failed: Option<u64>,
    suspended: Option<bool>,
    suspended_because: Option<String>,
    target_lag: Option<String>,
    limit: Option<Duration>,
    seconds_behind: Option<f64>,
    failures: Option<u64>,
    last_failure: Option<String>,
    version: Option<u64>,
    last_job: Option<String>,
    error: Option<String>,
}

impl ViewRow {
    async fn fill(
        &mut self,
        ledger: &Ledger,
        state: &SessionState,
        lags: &Lags,
        watch: &mut Watch,
    ) -> Result<()> {
        let database = ledger.database();
        let (table, definition) = open_view(database, &self.name).await?;
        self.suspended_because = definition.suspended_because.clone();
        self.limit = lags.limit(&self.name);
        let failed = failures::read(database, &self.name).await?;
        let failed = failed.filter(|failed| failed.definition == definition.id);
        self.failures = Some(failed.as_ref().map_or(0, |failed| failed.count.into()));
        self.last_failure = failed.map(|failed| failed.error);
        self.query = Some(definition.text.clone());
        self.suspended = Some(definition.suspended);
        self.version = Some(table.version());
        let options = ViewOptions::of(&definition)?;
        self.options = options.to_string();
        self.target_lag = options.target_lag.map(|lag| lag.to_string());
        match find_state(&self.name, &table.dataset).await? {
            FoundState::State(state) => {
                self.populated = Some(true);
                self.reflects = Some(versions(
                    state
                        .tables()
                        .map(|source| (&*source.table, source.version.version)),
                ));
                // What a refresh computes it writes, or nothing.
                self.rows_pending = Some(0);
                self.rows_failed = Some(state.failed.iter().map(|failed| failed.rows).sum());
                self.last_mode = Some(state.mode);
                self.last_reason = Some(state.reason).filter(|reason| !reason.is_empty());
            }
            FoundState::Never => self.populated = Some(false),
            FoundState::Lost | FoundState::Modified => self.populated = Some(true),
        }
        let planned = maintenance(state, &definition).await?;
        self.classes = Some(planned.classes.join(", "));
        self.maintenance = Some(match planned.obstacle.as_str() {
            "" => "incremental",
            _ => "full",
        });
        self.obstacle = Some(planned.obstacle).filter(|obstacle| !obstacle.is_empty());
        self.assess(database, state, &table, &definition).await?;
        let behind = watch.behind(database, lags, &self.name).await?;
        self.seconds_behind = behind.age(ledger.now()).map(|age| age.as_secs_f64());
        Ok(())
    }

    /// What the next refresh would do, and how much changed.
    async fn assess(
        &mut self,
        database: &Arc<Database>,
        state: &SessionState,
        table: &Table,
        definition: &ViewDefinition,
    ) -> Result<()> {
        let wanted = Wanted::default();
        let assessment: Assessment = assess(database, state, table, definition, &wanted).await?;
        let changes = assessment.changes.iter();
        self.newest = Some(versions(changes.clone().map(|c| (&*c.table, c.to))));
        self.next_mode = Some(assessment.mode().to_string());
        match assessment.mode() {
            "full" => self.full_reason = Some(assessment.view.reason.clone()),
            _ => {
                let rows = changes.filter_map(|change| change.rows);
                self.rows_behind = Some(rows.flatten().sum());
            }
        }
        Ok(())
    }
}

/// Tables and their versions, each once.
fn versions<'a>(sources: impl Iterator<Item = (&'a str, u64)>) -> String {
    let sources: BTreeMap<&str, u64> = sources.collect();
    let sources = sources.iter().map(|(table, v)| format!("{table} {v}"));
    sources.collect::<Vec<_>>().join(", ")
}

/// `system.materialized_views`.
#[derive(Debug)]
struct MaterializedViews {
    clock: Arc<dyn Clock>,
}

impl SystemTable for MaterializedViews {
    fn name(&self) -> &'static str {
        "materialized_views"
    }

    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let ledger = Ledger::new(Arc::clone(database), Arc::clone(&self.clock));
            view_rows(&ledger, None).await
        })
    }
}

/// The rows of `system.materialized_views`; of one view if `only` names it.
pub async fn view_rows(ledger: &Ledger, only: Option<&str>) -> Result<RecordBatch> {
    let database = ledger.database();
    let state = database.session_state()?;
    // The newest first.
    let jobs = ledger.jobs().await?;
    let lags = Lags::load(database).await?;
    let mut watch = Watch::default();
    let mut rows = Vec::new();
    for name in database.materialized_view_names().await? {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let job = jobs.iter().map(|job| &job.record);
        let mut job = job.filter(|job| job.table == name && job.columns.is_empty());
        let mut row = ViewRow {
            last_job: job.next().map(|job| job.id.clone()),
            name,
            ..Default::default()
        };
        // One that can't be planned must not hide the others, nor what else is known of it.
        if let Err(error) = Box::pin(row.fill(ledger, &state, &lags, &mut watch)).await {
            row.error = Some(error.to_string());
        }
        rows.push(row);
    }
    let boolean = |name: &str, values: Vec<Option<bool>>| -> SystemColumn {
        let field = Field::new(name, DataType::Boolean, true);
        (field, Arc::new(BooleanArray::from(values)))
    };
    let texts = |get: fn(&ViewRow) -> &Option<String>| {
        let values: Vec<Option<String>> = rows.iter().map(|row| get(row).clone()).collect();
        values
    };
    batch(vec![
        text("view_name", rows.iter().map(|r| r.name.clone())),
        optional_text("query", texts(|r| &r.query)),
        text("options", rows.iter().map(|r| r.options.clone())),
        optional_text(
            "maintenance",
            rows.iter().map(|r| r.maintenance.map(str::to_string)),
        ),
        optional_text("classes", texts(|r| &r.classes)),
        optional_text("obstacle", texts(|r| &r.obstacle)),
        boolean("populated", rows.iter().map(|r| r.populated).collect()),
        optional_text("last_mode", texts(|r| &r.last_mode)),
        optional_text("last_reason", texts(|r| &r.last_reason)),
        optional_text("source_versions", texts(|r| &r.reflects)),
        optional_text("newest_versions", texts(|r| &r.newest)),
        number("rows_behind", rows.iter().map(|r| r.rows_behind)),
        number("rows_pending", rows.iter().map(|r| r.rows_pending)),
        number("rows_failed", rows.iter().map(|r| r.rows_failed)),
        optional_text("next_mode", texts(|r| &r.next_mode)),
        optional_text("full_reason", texts(|r| &r.full_reason)),
        boolean("suspended", rows.iter().map(|r| r.suspended).collect()),
        optional_text("suspended_because", texts(|r| &r.suspended_because)),
        optional_text("target_lag", texts(|r| &r.target_lag)),
        optional_text(
            "lag_limit",
            rows.iter()
                .map(|r| Some(TargetLag::Within(r.limit?).to_string())),
        ),
        seconds("seconds_behind", rows.iter().map(|r| r.seconds_behind)),
        number("failures", rows.iter().map(|r| r.failures)),
        optional_text("last_failure", texts(|r| &r.last_failure)),
        number("version", rows.iter().map(|r| r.version)),
        optional_text("last_job", texts(|r| &r.last_job)),
        optional_text("error", texts(|r| &r.error)),
    ])
}

/// `system.dependencies`.
#[derive(Debug)]
struct Dependencies;

#[derive(Debug)]
struct Dependency {
    object: String,
    kind: &'static str,
    on: String,
    on_kind: &'static str,
    columns: Option<String>,
}

impl SystemTable for Dependencies {
    fn name(&self) -> &'static str {
        "dependencies"
    }

    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let state = database.session_state()?;
            let mut rows: Vec<Dependency> = Vec::new();
            let tables: BTreeSet<String> =
                database.root().table_names().await?.into_iter().collect();
            for name in &tables {
                let Ok(table) = database.table(name).await else {
                    continue;
                };
                let kind = |column: &str| match table.definitions.is_computed(column) {
                    true => "computed column",
                    false => "column",
                };
                for column in table.column_names() {
                    for input in table.definitions.inputs_of(column).into_iter().flatten() {
                        rows.push(Dependency {
                            object: format!("{name}.{column}"),
                            kind: kind(column),
                            on: format!("{name}.{input}"),
                            on_kind: kind(input),
                            columns: None,
                        });
                    }
                }
            }
            let names = database.materialized_view_names().await?;
            let materialized: BTreeSet<String> = names.into_iter().collect();
            let mut views: Vec<(String, &'static str, ViewDefinition)> = Vec::new();
            for name in database.view_names().await? {
                if let Some(view) = database.view(&name).await? {
                    let definition = ViewDefinition {
                        query: view.query,
                        reads: view.reads,
                        ..Default::default()
                    };
                    views.push((name, "view", definition));
                }
            }
            for name in &materialized {
                if let Some(definition) = database.materialized_view(name).await? {
                    views.push((name.clone(), "materialized view", definition));
                }
            }
            for (name, kind, definition) in views {
                // What can't be planned is listed without columns.
                let planned = maintenance(&state, &definition).await.ok();
                let sources = planned.map(|planned| planned.sources).unwrap_or_default();
                for on in &definition.reads {
                    let read = sources.iter().filter(|(table, _)| table == on);
                    let columns: BTreeSet<&str> = read
                        .flat_map(|(_, columns)| columns.iter().map(String::as_str))
                        .collect();
                    let on_kind = match on {
                        _ if materialized.contains(on) => "materialized view",
                        _ if tables.contains(on) => "table",
                        _ => "view",
                    };
                    rows.push(Dependency {
                        object: name.clone(),
                        kind,
                        on: on.clone(),
                        on_kind,
                        columns: (on_kind != "view" && !sources.is_empty())
                            .then(|| columns.into_iter().collect::<Vec<_>>().join(", ")),
                    });
                }
            }
            batch(vec![
                text("object", rows.iter().map(|r| r.object.clone())),
                text("object_kind", rows.iter().map(|r| r.kind)),
                text("depends_on", rows.iter().map(|r| r.on.clone())),
                text("depends_on_kind", rows.iter().map(|r| r.on_kind)),
                optional_text("columns", rows.iter().map(|r| r.columns.clone())),
            ])
        })
    }
}
