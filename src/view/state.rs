//! The state of a materialized view: the versions of its sources that its rows reflect.
//!
//! Invariant: the rows of the table are what the definition gives for those versions. The state is written in the
//! transaction properties of the commit that changes the rows, so both are there or neither. It is found by walking
//! back from the newest version; a restored version leads to the version that it restored.

use lance::Dataset;
use serde::{Deserialize, Serialize};

use super::failed::FailedRows;
use crate::delta::{FieldIdentity, VersionStamp};
use crate::storage::properties::VIEW_STATE;
use crate::storage::version::{NewestProperty, newest_property};
use crate::{Error, Result};

/// What a view reflects of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceState {
    /// The table.
    pub table: String,
    /// Its version.
    pub version: VersionStamp,
    /// The columns that the query reads, as they were.
    pub columns: Vec<FieldIdentity>,
}

/// The state of a materialized view at one commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewState {
    /// Digest of the definition that the rows come from.
    pub definition: String,
    /// The sources, in the order of the query.
    pub sources: Vec<SourceState>,
    /// The tables that the stages of the query read, in their order.
    #[serde(default)]
    pub below: Vec<SourceState>,
    /// The mode of the refresh that made it: `full`, `incremental`, or `filtered` (FAILED ONLY).
    pub mode: String,
    /// The reason code of a full refresh; empty otherwise.
    pub reason: String,
    /// Rows for which a call failed, by column.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedRows>,
}

impl ViewState {
    /// The tables of the database among the sources, and those that the stages read.
    pub fn tables(&self) -> impl Iterator<Item = &SourceState> {
        let is_stage = |source: &&SourceState| source.table.contains('/');
        let own = self.sources.iter().filter(move |source| !is_stage(source));
        own.chain(&self.below)
    }

    /// It as a transaction property.
    pub fn property(&self) -> Result<(String, String)> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::internal(format!("a state can't be written: {error}")))?;
        Ok((VIEW_STATE.to_string(), text))
    }
}

/// A state, and what is known of it.
#[derive(Debug, Clone)]
pub enum FoundState {
    /// The newest state.
    State(Box<ViewState>),
    /// It was never refreshed.
    Never,
    /// A version on the way is gone, or what it holds can't be read.
    Lost,
    /// Others changed rows of the view since.
    Modified,
}

/// Finds the state of the view that `dataset` holds.
pub async fn find_state(table: &str, dataset: &Dataset) -> Result<FoundState> {
    Ok(match newest_property(table, dataset, VIEW_STATE).await? {
        NewestProperty::Found(text, _) => match serde_json::from_str(&text) {
            Ok(state) => FoundState::State(Box::new(state)),
            Err(_) => FoundState::Lost,
        },
        NewestProperty::Never => FoundState::Never,
        NewestProperty::Lost => FoundState::Lost,
        NewestProperty::RowsChanged => FoundState::Modified,
    })
}
