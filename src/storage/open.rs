//! Opens Lance tables, and says in our terms what went wrong with them.
//!
//! Every call to Lance, from any part of this crate, turns its errors with
//! [`storage_error`], so that each names the table, and the file where one is
//! to blame, and so that callers can match on the kind.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt::Display;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};

use datafusion::common::DataFusionError;
use futures::FutureExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::session::Session;
use regex::Regex;

use super::answer::{Refusal, refusal};
use super::commit::unknown_version;
use super::store::StoreSettings;
use crate::{Error, ErrorKind, Result};

/// Opens the table at `uri`, at `version` or at its newest one.
///
/// `settings` are those of the object store. With a `session`, metadata and indexes that it has cached are not read again.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if there is no table, or not this version of it;
/// [`ErrorKind::Storage`] if it can't be read, is corrupt, or was written in a
/// format newer than this build knows.
pub async fn open(
    uri: &str,
    version: Option<u64>,
    settings: &StoreSettings,
    session: Option<Arc<Session>>,
) -> Result<Dataset> {
    let mut builder = DatasetBuilder::from_uri(uri).with_store_params(settings.params(uri));
    if let Some(version) = version {
        builder = builder.with_version(version);
    }
    if let Some(session) = session {
        builder = builder.with_session(session);
    }
    let table = table_name(uri);
    // Lance may panic over a damaged manifest; that must not take the process down.
    let error = match AssertUnwindSafe(Box::pin(builder.load()))
        .catch_unwind()
        .await
    {
        Ok(Ok(dataset)) => return Ok(dataset),
        Ok(Err(error)) => storage_error(table, error),
        Err(panic) => panicked(table, panic),
    };
    // What has a mend is said in full; what is left are bytes that make no sense.
    if error.kind() != ErrorKind::Storage || error.hint().is_some() {
        return Err(error);
    }
    let folder = format!("{}/_versions", uri.trim_end_matches('/'));
    let which = match version {
        Some(version) => format!("the manifest of version {version}"),
        None => "the newest manifest".to_string(),
    };
    Err(Error::new(
        ErrorKind::Storage,
        format!(
            "table '{table}': {which}, in '{folder}', can't be read: {}",
            without_table(table, &error)
        ),
    )
    .with_hint(LOST_FILE)
    .with_source(error))
}

/// The message of an error about `table`, for where the table is named already.
pub(super) fn without_table<'a>(table: &str, error: &'a Error) -> &'a str {
    let message = error.message();
    let named = format!("table '{table}': ");
    message.strip_prefix(&named).unwrap_or(message)
}

/// The error for a call to Lance about `table` that ended in a panic.
pub(super) fn panicked(table: &str, panic: Box<dyn Any + Send>) -> Error {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::new(
        ErrorKind::Storage,
        format!("table '{table}': Lance gave up: {what}"),
    )
}

