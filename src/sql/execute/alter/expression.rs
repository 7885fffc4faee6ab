//! SET EXPRESSION and DROP EXPRESSION.

use datafusion::sql::sqlparser::ast;

use crate::column::assess::DEFINITION_CHANGED;
use crate::column::declare::{Declaration, declare};
use crate::column::state::ColumnState;
use crate::database::Table;
use crate::database::definition::{ComputedColumn, VirtualColumn};
use crate::delta::VersionStamp;
use crate::sql::execute::Executor;
use crate::sql::format::expression_text;
use crate::storage::Properties;
use crate::{Error, Result};

impl Executor {
    pub(super) async fn set_expression(
        &self,
        table: &Table,
        column: &str,
        expression: &ast::Expr,
    ) -> Result<()> {
        table.check_column(column)?;
        let virtual_column = table.definitions.virtual_column(column).cloned();
        if !table.definitions.is_computed(column) {
            return Err(not_computed(table, column));
        }
        let schema = self.visible_schema(table)?;
        let mut definitions = table.definitions.clone();
        definitions.stored.remove(column);
        definitions.virtuals.retain(|other| other.name != column);
        let field = match &virtual_column {
            Some(declared) if declared.data_type.is_none() => None,
            _ => schema.field_with_name(column).ok().map(|field| {
                field.clone().with_metadata(
                    field
                        .metadata()
                        .iter()
                        .filter(|(key, _)| !ComputedColumn::is_definition_key(key))
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect(),
                )
            }),
        };
        let declaration = Declaration {
            name: column.to_string(),
            field,
            expression: expression_text(expression),
            struct_field: None,
            is_virtual: virtual_column.is_some(),
        };
        let mut declared = declare(
            &self.context.state(),
            &schema,
            &definitions,
            std::slice::from_ref(&declaration),
        )?;
        if let Some(new) = declared.virtuals.pop() {
            let virtuals: Vec<VirtualColumn> = table
                .definitions
                .virtuals
                .iter()
                .map(|old| match old.name == column {
                    true => new.clone(),
                    false => old.clone(),
                })
                .collect();
            return self.write_virtuals(table, &virtuals).await;
        }
        let new = declared
            .fields
            .pop()
            .and_then(|field| ComputedColumn::of_field(&field).transpose())
            .ok_or_else(|| Error::internal("the new expression declared nothing"))??;
        let id = table.dataset.schema().field(column).map_or(-1, |f| f.id);
        let stamp = VersionStamp::of(&table.dataset).await?;
        let state = ColumnState::unfilled(&new, stamp, DEFINITION_CHANGED);
        let changes = new
            .field_metadata()?
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .collect();
        self.change_field(
            table,
            column,
            changes,
            Properties::from([state.property(id)?]),
        )
        .await
    }

    pub(super) async fn drop_expression(
        &self,
        table: &Table,
        column: &str,
        if_exists: bool,
    ) -> Result<()> {
        table.check_column(column)?;
        if table.definitions.virtual_column(column).is_some() {
            return Err(Error::invalid(format!(
                "column '{column}' of table '{}' is VIRTUAL: without its expression nothing is left of it",
                table.name
            ))
            .with_hint("DROP COLUMN drops it"));
        }
        if !table.definitions.is_computed(column) {
            if if_exists {
                self.notice(format!("column '{column}' is a plain column already"));
                return Ok(());
            }
            return Err(not_computed(table, column));
        }
        let changes = table
            .dataset
            .schema()
            .field(column)
            .into_iter()
            .flat_map(|field| field.metadata.keys())
            .filter(|key| ComputedColumn::is_definition_key(key))
            .map(|key| (key.clone(), None))
            .collect();
        self.change_field(table, column, changes, Properties::new())
            .await
    }
}

fn not_computed(table: &Table, column: &str) -> Error {
    Error::invalid(format!(
        "column '{column}' of table '{}' is not a computed column",
        table.name
    ))
}
