//! Sets of row ids.
//!
//! A [`RowSet`] names rows of one table by their stable row ids (or rows of one
//! version by their addresses: both are `u64`). Row ids mostly come in long runs,
//! so a set costs what its runs cost, not what its rows cost: the ids of a table of
//! 100 M rows that was only ever appended to are a few kilobytes and take
//! milliseconds to build, unite and subtract.
//!
//! Invariant: a set has one value whatever the order in which it was built; two
//! sets are equal when they hold the same ids.

use std::fmt;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use lance_table::rowids::RowIdSequence;
use lance_table::rowids::segment::U64Segment;
use roaring::RoaringTreemap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};

/// A set of row ids, or of row addresses.
#[derive(Clone, Default, PartialEq)]
pub struct RowSet {
    ids: RoaringTreemap,
}

impl RowSet {
    /// A set without rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ids of a fragment's rows, deleted ones included, in time proportional
    /// to the runs that the sequence is stored as.
    pub fn from_sequence(sequence: &RowIdSequence) -> Self {
        let mut set = Self::new();
        for segment in sequence.segments() {
            match segment {
                U64Segment::Range(range) => set.insert_range(range.clone()),
                U64Segment::Ranges { range, runs } => {
                    for run in runs.present_ranges() {
                        set.insert_range(
                            range.start + u64::from(run.start)..range.start + u64::from(run.end),
                        );
                    }
                }
                U64Segment::RangeWithHoles { range, holes } => {
                    let mut holes: Vec<u64> = holes.iter().collect();
                    holes.sort_unstable();
                    let mut start = range.start;
                    for hole in holes {
                        set.insert_range(start..hole);
                        start = hole.saturating_add(1);
                    }
                    set.insert_range(start..range.end);
                }
                U64Segment::RangeWithBitmap { .. }
                | U64Segment::SortedArray(_)
                | U64Segment::Array(_) => set.insert_runs(segment.iter()),
            }
        }
        set
    }

    /// Adds a row; false when it was there already.
    pub fn insert(&mut self, id: u64) -> bool {
        self.ids.insert(id)
    }

    /// Adds all rows of a range.
    pub fn insert_range(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.ids.insert_range(range);
        }
    }

    /// Adds rows of which many follow each other.
    fn insert_runs(&mut self, ids: impl Iterator<Item = u64>) {
        let mut run: Option<Range<u64>> = None;
        for id in ids {
            // A range can't end behind the last id.
            let Some(end) = id.checked_add(1) else {
                self.ids.insert(id);
                continue;
            };
            match &mut run {
                Some(run) if run.end == id => run.end = end,
                _ => {
                    if let Some(done) = run.replace(id..end) {
                        self.insert_range(done);
                    }
                }
            }
        }
        if let Some(done) = run {
            self.insert_range(done);
        }
    }

    /// Whether the row is in the set.
    pub fn contains(&self, id: u64) -> bool {
        self.ids.contains(id)
    }

    /// The ids that a stream of batches gives in its first column.
    pub async fn collect(mut batches: SendableRecordBatchStream) -> Result<Self> {
        let mut set = Self::new();
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let ids = batch.column(0).as_primitive_opt::<UInt64Type>();
            let ids = ids.ok_or_else(|| Error::internal("row ids are UInt64"))?;
            set.extend(ids.values().iter().copied());
        }
        Ok(set)
    }

    /// Its ids in `range`, ascending; looks only at those.
    pub fn range(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let mut ids = self.ids.iter();
        ids.advance_to(range.start);
        ids.take_while(move |id| *id < range.end)
    }

    /// The number of rows.
    pub fn len(&self) -> u64 {
        self.ids.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The rows, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ids.iter()
    }

    /// The smallest id of the set.
    pub fn min(&self) -> Option<u64> {
        self.ids.min()
    }

    /// The largest id of the set.
    pub fn max(&self) -> Option<u64> {
        self.ids.max()
    }

    /// The rows of either set.
    pub fn union(mut self, other: &Self) -> Self {
        self.union_with(other);
        self
    }

    /// Adds the rows of another set.
    pub fn union_with(&mut self, other: &Self) {
        self.ids |= &other.ids;
    }

    /// The rows of this set that are not in the other.
    pub fn difference(mut self, other: &Self) -> Self {
        self.ids -= &other.ids;
        self
    }

    /// The rows of both sets.
    pub fn intersection(mut self, other: &Self) -> Self {
        self.ids &= &other.ids;
        self
    }

    /// Whether all rows of this set are in the other too.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.ids.is_subset(&other.ids)
    }

    /// Whether no row is in both sets.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.ids.is_disjoint(&other.ids)
    }

    /// The set as text: the portable Roaring form with runs, in base64. The size is
    /// that of the runs; a caller that stores it somewhere small looks at it first.
    pub fn encode(&self) -> String {
        let mut ids = self.ids.clone();
        // Runs where they are smaller: a range of a million rows is a few bytes.
        ids.optimize();
        let mut bytes = Vec::with_capacity(ids.serialized_size());
        // Writing to memory can't fail; if it did, decoding would say so.
        let _ = ids.serialize_into(&mut bytes);
        BASE64.encode(bytes)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] when the text is something else, or was cut.
    pub fn decode(text: &str) -> Result<Self> {
        let unreadable = || Error::new(ErrorKind::Storage, "a stored set of row ids is unreadable");
        let bytes = BASE64
            .decode(text)
            .map_err(|error| unreadable().with_source(error))?;
        let mut rest = bytes.as_slice();
        let ids = RoaringTreemap::deserialize_from(&mut rest)
            .map_err(|error| unreadable().with_source(error))?;
        if !rest.is_empty() {
            return Err(unreadable().context(format!("{} bytes too many", rest.len())));
        }
        Ok(Self { ids })
    }
}

