//! Where statements run: in this process, or on a server.

use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::AsArray;
use datafusion::prelude::SessionContext;
use datafusion::sql::TableReference;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast;
use datafusion_cli::print_options::MaxRows;

use super::output::{Layout, Printed, Sink};
use super::progress::Progress;
use crate::client::Client;
use crate::job::jobs::RunningJob;
use crate::job::signal::{Signal, Stop};
use crate::session::Headwater;
use crate::sql::format::quote_identifier;
use crate::sql::parse;
use crate::sql::statement::Statement;
use crate::{Error, Result};

/// Where statements run.
#[derive(Clone)]
pub(super) enum Target {
    /// In this process.
    Here(Headwater),
    /// On a server.
    Server(Box<Client>),
}

/// A statement that runs, or is about to. Clones are the same one.
#[derive(Clone)]
pub(super) struct Running {
    target: Target,
    /// What a server said last of its job, and its notices.
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    job: Option<RunningJob>,
    notices: Vec<String>,
}

/// Why a statement did not end well.
pub(super) enum Failure {
    /// It failed.
    Error(Error),
    /// The reader of the output went away.
    BrokenPipe,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl Target {
    /// Waits until what was told to stop has ended.
    pub(super) async fn settled(&self) {
        match self {
            Self::Here(session) => session.jobs().settled().await,
            Self::Server(client) => client.settled().await,
        }
    }

    /// A context with the functions and settings of DataFusion.
    pub(super) fn context(&self) -> SessionContext {
        match self {
            Self::Here(session) => session.context().clone(),
            Self::Server(_) => SessionContext::new(),
        }
    }

    /// Names of all tables and views.
    pub(super) async fn tables(&self) -> Result<Vec<String>> {
        match self {
            Self::Here(session) => {
                let mut names = session_tables(session.context());
                names.extend(session.database().object_names().await?);
                Ok(names)
            }
            Self::Server(client) => {
                let batches = client.execute("SHOW TABLES").await?.collect().await?;
                let names = batches
                    .iter()
                    .filter_map(|batch| batch.column_by_name("table_name")?.as_string_opt::<i32>());
                Ok(names.flatten().flatten().map(ToString::to_string).collect())
            }
        }
    }

    /// Names of the columns of a table or view.
    pub(super) async fn columns(&self, table: &str) -> Result<Vec<String>> {
        let schema = match self {
            Self::Here(session) => {
                let reference = TableReference::bare(table);
                session.context().table_provider(reference).await?.schema()
            }
            Self::Server(client) => {
                let query = format!("SELECT * FROM {}", quote_identifier(table));
                client.schema(&query).await?
            }
        };
        let fields = schema.fields().iter();
        Ok(fields.map(|field| field.name().clone()).collect())
    }
}

/// Tables that are there without a look at the store: those of the session only.
fn session_tables(context: &SessionContext) -> Vec<String> {
    let state = context.state();
    let defaults = &state.config_options().catalog;
    let schema = context
        .catalog(&defaults.default_catalog)
        .and_then(|catalog| catalog.schema(&defaults.default_schema));
    schema.map_or_else(Vec::new, |schema| schema.table_names())
}

impl Running {
    /// A statement that will run there.
    pub(super) fn new(target: &Target) -> Self {
        let target = match target {
            // Its notices and jobs, not those of what runs beside it.
            Target::Here(session) => Target::Here(session.for_statement()),
            Target::Server(client) => Target::Server(client.clone()),
        };
        Self {
            target,
            heard: Arc::default(),
        }
    }

    /// The job that it waits for, if there is one.
    pub(super) fn job(&self) -> Option<RunningJob> {
        match &self.target {
            Target::Here(session) => session.jobs().begun().into_iter().next(),
            Target::Server(_) => self.heard().job.clone(),
        }
    }

    /// Tells its job to stop. A server is told when what waits for it is dropped.
    pub(super) fn cancel(&self) {
        if let Target::Here(session) = &self.target {
            for job in session.jobs().begun() {
                session.jobs().tell(&job.id, Signal::Stop(Stop::Cancelled));
            }
        }
    }

    /// What a user should know although it worked.
    pub(super) fn take_notices(&self) -> Vec<String> {
        match &self.target {
            Target::Here(session) => session.take_notices(),
            Target::Server(_) => std::mem::take(&mut self.heard().notices),
        }
    }

    /// Runs `sql` and prints its result to stdout.
    pub(super) async fn execute(
        self,
        sql: String,
        layout: Layout,
        progress: Progress,
    ) -> Result<Printed, Failure> {
        match &self.target {
            Target::Here(session) => {
                let mut printed = Printed::default();
                for statement in parse(&sql)? {
                    let layout = layout.of(Some(&statement));
                    let frame = session.run(statement).await?;
                    let mut out = sink(&progress);
                    let result = layout.print(frame, &mut out).await;
                    printed = written(result, out.is_broken())?;
                }
                Ok(printed)
            }
            Target::Server(client) => {
                // What this release can't read, the server's may.
                let statement = parse(&sql).ok().and_then(|mut statements| statements.pop());
                let layout = layout.of(statement.as_ref());
                let rows = client
                    .execute_with(&sql, |state| {
                        self.heard().job = state.job.clone().map(RunningJob::from);
                    })
                    .await?;
                self.heard().job = None;
                self.heard().notices.extend(rows.notices().iter().cloned());
                let mut out = sink(&progress);
                let result = layout.print_remote(rows.into_stream(), &mut out).await;
                written(result, out.is_broken())
            }
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Standard output; a result in a file leaves the terminal to the progress.
fn sink(progress: &Progress) -> Sink<io::Stdout> {
    let stdout = io::stdout();
    let covered = stdout.is_terminal().then(|| progress.clone());
    Sink::new(stdout, covered)
}

fn written(result: Result<Printed>, is_broken: bool) -> Result<Printed, Failure> {
    match result {
        Ok(printed) => Ok(printed),
        Err(_) if is_broken => Err(Failure::BrokenPipe),
        Err(error) => Err(error.into()),
    }
}

impl Layout {
    /// The same for the result of this statement, which may be of use only as a whole.
    fn of(mut self, statement: Option<&Statement>) -> Self {
        if statement.is_some_and(is_overview) {
            self.maxrows = MaxRows::Unlimited;
        }
        self
    }
}

/// Whether the result of `statement` is of use only as a whole.
fn is_overview(statement: &Statement) -> bool {
    match statement {
        Statement::Describe { .. } | Statement::Show(_) | Statement::ExplainRefresh { .. } => true,
        Statement::DataFusion(statement) => match statement.as_ref() {
            DataFusionStatement::Statement(statement) => {
                matches!(statement.as_ref(), ast::Statement::ShowVariable { .. })
            }
            DataFusionStatement::Explain(_) => true,
            _ => false,
        },
        _ => false,
    }
}
