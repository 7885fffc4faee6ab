//! Sets of keys.
//!
//! Keys of one integer, such as ids, dates and times, are by far the most, and are kept as numbers. Others are
//! kept as the bytes that [`RowEncoder`] gives them. NULL is a value like others.

use std::collections::HashSet;
use std::sync::OnceLock;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::buffer::{BooleanBuffer, ScalarBuffer};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt64Type};
use datafusion::common::hash_utils::RandomState;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use super::keys::RowEncoder;
use super::row_set::RowSet;
use crate::engine::wire;

/// A set of keys.
#[derive(Debug)]
pub struct KeySet {
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    /// Of one column of integers of this type, as the bits of `i64`.
    Integers {
        data_type: DataType,
        found: HashSet<u64, RandomState>,
        has_null: bool,
        /// The same as `found` if its numbers are close enough; made when it is first looked into.
        bits: OnceLock<Option<Bits>>,
    },
    /// Of any columns.
    Rows {
        encoder: RowEncoder,
        found: HashSet<Box<[u8]>, RandomState>,
    },
}

/// Numbers as bits: quicker to look into than a table of hashes.
#[derive(Debug)]
struct Bits {
    /// The number of the first bit.
    first: u64,
    words: Vec<u64>,
}

/// Numbers from the first of a set of bits to its last: 8 MiB of bits.
const MOST_BITS: u64 = 1 << 26;

impl Bits {
    /// The bits of `numbers`; `None` if there would be too many.
    fn of(numbers: &HashSet<u64, RandomState>) -> Option<Self> {
        // In the order of signed numbers, which most are.
        let first = numbers.iter().map(|number| *number as i64).min()? as u64;
        let last = numbers.iter().map(|number| *number as i64).max()? as u64;
        let span = last.wrapping_sub(first);
        if span >= MOST_BITS {
            return None;
        }
        let mut words = vec![0; span as usize / 64 + 1];
        for number in numbers {
            let place = number.wrapping_sub(first);
            words[place as usize / 64] |= 1 << (place % 64);
        }
        Some(Self { first, words })
    }

    fn has(&self, number: u64) -> bool {
        let place = number.wrapping_sub(self.first);
        let word = usize::try_from(place / 64).ok();
        let word = word.and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (place % 64) & 1 == 1)
    }
}

