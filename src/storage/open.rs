//! Opens Lance tables, and says in our terms what went wrong with them.
//!
//! Every call to Lance, from any part of this crate, turns its errors with
//! [`storage_error`], so that each names the table, and the file where one is
//! to blame, and so that callers can match on the kind.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, LazyLock};

use datafusion::common::DataFusionError;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::session::Session;
use regex::Regex;

use crate::{Error, ErrorKind, Result};

/// Opens the table at `uri`, at `version` or at its newest one.
///
/// `options` are those of the object store, as Lance names them. With a
/// `session`, metadata and indexes that it has cached are not read again.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if there is no table, or not this version of it;
/// [`ErrorKind::Storage`] if it can't be read, is corrupt, or was written in a
/// format newer than this build knows.
pub async fn open(
    uri: &str,
    version: Option<u64>,
    options: &HashMap<String, String>,
    session: Option<Arc<Session>>,
) -> Result<Dataset> {
    let mut builder = DatasetBuilder::from_uri(uri);
    if let Some(version) = version {
        builder = builder.with_version(version);
    }
    if !options.is_empty() {
        builder = builder.with_storage_options(options.clone());
    }
    if let Some(session) = session {
        builder = builder.with_session(session);
    }
    builder
        .load()
        .await
        .map_err(|error| storage_error(table_name(uri), error))
}

/// The name of the table that is stored at `uri`: the last part of it, without
/// `.lance`.
pub fn table_name(uri: &str) -> &str {
    let path = uri.trim_end_matches('/');
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".lance").unwrap_or(file)
}

/// Turns an error of Lance about `table` into ours: the kind that callers match
/// on, a message that names the table and, if one is to blame, the file, and the
/// mend where there is one. An error of ours that travelled through Lance comes
/// back as it was.
pub fn storage_error(table: &str, error: lance::Error) -> Error {
    use lance::Error as Lance;

    let error = match error {
        Lance::External { source } => return external(table, source),
        other => other,
    };
    let root = error.find_root();
    let mut hint = None;
    let (kind, message) = match root {
        Lance::DatasetNotFound { path, .. } => (
            ErrorKind::NotFound,
            format!("table '{table}' does not exist: there is no Lance table at '{path}'"),
        ),
        Lance::VersionNotFound { message } | Lance::RefNotFound { message } => {
            (ErrorKind::NotFound, format!("table '{table}': {message}"))
        }
        Lance::FieldNotFound { source } => {
            (ErrorKind::NotFound, format!("table '{table}': {source}"))
        }
        Lance::NotFound { uri, .. } => {
            hint = Some(LOST_FILE);
            (
                ErrorKind::Storage,
                format!("table '{table}': the file '{uri}' is missing"),
            )
        }
        Lance::CorruptFile { path, source, .. } => {
            hint = Some(LOST_FILE);
            (
                ErrorKind::Storage,
                format!("table '{table}': the file '{path}' is corrupt: {source}"),
            )
        }
        Lance::NotSupported { source, .. } if source.to_string().contains("ersion of Lance") => {
            hint = Some(NEWER_FORMAT);
            (
                ErrorKind::Storage,
                format!(
                    "table '{table}' is in a newer Lance format than this build knows: {source}"
                ),
            )
        }
        Lance::VersionConflict { message, .. } => {
            hint = Some(NEWER_FORMAT);
            (
                ErrorKind::Storage,
                format!(
                    "table '{table}' is in a Lance format that this build does not know: {message}"
                ),
            )
        }
        Lance::NotSupported { source, .. } | Lance::InvalidInput { source, .. } => (
            ErrorKind::InvalidInput,
            format!("table '{table}': {source}"),
        ),
        Lance::Schema { message, .. } | Lance::InvalidRef { message } => (
            ErrorKind::InvalidInput,
            format!("table '{table}': {message}"),
        ),
        Lance::InvalidTableLocation { message } => (
            ErrorKind::InvalidInput,
            format!("'{message}' is not a place where a table can be"),
        ),
        Lance::DatasetAlreadyExists { uri, .. } => (
            ErrorKind::AlreadyExists,
            format!("table '{table}' exists already, at '{uri}'"),
        ),
        Lance::CommitConflict { source, .. }
        | Lance::RetryableCommitConflict { source, .. }
        | Lance::IncompatibleTransaction { source, .. } => (
            ErrorKind::Conflict,
            format!("table '{table}' was changed by another writer: {source}"),
        ),
        Lance::TooMuchWriteContention { message, .. } => (
            ErrorKind::Conflict,
            format!("table '{table}' is being changed by too many writers: {message}"),
        ),
        Lance::Arrow { message, .. } | Lance::Execution { message, .. } => {
            (ErrorKind::Query, format!("table '{table}': {message}"))
        }
        other => match blame(other) {
            Some((what, mend)) => {
                hint = mend;
                (ErrorKind::Storage, format!("table '{table}': {what}"))
            }
            None => (ErrorKind::Storage, format!("table '{table}': {other}")),
        },
    };
    let ours = Error::new(kind, tidy(&message)).with_source(error);
    match hint {
        Some(hint) => ours.with_hint(hint),
        None => ours,
    }
}

