//! What tools ask about a server and its database: catalogs, schemas, tables, keys, types.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTableTypes,
    CommandGetTables, Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity,
    SqlSupportedTransaction, XdbcDataType,
};
use datafusion::sql::TableReference;

use crate::database::{CATALOG_NAME, SCHEMA_NAME};
use crate::session::Headwater;
use crate::{Error, ErrorKind, Result};

const SYSTEM_SCHEMA: &str = "system";
const KINDS: [&str; 4] = ["MATERIALIZED VIEW", "SYSTEM TABLE", "TABLE", "VIEW"];

/// What a listing was asked for can't be put into rows: a pattern that is none, for instance.
fn unlistable(error: FlightError) -> Error {
    match error {
        FlightError::Arrow(error) => error.into(),
        other => Error::internal(other.to_string()),
    }
}

pub(super) fn catalogs(query: CommandGetCatalogs) -> Result<RecordBatch> {
    let mut builder = query.into_builder();
    builder.append(CATALOG_NAME);
    builder.build().map_err(unlistable)
}

pub(super) fn schemas(query: CommandGetDbSchemas) -> Result<RecordBatch> {
    let mut builder = query.into_builder();
    builder.append(CATALOG_NAME, SCHEMA_NAME);
    builder.append(CATALOG_NAME, SYSTEM_SCHEMA);
    builder.build().map_err(unlistable)
}

pub(super) fn table_types(query: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = query.into_builder();
    for kind in KINDS {
        builder.append(kind);
    }
    builder.build().map_err(unlistable)
}

/// All tables and views of the database and of the session, with their columns if they are asked for.
pub(super) async fn tables(session: &Headwater, query: CommandGetTables) -> Result<RecordBatch> {
    let database = session.database();
    let materialized = database.materialized_view_names().await?;
    let mut tables: Vec<(&str, String, &str)> = Vec::new();
    for name in database.root().table_names().await? {
        let kind = match materialized.contains(&name) {
            true => "MATERIALIZED VIEW",
            false => "TABLE",
        };
        tables.push((SCHEMA_NAME, name, kind));
    }
    let views = database.view_names().await?;
    tables.extend(views.into_iter().map(|name| (SCHEMA_NAME, name, "VIEW")));
    let own = database.session_table_names();
    tables.extend(own.into_iter().map(|name| (SCHEMA_NAME, name, "TABLE")));
    let catalog = session.context().catalog(CATALOG_NAME);
    if let Some(system) = catalog.and_then(|catalog| catalog.schema(SYSTEM_SCHEMA)) {
        let names = system.table_names();
        tables.extend(
            names
                .into_iter()
                .map(|name| (SYSTEM_SCHEMA, name, "SYSTEM TABLE")),
        );
    }
    tables.sort();
    // Opening all tables to show the columns of one would take long.
    let only = query
        .table_name_filter_pattern
        .clone()
        .filter(|pattern| !pattern.contains(['%', '_', '\\']));
    let include_schema = query.include_schema;
    let mut builder = query.into_builder();
    for (schema, name, kind) in tables {
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let columns = match include_schema {
            true => columns(session, schema, &name).await,
            false => Schema::empty(),
        };
        builder
            .append(CATALOG_NAME, schema, &name, kind, &columns)
            .map_err(unlistable)?;
    }
    builder.build().map_err(unlistable)
}

/// The columns of a table. One that others broke has none, and is listed all the same.
async fn columns(session: &Headwater, schema: &str, name: &str) -> Schema {
    let reference = TableReference::full(CATALOG_NAME, schema, name);
    match session.context().table_provider(reference).await {
        Ok(provider) => provider.schema().as_ref().clone(),
        Err(error) => {
            log::debug!("no columns of '{name}': {error}");
            Schema::empty()
        }
    }
}

fn text(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

pub(super) fn primary_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("key_name", true),
    ]))
}

/// The columns of a table's primary key, as it was declared.
pub(super) async fn primary_keys(
    session: &Headwater,
    query: CommandGetPrimaryKeys,
) -> Result<RecordBatch> {
    let mut key: Vec<(Option<u32>, String)> = Vec::new();
    let is_here = query.catalog.is_none_or(|catalog| catalog == CATALOG_NAME)
        && query.db_schema.is_none_or(|schema| schema == SCHEMA_NAME);
    if is_here {
        match session.database().table(&query.table).await {
            Ok(table) => {
                let fields = &table.dataset.schema().fields;
                key = fields
                    .iter()
                    .filter(|field| field.is_unenforced_primary_key())
                    .map(|field| (field.unenforced_primary_key_position, field.name.clone()))
                    .collect();
            }
            // A view, or nothing: it has none.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
            }
            Err(error) => return Err(error),
        }
    }
    key.sort();
    let all = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; key.len()])) };
    let columns: StringArray = key.iter().map(|(_, name)| Some(name)).collect();
    let sequence: Int32Array = (1..).take(key.len()).map(Some).collect();
    let names: StringArray = key.iter().map(|_| None::<&str>).collect();
    Ok(RecordBatch::try_new(
        primary_keys_schema(),
        vec![
            all(CATALOG_NAME),
            all(SCHEMA_NAME),
            all(&query.table),
            Arc::new(columns),
            Arc::new(sequence),
            Arc::new(names),
        ],
    )?)
}