impl KeySet {
    /// A set for keys of these types; `None` if they can't be compared.
    pub fn new<'a>(types: impl IntoIterator<Item = &'a DataType>) -> Result<Option<Self>> {
        let types: Vec<&DataType> = types.into_iter().collect();
        if let [data_type] = types.as_slice()
            && is_integer(data_type)
        {
            return Ok(Some(Self {
                keys: Keys::Integers {
                    data_type: (*data_type).clone(),
                    found: HashSet::default(),
                    has_null: false,
                    bits: OnceLock::new(),
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
    pub fn of_rows(rows: &RowSet) -> Self {
        Self {
            keys: Keys::Integers {
                data_type: DataType::UInt64,
                found: rows.iter().collect(),
                has_null: false,
                bits: OnceLock::new(),
            },
        }
    }

    /// Adds the rows of `rows`, whose columns are those of the key.
    pub async fn extend(&mut self, mut rows: SendableRecordBatchStream) -> Result<()> {
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            self.insert(batch.columns())?;
        }
        Ok(())
    }

    /// Adds keys.
    pub fn insert(&mut self, columns: &[ArrayRef]) -> Result<()> {
        match &mut self.keys {
            Keys::Integers {
                data_type,
                found,
                has_null,
                bits,
            } => {
                *bits = OnceLock::new();
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

    /// The keys as values of `wanted`, and whether NULL is one, too; `None` if they are of another type, no whole numbers,
    /// or more than `most`.
    pub fn literals(&self, wanted: &DataType, most: usize) -> Option<(Vec<ScalarValue>, bool)> {
        let Keys::Integers {
            data_type,
            found,
            has_null,
            ..
        } = &self.keys
        else {
            return None;
        };
        if found.len() > most || data_type != wanted {
            return None;
        }
        let value = |bits: &u64| match data_type {
            DataType::UInt64 => Some(ScalarValue::UInt64(Some(*bits))),
            _ => {
                let value = ScalarValue::Int64(Some(*bits as i64));
                value.cast_to(data_type).ok()
            }
        };
        let values = found.iter().map(value).collect::<Option<Vec<_>>>()?;
        Some((values, *has_null))
    }

    /// The set as bytes: whether NULL is in it, the types of the key, and the keys.
    pub fn write(&self) -> Vec<u8> {
        let (types, has_null, keys) = match &self.keys {
            Keys::Integers {
                data_type,
                found,
                has_null,
                ..
            } => {
                let numbers: RowSet = found.iter().copied().collect();
                (
                    vec![data_type.clone()],
                    *has_null,
                    numbers.encode().into_bytes(),
                )
            }
            Keys::Rows { encoder, found } => {
                let mut keys = Vec::new();
                for key in found {
                    keys.extend_from_slice(&(key.len() as u32).to_le_bytes());
                    keys.extend_from_slice(key);
                }
                (encoder.types().to_vec(), false, keys)
            }
        };
        let fields = types
            .into_iter()
            .map(|data_type| Field::new("", data_type, true));
        let schema = Schema::new(fields.collect::<Vec<_>>());
        // Writing to memory can't fail; if it did, reading would say so.
        let types = wire::write_schema(&schema).unwrap_or_default();
        let mut bytes = vec![u8::from(has_null)];
        bytes.extend_from_slice(&(types.len() as u32).to_le_bytes());
        bytes.extend_from_slice(types.as_bytes());
        bytes.extend_from_slice(&keys);
        bytes
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    ///
    /// If it is something else, or was cut.
    pub fn read(bytes: &[u8]) -> crate::Result<Self> {
        let broken = || crate::Error::internal("a set of keys of another process can't be read");
        let (null, rest) = bytes.split_first().ok_or_else(broken)?;
        let (types, mut rest) = split(rest).ok_or_else(broken)?;
        let types = std::str::from_utf8(types).map_err(|_| broken())?;
        let types = wire::read_schema(types)?;
        let types = types.fields().iter().map(|field| field.data_type());
        let mut set = Self::new(types)?.ok_or_else(broken)?;
        match &mut set.keys {
            Keys::Integers {
                found, has_null, ..
            } => {
                let numbers = std::str::from_utf8(rest).map_err(|_| broken())?;
                *found = RowSet::decode(numbers)?.iter().collect();
                *has_null = *null != 0;
            }
            Keys::Rows { found, .. } => {
                while !rest.is_empty() {
                    let (key, more) = split(rest).ok_or_else(broken)?;
                    found.insert(key.into());
                    rest = more;
                }
            }
        }
        Ok(set)
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        match &self.keys {
            Keys::Integers {
                found, has_null, ..
            } => found.len() + usize::from(*has_null),
            Keys::Rows { found, .. } => found.len(),
        }
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row of `columns` is one of the keys.
    pub fn contained(&self, columns: &[ArrayRef]) -> Result<BooleanArray> {
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
                    bits,
                },
                [column],
            ) => {
                let (values, valid) = integers(column, data_type)?;
                let is_contained = match bits.get_or_init(|| Bits::of(found)) {
                    Some(bits) => {
                        BooleanBuffer::collect_bool(values.len(), |place| bits.has(values[place]))
                    }
                    None => BooleanBuffer::collect_bool(values.len(), |place| {
                        found.contains(&values[place])
                    }),
                };
                let is_contained = match (valid.nulls(), has_null) {
                    (None, _) => is_contained,
                    (Some(nulls), false) => &is_contained & nulls.inner(),
                    (Some(nulls), true) => &is_contained | &!nulls.inner(),
                };
                Ok(BooleanArray::new(is_contained, None))
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

/// Bytes that are preceded by their number, and those behind them.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Int64Array, StringArray};

    use super::*;

    fn looked_up(keys: Vec<Option<i64>>, values: Vec<Option<i64>>) -> Vec<bool> {
        let mut set = KeySet::new([&DataType::Int64]).unwrap().unwrap();
        // Of two parts, looked into between: what is added later counts.
        let (first, second) = keys.split_at(keys.len() / 2);
        let values: ArrayRef = Arc::new(Int64Array::from(values));
        for part in [first, second] {
            set.insert(&[Arc::new(Int64Array::from(part.to_vec()))])
                .unwrap();
            set.contained(&[ArrayRef::clone(&values)]).unwrap();
        }
        let found = set.contained(&[values]).unwrap();
        found.iter().map(|found| found.unwrap()).collect()
    }

    #[test]
    fn a_set_is_read_as_it_was_written() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(-3), None, Some(1 << 40)]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("")]));
        for columns in [vec![Arc::clone(&numbers)], vec![texts, numbers]] {
            let types = columns.iter().map(|column| column.data_type());
            let mut set = KeySet::new(types).unwrap().unwrap();
            set.insert(&columns).unwrap();
            let bytes = set.write();
            let read = KeySet::read(&bytes).unwrap();
            assert_eq!(read.len(), set.len());
            assert_eq!(read.contained(&columns).unwrap().true_count(), 3);
            assert!(KeySet::read(&bytes[..7]).is_err());
        }
    }

    #[test]
    fn numbers_are_found_near_and_far() {
        let far = [i64::MIN, -70, -1, 0, 1, 63, 64, 1 << 40, i64::MAX];
        let near = [-70, -1, 0, 1, 63, 64, 1 << 25];
        for keys in [&far[..], &near[..], &[5], &[]] {
            let all: Vec<i64> = far
                .into_iter()
                .chain(near)
                .chain([5, 6, -2, i64::MAX - 1])
                .collect();
            let expected: Vec<bool> = all.iter().map(|value| keys.contains(value)).collect();
            let some = |values: &[i64]| values.iter().copied().map(Some).collect::<Vec<_>>();
            assert_eq!(looked_up(some(keys), some(&all)), expected, "{keys:?}");
            // NULL is a key like others.
            let mut with_null = some(keys);
            assert_eq!(
                looked_up(with_null.clone(), vec![None, Some(6)]),
                [false, false]
            );
            with_null.push(None);
            assert_eq!(looked_up(with_null, vec![None, Some(6)]), [true, false]);
        }
    }
}
