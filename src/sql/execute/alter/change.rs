//! DROP COLUMN, RENAME, ALTER COLUMN … TYPE: changes that others may depend on.

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::ast;

use super::{plain_column, virtuals_text};
use crate::column::state::{FoundState, find_states};
use crate::database::Table;
use crate::database::definition::{ComputedColumn, VIRTUAL_COLUMNS, VirtualColumn};
use crate::database::expression::plan_expression;
use crate::sql::execute::Executor;
use crate::sql::execute::create::{check_column_name, exists};
use crate::sql::execute::dml::parse_expression;
use crate::storage::schema::{cast_column, change_schema, keeps_data};
use crate::storage::{Properties, pin};
use crate::{Error, ErrorKind, Result};

impl Executor {
    pub(super) async fn drop_column(
        &self,
        table: &Table,
        column: &str,
        if_exists: bool,
        cascade: bool,
    ) -> Result<()> {
        if if_exists && !table.column_names().contains(&column) {
            self.notice(format!(
                "column '{column}' of table '{}' does not exist; nothing was done",
                table.name
            ));
            return Ok(());
        }
        table.check_column(column)?;
        if table.definitions.clash(&table.stored_schema()) == Some(column) {
            // Of the two columns of that name the virtual one goes.
            let mut virtuals = table.definitions.virtuals.clone();
            virtuals.retain(|other| other.name != column);
            return self.write_virtuals(table, &virtuals).await;
        }
        let computed = table.definitions.all_dependents(column);
        let mut dropped = vec![column.to_string()];
        dropped.extend(computed.iter().cloned());
        let left: Vec<Field> = self
            .visible_schema(table)?
            .fields()
            .iter()
            .filter(|field| !dropped.contains(field.name()))
            .map(|field| field.as_ref().clone())
            .collect();
        let views = self
            .database
            .views_broken_by(&table.name, Schema::new(left))
            .await?;
        if !cascade && (!computed.is_empty() || !views.is_empty()) {
            let mut dependents: Vec<String> = computed
                .iter()
                .map(|name| format!("column '{name}'"))
                .collect();
            dependents.extend(views.iter().map(ToString::to_string));
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "column '{column}' of table '{}' can't be dropped: {} reads it",
                    table.name,
                    dependents.join(", ")
                ),
            )
            .with_hint("DROP COLUMN … CASCADE drops them too"));
        }
        check_data_left(table, column, &dropped)?;
        let virtuals: Vec<VirtualColumn> = table
            .definitions
            .virtuals
            .iter()
            .filter(|column| !dropped.contains(&column.name))
            .cloned()
            .collect();
        let text = virtuals_text(&virtuals)?;
        change_schema(
            &table.name,
            &table.dataset,
            |schema| {
                schema.fields.retain(|field| !dropped.contains(&field.name));
                if schema.fields.is_empty() {
                    return Err(Error::invalid(format!(
                        "column '{column}' is the last stored one of table '{}'",
                        table.name
                    ))
                    .with_hint(format!("DROP TABLE {}", table.name)));
                }
                match text {
                    Some(text) => schema.metadata.insert(VIRTUAL_COLUMNS.to_string(), text),
                    None => schema.metadata.remove(VIRTUAL_COLUMNS),
                };
                Ok(())
            },
            Properties::new(),
        )
        .await?;
        // Those that read others go first.
        for view in views.iter().rev() {
            self.remove_reader(view).await?;
        }
        Ok(())
    }

    /// Renames a column, and rewrites the definitions that read it, in one commit. No row becomes
    /// stale: the states are written with the digests of the rewritten definitions.
    pub(super) async fn rename_column(&self, table: &Table, from: &str, to: &str) -> Result<()> {
        table.check_column(from)?;
        check_column_name(to)?;
        self.is_new(table, to, false)?;
        let renamed: Vec<Field> = self
            .visible_schema(table)?
            .fields()
            .iter()
            .map(|field| match field.name() == from {
                true => field.as_ref().clone().with_name(to),
                false => field.as_ref().clone(),
            })
            .collect();
        let views = self
            .database
            .views_broken_by(&table.name, Schema::new(renamed))
            .await?;
        if let Some(view) = views.first() {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "column '{from}' of table '{}' can't be renamed: {view} reads it",
                    table.name
                ),
            )
            .with_hint("drop the view, rename, and make the view again"));
        }
        let mut rewritten = Vec::new();
        for column in table.definitions.stored.values() {
            let mut new = column.clone();
            if column.input_names.contains(from) {
                new.expression = rename_in_expression(&column.expression, from, to)?;
                new.input_names.remove(from);
                new.input_names.insert(to.to_string());
                rewritten.push((column.clone(), new));
            }
        }
        let mut virtuals = table.definitions.virtuals.clone();
        for column in &mut virtuals {
            if column.name == from {
                column.name = to.to_string();
            }
            if column.input_names.remove(from) {
                column.expression = rename_in_expression(&column.expression, from, to)?;
                column.input_names.insert(to.to_string());
            }
        }
        let text = virtuals_text(&virtuals)?;
        let properties = self.carried_states(table, &rewritten).await?;
        change_schema(
            &table.name,
            &table.dataset,
            |schema| {
                for (_, new) in &rewritten {
                    let metadata = new.field_metadata()?;
                    if let Some(field) = schema.fields.iter_mut().find(|f| f.name == new.name) {
                        field.metadata.extend(metadata);
                    }
                }
                if let Some(field) = schema.fields.iter_mut().find(|field| field.name == from) {
                    field.name = to.to_string();
                }
                if let Some(text) = text {
                    schema.metadata.insert(VIRTUAL_COLUMNS.to_string(), text);
                }
                Ok(())
            },
            properties,
        )
        .await?;
        Ok(())
    }

    /// The states of columns whose definitions are rewritten without a change of meaning.
    async fn carried_states(
        &self,
        table: &Table,
        rewritten: &[(ComputedColumn, ComputedColumn)],
    ) -> Result<Properties> {
        let ids: Vec<i32> = rewritten
            .iter()
            .map(|(old, _)| table.dataset.schema().field(&old.name).map_or(-1, |f| f.id))
            .collect();
        let found = find_states(&table.name, &table.dataset, &ids).await?;
        let mut properties = Properties::new();
        for (((old, new), state), id) in rewritten.iter().zip(found).zip(ids) {
            if let FoundState::State(mut state) = state
                && state.definition == old.digest()
            {
                state.definition = new.digest();
                properties.extend([state.property(id)?]);
            }
        }
        Ok(properties)
    }

    pub(super) async fn rename_table(&self, name: &str, to: &TableReference) -> Result<String> {
        let new = self.new_name(to)?;
        self.database.table(name).await?;
        if self.database.object_type(&new).await?.is_some() {
            return Err(exists("table", &new));
        }
        if let Some(view) = self.database.readers_of(name).await?.first() {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!("table '{name}' can't be renamed: {view} reads it"),
            )
            .with_hint("drop the view, rename, and make the view again"));
        }
        self.database.root().rename_table(name, &new).await?;
        let renamed = self.database.table(&new).await?;
        pin::renew(&new, &renamed.dataset).await?;
        Ok(new)
    }

    pub(super) async fn set_type(
        &self,
        table: &Table,
        column: &str,
        data_type: &DataType,
    ) -> Result<()> {
        let field = plain_column(table, column, "ALTER COLUMN … TYPE")?;
        if field.data_type() == data_type {
            return Ok(());
        }
        if !datafusion::arrow::compute::can_cast_types(field.data_type(), data_type) {
            return Err(Error::invalid(format!(
                "column '{column}' of table '{}' is {}, which can't become {data_type}",
                table.name,
                field.data_type()
            )));
        }
        // What reads the column has to make sense with the new type.
        let fields: Vec<Field> = self
            .visible_schema(table)?
            .fields()
            .iter()
            .map(|f| match f.name() == column {
                true => f.as_ref().clone().with_data_type(data_type.clone()),
                false => f.as_ref().clone(),
            })
            .collect();
        let schema = Schema::new(fields);
        // Other views just give another type; the table of a materialized view has one.
        let views = self.database.views_broken_by(&table.name, schema.clone());
        if let Some(view) = views.await?.iter().find(|view| view.is_materialized) {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "column '{column}' of table '{}' can't become {data_type}: {view} reads it",
                    table.name
                ),
            )
            .with_hint("drop the view, change the type, and make the view again"));
        }
        for name in table.definitions.dependents(column) {
            let text = table
                .definitions
                .stored
                .get(&name)
                .map(|c| c.expression.as_str())
                .or_else(|| {
                    let column = table.definitions.virtual_column(&name);
                    column.map(|c| c.expression.as_str())
                });
            if let Some(text) = text {
                let purpose = format!("computed column '{name}' reads '{column}'");
                plan_expression(&self.context.state(), &schema, text, &purpose)?;
            }
        }
        cast_column(&table.name, &table.dataset, column, data_type.clone()).await?;
        Ok(())
    }
}

