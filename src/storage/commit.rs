//! Commits: one transaction each, with properties, and what to do on a conflict.
//!
//! A conflict is an error of the kind [`ErrorKind::Conflict`]: what was prepared
//! does not fit the newest version any more. Who gets it plans again from the newest
//! version; [`with_retries`] does that a bounded number of times.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use lance::Dataset;
use lance::dataset::CommitBuilder;
use lance::dataset::transaction::{Operation, TransactionBuilder};
use lance_core::error::CommitStatusUnknownError;
use lance_select::RowAddrTreeMap;

use super::storage_error;
use crate::{Error, ErrorKind, Result};

/// How often a statement plans again after a conflict before it gives up.
const MAX_ATTEMPTS: usize = 20;

/// Properties to write with a commit.
pub type Properties = HashMap<String, String>;

/// Commits `operation`, which was prepared on the version of `dataset`.
///
/// Lance rebases it over commits of others where that is safe; `affected` (the
/// addresses of the rows that it removes) widens what is safe.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] if others committed what does not go together with it.
pub async fn commit(
    table: &str,
    dataset: &Dataset,
    operation: Operation,
    properties: Properties,
    affected: Option<RowAddrTreeMap>,
) -> Result<Dataset> {
    let transaction = TransactionBuilder::new(dataset.version().version, operation)
        .transaction_properties((!properties.is_empty()).then(|| Arc::new(properties)))
        .build();
    let mut builder = CommitBuilder::new(Arc::new(dataset.clone()))
        // A table that others made may ask for it; but states refer to its older versions.
        .with_skip_auto_cleanup(true);
    if let Some(affected) = affected {
        builder = builder.with_affected_rows(affected);
    }
    // Boxed here and in `open`: Lance's futures nest deeply, and those of our callers around them.
    Box::pin(builder.execute(transaction))
        .await
        .map_err(|error| commit_error(table, error))
}

/// Turns a failed commit into our error; conflicts are told from the rest.
pub(super) fn commit_error(table: &str, error: lance::Error) -> Error {
    use lance::Error as Lance;
    match error {
        Lance::RetryableCommitConflict { .. }
        | Lance::IncompatibleTransaction { .. }
        | Lance::CommitConflict { .. }
        | Lance::TooMuchWriteContention { .. } => Error::new(
            ErrorKind::Conflict,
            format!("table '{table}' was changed by others meanwhile: {error}"),
        )
        .with_hint("run the statement again")
        .with_source(error),
        other => storage_error(table, other),
    }
}

/// Runs `attempt` until it meets no conflict, with growing pauses, at most
/// [`MAX_ATTEMPTS`] times. `attempt` has to begin from the newest version each time.
pub async fn with_retries<T, F, Fut>(attempt: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    retried(attempt, |error| error.kind() == ErrorKind::Conflict).await
}

/// As [`with_retries`], for an `attempt` that finds out whether an earlier one has landed after all: it
/// is also run again if the store did not say what became of the commit.
pub async fn with_retries_until_known<T, F, Fut>(attempt: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    retried(attempt, |error| {
        error.kind() == ErrorKind::Conflict || is_of_unknown_outcome(error)
    })
    .await
}

fn is_of_unknown_outcome(error: &Error) -> bool {
    use std::error::Error as _;

    let lance = error.source().and_then(|source| source.downcast_ref());
    lance.and_then(unknown_version).is_some()
}

/// The version of which the store did not say whether it was committed, if that is the error.
pub(super) fn unknown_version(error: &lance::Error) -> Option<u64> {
    match error.find_root() {
        lance::Error::Wrapped { error, .. } => error
            .downcast_ref::<CommitStatusUnknownError>()
            .map(CommitStatusUnknownError::version),
        _ => None,
    }
}

async fn retried<T, F, Fut>(attempt: F, again: impl FnMut(&Error) -> bool) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    attempt
        .retry(
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(10))
                .with_max_delay(Duration::from_secs(2))
                .with_max_times(MAX_ATTEMPTS)
                .with_jitter(),
        )
        .when(again)
        .await
}
