//! Scans of some rows, which are named by their ids.
//!
//! Ids become places in fragments, and only what holds such rows is read: fragments that have none
//! are left out, and of the others Lance reads the pages that hold the rows.
//!
//! To skip some rows costs more than to read a few: of rows that lie close together those between them are
//! read too, and dropped again. How long it takes, all rows being 1 (release build, local, two cores; 4 M rows
//! take 15 and 145 milliseconds):
//!
//! | rows | one column of 8 bytes | three, of about 50 bytes |
//! |---|---|---|
//! | the last 2.5 % | 0.25 | 0.04 |
//! | 0.01 %, scattered | 0.25 | 0.1 |
//! | 0.1 % | 0.5 | 0.3 |
//! | 1 % | 0.8; 1.1 if all others are skipped | 0.5; 0.6 |
//! | 10 % | 2.3; 5.8 | 0.9; 1.4 |
//! | 50 % | 5.5; 15 | 1.3; 3.5 |

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{
    AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch, UInt64Array,
};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{Schema, UInt64Type};
use datafusion::common::DataFusionError;
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance_select::RowAddrTreeMap;
use lance_select::mask::bitmap_to_ranges;
use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::width::{VARIABLE, fixed_width};
use super::{ScanDescription, row_field};
use crate::storage::RowSet;
use crate::storage::fragments::{deleted_offsets, live_rows, offsets_of};
use crate::{Error, Result};