/// Fails if rows would be left without any value that is stored.
fn check_data_left(table: &Table, column: &str, dropped: &[String]) -> Result<()> {
    if keeps_data(&table.dataset, dropped) {
        return Ok(());
    }
    let error = Error::invalid(format!(
        "column '{column}' of table '{}' can't be dropped: some rows have no value in another column",
        table.name
    ));
    let fields = &table.dataset.schema().fields;
    Err(
        match fields.iter().find(|field| !dropped.contains(&field.name)) {
            Some(field) => error.with_hint(format!(
                "UPDATE {} SET {1} = {1} writes them first",
                table.name, field.name
            )),
            None => error.with_hint(format!("DROP TABLE {}", table.name)),
        },
    )
}

/// Replaces a column's name in the text of an expression.
fn rename_in_expression(text: &str, from: &str, to: &str) -> Result<String> {
    use std::ops::ControlFlow;

    let mut expression = parse_expression(text)?;
    let rename = |name: &mut ast::Ident| {
        let same = match name.quote_style {
            Some(_) => name.value == from,
            None => name.value.to_lowercase() == from,
        };
        if same {
            *name = ast::Ident::with_quote('"', to);
        }
    };
    let _ = ast::visit_expressions_mut(&mut expression, |node| {
        match node {
            ast::Expr::Identifier(name) => rename(name),
            // A struct's column comes first: s.field.
            ast::Expr::CompoundIdentifier(parts) => {
                if let Some(first) = parts.first_mut() {
                    rename(first);
                }
            }
            _ => {}
        }
        ControlFlow::<()>::Continue(())
    });
    Ok(expression.to_string())
}
