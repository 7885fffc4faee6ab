//! INSERT, UPDATE, DELETE, TRUNCATE.
//!
//! DataFusion's own hooks for these lose filters, so they are ours: the statement becomes a
//! query that gives the ids of the rows and their new values, and rows are written by id. The
//! query reads one version of the table; when others commit in between what does not go together
//! with it, the whole statement runs again from the newest version.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, cast, col, lit,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;

use super::Executor;
use super::report::Done;
use crate::database::Table;
use crate::database::definition::DEFAULT;
use crate::database::expression::plan_expression;
use crate::database::name::TableName;
use crate::sql::format::quote_identifier;
use crate::sql::statement::{Delete, Insert, Update};
use crate::storage::blob::{is_binary, is_blob, is_descriptor, value_type, written_rows};
use crate::storage::properties::UPDATED_FIELDS;
use crate::storage::write::{append, delete_all_rows, delete_rows, rewrite_rows};
use crate::storage::{Properties, RowSet, with_retries};
use crate::{Error, ErrorKind, Result};

impl Executor {
    pub(super) async fn insert(&self, insert: Insert) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(&insert.table)?;
        let table = self.database.table(&name).await?;
        table.check_not_materialized("INSERT")?;
        let (columns, source) = self.insert_source(&table, insert).await?;
        let schema = table.stored_schema();
        let mut values: Vec<Expr> = Vec::new();
        let mut written: Vec<Field> = Vec::new();
        let sources = source.schema().columns();
        for field in schema.fields() {
            let given = columns.iter().position(|column| column == field.name());
            let value = match given.and_then(|index| sources.get(index)) {
                Some(source) => col(source.clone()),
                None => match self.default_of(field)? {
                    Some(default) => default,
                    None if !field.is_nullable() => {
                        return Err(Error::invalid(format!(
                            "column '{}' of table '{name}' is NOT NULL and has no default, so INSERT must give it",
                            field.name()
                        )));
                    }
                    None => continue,
                },
            };
            values.push(self.assigned(value, &source, field)?.alias(field.name()));
            written.push(field.as_ref().clone());
        }
        if let (true, Some(field)) = (values.is_empty(), schema.fields().first()) {
            // A row of NULLs is a row all the same.
            let null = lit(ScalarValue::Null);
            values.push(cast(null, field.data_type().clone()).alias(field.name()));
            written.push(field.as_ref().clone());
        }
        let plan = LogicalPlanBuilder::from(source).project(values)?.build()?;
        let written: SchemaRef = Arc::new(Schema::new(written));
        let rows = checked_stream(self, plan, &name, &written).await?;
        let counted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&counted);
        let schema = rows.schema();
        let rows = rows.inspect(move |batch| {
            if let Ok(batch) = batch {
                counter.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            }
        });
        let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
        let dataset = append(self.database.root(), &name, &table.dataset, rows).await?;
        let rows = counted.load(Ordering::Relaxed);
        self.done(
            vec![Done {
                statement: "INSERT",
                object: name,
                rows: Some(rows),
                version: Some(dataset.version().version),
            }],
            started,
        )
    }

    /// The columns that an INSERT gives, and a plan that gives them in that order.
    async fn insert_source(
        &self,
        table: &Table,
        insert: Insert,
    ) -> Result<(Vec<String>, LogicalPlan)> {
        let definitions = &table.definitions;
        let plain: Vec<String> = table
            .column_names()
            .into_iter()
            .filter(|column| !definitions.is_computed(column))
            .map(str::to_string)
            .collect();
        let mut seen = BTreeSet::new();
        for column in &insert.columns {
            table.check_column(column)?;
            if !seen.insert(column) {
                return Err(Error::invalid(format!("column '{column}' is named twice")));
            }
        }
        let Some(mut query) = insert.query else {
            // DEFAULT VALUES: one row of nothing.
            return Ok((Vec::new(), LogicalPlanBuilder::empty(true).build()?));
        };
        let mut columns = match insert.columns.is_empty() {
            false => insert.columns,
            true => {
                let all = table.column_names();
                match values_width(&query) {
                    Some(width) if width == all.len() && width > plain.len() => {
                        all.into_iter().map(str::to_string).collect()
                    }
                    _ => plain,
                }
            }
        };
        self.replace_defaults(table, &mut columns, &mut query)?;
        if let Some(computed) = columns.iter().find(|c| definitions.is_computed(c)) {
            return Err(computed_column(table, computed));
        }
        let plan = self.plan_query(*query).await?;
        let given = plan.schema().fields().len();
        if given != columns.len() {
            return Err(Error::invalid(format!(
                "INSERT INTO {} takes {} values ({}), but is given {given}",
                table.name,
                columns.len(),
                columns.join(", ")
            )));
        }
        Ok((columns, plan))
    }

    /// Puts defaults in the place of the word DEFAULT in VALUES, and drops computed columns that
    /// are given nothing else.
    fn replace_defaults(
        &self,
        table: &Table,
        columns: &mut Vec<String>,
        query: &mut ast::Query,
    ) -> Result<()> {
        let ast::SetExpr::Values(values) = query.body.as_mut() else {
            return Ok(());
        };
        let rows = &mut values.rows;
        let mut index = 0;
        while index < columns.len() {
            let computed = table.definitions.is_computed(&columns[index]);
            let all_default = rows
                .iter()
                .all(|row| row.content.get(index).is_some_and(is_default));
            if computed && all_default {
                columns.remove(index);
                for row in rows.iter_mut() {
                    row.content.remove(index);
                }
                continue;
            }
            let field = table.dataset.schema().field(&columns[index]);
            let default = field.and_then(|field| field.metadata.get(DEFAULT));
            for row in rows.iter_mut() {
                if let Some(cell) = row.content.get_mut(index)
                    && is_default(cell)
                {
                    *cell = match default {
                        Some(text) => parse_expression(text)?,
                        None => ast::Expr::value(ast::Value::Null),
                    };
                }
            }
            index += 1;
        }
        Ok(())
    }

    /// The default of a column, if it has one.
    fn default_of(&self, field: &Field) -> Result<Option<Expr>> {
        let Some(text) = field.metadata().get(DEFAULT) else {
            return Ok(None);
        };
        let purpose = format!("DEFAULT of column '{}'", field.name());
        let planned = plan_expression(&self.context.state(), &Schema::empty(), text, &purpose)?;
        Ok(Some(planned.logical))
    }

    /// `value` as it is assigned to a column.
    pub(super) fn assigned(
        &self,
        value: Expr,
        source: &LogicalPlan,
        field: &Field,
    ) -> Result<Expr> {
        let have = value.get_type(source.schema())?;
        if is_blob(field) {
            return assigned_blob(value, &have, field);
        }
        let want = field.data_type();
        if have == *want {
            return Ok(value);
        }
        if !datafusion::arrow::compute::can_cast_types(&have, want) {
            return Err(crate::database::expression::type_error(
                field.name(),
                &have,
                want,
            ));
        }
        Ok(cast(value, want.clone()))
    }

    pub(super) async fn update(&self, update: Update) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(&update.table)?;
        let (version, rows) = with_retries(|| self.try_update(&name, &update)).await?;
        self.done(
            vec![Done {
                statement: "UPDATE",
                object: name,
                rows: Some(rows),
                version: Some(version),
            }],
            started,
        )
    }

    async fn try_update(&self, name: &str, update: &Update) -> Result<(u64, u64)> {
        let table = self.database.table(name).await?;
        table.check_not_materialized("UPDATE")?;
        let schema = table.stored_schema();
        let mut assigned = BTreeSet::new();
        for (column, _) in &update.assignments {
            table.check_column(column)?;
            if table.definitions.is_computed(column) {
                return Err(computed_column(&table, column));
            }
            if !assigned.insert(column.as_str()) {
                return Err(Error::invalid(format!("column '{column}' is set twice")));
            }
        }
        let alias = quote_identifier(update.alias.as_deref().unwrap_or(name));
        let mut values = Vec::with_capacity(schema.fields().len() + 2);
        for field in schema.fields() {
            let assignment = update
                .assignments
                .iter()
                .find(|(column, _)| column == field.name());
            let value = match assignment {
                Some((_, expression)) if is_default(expression) => field
                    .metadata()
                    .get(DEFAULT)
                    .cloned()
                    .unwrap_or_else(|| "NULL".to_string()),
                Some((_, expression)) => expression.to_string(),
                None => format!("{alias}.{}", quote_identifier(field.name())),
            };
            values.push(format!("{value} AS {}", quote_identifier(field.name())));
        }
        values.push(format!("{alias}._rowid"));
        values.push(format!("{alias}._rowaddr"));
        let query = target_query(&table, &alias, &values, &update.from, &update.selection);
        let source = self.context.state().create_logical_plan(&query).await?;
        let columns = source.schema().columns();
        let mut projected = Vec::with_capacity(columns.len());
        for (index, column) in columns.into_iter().enumerate() {
            projected.push(match schema.fields().get(index) {
                Some(field) => self
                    .assigned(col(column), &source, field)?
                    .alias(field.name()),
                None => col(column),
            });
        }
        let plan = LogicalPlanBuilder::from(source)
            .project(projected)?
            .build()?;
        let mut fields: Vec<Field> = schema.fields().iter().map(|f| f.as_ref().clone()).collect();
        let row_id = |name| Field::new(name, datafusion::arrow::datatypes::DataType::UInt64, false);
        fields.push(row_id("_rowid"));
        fields.push(row_id("_rowaddr"));
        let rows = checked_stream(self, plan, name, &Arc::new(Schema::new(fields))).await?;
        let ids: Vec<String> = assigned
            .iter()
            .filter_map(|column| table.dataset.schema().field(column))
            .map(|field| field.id.to_string())
            .collect();
        let properties = Properties::from([(UPDATED_FIELDS.to_string(), ids.join(","))]);
        let written =
            rewrite_rows(self.database.root(), name, &table.dataset, rows, properties).await?;
        Ok(match written {
            Some((dataset, rows)) => (dataset.version().version, rows),
            None => (table.version(), 0),
        })
    }

    pub(super) async fn delete(&self, delete: Delete) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(&delete.table)?;
        let (version, rows) = with_retries(|| self.try_delete(&name, &delete)).await?;
        self.done(
            vec![Done {
                statement: "DELETE",
                object: name,
                rows: Some(rows),
                version: Some(version),
            }],
            started,
        )
    }

    async fn try_delete(&self, name: &str, delete: &Delete) -> Result<(u64, u64)> {
        let table = self.database.table(name).await?;
        table.check_not_materialized("DELETE")?;
        if delete.selection.is_none() && delete.using.is_empty() {
            let rows = table.dataset.count_rows(None).await? as u64;
            if rows == 0 {
                return Ok((table.version(), 0));
            }
            let dataset = delete_all_rows(name, &table.dataset).await?;
            return Ok((dataset.version().version, rows));
        }
        let alias = quote_identifier(delete.alias.as_deref().unwrap_or(name));
        let values = [format!("{alias}._rowaddr")];
        let query = target_query(&table, &alias, &values, &delete.using, &delete.selection);
        let plan = self.context.state().create_logical_plan(&query).await?;
        let rows = DataFrame::new(self.context.state(), plan)
            .execute_stream()
            .await?;
        let addresses = RowSet::collect(rows).await?;
        if addresses.is_empty() {
            return Ok((table.version(), 0));
        }
        let dataset = delete_rows(name, &table.dataset, &addresses).await?;
        Ok((dataset.version().version, addresses.len()))
    }

    pub(super) async fn truncate(&self, table: &TableReference) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(table)?;
        let (version, rows) = with_retries(|| async {
            let table = self.database.table(&name).await?;
            table.check_not_materialized("TRUNCATE")?;
            let rows = table.dataset.count_rows(None).await? as u64;
            if rows == 0 {
                return Ok((table.version(), 0));
            }
            let dataset = delete_all_rows(&name, &table.dataset).await?;
            Ok((dataset.version().version, rows))
        })
        .await?;
        self.done(
            vec![Done {
                statement: "TRUNCATE",
                object: name,
                rows: Some(rows),
                version: Some(version),
            }],
            started,
        )
    }
}

