//! Scalar functions whose calls a test can see: each gives its first argument back.
//!
//! - `count_calls(x)` appends one line for each row to a file,
//! - `sleep_ms(x, ms)` sleeps so many milliseconds for each row,
//! - `fail_if(x, v)` fails on the first row where x = v,
//! - `fail_while(x, v, file)` does so as long as there is such a file.
//!
//! They claim to be immutable, as the functions that they stand for do, so a column
//! may be computed with them and a constant call may be folded away.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::compute::kernels::cmp;
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use headwater::engine::deferred::FunctionCodec;

/// All functions. `count_calls` writes to `calls`, and fails if that is `None`.
pub fn all(calls: Option<PathBuf>) -> Vec<ScalarUDF> {
    [
        ("count_calls", 1, Effect::Count(calls)),
        ("sleep_ms", 2, Effect::Sleep),
        ("fail_if", 2, Effect::Fail),
        ("fail_while", 3, Effect::FailWhile),
    ]
    .into_iter()
    .map(|(name, arguments, effect)| {
        ScalarUDF::new_from_impl(Function {
            name,
            signature: Signature::any(arguments, Volatility::Immutable),
            effect,
        })
    })
    .collect()
}

/// Sends `count_calls` to executors with the file that it writes to.
#[derive(Debug)]
pub struct CallsCodec;

impl FunctionCodec for CallsCodec {
    fn kind(&self) -> &'static str {
        "count_calls"
    }

    fn encode(&self, function: &ScalarUDF) -> Option<headwater::Result<Vec<u8>>> {
        match &function.inner().downcast_ref::<Function>()?.effect {
            Effect::Count(Some(calls)) => Some(Ok(calls.display().to_string().into_bytes())),
            _ => None,
        }
    }

    fn decode(&self, description: &[u8]) -> headwater::Result<ScalarUDF> {
        let calls = PathBuf::from(String::from_utf8_lossy(description).into_owned());
        let mut functions = all(Some(calls)).into_iter();
        functions
            .next()
            .ok_or_else(|| headwater::Error::internal("there are no functions"))
    }
}

/// What a function does besides giving back its first argument.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Effect {
    Count(Option<PathBuf>),
    Sleep,
    Fail,
    FailWhile,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    name: &'static str,
    signature: Signature,
    effect: Effect,
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments.first() {
            Some(first) => Ok(first.clone()),
            None => plan_err!("{} needs an argument", self.name),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = arguments
            .args
            .iter()
            .map(|argument| argument.to_array(arguments.number_rows))
            .collect::<Result<Vec<_>>>()?;
        match &self.effect {
            Effect::Count(Some(calls)) => count(&arrays[0], calls)?,
            Effect::Count(None) => return exec_err!("count_calls: HEADWATER_CALLS names no file"),
            Effect::Sleep => sleep(&arrays[1])?,
            Effect::Fail => fail(&arrays[0], &arrays[1])?,
            Effect::FailWhile => {
                let files = cast(&arrays[2], &DataType::Utf8)?;
                let mut files = files.as_string::<i32>().iter().flatten();
                if files.next().is_some_and(|file| Path::new(file).exists()) {
                    fail(&arrays[0], &arrays[1])?;
                }
            }
        }
        Ok(ColumnarValue::Array(ArrayRef::clone(&arrays[0])))
    }
}

/// Appends the values in one write, so that the lines of two threads never mix.
fn count(values: &ArrayRef, calls: &PathBuf) -> Result<()> {
    let options = FormatOptions::default().with_null("NULL");
    let formatter = ArrayFormatter::try_new(values, &options)?;
    let mut lines = String::new();
    for row in 0..values.len() {
        lines.push_str(&formatter.value(row).to_string());
        lines.push('\n');
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(calls)?
        .write_all(lines.as_bytes())?;
    Ok(())
}

fn sleep(milliseconds: &ArrayRef) -> Result<()> {
    let milliseconds = cast(milliseconds, &DataType::UInt64)?;
    let total = milliseconds
        .as_primitive::<UInt64Type>()
        .iter()
        .flatten()
        .sum();
    thread::sleep(Duration::from_millis(total));
    Ok(())
}

fn fail(values: &ArrayRef, unwanted: &ArrayRef) -> Result<()> {
    let unwanted = cast(unwanted, values.data_type())?;
    let equal = cmp::eq(values, &unwanted)?;
    let Some(row) = equal.iter().position(|equal| equal == Some(true)) else {
        return Ok(());
    };
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(values, &options)?;
    exec_err!("fail_if: the value is {}", formatter.value(row))
}
