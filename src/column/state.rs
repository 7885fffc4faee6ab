//! The state of a computed column: which inputs its values reflect, and which rows lack one.
//!
//! Invariant: every row live at the watermark, except those in `pending`, holds what the
//! definition gives for the inputs as of the watermark or later. The state is written in
//! the transaction properties of the commit that carries the values, so both are there
//! or neither. It is found by walking back from the newest version; a restored version
//! leads to the version that it restored, because the commits in between are undone. Where the walk
//! ends at a version that is gone, the copy in the table's metadata counts, if there is one
//! (see [`super::mirror`]).

use lance::Dataset;
use lance::dataset::transaction::Operation;
use serde::{Deserialize, Serialize};

use super::mirror;
use crate::database::definition::ComputedColumn;
use crate::delta::{FieldIdentity, VersionStamp};
use crate::storage::properties::COLUMN_STATE;
use crate::storage::{RowSet, storage_error};
use crate::{Error, Result};

/// Rows that lack a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pending {
    /// All rows, those of the watermark and later ones; with the reason code.
    All(String),
    /// These row ids.
    Rows(RowSet),
    /// The row ids in this file below `_headwater/`, because they are many.
    File(String),
}

/// The state of a computed column at one commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnState {
    /// Digest of the definition that the values come from.
    pub definition: String,
    /// The version of the table that the values reflect.
    pub watermark: VersionStamp,
    /// The stored columns that the expression reads, as they were at the watermark.
    pub inputs: Vec<FieldIdentity>,
    /// Rows never computed, or left out.
    pub pending: Pending,
}

impl ColumnState {
    /// The state of a column of which nothing is computed: it was just declared, or has a new
    /// definition. `reason` is the reason code for computing all rows.
    pub fn unfilled(column: &ComputedColumn, watermark: VersionStamp, reason: &str) -> Self {
        Self {
            definition: column.digest(),
            watermark,
            inputs: Vec::new(),
            pending: Pending::All(reason.to_string()),
        }
    }

    /// The transaction property that holds it.
    pub fn property(&self, field_id: i32) -> Result<(String, String)> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::internal(format!("a state can't be written: {error}")))?;
        Ok((format!("{COLUMN_STATE}{field_id}"), text))
    }
}

/// A state, and where it was found.
#[derive(Debug, Clone)]
pub enum FoundState {
    /// The newest state.
    State(Box<ColumnState>),
    /// The column was never refreshed here: its table was made with it, or others declared it.
    Never,
    /// A version on the way is gone, or what it holds can't be read.
    Lost,
}

/// Finds the newest states of the columns whose fields have the ids `field_ids`, in their order.
pub async fn find_states(
    table: &str,
    dataset: &Dataset,
    field_ids: &[i32],
) -> Result<Vec<FoundState>> {
    let located = locate_states(table, dataset, field_ids).await?;
    Ok(located.into_iter().map(|located| located.state).collect())
}

/// A state, and how it was found.
#[derive(Debug, Clone)]
pub(super) struct Located {
    /// The state.
    pub(super) state: FoundState,
    /// The version whose commit carries it; `None` if it is a copy, or there is none.
    pub(super) version: Option<u64>,
}

impl Located {
    fn nowhere(state: FoundState) -> Self {
        Self {
            state,
            version: None,
        }
    }
}

/// As [`find_states`], with the versions.
pub(super) async fn locate_states(
    table: &str,
    dataset: &Dataset,
    field_ids: &[i32],
) -> Result<Vec<Located>> {
    let keys: Vec<String> = field_ids
        .iter()
        .map(|id| format!("{COLUMN_STATE}{id}"))
        .collect();
    let mut found: Vec<Option<Located>> = vec![None; keys.len()];
    let newest = dataset.version().version;
    let mut version = newest;
    // The version whose metadata speaks of the content that is looked at: a restore brings back that of
    // the version restored.
    let mut source = newest;
    let lost = loop {
        if version == 0 || found.iter().all(Option::is_some) {
            break false;
        }
        let transaction = match dataset.read_transaction_by_version(version).await {
            Ok(Some(transaction)) => transaction,
            Ok(None) => {
                // A commit of others without a record; it carries no state of ours.
                version -= 1;
                continue;
            }
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => {
                break true;
            }
            Err(error) => return Err(storage_error(table, error)),
        };
        if let Some(properties) = &transaction.transaction_properties {
            for (slot, key) in found.iter_mut().zip(&keys) {
                if let (None, Some(text)) = (&slot, properties.get(key)) {
                    let state = match serde_json::from_str(text) {
                        Ok(state) => FoundState::State(Box::new(state)),
                        Err(_) => FoundState::Lost,
                    };
                    let version = Some(version);
                    *slot = Some(Located { state, version });
                }
            }
        }
        match transaction.operation {
            // Below an overwrite is another table.
            Operation::Overwrite { .. } => break false,
            Operation::Restore { version: restored } => {
                source = version;
                version = restored;
            }
            _ => version -= 1,
        }
    };
    let mut rest = vec![FoundState::Never; keys.len()];
    if lost {
        let copies = match source == newest {
            true => mirror::states(dataset.metadata(), dataset.schema(), field_ids),
            false => match dataset.checkout_version(source).await {
                Ok(restored) => mirror::states(restored.metadata(), dataset.schema(), field_ids),
                Err(error) if error.is_not_found() => vec![FoundState::Lost; keys.len()],
                Err(error) => return Err(storage_error(table, error)),
            },
        };
        rest = copies;
    }
    Ok(found
        .into_iter()
        .zip(rest)
        .map(|(slot, rest)| slot.unwrap_or_else(|| Located::nowhere(rest)))
        .collect())
}
