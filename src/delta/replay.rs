//! Which rows the commits between two versions dirtied, read off the commits.
//!
//! The versions of a table form a tree: a version's content comes from the one
//! before it, or, if a restore made it, from the version restored. What lies between
//! two versions is the path over their nearest common ancestor. A row may differ
//! between the two ends only if a commit on that path dirtied it, and in which
//! direction a commit is passed makes no difference, so the dirty sets of both
//! branches are united.
//!
//! Transactions say most of it. Manifests of versions in between are loaded only
//! where a transaction does not: where the schema changed, and where columns were
//! rewritten in place.

use std::collections::{BTreeSet, HashMap};

use futures::StreamExt;
use lance::Dataset;
use lance_table::format::Fragment;
use lance_table::transaction::{
    DataOverlayGroup, DataReplacementGroup, Operation, Transaction, UpdateMode,
    UpdatedFragmentOffsets,
};
use roaring::RoaringBitmap;

use super::fields::Inputs;
use super::{FullReason, fragments};
use crate::error::{Error, Result};
use crate::storage::properties::{COMPUTED_ROWS, UPDATED_FIELDS};
use crate::storage::row_set::RowSet;

/// How many transactions are read ahead: each is a request or two to the store.
const READ_AHEAD: u64 = 16;

/// Rows that commits dirtied, whether they live at either end or not.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Rows of which a commit says that it wrote one of the fields.
    pub(super) written: RowSet,
    /// Rows of which nothing says that the fields stayed as they were.
    pub(super) unconfirmed: RowSet,
    /// Commits on the path.
    pub(super) commits: u64,
}

/// What replaying gave.
#[derive(Debug)]
pub(super) enum Replayed {
    /// The commits were followed, or the end points compared.
    Dirty(Dirty),
    /// All rows have to be taken as changed.
    Full(FullReason),
}

/// Why replaying can't go on.
enum Stop {
    /// A version or transaction on the path is not there any more.
    Missing,
    /// All rows have to be taken as changed.
    Full(FullReason),
    /// The store failed.
    Failed(lance::Error),
}

impl From<lance::Error> for Stop {
    fn from(error: lance::Error) -> Self {
        match is_missing(&error) {
            true => Self::Missing,
            false => Self::Failed(error),
        }
    }
}

/// Whether an error says that a version, or a file of it, does not exist.
pub(super) fn is_missing(error: &lance::Error) -> bool {
    matches!(
        error,
        lance::Error::NotFound { .. } | lance::Error::DatasetNotFound { .. }
    )
}

/// Follows the commits from `old` to `new`, two versions of one table with stable
/// row ids, both of which have the fields.
///
/// # Errors
/// When the store fails. Versions in between that are gone are no error: the end
/// points are compared then.
pub(super) async fn replay(old: &Dataset, new: &Dataset, inputs: &Inputs) -> Result<Replayed> {
    let mut replay = Replay {
        old,
        new,
        inputs,
        dirty: Dirty::default(),
        transactions: HashMap::new(),
    };
    let stopped = match replay.follow().await {
        Ok(()) => return Ok(Replayed::Dirty(replay.dirty)),
        Err(stopped) => stopped,
    };
    match stopped {
        Stop::Full(reason) => Ok(Replayed::Full(reason)),
        Stop::Failed(error) => Err(Error::from(error)),
        Stop::Missing => {
            let mut dirty = Dirty {
                commits: version_of(new).abs_diff(version_of(old)),
                ..Dirty::default()
            };
            dirty.unconfirmed = differing_rows(old, new, inputs).await?;
            Ok(Replayed::Dirty(dirty))
        }
    }
}

fn version_of(dataset: &Dataset) -> u64 {
    dataset.manifest().version
}

