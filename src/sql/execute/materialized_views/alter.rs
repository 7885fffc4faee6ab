//! ALTER MATERIALIZED VIEW.
//!
//! Options, SUSPEND, UPGRADE FUNCTIONS and a new query are changes of the definition. A query that gives the same
//! columns is one commit that changes nothing but the definition: the rows stay until the next refresh, which is full.
//! One that gives others makes the table anew, without rows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::datatypes::Schema;
use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::ast;

use super::check_mode;
use crate::database::Table;
use crate::database::materialized_view::{ViewDefinition, settings_of};
use crate::sql::execute::Executor;
use crate::sql::execute::create::{exists, objects_read};
use crate::sql::execute::report::Done;
use crate::sql::format::query_text;
use crate::sql::options::views::ViewOptions;
use crate::sql::statement::{AlterMaterializedView, AlterViewAction};
use crate::storage::schema::{MetadataChanges, change_metadata};
use crate::storage::write::create_table;
use crate::storage::{Properties, pin, with_retries};
use crate::view::assess::fits;
use crate::view::declare::{Maintenance, maintenance, tables_read};
use crate::view::failures;
use crate::view::refresh::open_view;
use crate::{Error, ErrorKind, Result};

impl Executor {
    pub(in crate::sql::execute) async fn alter_materialized_view(
        &self,
        alter: AlterMaterializedView,
    ) -> Result<DataFrame> {
        const STATEMENT: &str = "ALTER MATERIALIZED VIEW";
        let started = Instant::now();
        let mut name = self.name_of(&alter.name)?;
        if alter.if_exists && !self.database.root().has_table(&name).await? {
            self.notice(format!("'{name}' does not exist; nothing was done"));
            let done = Done::altered(STATEMENT, name, None);
            return self.done(vec![done], started);
        }
        self.view_named(&name).await?;
        let mut rename = None;
        let mut changes = Vec::new();
        for action in alter.actions {
            match action {
                AlterViewAction::RenameTo(to) => rename = Some(to),
                other => changes.push(other),
            }
        }
        // Checked before anything is changed.
        let rename = match rename {
            Some(to) => Some(self.checked_view_name(&name, &to).await?),
            None => None,
        };
        if !changes.is_empty() {
            with_retries(|| Box::pin(self.change_definition(&name, &changes))).await?;
        }
        if let Some(to) = rename {
            self.rename_materialized_view(&name, &to).await?;
            name = to;
        }
        let version = self.database.table(&name).await?.version();
        let done = Done::altered(STATEMENT, name, Some(version));
        self.done(vec![done], started)
    }

    async fn change_definition(&self, name: &str, changes: &[AlterViewAction]) -> Result<()> {
        let (table, before) = open_view(&self.database, name).await?;
        let mut definition = before.clone();
        let mut options = ViewOptions::of(&definition)?;
        let (mut query, mut is_upgraded) = (None, false);
        for change in changes {
            match change {
                AlterViewAction::Set(given) => options = options.with(given)?,
                AlterViewAction::Reset(names) => options = options.without(names)?,
                AlterViewAction::Suspend => {
                    definition.suspended = true;
                    definition.suspended_because = None;
                }
                AlterViewAction::Resume => {
                    definition.suspended = false;
                    definition.suspended_because = None;
                    // It gets as many attempts as one that never failed.
                    failures::forget(&self.database, name).await?;
                }
                AlterViewAction::As(new) => query = Some(new),
                AlterViewAction::UpgradeFunctions => is_upgraded = true,
                AlterViewAction::RenameTo(_) => {
                    return Err(Error::internal("this action is handled elsewhere"));
                }
            }
        }
        definition.options = serde_json::to_value(&options)
            .map_err(|error| Error::internal(format!("options can't be written: {error}")))?;
        if let Some(query) = query {
            self.take_query(name, &mut definition, query).await?;
        }
        if is_upgraded {
            match self.planned(&definition).await?.functions.is_empty() {
                true => self.notice(format!(
                    "'{name}' calls no functions of users: there is nothing to upgrade"
                )),
                false => definition.upgrades += 1,
            }
        }
        if definition == before {
            return Ok(());
        }
        let is_planned = query.is_some() || options != ViewOptions::of(&before)?;
        let planned = match is_planned {
            true => Some(self.planned(&definition).await?),
            false => None,
        };
        if let Some(planned) = &planned {
            check_mode(name, &options, planned)?;
        }
        let other_columns = planned
            .filter(|planned| query.is_some() && !fits(&table.stored_schema(), &planned.schema));
        match other_columns {
            Some(planned) => {
                self.check_replaceable(&table, &planned.schema).await?;
                let schema = Arc::new(definition.with_schema(&planned.schema)?);
                let root = self.database.root();
                create_table(root, name, schema, None, true, &options.layout()).await?;
                self.notice(format!(
                    "the query gives other columns than before: '{name}' is empty until REFRESH MATERIALIZED VIEW {name}"
                ));
            }
            None => {
                let metadata = definition.metadata()?.into_iter();
                let changes: MetadataChanges =
                    metadata.map(|(key, text)| (key, Some(text))).collect();
                let none = Default::default();
                change_metadata(name, &table.dataset, none, changes, Properties::new()).await?;
            }
        }
        self.database
            .store_materialized_view(name, &definition)
            .await?;
        // What only the query before has read need not keep its version.
        let now = tables_read(&self.database, &definition).await?;
        for source in tables_read(&self.database, &before).await? {
            if !now.contains(&source) && self.database.root().has_table(&source).await? {
                let table = self.database.table(&source).await?;
                pin::release_owner(&source, &table.dataset, &definition.id, &BTreeSet::new())
                    .await?;
            }
        }
        Ok(())
    }