impl Extend<u64> for RowSet {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, ids: I) {
        self.ids.extend(ids);
    }
}

impl FromIterator<u64> for RowSet {
    fn from_iter<I: IntoIterator<Item = u64>>(ids: I) -> Self {
        let mut set = Self::new();
        set.insert_runs(ids.into_iter());
        set
    }
}

/// Counts only: a set may hold millions of ids.
impl fmt::Debug for RowSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ids.min(), self.ids.max()) {
            (Some(min), Some(max)) => {
                write!(f, "RowSet({} rows in {min}..={max})", self.len())
            }
            _ => f.write_str("RowSet(0 rows)"),
        }
    }
}

impl Serialize for RowSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for RowSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::decode(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, Instant};

    use super::*;

    fn set(ids: impl IntoIterator<Item = u64>) -> RowSet {
        ids.into_iter().collect()
    }

    fn sequence(ids: &[u64]) -> RowIdSequence {
        RowIdSequence::from(ids)
    }

    #[test]
    fn a_set_holds_what_was_inserted_once() {
        let mut rows = RowSet::new();
        assert!(rows.is_empty());
        assert!(rows.insert(7));
        assert!(!rows.insert(7));
        rows.insert_range(10..13);
        #[allow(clippy::reversed_empty_ranges)]
        rows.insert_range(5..2);
        rows.insert_range(6..6);
        assert_eq!(rows.iter().collect::<Vec<_>>(), vec![7, 10, 11, 12]);
        assert_eq!(rows.len(), 4);
        assert!(rows.contains(11) && !rows.contains(13));
        assert_eq!((rows.min(), rows.max()), (Some(7), Some(12)));
    }

    #[test]
    fn sets_combine() {
        let (a, b) = (set(0..6), set([4, 5, 6, 1 << 40]));
        assert_eq!(a.clone().union(&b), set((0..7).chain([1 << 40])));
        assert_eq!(a.clone().difference(&b), set(0..4));
        assert_eq!(a.clone().intersection(&b), set([4, 5]));
        assert!(set([4]).is_subset(&a) && !b.is_subset(&a));
    }

    #[test]
    fn equality_does_not_depend_on_how_a_set_was_built() {
        let mut by_range = RowSet::new();
        by_range.insert_range(0..10_000);
        let mut one_by_one = RowSet::new();
        for id in (0..10_000).rev() {
            one_by_one.insert(id);
        }
        assert_eq!(by_range, one_by_one);
        assert_eq!(by_range.clone().difference(&one_by_one), RowSet::new());
    }

    #[test]
    fn the_last_possible_id_fits() {
        let rows = set([u64::MAX - 1, u64::MAX]);
        assert_eq!(rows.len(), 2);
        assert_eq!(
            rows,
            RowSet::from_sequence(&sequence(&[u64::MAX - 1, u64::MAX]))
        );
    }

    #[test]
    fn every_form_of_a_stored_sequence_is_read() {
        let range: Vec<u64> = (100..200).collect();
        let holes: Vec<u64> = (0..1_000).filter(|id| *id != 17 && *id != 18).collect();
        let bitmap: Vec<u64> = (0..1_000).filter(|id| id % 3 != 0).collect();
        let sparse: Vec<u64> = (0..50).map(|id| id * 100_000).collect();
        let unsorted: Vec<u64> = vec![9, 3, 4, 5, 1];
        let mut clustered = sequence(
            &(0..100_000)
                .filter(|id| !(20_000..30_000).contains(id))
                .collect::<Vec<_>>(),
        );
        let mut forms = HashSet::new();
        for ids in [&range, &holes, &bitmap, &sparse, &unsorted] {
            let sequence = sequence(ids);
            forms.insert(std::mem::discriminant(&sequence.segments()[0]));
            assert_eq!(RowSet::from_sequence(&sequence), set(ids.iter().copied()));
        }
        assert_eq!(forms.len(), 5, "each list of ids is stored in another form");
        let expected = set(clustered.iter());
        if clustered.use_range_segments() {
            assert!(matches!(clustered.segments()[0], U64Segment::Ranges { .. }));
        }
        assert_eq!(RowSet::from_sequence(&clustered), expected);
        assert_eq!(RowSet::from_sequence(&RowIdSequence::new()), RowSet::new());
    }

    #[test]
    fn a_hole_of_one_segment_may_be_a_row_of_another() {
        let mut both = sequence(&[17]);
        both.extend(sequence(
            &(0..1_000).filter(|id| *id != 17).collect::<Vec<_>>(),
        ));
        assert_eq!(RowSet::from_sequence(&both), set(0..1_000));
    }

    #[test]
    fn a_hundred_million_rows_take_milliseconds() {
        let begin = Instant::now();
        let mut all = RowSet::new();
        for fragment in 0..100u64 {
            all.union_with(&RowSet::from_sequence(&RowIdSequence::from(
                fragment * 1_000_000..(fragment + 1) * 1_000_000,
            )));
        }
        let rest = all.clone().difference(&set([5, 70_000_000]));
        assert_eq!(all.len(), 100_000_000);
        assert_eq!(rest.len(), 99_999_998);
        assert!(all.encode().len() < 100_000);
        // Generous: a debug build on a busy machine.
        assert!(begin.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_set_survives_its_text() {
        let mut rows = set([1, 2, 3, 1 << 33, u64::MAX]);
        rows.insert_range(1_000..2_000_000);
        let text = rows.encode();
        assert!(text.len() < 1_000, "{}", text.len());
        assert_eq!(RowSet::decode(&text).unwrap(), rows);
        assert_eq!(
            RowSet::decode(&RowSet::new().encode()).unwrap(),
            RowSet::new()
        );
        let json = serde_json::to_string(&rows).unwrap();
        assert_eq!(serde_json::from_str::<RowSet>(&json).unwrap(), rows);
    }

    #[test]
    fn a_text_that_is_no_set_is_an_error() {
        let text = set([1, 5, 9]).encode();
        for bad in [
            "",
            "no base64!",
            &text[..text.len() - 4],
            "AAAA",
            &BASE64.encode([0; 9]),
        ] {
            let error = RowSet::decode(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Storage, "{bad}");
        }
        assert!(serde_json::from_str::<RowSet>("\"x\"").is_err());
    }

    #[test]
    fn debug_prints_counts() {
        assert_eq!(
            format!("{:?}", set(0..1_000)),
            "RowSet(1000 rows in 0..=999)"
        );
        assert_eq!(format!("{:?}", RowSet::new()), "RowSet(0 rows)");
    }
}
