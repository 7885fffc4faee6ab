//! `system.computed_columns`.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use futures::future::BoxFuture;

use super::assess::Rows;
use super::refresh::assess_column;
use crate::Result;
use crate::database::Database;
use crate::database::system::{SystemTable, batch, number, optional_text, text};

/// The system tables of this room.
pub fn system_tables() -> Vec<Arc<dyn SystemTable>> {
    vec![Arc::new(ComputedColumns)]
}

/// One row of `system.computed_columns`.
#[derive(Debug, Default)]
struct ColumnRow {
    table: String,
    column: String,
    expression: String,
    is_virtual: bool,
    data_type: String,
    digest: Option<String>,
    watermark: Option<u64>,
    version: u64,
    pending: Option<u64>,
    stale: Option<u64>,
    failed: Option<u64>,
    reason: Option<String>,
}

/// `system.computed_columns`.
#[derive(Debug)]
struct ComputedColumns;

impl SystemTable for ComputedColumns {
    fn name(&self) -> &'static str {
        "computed_columns"
    }

    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let state = database.session_state()?;
            let mut rows = Vec::new();
            for name in database.root().table_names().await? {
                // One table that can't be read must not hide the others; reading it says why.
                let Ok(table) = database.table(&name).await else {
                    continue;
                };
                let Ok(provider) = database.table_provider(&table, false) else {
                    continue;
                };
                let schema = provider.schema();
                let data_type = |column: &str| {
                    schema
                        .field_with_name(column)
                        .map_or_else(|_| "?".to_string(), |field| field.data_type().to_string())
                };
                let live = table.dataset.count_rows(None).await? as u64;
                for (column, definition) in &table.definitions.stored {
                    let mut row = ColumnRow {
                        table: name.clone(),
                        column: column.clone(),
                        expression: definition.expression.clone(),
                        data_type: data_type(column),
                        digest: Some(definition.digest()),
                        version: table.version(),
                        ..Default::default()
                    };
                    if table.dataset.manifest().uses_stable_row_ids() {
                        let assessment = assess_column(database, &state, &table, column).await;
                        let Ok(assessment) = assessment else {
                            rows.push(row);
                            continue;
                        };
                        row.watermark = assessment.watermark;
                        row.pending = Some(match &assessment.pending {
                            Rows::All => live,
                            Rows::Some(pending) => pending.len(),
                        });
                        row.stale = Some(assessment.stale.len());
                        row.failed = Some(0);
                        row.reason = assessment.full_reason;
                    }
                    rows.push(row);
                }
                for column in &table.definitions.virtuals {
                    rows.push(ColumnRow {
                        table: name.clone(),
                        column: column.name.clone(),
                        expression: column.expression.clone(),
                        is_virtual: true,
                        data_type: data_type(&column.name),
                        version: table.version(),
                        ..Default::default()
                    });
                }
            }
            let kind = |row: &ColumnRow| if row.is_virtual { "virtual" } else { "stored" };
            batch(vec![
                text("table_name", rows.iter().map(|r| r.table.clone())),
                text("column_name", rows.iter().map(|r| r.column.clone())),
                text("expression", rows.iter().map(|r| r.expression.clone())),
                text("kind", rows.iter().map(kind)),
                text("data_type", rows.iter().map(|r| r.data_type.clone())),
                optional_text("definition_digest", rows.iter().map(|r| r.digest.clone())),
                number("watermark_version", rows.iter().map(|r| r.watermark)),
                number("table_version", rows.iter().map(|r| Some(r.version))),
                number("rows_pending", rows.iter().map(|r| r.pending)),
                number("rows_stale", rows.iter().map(|r| r.stale)),
                number("rows_failed", rows.iter().map(|r| r.failed)),
                optional_text("full_reason", rows.iter().map(|r| r.reason.clone())),
            ])
        })
    }
}
