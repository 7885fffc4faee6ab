//! ALTER TABLE.
//!
//! Each action is one commit, but for columns that are added side by side, which share one: so
//! they may read one another. Names are checked before anything is changed; an action that fails on the
//! data (a cast, a NULL) leaves what the actions before it did.

mod add;
mod change;
mod expression;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::prelude::DataFrame;

use super::Executor;
use super::create::exists;
use super::report::Done;
use crate::database::Table;
use crate::database::definition::{DEFAULT, VirtualColumn};
use crate::sql::statement::{AlterAction, AlterTable};
use crate::storage::schema::{MetadataChanges, change_metadata, enable_row_tracking, set_nullable};
use crate::storage::{Properties, with_retries};
use crate::{Error, Result};

impl Executor {
    pub(super) async fn alter_table(&self, alter: AlterTable) -> Result<DataFrame> {
        let started = Instant::now();
        let mut name = self.name_of(&alter.table)?;
        if alter.if_exists && !self.database.root().has_table(&name).await? {
            self.notice(format!("table '{name}' does not exist; nothing was done"));
            return self.done(vec![Done::altered("ALTER TABLE", name, None)], started);
        }
        self.check_names(&name, &alter.actions).await?;
        let mut actions = alter.actions.into_iter().peekable();
        while let Some(action) = actions.next() {
            match action {
                AlterAction::AddColumn {
                    if_not_exists,
                    column,
                } => {
                    let mut columns = vec![(if_not_exists, column)];
                    while let Some(AlterAction::AddColumn { .. }) = actions.peek() {
                        if let Some(AlterAction::AddColumn {
                            if_not_exists,
                            column,
                        }) = actions.next()
                        {
                            columns.push((if_not_exists, column));
                        }
                    }
                    Box::pin(self.add_columns(&name, columns)).await?;
                }
                AlterAction::RenameTable { to } => {
                    name = self.rename_table(&name, &to).await?;
                }
                // Boxed, or the compiler of a program that calls this gives up: Lance's futures nest deeply.
                action => with_retries(|| Box::pin(self.alter_one(&name, &action))).await?,
            }
        }
        let version = self.database.table(&name).await?.version();
        self.done(
            vec![Done::altered("ALTER TABLE", name, Some(version))],
            started,
        )
    }

    /// Checks, before anything is changed, that every action finds the columns that it names, as the
    /// actions before it leave them.
    async fn check_names(&self, name: &str, actions: &[AlterAction]) -> Result<()> {
        let table = self.database.table(name).await?;
        for action in actions {
            check_view_action(&table, action)?;
        }
        let mut columns: BTreeSet<String> = table
            .column_names()
            .into_iter()
            .map(str::to_string)
            .collect();
        let missing = |columns: &BTreeSet<String>, column: &str| {
            Error::not_found("column", column, columns.iter().map(String::as_str))
                .context(format!("table '{name}'"))
        };
        for action in actions {
            let named = match action {
                AlterAction::AddColumn {
                    if_not_exists,
                    column,
                } => {
                    if !columns.insert(column.name.clone()) && !if_not_exists {
                        let error = exists("column", &column.name);
                        return Err(error.context(format!("table '{name}'")));
                    }
                    continue;
                }
                AlterAction::AddColumns { fields, prefix, .. } => {
                    columns.extend(fields.iter().map(|field| format!("{prefix}{field}")));
                    continue;
                }
                AlterAction::RenameTable { .. } | AlterAction::EnableRowTracking => continue,
                AlterAction::DropColumn {
                    column, if_exists, ..
                } => {
                    if !columns.remove(column) && !if_exists {
                        return Err(missing(&columns, column));
                    }
                    continue;
                }
                AlterAction::RenameColumn { from, to } => {
                    if !columns.remove(from) {
                        return Err(missing(&columns, from));
                    }
                    columns.insert(to.clone());
                    continue;
                }
                AlterAction::SetType { column, .. }
                | AlterAction::SetNullable { column, .. }
                | AlterAction::SetDefault { column, .. }
                | AlterAction::SetExpression { column, .. }
                | AlterAction::DropExpression { column, .. } => column,
            };
            if !columns.contains(named) {
                return Err(missing(&columns, named));
            }
        }
        Ok(())
    }