/// Fragments whose deletions are read at once.
const AHEAD: usize = 16;
/// Bytes that are as dear to read as to skip.
const BRIDGED_BYTES: u64 = 512;
/// Rows, for each column, that are as dear to sift as a gap is to skip.
const SIFTED_ROWS: u64 = 40;
/// Of how many rows one is deleted, at most, where deleted ones are read and dropped.
const MOSTLY: u64 = 2;

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
pub(super) struct Selected {
    /// How many live rows.
    pub(super) rows: u64,
    /// Where they are; `None` if it is the whole fragment.
    pub(super) offsets: Option<RoaringBitmap>,
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
                    offsets -= deleted_offsets(table, dataset, fragment).await?;
                    offsets -= dropped;
                    Selected {
                        rows: offsets.len(),
                        offsets: Some(offsets),
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

/// What a partition reads of its fragments to get some of their rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Selection {
    /// Addresses that are read.
    pub(super) addresses: RowAddrTreeMap,
    /// Fragments all of whose rows are read.
    pub(super) whole: HashSet<u64>,
    /// What drops those among them that are not selected, if there are any.
    pub(super) sieve: Option<Sieve>,
}

impl Selection {
    /// For reading `schema` of the rows that were found in fragments.
    pub(super) fn new(
        schema: &Schema,
        found: impl Iterator<Item = (impl Borrow<Fragment>, Selected)>,
    ) -> Self {
        let mut addresses = RowAddrTreeMap::new();
        let (mut whole, mut wanted) = (HashSet::new(), HashMap::new());
        for (fragment, found) in found {
            let fragment = fragment.borrow();
            let id = fragment.id as u32;
            match found.offsets {
                Some(_) if found.rows == 0 => {}
                Some(offsets) => match bridged(&offsets, &Bridge::new(schema, fragment)) {
                    Some(bridged) => {
                        addresses.insert_bitmap(id, bridged);
                        wanted.insert(id, offsets);
                    }
                    None => addresses.insert_bitmap(id, offsets),
                },
                None => {
                    addresses.insert_fragment(id);
                    whole.insert(fragment.id);
                }
            }
        }
        let sieve = (!wanted.is_empty()).then_some(Sieve {
            wanted,
            deleted: HashMap::new(),
        });
        Self {
            addresses,
            whole,
            sieve,
        }
    }
}

/// Finds the rows that `description` selects in `fragments`; `None` if it is all of them.
pub(super) async fn selection(
    dataset: &Dataset,
    description: &ScanDescription,
    schema: &Schema,
    fragments: impl Iterator<Item = &Fragment>,
) -> Result<Option<Selection>> {
    if description.rows.is_all() {
        return Ok(None);
    }
    let (table, rows) = (description.table(), &description.rows);
    let found = fragments.cloned().map(|fragment| async move {
        let found = selected(table, dataset, &fragment, rows).await?;
        Ok::<_, Error>((fragment, found))
    });
    let found = stream::iter(found.collect::<Vec<_>>()).buffered(AHEAD);
    let found: Vec<_> = found.try_collect().await?;
    Ok(Some(Selection::new(schema, found.into_iter())))
}

/// When rows that nobody wants are rather read than skipped.
struct Bridge {
    /// Rows of a gap, at most.
    gap: u64,
    /// Rows that are read for each gap that is not skipped, at most.
    sifted: u64,
}

impl Bridge {
    /// For reading `schema` of `fragment`.
    fn new(schema: &Schema, fragment: &Fragment) -> Self {
        let stored = schema.fields().iter();
        let stored = stored.filter(|field| row_field(field.name()).is_none());
        let columns = stored.clone().count() as u64;
        let width = match stored
            .map(|field| fixed_width(field.data_type()))
            .sum::<Option<u64>>()
        {
            Some(width) => width,
            // Texts and the like: as if all that is stored of a row were read.
            None => {
                let files = fragment.files.iter();
                let bytes = files.filter_map(|file| file.file_size_bytes.get());
                let bytes: u64 = bytes.map(|bytes| bytes.get()).sum();
                let rows = fragment.physical_rows.unwrap_or_default().max(1) as u64;
                (bytes / rows).max(VARIABLE)
            }
        };
        Self {
            gap: BRIDGED_BYTES / width.max(1),
            sifted: SIFTED_ROWS * columns.max(1),
        }
    }
}

/// Whether rows of `schema` are so wide that to skip even one is better than to read it.
pub(super) fn is_wide(schema: &Schema, fragment: &Fragment) -> bool {
    Bridge::new(schema, fragment).gap == 0
}

/// `offsets`, and those in small gaps between them; `None` if that is not worth it.
fn bridged(offsets: &RoaringBitmap, bridge: &Bridge) -> Option<RoaringBitmap> {
    let mut runs = bitmap_to_ranges(offsets).into_iter();
    let mut current = runs.next()?;
    let mut all = RoaringBitmap::new();
    let mut gaps = 0;
    // Offsets are `u32`: a run of them ends at most one behind the last that there can be.
    let mut add = |run: Range<u64>| all.insert_range(run.start as u32..=(run.end - 1) as u32);
    for run in runs {
        if run.start - current.end <= bridge.gap {
            current.end = run.end;
            gaps += 1;
        } else {
            add(std::mem::replace(&mut current, run));
        }
    }
    add(current);
    (gaps > 0 && all.len() <= gaps * bridge.sifted).then_some(all)
}

/// Drops rows that were read because it is cheaper than to skip them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sieve {
    /// Offsets that are wanted, by fragment.
    wanted: HashMap<u32, RoaringBitmap>,
    /// Offsets that are not, by fragment. Of fragments that are in neither all rows are wanted.
    deleted: HashMap<u32, RoaringBitmap>,
}

/// Takes over from Lance to leave deleted rows out of `fragments`, which are read as `selection` says, and gives them the look
/// of having none: it would ask for each row whether it is deleted.
pub(super) async fn without_deletions(
    table: &str,
    dataset: &Dataset,
    fragments: &mut [Fragment],
    selection: Option<&Selection>,
    sieve: &mut Option<Sieve>,
) -> Result<()> {
    for fragment in fragments {
        if fragment.deletion_file.is_none() {
            continue;
        }
        // Of others only live rows are wanted.
        if selection.is_none_or(|selection| selection.whole.contains(&fragment.id)) {
            let deleted = deleted_offsets(table, dataset, fragment).await?;
            // Lance reads no page that has no other rows.
            if deleted.len() > fragment.physical_rows.unwrap_or_default() as u64 / MOSTLY {
                continue;
            }
            let sieve = sieve.get_or_insert_default();
            sieve.deleted.insert(fragment.id as u32, deleted);
        }
        fragment.deletion_file = None;
    }
    Ok(())
}

