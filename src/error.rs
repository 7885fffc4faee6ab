//! Errors that people can act on.
//!
//! An [`Error`] says what went wrong and where, and, where there is one, the
//! mend: the statement or the setting that makes it work. It carries the error
//! underneath, so nothing that a lower layer knew is lost.

use std::fmt;

use datafusion::common::DataFusionError;
use serde::{Deserialize, Serialize};

/// The result of everything that can fail in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. Callers match on it; people read the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is not a statement of the dialect.
    Syntax,
    /// The statement can be read, but asks for something that is wrong or refused.
    InvalidInput,
    /// A table, view, column or version that does not exist.
    NotFound,
    /// An object of that name is there already.
    AlreadyExists,
    /// Something that a later release brings.
    NotAvailable,
    /// Other objects depend on what was to be changed.
    Dependents,
    /// Other writers kept changing the table for as long as we retried.
    Conflict,
    /// Another job works on the object.
    Busy,
    /// An expression failed on a row.
    Computation,
    /// The store, or a file in it, could not be read or written.
    Storage,
    /// The query engine refused or failed.
    Query,
    /// The cluster can't do the work: there is no executor for it, or its server does not answer.
    Cluster,
    /// Someone cancelled the statement.
    Cancelled,
    /// A bug of ours.
    Internal,
}

/// What went wrong, where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// The statement is refused as it stands.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// `what` belongs to the dialect, but not to this release.
    pub fn not_available(what: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::NotAvailable,
            format!("{what} is not available yet"),
        )
    }

    /// A bug of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The `kind` of `name` (a table, a column …) does not exist; names the
    /// nearest of `known` if one is near.
    pub fn not_found<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let error = Self::new(
            ErrorKind::NotFound,
            format!("{what} '{name}' does not exist"),
        );
        match nearest(name, known) {
            Some(near) => error.with_hint(format!("did you mean '{near}'?")),
            None => error,
        }
    }

    /// Adds the mend: what to type or to change so that it works.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the error underneath.
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says where it happened: `context` is put before the message.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What went wrong, without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nHint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Keeps an [`Error`] that travelled through DataFusion as it was.
impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => Error::new(ErrorKind::Query, inner.to_string()).with_source(inner),
            },
            DataFusionError::Context(context, inner) => {
                let inner = Error::from(*inner);
                match inner.kind {
                    ErrorKind::Query => inner.context(context),
                    _ => inner,
                }
            }
            DataFusionError::Shared(shared) => match find_ours(shared.as_ref()) {
                Some(ours) => Error {
                    kind: ours.kind,
                    message: ours.message.clone(),
                    hint: ours.hint.clone(),
                    source: Some(Box::new(shared)),
                },
                None => {
                    Error::new(ErrorKind::Query, strip(&shared.to_string())).with_source(shared)
                }
            },
            DataFusionError::Diagnostic(_, inner) => Error::from(*inner),
            DataFusionError::Collection(errors) if !errors.is_empty() => {
                Error::from(errors.into_iter().next().unwrap_or_else(|| {
                    DataFusionError::Internal("an empty collection of errors".to_string())
                }))
            }
            DataFusionError::SQL(inner, _) => {
                Error::new(ErrorKind::Syntax, inner.to_string()).with_source(*inner)
            }
            other => Error::new(ErrorKind::Query, strip(&other.to_string())).with_source(other),
        }
    }
}

/// Finds an error of ours below an error that we may not take apart.
fn find_ours<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return Some(ours);
        }
        if let Some(DataFusionError::External(inner)) = error.downcast_ref::<DataFusionError>()
            && let Some(ours) = inner.downcast_ref::<Error>()
        {
            return Some(ours);
        }
        next = error.source();
    }
    None
}

/// Drops the names of DataFusion's own error variants, which tell a user nothing.
fn strip(message: &str) -> String {
    let mut rest = message;
    loop {
        let stripped = [
            "Error during planning: ",
            "Schema error: ",
            "Execution error: ",
            "Arrow error: ",
            "External error: ",
            "Object Store error: ",
            "This feature is not implemented: ",
        ]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix));
        match stripped {
            Some(shorter) => rest = shorter,
            None => return rest.to_string(),
        }
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<lance::Error> for Error {
    fn from(error: lance::Error) -> Self {
        Error::new(ErrorKind::Storage, error.to_string()).with_source(error)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Error::from(DataFusionError::from(error))
    }
}

/// An error with those below it: the outer one often says nothing.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}

/// The one of `known` that `name` was probably meant to be.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One wrong letter of one letter is another name, not a slip.
    let letters = name.chars().count();
    known
        .into_iter()
        .map(|candidate| {
            let same_but_case = candidate.eq_ignore_ascii_case(name);
            let distance = if same_but_case {
                0
            } else {
                strsim::damerau_levenshtein(name, candidate)
            };
            (distance, candidate)
        })
        .filter(|(distance, candidate)| {
            *distance <= 1 + candidate.chars().count().min(9) / 3 && *distance < letters
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
