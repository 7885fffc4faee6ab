//! `blob_size(blob)` and `blob_read(blob [, offset, length])`.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::{Arc, LazyLock};
use std::thread;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, new_null_array};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{DataFusionError, Result as DataFusionResult, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use lance_io::object_store::WrappingObjectStore;
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

use crate::engine::deferred::FunctionCodec;
use crate::storage::StoreSettings;
use crate::storage::blob::{BlobReader, Part, is_descriptor};
use crate::{Error, Result};

/// The name of the function that gives the bytes of a blob.
pub const BLOB_READ: &str = "blob_read";

/// The functions over blobs, which read with `reader`.
pub fn blob_functions(reader: &Arc<BlobReader>) -> Vec<ScalarUDF> {
    [Function::Size, Function::Read]
        .into_iter()
        .map(|function| {
            ScalarUDF::from(BlobFunction {
                function,
                reader: Arc::clone(reader),
                // The same descriptor has the same bytes for ever.
                signature: Signature::variadic_any(Volatility::Immutable),
            })
        })
        .collect()
}

/// Writes the functions over blobs for other processes.
#[derive(Debug)]
pub struct BlobFunctions {
    wrapper: Wrapper,
}

/// What is put around each store.
#[derive(Clone)]
struct Wrapper(Option<Arc<dyn WrappingObjectStore>>);

impl fmt::Debug for Wrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapper").finish_non_exhaustive()
    }
}

impl BlobFunctions {
    /// With `wrapper` around each store that they open.
    pub fn new(wrapper: Option<Arc<dyn WrappingObjectStore>>) -> Self {
        Self {
            wrapper: Wrapper(wrapper),
        }
    }
}

impl FunctionCodec for BlobFunctions {
    fn kind(&self) -> &'static str {
        "blobs"
    }

    fn encode(&self, function: &ScalarUDF) -> Option<Result<Vec<u8>>> {
        let function: &BlobFunction = function.inner().downcast_ref()?;
        let written = (function.name(), function.reader.options());
        Some(serde_json::to_vec(&written).map_err(|error| Error::internal(error.to_string())))
    }

    fn decode(&self, description: &[u8]) -> Result<ScalarUDF> {
        let unreadable = || Error::internal("a function over blobs can't be read");
        let (name, options): (String, HashMap<String, String>) =
            serde_json::from_slice(description).map_err(|error| unreadable().with_source(error))?;
        let settings = StoreSettings::new(options, self.wrapper.0.clone());
        let reader = Arc::new(BlobReader::with_caches(settings));
        let mut functions = blob_functions(&reader).into_iter();
        functions
            .find(|function| function.name() == name)
            .ok_or_else(unreadable)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Function {
    Size,
    Read,
}

#[derive(Debug)]
struct BlobFunction {
    function: Function,
    reader: Arc<BlobReader>,
    signature: Signature,
}

impl PartialEq for BlobFunction {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function && Arc::ptr_eq(&self.reader, &other.reader)
    }
}

impl Eq for BlobFunction {}

impl Hash for BlobFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.hash(state);
    }
}