/// Foreign keys, of which there are none.
pub(super) fn foreign_keys() -> RecordBatch {
    let fields = ["pk", "fk"].into_iter().flat_map(|side| {
        [
            text(&format!("{side}_catalog_name"), true),
            text(&format!("{side}_db_schema_name"), true),
            text(&format!("{side}_table_name"), false),
            text(&format!("{side}_column_name"), false),
        ]
    });
    let rest = [
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ];
    RecordBatch::new_empty(Arc::new(Schema::new(
        fields.chain(rest).collect::<Vec<_>>(),
    )))
}

/// What the server is and can do.
pub(super) fn sql_info() -> Result<SqlInfoData> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "Headwater");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "58");
    info.append(SqlInfo::FlightSqlServerReadOnly, false);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(
        SqlInfo::FlightSqlServerTransaction,
        SqlSupportedTransaction::None as i32,
    );
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    // 0: a statement may run as long as it takes.
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0i32);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, false);
    info.append(SqlInfo::SqlDdlTable, true);
    info.append(
        SqlInfo::SqlIdentifierCase,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32,
    );
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(
        SqlInfo::SqlQuotedIdentifierCase,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32,
    );
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(
        SqlInfo::SqlNullOrdering,
        SqlNullOrdering::SqlNullsSortedHigh as i32,
    );
    info.append(SqlInfo::SqlSearchStringEscape, "\\");
    info.append(SqlInfo::SqlSupportsColumnAliasing, true);
    info.append(SqlInfo::SqlNullPlusNullIsNull, true);
    info.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    info.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    info.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    info.append(SqlInfo::SqlSupportsLikeEscapeClause, true);
    info.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    info.append(SqlInfo::SqlSchemaTerm, "schema");
    info.append(SqlInfo::SqlCatalogTerm, "database");
    info.append(SqlInfo::SqlCatalogAtStart, true);
    info.append(SqlInfo::SqlSelectForUpdateSupported, false);
    info.append(SqlInfo::SqlStoredProceduresSupported, false);
    info.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    info.build().map_err(unlistable)
}

/// The types of SQL that columns are declared with.
pub(super) fn types() -> Result<XdbcTypeInfoData> {
    use XdbcDataType as X;
    let number = |name: &str, kind: X, bits: i32| XdbcTypeInfo {
        unsigned_attribute: Some(name.ends_with("UNSIGNED")),
        num_prec_radix: Some(2),
        auto_increment: Some(false),
        ..named(name, kind, Some(bits))
    };
    let quoted = |name: &str, kind: X, prefix: &str| XdbcTypeInfo {
        literal_prefix: Some(prefix.to_string()),
        literal_suffix: Some("'".to_string()),
        case_sensitive: true,
        ..named(name, kind, None)
    };
    let mut builder = XdbcTypeInfoDataBuilder::new();
    for info in [
        named("BOOLEAN", X::XdbcBit, Some(1)),
        number("TINYINT", X::XdbcTinyint, 8),
        number("SMALLINT", X::XdbcSmallint, 16),
        number("INT", X::XdbcInteger, 32),
        number("BIGINT", X::XdbcBigint, 64),
        number("TINYINT UNSIGNED", X::XdbcTinyint, 8),
        number("SMALLINT UNSIGNED", X::XdbcSmallint, 16),
        number("INT UNSIGNED", X::XdbcInteger, 32),
        number("BIGINT UNSIGNED", X::XdbcBigint, 64),
        number("FLOAT", X::XdbcReal, 24),
        number("DOUBLE", X::XdbcDouble, 53),
        XdbcTypeInfo {
            create_params: Some(vec!["precision".to_string(), "scale".to_string()]),
            fixed_prec_scale: true,
            minimum_scale: Some(0),
            maximum_scale: Some(38),
            num_prec_radix: Some(10),
            ..named("DECIMAL", X::XdbcDecimal, Some(38))
        },
        quoted("VARCHAR", X::XdbcVarchar, "'"),
        quoted("BYTEA", X::XdbcVarbinary, "X'"),
        quoted("DATE", X::XdbcDate, "DATE '"),
        quoted("TIME", X::XdbcTime, "TIME '"),
        quoted("TIMESTAMP", X::XdbcTimestamp, "TIMESTAMP '"),
        quoted("INTERVAL", X::XdbcInterval, "INTERVAL '"),
    ] {
        builder.append(info);
    }
    builder.build().map_err(unlistable)
}

fn named(name: &str, kind: XdbcDataType, size: Option<i32>) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_string(),
        data_type: kind,
        column_size: size,
        literal_prefix: None,
        literal_suffix: None,
        create_params: None,
        nullable: Nullable::NullabilityNullable,
        case_sensitive: false,
        searchable: Searchable::Full,
        unsigned_attribute: None,
        fixed_prec_scale: false,
        auto_increment: None,
        local_type_name: Some(name.to_string()),
        minimum_scale: None,
        maximum_scale: None,
        sql_data_type: kind,
        datetime_subcode: None,
        num_prec_radix: None,
        interval_precision: None,
    }
}
