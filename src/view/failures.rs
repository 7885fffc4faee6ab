//! How often a view could not be refreshed in a row by whoever keeps it within its lag.
//!
//! A file of its own beside the table, not part of the definition: it changes with every attempt, and nothing that must
//! be right depends on it.

use serde::{Deserialize, Serialize};

use crate::database::Database;
use crate::{Error, Result};

const FOLDER: &str = "refresh-failures";

/// Refreshes of a view that failed, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// The definition's id: a view that was dropped and made again begins anew.
    pub definition: String,
    /// How many.
    pub count: u32,
    /// The error of the last one, with what was being done and the mend.
    pub error: String,
    /// When it failed, in milliseconds since 1970, UTC.
    pub at: i64,
    /// When it may be tried again.
    pub next: i64,
}

fn path(view: &str) -> String {
    format!("{FOLDER}/{view}.json")
}

/// Names of the views that have failed, sorted.
pub async fn names(database: &Database) -> Result<Vec<String>> {
    let files = database.root().list_own(FOLDER).await?;
    let names = files.iter().filter_map(|file| file.strip_suffix(".json"));
    Ok(names.map(str::to_string).collect())
}

/// The failures of a view; `None` if it has none.
pub async fn read(database: &Database, view: &str) -> Result<Option<Failures>> {
    let found = database.root().read_own(&path(view)).await?;
    // What can't be read tells nothing.
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Writes down the failures of a view.
pub async fn store(database: &Database, view: &str, failures: &Failures) -> Result<()> {
    let text = serde_json::to_string(failures)
        .map_err(|error| Error::internal(format!("failures can't be written: {error}")))?;
    database.root().replace_own(&path(view), text).await
}

/// Forgets them: it was refreshed, resumed or dropped.
pub async fn forget(database: &Database, view: &str) -> Result<()> {
    database.root().remove_own(&path(view)).await
}
