//! A database as sqllogictest sees it: statements and commands in, rendered rows out.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::concat_batches;
use headwater::client::{Client, Options};
use headwater::session::Headwater;
use headwater::{Error, ErrorKind};
use regex::{Captures, Regex};
use sqllogictest::{AsyncDB, DBOutput};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::functions;
use crate::harness::cluster::executor;
use crate::harness::command::{self, Command};
use crate::harness::daemon::Daemon;
use crate::harness::normalize::Normalizer;
use crate::harness::process::TestShell;
use crate::harness::render::{ColumnKind, Rendered, render, render_value};
use crate::harness::s3::S3;
use crate::harness::scene::Outcome;
use crate::harness::{Engine, Failure, files};

/// A statement that takes longer than this hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);
/// The variable that names a URL below which databases are made instead, such as `s3://bucket/trials`.
const STORE: &str = "HEADWATER_STORE";

/// The folders and variables of one test file; its connections share them.
#[derive(Clone)]
pub struct Place {
    /// Where plans run.
    pub engine: Engine,
    /// `$TMP`: an empty folder for the test's own files.
    pub files: PathBuf,
    /// `$DB`: the root of the database. It is not there until something is written.
    pub database: PathBuf,
    /// `$DATA`: the folder of test data.
    pub data: PathBuf,
    variables: Arc<Mutex<HashMap<String, String>>>,
    bugs: Arc<Mutex<Vec<String>>>,
    /// The object store that the database is in.
    store: Option<Arc<S3>>,
    /// The server of the file with its executors, once there is one.
    server: Arc<OnceCell<OwnServer>>,
    _root: Arc<TempDir>,
}

impl Place {
    /// New empty folders, removed when the last clone is dropped.
    pub fn new(engine: Engine) -> io::Result<Self> {
        let root = TempDir::with_prefix("headwater-")?;
        let path = root.path().canonicalize()?;
        let files = path.join("files");
        fs::create_dir(&files)?;
        let store = match engine {
            Engine::Stored => Some(S3::shared().map_err(io::Error::other)?),
            _ => None,
        };
        let of_variable = env::var_os(STORE).map(PathBuf::from);
        let given = store.as_ref().map(|_| PathBuf::from("s3://bucket"));
        let database = match (given.or(of_variable), path.file_name()) {
            (Some(store), Some(name)) => store.join(name),
            _ => path.join("db"),
        };
        Ok(Self {
            engine,
            files,
            database,
            data: files::root().join("data"),
            variables: Arc::default(),
            bugs: Arc::default(),
            store,
            server: Arc::default(),
            _root: Arc::new(root),
        })
    }

    /// The file that `count_calls` writes.
    pub fn calls(&self) -> PathBuf {
        self.files.with_file_name("calls")
    }

    /// The names that files use for folders, the innermost folder first.
    pub fn folders(&self) -> [(&'static str, &Path); 3] {
        [
            ("DB", &self.database),
            ("TMP", &self.files),
            ("DATA", &self.data),
        ]
    }

    /// Puts folders and variables for `$name` and `${name}`. What is neither stays,
    /// so that `$1` and `$$ … $$` reach the dialect.
    pub fn substitute(&self, text: &str) -> Result<String, Failure> {
        let pattern = Regex::new(r"\$(?:\{(\w+)\}|(\w+))").map_err(Failure::new)?;
        let variables = self.variables();
        let replaced = pattern.replace_all(text, |found: &Captures<'_>| {
            let name = found
                .get(1)
                .or(found.get(2))
                .map_or("", |name| name.as_str());
            self.folders()
                .iter()
                .find(|(folder, _)| *folder == name)
                .map(|(_, path)| path.display().to_string())
                .or_else(|| variables.get(name).cloned())
                .unwrap_or_else(|| found[0].to_string())
        });
        Ok(replaced.into_owned())
    }

    /// The URL of the file's server, which is started with two executors if there is none.
    async fn server(&self) -> Result<&str, Failure> {
        let server = self.server.get_or_try_init(|| OwnServer::start(self)).await;
        server
            .map(|server| server.url.as_str())
            .map_err(Failure::new)
    }

