//! The schema `system`: tables that tell about the database.
//!
//! A system table is made when a statement names it: its rows are those of that moment.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, TimestampMillisecondArray,
    UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::MemTable;
use futures::future::BoxFuture;

use super::Database;
use crate::storage::tag::tags;
use crate::storage::version::versions;
use crate::{Error, Result};

/// One table of the schema `system`.
pub trait SystemTable: Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Its rows as they are now, in one batch.
    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>>;
}

/// The schema `system`.
#[derive(Debug)]
pub struct SystemSchema {
    database: Arc<Database>,
    tables: BTreeMap<&'static str, Arc<dyn SystemTable>>,
}

/// Tables that are announced, but come later.
const LATER: [&str; 3] = ["functions", "environments", "indexes"];

impl SystemSchema {
    /// The schema with the tables of this room and `more`.
    pub fn new(database: Arc<Database>, more: Vec<Arc<dyn SystemTable>>) -> Self {
        let own: [Arc<dyn SystemTable>; 3] = [Arc::new(Tables), Arc::new(Versions), Arc::new(Tags)];
        let tables = own
            .into_iter()
            .chain(more)
            .map(|table| (table.name(), table))
            .collect();
        Self { database, tables }
    }
}

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn table_names(&self) -> Vec<String> {
        self.tables.keys().map(ToString::to_string).collect()
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        let Some(table) = self.tables.get(name) else {
            if LATER.contains(&name) {
                return Err(Error::not_available(format!("system.{name}")).into());
            }
            let known = self.tables.keys().copied();
            return Err(Error::not_found("system table", name, known).into());
        };
        let batch = table.rows(&self.database).await?;
        Ok(Some(Arc::new(MemTable::try_new(
            batch.schema(),
            vec![vec![batch]],
        )?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }
}

/// `system.tables`.
#[derive(Debug)]
struct Tables;

impl SystemTable for Tables {
    fn name(&self) -> &'static str {
        "tables"
    }

    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let mut names = Vec::new();
            let mut kinds = Vec::new();
            let mut table_versions = Vec::new();
            let mut rows = Vec::new();
            let mut fragments = Vec::new();
            let mut tracking = Vec::new();
            let materialized = database.materialized_view_names().await?;
            for name in database.root().table_names().await? {
                // A table that can't be opened is listed all the same; reading it says why.
                let table = database.table(&name).await.ok();
                kinds.push(match materialized.contains(&name) {
                    true => "materialized view",
                    false => "table",
                });
                names.push(name);
                let dataset = table.map(|table| table.dataset);
                table_versions.push(dataset.as_ref().map(|d| d.version().version));
                fragments.push(dataset.as_ref().map(|d| d.count_fragments() as u64));
                tracking.push(dataset.as_ref().map(|d| d.manifest().uses_stable_row_ids()));
                rows.push(match &dataset {
                    Some(dataset) => dataset.count_rows(None).await.ok().map(|n| n as u64),
                    None => None,
                });
            }
            for name in database.view_names().await? {
                names.push(name);
                kinds.push("view");
                table_versions.push(None);
                fragments.push(None);
                tracking.push(None);
                rows.push(None);
            }
            batch(vec![
                text("table_name", names),
                text("kind", kinds),
                number("version", table_versions),
                number("rows", rows),
                number("fragments", fragments),
                (
                    Field::new("row_tracking", DataType::Boolean, true),
                    Arc::new(BooleanArray::from(tracking)),
                ),
            ])
        })
    }
}

/// `system.versions`.
#[derive(Debug)]
struct Versions;

impl SystemTable for Versions {
    fn name(&self) -> &'static str {
        "versions"
    }

    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let mut all = Vec::new();
            for name in database.root().table_names().await? {
                let Ok(table) = database.table(&name).await else {
                    continue;
                };
                for version in versions(&name, &table.dataset).await? {
                    all.push((name.clone(), version));
                }
            }
            batch(vec![
                text("table_name", all.iter().map(|(name, _)| name.clone())),
                number("version", all.iter().map(|(_, v)| Some(v.version))),
                timestamp("timestamp", all.iter().map(|(_, v)| v.timestamp_millis)),
                text("operation", all.iter().map(|(_, v)| v.operation.clone())),
                optional_text("tags", all.iter().map(|(_, v)| v.tags.clone())),
            ])
        })
    }
}

/// `system.tags`.
#[derive(Debug)]
struct Tags;

impl SystemTable for Tags {
    fn name(&self) -> &'static str {
        "tags"
    }

    fn rows<'a>(&'a self, database: &'a Arc<Database>) -> BoxFuture<'a, Result<RecordBatch>> {
        Box::pin(async move {
            let mut all = Vec::new();
            for name in database.root().table_names().await? {
                let Ok(table) = database.table(&name).await else {
                    continue;
                };
                for tag in tags(&name, &table.dataset).await? {
                    all.push((name.clone(), tag));
                }
            }
            batch(vec![
                text("table_name", all.iter().map(|(name, _)| name.clone())),
                text("tag_name", all.iter().map(|(_, tag)| tag.name.clone())),
                number("version", all.iter().map(|(_, tag)| Some(tag.version))),
                optional_timestamp("created", all.iter().map(|(_, tag)| tag.created_millis)),
                optional_text("branch", all.iter().map(|(_, tag)| tag.branch.clone())),
            ])
        })
    }
}

/// A column of a system table.
pub type SystemColumn = (Field, ArrayRef);

/// A column of text without NULLs.
pub fn text<T: Into<String>>(name: &str, values: impl IntoIterator<Item = T>) -> SystemColumn {
    let values = values.into_iter().map(|value| Some(value.into()));
    (
        Field::new(name, DataType::Utf8, false),
        Arc::new(values.collect::<StringArray>()),
    )
}

/// A column of text with NULLs.
pub fn optional_text(name: &str, values: impl IntoIterator<Item = Option<String>>) -> SystemColumn {
    (
        Field::new(name, DataType::Utf8, true),
        Arc::new(values.into_iter().collect::<StringArray>()),
    )
}

/// A column of numbers with NULLs.
pub fn number(name: &str, values: impl IntoIterator<Item = Option<u64>>) -> SystemColumn {
    (
        Field::new(name, DataType::UInt64, true),
        Arc::new(values.into_iter().collect::<UInt64Array>()),
    )
}

/// A column of points in time, given in milliseconds since 1970 in UTC.
pub fn timestamp(name: &str, values: impl IntoIterator<Item = i64>) -> SystemColumn {
    let (field, values) = optional_timestamp(name, values.into_iter().map(Some));
    (field.with_nullable(false), values)
}

/// As [`timestamp`], with NULLs.
pub fn optional_timestamp(
    name: &str,
    values: impl IntoIterator<Item = Option<i64>>,
) -> SystemColumn {
    let values: TimestampMillisecondArray = values.into_iter().collect();
    (
        Field::new(
            name,
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            true,
        ),
        Arc::new(values.with_timezone("UTC")),
    )
}

/// A column of seconds.
pub fn seconds(name: &str, values: impl IntoIterator<Item = Option<f64>>) -> SystemColumn {
    (
        Field::new(name, DataType::Float64, true),
        Arc::new(values.into_iter().collect::<Float64Array>()),
    )
}

/// Columns as one batch.
pub fn batch(columns: Vec<SystemColumn>) -> Result<RecordBatch> {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    Ok(RecordBatch::try_new(schema, arrays)?)
}
