//! Pins: versions that derived objects refer to stay readable, whoever cleans up.
//!
//! A pin is a Lance branch that begins at the version, named after it, on which nothing is ever
//! committed. Lance keeps the version that a branch begins at, with its files, and says nothing of it to
//! who cleans up. A tag keeps it too, but then `cleanup_old_versions` of other programs fails with its
//! defaults. What a branch costs more than a tag is small: it is a copy of the manifest. Made and removed
//! in a local folder (debug build): branch 6 + 4 ms, tag 2 + 0.3 ms, whether the manifest has 400 bytes or
//! 1.4 MB; a commit takes 4 and 9 ms there.
//!
//! A branch names the place of the files that it keeps, so a table that moved keeps nothing by it until
//! it is [renewed](renew).
//!
//! The computed columns of a table share one pin for each version. What is outside of the table, such as a
//! materialized view that reads it, is an owner with an id, and has pins of its own: nobody else releases them.
//!
//! Invariant: a pin says only that its version is to stay. What a derived object reflects is in its
//! state; a pin that is missing, or one too many, is never wrong, only dearer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lance::Dataset;
use lance::dataset::refs::BranchContents;

use super::storage_error;
use crate::{Error, Result};

/// What the names of pins begin with; the version follows, or the owner, `-` and the version.
const PREFIX: &str = "headwater-pin-";
/// How often a pin that another process seems to be making is looked for.
const LOOKS: u32 = 20;
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// A pin: of the columns of the table itself, or of an owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pin {
    owner: Option<String>,
    version: u64,
}

impl Pin {
    fn new(owner: Option<&str>, version: u64) -> Self {
        let owner = owner.map(str::to_string);
        Self { owner, version }
    }

    /// The name of its branch.
    fn name(&self) -> String {
        match &self.owner {
            Some(owner) => format!("{PREFIX}{owner}-{}", self.version),
            None => format!("{PREFIX}{}", self.version),
        }
    }

    /// The pin that a branch is, if it is one.
    fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        let (owner, version) = match rest.split_once('-') {
            Some((owner, version)) if is_owner(owner) => (Some(owner), version),
            Some(_) => return None,
            None => (None, rest),
        };
        Some(Self::new(owner, version.parse().ok()?))
    }
}

