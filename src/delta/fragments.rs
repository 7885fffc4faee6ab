//! What the fragments of a version say without any data being read: which rows are
//! live, and which files hold a field.
//!
//! Two facts about Lance carry this file. The row ids of a fragment never change
//! while the fragment exists, and ids of fragments are never given twice; so a
//! fragment that is listed in two versions holds the same rows at the same offsets
//! in both, less those deleted. And files are never changed in place; so a field
//! whose storage is described alike in both versions has the same values in both.

use std::collections::HashMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::rowids::load_row_id_sequence;
use lance::io::deletion::read_dataset_deletion_file;
use lance_table::format::{DataFile, Fragment};
use lance_table::rowids::RowIdSequence;
use roaring::RoaringBitmap;

use super::fields::Inputs;
use crate::storage::row_set::RowSet;

/// How many fragments are looked at together: each may need a small file.
const PARALLEL_READS: usize = 16;

/// Where the values of the fields of a fragment are, as one comparable value.
///
/// Files that are read later win over earlier ones, so their order counts.
fn signature<'a>(fragment: &'a Fragment, inputs: &Inputs) -> Vec<StoredField<'a>> {
    let mut signature = Vec::new();
    for file in &fragment.files {
        stored_fields(file, 0, inputs, &mut signature);
    }
    for overlay in &fragment.overlays {
        stored_fields(
            &overlay.data_file,
            overlay.committed_version,
            inputs,
            &mut signature,
        );
    }
    signature
}

#[derive(Debug, PartialEq, Eq)]
struct StoredField<'a> {
    field: i32,
    path: &'a str,
    base: Option<u32>,
    column: Option<i32>,
    overlaid_at: u64,
}

fn stored_fields<'a>(
    file: &'a DataFile,
    overlaid_at: u64,
    inputs: &Inputs,
    found: &mut Vec<StoredField<'a>>,
) {
    for (position, field) in file.fields.iter().enumerate() {
        if inputs.holds(*field) {
            found.push(StoredField {
                field: *field,
                path: &file.path,
                base: file.base_id,
                column: file.column_indices.get(position).copied(),
                overlaid_at,
            });
        }
    }
}

fn by_id(dataset: &Dataset) -> HashMap<u64, &Fragment> {
    dataset.iter_fragments().map(|f| (f.id, f)).collect()
}

/// The fragments of both versions whose stored values of the fields differ, as they
/// are at `after`.
pub(super) fn rewritten_in_place<'a>(
    before: &Dataset,
    after: &'a Dataset,
    inputs: &Inputs,
) -> Vec<&'a Fragment> {
    let before = by_id(before);
    after
        .iter_fragments()
        .filter(|fragment| {
            before
                .get(&fragment.id)
                .is_some_and(|old| signature(old, inputs) != signature(fragment, inputs))
        })
        .collect()
}

/// The fragments of `after` that are not in `before`.
pub(super) fn added<'a>(before: &Dataset, after: &'a Dataset) -> Vec<&'a Fragment> {
    let before = by_id(before);
    after
        .iter_fragments()
        .filter(|fragment| !before.contains_key(&fragment.id))
        .collect()
}

/// The ids of the rows of some fragments, deleted ones included.
pub(super) async fn rows(dataset: &Dataset, fragments: &[&Fragment]) -> lance::Result<RowSet> {
    let mut reads = Vec::with_capacity(fragments.len());
    for fragment in fragments {
        reads.push(load_row_id_sequence(dataset, fragment));
    }
    futures::stream::iter(reads)
        .buffer_unordered(PARALLEL_READS)
        .try_fold(RowSet::new(), |mut all, sequence| async move {
            all.union_with(&RowSet::from_sequence(&sequence));
            Ok(all)
        })
        .await
}

/// The ids of the rows at some offsets of a fragment, given in ascending order.
pub(super) async fn rows_at(
    dataset: &Dataset,
    fragment: &Fragment,
    offsets: impl Iterator<Item = u32>,
) -> lance::Result<RowSet> {
    let sequence = load_row_id_sequence(dataset, fragment).await?;
    Ok(select(&sequence, offsets))
}

fn select(sequence: &RowIdSequence, offsets: impl Iterator<Item = u32>) -> RowSet {
    sequence
        .select(offsets.map(|offset| offset as usize))
        .collect()
}

/// The ids of a fragment's rows that are not deleted.
async fn live_rows(dataset: &Dataset, fragment: &Fragment) -> lance::Result<RowSet> {
    let sequence = load_row_id_sequence(dataset, fragment).await?;
    let all = RowSet::from_sequence(&sequence);
    without_deleted(dataset, fragment, &sequence, all).await
}