/// The rows whose stored values of the fields are elsewhere in `after` than in
/// `before`. It is right for any two versions, whatever lies between them.
async fn differing_rows(
    before: &Dataset,
    after: &Dataset,
    inputs: &Inputs,
) -> lance::Result<RowSet> {
    let mut differing = fragments::added(before, after);
    differing.extend(fragments::rewritten_in_place(before, after, inputs));
    fragments::rows(after, &differing).await
}

struct Replay<'a> {
    old: &'a Dataset,
    new: &'a Dataset,
    inputs: &'a Inputs,
    dirty: Dirty,
    /// Read ahead, by version.
    transactions: HashMap<u64, lance::Result<Option<Transaction>>>,
}

impl Replay<'_> {
    /// Goes down from both ends until they meet.
    async fn follow(&mut self) -> Result<(), Stop> {
        let (mut left, mut right) = (version_of(self.old), version_of(self.new));
        while left != right {
            if left > right {
                left = self.undo(left, right).await?;
            } else {
                right = self.undo(right, left).await?;
            }
            self.dirty.commits += 1;
        }
        Ok(())
    }

    /// Takes one commit off: adds what it dirtied, and gives the version whose
    /// content it was made from. `other` is where the other end stands.
    async fn undo(&mut self, version: u64, other: u64) -> Result<u64, Stop> {
        let Some(transaction) = self.transaction(version, other).await? else {
            self.compare_with_previous(version).await?;
            return Ok(version - 1);
        };
        let properties = Properties::of(&transaction);
        match transaction.operation {
            Operation::Restore { version: restored } => {
                // A version can only be made from an earlier one.
                return match restored < version {
                    true => Ok(restored),
                    false => Err(Stop::Missing),
                };
            }
            Operation::Overwrite { .. } => return Err(Stop::Full(FullReason::SourceReplaced)),
            // The first version of a copy: what lies before is in another table.
            Operation::Clone { .. } => return Err(Stop::Missing),

            // These change no value of a row that is there before and after. Rows
            // that come or go are seen in the fragments; a compaction moves rows,
            // but changes none.
            Operation::Delete { .. }
            | Operation::Rewrite { .. }
            | Operation::CreateIndex { .. }
            | Operation::ReserveFragments { .. }
            | Operation::UpdateConfig { .. }
            | Operation::UpdateMemWalState { .. }
            | Operation::UpdateBases { .. } => {}

            // Appended rows are new, unless a writer gave them ids of before.
            Operation::Append { fragments } => self.moved_rows(&fragments, None).await?,

            Operation::Project { .. } => {
                self.neighbours(version).await?;
            }
            Operation::Merge { .. } => {
                let (before, after) = self.neighbours(version).await?;
                let rewritten = fragments::rewritten_in_place(&before, &after, self.inputs);
                self.unconfirmed(fragments::rows(&after, &rewritten).await?);
            }
            Operation::Update {
                updated_fragments,
                new_fragments,
                fields_modified,
                update_mode,
                updated_fragment_offsets,
                ..
            } => {
                self.moved_rows(&new_fragments, properties.updated_fields)
                    .await?;
                // Rows that move leave a deletion behind and nothing else.
                let only_moves =
                    update_mode == Some(UpdateMode::RewriteRows) && fields_modified.is_empty();
                if !only_moves && !updated_fragments.is_empty() {
                    self.rewritten_columns(version, updated_fragment_offsets)
                        .await?;
                }
            }
            Operation::DataReplacement { replacements } => {
                self.replaced_files(version, replacements, properties.computed_rows)
                    .await?;
            }
            Operation::DataOverlay { groups } => self.overlaid_cells(version, groups).await?,
            Operation::Unknown { .. } => self.compare_with_previous(version).await?,
        }
        Ok(version - 1)
    }

    fn unconfirmed(&mut self, rows: RowSet) {
        self.dirty.unconfirmed.union_with(&rows);
    }

    /// Rows that were taken out of their fragment and written anew: those that come
    /// with an id. A row without one is inserted.
    async fn moved_rows(
        &mut self,
        new_fragments: &[Fragment],
        updated_fields: Option<BTreeSet<i32>>,
    ) -> Result<(), Stop> {
        let touched = match &updated_fields {
            Some(updated) => self.inputs.name_any(updated),
            None => !self.inputs.is_empty(),
        };
        if !touched {
            return Ok(());
        }
        let moved: Vec<&Fragment> = new_fragments
            .iter()
            .filter(|fragment| fragment.row_id_meta.is_some())
            .collect();
        let rows = fragments::rows(self.new, &moved).await?;
        match updated_fields {
            Some(_) => self.dirty.written.union_with(&rows),
            None => self.unconfirmed(rows),
        }
        Ok(())
    }

    /// Columns that an update rewrote within their fragments: the rows it says it
    /// matched, or all rows of the fragment if it says nothing.
    async fn rewritten_columns(
        &mut self,
        version: u64,
        offsets: Option<UpdatedFragmentOffsets>,
    ) -> Result<(), Stop> {
        let (before, after) = self.neighbours(version).await?;
        let offsets = offsets.unwrap_or_default().0;
        for fragment in fragments::rewritten_in_place(&before, &after, self.inputs) {
            let rows = match offsets.get(&fragment.id) {
                Some(matched) => fragments::rows_at(&after, fragment, matched.iter()).await?,
                None => fragments::rows(&after, &[fragment]).await?,
            };
            self.unconfirmed(rows);
        }
        Ok(())
    }

    /// Files that were put in the place of others.
    async fn replaced_files(
        &mut self,
        version: u64,
        replacements: Vec<DataReplacementGroup>,
        computed_rows: HashMap<i32, RowSet>,
    ) -> Result<(), Stop> {
        let mut told = BTreeSet::new();
        for DataReplacementGroup(fragment, file) in replacements {
            let inputs = file
                .fields
                .iter()
                .filter(|field| self.inputs.holds(**field));
            let (known, unknown): (BTreeSet<i32>, BTreeSet<i32>) = inputs
                // What is nested in a column is written with it.
                .filter(|field| self.inputs.name_any(&BTreeSet::from([**field])))
                .partition(|field| computed_rows.contains_key(field));
            told.extend(known);
            if !unknown.is_empty() {
                let rows = self.rows_of(version, fragment, None).await?;
                self.unconfirmed(rows);
            }
        }
        for field in told {
            if let Some(computed) = computed_rows.get(&field) {
                self.dirty.written.union_with(computed);
            }
        }
        Ok(())
    }

    /// Cells that were laid over the values of a fragment.
    async fn overlaid_cells(
        &mut self,
        version: u64,
        groups: Vec<DataOverlayGroup>,
    ) -> Result<(), Stop> {
        for group in groups {
            let mut offsets = RoaringBitmap::new();
            for overlay in &group.overlays {
                for (position, field) in overlay.data_file.fields.iter().enumerate() {
                    if self.inputs.holds(*field) {
                        offsets |= overlay.coverage_for_field(position)?.as_ref();
                    }
                }
            }
            if !offsets.is_empty() {
                let rows = self
                    .rows_of(version, group.fragment_id, Some(&offsets))
                    .await?;
                self.unconfirmed(rows);
            }
        }
        Ok(())
    }

    /// For a commit of which nothing is known: all rows whose storage it changed.
    async fn compare_with_previous(&mut self, version: u64) -> Result<(), Stop> {
        let (before, after) = self.neighbours(version).await?;
        if !self.inputs.is_empty() {
            self.unconfirmed(differing_rows(&before, &after, self.inputs).await?);
        }
        Ok(())
    }

    /// The ids of a fragment's rows, or of those at some offsets. They are the same
    /// as long as the fragment exists, so the versions at hand are looked at first.
    async fn rows_of(
        &self,
        version: u64,
        fragment: u64,
        offsets: Option<&RoaringBitmap>,
    ) -> Result<RowSet, Stop> {
        let find = |dataset: &Dataset| {
            dataset
                .iter_fragments()
                .find(|candidate| candidate.id == fragment)
                .cloned()
        };
        let found = match find(self.new).or_else(|| find(self.old)) {
            Some(found) => found,
            None => find(&self.at(version).await?).ok_or(Stop::Missing)?,
        };
        Ok(match offsets {
            Some(offsets) => fragments::rows_at(self.new, &found, offsets.iter()).await?,
            None => fragments::rows(self.new, &[&found]).await?,
        })
    }

    /// A version and the one before it, both of which must have the fields.
    async fn neighbours(&self, version: u64) -> Result<(Dataset, Dataset), Stop> {
        let before = self.at(version.saturating_sub(1)).await?;
        let after = self.at(version).await?;
        for dataset in [&before, &after] {
            if !dataset.manifest().uses_stable_row_ids() {
                return Err(Stop::Full(FullReason::RowTrackingNotEnabled));
            }
            if !self.inputs.present_in(dataset.schema()) {
                return Err(Stop::Full(FullReason::InputReplaced));
            }
        }
        Ok((before, after))
    }

    async fn at(&self, version: u64) -> Result<Dataset, Stop> {
        for dataset in [self.old, self.new] {
            if version_of(dataset) == version {
                return Ok(dataset.clone());
            }
        }
        Ok(self.new.checkout_version(version).await?)
    }

    /// The transaction that made a version, if it left one. Those below are read
    /// ahead, down to where the other end stands.
    async fn transaction(&mut self, version: u64, other: u64) -> Result<Option<Transaction>, Stop> {
        if !self.transactions.contains_key(&version) {
            let first = version.saturating_sub(READ_AHEAD - 1).max(other + 1);
            let wanted = (first..=version).filter(|v| !self.transactions.contains_key(v));
            let dataset = self.new;
            let read: Vec<_> = futures::stream::iter(wanted.collect::<Vec<_>>())
                .map(|v| async move { (v, dataset.read_transaction_by_version(v).await) })
                .buffer_unordered(READ_AHEAD as usize)
                .collect()
                .await;
            self.transactions.extend(read);
        }
        match self.transactions.remove(&version) {
            Some(Ok(transaction)) => Ok(transaction),
            // A version whose transaction is lost is compared with the one before;
            // if it is lost itself, that says so.
            Some(Err(error)) if is_missing(&error) => Ok(None),
            Some(Err(error)) => Err(Stop::Failed(error)),
            None => Err(Stop::Missing),
        }
    }
}

