//! The statements about materialized views.

mod alter;
mod refresh;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;

use super::Executor;
use super::create::{exists, objects_read};
use super::report::{Done, Rows};
use crate::database::materialized_view::{ViewDefinition, settings_of};
use crate::sql::format::{query_text, quote_identifier};
use crate::sql::options::views::{RefreshMode, ViewOptions, of_refresh};
use crate::sql::statement::{CreateMaterializedView, Drop, RefreshView, ViewRefreshMode};
use crate::storage::pin;
use crate::storage::write::create_table;
use crate::view::declare::{Maintenance, tables_read};
use crate::view::failures;
use crate::view::reason::{explained, mend};
use crate::view::refresh::{begin, open_view};
use crate::view::stage::remove_stages;
use crate::view::system::view_rows;
use crate::{Error, ErrorKind, Result};

/// The columns of SHOW MATERIALIZED VIEWS.
const SHOWN: [&str; 9] = [
    "view_name",
    "query",
    "maintenance",
    "populated",
    "source_versions",
    "newest_versions",
    "rows_behind",
    "full_reason",
    "version",
];

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
        let definition = self.view_definition(&create, &options).await?;
        self.database
            .check_no_circle("materialized view", &name, &definition.reads)
            .await?;
        if create.with_data {
            for source in tables_read(&self.database, &definition).await? {
                if self.database.root().has_table(&source).await? {
                    let source = self.database.table(&source).await?;
                    source.check_populated().await?;
                }
            }
        }
        let planned = self.planned(&definition).await?;
        check_mode(&name, &options, &planned)?;
        if planned.schema.fields().is_empty() {
            return Err(Error::invalid(format!(
                "materialized view '{name}' would have no column"
            )));
        }
        if !planned.obstacle.is_empty() {
            self.notice(format!(
                "every refresh of '{name}' computes all of it: {}",
                explained(&planned.obstacle)
            ));
        }
        if let Some(there) = &there {
            self.check_replaceable(there, &planned.schema).await?;
        }
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
            &options.layout(),
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
        let request = self.view_request(&refresh).await?;
        let report = begin(&self.environment(), &request).await?.wait().await?;
        self.view_refreshed(&report)
    }

    async fn view_definition(
        &self,
        create: &CreateMaterializedView,
        options: &ViewOptions,
    ) -> Result<ViewDefinition> {
        let options = serde_json::to_value(options)
            .map_err(|error| Error::internal(format!("options can't be written: {error}")))?;
        let mut definition = ViewDefinition {
            id: uuid::Uuid::new_v4().simple().to_string(),
            query: create.query.to_string(),
            text: query_text(&create.query),
            columns: create.columns.clone(),
            reads: objects_read(&self.context, &create.query)?,
            source_columns: BTreeMap::new(),
            settings: settings_of(&self.context.state()),
            upgrades: 0,
            options,
            suspended: false,
            suspended_because: None,
        };
        definition.source_columns = self.source_columns(&definition).await?;
        Ok(definition)
    }

    /// The columns that the tables have now which a definition reads: what `*` means in its query.
    async fn source_columns(
        &self,
        definition: &ViewDefinition,
    ) -> Result<BTreeMap<String, Vec<String>>> {
        let mut columns = BTreeMap::new();
        for name in tables_read(&self.database, definition).await? {
            // An unknown name is told when the query is planned.
            if self.database.root().has_table(&name).await? {
                let table = self.database.table(&name).await?;
                let fields = self.visible_schema(&table)?;
                let names = fields.fields().iter().map(|field| field.name().clone());
                columns.insert(name, names.collect());
            }
        }
        Ok(columns)
    }

    pub(super) async fn explain_create_view(
        &self,
        create: CreateMaterializedView,
    ) -> Result<DataFrame> {
        let name = self.new_name(&create.name)?;
        let (options, _) = ViewOptions::for_create(&create.options)?;
        let definition = self.view_definition(&create, &options).await?;
        self.database
            .check_no_circle("materialized view", &name, &definition.reads)
            .await?;
        let planned = self.planned(&definition).await?;
        check_mode(&name, &options, &planned)?;
        let (mode, reason) = match (planned.obstacle.as_str(), options.refresh_mode) {
            ("", RefreshMode::Full) => ("full", "refresh_mode = 'full'".to_string()),
            ("", _) => (
                "incremental",
                "only what changed in its sources".to_string(),
            ),
            (obstacle, _) => ("full", explained(obstacle)),
        };
        let mut lines = vec![
            ("materialized view", name),
            ("mode", mode.to_string()),
            ("reason", reason),
        ];
        if let Some(mend) = mend(&planned.obstacle) {
            lines.push(("mend", mend.to_string()));
        }
        if !planned.classes.is_empty() {
            lines.push(("classes", planned.classes.join(", ")));
        }
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

    pub(super) async fn drop_materialized_views(&self, drop: Drop) -> Result<DataFrame> {
        let started = Instant::now();
        let mut found = Vec::new();
        for reference in &drop.names {
            let name = self.name_of(reference)?;
            // Without opening it: what is damaged can be dropped.
            if self.database.materialized_view(&name).await?.is_some() {
                found.push(name);
                continue;
            }
            match self.view_named(&name).await {
                Ok(()) => found.push(name),
                Err(error) if error.kind() == ErrorKind::NotFound && drop.if_exists => {
                    self.notice(format!("'{name}' does not exist; nothing was done"));
                }
                Err(error) => return Err(error),
            }
        }
        self.drop_with_dependents("DROP MATERIALIZED VIEW", found, drop.cascade, started)
            .await
    }

    /// Fails unless there is a materialized view of that name, naming the nearest.
    pub(super) async fn view_named(&self, name: &str) -> Result<()> {
        match open_view(&self.database, name).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let known = self.database.materialized_view_names().await?;
                Err(Error::not_found(
                    "materialized view",
                    name,
                    known.iter().map(String::as_str),
                ))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a materialized view with all that is kept for it, and lets go of the versions that it refers to.
    pub(super) async fn remove_materialized_view(&self, name: &str) -> Result<()> {
        let definition = match open_view(&self.database, name).await {
            Ok((_, definition)) => Some(definition),
            Err(_) => self.database.materialized_view(name).await?,
        };
        // What is damaged has a folder at least.
        let root = self.database.root();
        if root.table_names().await?.iter().any(|table| table == name) {
            root.remove_table(name).await?;
        }
        self.database.forget_materialized_view(name).await?;
        self.forget_work(name).await?;
        match definition {
            Some(definition) => self.release_sources(&definition).await,
            None => Ok(()),
        }
    }

    /// Removes what jobs have left of a view that is not there any more.
    async fn forget_work(&self, name: &str) -> Result<()> {
        let root = self.database.root();
        failures::forget(&self.database, name).await?;
        root.remove_own_folder(&format!("claims/{name}")).await?;
        root.remove_own_folder(&format!("staged/{name}")).await
    }

    /// Lets go of what is kept for a view that is not there any more.
    async fn release_sources(&self, definition: &ViewDefinition) -> Result<()> {
        remove_stages(&self.database, &definition.id).await?;
        for name in tables_read(&self.database, definition).await? {
            if self.database.root().has_table(&name).await? {
                let table = self.database.table(&name).await?;
                let none = BTreeSet::new();
                pin::release_owner(&name, &table.dataset, &definition.id, &none).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn show_materialized_views(&self) -> Result<DataFrame> {
        let rows = Box::pin(view_rows(self.jobs.ledger(), None)).await?;
        // What fits a screen; DESCRIBE and system.materialized_views have the rest.
        Ok(self.listing(rows)?.select_columns(&SHOWN)?)
    }

    pub(super) async fn describe_materialized_view(
        &self,
        name: &TableReference,
    ) -> Result<DataFrame> {
        let name = self.name_of(name)?;
        self.view_named(&name).await?;
        let rows = Box::pin(view_rows(self.jobs.ledger(), Some(&name))).await?;
        if rows.num_rows() == 0 {
            return Err(Error::invalid(format!(
                "the copy of the definition of materialized view '{name}' is gone"
            ))
            .with_hint("ALTER MATERIALIZED VIEW … RESUME writes it again"));
        }
        self.described(&rows)
    }

    pub(super) async fn show_create_materialized_view(
        &self,
        name: &TableReference,
    ) -> Result<DataFrame> {
        let name = self.name_of(name)?;
        self.view_named(&name).await?;
        let (_, definition) = open_view(&self.database, &name).await?;
        let options = match ViewOptions::of(&definition)?.to_string() {
            options if options.is_empty() => options,
            options => format!(" WITH ({options})"),
        };
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
            "CREATE MATERIALIZED VIEW {}{columns}{options} AS {}",
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
            explained(&planned.obstacle)
        ))
        .with_hint("leave refresh_mode out, or say refresh_mode = 'full'"));
    }
    Ok(())
}
