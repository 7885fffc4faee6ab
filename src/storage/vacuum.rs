//! Removing old versions of a table, with the files that only they name.

use std::collections::BTreeSet;

use lance::Dataset;
use lance::dataset::cleanup::{CleanupPolicy, RemovalStats};

use super::storage_error;
use crate::Result;

/// What was removed, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Versions.
    pub versions: u64,
    /// Files, those of the versions themselves too.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Files that could not be removed; the next time finds them again.
    pub failed: u64,
}

impl Removed {
    fn of(stats: &RemovalStats) -> Self {
        Self {
            versions: stats.old_versions,
            files: stats.old_versions
                + stats.data_files_removed
                + stats.transaction_files_removed
                + stats.index_files_removed
                + stats.deletion_files_removed,
            bytes: stats.bytes_removed,
            failed: stats.failed_deletes,
        }
    }
}

/// Removes `versions` and the files that only they name; with `dry_run` it only says what would go.
///
/// The newest version stays, and so do versions that tags and branches keep, whatever is asked for. A file
/// that no version names goes if it is older than a week: before, it may be of a commit to come.
pub async fn remove_versions(
    table: &str,
    dataset: &Dataset,
    versions: &BTreeSet<u64>,
    dry_run: bool,
) -> Result<Removed> {
    let policy = CleanupPolicy {
        versions: Some(versions.iter().copied().collect()),
        // A file that no version names yet may be of a refresh that goes on.
        delete_unverified: false,
        // A tag that was put on one meanwhile keeps it, and is no error.
        error_if_tagged_old_versions: false,
        ..CleanupPolicy::default()
    };
    let cleanup = dataset.cleanup(policy);
    let stats = match dry_run {
        true => cleanup.explain().await.map(|explained| explained.stats),
        false => cleanup.execute().await,
    };
    let stats = stats.map_err(|error| storage_error(table, error))?;
    Ok(Removed::of(&stats))
}
