//! Changes of a table's schema and of the metadata in it. Only a cast, a default for rows that are
//! there, and a check for NULLs touch data.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::physical_expr::PhysicalExpr;
use lance::Dataset;
use lance::dataset::{BatchUDF, ColumnAlteration, NewColumnTransform};
use lance::dataset::transaction::{Operation, UpdateMap, UpdateMapEntry};
use lance_core::ROW_ADDR;
use lance_core::datatypes::Schema as LanceSchema;

use super::commit::{Properties, commit, commit_error};
use super::blob::written_array;
use super::storage_error;
use crate::{Error, Result};

/// Changes to a map of metadata: a value to set, or `None` to remove the key.
pub type MetadataChanges = BTreeMap<String, Option<String>>;

/// Adds columns that are NULL in every row, in one commit that writes no data.
///
/// `properties` gets the schema with the new columns, whose fields have their ids then.
pub async fn add_null_columns(
    table: &str,
    dataset: &Dataset,
    columns: Vec<Field>,
    properties: impl FnOnce(&LanceSchema) -> Result<Properties>,
) -> Result<Dataset> {
    let added = Schema::new(
        columns
            .into_iter()
            .map(|column| column.with_nullable(true))
            .collect::<Vec<_>>(),
    );
    let merge = || -> lance::Result<LanceSchema> {
        let mut schema = dataset.schema().merge(&added)?;
        schema.try_set_field_id(Some(dataset.manifest().max_field_id()))?;
        Ok(schema)
    };
    let schema = merge().map_err(|error| storage_error(table, error))?;
    let properties = properties(&schema)?;
    let operation = Operation::Merge {
        fragments: dataset.fragments().as_ref().clone(),
        schema,
        preserves_nullability: true,
    };
    commit(table, dataset, operation, properties, None).await
}

/// Commits the schema that `change` makes of the present one: fields renamed, dropped or with
/// other metadata. Ids and types must stay.
pub async fn change_schema(
    table: &str,
    dataset: &Dataset,
    change: impl FnOnce(&mut LanceSchema) -> Result<()>,
    properties: Properties,
) -> Result<Dataset> {
    let mut schema = dataset.schema().clone();
    change(&mut schema)?;
    let operation = Operation::Project {
        schema,
        preserves_nullability: true,
    };
    commit(table, dataset, operation, properties, None).await
}

/// Changes the metadata of columns (by name) and of the schema, in one commit.
pub async fn change_metadata(
    table: &str,
    dataset: &Dataset,
    columns: BTreeMap<String, MetadataChanges>,
    schema: MetadataChanges,
    properties: Properties,
) -> Result<Dataset> {
    let mut field_metadata_updates = HashMap::new();
    for (column, changes) in columns {
        let field = dataset.schema().field(&column).ok_or_else(|| {
            Error::not_found(
                "column",
                &column,
                dataset.schema().fields.iter().map(|field| field.name.as_str()),
            )
        })?;
        field_metadata_updates.insert(field.id, update_map(changes));
    }
    let operation = Operation::UpdateConfig {
        config_updates: None,
        table_metadata_updates: None,
        schema_metadata_updates: (!schema.is_empty()).then(|| update_map(schema)),
        field_metadata_updates,
    };
    commit(table, dataset, operation, properties, None).await
}

fn update_map(changes: MetadataChanges) -> UpdateMap {
    UpdateMap {
        update_entries: changes
            .into_iter()
            .map(|(key, value)| UpdateMapEntry { key, value })
            .collect(),
        replace: false,
    }
}

/// A change of one column that may read or rewrite its data.
#[derive(Debug, Clone)]
pub enum ColumnChange {
    /// Another type; the data is cast, and the field gets another id.
    Type(DataType),
    /// Whether NULL is allowed; forbidding it reads the data to see that there is none.
    Nullable(bool),
}

/// Changes one column.
pub async fn alter_column(
    table: &str,
    dataset: &Dataset,
    column: &str,
    change: ColumnChange,
) -> Result<Dataset> {
    let alteration = ColumnAlteration::new(column.to_string());
    let alteration = match change {
        ColumnChange::Type(data_type) => alteration.cast_to(data_type),
        ColumnChange::Nullable(nullable) => alteration.set_nullable(nullable),
    };
    let mut dataset = dataset.clone();
    dataset
        .alter_columns(&[alteration])
        .await
        .map_err(|error| commit_error(table, error))?;
    Ok(dataset)
}

/// Adds a column with the value that `value`, an expression without columns, has for each row.
pub async fn add_filled_column(
    table: &str,
    dataset: &Dataset,
    column: Field,
    value: Arc<dyn PhysicalExpr>,
) -> Result<Dataset> {
    let schema = Arc::new(Schema::new(vec![column]));
    let output = Arc::clone(&schema);
    let fill = move |batch: &RecordBatch| -> lance::Result<RecordBatch> {
        let rows = batch.num_rows();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let empty =
            RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
        let values = value.evaluate(&empty)?.into_array(rows)?;
        let values = written_array(output.field(0), &values)?;
        Ok(RecordBatch::try_new(Arc::clone(&output), vec![values])?)
    };
    let transform = NewColumnTransform::BatchUDF(BatchUDF {
        mapper: Box::new(fill),
        output_schema: schema,
        result_checkpoint: None,
    });
    let mut dataset = dataset.clone();
    // Only the number of rows matters: addresses tell it without reading a column.
    dataset
        .add_columns(transform, Some(vec![ROW_ADDR.to_string()]), None)
        .await
        .map_err(|error| commit_error(table, error))?;
    Ok(dataset)
}

/// Gives a table row ids that survive a rewrite.
pub async fn enable_row_tracking(table: &str, dataset: &Dataset) -> Result<Dataset> {
    let mut dataset = dataset.clone();
    dataset
        .migrate_to_stable_row_ids()
        .await
        .map_err(|error| commit_error(table, error))?;
    Ok(dataset)
}
