//! Prepared statements: text that is kept with the values bound to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use futures::future::BoxFuture;
use uuid::Uuid;

use super::super::sessions::IDLE;
use super::parameters::Template;
use crate::session::Headwater;
use crate::sql::parse;
use crate::sql::statement::{JobStatement, Statement};
use crate::{Error, ErrorKind, Result};

/// How many there may be.
const MOST: usize = 100_000;

/// The prepared statements of a server.
#[derive(Default)]
pub(super) struct Prepared {
    known: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    template: Arc<Template>,
    values: Option<Arc<Vec<RecordBatch>>>,
    used: Instant,
}

/// What is said of a statement when it is prepared.
pub(super) struct Description {
    /// Of its rows; `None` if that is known only when it was run.
    pub(super) rows: Option<Schema>,
    /// Of its parameters.
    pub(super) parameters: Schema,
}

impl Prepared {
    /// Keeps a statement, and gives its name.
    pub(super) fn add(&self, template: Template) -> Result<String> {
        let mut known = self.lock();
        known.retain(|_, entry| entry.used.elapsed() < IDLE);
        if known.len() >= MOST {
            return Err(Error::invalid(format!(
                "the server has {MOST} prepared statements already"
            ))
            .with_hint("close those that are not used"));
        }
        let id = Uuid::new_v4().simple().to_string();
        let entry = Entry {
            template: Arc::new(template),
            values: None,
            used: Instant::now(),
        };
        known.insert(id.clone(), entry);
        Ok(id)
    }

    /// Binds rows of values; the ones before are gone.
    pub(super) fn bind(&self, id: &[u8], values: Vec<RecordBatch>) -> Result<()> {
        self.with(id, |entry| entry.values = Some(Arc::new(values)))
    }

    /// The statements to run: one for each row of values that is bound, or one if it takes none.
    pub(super) fn statements(&self, id: &[u8]) -> Result<Vec<String>> {
        let (template, values) = self.with(id, |entry| {
            (Arc::clone(&entry.template), entry.values.clone())
        })?;
        let Some(values) = values.filter(|_| template.count() > 0) else {
            return Ok(vec![template.filled(None)?]);
        };
        let rows = values
            .iter()
            .flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
        rows.map(|row| template.filled(Some(row))).collect()
    }

    /// The statement to run for its rows.
    pub(super) fn query(&self, id: &[u8]) -> Result<String> {
        let mut statements = self.statements(id)?;
        match (statements.pop(), statements.len()) {
            (Some(statement), 0) => Ok(statement),
            (None, _) => Err(Error::invalid("no row of parameters is bound")),
            (Some(_), more) => Err(Error::invalid(format!(
                "a statement with a result takes one row of parameters, and {} are bound",
                more + 1
            ))
            .with_hint("execute it once for each row, or as an update")),
        }
    }

    /// Forgets a statement.
    pub(super) fn close(&self, id: &[u8]) {
        self.lock().remove(String::from_utf8_lossy(id).as_ref());
    }

    fn with<T>(&self, id: &[u8], change: impl FnOnce(&mut Entry) -> T) -> Result<T> {
        let id = String::from_utf8_lossy(id);
        let mut known = self.lock();
        let Some(entry) = known.get_mut(id.as_ref()) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no prepared statement '{id}' on this server"),
            )
            .with_hint("it was closed, was not used for an hour, or the server was started again; prepare it again"));
        };
        entry.used = Instant::now();
        Ok(change(entry))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out what a statement gives and takes, without doing what it does.
pub(super) fn describe(
    session: Headwater,
    template: Template,
) -> BoxFuture<'static, Result<Description>> {
    Box::pin(async move {
        let sql = template.numbered();
        let mut statements = parse(&sql)?;
        let statement = match (statements.pop(), statements.len()) {
            (Some(statement), 0) => statement,
            (None, _) => return Err(Error::invalid("there is no statement")),
            (Some(_), more) => {
                return Err(Error::invalid(format!(
                    "one statement was expected, not {}",
                    more + 1
                )));
            }
        };
        let mut kinds = vec![None; template.count()];
        let mut rows = None;
        if is_query(&statement) || (template.count() == 0 && only_reads(&statement)) {
            let frame = session.run(statement).await?;
            for (name, kind) in frame.logical_plan().get_parameter_types()? {
                let number = name.strip_prefix('$').map(str::parse::<usize>);
                if let Some(Ok(number)) = number
                    && let Some(place) = kinds.get_mut(number.wrapping_sub(1))
                {
                    *place = kind;
                }
            }
            rows = Some(frame.schema().as_arrow().clone());
        }
        let fields: Vec<Field> = kinds
            .into_iter()
            .enumerate()
            // Any type will do where none is known; text is what all clients can bind.
            .map(|(place, kind)| {
                Field::new(
                    format!("${}", place + 1),
                    kind.unwrap_or(DataType::Utf8),
                    true,
                )
            })
            .collect();
        Ok(Description {
            rows,
            parameters: Schema::new(fields),
        })
    })
}

/// Whether a statement is a query, which is only planned before its rows are fetched.
pub(super) fn is_query(statement: &Statement) -> bool {
    use datafusion::sql::parser::Statement as DataFusionStatement;
    use datafusion::sql::sqlparser::ast;
    let Statement::DataFusion(statement) = statement else {
        return false;
    };
    match statement.as_ref() {
        DataFusionStatement::Statement(statement) => {
            matches!(statement.as_ref(), ast::Statement::Query(_))
        }
        DataFusionStatement::Explain(_) => true,
        _ => false,
    }
}

/// Whether a statement changes nothing, so that it may be run to see what it gives.
fn only_reads(statement: &Statement) -> bool {
    match statement {
        Statement::Describe { .. }
        | Statement::Show(_)
        | Statement::DescribeMaterializedView { .. }
        | Statement::ShowTags { .. } => true,
        Statement::ExplainRefresh { analyze, .. }
        | Statement::ExplainRefreshView { analyze, .. } => !analyze,
        Statement::Job(statement) => matches!(
            statement,
            JobStatement::Jobs { .. }
                | JobStatement::Events(_)
                | JobStatement::Errors { .. }
                | JobStatement::Describe(_)
        ),
        _ => false,
    }
}
