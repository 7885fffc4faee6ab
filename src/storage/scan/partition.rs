//! Cuts the fragments of a table into groups, one for each partition of a scan.

use lance::Dataset;

/// The fragments of `dataset` in their order, as (id, rows that are not deleted).
/// Where an old manifest does not say how many those are, a fragment counts as one.
pub fn fragment_rows(dataset: &Dataset) -> Vec<(u64, u64)> {
    let fragments = dataset.fragments().iter();
    fragments
        .map(|fragment| {
            let rows = fragment.num_rows().or(fragment.physical_rows);
            (fragment.id, rows.unwrap_or(1) as u64)
        })
        .collect()
}

/// Cuts `fragments`, given as (id, rows), into contiguous groups of their ids.
///
/// There are at most `target` groups (at least one is allowed), none is empty,
/// and the largest has as few rows as contiguous groups allow. The order is
/// kept: the groups one after the other are the fragments.
pub fn partition_fragments(fragments: &[(u64, u64)], target: usize) -> Vec<Vec<u64>> {
    let target = target.max(1);
    // The least size that is enough lies between the largest fragment and all rows.
    let mut low = fragments.iter().map(|(_, rows)| *rows).max().unwrap_or(0);
    let mut high = fragments.iter().map(|(_, rows)| *rows).sum::<u64>();
    while low < high {
        let middle = low + (high - low) / 2;
        if cut(fragments, middle).len() <= target {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    cut(fragments, low)
}

/// Fills group after group, up to `capacity` rows each.
fn cut(fragments: &[(u64, u64)], capacity: u64) -> Vec<Vec<u64>> {
    let mut groups: Vec<Vec<u64>> = Vec::new();
    let mut filled = 0;
    for (id, rows) in fragments {
        match groups.last_mut() {
            Some(group) if filled + rows <= capacity => {
                group.push(*id);
                filled += rows;
            }
            _ => {
                groups.push(vec![*id]);
                filled = *rows;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(groups: &[Vec<u64>], fragments: &[(u64, u64)]) -> Vec<u64> {
        groups
            .iter()
            .map(|group| {
                group
                    .iter()
                    .map(|id| fragments.iter().find(|f| f.0 == *id).unwrap().1)
                    .sum()
            })
            .collect()
    }

    #[test]
    fn equal_fragments_are_shared_out_equally() {
        let fragments: Vec<_> = (0..16).map(|id| (id, 625_000)).collect();
        let groups = partition_fragments(&fragments, 2);
        assert_eq!(rows(&groups, &fragments), vec![5_000_000, 5_000_000]);
        assert_eq!(groups.concat(), (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn the_largest_group_is_as_small_as_it_can_be() {
        let fragments = [(3, 10), (5, 1), (6, 1), (7, 1), (9, 7), (12, 10)];
        let groups = partition_fragments(&fragments, 3);
        assert_eq!(groups, vec![vec![3], vec![5, 6, 7, 9], vec![12]]);
    }

    #[test]
    fn there_are_never_more_groups_than_fragments_nor_an_empty_one() {
        assert!(partition_fragments(&[], 4).is_empty());
        assert_eq!(partition_fragments(&[(8, 0)], 4), vec![vec![8]]);
        assert_eq!(
            partition_fragments(&[(1, 5), (2, 5)], 8),
            vec![vec![1], vec![2]]
        );
        assert_eq!(partition_fragments(&[(1, 5), (2, 5)], 0), vec![vec![1, 2]]);
    }

    #[test]
    fn fragments_without_rows_join_their_neighbours() {
        let fragments = [(0, 0), (1, 4), (2, 0), (3, 4), (4, 0)];
        let groups = partition_fragments(&fragments, 2);
        assert_eq!(groups, vec![vec![0, 1, 2], vec![3, 4]]);
    }
}
