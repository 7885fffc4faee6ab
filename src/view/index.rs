//! Which columns of a view and of its sources get a BTree: those that refreshes look a few rows up in, where that pays.
//!
//! To find rows by a key, a refresh reads the key of all rows; an index spares it that, if the keys are far fewer than its
//! pages. To make one takes as long as some twenty such readings.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lance::Dataset;

use super::options::ViewOptions;
use super::source::{Origin, Source, SourceVersions};
use crate::Result;
use crate::storage::fragments::physical_rows;
use crate::storage::index::{Kept, PAGE_ROWS, keep_btree};

/// Rows of a table from which on an index may pay.
const MANY_ROWS: u64 = 4_000_000;
/// Of how many rows one is looked for, at least: two pages of an index for each.
const SPARSE: u64 = 2 * PAGE_ROWS;

/// Columns that a pass has looked rows up in, each with how many keys at most: of a source, by its place, or of the rows
/// that are stored.
#[derive(Debug, Default)]
pub(super) struct LookUps(Mutex<BTreeMap<(Option<usize>, String), usize>>);

impl LookUps {
    /// Notes that rows with one of `keys` keys were looked for.
    pub(super) fn add(&self, source: Option<usize>, column: &str, keys: usize) {
        let mut columns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = columns.entry((source, column.to_string())).or_default();
        *most = keys.max(*most);
    }
}

/// Where rows may have been looked up.
pub(super) struct LookedUp<'a> {
    /// The sources, in the order of the query.
    pub(super) sources: &'a [Source],
    /// Their versions.
    pub(super) versions: &'a [SourceVersions],
    /// The table that holds the rows.
    pub(super) table: &'a str,
    /// It, as it is now.
    pub(super) dataset: &'a Dataset,
}

/// Makes and extends indexes on what `look_ups` names. Gives notices.
///
/// # Errors
///
/// If the store fails: what is refreshed is committed all the same.
pub(super) async fn keep_indexes(
    look_ups: &LookUps,
    looked_up: &LookedUp<'_>,
    options: &ViewOptions,
) -> Result<Vec<String>> {
    let columns = {
        let mut columns = look_ups.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *columns)
    };
    let mut notices = Vec::new();
    for ((source, column), keys) in columns {
        let (table, dataset, wanted) = match source {
            None => (looked_up.table, looked_up.dataset, None),
            Some(place) => {
                let versions = looked_up.versions.get(place);
                match (looked_up.sources.get(place), versions) {
                    (Some(source), Some(versions)) if is_table(source) => {
                        let table = source.table.as_str();
                        (table, versions.new.as_ref(), options.index_sources)
                    }
                    _ => continue,
                }
            }
        };
        if !wanted.unwrap_or_else(|| pays(dataset, keys)) {
            continue;
        }
        let is_new = keep_btree(table, dataset, &column).await? == Kept::Made;
        if is_new && source.is_some() {
            notices.push(format!(
                "INDEXED: refreshes look rows of '{table}' up by '{column}', which has an index now; index_sources = FALSE forbids that"
            ));
        }
    }
    Ok(notices)
}

fn is_table(source: &Source) -> bool {
    matches!(source.origin, Origin::Table(_))
}

fn pays(dataset: &Dataset, keys: usize) -> bool {
    let rows = physical_rows(dataset);
    rows >= MANY_ROWS && (keys as u64).saturating_mul(SPARSE) <= rows
}