    /// The internal errors since the last call.
    pub fn take_bugs(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock_bugs())
    }

    fn lock_bugs(&self) -> MutexGuard<'_, Vec<String>> {
        self.bugs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn variables(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.variables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server, and the executors of its cluster. They end with it.
struct OwnServer {
    url: String,
    _processes: [Daemon; 3],
}

impl OwnServer {
    async fn start(place: &Place) -> Outcome<Self> {
        let shell = TestShell::new(&place.database, &place.calls());
        let server = Daemon::new(shell.server(&["--cluster-bind", "127.0.0.1:0"])?)?;
        let url = server.url().await?;
        let said = server.until(&["Executors reach it at "]).await?;
        let scheduler = said.split_whitespace().last();
        let scheduler = scheduler.ok_or("it has no scheduler")?.to_string();
        let start = || executor(&scheduler, &["--slots", "1"]);
        let executors = [start()?, start()?];
        for executor in &executors {
            executor.until(&["Executor ready"]).await?;
        }
        let [first, second] = executors;
        Ok(Self {
            url,
            _processes: [server, first, second],
        })
    }
}

tokio::task_local! {
    /// The place of the file that runs, for `system` records, which sqllogictest runs
    /// without a connection.
    static PLACE: Place;
}

/// Runs a file's records with `place` known to its `system` records.
pub async fn within<T>(place: Place, run: impl Future<Output = T>) -> T {
    PLACE.scope(place, run).await
}

/// A session, in this process or on a server.
enum Session {
    Here(Box<Headwater>),
    Server(Box<Client>, Vec<String>),
}

impl Session {
    async fn open(place: &Place) -> Result<Self, Failure> {
        match place.engine {
            Engine::Local | Engine::Cluster | Engine::Stored => {
                Ok(Self::Here(Box::new(open_session(place).await?)))
            }
            Engine::Server => {
                let options = Options::default();
                let client = Client::connect(place.server().await?, &options);
                let client = client.await.map_err(Failure::new)?;
                Ok(Self::Server(Box::new(client), Vec::new()))
            }
        }
    }

    async fn run(&mut self, statement: &str) -> headwater::Result<RecordBatch> {
        let (schema, batches) = match self {
            Self::Here(session) => {
                let frame = session.sql(statement).await?;
                let schema = Arc::new(frame.schema().as_arrow().clone());
                (schema, frame.collect().await.map_err(Error::from)?)
            }
            Self::Server(client, notices) => {
                let rows = client.execute(statement).await?;
                notices.extend(rows.notices().iter().cloned());
                (Arc::clone(rows.schema()), rows.collect().await?)
            }
        };
        // The batches know better than the plan which of their values may be NULL.
        let schema = batches.first().map_or(schema, RecordBatch::schema);
        concat_batches(&schema, &batches).map_err(Error::from)
    }

    fn take_notices(&mut self) -> Vec<String> {
        match self {
            Self::Here(session) => session.take_notices(),
            Self::Server(_, notices) => std::mem::take(notices),
        }
    }
}

/// One connection: a session on the database of the file.
pub struct Database {
    session: Session,
    place: Place,
    normalizer: Normalizer,
}

impl Database {
    /// Opens a session on the file's database.
    pub async fn open(place: Place) -> Result<Self, Failure> {
        Ok(Self {
            session: Session::open(&place).await?,
            normalizer: Normalizer::new(&place)?,
            place,
        })
    }

    async fn execute(&mut self, text: &str) -> Result<DBOutput<ColumnKind>, Failure> {
        let text = self.place.substitute(text)?;
        match Command::parse(&text)? {
            None => self.rows(&text, None).await,
            Some(Command::Pick { columns, statement }) => {
                self.rows(statement, Some(&columns)).await
            }
            Some(Command::Let {
                variable,
                column,
                statement,
            }) => self.bind(variable, column, statement).await,
            Some(Command::Reopen) => {
                self.session = Session::open(&self.place).await?;
                Ok(DBOutput::StatementComplete(0))
            }
            Some(Command::Notices) => Ok(lines(self.session.take_notices())),
            Some(Command::Calls) => command::take_calls(&self.place.calls()).map(count),
            Some(Command::Foreign(change)) => {
                change.apply(&self.place.database).await?;
                Ok(DBOutput::StatementComplete(0))
            }
        }
    }

    /// Runs a statement and renders its rows, or those of its columns that were picked.
    async fn rows(
        &mut self,
        statement: &str,
        columns: Option<&[&str]>,
    ) -> Result<DBOutput<ColumnKind>, Failure> {
        let batch = self.collect(statement).await?;
        let batch = match columns {
            Some(columns) => pick(&batch, columns)?,
            None => batch,
        };
        if batch.num_columns() == 0 {
            return Ok(DBOutput::StatementComplete(0));
        }
        let is_plan = command::is_explain(statement);
        let Rendered { kinds, rows } =
            render(&batch, &|text| self.normalizer.normalize(text, is_plan))?;
        Ok(DBOutput::Rows { types: kinds, rows })
    }

    /// Runs a statement and keeps one value of its only row.
    async fn bind(
        &mut self,
        variable: &str,
        column: Option<&str>,
        statement: &str,
    ) -> Result<DBOutput<ColumnKind>, Failure> {
        let batch = self.collect(statement).await?;
        let batch = match column {
            Some(column) => pick(&batch, &[column])?,
            None => batch,
        };
        let Some(last) = batch.columns().last() else {
            return Err(Failure::new("\\let: the statement returns no columns"));
        };
        if batch.num_rows() != 1 {
            return Err(Failure::new(format!(
                "\\let: the statement returns {} rows instead of one",
                batch.num_rows()
            )));
        }
        let value = render_value(last, 0)?;
        self.place.variables().insert(variable.to_string(), value);
        Ok(DBOutput::StatementComplete(0))
    }

    /// All rows of a statement as one batch.
    async fn collect(&mut self, statement: &str) -> Result<RecordBatch, Failure> {
        let run = self.session.run(statement);
        match tokio::time::timeout(STATEMENT_TIMEOUT, run).await {
            Ok(result) => result.map_err(|error| self.failure(&error)),
            Err(_) => Err(Failure::new(format!(
                "the statement did not end within {STATEMENT_TIMEOUT:?}"
            ))),
        }
    }

    /// What a user would read, without what differs from run to run. No test may expect
    /// an error that confesses a bug, so those are kept.
    fn failure(&self, error: &Error) -> Failure {
        let text = error.to_string();
        if error.kind() == ErrorKind::Internal || text.contains("likely caused by a bug") {
            self.place.lock_bugs().push(text.clone());
        }
        Failure(self.normalizer.normalize(&text, false))
    }
}

async fn open_session(place: &Place) -> Result<Headwater, Failure> {
    let mut builder = place.engine.builder().await?;
    if let Some(store) = &place.store {
        builder = builder.storage_options(store.options());
    }
    functions::all(Some(place.calls()))
        .into_iter()
        .fold(builder, |builder, function| {
            builder.scalar_function(function)
        })
        .function_codec(Arc::new(functions::CallsCodec))
        .database(place.database.display().to_string())
        .build()
        .await
        .map_err(Failure::new)
}

fn lines(lines: Vec<String>) -> DBOutput<ColumnKind> {
    DBOutput::Rows {
        types: vec![ColumnKind::Text],
        rows: lines.into_iter().map(|line| vec![line]).collect(),
    }
}

fn count(count: usize) -> DBOutput<ColumnKind> {
    DBOutput::Rows {
        types: vec![ColumnKind::Integer],
        rows: vec![vec![count.to_string()]],
    }
}

/// The columns of these names, in this order.
fn pick(batch: &RecordBatch, columns: &[&str]) -> Result<RecordBatch, Failure> {
    let schema = batch.schema();
    let indices = columns
        .iter()
        .map(|column| {
            schema.index_of(column).map_err(|_| {
                let there: Vec<_> = schema.fields().iter().map(|field| field.name()).collect();
                Failure::new(format!(
                    "the result has no column '{column}', its columns are {there:?}"
                ))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let schema = Arc::new(schema.project(&indices).map_err(Failure::new)?);
    let arrays = indices
        .iter()
        .map(|index| Arc::clone(batch.column(*index)))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, arrays, &options).map_err(Failure::new)
}

#[async_trait]
impl AsyncDB for Database {
    type Error = Failure;
    type ColumnType = ColumnKind;

    async fn run(&mut self, text: &str) -> Result<DBOutput<ColumnKind>, Failure> {
        self.execute(text).await
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        self.place.engine.name()
    }

    async fn sleep(duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn run_command(mut process: Process) -> io::Result<Output> {
        let place = PLACE.with(Place::clone);
        for (name, path) in place.folders() {
            process.env(name, path);
        }
        tokio::task::spawn_blocking(move || process.output())
            .await
            .map_err(io::Error::other)?
    }
}