/// The name of the table that is stored at `uri`: the last part of it, without
/// `.lance`.
pub(super) fn table_name(uri: &str) -> &str {
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
    if let Some(version) = unknown_version(root) {
        let message = format!(
            "table '{table}': the store did not say whether version {version} was committed: {root}"
        );
        return Error::new(ErrorKind::Storage, tidy(&message))
            .with_hint(format!(
                "SHOW VERSIONS FROM {table} says what was committed"
            ))
            .with_source(error);
    }
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
        Lance::CorruptFile { path, source, .. } => {
            hint = Some(LOST_FILE);
            (
                ErrorKind::Storage,
                format!("table '{table}': the file '{path}' is corrupt: {source}"),
            )
        }
        Lance::NotSupported { source, .. } | Lance::InvalidInput { source, .. }
            if is_newer_format(&source.to_string()) =>
        {
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

/// Whether Lance says by `message` that a table needs a newer one: because of a feature flag of the table, or
/// because of the version of its files.
fn is_newer_format(message: &str) -> bool {
    message.contains("ersion of Lance") || message.contains("Unknown Lance storage version")
}

/// As [`storage_error`], for an error that DataFusion handed on from Lance.
pub(super) fn query_error(table: &str, error: DataFusionError) -> Error {
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

/// The mend for a file that is missing or damaged.
pub(super) const LOST_FILE: &str = "if it was removed or damaged outside of Headwater, restore it from a \
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
pub(super) fn blame(error: &(dyn StdError + 'static)) -> Option<(String, Option<&'static str>)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(lance::Error::NotFound { uri, .. }) = error.downcast_ref() {
            return Some((format!("the file '{uri}' is missing"), Some(LOST_FILE)));
        }
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
                Store::Generic { source, .. } => {
                    if let Some(refusal) = refusal(&source.to_string()) {
                        return Some((refusal.what, refusal.mend));
                    }
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
                    Some("free some space and run the statement again; nothing is half done")
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

/// The error for something that a store was asked about: `what` it is, and what the store said.
pub(super) fn store_error(
    what: impl Display,
    error: impl StdError + Send + Sync + 'static,
) -> Error {
    let (said, mend) = blame(&error).unwrap_or_else(|| (tidy(&error.to_string()), None));
    let ours = Error::new(ErrorKind::Storage, format!("{what}: {said}"));
    match mend {
        Some(mend) => ours.with_hint(mend),
        None => ours,
    }
    .with_source(error)
}

/// As [`store_error`], where DataFusion asked a store that Lance knows nothing of; other errors come back as
/// they are.
pub fn refused(what: impl Display, error: Error) -> Error {
    let Some(Refusal {
        what: said, mend, ..
    }) = refusal(error.message())
    else {
        return error;
    };
    let ours = Error::new(ErrorKind::Storage, format!("{what}: {said}"));
    match mend {
        Some(mend) => ours.with_hint(mend),
        None => ours,
    }
    .with_source(error)
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

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, RecordBatch, RecordBatchIterator};
    use lance::dataset::WriteParams;
    use tempfile::TempDir;

    use super::*;

    async fn table() -> (TempDir, String) {
        let folder = TempDir::new().unwrap();
        let uri = format!("{}/goods.lance", folder.path().display());
        for _ in 0..2 {
            let column = Arc::new(Int32Array::from(vec![1, 2])) as _;
            let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
            let schema = batch.schema();
            let params = WriteParams {
                mode: lance::dataset::WriteMode::Append,
                ..Default::default()
            };
            let reader = RecordBatchIterator::new([Ok(batch)], schema);
            Dataset::write(reader, uri.as_str(), Some(params))
                .await
                .unwrap();
        }
        (folder, uri)
    }

    async fn failure(uri: &str, version: Option<u64>) -> Error {
        open(uri, version, &StoreSettings::default(), None)
            .await
            .unwrap_err()
    }

    #[tokio::test]
    async fn a_table_opens_at_its_newest_or_at_a_given_version() {
        let (_folder, uri) = table().await;
        let newest = open(&uri, None, &StoreSettings::default(), None)
            .await
            .unwrap();
        assert_eq!(newest.manifest().version, 2);
        let session = Some(newest.session());
        let older = open(&uri, Some(1), &StoreSettings::default(), session)
            .await
            .unwrap();
        assert_eq!(older.manifest().version, 1);
    }

    #[tokio::test]
    async fn a_table_or_version_that_is_not_there_is_not_found() {
        let (folder, uri) = table().await;
        let error = failure(&format!("{}/bads.lance", folder.path().display()), None).await;
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error.message().contains("table 'bads' does not exist"),
            "{error}"
        );
        assert!(!error.message().contains(".rs:"), "{error}");

        let error = failure(&uri, Some(7)).await;
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error.message().contains("'goods'") && error.message().contains('7'),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_file_is_not_a_table() {
        let (folder, _) = table().await;
        let path = folder.path().join("file.lance");
        std::fs::write(&path, "no folder").unwrap();
        let error = failure(path.to_str().unwrap(), None).await;
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(error.message().contains("'file'"), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_manifest_is_named() {
        let (folder, uri) = table().await;
        let versions = folder.path().join("goods.lance/_versions");
        let mut files: Vec<_> = std::fs::read_dir(versions)
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        files.sort();
        // Names count down from the largest version.
        let bytes = std::fs::read(&files[0]).unwrap();
        for damaged in [
            bytes[..bytes.len() / 2].to_vec(),
            Vec::new(),
            vec![0xa5; bytes.len()],
        ] {
            std::fs::write(&files[0], damaged).unwrap();
            let error = failure(&uri, None).await;
            assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
            assert!(error.message().contains("'goods'"), "{error}");
            assert!(error.message().contains("goods.lance/_versions"), "{error}");
        }
    }

    #[test]
    fn a_newer_format_is_told_apart() {
        let lance = lance::Error::not_supported(
            "This dataset cannot be read by this version of Lance. Please upgrade Lance to read \
             this dataset. Flags: 4096",
        );
        let error = storage_error("goods", lance);
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(
            error
                .message()
                .contains("'goods' is in a newer Lance format"),
            "{error}"
        );
        assert!(error.message().contains("4096"), "{error}");
        assert!(error.hint().unwrap().contains("upgrade"));
    }

    #[test]
    fn what_the_store_refused_is_said_with_the_mend() {
        let denied = object_store::Error::PermissionDenied {
            path: "t/data/1.lance".to_string(),
            source: "403".into(),
        };
        let error = storage_error("goods", denied.into());
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(
            error
                .message()
                .contains("no permission for 't/data/1.lance'"),
            "{error}"
        );

        for (kind, mend) in [
            (io::ErrorKind::PermissionDenied, "owns"),
            (io::ErrorKind::StorageFull, "free some space"),
        ] {
            let error = storage_error("goods", io::Error::from(kind).into());
            assert_eq!(error.kind(), ErrorKind::Storage);
            assert!(error.hint().unwrap().contains(mend), "{error}");
        }
    }

    #[test]
    fn an_error_of_ours_comes_back_as_it_was() {
        let ours = Error::new(ErrorKind::Computation, "row 5").with_hint("mend it");
        let through = DataFusionError::from(lance::Error::from(DataFusionError::from(ours)));
        let error = query_error("goods", through);
        assert_eq!(error.kind(), ErrorKind::Computation);
        assert_eq!((error.message(), error.hint()), ("row 5", Some("mend it")));
    }

    #[test]
    fn a_table_is_named_by_the_last_part_of_its_uri() {
        assert_eq!(table_name("/data/db/goods.lance"), "goods");
        assert_eq!(table_name("s3://bucket/db/goods.lance/"), "goods");
        assert_eq!(table_name("goods"), "goods");
    }
}
