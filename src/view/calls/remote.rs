//! Calls that executors of a cluster make.
//!
//! Which rows need a call, what is kept of it and what becomes of failures is decided where the job is driven, as it is
//! without a cluster. What is sent is a few rows of arguments with the expressions over them; what comes back is their
//! values, or why a row failed. An executor that is lost takes no more with it than the rows that it was given.

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray, new_null_array,
};
use datafusion::arrow::compute::{cast, concat};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::common::DFSchema;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;
use serde::{Deserialize, Serialize};

use super::evaluate::{Evaluated, Evaluator, Failure};
use super::{Calls, value_name};
use crate::engine::ballista::{Cluster, Purpose};
use crate::engine::deferred::{Codecs, DeferredExec, NodeCodec};
use crate::engine::function::{read_expression, write_expression};
use crate::engine::wire::{
    find_error, read_message, read_schema, write_error, write_message, write_schema,
};
use crate::job::admission::until_done;
use crate::job::counters::{Counters, Reading};
use crate::storage::scan::slice_bytes;
use crate::{Error, Result};

/// The name of the kind of node.
const KIND: &str = "calls";
/// Bytes of arguments that are sent at once, if a row is not larger.
const SENT_BYTES: usize = 16 << 20;
/// How long one evaluation on an executor should take: what is around it takes some hundredths of a second, and a job
/// that is told to stop should be through soon.
pub(in crate::view) const EVALUATION: Duration = Duration::from_secs(1);

/// The head of what is sent; behind it are the arguments as an Arrow IPC stream.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    /// What the expressions read.
    inputs: String,
    /// What they give.
    values: String,
    /// The expressions, in base64.
    expressions: Vec<String>,
    /// Whether rows that fail do not end it.
    goes_on: bool,
}

/// What it came to, beside the values.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    /// Rows of which no expression failed; `None` if that is all.
    good: Option<Vec<u32>>,
    /// What failed: the place of the expression, the row, and the error.
    failed: Vec<(usize, u32, String)>,
    /// Whether a failure ended it.
    is_ended: bool,
    /// What was counted.
    counted: Reading,
    /// How long it took.
    time: Duration,
}

/// Where calls are made.
#[derive(Debug)]
pub(in crate::view) struct Remote {
    pub(in crate::view) cluster: Arc<Cluster>,
    /// Whose work it is.
    pub(in crate::view) purpose: Purpose,
}

impl Remote {
    /// Tasks that the executors run at once which make calls; 0 where that can't be told.
    pub(super) async fn slots(&self) -> usize {
        let slots = self.cluster.slots(self.purpose.pool.as_deref()).await;
        slots.unwrap_or_default()
    }

    /// As [`Evaluator::evaluate`] for rows of `calls`, and how long it took.
    pub(super) async fn evaluate(
        &self,
        calls: &Calls,
        evaluator: &Evaluator,
        places: &[usize],
        inputs: &RecordBatch,
        goes_on: bool,
    ) -> Result<(Evaluated, Duration)> {
        let mut all: Vec<Evaluated> = Vec::new();
        let mut time = Duration::ZERO;
        // Parts that are left, the first of them last.
        let mut left = vec![(0, inputs.num_rows())];
        while let Some((start, rows)) = left.pop() {
            let part = compacted(&inputs.slice(start, rows))?;
            if rows > 1 && part.columns().iter().map(slice_bytes).sum::<usize>() > SENT_BYTES {
                let half = rows / 2;
                left.push((start + half, rows - half));
                left.push((start, half));
                continue;
            }
            let sent = self.send(calls, evaluator, places, &part, goes_on);
            let (mut evaluated, took) = sent.await?;
            time += took;
            let start = start as u32;
            evaluated.good.iter_mut().for_each(|row| *row += start);
            evaluated.failed.iter_mut().for_each(|at| at.row += start);
            let is_ended = evaluated.values.is_empty();
            all.push(evaluated);
            if is_ended {
                break;
            }
        }
        if all.len() == 1
            && let Some(one) = all.pop()
        {
            return Ok((one, time));
        }
        let is_ended = all.iter().any(|part| part.values.is_empty());
        let count = match is_ended {
            true => 0,
            false => places.len(),
        };
        let values = (0..count).map(|place| {
            let parts: Vec<&dyn Array> =
                all.iter().map(|part| part.values[place].as_ref()).collect();
            concat(&parts)
        });
        let values = values.collect::<Result<_, _>>()?;
        let (mut good, mut failed) = (Vec::new(), Vec::new());
        for part in all {
            good.extend(part.good);
            failed.extend(part.failed);
        }
        let evaluated = Evaluated {
            values,
            good,
            failed,
        };
        Ok((evaluated, time))
    }

