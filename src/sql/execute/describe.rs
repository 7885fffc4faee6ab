//! DESCRIBE and the SHOW statements.

use datafusion::arrow::datatypes::Field;
use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;

use super::Executor;
use super::report::Rows;
use crate::database::definition::DEFAULT;
use crate::database::system::timestamp;
use crate::database::{CATALOG_NAME, SCHEMA_NAME, Table};
use crate::sql::format::quote_identifier;
use crate::sql::types::type_name;
use crate::storage::version::versions;
use crate::{ErrorKind, Result};

/// One column as DESCRIBE and SHOW CREATE TABLE tell it.
struct ColumnLine {
    name: String,
    data_type: String,
    nullable: bool,
    default: Option<String>,
    /// The expression, and whether the column is virtual.
    generated: Option<(String, bool)>,
    primary_key: bool,
}

impl ColumnLine {
    fn generated_clause(&self) -> Option<String> {
        self.generated.as_ref().map(|(expression, is_virtual)| {
            let kind = if *is_virtual { "VIRTUAL" } else { "STORED" };
            format!("GENERATED ALWAYS AS ({expression}) {kind}")
        })
    }
}

impl Executor {
    pub(super) async fn describe(&self, reference: &TableReference) -> Result<DataFrame> {
        let ours = reference.catalog().is_none_or(|c| c == CATALOG_NAME)
            && reference.schema().is_none_or(|s| s == SCHEMA_NAME);
        if ours {
            match self.database.table(reference.table()).await {
                Ok(table) => {
                    let lines = self.column_lines(&table)?;
                    return Rows::default()
                        .text("column_name", lines.iter().map(|l| l.name.clone()))
                        .text("data_type", lines.iter().map(|l| l.data_type.clone()))
                        .text("is_nullable", lines.iter().map(|l| yes_no(l.nullable)))
                        .optional_text("default", lines.iter().map(|l| l.default.clone()))
                        .optional_text("generated", lines.iter().map(|l| l.generated_clause()))
                        .frame(self);
                }
                Err(error)
                    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) =>
                {
                    return Err(error);
                }
                // A view, a table of the session, a file by its path; or nothing at all.
                Err(error) => {
                    let there = self.database.view(reference.table()).await?.is_some()
                        || self.context.table_provider(reference.clone()).await.is_ok();
                    if !there {
                        return Err(error);
                    }
                }
            }
        }
        let provider = self.context.table_provider(reference.clone()).await?;
        let schema = provider.schema();
        let fields = schema.fields();
        Rows::default()
            .text("column_name", fields.iter().map(|f| f.name().clone()))
            .text("data_type", fields.iter().map(|f| type_name(f)))
            .text(
                "is_nullable",
                fields.iter().map(|f| yes_no(f.is_nullable())),
            )
            .optional_text("default", fields.iter().map(|_| None))
            .optional_text("generated", fields.iter().map(|_| None))
            .frame(self)
    }

    fn column_lines(&self, table: &Table) -> Result<Vec<ColumnLine>> {
        let mut lines = Vec::new();
        let schema = table.shown_schema();
        for field in schema.fields() {
            let lance_field = table.dataset.schema().field(field.name());
            let computed = table.definitions.stored.get(field.name());
            lines.push(ColumnLine {
                name: field.name().clone(),
                data_type: type_name(field),
                nullable: field.is_nullable(),
                default: field.metadata().get(DEFAULT).cloned(),
                generated: computed.map(|column| {
                    let text = match &column.struct_field {
                        Some(name) => format!("get_field({}, '{name}')", column.expression),
                        None => column.expression.clone(),
                    };
                    (text, false)
                }),
                primary_key: lance_field.is_some_and(|f| f.is_unenforced_primary_key()),
            });
        }
        if table.definitions.virtuals.is_empty() {
            return Ok(lines);
        }
        let provider = self.database.table_provider(table, false)?;
        let schema = provider.schema();
        for column in &table.definitions.virtuals {
            let data_type = schema
                .field_with_name(&column.name)
                .map_or_else(|_| "?".to_string(), type_name);
            lines.push(ColumnLine {
                name: column.name.clone(),
                data_type,
                nullable: true,
                default: None,
                generated: Some((column.expression.clone(), true)),
                primary_key: false,
            });
        }
        Ok(lines)
    }

    pub(super) async fn show_tables(&self) -> Result<DataFrame> {
        let tables = self.database.root().table_names().await?;
        let materialized = self.database.materialized_view_names().await?;
        let kind = |name: &String| match materialized.contains(name) {
            true => "materialized view",
            false => "table",
        };
        let views = self.database.view_names().await?;
        let session = self.database.session_table_names();
        let mut rows: Vec<(String, &str)> = tables
            .into_iter()
            .map(|name| {
                let kind = kind(&name);
                (name, kind)
            })
            .chain(views.into_iter().map(|name| (name, "view")))
            .chain(session.into_iter().map(|name| (name, "session")))
            .collect();
        rows.sort();
        Rows::default()
            .text("table_name", rows.iter().map(|(name, _)| name.clone()))
            .text("kind", rows.iter().map(|(_, kind)| *kind))
            .frame(self)
    }

    pub(super) async fn show_create(&self, reference: &TableReference) -> Result<DataFrame> {
        let name = self.name_of(reference)?;
        let text = match self.database.view(&name).await? {
            Some(view) => format!("CREATE VIEW {} AS {}", quote_identifier(&name), view.text),
            None => self.create_text(&self.database.table(&name).await?)?,
        };
        Rows::default()
            .text("name", [name])
            .text("statement", [text])
            .frame(self)
    }

    fn create_text(&self, table: &Table) -> Result<String> {
        let lines = self.column_lines(table)?;
        let mut parts: Vec<String> = lines
            .iter()
            .map(|line| {
                let mut part = format!("{} {}", quote_identifier(&line.name), line.data_type);
                if !line.nullable {
                    part.push_str(" NOT NULL");
                }
                if let Some(default) = &line.default {
                    part.push_str(&format!(" DEFAULT {default}"));
                }
                if let Some(generated) = line.generated_clause() {
                    part.push_str(&format!(" {generated}"));
                }
                part
            })
            .collect();
        let mut key: Vec<(Option<u32>, String)> = lines
            .iter()
            .filter(|line| line.primary_key)
            .map(|line| {
                let position = table
                    .dataset
                    .schema()
                    .field(&line.name)
                    .and_then(|field| field.unenforced_primary_key_position);
                (position, quote_identifier(&line.name))
            })
            .collect();
        if !key.is_empty() {
            key.sort();
            let names: Vec<String> = key.into_iter().map(|(_, name)| name).collect();
            parts.push(format!("PRIMARY KEY ({})", names.join(", ")));
        }
        Ok(format!(
            "CREATE TABLE {} (\n  {}\n)",
            quote_identifier(&table.name),
            parts.join(",\n  ")
        ))
    }

    pub(super) async fn show_versions(&self, reference: &TableReference) -> Result<DataFrame> {
        let name = self.name_of(reference)?;
        let table = self.database.table(&name).await?;
        let versions = versions(&name, &table.dataset).await?;
        let (field, times): (Field, _) =
            timestamp("timestamp", versions.iter().map(|v| v.timestamp_millis));
        Rows::default()
            .number("version", versions.iter().map(|v| Some(v.version)))
            .column(field, times)
            .text("operation", versions.iter().map(|v| v.operation.clone()))
            .optional_text("tags", versions.iter().map(|v| v.tags.clone()))
            .frame(self)
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "YES" } else { "NO" }
}