/// `value` as it is assigned to a column of blobs: bytes, or a descriptor of what is copied.
fn assigned_blob(value: Expr, have: &DataType, field: &Field) -> Result<Expr> {
    if is_descriptor(have) || *have == DataType::LargeBinary {
        return Ok(value);
    }
    if is_binary(have) {
        return Ok(cast(value, DataType::LargeBinary));
    }
    Err(Error::invalid(format!(
        "column '{}' is BLOB, but the expression gives {have}",
        field.name()
    ))
    .with_hint("give bytes, such as X'0102', or CAST the text AS BINARY"))
}

/// The query over the target of an UPDATE or DELETE, at the version that the statement reads.
fn target_query(
    table: &Table,
    alias: &str,
    values: &[String],
    others: &[ast::TableWithJoins],
    selection: &Option<ast::Expr>,
) -> String {
    let target = TableName {
        name: &table.name,
        version: Some(table.version()),
        row_ids: true,
    };
    let mut query = format!(
        "SELECT {} FROM {} AS {alias}",
        values.join(", "),
        quote_identifier(&target.to_string())
    );
    for other in others {
        query.push_str(&format!(", {other}"));
    }
    if let Some(selection) = selection {
        query.push_str(&format!(" WHERE {selection}"));
    }
    query
}

