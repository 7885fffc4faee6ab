//! CREATE TABLE and CREATE VIEW.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::can_cast_types;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, cast, col};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::TableReference;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast;

use super::Executor;
use super::dml::checked_stream;
use super::report::Done;
use crate::column::declare::{Declaration, declare};
use crate::database::definition::{DEFAULT, Definitions, VIRTUAL_COLUMNS, VirtualColumn};
use crate::database::expression::{physical_expression, plan_expression, stored, type_error};
use crate::database::name::TableName;
use crate::database::view::View;
use crate::database::{CATALOG_NAME, SCHEMA_NAME, is_object_name};
use crate::sql::format::{expression_text, query_text, quote_identifier};
use crate::sql::options::CreateTableOptions;
use crate::sql::statement::{ColumnDefinition, CreateTable, CreateView};
use crate::storage::blob::{holds_blob, is_blob, is_descriptor, value_type};
use crate::storage::write::{TableLayout, create_table};
use crate::{Error, ErrorKind, Result};

/// Field metadata by which Lance knows the columns of a primary key, and their order.
const PRIMARY_KEY: &str = "lance-schema:unenforced-primary-key";
const PRIMARY_KEY_POSITION: &str = "lance-schema:unenforced-primary-key:position";

impl Executor {
    pub(super) async fn create_table(&self, create: CreateTable) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.new_name(&create.name)?;
        let options = CreateTableOptions::read(&create.options)?;
        let layout = TableLayout {
            max_rows_per_fragment: options.max_rows_per_fragment,
            max_bytes_per_file: options.max_bytes_per_file,
        };
        let there = self.database.root().has_table(&name).await?;
        if self.database.view(&name).await?.is_some() {
            return Err(exists("view", &name));
        }
        if there && create.if_not_exists {
            self.notice(format!("table '{name}' exists already; nothing was done"));
            let version = self.database.table(&name).await?.version();
            return self.done(
                vec![Done::altered("CREATE TABLE", name, Some(version))],
                started,
            );
        }
        if there && !create.or_replace {
            return Err(exists("table", &name));
        }
        if there && self.database.materialized_view(&name).await?.is_some() {
            return Err(Error::invalid(format!("'{name}' is a materialized view"))
                .with_hint(format!("DROP MATERIALIZED VIEW {name}")));
        }
        let declared = self.table_schema(&create)?;
        let (schema, plan) = match create.query {
            None => (declared, None),
            Some(query) => {
                let (schema, plan) = self.query_for_table(*query, declared).await?;
                (schema, Some(plan))
            }
        };
        if schema.fields().is_empty() {
            return Err(Error::invalid(format!(
                "table '{name}' would have no stored column"
            )));
        }
        let schema = with_primary_key(&schema, &create.primary_key)?;
        let schema = Arc::new(schema);
        let rows = match plan {
            None => None,
            Some(plan) => Some(checked_stream(self, plan, &name, &schema).await?),
        };
        let root = self.database.root();
        let dataset = create_table(
            root,
            &name,
            Arc::clone(&schema),
            rows,
            there && create.or_replace,
            &layout,
        )
        .await
        .map_err(|error| match error.kind() {
            // Another process made it in the meantime.
            ErrorKind::Conflict | ErrorKind::AlreadyExists => exists("table", &name),
            ErrorKind::Storage => error.context(format!("database '{}'", root.url())),
            _ => error,
        })?;
        let rows = dataset.count_rows(None).await? as u64;
        self.done(
            vec![Done {
                statement: "CREATE TABLE",
                object: name,
                rows: Some(rows),
                version: Some(dataset.version().version),
            }],
            started,
        )
    }

    /// Checks the name of an object to be made.
    pub(super) fn new_name(&self, reference: &TableReference) -> Result<String> {
        let name = self.name_of(reference)?;
        let parsed = TableName::parse(&name);
        if parsed.name != name || !is_object_name(&name) {
            return Err(Error::invalid(format!(
                "'{name}' can't be the name of a table: it becomes a file name"
            ))
            .with_hint("use letters, digits and '_', not beginning with '_' or '.'"));
        }
        Ok(name)
    }

    /// The stored columns that CREATE TABLE declares, with definitions and defaults in their
    /// metadata, and the virtual ones in the schema's.
    fn table_schema(&self, create: &CreateTable) -> Result<Schema> {
        let mut seen = BTreeSet::new();
        for column in &create.columns {
            check_column_name(&column.name)?;
            if !seen.insert(column.name.as_str()) {
                return Err(Error::invalid(format!(
                    "column '{}' is declared twice",
                    column.name
                )));
            }
        }
        let plain = create
            .columns
            .iter()
            .filter(|column| column.generated.is_none())
            .map(|column| self.plain_field(column))
            .collect::<Result<Vec<_>>>()?;
        let declarations = declarations(create.columns.iter())?;
        let declared = declare(
            &self.context.state(),
            &Schema::new(plain.clone()),
            &Definitions::default(),
            &declarations,
        )?;
        let stored = create.columns.iter().filter_map(|column| {
            plain
                .iter()
                .chain(&declared.fields)
                .find(|field| *field.name() == column.name)
                .cloned()
        });
        with_virtual_columns(Schema::new(stored.collect::<Vec<_>>()), &declared.virtuals)
    }

    /// A plain column, with its default in the metadata.
    pub(super) fn plain_field(&self, column: &ColumnDefinition) -> Result<Field> {
        let field = column
            .field
            .as_ref()
            .ok_or_else(|| Error::invalid(format!("column '{}' needs a type", column.name)))?;
        if !is_blob(field) && holds_blob(field) {
            return Err(Error::not_available(format!(
                "a BLOB within another type (column '{}')",
                column.name
            )));
        }
        let mut metadata = field.metadata().clone();
        if let Some(default) = &column.default {
            let field = field.as_ref().clone().with_nullable(column.nullable);
            metadata.insert(DEFAULT.to_string(), self.default_text(&field, default)?);
        }
        Ok(field
            .as_ref()
            .clone()
            .with_nullable(column.nullable)
            .with_metadata(metadata))
    }

    /// Checks a DEFAULT: an expression without columns whose type fits.
    pub(super) fn default_text(&self, field: &Field, default: &ast::Expr) -> Result<String> {
        let text = expression_text(default);
        let purpose = format!("DEFAULT of column '{}'", field.name());
        let state = self.context.state();
        let empty = Arc::new(Schema::empty());
        let planned = plan_expression(&state, &empty, &text, &purpose)?;
        let wanted = value_type(field);
        if !can_cast_types(&planned.data_type, &wanted) {
            return Err(type_error(
                field.name(),
                &planned.data_type,
                field.data_type(),
            ));
        }
        // Computed once, to see that it can be.
        let value = physical_expression(&state, &empty, &planned.logical, &wanted)
            .and_then(|value| constant(value.as_ref()))
            .map_err(|error| error.context(&purpose))?;
        if value.is_null(0) && !field.is_nullable() {
            return Err(Error::invalid(format!(
                "{purpose}: it is NULL, but the column is NOT NULL"
            )));
        }
        Ok(text)
    }

    /// Plans the query of CREATE TABLE AS: the table's schema, and a plan that gives its rows.
    async fn query_for_table(
        &self,
        query: ast::Query,
        declared: Schema,
    ) -> Result<(Schema, LogicalPlan)> {
        let plan = self.plan_query(query).await?;
        let result = plan.schema().as_arrow().clone();
        if declared.fields().is_empty() && !declared.metadata().is_empty() {
            return Err(Error::invalid(
                "CREATE TABLE … AS with virtual columns has to declare the query's columns too",
            )
            .with_hint("or make the table first, and add the virtual columns with ALTER TABLE"));
        }
        if declared.fields().is_empty() {
            let mut seen = BTreeSet::new();
            for field in result.fields() {
                check_column_name(field.name())?;
                if !seen.insert(field.name().as_str()) {
                    return Err(Error::invalid(format!(
                        "the query gives two columns named '{}'",
                        field.name()
                    ))
                    .with_hint("give one of them another name with AS"));
                }
            }
            // A query's columns may be nullable whatever its sources are.
            let fields: Vec<Field> = result
                .fields()
                .iter()
                .map(|field| {
                    if is_descriptor(field.data_type()) {
                        return lance::blob_field(field.name(), true);
                    }
                    stored(field)
                        .with_nullable(true)
                        .with_metadata(storage_metadata(field))
                })
                .collect();
            let null = fields.iter().find(|f| *f.data_type() == DataType::Null);
            if let Some(field) = null {
                return Err(Error::invalid(format!(
                    "column '{}' is always NULL, so it has no type",
                    field.name()
                ))
                .with_hint("CAST it to a type"));
            }
            return Ok((Schema::new(fields), plan));
        }
        let given = declared
            .fields()
            .iter()
            .filter(|field| !Definitions::is_definition(field))
            .count();
        if given != result.fields().len() {
            return Err(Error::invalid(format!(
                "the table has {given} columns to fill, but the query gives {}",
                result.fields().len()
            )));
        }
        let mut values = Vec::with_capacity(declared.fields().len());
        let mut next = plan.schema().columns().into_iter();
        for field in declared.fields() {
            let value = match Definitions::is_definition(field) {
                true => datafusion::logical_expr::lit(datafusion::common::ScalarValue::Null),
                false => next
                    .next()
                    .map(col)
                    .ok_or_else(|| Error::internal("the query's columns were counted wrongly"))?,
            };
            let value = match is_blob(field) {
                true => self.assigned(value, &plan, field)?,
                false => cast(value, field.data_type().clone()),
            };
            values.push(value.alias(field.name()));
        }
        let plan = LogicalPlanBuilder::from(plan).project(values)?.build()?;
        Ok((declared, plan))
    }

    /// Plans a query.
    pub(super) async fn plan_query(&self, query: ast::Query) -> Result<LogicalPlan> {
        let statement =
            DataFusionStatement::Statement(Box::new(ast::Statement::Query(Box::new(query))));
        match self.context.state().statement_to_plan(statement).await {
            Ok(plan) => Ok(plan),
            Err(error) => Err(self.unknown_table(error.into()).await?),
        }
    }

    pub(super) async fn create_view(&self, create: CreateView) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.new_name(&create.name)?;
        if self.database.root().has_table(&name).await? {
            return Err(exists("table", &name));
        }
        let renamed = |query: String| match create.columns.is_empty() {
            true => query,
            false => {
                let names: Vec<String> =
                    create.columns.iter().map(|c| quote_identifier(c)).collect();
                let alias = quote_identifier(&name);
                format!("SELECT * FROM ({query}) AS {alias}({})", names.join(", "))
            }
        };
        let view = View {
            query: renamed(create.query.to_string()),
            text: renamed(query_text(&create.query)),
            reads: objects_read(&self.context, &create.query)?,
        };
        self.database
            .check_no_circle("view", &name, &view.reads)
            .await?;
        // Planning it finds unknown names before anything is stored.
        self.database.plan_view(&name, &view).await?;
        let stored = self
            .database
            .store_view(&name, &view, create.or_replace)
            .await?;
        if !stored && !create.if_not_exists {
            return Err(exists("view", &name));
        }
        if !stored {
            self.notice(format!("view '{name}' exists already; nothing was done"));
        }
        self.done(vec![Done::altered("CREATE VIEW", name, None)], started)
    }
}