impl Sieve {
    /// The rows of `batch` that are wanted; `place` is that of the row addresses.
    pub(super) fn sift(
        &self,
        batch: &RecordBatch,
        place: usize,
    ) -> Result<RecordBatch, DataFusionError> {
        let addresses = row_addresses(batch, place)?;
        let mut kept = BooleanBufferBuilder::new(batch.num_rows());
        for run in addresses.values().chunk_by(|a, b| a >> 32 == b >> 32) {
            let fragment = (run[0] >> 32) as u32;
            if let Some(wanted) = self.wanted.get(&fragment) {
                append_found(&mut kept, run, wanted, true);
            } else if let Some(deleted) = self.deleted.get(&fragment) {
                append_others(&mut kept, run, deleted);
            } else {
                kept.append_n(run.len(), true);
            }
        }
        let kept = BooleanArray::new(kept.finish(), None);
        Ok(match kept.true_count() == batch.num_rows() {
            true => batch.clone(),
            false => filter_record_batch(batch, &kept)?,
        })
    }
}

/// The row addresses of `batch`, which are at `place`.
pub(super) fn row_addresses(batch: &RecordBatch, place: usize) -> Result<&UInt64Array> {
    let addresses = batch.columns().get(place);
    addresses
        .and_then(|column| column.as_primitive_opt::<UInt64Type>())
        .ok_or_else(|| Error::internal("the scan gives no row addresses"))
}

/// Appends for each address of `run`, which are of one fragment, whether it is one of `offsets`; or, with `is_in` false, whether
/// it is none.
fn append_found(
    kept: &mut BooleanBufferBuilder,
    run: &[u64],
    offsets: &RoaringBitmap,
    is_in: bool,
) {
    let mut rest = offsets.iter();
    rest.advance_to(run[0] as u32);
    let mut next = rest.next();
    let mut last = 0;
    for offset in run.iter().map(|address| *address as u32) {
        if offset < last {
            // Not in the order of the addresses: looked up one by one.
            kept.append(offsets.contains(offset) == is_in);
            continue;
        }
        last = offset;
        while next.is_some_and(|next| next < offset) {
            next = rest.next();
        }
        kept.append((next == Some(offset)) == is_in);
    }
}

/// Appends for each address of `run`, which are of one fragment, whether it is none of `offsets`.
fn append_others(kept: &mut BooleanBufferBuilder, run: &[u64], offsets: &RoaringBitmap) {
    let (first, last) = (run[0], run[run.len() - 1]);
    let is_sequence = run.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    if !is_sequence {
        return append_found(kept, run, offsets, false);
    }
    // Mostly: only the offsets are looked at, not the rows.
    let before = kept.len();
    kept.append_n(run.len(), true);
    for offset in offsets.range(first as u32..=last as u32) {
        kept.set_bit(before + (offset - first as u32) as usize, false);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_bridged_where_that_is_cheaper() {
        let bridge = Bridge { gap: 3, sifted: 10 };
        let set = |offsets: &[u32]| offsets.iter().copied().collect::<RoaringBitmap>();
        let of = |offsets: &[u32]| bridged(&set(offsets), &bridge);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[5]), None);
        assert_eq!(of(&[5, 6, 7]), None);
        assert_eq!(of(&[5, 10]), None, "too wide");
        assert_eq!(of(&[5, 9]), Some(set(&[5, 6, 7, 8, 9])));
        let last = u32::MAX;
        let ends = of(&[0, 2, last - 2, last]);
        assert_eq!(ends, Some(set(&[0, 1, 2, last - 2, last - 1, last])));
        let long: Vec<u32> = (0..20).filter(|offset| *offset != 7).collect();
        assert_eq!(of(&long), None, "one gap in many rows is skipped");
    }
}
