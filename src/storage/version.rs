//! The versions of a table: listing them, and naming what made each.

use std::collections::BTreeMap;

use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::transaction::Operation;

use super::commit::{Properties, commit, commit_error};
use super::properties::COLUMN_STATE;
use super::storage_error;
use super::tag::tags;
use crate::Result;

/// One version of a table.
#[derive(Debug, Clone)]
pub struct VersionEntry {
    /// Its number.
    pub version: u64,
    /// When it was committed, in milliseconds since 1970, UTC.
    pub timestamp_millis: i64,
    /// What made it: INSERT, UPDATE, REFRESH COLUMN … as far as the commit tells.
    pub operation: String,
    /// The tags on it, with commas between; `None` if there are none.
    pub tags: Option<String>,
}

/// All versions that are still there, oldest first.
pub async fn versions(table: &str, dataset: &Dataset) -> Result<Vec<VersionEntry>> {
    let listed = dataset
        .versions()
        .await
        .map_err(|error| storage_error(table, error))?;
    let mut tagged: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for tag in tags(table, dataset).await? {
        if tag.branch.is_none() {
            tagged.entry(tag.version).or_default().push(tag.name);
        }
    }
    let mut entries = Vec::with_capacity(listed.len());
    for version in listed {
        let transaction = dataset
            .read_transaction_by_version(version.version)
            .await
            .ok()
            .flatten();
        entries.push(VersionEntry {
            version: version.version,
            timestamp_millis: version.timestamp.timestamp_millis(),
            operation: transaction
                .map_or_else(|| "unknown".to_string(), |t| operation_name(&t.operation)),
            tags: tagged.get(&version.version).map(|tags| tags.join(", ")),
        });
    }
    Ok(entries)
}

/// The versions that are still there, with the times when they were committed, in milliseconds since 1970,
/// UTC; oldest first.
pub async fn version_times(table: &str, dataset: &Dataset) -> Result<Vec<(u64, i64)>> {
    let mut listed = dataset.versions().await;
    if listed.as_ref().is_err_and(lance::Error::is_not_found) {
        // Another removed one between listing and reading.
        listed = dataset.versions().await;
    }
    let listed = listed.map_err(|error| storage_error(table, error))?;
    Ok(listed
        .into_iter()
        .map(|version| (version.version, version.timestamp.timestamp_millis()))
        .collect())
}

/// When the first commit behind `version` was made that may have changed rows or values of `dataset`, in milliseconds
/// since 1970, UTC: not one that only moved rows, or changed indexes or metadata. `None` if there is none up to the
/// version of `dataset`.
///
/// Versions on the way that are gone are passed over, so it may be later than it was, never earlier.
pub async fn first_change_after(
    table: &str,
    dataset: &Dataset,
    version: u64,
) -> Result<Option<i64>> {
    let newest = dataset.version();
    for next in version.saturating_add(1)..=newest.version {
        let transaction = match dataset.read_transaction_by_version(next).await {
            Ok(transaction) => transaction,
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => continue,
            Err(error) => return Err(storage_error(table, error)),
        };
        let keeps = transaction.is_some_and(|transaction| {
            matches!(
                transaction.operation,
                Operation::Rewrite { .. }
                    | Operation::CreateIndex { .. }
                    | Operation::UpdateConfig { .. }
                    | Operation::ReserveFragments { .. }
            )
        });
        if keeps {
            continue;
        }
        if next == newest.version {
            return Ok(Some(newest.timestamp.timestamp_millis()));
        }
        match dataset.checkout_version(next).await {
            Ok(found) => return Ok(Some(found.version().timestamp.timestamp_millis())),
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => {}
            Err(error) => return Err(storage_error(table, error)),
        }
    }
    Ok(None)
}

/// What the newest commit says that carries a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewestProperty {
    /// The property, and the version whose commit carries it.
    Found(String, u64),
    /// No commit carries it since the table was made.
    Never,
    /// A version on the way is gone, or has no record.
    Lost,
    /// A commit since, which does not carry it, added, changed or removed rows.
    RowsChanged,
}

