//! How many bytes values take.

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::DataType;

/// Bytes of a value whose type does not say it: of strings, lists and the like.
pub(super) const VARIABLE: u64 = 32;

/// Bytes of a value of a type; `None` if the type does not say it.
pub(super) fn fixed_width(data_type: &DataType) -> Option<u64> {
    match data_type {
        DataType::Boolean => Some(1),
        DataType::FixedSizeBinary(bytes) => u64::try_from(*bytes).ok(),
        DataType::FixedSizeList(item, items) => {
            let width = item.data_type().primitive_width()? as u64;
            Some(width * u64::try_from(*items).ok()?)
        }
        other => other.primitive_width().map(|width| width as u64),
    }
}

/// Bytes that a value of a type takes, about.
pub fn type_width(data_type: &DataType) -> u64 {
    match data_type {
        DataType::FixedSizeList(item, items) => {
            type_width(item.data_type()) * u64::try_from(*items).unwrap_or(0)
        }
        DataType::Struct(fields) => fields.iter().map(|f| type_width(f.data_type())).sum(),
        other => fixed_width(other).unwrap_or(VARIABLE),
    }
}

/// The bytes of the rows of `array`, though it may be a slice of a larger one.
pub fn slice_bytes(array: &ArrayRef) -> usize {
    let sliced = array.to_data().get_slice_memory_size();
    sliced.unwrap_or_else(|_| array.get_array_memory_size())
}
