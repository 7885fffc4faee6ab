//! How keys are compared, and filters by [sets](KeySet) of them.
//!
//! A key is matched by the bytes that Arrow's row format gives it, so NULL is equal to NULL, NaN to NaN and
//! 0.0 to -0.0, and keys of any type and number of columns are one kind of value.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{DFSchema, DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, Volatility,
};

use super::key_set::KeySet;
use super::row_set::RowSet;
use crate::engine::deferred::FunctionCodec;

/// Turns rows into bytes that are equal when the rows are.
#[derive(Debug)]
pub struct RowEncoder {
    types: Vec<DataType>,
    converter: RowConverter,
}

impl RowEncoder {
    /// For rows of these types; `None` if there is one among them that can't be compared.
    pub fn new<'a>(types: impl IntoIterator<Item = &'a DataType>) -> Result<Option<Self>> {
        let types: Vec<DataType> = types.into_iter().cloned().collect();
        let fields: Vec<SortField> = types.iter().cloned().map(SortField::new).collect();
        if !RowConverter::supports_fields(&fields) {
            return Ok(None);
        }
        let converter = RowConverter::new(fields)?;
        Ok(Some(Self { types, converter }))
    }

    /// The types of the rows.
    pub fn types(&self) -> &[DataType] {
        &self.types
    }

    /// The bytes of each row.
    pub fn encode(&self, columns: &[ArrayRef]) -> Result<Rows> {
        let columns = columns
            .iter()
            .zip(&self.types)
            .map(
                |(column, data_type)| match column.data_type() == data_type {
                    true => Ok(canonical(column)),
                    // The two sides of a join may hold text in different ways.
                    false => Ok(canonical(&cast(column, data_type)?)),
                },
            )
            .collect::<Result<Vec<ArrayRef>>>()?;
        Ok(self.converter.convert_columns(&columns)?)
    }
}

/// One value for all that are equal: -0.0 and 0.0, and every NaN.
fn canonical(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Float32 => Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float32Type>(
            |value| match value.is_nan() {
                true => f32::NAN,
                false => value + 0.0,
            },
        )),
        DataType::Float64 => Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float64Type>(
            |value| match value.is_nan() {
                true => f64::NAN,
                false => value + 0.0,
            },
        )),
        _ => Arc::clone(array),
    }
}

/// Whether a key is one of a set: an expression over the key's columns.
#[derive(Debug)]
struct InKeys {
    keys: Arc<KeySet>,
    signature: Signature,
}

impl PartialEq for InKeys {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys)
    }
}

impl Eq for InKeys {}

impl Hash for InKeys {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.keys).hash(state);
    }
}

impl ScalarUDFImpl for InKeys {
    fn name(&self) -> &str {
        "in_keys"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        Ok(ColumnarValue::Array(Arc::new(
            self.keys.contained(&columns)?,
        )))
    }
}

/// Whether `key` is in `keys`.
pub fn in_keys(keys: &Arc<KeySet>, key: Vec<Expr>) -> Expr {
    let signature = Signature::any(key.len(), Volatility::Immutable);
    let function = InKeys {
        keys: Arc::clone(keys),
        signature,
    };
    ScalarUDF::new_from_impl(function).call(key)
}

/// Whether the row id `id` is in `rows`; false for NULL.
pub fn in_rows(rows: &RowSet, id: Expr) -> Expr {
    in_keys(&Arc::new(KeySet::of_rows(rows)), vec![id])
}

/// Whether a function is one of those that look at keys: they give the same result wherever they run, and never fail.
pub fn is_of_keys(function: &ScalarUDF) -> bool {
    let function = function.inner();
    function.is::<InKeys>() || function.is::<OneZero>()
}

/// The keys that a function looks for, if it is one of [`in_keys`].
pub fn keys_looked_for(function: &ScalarUDF) -> Option<&Arc<KeySet>> {
    let function: Option<&InKeys> = function.inner().downcast_ref();
    function.map(|function| &function.keys)
}

/// Makes 0.0 of -0.0.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OneZero {
    signature: Signature,
}

impl ScalarUDFImpl for OneZero {
    fn name(&self) -> &str {
        "one_zero"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Null))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut columns = ColumnarValue::values_to_arrays(&args.args)?;
        let column = columns.pop().map(|column| canonical(&column));
        column
            .map(ColumnarValue::Array)
            .ok_or_else(|| DataFusionError::Internal("one_zero() of nothing".to_string()))
    }
}

/// Writes functions over keys for other processes.
#[derive(Debug)]
pub struct KeyFunctions;

/// What [`KeyFunctions`] writes of [`one_zero`]; of [`in_keys`] it writes the number of columns and the set.
const ONE_ZERO: &[u8] = b"one_zero";

impl FunctionCodec for KeyFunctions {
    fn kind(&self) -> &'static str {
        "keys"
    }

    fn encode(&self, function: &ScalarUDF) -> Option<crate::Result<Vec<u8>>> {
        if function.inner().is::<OneZero>() {
            return Some(Ok(ONE_ZERO.to_vec()));
        }
        let function: &InKeys = function.inner().downcast_ref()?;
        let columns = match function.signature.type_signature {
            TypeSignature::Any(columns) => columns as u32,
            _ => return None,
        };
        let mut bytes = columns.to_le_bytes().to_vec();
        bytes.extend(function.keys.write());
        Some(Ok(bytes))
    }

    fn decode(&self, description: &[u8]) -> crate::Result<ScalarUDF> {
        if description == ONE_ZERO {
            let signature = Signature::any(1, Volatility::Immutable);
            return Ok(ScalarUDF::new_from_impl(OneZero { signature }));
        }
        let (columns, keys) = description
            .split_first_chunk::<4>()
            .ok_or_else(|| crate::Error::internal("a function over keys can't be read"))?;
        let columns = u32::from_le_bytes(*columns) as usize;
        Ok(ScalarUDF::new_from_impl(InKeys {
            keys: Arc::new(KeySet::read(keys)?),
            signature: Signature::any(columns, Volatility::Immutable),
        }))
    }
}

/// `key` with one value for 0.0 and -0.0, and one for all NaN.
pub fn one_zero(key: Expr, schema: &DFSchema) -> Result<Expr> {
    Ok(match key.get_type(schema)? {
        DataType::Float32 | DataType::Float64 => {
            let signature = Signature::any(1, Volatility::Immutable);
            ScalarUDF::new_from_impl(OneZero { signature }).call(vec![key])
        }
        _ => key,
    })
}
