//! The Arrow schema that a scan of a table yields.
//!
//! It differs from the stored one where Lance stores something else than it
//! shows: a blob is shown as a descriptor or as its bytes, JSON as text.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use lance::Dataset;
use lance::arrow::ARROW_EXT_NAME_KEY;
use lance_core::datatypes::BlobHandling;
use lance_core::{ROW_ADDR, ROW_ID};

use super::Blobs;
use crate::storage::blob::{is_blob, shown_field};

const LANCE_JSON: &str = "lance.json";
const ARROW_JSON: &str = "arrow.json";
const BLOB_V2: &str = "lance.blob.v2";

/// The schema of all columns of `dataset`, as a scan yields them. The metadata of the table's schema stays behind:
/// it speaks of the table, and DataFusion takes plans for wrong whose schemas differ in it.
pub fn table_schema(dataset: &Arc<Dataset>, blobs: Blobs) -> Schema {
    let stored = dataset
        .full_projection()
        .with_blob_handling(blob_handling(blobs))
        .to_bare_schema();
    let schema = Schema::from(&stored);
    let fields = schema
        .fields()
        .iter()
        .map(|field| match stored_blob(dataset, field.name()) {
            Some((_, stored)) if blobs == Blobs::Descriptors => Arc::new(shown_field(&stored)),
            _ => shown(field),
        })
        .collect::<Fields>();
    Schema::new(fields)
}

/// The id and the stored form of the column `name`, if it holds blobs.
pub(super) fn stored_blob(dataset: &Dataset, name: &str) -> Option<(i32, Field)> {
    let stored = dataset.schema().fields.iter().find(|f| f.name == name)?;
    let field = Field::from(stored);
    is_blob(&field).then_some((stored.id, field))
}

/// The field of `_rowid` or `_rowaddr`, which have a value in every row.
pub fn row_field(name: &str) -> Option<Field> {
    (name == ROW_ID || name == ROW_ADDR).then(|| Field::new(name, DataType::UInt64, false))
}

/// The fields of `columns`, in that order; `None` at the first that is neither in
/// `table` nor a row id or address.
pub(super) fn project(table: &Schema, columns: &[String]) -> Result<SchemaRef, String> {
    let fields = columns
        .iter()
        .map(|name| match row_field(name) {
            Some(field) => Ok(Arc::new(field)),
            None => table
                .fields()
                .find(name)
                .map(|(_, field)| field.clone())
                .ok_or_else(|| name.clone()),
        })
        .collect::<Result<Vec<FieldRef>, String>>()?;
    Ok(Arc::new(Schema::new_with_metadata(
        fields,
        table.metadata().clone(),
    )))
}

pub(super) fn blob_handling(blobs: Blobs) -> BlobHandling {
    match blobs {
        Blobs::Descriptors => BlobHandling::BlobsDescriptions,
        Blobs::Binary => BlobHandling::AllBinary,
    }
}

/// `field` as the scan yields it.
fn shown(field: &FieldRef) -> FieldRef {
    let extension = field.metadata().get(ARROW_EXT_NAME_KEY).map(String::as_str);
    match (extension, field.data_type()) {
        (Some(LANCE_JSON), DataType::LargeBinary) => {
            let mut metadata = field.metadata().clone();
            metadata.insert(ARROW_EXT_NAME_KEY.to_string(), ARROW_JSON.to_string());
            Arc::new(
                Field::new(field.name(), DataType::Utf8, field.is_nullable())
                    .with_metadata(metadata),
            )
        }
        (Some(BLOB_V2), DataType::LargeBinary) => {
            let mut metadata = field.metadata().clone();
            metadata.remove(ARROW_EXT_NAME_KEY);
            Arc::new(field.as_ref().clone().with_metadata(metadata))
        }
        _ => {
            let data_type = match field.data_type() {
                DataType::Struct(children) => {
                    DataType::Struct(children.iter().map(shown).collect())
                }
                DataType::List(item) => DataType::List(shown(item)),
                DataType::LargeList(item) => DataType::LargeList(shown(item)),
                DataType::FixedSizeList(item, size) => DataType::FixedSizeList(shown(item), *size),
                DataType::Map(entries, sorted) => DataType::Map(shown(entries), *sorted),
                _ => return field.clone(),
            };
            Arc::new(field.as_ref().clone().with_data_type(data_type))
        }
    }
}
