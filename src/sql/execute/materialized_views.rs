//! The statements about materialized views.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;

use super::Executor;
use super::create::{exists, objects_read};
use super::report::{Done, Rows};
use crate::database::Table;
use crate::database::materialized_view::{ViewDefinition, settings_of};
use crate::sql::format::{query_text, quote_identifier};
use crate::sql::options::views::{RefreshMode, RefreshViewOptions, ViewOptions, of_refresh};
use crate::sql::statement::{
    AlterMaterializedView, CreateMaterializedView, Drop, RefreshView, ViewRefreshMode,
};
use crate::storage::pin;
use crate::storage::write::{TableLayout, create_table};
use crate::view::assess::Scope;
use crate::view::declare::{Maintenance, maintenance, tables_read};
use crate::view::explain::explain;
use crate::view::refresh::{Begun, ViewRefresh, ViewReport, begin, open_view};
use crate::view::state::{FoundState, find_state};
use crate::{Error, ErrorKind, Result};

impl Executor {
    pub(super) async fn create_materialized_view(
        &self,
        create: CreateMaterializedView,
    ) -> Result<DataFrame> {
        let started = Instant::now();
        const STATEMENT: &str = "CREATE MATERIALIZED VIEW";
        let name = self.new_name(&create.name)?;
        let (options, _) = ViewOptions::for_create(&create.options)?;
        if self.database.view(&name).await?.is_some() {
            return Err(exists("view", &name));
        }
        let there = match self.database.root().has_table(&name).await? {
            true => Some(self.database.table(&name).await?),
            false => None,
        };
        if let Some(table) = &there {
            let Some(_) = ViewDefinition::of(table)? else {
                return Err(exists("table", &name));
            };
            if create.if_not_exists {
                self.notice(format!(
                    "materialized view '{name}' exists already; nothing was done"
                ));
                let done = Done::altered(STATEMENT, name, Some(table.version()));
                return self.done(vec![done], started);
            }
            if !create.or_replace {
                return Err(exists("materialized view", &name));
            }
        }
        let definition = self.view_definition(&create, &options)?;
        if tables_read(&self.database, &definition)
            .await?
            .contains(&name)
        {
            return Err(Error::invalid(format!(
                "materialized view '{name}' would read itself"
            )));
        }
        let state = self.context.state();
        let planned = match maintenance(&state, &definition).await {
            Ok(planned) => planned,
            Err(error) => return Err(self.unknown_table(error).await?),
        };
        check_mode(&name, &options, &planned)?;
        if planned.schema.fields().is_empty() {
            return Err(Error::invalid(format!(
                "materialized view '{name}' would have no column"
            )));
        }
        if !planned.obstacle.is_empty() {
            self.notice(format!(
                "every refresh of '{name}' computes all of it: {}",
                planned.obstacle
            ));
        }
        let layout = TableLayout {
            max_rows_per_fragment: options.max_rows_per_fragment,
            max_bytes_per_file: None,
        };
        let schema = Arc::new(definition.with_schema(&planned.schema)?);
        // First, so that no view is there that what it reads does not know of.
        self.database
            .store_materialized_view(&name, &definition)
            .await?;
        let made = create_table(
            self.database.root(),
            &name,
            schema,
            None,
            there.is_some(),
            &layout,
        )
        .await;
        if let Err(error) = made {
            if there.is_none() && !self.database.root().has_table(&name).await? {
                self.database.forget_materialized_view(&name).await?;
            }
            return Err(match error.kind() {
                ErrorKind::Conflict | ErrorKind::AlreadyExists => exists("table", &name),
                _ => error,
            });
        }
        if let Some(before) = there
            && let Some(before) = ViewDefinition::of(&before)?
        {
            self.release_sources(&before).await?;
        }
        if !create.with_data {
            let version = self.database.table(&name).await?.version();
            let done = Done::altered(STATEMENT, name, Some(version));
            return self.done(vec![done], started);
        }
        let refresh = RefreshView {
            name: create.name,
            mode: ViewRefreshMode::Auto,
            concurrently: false,
            as_of: Vec::new(),
            cascade: false,
            is_async: false,
            options: create
                .options
                .into_iter()
                .filter(|option| of_refresh(std::slice::from_ref(option)).is_some())
                .collect(),
        };
        let request = self.view_request(&refresh)?;
        let report = begin(&self.environment(), &request).await?.wait().await?;
        self.view_refreshed(&report)
    }

    fn view_definition(
        &self,
        create: &CreateMaterializedView,
        options: &ViewOptions,
    ) -> Result<ViewDefinition> {
        let options = serde_json::to_value(options)
            .map_err(|error| Error::internal(format!("options can't be written: {error}")))?;
        Ok(ViewDefinition {
            id: uuid::Uuid::new_v4().simple().to_string(),
            query: create.query.to_string(),
            text: query_text(&create.query),
            columns: create.columns.clone(),
            reads: objects_read(&self.context, &create.query)?,
            settings: settings_of(&self.context.state()),
            options,
        })
    }