    async fn send(
        &self,
        calls: &Calls,
        evaluator: &Evaluator,
        places: &[usize],
        inputs: &RecordBatch,
        goes_on: bool,
    ) -> Result<(Evaluated, Duration)> {
        let codecs = self.cluster.codecs();
        let (mut fields, mut expressions) = (Vec::new(), Vec::new());
        for (at, place) in places.iter().enumerate() {
            let (expression, data_type) = evaluator.expression(*place);
            fields.push(Field::new(value_name(at), data_type.clone(), true));
            expressions.push(BASE64.encode(write_expression(expression, codecs)?));
        }
        let text = format!("Calls: {} rows", inputs.num_rows());
        let description = Description {
            inputs: write_schema(evaluator.schema().inner())?,
            values: write_schema(&Schema::new(fields.clone()))?,
            expressions,
            goes_on,
        };
        let mut arguments = Vec::new();
        let mut writer = StreamWriter::try_new(&mut arguments, &inputs.schema())?;
        writer.write(inputs)?;
        writer.finish()?;
        drop(writer);
        let mut bytes = Vec::new();
        write_message(&description, &arguments, &mut bytes)?;
        let node = DeferredExec::new(
            KIND,
            bytes,
            output_schema(&fields),
            vec![Some(inputs.num_rows() as u64)],
        );
        let node = Arc::new(node.with_text(text));
        let config = evaluator.state().config();
        let attempt = || {
            self.cluster
                .run(Arc::clone(&node) as _, config, &self.purpose)
        };
        let rows = until_done(&calls.signal, attempt).await?;
        let (outcome, values) = read_outcome(&rows, places.len())?;
        calls.counters.absorb(&Reading::default(), &outcome.counted);
        let failed = outcome.failed.into_iter().map(|(place, row, error)| {
            let error = find_error(&error);
            Failure {
                place,
                row,
                error: error.unwrap_or_else(|| Error::internal("a call failed without a reason")),
            }
        });
        let evaluated = Evaluated {
            values: match outcome.is_ended {
                true => Vec::new(),
                false => values,
            },
            good: match outcome.good {
                Some(good) => good,
                None => (0..inputs.num_rows() as u32).collect(),
            },
            failed: failed.collect(),
        };
        Ok((evaluated, outcome.time))
    }
}

/// A part of a batch without values of other parts, which views share with it.
fn compacted(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| {
        let gc: Option<ArrayRef> = match column.data_type() {
            DataType::Utf8View => column
                .as_string_view_opt()
                .map(|view| Arc::new(view.gc()) as _),
            DataType::BinaryView => column
                .as_binary_view_opt()
                .map(|view| Arc::new(view.gc()) as _),
            _ => None,
        };
        gc.unwrap_or_else(|| Arc::clone(column))
    });
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = columns.collect();
    Ok(RecordBatch::try_new_with_options(
        batch.schema(),
        columns,
        &rows,
    )?)
}

/// The outcome, in the first row, beside the values.
fn output_schema(values: &[Field]) -> SchemaRef {
    let outcome = Field::new("__outcome", DataType::Utf8, true);
    let values = values.iter().cloned();
    Arc::new(Schema::new(
        [outcome].into_iter().chain(values).collect::<Vec<_>>(),
    ))
}