/// As [`storage_error`], for an error that DataFusion handed on from Lance.
pub fn query_error(table: &str, error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(source) => external(table, source),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            query_error(table, *inner)
        }
        DataFusionError::ArrowError(inner, backtrace) => match *inner {
            arrow::error::ArrowError::ExternalError(source) => external(table, source),
            other => DataFusionError::ArrowError(Box::new(other), backtrace).into(),
        },
        other => other.into(),
    }
}

const LOST_FILE: &str = "if it was removed or damaged outside of Headwater, restore it from a \
                         backup, or read an older version with VERSION AS OF";
const NEWER_FORMAT: &str = "upgrade Headwater, or read the table with the program that wrote it";

/// An error that came out of a box: ours, Lance's, DataFusion's or another's.
fn external(table: &str, source: Box<dyn StdError + Send + Sync>) -> Error {
    let source = match source.downcast::<Error>() {
        Ok(ours) => return *ours,
        Err(source) => source,
    };
    let source = match source.downcast::<lance::Error>() {
        Ok(lance) => return storage_error(table, *lance),
        Err(source) => source,
    };
    match source.downcast::<DataFusionError>() {
        Ok(error) => query_error(table, *error),
        Err(source) => {
            let message = match blame(source.as_ref()) {
                Some((what, _)) => format!("table '{table}': {what}"),
                None => format!("table '{table}': {source}"),
            };
            Error::new(ErrorKind::Storage, tidy(&message)).with_source(source)
        }
    }
}

/// Looks below `error` for what the store said: the file and the reason, and the
/// mend.
fn blame(error: &(dyn StdError + 'static)) -> Option<(String, Option<&'static str>)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(store) = error.downcast_ref::<object_store::Error>() {
            use object_store::Error as Store;
            match store {
                Store::NotFound { path, .. } => {
                    return Some((format!("the file '{path}' is missing"), Some(LOST_FILE)));
                }
                Store::PermissionDenied { path, .. } => {
                    return Some((
                        format!("no permission for '{path}'"),
                        Some("check who owns it, or the rights of the account in use"),
                    ));
                }
                Store::Unauthenticated { path, .. } => {
                    return Some((
                        format!("the store wants to know who asks for '{path}'"),
                        Some("give credentials, as storage options or in the environment"),
                    ));
                }
                _ => {}
            }
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            let mend = match io.kind() {
                io::ErrorKind::PermissionDenied => {
                    Some("check who owns the files of the table, and their rights")
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free some space and run the statement again; nothing was changed")
                }
                io::ErrorKind::NotADirectory => {
                    Some("a table is a folder, and so is the database it is in")
                }
                _ => None,
            };
            if mend.is_some() {
                return Some((io.to_string(), mend));
            }
        }
        next = error.source();
    }
    None
}

/// Cuts out where in Lance's source an error was made, which tells a user nothing.
fn tidy(message: &str) -> String {
    static PLACE: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r",? *(?:location: )?[^\s,:]+\.rs:\d+(?::\d+)?").ok());
    match PLACE.as_ref() {
        Some(place) => place.replace_all(message, "").into_owned(),
        None => message.to_string(),
    }
}