/// Whether `owner` is what ids of owners look like.
fn is_owner(owner: &str) -> bool {
    !owner.is_empty() && owner.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn check_owner(owner: &str) -> Result<()> {
    match is_owner(owner) {
        true => Ok(()),
        false => Err(Error::internal(format!("'{owner}' can't own a pin"))),
    }
}

/// Keeps `version` readable, whatever others clean up. It is no error if it is pinned already, or if
/// another process does the same now.
///
/// Returns false if the store can't keep it, for example because it can't be written to: what reads the
/// version may go on, but it may be cleaned up meanwhile.
///
/// # Errors
///
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if the version is not there any more.
pub async fn pin(table: &str, dataset: &Dataset, version: u64) -> Result<bool> {
    make(table, dataset, &Pin::new(None, version)).await
}

/// As [`pin`], for `owner`, whose id is of hexadecimal digits: only [`release_owner`] with the same one
/// removes it.
pub async fn pin_for(table: &str, dataset: &Dataset, version: u64, owner: &str) -> Result<bool> {
    check_owner(owner)?;
    make(table, dataset, &Pin::new(Some(owner), version)).await
}

async fn make(table: &str, dataset: &Dataset, pin: &Pin) -> Result<bool> {
    let (name, version) = (pin.name(), pin.version);
    for look in 0..LOOKS {
        match dataset.branches().get(&name).await {
            Ok(_) => return Ok(true),
            Err(lance::Error::RefNotFound { .. }) => {}
            Err(_) => return Ok(false),
        }
        let mut source = dataset.clone();
        match source.create_branch(&name, version, None).await {
            Ok(_) => return Ok(true),
            Err(error) if is_gone(&error) => return Err(gone(table, version, error)),
            // Its folder is there: another process makes it, or died half-way.
            Err(_) if half_made(dataset, &name).await => {}
            Err(error) => {
                log::warn!("table '{table}': version {version} can't be pinned: {error}");
                return Ok(false);
            }
        }
        if look + 2 == LOOKS {
            // Nobody is that slow.
            remove(table, dataset, pin).await?;
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(false)
}

/// Removes the pins of all versions but those in `keep`, which get one if they have none (another process
/// that held the same version may have removed it). Others may do the same at the same time. Pins of owners
/// stay.
pub async fn release_except(table: &str, dataset: &Dataset, keep: &BTreeSet<u64>) -> Result<()> {
    let keep = keep.iter().map(|version| Pin::new(None, *version));
    keep_only(table, dataset, None, keep.collect()).await
}

/// As [`release_except`], for the pins of `owner` alone: with nothing to keep it has none any more.
pub async fn release_owner(
    table: &str,
    dataset: &Dataset,
    owner: &str,
    keep: &BTreeSet<u64>,
) -> Result<()> {
    check_owner(owner)?;
    let keep = keep.iter().map(|version| Pin::new(Some(owner), *version));
    keep_only(table, dataset, Some(owner), keep.collect()).await
}

/// Makes `keep` the pins of `owner`.
async fn keep_only(
    table: &str,
    dataset: &Dataset,
    owner: Option<&str>,
    keep: BTreeSet<Pin>,
) -> Result<()> {
    let mut pinned = pins(table, dataset).await?;
    pinned.retain(|pin| pin.owner.as_deref() == owner);
    for released in pinned.difference(&keep) {
        remove(table, dataset, released).await?;
    }
    for missing in keep.difference(&pinned) {
        make_if_there(table, dataset, missing).await?;
    }
    Ok(())
}

/// Makes `pin`, unless its version is gone.
async fn make_if_there(table: &str, dataset: &Dataset, pin: &Pin) -> Result<()> {
    match make(table, dataset, pin).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == crate::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the pins of `versions`, where there are any, but not those of owners.
pub async fn release(table: &str, dataset: &Dataset, versions: &BTreeSet<u64>) -> Result<()> {
    for version in versions {
        remove(table, dataset, &Pin::new(None, *version)).await?;
    }
    Ok(())
}

/// All pins.
async fn pins(table: &str, dataset: &Dataset) -> Result<BTreeSet<Pin>> {
    let branches = branches(table, dataset).await?;
    Ok(branches
        .keys()
        .filter_map(|name| Pin::parse(name))
        .collect())
}

/// The versions that are pinned, but for those that only owners hold.
pub async fn pinned(table: &str, dataset: &Dataset) -> Result<BTreeSet<u64>> {
    let pins = pins(table, dataset).await?.into_iter();
    let own = pins.filter(|pin| pin.owner.is_none());
    Ok(own.map(|pin| pin.version).collect())
}

/// The versions that each owner holds.
pub async fn owners(table: &str, dataset: &Dataset) -> Result<BTreeMap<String, BTreeSet<u64>>> {
    let mut owners: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for Pin { owner, version } in pins(table, dataset).await? {
        if let Some(owner) = owner {
            owners.entry(owner).or_default().insert(version);
        }
    }
    Ok(owners)
}

/// When each pin that is not of an owner was made, in seconds since 1970, by version.
pub async fn pin_times(table: &str, dataset: &Dataset) -> Result<BTreeMap<u64, u64>> {
    let branches = branches(table, dataset).await?.into_iter();
    let pins = branches.filter_map(|(name, contents)| Some((Pin::parse(&name)?, contents)));
    let own = pins.filter(|(pin, _)| pin.owner.is_none());
    Ok(own
        .map(|(pin, contents)| (pin.version, contents.create_at))
        .collect())
}

/// The branches of others that begin at versions of the table itself: names by version.
pub async fn foreign_branches(
    table: &str,
    dataset: &Dataset,
) -> Result<BTreeMap<u64, BTreeSet<String>>> {
    let mut found: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (name, contents) in branches(table, dataset).await? {
        if Pin::parse(&name).is_none() && contents.parent_branch.is_none() {
            found
                .entry(contents.parent_version)
                .or_default()
                .insert(name);
        }
    }
    Ok(found)
}

/// Makes all pins anew, those of owners too, once a table is in another place: a branch names the place of
/// the files that it keeps.
pub async fn renew(table: &str, dataset: &Dataset) -> Result<()> {
    for pin in pins(table, dataset).await? {
        remove(table, dataset, &pin).await?;
        make_if_there(table, dataset, &pin).await?;
    }
    Ok(())
}

async fn branches(table: &str, dataset: &Dataset) -> Result<BTreeMap<String, BranchContents>> {
    match dataset.branches().list().await {
        Ok(branches) => Ok(branches.into_iter().collect()),
        // One was removed between listing and reading.
        Err(error) if error.is_not_found() => match dataset.branches().list().await {
            Ok(branches) => Ok(branches.into_iter().collect()),
            Err(error) => Err(storage_error(table, error)),
        },
        Err(error) => Err(storage_error(table, error)),
    }
}

async fn remove(table: &str, dataset: &Dataset, pin: &Pin) -> Result<()> {
    match dataset.branches().delete(&pin.name(), true).await {
        Ok(()) | Err(lance::Error::RefNotFound { .. } | lance::Error::NotFound { .. }) => Ok(()),
        // Others have put a tag or a branch on it: then it is theirs.
        Err(lance::Error::RefConflict { .. }) => Ok(()),
        Err(error) => Err(storage_error(table, error)),
    }
}

/// Whether there are files of a branch that may not be known as one yet.
async fn half_made(dataset: &Dataset, name: &str) -> bool {
    let Ok(location) = dataset.branch_location().find_branch(Some(name)) else {
        return false;
    };
    let Ok(store) = dataset.object_store(None).await else {
        return false;
    };
    store
        .read_dir(location.path.join("_versions"))
        .await
        .is_ok_and(|files| !files.is_empty())
}

fn is_gone(error: &lance::Error) -> bool {
    matches!(
        error,
        lance::Error::VersionNotFound { .. }
            | lance::Error::DatasetNotFound { .. }
            | lance::Error::NotFound { .. }
    )
}

fn gone(table: &str, version: u64, error: lance::Error) -> Error {
    Error::new(
        crate::ErrorKind::NotFound,
        format!("table '{table}' has no version {version} any more"),
    )
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use arrow::array::{Int32Array, RecordBatch, RecordBatchIterator};
    use lance::dataset::cleanup::CleanupPolicy;
    use lance::dataset::{WriteMode, WriteParams};
    use tempfile::TempDir;

    use super::*;

    async fn append(uri: &str) -> Dataset {
        let column = Arc::new(Int32Array::from(vec![1, 2])) as _;
        let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
        let schema = batch.schema();
        let params = WriteParams {
            mode: WriteMode::Append,
            enable_stable_row_ids: true,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        Dataset::write(reader, uri, Some(params)).await.unwrap()
    }

    /// A table with four versions.
    async fn table() -> (TempDir, Dataset) {
        let folder = TempDir::new().unwrap();
        let uri = format!("{}/goods.lance", folder.path().display());
        let mut dataset = append(&uri).await;
        dataset.delete("a = 1").await.unwrap();
        append(&uri).await;
        (folder, append(&uri).await)
    }

    /// What others do who clean up all old versions, with Lance's defaults.
    async fn clean_up(dataset: &Dataset) {
        let policy = CleanupPolicy {
            before_version: Some(dataset.version().version),
            ..CleanupPolicy::default()
        };
        dataset.cleanup_with_policy(policy).await.unwrap();
    }

    async fn left(dataset: &Dataset) -> Vec<u64> {
        let versions = dataset.version_refs().await.unwrap();
        versions.iter().map(|version| version.version).collect()
    }

    fn branch_folders(folder: &TempDir) -> usize {
        let path = folder.path().join("goods.lance/tree");
        std::fs::read_dir(path).map_or(0, Iterator::count)
    }

    #[tokio::test]
    async fn a_pinned_version_outlives_a_clean_up_by_others() {
        let (_folder, dataset) = table().await;
        assert!(pin("goods", &dataset, 2).await.unwrap());
        assert_eq!(pinned("goods", &dataset).await.unwrap(), [2].into());
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [2, 4]);
        let old = dataset.checkout_version(2).await.unwrap();
        assert_eq!(old.count_rows(None).await.unwrap(), 1);
        assert_eq!(old.scan().try_into_batch().await.unwrap().num_rows(), 1);
    }

    #[tokio::test]
    async fn a_version_is_pinned_once() {
        let (folder, dataset) = table().await;
        let other = dataset.clone();
        let (a, b) = tokio::join!(pin("goods", &dataset, 2), pin("goods", &other, 2));
        assert!(a.unwrap() && b.unwrap());
        assert!(pin("goods", &dataset, 2).await.unwrap());
        assert_eq!(branch_folders(&folder), 1);
        release_except("goods", &dataset, &BTreeSet::new())
            .await
            .unwrap();
        assert_eq!(branch_folders(&folder), 0);
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [4]);
    }

    #[tokio::test]
    async fn what_is_kept_is_pinned_again_and_the_rest_released() {
        let (_folder, dataset) = table().await;
        for version in [1, 2] {
            pin("goods", &dataset, version).await.unwrap();
        }
        let keep = BTreeSet::from([2, 3]);
        let other = dataset.clone();
        let (a, b) = tokio::join!(
            release_except("goods", &dataset, &keep),
            release_except("goods", &other, &keep)
        );
        a.unwrap();
        b.unwrap();
        assert_eq!(pinned("goods", &dataset).await.unwrap(), keep);
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [2, 3, 4]);
    }

    #[tokio::test]
    async fn a_version_that_is_gone_cannot_be_pinned() {
        let (_folder, dataset) = table().await;
        clean_up(&dataset).await;
        let error = pin("goods", &dataset, 2).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::NotFound);
        let keep = BTreeSet::from([2]);
        release_except("goods", &dataset, &keep).await.unwrap();
        assert!(pinned("goods", &dataset).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_pin_that_was_left_half_made_is_made_again() {
        let (folder, dataset) = table().await;
        pin("goods", &dataset, 2).await.unwrap();
        let refs = folder.path().join("goods.lance/_refs/branches");
        let file = Path::new(&refs).join("headwater-pin-2.json");
        std::fs::remove_file(file).unwrap();
        assert!(pinned("goods", &dataset).await.unwrap().is_empty());
        assert!(pin("goods", &dataset, 2).await.unwrap());
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [2, 4]);
    }

    #[tokio::test]
    async fn a_pin_without_its_files_harms_nobody() {
        let (folder, dataset) = table().await;
        pin("goods", &dataset, 2).await.unwrap();
        std::fs::remove_dir_all(folder.path().join("goods.lance/tree")).unwrap();
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [4]);
        release_except("goods", &dataset, &BTreeSet::new())
            .await
            .unwrap();
        assert!(pinned("goods", &dataset).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn pins_are_renewed_where_a_table_moved() {
        let (folder, dataset) = table().await;
        pin("goods", &dataset, 2).await.unwrap();
        pin_for("goods", &dataset, 3, "c0ffee").await.unwrap();
        let moved = folder.path().join("moved.lance");
        std::fs::rename(folder.path().join("goods.lance"), &moved).unwrap();
        let dataset = Dataset::open(moved.to_str().unwrap()).await.unwrap();
        renew("moved", &dataset).await.unwrap();
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [2, 3, 4]);
    }

    #[tokio::test]
    async fn owners_hold_versions_for_themselves() {
        let (_folder, dataset) = table().await;
        let none = BTreeSet::new();
        pin("goods", &dataset, 2).await.unwrap();
        for (owner, version) in [("a1", 1), ("a1", 2), ("2", 2), ("2", 3)] {
            assert!(pin_for("goods", &dataset, version, owner).await.unwrap());
        }
        let held = owners("goods", &dataset).await.unwrap();
        let all = [
            ("a1".to_string(), BTreeSet::from([1, 2])),
            ("2".to_string(), BTreeSet::from([2, 3])),
        ];
        assert_eq!(held, BTreeMap::from(all));
        assert_eq!(pinned("goods", &dataset).await.unwrap(), [2].into());
        assert_eq!(pin_times("goods", &dataset).await.unwrap().len(), 1);
        let foreign = foreign_branches("goods", &dataset).await.unwrap();
        assert!(foreign.is_empty());

        // Neither the columns nor other owners release them.
        release_except("goods", &dataset, &none).await.unwrap();
        release("goods", &dataset, &[1, 2].into()).await.unwrap();
        release_owner("goods", &dataset, "a1", &none).await.unwrap();
        let held = owners("goods", &dataset).await.unwrap();
        assert_eq!(held, [("2".to_string(), [2, 3].into())].into());
        release_owner("goods", &dataset, "2", &[1, 3].into())
            .await
            .unwrap();
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [1, 3, 4]);
        release_owner("goods", &dataset, "2", &none).await.unwrap();
        clean_up(&dataset).await;
        assert_eq!(left(&dataset).await, [4]);

        // A version that is gone is no version to keep.
        let keep = BTreeSet::from([3, 4]);
        release_owner("goods", &dataset, "a1", &keep).await.unwrap();
        let held = owners("goods", &dataset).await.unwrap();
        assert_eq!(held, [("a1".to_string(), [4].into())].into());
        for wrong in ["", "a-1", "x"] {
            let error = pin_for("goods", &dataset, 4, wrong).await.unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Internal);
        }
    }

    #[tokio::test]
    async fn branches_of_others_are_told_from_pins() {
        let (_folder, mut dataset) = table().await;
        pin("goods", &dataset, 1).await.unwrap();
        dataset.create_branch("theirs", 2, None).await.unwrap();
        assert_eq!(pinned("goods", &dataset).await.unwrap(), [1].into());
        let foreign = foreign_branches("goods", &dataset).await.unwrap();
        assert_eq!(foreign, [(2, ["theirs".to_string()].into())].into());
    }
}
