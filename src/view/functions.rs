//! Functions of views, as other processes get them.

use datafusion::arrow::datatypes::DataType;
use datafusion::logical_expr::ScalarUDF;
use serde::{Deserialize, Serialize};

use super::options::Shuffle;
use super::signed::DecimalMean;
use crate::engine::deferred::FunctionCodec;
use crate::{Error, Result};

/// Writes the functions of views for other processes.
#[derive(Debug)]
pub struct ViewFunctions;

#[derive(Debug, Serialize, Deserialize)]
enum Written {
    /// The precision and the scale of what it gives.
    DecimalMean(u8, i8),
    /// The seed.
    Shuffle(u64),
}

impl FunctionCodec for ViewFunctions {
    fn kind(&self) -> &'static str {
        "views"
    }

    fn encode(&self, function: &ScalarUDF) -> Option<Result<Vec<u8>>> {
        let inner = function.inner();
        let written = if let Some(mean) = inner.downcast_ref::<DecimalMean>() {
            match mean.data_type() {
                DataType::Decimal128(precision, scale) => Written::DecimalMean(*precision, *scale),
                _ => return None,
            }
        } else {
            Written::Shuffle(inner.downcast_ref::<Shuffle>()?.seed())
        };
        Some(serde_json::to_vec(&written).map_err(|error| Error::internal(error.to_string())))
    }

    fn decode(&self, description: &[u8]) -> Result<ScalarUDF> {
        let written = serde_json::from_slice(description).map_err(|error| {
            Error::internal("a function of a view can't be read").with_source(error)
        })?;
        Ok(match written {
            Written::DecimalMean(precision, scale) => {
                ScalarUDF::new_from_impl(DecimalMean::new(DataType::Decimal128(precision, scale)))
            }
            Written::Shuffle(seed) => ScalarUDF::new_from_impl(Shuffle::new(seed)),
        })
    }
}
