//! Changes of a table's schema and of the metadata in it. Only a cast, a default for rows that are
//! there, and a check for NULLs touch data.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::physical_expr::PhysicalExpr;
use lance::Dataset;
use lance::dataset::transaction::{Operation, UpdateMap, UpdateMapEntry};
use lance::dataset::{BatchUDF, ColumnAlteration, NewColumnTransform};
use lance_core::ROW_ADDR;
use lance_core::datatypes::Field as LanceField;
pub use lance_core::datatypes::Schema as LanceSchema;

use super::blob::written_array;
use super::commit::{Properties, commit, commit_error};
use super::storage_error;
use crate::{Error, Result};

/// Changes to a map of metadata: a value to set, or `None` to remove the key.
pub type MetadataChanges = BTreeMap<String, Option<String>>;

/// Adds columns that are NULL in every row, in one commit that writes no data. Only a table
/// without rows takes columns that are NOT NULL.
///
/// `schema_metadata` is a key and a value to set in the schema's metadata; `properties` gets the schema with the new columns, whose fields have their ids then.
pub async fn add_null_columns(
    table: &str,
    dataset: &Dataset,
    columns: Vec<Field>,
    schema_metadata: Option<(String, String)>,
    properties: impl FnOnce(&LanceSchema) -> Result<Properties>,
) -> Result<Dataset> {
    let preserves_nullability = columns.iter().all(Field::is_nullable);
    if !preserves_nullability && dataset.count_fragments() > 0 {
        return Err(Error::internal(
            "a column that is NOT NULL was added without values",
        ));
    }
    let added = Schema::new(columns);
    let merge = || -> lance::Result<LanceSchema> {
        let mut schema = dataset.schema().merge(&added)?;
        schema.try_set_field_id(Some(dataset.manifest().max_field_id()))?;
        Ok(schema)
    };
    let mut schema = merge().map_err(|error| storage_error(table, error))?;
    schema.metadata.extend(schema_metadata);
    let properties = properties(&schema)?;
    let operation = Operation::Merge {
        fragments: dataset.fragments().as_ref().clone(),
        schema,
        preserves_nullability,
    };
    commit(table, dataset, operation, properties, None).await
}

/// Whether every fragment keeps a file when the columns `dropped` are gone. Lance can't tell the rows of
/// one without files; that would be so where the other columns were added after its rows, and never
/// got values.
pub fn keeps_data(dataset: &Dataset, dropped: &[String]) -> bool {
    let kept: BTreeSet<i32> = dataset
        .schema()
        .fields
        .iter()
        .filter(|field| !dropped.contains(&field.name))
        .flat_map(field_and_nested_ids)
        .collect();
    dataset.fragments().iter().all(|fragment| {
        let mut ids = fragment.files.iter().flat_map(|file| file.fields.iter());
        ids.any(|id| kept.contains(id))
    })
}

fn field_and_nested_ids(field: &LanceField) -> Vec<i32> {
    let nested = field.children.iter().flat_map(field_and_nested_ids);
    std::iter::once(field.id).chain(nested).collect()
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
                dataset
                    .schema()
                    .fields
                    .iter()
                    .map(|field| field.name.as_str()),
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

/// Changes the metadata of the table, which all versions from then on carry.
pub async fn change_table_metadata(
    table: &str,
    dataset: &Dataset,
    changes: MetadataChanges,
) -> Result<Dataset> {
    let operation = Operation::UpdateConfig {
        config_updates: None,
        table_metadata_updates: Some(update_map(changes)),
        schema_metadata_updates: None,
        field_metadata_updates: HashMap::new(),
    };
    commit(table, dataset, operation, Properties::new(), None).await
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

/// Allows or forbids NULL in a column; forbidding it reads the data to see that there is none.
pub async fn set_nullable(
    table: &str,
    dataset: &Dataset,
    column: &str,
    nullable: bool,
) -> Result<Dataset> {
    let alteration = ColumnAlteration::new(column.to_string()).set_nullable(nullable);
    let mut dataset = dataset.clone();
    dataset
        .alter_columns(&[alteration])
        .await
        .map_err(|error| commit_error(table, error))?;
    Ok(dataset)
}

/// Casts a column to another type, in one commit. The field gets another id, and keeps its place,
/// its name and its metadata.
///
/// # Errors
///
/// If a value does not fit the type.
pub async fn cast_column(
    table: &str,
    dataset: &Dataset,
    column: &str,
    data_type: DataType,
) -> Result<Dataset> {
    let old = dataset
        .schema()
        .field(column)
        .ok_or_else(|| Error::internal(format!("column '{column}' is gone")))?
        .clone();
    // Under a name of its own until the old field is gone.
    let temporary = format!("{column} as {data_type}");
    let field = Field::new(&temporary, data_type.clone(), old.nullable);
    let output = Arc::new(Schema::new(vec![field]));
    let mut fragments = Vec::with_capacity(dataset.count_fragments());
    let mut schema = None;
    for fragment in dataset.get_fragments() {
        let (target, output) = (data_type.clone(), Arc::clone(&output));
        let batch_schema = Arc::clone(&output);
        let cast = move |batch: &RecordBatch| -> lance::Result<RecordBatch> {
            let options = CastOptions {
                safe: false,
                ..Default::default()
            };
            let values = cast_with_options(batch.column(0), &target, &options)?;
            Ok(RecordBatch::try_new(
                Arc::clone(&batch_schema),
                vec![values],
            )?)
        };
        let transform = NewColumnTransform::BatchUDF(BatchUDF {
            mapper: Box::new(cast),
            output_schema: output,
            result_checkpoint: None,
        });
        let (written, with_column) = fragment
            .add_columns(transform, Some(vec![column.to_string()]), None)
            .await
            .map_err(|error| {
                storage_error(table, error).context(format!("column '{column}' to {data_type}"))
            })?;
        fragments.push(written);
        schema = Some(with_column);
    }
    let mut schema = match schema {
        Some(schema) => schema,
        // No rows: only the schema changes.
        None => {
            let merged = || -> lance::Result<LanceSchema> {
                let mut schema = dataset.schema().merge(output.as_ref())?;
                schema.try_set_field_id(Some(dataset.manifest().max_field_id()))?;
                Ok(schema)
            };
            merged().map_err(|error| storage_error(table, error))?
        }
    };
    let mut new = schema
        .fields
        .pop()
        .filter(|field| field.name == temporary)
        .ok_or_else(|| Error::internal("the cast column is not the last one"))?;
    new.name = old.name.clone();
    new.metadata = old.metadata.clone();
    new.unenforced_primary_key_position = old.unenforced_primary_key_position;
    if let Some(place) = schema.fields.iter_mut().find(|field| field.id == old.id) {
        *place = new;
    }
    let operation = Operation::Merge {
        fragments,
        schema,
        preserves_nullability: false,
    };
    commit(table, dataset, operation, Properties::new(), None).await
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
