//! Fragments by row ids: which rows a fragment holds, and where.

use std::collections::HashMap;

use lance::Dataset;
use lance::dataset::rowids::load_row_id_sequence;
use lance_table::format::Fragment;
use lance_table::rowids::RowIdSequence;
use lance_table::rowids::segment::U64Segment;
use roaring::RoaringBitmap;

use super::{RowSet, storage_error};
use crate::{Error, Result};

/// Ids of the rows of `fragment` that are live.
pub async fn live_ids(table: &str, dataset: &Dataset, fragment: &Fragment) -> Result<RowSet> {
    let sequence = load_row_id_sequence(dataset, fragment)
        .await
        .map_err(|error| storage_error(table, error))?;
    let ids = RowSet::from_sequence(&sequence);
    let deleted = deleted_offsets(table, dataset, fragment).await?;
    if deleted.is_empty() {
        return Ok(ids);
    }
    let gone: RowSet = deleted
        .iter()
        .filter_map(|offset| sequence.get(offset as usize))
        .collect();
    Ok(ids.difference(&gone))
}

/// Ids of all live rows of the table.
pub async fn all_live_ids(table: &str, dataset: &Dataset) -> Result<RowSet> {
    let mut all = RowSet::default();
    for fragment in dataset.fragments().iter() {
        all.union_with(&live_ids(table, dataset, fragment).await?);
    }
    Ok(all)
}

/// Offsets of those live rows of `fragment` whose ids are in `ids`.
pub async fn offsets_of(
    table: &str,
    dataset: &Dataset,
    fragment: &Fragment,
    ids: &RowSet,
) -> Result<RoaringBitmap> {
    let sequence = load_row_id_sequence(dataset, fragment)
        .await
        .map_err(|error| storage_error(table, error))?;
    let mut offsets = matching_offsets(&sequence, ids);
    if !offsets.is_empty() {
        offsets -= deleted_offsets(table, dataset, fragment).await?;
    }
    Ok(offsets)
}

/// Ids of the rows of `fragment` at `offsets`, in their order.
pub async fn ids_at(
    table: &str,
    dataset: &Dataset,
    fragment: &Fragment,
    offsets: &RoaringBitmap,
) -> Result<Vec<u64>> {
    let sequence = load_row_id_sequence(dataset, fragment)
        .await
        .map_err(|error| storage_error(table, error))?;
    offsets
        .iter()
        .map(|offset| {
            sequence.get(offset as usize).ok_or_else(|| {
                Error::internal(format!("fragment {} has no row {offset}", fragment.id))
            })
        })
        .collect()
}

/// Offsets in `fragment` of the rows of `ids`, deleted ones included, by id.
pub async fn places_of(
    table: &str,
    dataset: &Dataset,
    fragment: &Fragment,
    ids: &RowSet,
) -> Result<HashMap<u64, u32>> {
    let sequence = load_row_id_sequence(dataset, fragment)
        .await
        .map_err(|error| storage_error(table, error))?;
    let offsets = matching_offsets(&sequence, ids);
    Ok(offsets
        .iter()
        .filter_map(|offset| Some((sequence.get(offset as usize)?, offset)))
        .collect())
}

/// Of how many ids one is wanted, at most, where each is searched for instead of looking at all.
const SEARCHED: usize = 16;

/// Whether an id is found in `segment` by bisection.
fn is_sorted(segment: &U64Segment) -> bool {
    match segment {
        U64Segment::Range(_)
        | U64Segment::RangeWithHoles { .. }
        | U64Segment::Ranges { .. }
        | U64Segment::SortedArray(_) => true,
        U64Segment::RangeWithBitmap { .. } | U64Segment::Array(_) => false,
    }
}

/// Offsets in `sequence` of the ids that are in `ids`.
fn matching_offsets(sequence: &RowIdSequence, ids: &RowSet) -> RoaringBitmap {
    let mut offsets = RoaringBitmap::new();
    let mut start = 0;
    for segment in sequence.segments() {
        add_offsets(&mut offsets, start, segment, ids);
        start += segment.len() as u32;
    }
    offsets
}

/// Adds the offsets of ids in `segment`, whose first row is at `start`.
fn add_offsets(offsets: &mut RoaringBitmap, start: u32, segment: &U64Segment, ids: &RowSet) {
    if let U64Segment::Range(range) = segment {
        // The common case: only the ids that are wanted are looked at, not the rows.
        let wanted = ids.range(range.clone());
        offsets.extend(wanted.map(|id| start + (id - range.start) as u32));
        return;
    }
    let Some(span) = segment.range() else {
        return;
    };
    let among = || ids.range(*span.start()..span.end().saturating_add(1));
    let most = segment.len() / SEARCHED;
    match among().take(most + 1).count() {
        0 => {}
        some if some <= most && is_sorted(segment) => {
            let found = among().filter_map(|id| segment.position(id));
            offsets.extend(found.map(|offset| start + offset as u32));
        }
        _ => {
            let rows = segment.iter().enumerate();
            let wanted = rows.filter(|(_, id)| ids.contains(*id));
            offsets.extend(wanted.map(|(offset, _)| start + offset as u32));
        }
    }
}

