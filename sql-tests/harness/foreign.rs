//! Changes to tables that go past Headwater: what pylance and lancedb do with their
//! defaults, through the Lance library.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchIterator};
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::Schema;
use datafusion::prelude::{SessionConfig, SessionContext};
use lance::Dataset;
use lance::dataset::cleanup::CleanupPolicy;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{NewColumnTransform, UpdateBuilder, WriteMode, WriteParams};

use crate::harness::Failure;

/// A change to one table.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a> {
    table: &'a str,
    kind: Kind<'a>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    /// Makes the table, or overwrites it, with the rows of a query over literals;
    /// without stable row ids.
    Write(&'a str),
    /// Appends the rows of a query; columns that it leaves out are NULL.
    Append(&'a str),
    /// Deletes the rows that match a predicate.
    Delete(&'a str),
    /// Sets columns, `name = expression` on a line each, with `WHERE predicate` on the
    /// last line or without it.
    Update(&'a str),
    /// Compacts.
    Compact,
    /// Removes all versions but the newest, as `cleanup_old_versions` does with its defaults and no
    /// retention.
    Cleanup,
    /// Restores a version, by its number.
    Restore(&'a str),
    /// Puts a tag on the newest version.
    Tag(&'a str),
    /// Begins a branch at the newest version.
    Branch(&'a str),
    /// Drops a column.
    DropColumn(&'a str),
    /// Adds a column with values, `name = expression`.
    AddColumn(&'a str),
    /// Marks a column as hidden from users of Headwater.
    HideColumn(&'a str),
}

impl<'a> Change<'a> {
    /// The change of this name, with what it needs in `body`.
    pub fn parse(change: &str, table: &'a str, body: &'a str) -> Result<Self, Failure> {
        let body = body.trim();
        let kind = match (change, body.is_empty()) {
            ("write", false) => Kind::Write(body),
            ("append", false) => Kind::Append(body),
            ("delete", false) => Kind::Delete(body),
            ("update", false) => Kind::Update(body),
            ("compact", true) => Kind::Compact,
            ("cleanup", true) => Kind::Cleanup,
            ("restore", false) => Kind::Restore(body),
            ("tag", false) => Kind::Tag(body),
            ("branch", false) => Kind::Branch(body),
            ("drop_column", false) => Kind::DropColumn(body),
            ("add_column", false) => Kind::AddColumn(body),
            ("hide_column", false) => Kind::HideColumn(body),
            _ => {
                return Err(Failure::new(format!(
                    "\\foreign: no change '{change}', or a body that it must or must not have"
                )));
            }
        };
        Ok(Self { table, kind })
    }

    /// Makes the change to the table below `database`.
    pub async fn apply(&self, database: &Path) -> Result<(), Failure> {
        let uri = database
            .join(format!("{}.lance", self.table))
            .display()
            .to_string();
        match self.kind {
            Kind::Write(query) => write(&uri, rows(query).await?, WriteMode::Overwrite).await,
            Kind::Append(query) => {
                let dataset = open(&uri).await?;
                let rows = conform(&rows(query).await?, &dataset)?;
                write(&uri, rows, WriteMode::Append).await
            }
            Kind::Delete(predicate) => {
                let mut dataset = open(&uri).await?;
                dataset.delete(predicate).await.map_err(Failure::new)?;
                Ok(())
            }
            Kind::Update(body) => update(open(&uri).await?, body).await,
            Kind::Compact => {
                let mut dataset = open(&uri).await?;
                compact_files(&mut dataset, CompactionOptions::default(), None)
                    .await
                    .map_err(Failure::new)?;
                Ok(())
            }
            Kind::Cleanup => {
                let dataset = open(&uri).await?;
                let policy = CleanupPolicy {
                    before_version: Some(dataset.version().version),
                    ..CleanupPolicy::default()
                };
                let cleaned = dataset.cleanup_with_policy(policy).await;
                cleaned.map(drop).map_err(Failure::new)
            }
            Kind::Restore(version) => {
                let version: u64 = version.parse().map_err(Failure::new)?;
                let dataset = open(&uri).await?;
                let old = dataset.checkout_version(version).await;
                let mut old = old.map_err(Failure::new)?;
                old.restore().await.map_err(Failure::new)
            }
            Kind::Tag(tag) => {
                let dataset = open(&uri).await?;
                let version = dataset.version().version;
                let tagged = dataset.tags().create(tag, version).await;
                tagged.map_err(Failure::new)
            }
            Kind::Branch(branch) => {
                let mut dataset = open(&uri).await?;
                let version = dataset.version().version;
                let made = dataset.create_branch(branch, version, None).await;
                made.map(drop).map_err(Failure::new)
            }
            Kind::DropColumn(column) => {
                let mut dataset = open(&uri).await?;
                dataset.drop_columns(&[column]).await.map_err(Failure::new)
            }
            Kind::AddColumn(body) => {
                let (column, value) = assignment(body)?;
                let column = vec![(column.to_string(), value.to_string())];
                let transform = NewColumnTransform::SqlExpressions(column);
                let mut dataset = open(&uri).await?;
                dataset
                    .add_columns(transform, None, None)
                    .await
                    .map_err(Failure::new)
            }
            Kind::HideColumn(column) => {
                let mut dataset = open(&uri).await?;
                let hidden = [("headwater.hidden", "true")];
                let update = dataset.update_field_metadata().update(column, hidden);
                update.map_err(Failure::new)?.await.map_err(Failure::new)?;
                Ok(())
            }
        }
    }
}

async fn open(uri: &str) -> Result<Dataset, Failure> {
    Dataset::open(uri).await.map_err(Failure::new)
}

async fn write(uri: &str, rows: RecordBatch, mode: WriteMode) -> Result<(), Failure> {
    let parameters = WriteParams {
        mode,
        ..WriteParams::default()
    };
    let schema = rows.schema();
    let reader = RecordBatchIterator::new([Ok(rows)], schema);
    Dataset::write(reader, uri, Some(parameters))
        .await
        .map_err(Failure::new)?;
    Ok(())
}

async fn update(dataset: Dataset, body: &str) -> Result<(), Failure> {
    let mut builder = UpdateBuilder::new(Arc::new(dataset));
    for line in body.lines() {
        builder = match line.strip_prefix("WHERE ") {
            Some(predicate) => builder.update_where(predicate),
            None => {
                let (column, value) = assignment(line)?;
                builder.set(column, value)
            }
        }
        .map_err(Failure::new)?;
    }
    let job = builder.build().map_err(Failure::new)?;
    job.execute().await.map_err(Failure::new)?;
    Ok(())
}

/// The two sides of `name = expression`.
fn assignment(line: &str) -> Result<(&str, &str), Failure> {
    line.split_once('=')
        .map(|(column, value)| (column.trim(), value.trim()))
        .ok_or_else(|| Failure::new(format!("'{line}' is not 'column = expression'")))
}

/// The rows of a query that reads no table; as other programs make them, all columns
/// may hold NULL.
async fn rows(query: &str) -> Result<RecordBatch, Failure> {
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = SessionContext::new_with_config(config);
    let frame = context.sql(query).await.map_err(Failure::new)?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.map_err(Failure::new)?;
    let rows = concat_batches(&schema, &batches).map_err(Failure::new)?;
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| field.as_ref().clone().with_nullable(true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec())
        .map_err(Failure::new)
}

/// The rows with the types and nullability that the table has.
fn conform(rows: &RecordBatch, dataset: &Dataset) -> Result<RecordBatch, Failure> {
    let table = Schema::from(dataset.schema());
    let mut fields = Vec::new();
    let mut arrays = Vec::new();
    for (field, array) in rows.schema().fields().iter().zip(rows.columns()) {
        let field = table.field_with_name(field.name()).map_err(Failure::new)?;
        arrays.push(cast(array, field.data_type()).map_err(Failure::new)?);
        fields.push(field.clone());
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(Failure::new)
}