/// Names of the tables and views of the database that a query names.
pub(super) fn objects_read(
    context: &SessionContext,
    query: &ast::Query,
) -> Result<BTreeSet<String>> {
    let statement =
        DataFusionStatement::Statement(Box::new(ast::Statement::Query(Box::new(query.clone()))));
    let references = context.state().resolve_table_references(&statement)?;
    let names = references.iter().filter(|reference| {
        reference.catalog().is_none_or(|c| c == CATALOG_NAME)
            && reference.schema().is_none_or(|s| s == SCHEMA_NAME)
    });
    Ok(names
        .map(|reference| TableName::parse(reference.table()).name.to_string())
        // Files by their paths are not objects of the database.
        .filter(|name| is_object_name(name))
        .collect())
}

/// The value of an expression without columns, for one row.
fn constant(value: &dyn PhysicalExpr) -> Result<ArrayRef> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
    Ok(value.evaluate(&row)?.into_array(1)?)
}

/// The generated ones of `columns` as declarations.
pub(super) fn declarations<'a>(
    columns: impl Iterator<Item = &'a ColumnDefinition>,
) -> Result<Vec<Declaration>> {
    let mut declarations = Vec::new();
    for column in columns {
        let Some(generated) = &column.generated else {
            continue;
        };
        if !column.nullable {
            return Err(Error::invalid(format!(
                "computed column '{}' can't be NOT NULL: it is NULL until it is refreshed",
                column.name
            )));
        }
        declarations.push(Declaration {
            name: column.name.clone(),
            field: column.field.as_ref().map(|field| field.as_ref().clone()),
            expression: expression_text(&generated.expression),
            struct_field: None,
            is_virtual: generated.is_virtual,
        });
    }
    Ok(declarations)
}

