//! ADD COLUMN: plain columns, columns with a default, computed ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::sql::sqlparser::ast;

use super::virtuals_text;
use crate::column::assess::FIRST_REFRESH;
use crate::column::declare::{Declaration, declare};
use crate::column::state::ColumnState;
use crate::database::Table;
use crate::database::definition::{ComputedColumn, DEFAULT, VIRTUAL_COLUMNS, VirtualColumn};
use crate::database::expression::{physical_expression, plan_expression};
use crate::delta::VersionStamp;
use crate::sql::execute::Executor;
use crate::sql::execute::create::{check_column_name, declarations, exists};
use crate::sql::format::expression_text;
use crate::sql::statement::ColumnDefinition;
use crate::storage::blob::value_type;
use crate::storage::schema::{
    LanceSchema, MetadataChanges, add_filled_column, add_null_columns, change_metadata,
};
use crate::storage::{Properties, with_retries};
use crate::{Error, Result};

impl Executor {
    pub(super) async fn add_columns(
        &self,
        name: &str,
        columns: Vec<(bool, ColumnDefinition)>,
    ) -> Result<()> {
        for (_, column) in &columns {
            check_column_name(&column.name)?;
        }
        let has_rows = self.database.table(name).await?.dataset.count_fragments() > 0;
        let (filled, empty): (Vec<_>, Vec<_>) = columns.into_iter().partition(|(_, column)| {
            let needs_value = column.default.is_some() || !column.nullable;
            has_rows && column.generated.is_none() && needs_value
        });
        // Columns with values first: others may read them.
        for (if_not_exists, column) in &filled {
            with_retries(|| self.add_filled(name, column, *if_not_exists)).await?;
        }
        if empty.is_empty() {
            return Ok(());
        }
        with_retries(|| async {
            let table = self.database.table(name).await?;
            let mut new = Vec::new();
            for (if_not_exists, column) in &empty {
                if self.is_new(&table, &column.name, *if_not_exists)? {
                    new.push(column);
                }
            }
            let plain = new
                .iter()
                .filter(|column| column.generated.is_none())
                .map(|column| self.plain_field(column))
                .collect::<Result<Vec<_>>>()?;
            let declarations = declarations(new.iter().copied())?;
            self.add_declared(&table, plain, &declarations).await
        })
        .await
    }

    pub(super) fn is_new(&self, table: &Table, column: &str, if_not_exists: bool) -> Result<bool> {
        if !table.column_names().contains(&column) {
            return Ok(true);
        }
        if if_not_exists {
            self.notice(format!(
                "column '{column}' of table '{}' exists already; nothing was done",
                table.name
            ));
            return Ok(false);
        }
        Err(exists("column", column).context(format!("table '{}'", table.name)))
    }

    /// Adds a plain column whose rows get the default.
    async fn add_filled(
        &self,
        name: &str,
        column: &ColumnDefinition,
        if_not_exists: bool,
    ) -> Result<()> {
        let table = self.database.table(name).await?;
        if !self.is_new(&table, &column.name, if_not_exists)? {
            return Ok(());
        }
        let field = self.plain_field(column)?;
        let Some(default) = field.metadata().get(DEFAULT) else {
            return Err(Error::invalid(format!(
                "column '{}' is NOT NULL, but the rows that are there have no value for it",
                column.name
            ))
            .with_hint("give it a DEFAULT, or add it without NOT NULL and fill it first"));
        };
        let state = self.context.state();
        let empty = Arc::new(Schema::empty());
        let purpose = format!("DEFAULT of column '{}'", column.name);
        let planned = plan_expression(&state, &empty, default, &purpose)?;
        let value = physical_expression(&state, &empty, &planned.logical, &value_type(&field))?;
        add_filled_column(name, &table.dataset, field, value).await?;
        Ok(())
    }

    /// Adds columns: plain ones that are NULL, and computed ones.
    async fn add_declared(
        &self,
        table: &Table,
        plain: Vec<Field>,
        declarations: &[Declaration],
    ) -> Result<()> {
        let mut visible: Vec<Field> = self
            .visible_schema(table)?
            .fields()
            .iter()
            .map(|field| field.as_ref().clone())
            .collect();
        visible.extend(plain.iter().cloned());
        let declared = declare(
            &self.context.state(),
            &Schema::new(visible),
            &table.definitions,
            declarations,
        )?;
        let mut virtuals = table.definitions.virtuals.clone();
        let adds_virtuals = !declared.virtuals.is_empty();
        virtuals.extend(declared.virtuals);
        let mut fields = plain;
        fields.extend(declared.fields);
        if fields.is_empty() {
            return match adds_virtuals {
                true => self.write_virtuals(table, &virtuals).await,
                false => Ok(()),
            };
        }
        let stamp = VersionStamp::of(&table.dataset).await?;
        let computed: Vec<ComputedColumn> = fields
            .iter()
            .filter_map(|field| ComputedColumn::of_field(field).transpose())
            .collect::<Result<_>>()?;
        let metadata = virtuals_text(&virtuals)?.map(|text| (VIRTUAL_COLUMNS.to_string(), text));
        let properties = |schema: &LanceSchema| {
            let mut properties = Properties::new();
            for column in &computed {
                let id = schema.field(&column.name).map_or(-1, |field| field.id);
                let state = ColumnState::unfilled(column, stamp.clone(), FIRST_REFRESH);
                properties.extend([state.property(id)?]);
            }
            Ok(properties)
        };
        add_null_columns(&table.name, &table.dataset, fields, metadata, properties).await?;
        Ok(())
    }

    pub(super) async fn write_virtuals(
        &self,
        table: &Table,
        virtuals: &[VirtualColumn],
    ) -> Result<()> {
        let changes =
            MetadataChanges::from([(VIRTUAL_COLUMNS.to_string(), virtuals_text(virtuals)?)]);
        change_metadata(
            &table.name,
            &table.dataset,
            BTreeMap::new(),
            changes,
            Properties::new(),
        )
        .await?;
        Ok(())
    }

    pub(super) async fn add_struct_columns(
        &self,
        table: &Table,
        fields: &[String],
        prefix: &str,
        expression: &ast::Expr,
    ) -> Result<()> {
        let mut declarations = Vec::with_capacity(fields.len());
        for field in fields {
            let name = format!("{prefix}{field}");
            check_column_name(&name)?;
            self.is_new(table, &name, false)?;
            declarations.push(Declaration {
                name,
                field: None,
                expression: expression_text(expression),
                struct_field: Some(field.clone()),
                is_virtual: false,
            });
        }
        self.add_declared(table, Vec::new(), &declarations).await
    }
}