impl ScalarUDFImpl for BlobFunction {
    fn name(&self) -> &str {
        match self.function {
            Function::Size => "blob_size",
            Function::Read => BLOB_READ,
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        let name = self.name();
        let (usage, fits) = match self.function {
            Function::Size => ("blob_size(blob)", types.len() == 1),
            Function::Read => (
                "blob_read(blob) or blob_read(blob, offset, length)",
                types.len() == 1 || types.len() == 3,
            ),
        };
        let refuse = |message: String| {
            let error = Error::invalid(message).with_hint(format!("it is called as {usage}"));
            Err(DataFusionError::from(error))
        };
        let (Some((blob, range)), true) = (types.split_first(), fits) else {
            return refuse(format!(
                "{name} is not called with {} arguments",
                types.len()
            ));
        };
        if !is_descriptor(blob) && *blob != DataType::Null {
            return refuse(format!("{name} takes a column of type BLOB, not {blob}"));
        }
        if let Some(other) = range.iter().find(|t| !t.is_integer() && !t.is_null()) {
            return refuse(format!(
                "offset and length of {name} are integers, not {other}"
            ));
        }
        Ok(match self.function {
            Function::Size => DataType::Int64,
            Function::Read => DataType::LargeBinary,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let all_scalars = args
            .args
            .iter()
            .all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if all_scalars { 1 } else { args.number_rows };
        let arrays = args
            .args
            .iter()
            .map(|arg| arg.to_array(rows))
            .collect::<DataFusionResult<Vec<_>>>()?;
        let blobs = arrays.first().and_then(|array| array.as_struct_opt());
        let result: ArrayRef = match blobs.filter(|blobs| blobs.null_count() < rows) {
            // Only NULLs, or the word itself.
            None => new_null_array(args.return_field.data_type(), rows),
            Some(blobs) => match self.function {
                Function::Size => {
                    let sizes = wait(self.reader.sizes(blobs))??;
                    let sizes = sizes
                        .into_iter()
                        .map(|size| size.map(|size| i64::try_from(size).unwrap_or(i64::MAX)));
                    Arc::new(sizes.collect::<Int64Array>())
                }
                Function::Read => {
                    let parts = parts(&arrays[1..], rows)?;
                    Arc::new(wait(self.reader.read(blobs, &parts))??)
                }
            },
        };
        Ok(match all_scalars {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?),
            false => ColumnarValue::Array(result),
        })
    }
}

/// The part of each row's blob that is asked for; `None` where offset or length is NULL.
fn parts(range: &[ArrayRef], rows: usize) -> DataFusionResult<Vec<Option<Part>>> {
    let [offsets, lengths] = range else {
        return Ok(vec![Some(Part::default()); rows]);
    };
    let strict = CastOptions {
        safe: false,
        ..Default::default()
    };
    let offsets = cast_with_options(offsets, &DataType::Int64, &strict)?;
    let lengths = cast_with_options(lengths, &DataType::Int64, &strict)?;
    let (offsets, lengths) = (
        offsets.as_primitive::<Int64Type>(),
        lengths.as_primitive::<Int64Type>(),
    );
    let counted = |what: &str, value: i64| {
        u64::try_from(value).map_err(|_| {
            Error::invalid(format!(
                "the {what} of blob_read can't be negative: {value}"
            ))
            .with_hint("the offset counts bytes from 0")
        })
    };
    (0..rows)
        .map(|row| {
            if offsets.is_null(row) || lengths.is_null(row) {
                return Ok(None);
            }
            Ok(Some(Part {
                offset: counted("offset", offsets.value(row))?,
                length: Some(counted("length", lengths.value(row))?),
            }))
        })
        .collect()
}

/// Waits for `future` in a function that can't be async: DataFusion's async functions stand only in
/// projections and filters, not in aggregates or in the expressions of columns.
///
/// On a runtime of many threads, the other tasks of this thread move to another one meanwhile. A
/// runtime of one thread has nobody else to move them to, nor to drive the reading, so that
/// is done by a runtime of our own.
fn wait<F>(future: F) -> Result<F::Output>
where
    F: Future + Send,
    F::Output: Send,
{
    static READING: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("headwater-blobs")
            .enable_all()
            .build()
    });
    if let Ok(handle) = Handle::try_current()
        && handle.runtime_flavor() == RuntimeFlavor::MultiThread
    {
        return Ok(tokio::task::block_in_place(|| handle.block_on(future)));
    }
    let runtime = READING
        .as_ref()
        .map_err(|error| Error::internal(format!("no threads to read blobs with: {error}")))?;
    thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join())
        .map_err(|_| Error::internal("reading blobs gave up"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn slow_answer() -> i32 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        tokio::spawn(async { 42 }).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn waiting_works_on_a_runtime_of_many_threads() {
        let task = tokio::spawn(async { wait(slow_answer()).unwrap() });
        assert_eq!(task.await.unwrap(), 42);
    }

    #[tokio::test]
    async fn waiting_works_on_a_runtime_of_one_thread() {
        assert_eq!(wait(slow_answer()).unwrap(), 42);
    }

    #[test]
    fn waiting_works_without_a_runtime() {
        assert_eq!(wait(slow_answer()).unwrap(), 42);
    }
}