    async fn alter_one(&self, name: &str, action: &AlterAction) -> Result<()> {
        let table = self.database.table(name).await?;
        match action {
            AlterAction::AddColumns {
                fields,
                prefix,
                expression,
            } => {
                self.add_struct_columns(&table, fields, prefix, expression)
                    .await
            }
            AlterAction::DropColumn {
                column,
                if_exists,
                cascade,
            } => self.drop_column(&table, column, *if_exists, *cascade).await,
            AlterAction::RenameColumn { from, to } => self.rename_column(&table, from, to).await,
            AlterAction::SetType { column, field } => {
                self.set_type(&table, column, field.data_type()).await
            }
            AlterAction::SetNullable { column, nullable } => {
                plain_column(&table, column, "ALTER COLUMN … NOT NULL")?;
                set_nullable(name, &table.dataset, column, *nullable).await?;
                Ok(())
            }
            AlterAction::SetDefault { column, default } => {
                let field = plain_column(&table, column, "ALTER COLUMN … DEFAULT")?;
                let text = match default {
                    Some(default) => Some(self.default_text(&field, default)?),
                    None => None,
                };
                let changes = MetadataChanges::from([(DEFAULT.to_string(), text)]);
                self.change_field(&table, column, changes, Properties::new())
                    .await
            }
            AlterAction::SetExpression { column, expression } => {
                self.set_expression(&table, column, expression).await
            }
            AlterAction::DropExpression { column, if_exists } => {
                self.drop_expression(&table, column, *if_exists).await
            }
            AlterAction::EnableRowTracking => {
                enable_row_tracking(name, &table.dataset).await?;
                Ok(())
            }
            AlterAction::AddColumn { .. } | AlterAction::RenameTable { .. } => {
                Err(Error::internal("this action is handled elsewhere"))
            }
        }
    }

    async fn change_field(
        &self,
        table: &Table,
        column: &str,
        changes: MetadataChanges,
        properties: Properties,
    ) -> Result<()> {
        let columns = BTreeMap::from([(column.to_string(), changes)]);
        change_metadata(
            &table.name,
            &table.dataset,
            columns,
            MetadataChanges::new(),
            properties,
        )
        .await?;
        Ok(())
    }

    /// All columns of a table as expressions see them, virtual ones too.
    pub(in crate::sql::execute) fn visible_schema(&self, table: &Table) -> Result<Schema> {
        if table.definitions.virtuals.is_empty() {
            return Ok(table.shown_schema().as_ref().clone());
        }
        let provider = self.database.table_provider(table, false)?;
        Ok(provider.schema().as_ref().clone())
    }
}

fn virtuals_text(virtuals: &[VirtualColumn]) -> Result<Option<String>> {
    if virtuals.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(virtuals)
        .map(Some)
        .map_err(|error| Error::internal(format!("a definition can't be written: {error}")))
}

/// A plain column that `statement` may change.
fn plain_column(table: &Table, column: &str, statement: &str) -> Result<Field> {
    table.check_column(column)?;
    if table.definitions.is_computed(column) {
        return Err(Error::invalid(format!(
            "{statement}: column '{column}' of table '{}' is computed",
            table.name
        ))
        .with_hint("drop it and declare it anew, or change its expression with SET EXPRESSION"));
    }
    let schema = table.stored_schema();
    schema
        .field_with_name(column)
        .cloned()
        .map_err(|error| Error::internal(error.to_string()))
}

/// Of a materialized view, only what is computed from its rows can be altered as that of a table.
fn check_view_action(table: &Table, action: &AlterAction) -> Result<()> {
    let is_of_computed = match action {
        AlterAction::AddColumn { column, .. } => column.generated.is_some(),
        AlterAction::AddColumns { .. } | AlterAction::EnableRowTracking => true,
        AlterAction::DropColumn { column, .. }
        | AlterAction::SetExpression { column, .. }
        | AlterAction::DropExpression { column, .. } => table.definitions.is_computed(column),
        AlterAction::RenameColumn { from, .. } => table.definitions.is_computed(from),
        AlterAction::RenameTable { .. }
        | AlterAction::SetType { .. }
        | AlterAction::SetNullable { .. }
        | AlterAction::SetDefault { .. } => false,
    };
    match is_of_computed {
        true => Ok(()),
        false if matches!(action, AlterAction::RenameTable { .. }) => table
            .check_not_materialized("ALTER TABLE")
            .map_err(|error| {
                error.with_hint(format!(
                    "ALTER MATERIALIZED VIEW {} RENAME TO …",
                    table.name
                ))
            }),
        false => table.check_not_materialized("ALTER TABLE"),
    }
}