async fn without_deleted(
    dataset: &Dataset,
    fragment: &Fragment,
    sequence: &Arc<RowIdSequence>,
    rows: RowSet,
) -> lance::Result<RowSet> {
    if rows.is_empty() {
        return Ok(rows);
    }
    let deleted = deleted_offsets(dataset, fragment).await?;
    Ok(rows.difference(&select(sequence, deleted.iter())))
}

async fn live_rows_of(dataset: &Dataset, fragments: &[&Fragment]) -> lance::Result<RowSet> {
    let mut reads = Vec::with_capacity(fragments.len());
    for fragment in fragments {
        reads.push(live_rows(dataset, fragment));
    }
    futures::stream::iter(reads)
        .buffer_unordered(PARALLEL_READS)
        .try_fold(RowSet::new(), |mut all, rows| async move {
            all.union_with(&rows);
            Ok(all)
        })
        .await
}

/// The rows of a fragment of both versions that came, and those that went: those that only one of them has deleted. Its
/// other rows are not looked at.
async fn turned(
    before: (&Dataset, &Fragment),
    after: (&Dataset, &Fragment),
) -> lance::Result<(RowSet, RowSet)> {
    let sequence = load_row_id_sequence(after.0, after.1).await?;
    let was = deleted_offsets(before.0, before.1).await?;
    let is = deleted_offsets(after.0, after.1).await?;
    Ok((
        select(&sequence, (&was - &is).iter()),
        select(&sequence, (&is - &was).iter()),
    ))
}

async fn deleted_offsets(dataset: &Dataset, fragment: &Fragment) -> lance::Result<RoaringBitmap> {
    let Some(file) = &fragment.deletion_file else {
        return Ok(RoaringBitmap::new());
    };
    let deleted = read_dataset_deletion_file(dataset, fragment.id, file).await?;
    Ok(deleted.to_sorted_iter().collect())
}

/// The rows that came and those that went between two versions. Of fragments that both list, only the deletions are
/// compared, so this costs what changed.
pub(super) async fn came_and_went(
    before: &Dataset,
    after: &Dataset,
) -> lance::Result<(RowSet, RowSet)> {
    let mut old = by_id(before);
    let mut come = Vec::new();
    let mut gone = Vec::new();
    let mut both = Vec::new();
    for fragment in after.iter_fragments() {
        match old.remove(&fragment.id) {
            Some(same) if same.row_id_meta == fragment.row_id_meta => {
                if same.deletion_file != fragment.deletion_file {
                    both.push(turned((before, same), (after, fragment)));
                }
            }
            Some(other) => {
                gone.push(other);
                come.push(fragment);
            }
            None => come.push(fragment),
        }
    }
    gone.extend(old.into_values());
    let both = futures::stream::iter(both).buffer_unordered(PARALLEL_READS);
    let both = both.try_fold((RowSet::new(), RowSet::new()), |all, turned| async move {
        Ok((all.0.union(&turned.0), all.1.union(&turned.1)))
    });
    let (come, gone, both) = futures::try_join!(
        live_rows_of(after, &come),
        live_rows_of(before, &gone),
        both
    )?;
    let (come, gone) = (come.union(&both.0), gone.union(&both.1));
    let went = gone.clone().difference(&come);
    Ok((come.difference(&gone), went))
}

/// Those of `candidates` that are live. Fragments whose ids lie elsewhere are passed
/// over, and the search ends when all candidates were met: the newest fragments, to
/// which updates move rows, come first.
pub(super) async fn live_among(dataset: &Dataset, candidates: &RowSet) -> lance::Result<RowSet> {
    let mut live = RowSet::new();
    let (Some(first), Some(last)) = (candidates.min(), candidates.max()) else {
        return Ok(live);
    };
    let mut reads = Vec::new();
    for fragment in dataset.fragments().iter().rev() {
        reads.push(async move {
            let sequence = load_row_id_sequence(dataset, fragment).await?;
            match sequence.row_id_range() {
                Some(range) if *range.start() <= last && first <= *range.end() => {
                    let rows = RowSet::from_sequence(&sequence).intersection(candidates);
                    without_deleted(dataset, fragment, &sequence, rows).await
                }
                _ => Ok(RowSet::new()),
            }
        });
    }
    let mut reads = futures::stream::iter(reads).buffer_unordered(PARALLEL_READS);
    while let Some(rows) = reads.next().await {
        live.union_with(&rows?);
        if live.len() == candidates.len() {
            break;
        }
    }
    Ok(live)
}
