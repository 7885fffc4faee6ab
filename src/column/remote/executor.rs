//! Groups of units, as an executor computes them for a driver.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::execution::{FunctionRegistry, SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{TryStreamExt, stream};
use serde_json::Value;

use super::{Description, GROUP_TIME, KIND, Outcome, output_schema};
use crate::column::assess::{Column, Rows};
use crate::column::computation::Computation;
use crate::column::staged::{Sought, Staged, Staging};
use crate::column::work::{Pace, Work};
use crate::column::write::written_units;
use crate::engine::deferred::{Codecs, NodeCodec};
use crate::engine::function::read_function;
use crate::engine::units::{self, Units};
use crate::engine::wire::write_error;
use crate::job::counters::Counters;
use crate::job::environment::Environment;
use crate::job::signal::{Signal, Signaller};
use crate::storage::column_file::SplitFile;
use crate::{Error, ErrorKind, Result};

/// Opens databases for work of others.
#[async_trait]
pub trait Opener: fmt::Debug + Send + Sync {
    /// What work on the database at `url` runs in.
    async fn open(&self, url: &str, options: &HashMap<String, String>) -> Result<Environment>;
}

/// Runs groups of units that other processes send.
#[derive(Debug)]
pub struct UnitCodec {
    opener: Arc<dyn Opener>,
}

impl UnitCodec {
    /// With databases that `opener` opens.
    pub fn new(opener: Arc<dyn Opener>) -> Self {
        Self { opener }
    }
}

impl NodeCodec for UnitCodec {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn execute(
        self: Arc<Self>,
        description: &[u8],
        _: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let description: Description = serde_json::from_slice(description)
            .map_err(|error| Error::internal(format!("units can't be read: {error}")))?;
        let outcome = stream::once(async move {
            let outcome = self.run(description, context).await;
            let outcome = serde_json::to_string(&outcome)
                .map_err(|error| Error::internal(format!("an outcome: {error}")))?;
            let outcome: ArrayRef = Arc::new(StringArray::from(vec![outcome]));
            Ok(RecordBatch::try_new(output_schema(), vec![outcome])?)
        });
        let outcome = RecordBatchStreamAdapter::new(output_schema(), outcome);
        Ok(Box::pin(outcome))
    }
}

impl UnitCodec {
    async fn run(&self, description: Description, context: Arc<TaskContext>) -> Outcome {
        let running = Arc::new(Running::default());
        let units = context.session_config().get_extension::<Units>();
        let _begun = units.map(|units| {
            units.begin(
                &description.token,
                Arc::clone(&running) as Arc<dyn units::Unit>,
            )
        });
        let mut done = Done::default();
        let ended = Box::pin(self.write(description, &running, context, &mut done)).await;
        Outcome {
            files: done.files,
            error: ended.err().map(|error| write_error(&error)),
            counted: running.counters.reading(),
            time: done.time,
        }
    }

    /// Computes units one after the other, and writes them, as long as there is time.
    async fn write(
        &self,
        description: Description,
        running: &Running,
        context: Arc<TaskContext>,
        done: &mut Done,
    ) -> Result<()> {
        let Description {
            database,
            storage_options,
            units,
            job,
            ..
        } = &description;
        let environment = self.opener.open(database, storage_options).await?;
        let mut state = environment.state.clone();
        let codecs = context.session_config().get_extension::<Codecs>();
        let codecs = codecs.unwrap_or_default();
        for (name, text) in &description.functions {
            let bytes = BASE64.decode(text).map_err(|error| {
                Error::internal(format!("function '{name}' can't be read: {error}"))
            })?;
            state.register_udf(read_function(&codecs, name, &bytes))?;
        }
        let state = &state;
        let database = Arc::clone(&environment.database);
        let version = Some(description.version);
        let mut table = database.table_at(&description.table, version).await?;
        if table.dataset.manifest().timestamp_nanos != description.made {
            // What is cached is of a table that was there before.
            database.root().forget();
            table = database.table_at(&description.table, version).await?;
        }
        if table.dataset.manifest().timestamp_nanos != description.made {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("table '{}' was made anew meanwhile", table.name),
            ));
        }
        let mut columns = Vec::with_capacity(description.columns.len());
        let mut rows = Vec::with_capacity(description.columns.len());
        for described in &description.columns {
            let column = Column::load(state, &table, &described.name)?;
            if column.definition.digest() != described.definition {
                return Err(Error::internal(format!(
                    "column '{}' of table '{}' has another definition here",
                    described.name, table.name
                )));
            }
            columns.push(column);
            rows.push(match &described.rows {
                None => Rows::All,
                Some(rows) => Rows::Some(rows.clone()),
            });
        }
        let names: Vec<&str> = columns.iter().map(Column::name).collect();
        let mut split = HashMap::with_capacity(description.split.len());
        for (fragment, text) in &description.split {
            let file = SplitFile::read(text, &table.name, &table.dataset, &names)?;
            split.insert(*fragment, file);
        }
        let wanted: Vec<&Column> = columns.iter().collect();
        let sought = Sought::Checkpoints(job, &description.staged);
        let staged = Staged::find(&database, &table, &wanted, sought).await?;
        let staging = Staging::new(Arc::clone(&database), &table, &columns, job);
        let work = Work {
            job: job.clone(),
            signal: running.signal.clone(),
            counters: Arc::clone(&running.counters),
            checkpoint_interval: description.checkpoint_interval,
            ledger: environment.jobs.ledger().clone(),
            staging: staging.await?,
            staged: Arc::new(staged),
            counts_reused: description.counts_reused,
            pace: match description.fixed_batches {
                true => Pace::fixed(),
                false => Pace::adaptive(description.checkpoint_interval),
            },
            database,
        };
        let computation = Computation {
            table,
            columns,
            rows,
            keeps_values: description.keeps_values,
        };
        let plan = computation.physical_plan(
            state,
            description.batches,
            units,
            Arc::new(split),
            Some(Arc::new(work)),
        );
        let plan = plan.await?;
        let began = Instant::now();
        for unit in 0..units.len() {
            if unit > 0 && began.elapsed() >= GROUP_TIME {
                break;
            }
            let batches = plan.execute(unit, Arc::clone(&context))?;
            let batches: Vec<RecordBatch> = batches.try_collect().await?;
            let mut written = Vec::new();
            for batch in &batches {
                written.extend(written_units(batch)?);
            }
            let written = written.pop();
            let written = written.ok_or_else(|| Error::internal("a unit wrote nothing"))?;
            done.files.push(written.file);
            done.time = began.elapsed();
        }
        Ok(())
    }
}

/// Units of a group that are written.
#[derive(Default)]
struct Done {
    files: Vec<String>,
    /// How long they took.
    time: Duration,
}

/// A group of units that runs in this process for another.
#[derive(Default)]
struct Running {
    signal: Signaller,
    counters: Arc<Counters>,
}

impl units::Unit for Running {
    fn progress(&self) -> Value {
        serde_json::to_value(self.counters.reading()).unwrap_or(Value::Null)
    }

    fn tell(&self, signal: &Value) {
        if let Ok(signal) = serde_json::from_value::<Signal>(signal.clone()) {
            self.signal.tell(signal);
        }
    }
}
