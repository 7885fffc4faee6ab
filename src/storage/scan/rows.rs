//! Scans of some rows, which are named by their ids.
//!
//! Ids become places in fragments, and only what holds such rows is read: fragments that have none
//! are left out, and of the others Lance reads the pages that hold the rows.

use std::fmt;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance_select::RowAddrTreeMap;
use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::ScanDescription;
use crate::storage::RowSet;
use crate::storage::fragments::{live_rows, offsets_of};
use crate::{Error, Result};

/// Fragments whose deletions are read at once.
const AHEAD: usize = 16;

/// Which rows of a table a scan reads, by their ids.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RowFilter {
    /// All.
    #[default]
    All,
    /// Those of the set that the table has.
    Only(Arc<RowSet>),
    /// All but those of the set.
    Except(Arc<RowSet>),
}

impl RowFilter {
    /// Whether every row is read, whatever the table has.
    pub fn is_all(&self) -> bool {
        match self {
            Self::All => true,
            Self::Only(_) => false,
            Self::Except(ids) => ids.is_empty(),
        }
    }

    /// Fails if the rows of `dataset` have no ids that survive a rewrite.
    pub(super) fn check(&self, table: &str, dataset: &Dataset) -> Result<()> {
        if self.is_all() || dataset.manifest().uses_stable_row_ids() {
            return Ok(());
        }
        Err(Error::internal(format!(
            "table '{table}' has no row ids that survive a rewrite: a scan can't select rows by them"
        )))
    }
}

/// The rows of a fragment that a scan reads.
struct Selected {
    /// How many live rows.
    rows: u64,
    /// Where they are; deleted rows may be among them. `None` if it is the whole fragment.
    offsets: Option<RoaringBitmap>,
}

async fn selected(
    table: &str,
    dataset: &Dataset,
    fragment: &Fragment,
    filter: &RowFilter,
) -> Result<Selected> {
    let live = live_rows(table, dataset, fragment).await?;
    let all = Selected {
        rows: live,
        offsets: None,
    };
    Ok(match filter {
        RowFilter::All => all,
        RowFilter::Only(ids) => {
            let offsets = offsets_of(table, dataset, fragment, ids).await?;
            match offsets.len() == live {
                true => all,
                false => Selected {
                    rows: offsets.len(),
                    offsets: Some(offsets),
                },
            }
        }
        RowFilter::Except(ids) => {
            let dropped = offsets_of(table, dataset, fragment, ids).await?;
            match (dropped.is_empty(), fragment.physical_rows) {
                (true, _) => all,
                (false, None) => {
                    return Err(Error::internal(format!(
                        "fragment {} of table '{table}' does not say how many rows it has",
                        fragment.id
                    )));
                }
                (false, Some(physical)) => {
                    let mut offsets = RoaringBitmap::new();
                    offsets.insert_range(0..physical as u32);
                    Selected {
                        rows: live - dropped.len(),
                        offsets: Some(offsets - dropped),
                    }
                }
            }
        }
    })
}

/// The fragments of `dataset` that hold rows of `filter`, in their order, as (id, live rows of these).
pub async fn selected_rows(
    table: &str,
    dataset: &Dataset,
    filter: &RowFilter,
) -> Result<Vec<(u64, u64)>> {
    filter.check(table, dataset)?;
    let fragments = dataset.fragments().iter().cloned();
    let counts = fragments.map(|fragment| async move {
        let rows = selected(table, dataset, &fragment, filter).await?.rows;
        Ok::<_, Error>((fragment.id, rows))
    });
    let counts: Vec<_> = stream::iter(counts).buffered(AHEAD).try_collect().await?;
    Ok(counts.into_iter().filter(|(_, rows)| *rows > 0).collect())
}

/// The addresses in `fragments` that `description` reads; `None` if it is all of them.
pub(super) async fn selected_addresses(
    dataset: &Dataset,
    description: &ScanDescription,
    fragments: impl Iterator<Item = &Fragment>,
) -> Result<Option<RowAddrTreeMap>> {
    if description.rows.is_all() {
        return Ok(None);
    }
    let (table, rows) = (description.table(), &description.rows);
    let found = fragments.cloned().map(|fragment| async move {
        let found = selected(table, dataset, &fragment, rows).await?;
        Ok::<_, Error>((fragment.id as u32, found))
    });
    let found = stream::iter(found.collect::<Vec<_>>()).buffered(AHEAD);
    let mut found = std::pin::pin!(found);
    let mut addresses = RowAddrTreeMap::new();
    while let Some((fragment, found)) = found.try_next().await? {
        match found.offsets {
            Some(_) if found.rows == 0 => {}
            Some(offsets) => addresses.insert_bitmap(fragment, offsets),
            None => addresses.insert_fragment(fragment),
        }
    }
    Ok(Some(addresses))
}

/// Says which rows are read, for people: how many of how many, where that is known.
pub(super) struct Shown<'a> {
    pub(super) filter: &'a RowFilter,
    /// Rows that are read.
    pub(super) read: Option<u64>,
    /// Live rows of the table.
    pub(super) all: Option<u64>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, ids) = match self.filter {
            RowFilter::All => return f.write_str("all"),
            RowFilter::Only(ids) => ("only", ids),
            RowFilter::Except(ids) => ("except", ids),
        };
        match (self.read, self.all) {
            (Some(read), Some(all)) if word == "only" => write!(f, "{word} {read} of {all}"),
            (Some(read), Some(all)) => write!(f, "{word} {} of {all}", all.saturating_sub(read)),
            _ => write!(f, "{word} {}", ids.len()),
        }
    }
}
