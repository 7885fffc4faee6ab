//! Sets of keys.
//!
//! Keys of one integer, such as ids, dates and times, are by far the most, and are kept as numbers. Others are
//! kept as the bytes that [`RowEncoder`] gives them. NULL is a value like others.

use std::collections::HashSet;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::buffer::ScalarBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type, UInt64Type};
use datafusion::common::hash_utils::RandomState;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use super::keys::RowEncoder;
use crate::storage::RowSet;

/// A set of keys.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    /// Of one column of integers of this type, as the bits of `i64`.
    Integers {
        data_type: DataType,
        found: HashSet<u64, RandomState>,
        has_null: bool,
    },
    /// Of any columns.
    Rows {
        encoder: RowEncoder,
        found: HashSet<Box<[u8]>, RandomState>,
    },
}

impl KeySet {
    /// A set for keys of these types; `None` if they can't be compared.
    pub(super) fn new<'a>(types: impl IntoIterator<Item = &'a DataType>) -> Result<Option<Self>> {
        let types: Vec<&DataType> = types.into_iter().collect();
        if let [data_type] = types.as_slice()
            && is_integer(data_type)
        {
            return Ok(Some(Self {
                keys: Keys::Integers {
                    data_type: (*data_type).clone(),
                    found: HashSet::default(),
                    has_null: false,
                },
            }));
        }
        let encoder = RowEncoder::new(types)?;
        Ok(encoder.map(|encoder| Self {
            keys: Keys::Rows {
                encoder,
                found: HashSet::default(),
            },
        }))
    }

    /// The ids of `rows`.
    pub(super) fn of_rows(rows: &RowSet) -> Self {
        Self {
            keys: Keys::Integers {
                data_type: DataType::UInt64,
                found: rows.iter().collect(),
                has_null: false,
            },
        }
    }

    /// Adds the rows of `rows`, whose columns are those of the key.
    pub(super) async fn extend(&mut self, mut rows: SendableRecordBatchStream) -> Result<()> {
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            self.insert(batch.columns())?;
        }
        Ok(())
    }

    /// Adds keys.
    pub(super) fn insert(&mut self, columns: &[ArrayRef]) -> Result<()> {
        match &mut self.keys {
            Keys::Integers {
                data_type,
                found,
                has_null,
            } => {
                let Some(column) = columns.first() else {
                    return Ok(());
                };
                let (values, valid) = integers(column, data_type)?;
                *has_null |= valid.null_count() > 0;
                match valid.null_count() {
                    0 => found.extend(values.iter().copied()),
                    _ => found.extend(
                        (values.iter().copied().enumerate())
                            .filter(|(place, _)| valid.is_valid(*place))
                            .map(|(_, value)| value),
                    ),
                }
            }
            Keys::Rows { encoder, found } => {
                for row in &encoder.encode(columns)? {
                    if !found.contains(row.as_ref()) {
                        found.insert(row.as_ref().into());
                    }
                }
            }
        }
        Ok(())
    }

    /// How many keys.
    pub(super) fn len(&self) -> usize {
        match &self.keys {
            Keys::Integers {
                found, has_null, ..
            } => found.len() + usize::from(*has_null),
            Keys::Rows { found, .. } => found.len(),
        }
    }

    /// Whether there is no key.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row of `columns` is one of the keys.
    pub(super) fn contained(&self, columns: &[ArrayRef]) -> Result<BooleanArray> {
        if self.is_empty() {
            let rows = columns.first().map_or(0, |column| column.len());
            return Ok(BooleanArray::from(vec![false; rows]));
        }
        match (&self.keys, columns) {
            (
                Keys::Integers {
                    data_type,
                    found,
                    has_null,
                },
                [column],
            ) => {
                let (values, valid) = integers(column, data_type)?;
                Ok(match valid.null_count() {
                    0 => BooleanArray::from_iter(
                        values.iter().map(|value| Some(found.contains(value))),
                    ),
                    _ => (values.iter().enumerate())
                        .map(|(place, value)| match valid.is_valid(place) {
                            true => Some(found.contains(value)),
                            false => Some(*has_null),
                        })
                        .collect(),
                })
            }
            (Keys::Integers { .. }, _) => Err(DataFusionError::Internal(
                "a key of one column is looked up by several".to_string(),
            )),
            (Keys::Rows { encoder, found }, _) => {
                let rows = encoder.encode(columns)?;
                Ok(rows
                    .iter()
                    .map(|row| Some(found.contains(row.as_ref())))
                    .collect())
            }
        }
    }
}

/// Types whose values are as many bits as an `i64` has, or less.
fn is_integer(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            data_type,
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(_, _)
        )
}

/// The bits of a column of integers, and which of them are no NULL.
fn integers(column: &ArrayRef, data_type: &DataType) -> Result<(ScalarBuffer<u64>, ArrayRef)> {
    // The two sides of a join may differ in how wide they are.
    let column = match column.data_type() == data_type {
        true => ArrayRef::clone(column),
        false => cast(column, data_type)?,
    };
    if let Some(ids) = column.as_primitive_opt::<UInt64Type>() {
        return Ok((ids.values().clone(), column));
    }
    let wide = cast(&column, &DataType::Int64)?;
    let values = wide.as_primitive::<Int64Type>().values();
    Ok((ScalarBuffer::from(values.inner().clone()), wide))
}