/// The number of values in each row of VALUES.
fn values_width(query: &ast::Query) -> Option<usize> {
    match query.body.as_ref() {
        ast::SetExpr::Values(values) => values.rows.first().map(|row| row.content.len()),
        _ => None,
    }
}

/// Whether an expression is the word DEFAULT.
fn is_default(expression: &ast::Expr) -> bool {
    matches!(expression, ast::Expr::Identifier(word)
        if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default"))
}

pub(super) fn parse_expression(text: &str) -> Result<ast::Expr> {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;
    Parser::new(&GenericDialect {})
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_expr())
        .map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("the default '{text}' can't be read: {error}"),
            )
        })
}

fn computed_column(table: &Table, column: &str) -> Error {
    Error::invalid(format!(
        "column '{column}' of table '{}' is computed: it can't be written",
        table.name
    ))
    .with_hint(format!(
        "leave it out or give DEFAULT; REFRESH COLUMN {column} ON {} fills it; \
         ALTER COLUMN {column} DROP EXPRESSION makes it a plain column",
        table.name
    ))
}

/// Runs a plan whose columns are those of `schema`, and checks what comes: NOT NULL holds, and every
/// batch has that schema.
pub(super) async fn checked_stream(
    executor: &Executor,
    plan: LogicalPlan,
    table: &str,
    schema: &SchemaRef,
) -> Result<SendableRecordBatchStream> {
    // Values are stored in one form whatever the engine uses in memory.
    let values: Vec<Expr> = plan
        .schema()
        .columns()
        .into_iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            let have = col(column.clone()).get_type(plan.schema());
            let want = value_type(field);
            // Blobs that are copied are read a few at a time, below.
            let copied = |have: &DataType| is_blob(field) && is_descriptor(have);
            match have.is_ok_and(|have| have == want || copied(&have)) {
                true => col(column),
                false => cast(col(column), want).alias(field.name()),
            }
        })
        .collect();
    let plan = LogicalPlanBuilder::from(plan).project(values)?.build()?;
    let rows = DataFrame::new(executor.context.state(), plan)
        .execute_stream()
        .await?;
    let table = table.to_string();
    let checked = Arc::clone(schema);
    let given = rows.schema();
    let output: SchemaRef = Arc::new(Schema::new_with_metadata(
        schema
            .fields()
            .iter()
            .zip(given.fields())
            .map(|(field, given)| match is_blob(field) {
                true => Arc::new(
                    field
                        .as_ref()
                        .clone()
                        .with_data_type(given.data_type().clone()),
                ),
                false => Arc::clone(field),
            })
            .collect::<Vec<_>>(),
        schema.metadata().clone(),
    ));
    let checked_output = Arc::clone(&output);
    let rows = rows.map(move |batch| {
        let batch = batch?;
        for (field, column) in checked.fields().iter().zip(batch.columns()) {
            if !field.is_nullable() && column.null_count() > 0 {
                return Err(DataFusionError::from(Error::invalid(format!(
                    "column '{}' of table '{table}' is NOT NULL, but a row has no value for it",
                    field.name()
                ))));
            }
        }
        Ok(RecordBatch::try_new(
            Arc::clone(&checked_output),
            batch.columns().to_vec(),
        )?)
    });
    let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(output, rows));
    let reader = Arc::clone(executor.database.root().blobs());
    Ok(written_rows(reader, rows, schema))
}
