//! What changed in a table between two of its versions, for a set of fields.
//!
//! [`changes`] finds the rows that were inserted, updated and deleted. It reads no
//! data: manifests tell which rows live at a version, and the transactions in
//! between tell which rows each commit dirtied. So it costs what was changed, not
//! what the table holds.
//!
//! # How
//!
//! Row ids must be stable: then a row keeps its id through updates and compactions,
//! and no id is given twice. With *live(v)* the ids at version *v*:
//!
//! - inserted = live(v1) − live(v0), deleted = live(v0) − live(v1). Fragments that
//!   both versions list with the same deletions cancel out and are not looked at.
//! - updated = dirty ∩ live(v0) ∩ live(v1), where *dirty* is what the commits on the
//!   way from v0 to v1 may have written to the fields. An append, a
//!   delete, a compaction, an index or another column's values dirty nothing. Rows
//!   that an update moved to a new fragment are dirty, and so are rows of fragments
//!   whose files for the fields were replaced.
//!
//! A transaction of somebody else's update does not say which fields it set. Such
//! rows are listed as [`unconfirmed`](RowChanges::unconfirmed) too, and [`confirm`]
//! compares their values at both versions: worth it when computing is dearer than
//! reading.
//!
//! # What holds
//!
//! 1. Inserted and deleted rows are exact.
//! 2. A row that lives at both versions and differs in one of the fields is among
//!    the updated ones. The converse does not hold: a row may have been written and
//!    still be equal, though never one that no commit on the way touched.
//! 3. Where that can't be said of single rows, [`Delta::Everything`] says why.
//!
//! The versions may be in either order, and restores may lie between them.

mod compare;
mod fields;
mod fragments;
mod replay;
#[cfg(test)]
mod tests;

use std::fmt;

use lance::Dataset;
use serde::{Deserialize, Serialize};

pub use compare::confirm;
pub use fields::FieldIdentity;

use self::fields::Inputs;
use self::replay::Replayed;
use crate::error::Result;
use crate::storage::row_set::RowSet;

/// A version of a table, and which one: a table that was dropped and made again
/// starts at version 1 again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStamp {
    /// The version's number.
    pub version: u64,
    /// The UUID of the transaction that made it; empty when it left none.
    pub transaction: String,
}

impl VersionStamp {
    /// The version that `dataset` is checked out at.
    ///
    /// # Errors
    /// When the transaction has to be read for it, and can't be.
    pub async fn of(dataset: &Dataset) -> Result<Self> {
        let manifest = dataset.manifest();
        // Named `<version read>-<uuid>.txn`.
        let named = manifest.transaction_file.as_deref().and_then(|file| {
            let (_, uuid) = file.strip_suffix(".txn")?.split_once('-')?;
            Some(uuid.to_string())
        });
        let transaction = match named {
            Some(uuid) => uuid,
            None => dataset
                .read_transaction_by_version(manifest.version)
                .await?
                .map(|transaction| transaction.uuid)
                .unwrap_or_default(),
        };
        Ok(Self {
            version: manifest.version,
            transaction,
        })
    }
}

/// What changed between two versions of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// These rows.
    Rows(RowChanges),
    /// All rows have to be taken as changed.
    Everything(FullReason),
}

/// Why all rows have to be taken as changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullReason {
    /// The version to compare with was cleaned up.
    SourceVersionGone,
    /// The table was overwritten, or dropped and made again.
    SourceReplaced,
    /// One of the fields was dropped, cast, or is another one under the same name.
    InputReplaced,
    /// The table has no stable row ids, or had none at the version to compare with.
    RowTrackingNotEnabled,
}

impl FullReason {
    /// The reason as users see it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SourceVersionGone => "SOURCE_VERSION_GONE",
            Self::SourceReplaced => "SOURCE_REPLACED",
            Self::InputReplaced => "INPUT_REPLACED",
            Self::RowTrackingNotEnabled => "ROW_TRACKING_NOT_ENABLED",
        }
    }
}

impl fmt::Display for FullReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Rows that changed, by row id.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowChanges {
    /// Live at the end, but not at the beginning.
    pub inserted: RowSet,
    /// Live at both, and surely or possibly changed in the fields.
    pub updated: RowSet,
    /// Those of `updated` of which the commits don't tell whether the fields
    /// changed: [`confirm`] does, by their values.
    pub unconfirmed: RowSet,
    /// Live at the beginning, but not at the end.
    pub deleted: RowSet,
    /// Commits between the two versions. Those that a restore undid don't count.
    pub commits: u64,
}

/// The changes between `from` and the version that `dataset` is checked out at, for
/// `fields`. The names of the fields are those at the latter.
///
/// # Errors
/// When the store fails. Versions that are gone are no error: if it is `from`, the
/// delta is everything; if it is one in between, the end points are compared.
pub async fn changes(
    dataset: &Dataset,
    from: &VersionStamp,
    fields: &[FieldIdentity],
) -> Result<Delta> {
    let old = match dataset.checkout_version(from.version).await {
        Ok(old) => old,
        Err(error) if replay::is_missing(&error) => {
            return Ok(Delta::Everything(FullReason::SourceVersionGone));
        }
        Err(error) => return Err(error.into()),
    };
    if VersionStamp::of(&old).await? != *from {
        return Ok(Delta::Everything(FullReason::SourceReplaced));
    }
    if !old.manifest().uses_stable_row_ids() || !dataset.manifest().uses_stable_row_ids() {
        return Ok(Delta::Everything(FullReason::RowTrackingNotEnabled));
    }
    let inputs = match Inputs::resolve(dataset.schema(), fields) {
        Some(inputs) if inputs.present_in(old.schema()) => inputs,
        _ => return Ok(Delta::Everything(FullReason::InputReplaced)),
    };
    let dirty = match replay::replay(&old, dataset, &inputs).await? {
        Replayed::Dirty(dirty) => dirty,
        Replayed::Full(reason) => return Ok(Delta::Everything(reason)),
    };
    let (inserted, deleted) = fragments::came_and_went(&old, dataset).await?;

    let dirtied = dirty.written.clone().union(&dirty.unconfirmed);
    let updated = fragments::live_among(dataset, &dirtied.difference(&inserted)).await?;
    let unconfirmed = dirty
        .unconfirmed
        .intersection(&updated)
        .difference(&dirty.written);
    Ok(Delta::Rows(RowChanges {
        inserted,
        updated,
        unconfirmed,
        deleted,
        commits: dirty.commits,
    }))
}
