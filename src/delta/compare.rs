//! Which rows differ between two versions, by their values.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::UInt64Type;
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use lance_core::datatypes::{Field, Schema};
use lance_core::{ROW_ID, ROW_ID_FIELD};

use super::FieldIdentity;
use super::fields::Inputs;
use super::fragments::live_among;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::row_set::RowSet;

/// How much of the fields of one version is held at a time.
const CHUNK_BYTES: usize = 16 << 20;
/// How many rows are read at a time: few at first, while their size is unknown.
const FIRST_CHUNK: usize = 64;
const LARGEST_CHUNK: usize = 1 << 16;

/// Those of `ids` whose values of `fields` differ between version `from` and the
/// version that `dataset` is checked out at. A row that is missing at one of them
/// counts as changed.
///
/// Only these fields of these rows are read, a bounded part at a time. Values are
/// compared as they are stored: NULL equals NULL, NaN equals the same NaN, and 0.0
/// differs from -0.0. The contents of blobs are not read: a row whose fields hold a
/// blob counts as changed.
///
/// # Errors
/// When one of the versions or fields can't be read.
pub async fn confirm(
    dataset: &Dataset,
    from: u64,
    ids: &RowSet,
    fields: &[FieldIdentity],
) -> Result<RowSet> {
    if ids.is_empty() {
        return Ok(RowSet::new());
    }
    let old = dataset.checkout_version(from).await.map_err(|error| {
        Error::from(error).context(format!("version {from} can't be read for comparing"))
    })?;
    let mut sides = Sides {
        old: Side::new(old, fields)?,
        new: Side::new(dataset.clone(), fields)?,
    };
    if fields.is_empty() {
        let both = live_among(&sides.old.dataset, ids).await?;
        let both = live_among(&sides.new.dataset, &both).await?;
        return Ok(ids.clone().difference(&both));
    }
    if sides.old.has_blob || sides.new.has_blob {
        return Ok(ids.clone());
    }

    let mut changed = RowSet::new();
    let mut chunk = Vec::with_capacity(FIRST_CHUNK);
    let mut size = FIRST_CHUNK;
    for id in ids.iter() {
        chunk.push(id);
        if chunk.len() == size {
            size = sides.compare(&chunk, &mut changed).await?;
            chunk.clear();
        }
    }
    if !chunk.is_empty() {
        sides.compare(&chunk, &mut changed).await?;
    }
    Ok(changed)
}

/// One of the two versions.
struct Side {
    dataset: Dataset,
    projection: Arc<Schema>,
    has_blob: bool,
}

impl Side {
    /// The fields by id: their names may differ between the versions.
    fn new(dataset: Dataset, fields: &[FieldIdentity]) -> Result<Self> {
        let mut columns = Vec::with_capacity(fields.len() + 1);
        for field in fields {
            let found = Inputs::find(dataset.schema(), field.id).ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "column '{}' is not in version {}",
                        field.name,
                        dataset.manifest().version
                    ),
                )
            })?;
            columns.push(found.clone());
        }
        let has_blob = columns.iter().any(holds_blob);
        columns.push(Field::try_from(&*ROW_ID_FIELD)?);
        Ok(Self {
            dataset,
            projection: Arc::new(Schema {
                fields: columns,
                metadata: HashMap::new(),
            }),
            has_blob,
        })
    }

    async fn take(&self, ids: &[u64]) -> Result<RecordBatch> {
        let projection = ProjectionRequest::Schema(self.projection.clone());
        Ok(self.dataset.take_rows(ids, projection).await?)
    }
}

fn holds_blob(field: &Field) -> bool {
    field.is_blob() || field.children.iter().any(holds_blob)
}

struct Sides {
    old: Side,
    new: Side,
}

impl Sides {
    /// Adds the changed rows of one chunk; gives the size for the next one.
    async fn compare(&mut self, ids: &[u64], changed: &mut RowSet) -> Result<usize> {
        let (old, new) = futures::try_join!(self.old.take(ids), self.new.take(ids))?;
        let bytes = old
            .get_array_memory_size()
            .max(new.get_array_memory_size())
            .max(1);

        // A row may be missing on either side, and the order is the store's.
        let (old_rows, new_rows) = (positions(&old)?, positions(&new)?);
        let mut both = Vec::with_capacity(ids.len());
        let mut old_positions = Vec::with_capacity(ids.len());
        let mut new_positions = Vec::with_capacity(ids.len());
        for id in ids {
            match (old_rows.get(id), new_rows.get(id)) {
                (Some(old), Some(new)) => {
                    both.push(*id);
                    old_positions.push(*old);
                    new_positions.push(*new);
                }
                _ => {
                    changed.insert(*id);
                }
            }
        }
        let old = take_record_batch(&old, &UInt32Array::from(old_positions))?;
        let new = take_record_batch(&new, &UInt32Array::from(new_positions))?;
        for column in 0..self.new.projection.fields.len() - 1 {
            let differing = differing(old.column(column), new.column(column))?;
            for row in differing.values().set_indices() {
                changed.insert(both[row]);
            }
        }
        let fitting = CHUNK_BYTES.saturating_mul(ids.len()) / bytes;
        Ok(fitting.clamp(1, (ids.len() * 4).min(LARGEST_CHUNK)))
    }
}

/// Where each row id is in a batch.
fn positions(batch: &RecordBatch) -> Result<HashMap<u64, u32>> {
    let ids = batch
        .column_by_name(ROW_ID)
        .and_then(|column| column.as_primitive_opt::<UInt64Type>())
        .ok_or_else(|| Error::internal("rows were read without their ids"))?;
    Ok(ids.values().iter().copied().zip(0..).collect())
}

/// For each row whether two columns of the same length differ there.
pub(super) fn differing(old: &ArrayRef, new: &ArrayRef) -> Result<BooleanArray> {
    let same_type;
    let old = if old.data_type() == new.data_type() {
        old
    } else {
        // The same type, but for nullability or metadata somewhere inside.
        same_type = cast(old, new.data_type())?;
        &same_type
    };
    if let Ok(differing) = distinct(old, new) {
        return Ok(differing);
    }
    // Nested types: whole stretches at once, down to single rows where they differ.
    let mut differing = vec![false; new.len()];
    let mut stretches = vec![(0, new.len())];
    while let Some((start, len)) = stretches.pop() {
        if len == 0 || old.slice(start, len).to_data() == new.slice(start, len).to_data() {
            continue;
        }
        if len == 1 {
            differing[start] = true;
        } else {
            stretches.push((start, len / 2));
            stretches.push((start + len / 2, len - len / 2));
        }
    }
    Ok(BooleanArray::from(differing))
}