    /// Gives a definition another query.
    async fn take_query(
        &self,
        name: &str,
        definition: &mut ViewDefinition,
        query: &ast::Query,
    ) -> Result<()> {
        definition.query = query.to_string();
        definition.text = query_text(query);
        // They were names for the columns of the query before.
        definition.columns = Vec::new();
        definition.reads = objects_read(&self.context, query)?;
        definition.settings = settings_of(&self.context.state());
        self.database
            .check_no_circle("materialized view", name, &definition.reads)
            .await?;
        definition.source_columns = self.source_columns(definition).await?;
        Ok(())
    }

    /// Plans a definition that is about to be stored.
    pub(in crate::sql::execute) async fn planned(
        &self,
        definition: &ViewDefinition,
    ) -> Result<Maintenance> {
        match maintenance(&self.context.state(), definition).await {
            Ok(planned) => Ok(planned),
            Err(error) => Err(self.unknown_table(error).await?),
        }
    }

    /// Refuses to make the table of a view anew while others need what is in it.
    pub(in crate::sql::execute) async fn check_replaceable(
        &self,
        table: &Table,
        schema: &Schema,
    ) -> Result<()> {
        let name = &table.name;
        let computed: Vec<&str> = (table.definitions.stored.keys().map(String::as_str))
            .chain(table.definitions.virtuals.iter().map(|c| c.name.as_str()))
            .collect();
        if !computed.is_empty() {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "materialized view '{name}' would be made anew, without its computed columns: {}",
                    computed.join(", ")
                ),
            )
            .with_hint(format!("ALTER TABLE {name} DROP COLUMN … removes them")));
        }
        let broken = self.database.views_broken_by(name, schema.clone()).await?;
        if !broken.is_empty() {
            let readers: Vec<String> = broken.iter().map(ToString::to_string).collect();
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "materialized view '{name}' would have other columns: {} reads it",
                    readers.join(", ")
                ),
            )
            .with_hint("drop what reads it first"));
        }
        Ok(())
    }

    /// Checks that a view may get another name.
    async fn checked_view_name(&self, name: &str, to: &str) -> Result<String> {
        let to = self.new_name(&TableReference::bare(to))?;
        if self.database.object_type(&to).await?.is_some() {
            return Err(exists("table", &to));
        }
        if let Some(reader) = self.database.readers_of(name).await?.first() {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!("materialized view '{name}' can't be renamed: {reader} reads it"),
            )
            .with_hint("drop what reads it, rename, and make that again"));
        }
        let (_, definition) = open_view(&self.database, name).await?;
        self.database
            .check_no_circle("materialized view", &to, &definition.reads)
            .await?;
        Ok(to)
    }

    async fn rename_materialized_view(&self, name: &str, to: &str) -> Result<()> {
        let (_, definition) = open_view(&self.database, name).await?;
        // First, so that there is no view of which what it reads does not know.
        self.database
            .store_materialized_view(to, &definition)
            .await?;
        if let Err(error) = self.database.root().rename_table(name, to).await {
            self.database.forget_materialized_view(to).await?;
            return Err(error);
        }
        self.database.forget_materialized_view(name).await?;
        self.forget_work(name).await?;
        let renamed = self.database.table(to).await?;
        pin::renew(to, &renamed.dataset).await
    }
}
