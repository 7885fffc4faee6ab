//! What calls of users' functions take: measured while a job runs, kept for those who ask what the next will cost.
//!
//! `_headwater/function-calls/<digest of the name>.json` says what the last job measured that called a function.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datafusion::arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::Result as DataFusionResult;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::is_users;
use crate::database::Database;
use crate::{Error, Result};

const FOLDER: &str = "function-calls";

/// Counts calls and their time, by function; shared by all that work for a job.
#[derive(Debug, Default)]
pub struct Meter {
    functions: Mutex<BTreeMap<String, (u64, Duration)>>,
}

impl Meter {
    fn functions(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Duration)>> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, function: &str, calls: u64, time: Duration) {
        let mut functions = self.functions();
        let so_far = functions.entry(function.to_string()).or_default();
        *so_far = (so_far.0 + calls, so_far.1 + time);
    }

    /// Calls by now and their nanoseconds, by function.
    pub(crate) fn reading(&self) -> BTreeMap<String, (u64, u64)> {
        let functions = self.functions();
        let functions = functions.iter().map(|(function, (calls, time))| {
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            (function.clone(), (*calls, nanoseconds))
        });
        functions.collect()
    }

    /// Adds what another process counted between two moments.
    pub(crate) fn absorb(
        &self,
        before: &BTreeMap<String, (u64, u64)>,
        now: &BTreeMap<String, (u64, u64)>,
    ) {
        for (function, (calls, nanoseconds)) in now {
            let (calls_before, nanoseconds_before) =
                before.get(function).copied().unwrap_or((0, 0));
            self.add(
                function,
                calls.saturating_sub(calls_before),
                Duration::from_nanos(nanoseconds.saturating_sub(nanoseconds_before)),
            );
        }
    }
}

/// What the calls of a function took in a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The function.
    pub function: String,
    /// The job.
    pub job: String,
    /// For how many rows it was called.
    pub calls: u64,
    /// Seconds that these took, of all workers together.
    pub seconds: f64,
}

impl Measured {
    /// Seconds of a call for one row.
    pub fn seconds_per_call(&self) -> f64 {
        self.seconds / self.calls.max(1) as f64
    }
}

fn path(function: &str) -> String {
    let digest = format!("{:x}", Sha256::digest(function));
    format!("{FOLDER}/{}.json", &digest[..16])
}

/// Keeps what was measured in `job`.
///
/// # Errors
///
/// If the store fails.
pub async fn record(database: &Database, job: &str, meter: &Meter) -> Result<()> {
    let functions = std::mem::take(&mut *meter.functions());
    for (function, (calls, time)) in functions {
        let measured = Measured {
            job: job.to_string(),
            calls,
            seconds: time.as_secs_f64(),
            function,
        };
        let text = serde_json::to_string(&measured)
            .map_err(|error| Error::internal(format!("a figure can't be written: {error}")))?;
        let root = database.root();
        root.replace_own(&path(&measured.function), text).await?;
    }
    Ok(())
}

/// What calls of `function` took in the last job that made any; `None` if there was none, or a newer release wrote it.
///
/// # Errors
///
/// If the store fails.
pub async fn measured(database: &Database, function: &str) -> Result<Option<Measured>> {
    let Some(bytes) = database.root().read_own(&path(function)).await? else {
        return Ok(None);
    };
    let measured: Option<Measured> = serde_json::from_slice(&bytes).ok();
    Ok(measured.filter(|measured| measured.function == function))
}

/// `expression`, which counts in `meter` what its calls of users' functions take.
///
/// # Errors
///
/// None in practice: the calls are those that were planned.
pub fn metered(
    expression: Arc<dyn PhysicalExpr>,
    meter: &Arc<Meter>,
) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
    let metered = expression.transform(|part| {
        let Some(call) = part.downcast_ref::<ScalarFunctionExpr>() else {
            return Ok(Transformed::no(part));
        };
        // Others are evaluated elsewhere.
        let function = call.fun();
        if !is_users(function.name()) || function.as_async().is_some() {
            return Ok(Transformed::no(part));
        }
        let metered = MeteredFunction {
            function: function.clone(),
            meter: Arc::clone(meter),
        };
        let call = ScalarFunctionExpr::new(
            call.name(),
            Arc::new(ScalarUDF::from(metered)),
            call.args().to_vec(),
            part.return_field(&Schema::empty())?,
            Arc::new(call.config_options().clone()),
        );
        Ok(Transformed::yes(Arc::new(call) as _))
    })?;
    Ok(metered.data)
}

/// A function that counts its calls.
#[derive(Debug)]
struct MeteredFunction {
    function: ScalarUDF,
    meter: Arc<Meter>,
}

impl PartialEq for MeteredFunction {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function
    }
}

impl Eq for MeteredFunction {}

impl Hash for MeteredFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.hash(state);
    }
}

impl ScalarUDFImpl for MeteredFunction {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        self.function.return_type(types)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> DataFusionResult<FieldRef> {
        self.function.return_field_from_args(arguments)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let is_array = |argument: &ColumnarValue| matches!(argument, ColumnarValue::Array(_));
        // A call of constants is one, for however many rows.
        let calls = match arguments.args.is_empty() || arguments.args.iter().any(is_array) {
            true => arguments.number_rows as u64,
            false => 1,
        };
        let began = Instant::now();
        let result = self.function.invoke_with_args(arguments);
        self.meter.add(self.name(), calls, began.elapsed());
        result
    }
}