/// What commits of our own say about themselves. What can't be read counts as not
/// said.
#[derive(Debug, Default)]
struct Properties {
    updated_fields: Option<BTreeSet<i32>>,
    /// By the id of the column's field.
    computed_rows: HashMap<i32, RowSet>,
}

impl Properties {
    fn of(transaction: &Transaction) -> Self {
        let Some(properties) = &transaction.transaction_properties else {
            return Self::default();
        };
        Self {
            updated_fields: properties.get(UPDATED_FIELDS).and_then(|ids| {
                ids.split(',')
                    .map(|id| id.trim().parse().ok())
                    .collect::<Option<BTreeSet<i32>>>()
            }),
            computed_rows: properties
                .iter()
                .filter_map(|(key, rows)| {
                    let field = key.strip_prefix(COMPUTED_ROWS)?.parse().ok()?;
                    Some((field, RowSet::decode(rows).ok()?))
                })
                .collect(),
        }
    }
}

/// All rows that each version differs in from the one before, as if no commit
/// between the two had left a transaction.
#[cfg(test)]
pub(super) async fn compare_each(old: &Dataset, new: &Dataset, inputs: &Inputs) -> Option<RowSet> {
    let mut replay = Replay {
        old,
        new,
        inputs,
        dirty: Dirty::default(),
        transactions: (0..=version_of(new)).map(|v| (v, Ok(None))).collect(),
    };
    replay.follow().await.ok()?;
    Some(replay.dirty.unconfirmed)
}
