//! ALTER TABLE.
//!
//! Each action is one commit, but for columns that are added side by side, which share one: so
//! they may read one another. An action that fails leaves what the actions before it did.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::ast;

use super::Executor;
use super::create::{check_column_name, declaration, exists};
use super::report::Done;
use crate::column::assess::{DEFINITION_CHANGED, FIRST_REFRESH};
use crate::column::declare::{Declaration, declare};
use crate::column::state::{ColumnState, FoundState, find_states};
use crate::database::Table;
use crate::database::definition::{
    ComputedColumn, DEFAULT, VIRTUAL_COLUMNS, VirtualColumn,
};
use crate::database::expression::{physical_expression, plan_expression};
use crate::delta::VersionStamp;
use crate::sql::statement::{AlterAction, AlterTable, ColumnDefinition};
use crate::storage::schema::{
    ColumnChange, MetadataChanges, add_filled_column, add_null_columns, alter_column,
    change_metadata, change_schema, enable_row_tracking,
};
use crate::storage::{Properties, with_retries};
use crate::{Error, ErrorKind, Result};

impl Executor {
    pub(super) async fn alter_table(&self, alter: AlterTable) -> Result<DataFrame> {
        let started = Instant::now();
        let mut name = self.name_of(&alter.table)?;
        if alter.if_exists && !self.database.root().has_table(&name).await? {
            self.notice(format!("table '{name}' does not exist; nothing was done"));
            return self.done(vec![Done::altered("ALTER TABLE", name, None)], started);
        }
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
                    self.add_columns(&name, columns).await?;
                }
                AlterAction::RenameTable { to } => {
                    name = self.rename_table(&name, &to).await?;
                }
                action => with_retries(|| self.alter_one(&name, &action)).await?,
            }
        }
        let version = self.database.table(&name).await?.version();
        self.done(
            vec![Done::altered("ALTER TABLE", name, Some(version))],
            started,
        )
    }

    async fn alter_one(&self, name: &str, action: &AlterAction) -> Result<()> {
        let table = self.database.table(name).await?;
        match action {
            AlterAction::AddColumns {
                fields,
                prefix,
                expression,
            } => self.add_struct_columns(&table, fields, prefix, expression).await,
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
                let change = ColumnChange::Nullable(*nullable);
                alter_column(name, &table.dataset, column, change).await?;
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
    fn visible_schema(&self, table: &Table) -> Result<Schema> {
        if table.definitions.virtuals.is_empty() {
            return Ok(table.stored_schema().as_ref().clone());
        }
        let provider = self.database.table_provider(table, false)?;
        Ok(provider.schema().as_ref().clone())
    }

    async fn add_columns(
        &self,
        name: &str,
        columns: Vec<(bool, ColumnDefinition)>,
    ) -> Result<()> {
        for (_, column) in &columns {
            check_column_name(&column.name)?;
        }
        let (filled, empty): (Vec<_>, Vec<_>) = columns.into_iter().partition(|(_, column)| {
            column.generated.is_none() && (column.default.is_some() || !column.nullable)
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
            let declarations: Vec<Declaration> =
                new.iter().filter_map(|column| declaration(column)).collect();
            self.add_declared(&table, plain, &declarations).await
        })
        .await
    }

    fn is_new(&self, table: &Table, column: &str, if_not_exists: bool) -> Result<bool> {
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
        let value = physical_expression(&state, &empty, &planned.logical, field.data_type())?;
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
        let mut table = table.clone();
        let mut fields = plain;
        fields.extend(declared.fields);
        if !fields.is_empty() {
            let stamp = VersionStamp::of(&table.dataset).await?;
            let computed: Vec<ComputedColumn> = fields
                .iter()
                .filter_map(|field| ComputedColumn::of_field(field).transpose())
                .collect::<Result<_>>()?;
            let dataset = add_null_columns(&table.name, &table.dataset, fields, |schema| {
                let mut properties = Properties::new();
                for column in &computed {
                    let id = schema.field(&column.name).map_or(-1, |field| field.id);
                    let state = ColumnState::unfilled(column, stamp.clone(), FIRST_REFRESH);
                    properties.extend([state.property(id)?]);
                }
                Ok(properties)
            })
            .await?;
            table.dataset = Arc::new(dataset);
        }
        if !declared.virtuals.is_empty() {
            let mut virtuals = table.definitions.virtuals.clone();
            virtuals.extend(declared.virtuals);
            self.write_virtuals(&table, &virtuals).await?;
        }
        Ok(())
    }

    async fn write_virtuals(&self, table: &Table, virtuals: &[VirtualColumn]) -> Result<()> {
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

    async fn add_struct_columns(
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
                expression: expression.to_string(),
                struct_field: Some(field.clone()),
                is_virtual: false,
            });
        }
        self.add_declared(table, Vec::new(), &declarations).await
    }

    async fn drop_column(
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
        let computed = table.definitions.all_dependents(column);
        let mut dropped = vec![column.to_string()];
        dropped.extend(computed.iter().cloned());
        let views = self
            .database
            .views_reading_columns(&table.name, &dropped)
            .await?;
        if !cascade && !(computed.is_empty() && views.is_empty()) {
            let mut dependents: Vec<String> = computed
                .iter()
                .map(|name| format!("column '{name}'"))
                .collect();
            dependents.extend(views.iter().map(|name| format!("view '{name}'")));
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
        for view in views {
            self.database.remove_view(&view).await?;
        }
        Ok(())
    }

    /// Renames a column, and rewrites the definitions that read it, in one commit. No row becomes
    /// stale: the states are written with the digests of the rewritten definitions.
    async fn rename_column(&self, table: &Table, from: &str, to: &str) -> Result<()> {
        table.check_column(from)?;
        check_column_name(to)?;
        self.is_new(table, to, false)?;
        let read = [from.to_string()];
        let views = self
            .database
            .views_reading_columns(&table.name, &read)
            .await?;
        if let Some(view) = views.first() {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!(
                    "column '{from}' of table '{}' can't be renamed: view '{view}' reads it",
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

    async fn rename_table(&self, name: &str, to: &TableReference) -> Result<String> {
        let new = self.new_name(to)?;
        self.database.table(name).await?;
        if self.database.object_type(&new).await?.is_some() {
            return Err(exists("table", &new));
        }
        if let Some(view) = self.database.views_reading(name).await?.first() {
            return Err(Error::new(
                ErrorKind::Dependents,
                format!("table '{name}' can't be renamed: view '{view}' reads it"),
            )
            .with_hint("drop the view, rename, and make the view again"));
        }
        self.database.root().rename_table(name, &new).await?;
        Ok(new)
    }

    async fn set_type(&self, table: &Table, column: &str, data_type: &DataType) -> Result<()> {
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
        let change = ColumnChange::Type(data_type.clone());
        alter_column(&table.name, &table.dataset, column, change).await?;
        Ok(())
    }

    async fn set_expression(
        &self,
        table: &Table,
        column: &str,
        expression: &ast::Expr,
    ) -> Result<()> {
        table.check_column(column)?;
        let virtual_column = table.definitions.virtual_column(column).cloned();
        if virtual_column.is_none() && !table.definitions.stored.contains_key(column) {
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
            expression: expression.to_string(),
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
        self.change_field(table, column, changes, Properties::from([state.property(id)?]))
            .await
    }

    async fn drop_expression(&self, table: &Table, column: &str, if_exists: bool) -> Result<()> {
        table.check_column(column)?;
        if table.definitions.virtual_column(column).is_some() {
            return Err(Error::invalid(format!(
                "column '{column}' of table '{}' is VIRTUAL: without its expression nothing is left of it",
                table.name
            ))
            .with_hint("DROP COLUMN drops it"));
        }
        if !table.definitions.stored.contains_key(column) {
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

fn virtuals_text(virtuals: &[VirtualColumn]) -> Result<Option<String>> {
    if virtuals.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(virtuals)
        .map(Some)
        .map_err(|error| Error::internal(format!("a definition can't be written: {error}")))
}

fn not_computed(table: &Table, column: &str) -> Error {
    Error::invalid(format!(
        "column '{column}' of table '{}' is not a computed column",
        table.name
    ))
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

/// Replaces a column's name in the text of an expression.
fn rename_in_expression(text: &str, from: &str, to: &str) -> Result<String> {
    use std::ops::ControlFlow;

    let mut expression = super::dml::parse_expression(text)?;
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