/// Walks back from the version of `dataset` to the newest commit that carries the transaction property `key`. A restored
/// version leads to the version that it restored, because the commits in between are undone.
pub async fn newest_property(table: &str, dataset: &Dataset, key: &str) -> Result<NewestProperty> {
    let mut version = dataset.version().version;
    while version > 0 {
        let transaction = match dataset.read_transaction_by_version(version).await {
            Ok(Some(transaction)) => transaction,
            Ok(None) => return Ok(NewestProperty::Lost),
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => {
                return Ok(NewestProperty::Lost);
            }
            Err(error) => return Err(storage_error(table, error)),
        };
        let properties = transaction.transaction_properties.as_ref();
        if let Some(text) = properties.and_then(|properties| properties.get(key)) {
            return Ok(NewestProperty::Found(text.clone(), version));
        }
        match transaction.operation {
            // The table was made here.
            Operation::Overwrite { .. } => return Ok(NewestProperty::Never),
            Operation::Append { .. } | Operation::Delete { .. } | Operation::Update { .. } => {
                return Ok(NewestProperty::RowsChanged);
            }
            Operation::Restore { version: restored } => version = restored,
            _ => version -= 1,
        }
    }
    Ok(NewestProperty::Never)
}

/// Makes a new version with the content of `version`: schema, rows, definitions and all.
pub async fn restore(table: &str, dataset: &Dataset, version: u64) -> Result<Dataset> {
    let operation = Operation::Restore { version };
    commit(table, dataset, operation, Properties::new(), None).await
}

/// What a user would call the statement behind an operation.
pub fn operation_name(operation: &Operation) -> String {
    match operation {
        Operation::Append { .. } => "INSERT",
        Operation::Delete { .. } => "DELETE",
        Operation::Overwrite { .. } => "CREATE",
        Operation::CreateIndex { .. } => "CREATE INDEX",
        // A compaction first sets the ids of its fragments aside, in a version of its own.
        Operation::Rewrite { .. } | Operation::ReserveFragments { .. } => "OPTIMIZE",
        Operation::DataReplacement { .. } => "REFRESH COLUMN",
        Operation::Update { .. } => "UPDATE",
        // States are copied there, beside the commits that they belong to.
        Operation::UpdateConfig {
            config_updates: None,
            table_metadata_updates: Some(updates),
            schema_metadata_updates: None,
            field_metadata_updates,
        } if field_metadata_updates.is_empty()
            && updates
                .update_entries
                .iter()
                .all(|entry| entry.key.starts_with(COLUMN_STATE)) =>
        {
            "KEEP STATE"
        }
        Operation::Merge { .. } | Operation::Project { .. } | Operation::UpdateConfig { .. } => {
            "ALTER"
        }
        Operation::Restore { .. } => "RESTORE",
        other => return other.to_string().to_uppercase(),
    }
    .to_string()
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Compaction {
    /// Fragments that went.
    pub fragments_removed: u64,
    /// Fragments that took their place.
    pub fragments_added: u64,
}

/// How to compact; `None` takes Lance's default.
#[derive(Debug, Clone, Copy, Default)]
pub struct CompactionSettings {
    /// Rows that a fragment should have.
    pub target_rows_per_fragment: Option<usize>,
    /// Whether fragments with many deleted rows are rewritten.
    pub materialize_deletions: Option<bool>,
    /// The share of deleted rows from which on they are, 0 to 1.
    pub materialize_deletions_threshold: Option<f32>,
}

/// Joins small fragments and drops deleted rows from those that have many.
pub async fn compact(
    table: &str,
    dataset: &mut Dataset,
    settings: CompactionSettings,
) -> Result<Compaction> {
    let mut options = CompactionOptions::default();
    if let Some(rows) = settings.target_rows_per_fragment {
        options.target_rows_per_fragment = rows;
    }
    if let Some(materialize) = settings.materialize_deletions {
        options.materialize_deletions = materialize;
    }
    if let Some(threshold) = settings.materialize_deletions_threshold {
        options.materialize_deletions_threshold = threshold;
    }
    let done = compact_files(dataset, options, None)
        .await
        .map_err(|error| commit_error(table, error))?;
    Ok(Compaction {
        fragments_removed: done.fragments_removed as u64,
        fragments_added: done.fragments_added as u64,
    })
}