    pub(super) async fn explain_create_view(
        &self,
        create: CreateMaterializedView,
    ) -> Result<DataFrame> {
        let name = self.new_name(&create.name)?;
        let (options, _) = ViewOptions::for_create(&create.options)?;
        let definition = self.view_definition(&create, &options)?;
        let planned = match maintenance(&self.context.state(), &definition).await {
            Ok(planned) => planned,
            Err(error) => return Err(self.unknown_table(error).await?),
        };
        let mode = match planned.obstacle.as_str() {
            "" => "incremental",
            _ => "full",
        };
        let mut lines = vec![
            ("materialized view", name),
            ("mode", mode.to_string()),
            ("reason", planned.obstacle),
            ("classes", planned.classes.join(", ")),
        ];
        for (table, columns) in planned.sources {
            lines.push(("source", table));
            lines.push(("columns read", columns.join(", ")));
        }
        self.explained(lines)
    }

    fn explained(&self, lines: Vec<(&'static str, String)>) -> Result<DataFrame> {
        Rows::default()
            .text("item", lines.iter().map(|(item, _)| *item))
            .text("value", lines.iter().map(|(_, value)| value.clone()))
            .frame(self)
    }

    pub(super) async fn refresh_view(&self, refresh: RefreshView) -> Result<DataFrame> {
        let request = self.view_request(&refresh)?;
        match begin(&self.environment(), &request).await? {
            Begun::Job(job) if refresh.is_async => {
                let id = job.id().to_string();
                job.detach();
                let summary = self.jobs.ledger().job(&id).await?;
                self.submitted(&summary)
            }
            begun => self.view_refreshed(&begun.wait().await?),
        }
    }

    fn view_request(&self, refresh: &RefreshView) -> Result<ViewRefresh> {
        let options = RefreshViewOptions::read(&refresh.options)?;
        if refresh.mode == ViewRefreshMode::FailedOnly {
            return Err(Error::not_available(
                "REFRESH MATERIALIZED VIEW … FAILED ONLY",
            ));
        }
        if !refresh.as_of.is_empty() {
            return Err(Error::not_available("REFRESH MATERIALIZED VIEW … AS OF"));
        }
        if refresh.cascade {
            return Err(Error::not_available("REFRESH MATERIALIZED VIEW … CASCADE"));
        }
        Ok(ViewRefresh {
            view: self.name_of(&refresh.name)?,
            scope: match refresh.mode {
                ViewRefreshMode::Auto | ViewRefreshMode::FailedOnly => Scope::Auto,
                ViewRefreshMode::Full => Scope::Full,
                ViewRefreshMode::Incremental => Scope::Incremental,
            },
            concurrently: refresh.concurrently,
            timeout: options.timeout,
            statement: refresh.text(),
        })
    }

    pub(super) fn view_refreshed(&self, report: &ViewReport) -> Result<DataFrame> {
        for notice in &report.notices {
            self.notice(notice);
        }
        Rows::default()
            .text("object", [report.view.clone()])
            .text("mode", [report.mode])
            .text("reason", [report.reason.clone()])
            .number("rows_inserted", [Some(report.rows_inserted)])
            .number("rows_updated", [Some(report.rows_updated)])
            .number("rows_deleted", [Some(report.rows_deleted)])
            .number("version", [Some(report.version)])
            .optional_text("job_id", [report.job.clone()])
            .seconds("elapsed_seconds", [report.elapsed])
            .frame(self)
    }

    pub(super) async fn explain_refresh_view(
        &self,
        refresh: RefreshView,
        analyze: bool,
    ) -> Result<DataFrame> {
        let environment = self.environment();
        let request = self.view_request(&refresh)?;
        let mut lines = explain(&environment, &request).await?;
        if analyze {
            let report = begin(&environment, &request).await?.wait().await?;
            lines.push(("ran", report.mode.to_string()));
            lines.push(("rows inserted", report.rows_inserted.to_string()));
            lines.push(("rows updated", report.rows_updated.to_string()));
            lines.push(("rows deleted", report.rows_deleted.to_string()));
            lines.push(("version after", report.version.to_string()));
            let elapsed = format!("{:.3} s", report.elapsed.as_secs_f64());
            lines.push(("elapsed", elapsed));
        }
        self.explained(lines)
    }

    pub(super) async fn alter_materialized_view(
        &self,
        _alter: AlterMaterializedView,
    ) -> Result<DataFrame> {
        Err(Error::not_available("ALTER MATERIALIZED VIEW"))
    }

    pub(super) async fn drop_materialized_views(&self, drop: Drop) -> Result<DataFrame> {
        let started = Instant::now();
        let mut found = Vec::new();
        for reference in &drop.names {
            let name = self.name_of(reference)?;
            match open_view(&self.database, &name).await {
                Ok(_) => found.push(name),
                Err(error) if error.kind() == ErrorKind::NotFound && drop.if_exists => {
                    self.notice(format!("'{name}' does not exist; nothing was done"));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let known = self.database.materialized_view_names().await?;
                    return Err(Error::not_found(
                        "materialized view",
                        &name,
                        known.iter().map(String::as_str),
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        self.drop_with_dependents("DROP MATERIALIZED VIEW", found, drop.cascade, started)
            .await
    }

    /// Removes a materialized view, and lets go of the versions that it refers to.
    pub(super) async fn remove_materialized_view(&self, name: &str) -> Result<()> {
        let (_, definition) = open_view(&self.database, name).await?;
        self.database.root().remove_table(name).await?;
        self.database.forget_materialized_view(name).await?;
        self.release_sources(&definition).await
    }

    async fn release_sources(&self, definition: &ViewDefinition) -> Result<()> {
        for name in tables_read(&self.database, definition).await? {
            if self.database.root().has_table(&name).await? {
                let table = self.database.table(&name).await?;
                let none = std::collections::BTreeSet::new();
                pin::release_owner(&name, &table.dataset, &definition.id, &none).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn show_materialized_views(&self) -> Result<DataFrame> {
        let names = self.database.materialized_view_names().await?;
        let mut rows: BTreeMap<String, (Table, ViewDefinition)> = BTreeMap::new();
        for name in names {
            // One may be gone.
            if let Ok(found) = open_view(&self.database, &name).await {
                rows.insert(name, found);
            }
        }
        let mut populated = Vec::with_capacity(rows.len());
        for (name, (table, _)) in &rows {
            let state = find_state(name, &table.dataset).await?;
            populated.push(match state {
                FoundState::State(_) => "yes",
                FoundState::Never => "no",
                FoundState::Lost | FoundState::Modified => "lost",
            });
        }
        Rows::default()
            .text("name", rows.keys().cloned())
            .text("query", rows.values().map(|(_, d)| d.text.clone()))
            .text("populated", populated)
            .number("version", rows.values().map(|(t, _)| Some(t.version())))
            .frame(self)
    }

    pub(super) async fn describe_materialized_view(
        &self,
        name: &TableReference,
    ) -> Result<DataFrame> {
        let name = self.name_of(name)?;
        let (table, definition) = open_view(&self.database, &name).await?;
        let planned = maintenance(&self.context.state(), &definition).await?;
        let mut lines = vec![
            ("materialized view", name.clone()),
            ("query", definition.text.clone()),
            (
                "maintenance",
                match planned.obstacle.as_str() {
                    "" => "incremental".to_string(),
                    obstacle => format!("full: {obstacle}"),
                },
            ),
            ("classes", planned.classes.join(", ")),
            ("version", table.version().to_string()),
        ];
        match find_state(&name, &table.dataset).await? {
            FoundState::State(state) => {
                lines.push(("last refresh", state.mode.clone()));
                lines.push(("reason", state.reason.clone()));
                for source in &state.sources {
                    let source = format!("{} version {}", source.table, source.version.version);
                    lines.push(("reflects", source));
                }
            }
            FoundState::Never => lines.push(("last refresh", "never".to_string())),
            FoundState::Lost => lines.push(("last refresh", "lost".to_string())),
            FoundState::Modified => lines.push(("last refresh", "changed by others".to_string())),
        }
        self.explained(lines)
    }

    pub(super) async fn show_create_materialized_view(
        &self,
        name: &TableReference,
    ) -> Result<DataFrame> {
        let name = self.name_of(name)?;
        let (_, definition) = open_view(&self.database, &name).await?;
        let columns: Vec<String> = definition
            .columns
            .iter()
            .map(|column| quote_identifier(column))
            .collect();
        let columns = match columns.is_empty() {
            true => String::new(),
            false => format!(" ({})", columns.join(", ")),
        };
        let text = format!(
            "CREATE MATERIALIZED VIEW {}{columns} AS {}",
            quote_identifier(&name),
            definition.text
        );
        Rows::default()
            .text("name", [name])
            .text("definition", [text])
            .frame(self)
    }
}

/// Refuses a query that can't be maintained in the mode that is asked for.
fn check_mode(name: &str, options: &ViewOptions, planned: &Maintenance) -> Result<()> {
    if options.refresh_mode == RefreshMode::Incremental && !planned.obstacle.is_empty() {
        return Err(Error::invalid(format!(
            "materialized view '{name}' can't be refreshed incrementally: {}",
            planned.obstacle
        ))
        .with_hint("leave refresh_mode out, or say refresh_mode = 'full'"));
    }
    Ok(())
}