/// Checks the name of a column to be made.
pub(super) fn check_column_name(name: &str) -> Result<()> {
    let reserved = name.is_empty()
        || ["_rowid", "_rowaddr", "_rowoffset"].contains(&name)
        || name.starts_with("_row_");
    match reserved {
        true => Err(Error::invalid(format!(
            "'{name}' can't be the name of a column: it is reserved"
        ))),
        false if name.contains('.') => Err(Error::invalid(format!(
            "'{name}' can't be the name of a column: a dot separates a struct from its field"
        ))),
        false => Ok(()),
    }
}

/// Puts the definitions of virtual columns into a schema's metadata.
pub(super) fn with_virtual_columns(schema: Schema, virtuals: &[VirtualColumn]) -> Result<Schema> {
    if virtuals.is_empty() {
        return Ok(schema);
    }
    let text = serde_json::to_string(virtuals)
        .map_err(|error| Error::internal(format!("a definition can't be written: {error}")))?;
    let mut metadata = schema.metadata().clone();
    metadata.insert(VIRTUAL_COLUMNS.to_string(), text);
    Ok(schema.with_metadata(metadata))
}

fn with_primary_key(schema: &Schema, key: &[String]) -> Result<Schema> {
    for column in key {
        if schema.field_with_name(column).is_err() {
            let known = schema.fields().iter().map(|f| f.name().as_str());
            return Err(Error::not_found("column", column, known).context("PRIMARY KEY"));
        }
    }
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| {
            let field = field.as_ref().clone();
            let Some(position) = key.iter().position(|column| column == field.name()) else {
                return Ok(field);
            };
            if Definitions::is_definition(&field) {
                return Err(Error::invalid(format!(
                    "computed column '{}' can't be of the primary key: it is NULL until it is refreshed",
                    field.name()
                )));
            }
            let mut metadata = field.metadata().clone();
            metadata.insert(PRIMARY_KEY.to_string(), "true".to_string());
            metadata.insert(PRIMARY_KEY_POSITION.to_string(), (position + 1).to_string());
            // As in standard SQL, a primary key column is NOT NULL.
            Ok(field.with_nullable(false).with_metadata(metadata))
        })
        .collect::<Result<_>>()?;
    Ok(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// Of a column's metadata what says how it is stored (extension types, blobs), and not what
/// belonged to the table that it comes from.
fn storage_metadata(field: &Field) -> std::collections::HashMap<String, String> {
    field
        .metadata()
        .iter()
        .filter(|(key, _)| key.starts_with("ARROW:extension") || key.starts_with("lance-encoding"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

pub(super) fn exists(kind: &str, name: &str) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        format!("{kind} '{name}' exists already"),
    )
    .with_hint("choose another name, or say OR REPLACE or IF NOT EXISTS")
}