/// Offsets of the rows of `fragment` that are deleted.
pub async fn deleted_offsets(
    table: &str,
    dataset: &Dataset,
    fragment: &Fragment,
) -> Result<RoaringBitmap> {
    if fragment.deletion_file.is_none() {
        return Ok(RoaringBitmap::new());
    }
    let file = dataset
        .get_fragment(fragment.id as usize)
        .ok_or_else(|| Error::internal(format!("fragment {} is gone", fragment.id)))?;
    let vector = file
        .get_deletion_vector()
        .await
        .map_err(|error| storage_error(table, error))?;
    Ok(vector
        .map(|vector| vector.to_sorted_iter().collect())
        .unwrap_or_default())
}

/// Rows of a table, deleted ones included.
pub fn physical_rows(dataset: &Dataset) -> u64 {
    let fragments = dataset.fragments().iter();
    let rows = fragments.map(|fragment| fragment.physical_rows.unwrap_or_default() as u64);
    rows.sum()
}

/// Live rows of `fragment`.
pub async fn live_rows(table: &str, dataset: &Dataset, fragment: &Fragment) -> Result<u64> {
    if let Some(rows) = fragment.num_rows() {
        return Ok(rows as u64);
    }
    let physical = fragment.physical_rows.unwrap_or_default() as u64;
    Ok(physical - deleted_offsets(table, dataset, fragment).await?.len())
}

/// The id of the row at `address`.
pub async fn id_at(table: &str, dataset: &Dataset, address: u64) -> Result<u64> {
    let fragment = dataset
        .get_fragment((address >> 32) as usize)
        .ok_or_else(|| Error::internal(format!("fragment {} is gone", address >> 32)))?;
    if fragment.metadata().row_id_meta.is_none() {
        return Ok(address);
    }
    let sequence = load_row_id_sequence(dataset, fragment.metadata())
        .await
        .map_err(|error| storage_error(table, error))?;
    Ok(sequence.get(address as u32 as usize).unwrap_or(address))
}

/// Ids of the rows at `addresses`, all of one fragment, in their order.
pub async fn ids_of_addresses(
    table: &str,
    dataset: &Dataset,
    addresses: &[u64],
) -> Result<Vec<u64>> {
    let Some(first) = addresses.first() else {
        return Ok(Vec::new());
    };
    let fragment = dataset
        .get_fragment((first >> 32) as usize)
        .ok_or_else(|| Error::internal(format!("fragment {} is gone", first >> 32)))?;
    let sequence = load_row_id_sequence(dataset, fragment.metadata())
        .await
        .map_err(|error| storage_error(table, error))?;
    addresses
        .iter()
        .map(|address| {
            sequence
                .get(*address as u32 as usize)
                .ok_or_else(|| Error::internal(format!("there is no row at address {address}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_segments_of_every_kind() {
        let sorted = |ids: &[u64]| U64Segment::SortedArray(ids.to_vec().into());
        let all: Vec<u64> = (0..1000).filter(|id| id % 3 != 1).collect();
        let kinds = [
            U64Segment::Range(0..1000),
            U64Segment::RangeWithHoles {
                range: 0..1000,
                holes: (0..1000)
                    .filter(|id| id % 3 == 1)
                    .collect::<Vec<u64>>()
                    .into(),
            },
            U64Segment::RangeWithBitmap {
                range: 0..1000,
                bitmap: (0..1000)
                    .map(|id| id % 3 != 1)
                    .collect::<Vec<bool>>()
                    .as_slice()
                    .into(),
            },
            sorted(&all),
            U64Segment::Array(all.iter().rev().copied().collect::<Vec<u64>>().into()),
        ];
        for segment in kinds {
            let ids: Vec<u64> = segment.iter().collect();
            for step in [1, 2, 100, 998] {
                let wanted: RowSet = (0..6000).step_by(step).collect();
                let mut expected = RoaringBitmap::new();
                let rows = ids.iter().zip(7..);
                expected.extend(
                    rows.filter(|(id, _)| wanted.contains(**id))
                        .map(|(_, at)| at),
                );
                let mut found = RoaringBitmap::new();
                add_offsets(&mut found, 7, &segment, &wanted);
                assert_eq!(found, expected, "every {step}. id in {segment:?}");
            }
        }
    }
}