fn read_outcome(batches: &[RecordBatch], columns: usize) -> Result<(Outcome, Vec<ArrayRef>)> {
    let broken = || Error::internal("what calls gave can't be read");
    let first = batches.iter().find(|batch| batch.num_rows() > 0);
    let outcome = first.and_then(|batch| batch.column(0).as_string_opt::<i32>());
    let outcome = outcome
        .filter(|texts| texts.is_valid(0))
        .ok_or_else(broken)?;
    let outcome = serde_json::from_str(outcome.value(0));
    let outcome = outcome.map_err(|error| broken().with_source(error))?;
    let values = (0..columns).map(|place| {
        let parts = batches.iter().map(|batch| batch.column(1 + place).as_ref());
        Ok(concat(&parts.collect::<Vec<_>>())?)
    });
    Ok((outcome, values.collect::<Result<_>>()?))
}

/// Makes calls for other processes.
#[derive(Debug)]
pub struct CallCodec;

impl NodeCodec for CallCodec {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn execute(
        self: Arc<Self>,
        description: &[u8],
        _: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let (description, arguments) = read_message::<Description>(description)?;
        let arguments = arguments.to_vec();
        let values = read_schema(&description.values)?;
        let fields: Vec<Field> = values.fields().iter().map(|f| f.as_ref().clone()).collect();
        let schema = output_schema(&fields);
        let given = Arc::clone(&schema);
        let rows = stream::once(async move {
            Ok(evaluate(
                &description,
                &arguments,
                &fields,
                given,
                &context,
            )?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Evaluates what was sent.
fn evaluate(
    description: &Description,
    arguments: &[u8],
    values: &[Field],
    schema: SchemaRef,
    context: &TaskContext,
) -> Result<RecordBatch> {
    let broken = |what: String| Error::internal(format!("calls can't be read: {what}"));
    let codecs = context.session_config().get_extension::<Codecs>();
    let codecs = codecs.unwrap_or_default();
    let expressions = description.expressions.iter().map(|text| {
        let bytes = BASE64
            .decode(text)
            .map_err(|error| broken(error.to_string()))?;
        read_expression(&bytes, &codecs, context)
    });
    let expressions = expressions.collect::<Result<Vec<_>>>()?;
    let inputs = StreamReader::try_new(Cursor::new(arguments), None)?.next();
    let inputs = inputs.ok_or_else(|| broken("there are no arguments".to_string()))??;
    let state = SessionStateBuilder::new()
        .with_config(context.session_config().clone())
        .with_runtime_env(context.runtime_env())
        .with_default_features()
        .build();
    let read = read_schema(&description.inputs)?;
    let types = values.iter().map(|field| field.data_type().clone());
    let counters = Counters::default();
    let evaluator = Evaluator::new(
        state,
        Arc::new(DFSchema::try_from(read)?),
        expressions,
        types.collect(),
        Arc::clone(counters.meter()),
    );
    let places: Vec<usize> = (0..values.len()).collect();
    let began = Instant::now();
    let evaluated = evaluator.evaluate(&places, &inputs, description.goes_on)?;
    let is_ended = evaluated.values.is_empty();
    let failed = evaluated.failed.iter();
    let outcome = Outcome {
        good: (evaluated.good.len() < inputs.num_rows()).then_some(evaluated.good),
        failed: failed
            .map(|at| (at.place, at.row, write_error(&at.error)))
            .collect(),
        is_ended,
        counted: counters.reading(),
        time: began.elapsed(),
    };
    let outcome = serde_json::to_string(&outcome).map_err(|error| broken(error.to_string()))?;
    let rows = match is_ended {
        true => 1,
        false => inputs.num_rows(),
    };
    let outcome = StringArray::from_iter((0..rows).map(|row| (row == 0).then_some(&outcome)));
    let mut columns: Vec<ArrayRef> = vec![Arc::new(outcome)];
    for (at, field) in values.iter().enumerate() {
        columns.push(match evaluated.values.get(at) {
            Some(values) => cast(values, field.data_type())?,
            None => new_null_array(field.data_type(), rows),
        });
    }
    Ok(RecordBatch::try_new(schema, columns)?)
}
