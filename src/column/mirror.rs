//! Copies of states in the table's metadata, so that they outlive the versions whose commits carry them.
//!
//! Metadata of a table goes from version to version, through compactions and restores, so a copy is there
//! as long as the newest version is. It is looked at only where walking back meets a version that was
//! cleaned up.
//!
//! Invariant: whatever was committed since, a copy that is believed is true of the values that are there;
//! it may be older than the state it copies, then more rows than necessary are computed.
//!
//! - **An older copy is true**, because a state says of its rows that they hold values of its watermark
//!   *or later*. For this the version of its watermark has to stay: [`needed_versions`] names it too.
//! - **Another definition, or another column** with the same field id: a copy names the declaration
//!   that it is of ([`declaration_id`]), which every declaration and every new expression gets anew.
//! - **A restore** brings back the metadata of the version that it restores, so the copy of that time.
//!   One that comes between reading the state and committing the copy is noticed, and the copy made again.
//! - **An overwrite** by others keeps the metadata of the table. Its rows have ids that were not there
//!   before, so they all come after the watermark; a definition that it has dropped has no state.
//!
//! # When
//!
//! A copy costs a version, as large as any, so not every refresh makes one: [`mirror_states`] does if there
//! is none of this declaration, or the one there is was made an hour or a hundred versions ago. Who removes
//! versions here makes it before ([`mirror_states_now`]); other programs by default remove versions that
//! are a week old or older. So what may be computed again after a clean-up by others is at most what the
//! refreshes of one hour computed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use lance::Dataset;
use lance::dataset::transaction::Operation;
use serde::{Deserialize, Serialize};

use super::state::{ColumnState, FoundState, Located, Pending, locate_states};
use crate::database::definition::declaration_id;
use crate::storage::properties::{COLUMN_STATE, VIEW_STATE};
use crate::storage::schema::{LanceSchema, MetadataChanges, change_table_metadata};
use crate::storage::{storage_error, with_retries};
use crate::{Error, ErrorKind, Result};

/// A copy that is so old is made again, in milliseconds.
const MAX_AGE_MILLIS: u64 = 60 * 60 * 1000;
/// A copy of a state that was committed so many versions ago is made again.
const MAX_VERSIONS: u64 = 100;

/// A copy of a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Copy {
    /// The declaration that it is of.
    declaration: String,
    /// The version whose commit carries the state, or, if there is none, up to which there is none.
    version: u64,
    /// When the copy was made, in milliseconds since 1970.
    written_millis: u64,
    /// The state; `None` if the column was never refreshed.
    state: Option<ColumnState>,
}

fn key(field_id: i32) -> String {
    format!("{COLUMN_STATE}{field_id}")
}

fn declaration_of(schema: &LanceSchema, field_id: i32) -> Option<String> {
    let field = schema.fields.iter().find(|field| field.id == field_id)?;
    declaration_id(&field.metadata)
}

/// The copy of a column's state, if it is of the column's present declaration.
fn copy_of(
    metadata: &HashMap<String, String>,
    schema: &LanceSchema,
    field_id: i32,
) -> Option<Copy> {
    let copy: Copy = serde_json::from_str(metadata.get(&key(field_id))?).ok()?;
    (declaration_of(schema, field_id)? == copy.declaration).then_some(copy)
}

/// What the copies in a table's `metadata` say of columns, which are those of `schema`.
pub(super) fn states(
    metadata: &HashMap<String, String>,
    schema: &LanceSchema,
    field_ids: &[i32],
) -> Vec<FoundState> {
    let found = |id: &i32| match copy_of(metadata, schema, *id) {
        Some(Copy {
            state: Some(state), ..
        }) => FoundState::State(Box::new(state)),
        Some(Copy { state: None, .. }) => FoundState::Never,
        None => FoundState::Lost,
    };
    field_ids.iter().map(found).collect()
}

/// Copies the states of `columns` (ids of their fields) where that is due; see the module. Call it when the
/// commits of a refresh are done: it takes a few reads if nothing is due.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] if others committed without end. The refresh is done all the same.
pub async fn mirror_states(table: &str, dataset: &Dataset, columns: &[i32]) -> Result<()> {
    mirror(table, dataset, columns, false).await.map(drop)
}

/// As [`mirror_states`], whether it is due or not: afterwards every version but the newest, and those that
/// [`needed_versions`] names, may go. Gives the table at its newest version.
pub async fn mirror_states_now(table: &str, dataset: &Dataset, columns: &[i32]) -> Result<Dataset> {
    mirror(table, dataset, columns, true).await
}

async fn mirror(table: &str, dataset: &Dataset, columns: &[i32], now: bool) -> Result<Dataset> {
    with_retries(|| async {
        let mut latest = dataset.clone();
        let opened = latest.checkout_latest().await;
        opened.map_err(|error| storage_error(table, error))?;
        let located = locate_states(table, &latest, columns).await?;
        let mut changes = MetadataChanges::new();
        for (id, located) in columns.iter().zip(located) {
            if let Some(copy) = due(&latest, *id, located, now) {
                let text = serde_json::to_string(&copy).map_err(|error| {
                    Error::internal(format!("a state can't be written: {error}"))
                })?;
                changes.insert(key(*id), Some(text));
            }
        }
        if changes.is_empty() {
            return Ok(latest);
        }
        // Copies for columns that are gone, or are others now.
        for key in latest.metadata().keys() {
            let id = key
                .strip_prefix(COLUMN_STATE)
                .and_then(|id| id.parse().ok());
            if let Some(id) = id
                && !changes.contains_key(key)
                && copy_of(latest.metadata(), latest.schema(), id).is_none()
            {
                changes.insert(key.clone(), None);
            }
        }
        let committed = change_table_metadata(table, &latest, changes).await?;
        check_no_restore(table, &committed, latest.version().version).await?;
        Ok(committed)
    })
    .await
}

/// The copy to write for a column, if one is due.
fn due(latest: &Dataset, field_id: i32, located: Located, now: bool) -> Option<Copy> {
    let declaration = declaration_of(latest.schema(), field_id)?;
    let newest = latest.version().version;
    let there = copy_of(latest.metadata(), latest.schema(), field_id);
    let (state, version) = match (located.state, located.version) {
        (FoundState::State(state), Some(version)) => (Some(*state), version),
        // What was found is the copy; or nothing is known.
        (FoundState::State(_), None) | (FoundState::Lost, _) => return None,
        (FoundState::Never, _) if now => (None, newest),
        (FoundState::Never, _) => return None,
    };
    if let Some(there) = &there {
        if there.state == state && (state.is_none() || there.version == version) {
            return None;
        }
        let age = millis_now().abs_diff(there.written_millis);
        let recent = there.version <= version
            && version - there.version < MAX_VERSIONS
            && age < MAX_AGE_MILLIS
            && same_values(there.state.as_ref(), state.as_ref());
        if recent && !now {
            return None;
        }
    }
    // Without it the column is computed in full, as it is with it.
    if !now && state.as_ref().is_some_and(is_unfilled) {
        return None;
    }
    Some(Copy {
        declaration,
        version,
        written_millis: millis_now(),
        state,
    })
}

fn is_unfilled(state: &ColumnState) -> bool {
    matches!(state.pending, Pending::All(_))
}

/// Whether the older of two states saves anything where the newer does.
fn same_values(older: Option<&ColumnState>, newer: Option<&ColumnState>) -> bool {
    match (older, newer) {
        (Some(older), Some(newer)) => {
            older.definition == newer.definition && (!is_unfilled(older) || is_unfilled(newer))
        }
        (None, newer) => newer.is_none_or(is_unfilled),
        (Some(_), None) => false,
    }
}

/// Fails, so that it is tried again, if a restore was committed after version `read` and before the one of
/// `committed`: then the copies in it are of values that were undone.
async fn check_no_restore(table: &str, committed: &Dataset, read: u64) -> Result<()> {
    for version in read + 1..committed.version().version {
        let transaction = committed.read_transaction_by_version(version).await;
        let transaction = transaction.map_err(|error| storage_error(table, error))?;
        if transaction.is_none_or(|t| matches!(t.operation, Operation::Restore { .. })) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("table '{table}' was restored meanwhile"),
            ));
        }
    }
    Ok(())
}

fn millis_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// The versions of the table that refreshes of `columns` (ids of their fields) go back to, and which of the
/// columns do: the watermarks of their states and of the copies of these. Once [`mirror_states_now`]
/// has run, no other version is needed, but for columns that LanceDB declared: of these there are no
/// copies, so all versions since the one that carries their state are.
pub async fn needed_versions(
    table: &str,
    dataset: &Dataset,
    columns: &[i32],
) -> Result<BTreeMap<u64, BTreeSet<i32>>> {
    let mut needed = needed_once_mirrored(table, dataset, columns).await?;
    for id in columns {
        if let Some(Copy {
            state: Some(state), ..
        }) = copy_of(dataset.metadata(), dataset.schema(), *id)
            && !is_unfilled(&state)
        {
            let version = state.watermark.version;
            needed.entry(version).or_default().insert(*id);
        }
    }
    Ok(needed)
}

/// As [`needed_versions`], once [`mirror_states_now`] has run, whether it has or not.
pub async fn needed_once_mirrored(
    table: &str,
    dataset: &Dataset,
    columns: &[i32],
) -> Result<BTreeMap<u64, BTreeSet<i32>>> {
    let mut needed: BTreeMap<u64, BTreeSet<i32>> = BTreeMap::new();
    let mut need = |version: u64, id: i32| {
        needed.entry(version).or_default().insert(id);
    };
    let located = locate_states(table, dataset, columns).await?;
    for (id, located) in columns.iter().zip(located) {
        if let FoundState::State(state) = &located.state
            && !is_unfilled(state)
        {
            need(state.watermark.version, *id);
            if let (None, Some(version)) = (declaration_of(dataset.schema(), *id), located.version)
            {
                for version in version..=dataset.version().version {
                    need(version, *id);
                }
            }
        }
    }
    Ok(needed)
}

/// Names of the files below `_headwater/` that the version of `dataset` names: in the states that its commit
/// carries, and in the copies.
///
/// # Errors
///
/// If one of these can't be read.
pub async fn files_named(table: &str, dataset: &Dataset) -> Result<BTreeSet<String>> {
    let transaction = dataset.read_transaction().await;
    let transaction = transaction.map_err(|error| storage_error(table, error))?;
    let properties = transaction.and_then(|t| t.transaction_properties);
    let mut files = BTreeSet::new();
    let carried = properties.iter().flat_map(|properties| properties.iter());
    for (key, text) in carried.chain(dataset.metadata()) {
        if !key.starts_with(COLUMN_STATE) && key != VIEW_STATE {
            continue;
        }
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("table '{table}': a state can't be read: {error}"),
            )
        })?;
        let state = value.get("state").unwrap_or(&value);
        if let Some(file) = state
            .pointer("/pending/file")
            .and_then(|file| file.as_str())
        {
            files.insert(file.to_string());
        }
        // Rows of a materialized view that failed, by column.
        let failed = state
            .pointer("/failed")
            .and_then(|failed| failed.as_array());
        for failed in failed.into_iter().flatten() {
            let file = failed.pointer("/keys/file").and_then(|file| file.as_str());
            files.extend(file.map(str::to_string));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int32Array, RecordBatch, RecordBatchIterator};
    use arrow::datatypes::{Int64Type, Schema, UInt64Type};
    use lance::dataset::cleanup::CleanupPolicy;
    use lance::dataset::{WriteMode, WriteParams};
    use tempfile::TempDir;

    use super::*;
    use crate::session::Headwater;
    use crate::storage::pin;

    struct Scene {
        _folder: TempDir,
        uri: String,
        headwater: Headwater,
    }

    impl Scene {
        /// A table of three rows whose computed column was refreshed.
        async fn new() -> Self {
            let folder = TempDir::new().unwrap();
            let url = folder.path().join("db").display().to_string();
            let scene = Self {
                _folder: folder,
                uri: format!("{url}/boxes.lance"),
                headwater: Headwater::open(&url).await.unwrap(),
            };
            scene
                .sql("CREATE TABLE boxes (id BIGINT, x INT, twice INT AS (x * 2))")
                .await;
            scene
                .sql("INSERT INTO boxes VALUES (1, 10), (2, 20), (3, 30)")
                .await;
            assert_eq!(scene.refresh().await, "full FIRST_REFRESH 3");
            scene
        }

        async fn sql(&self, text: &str) -> RecordBatch {
            let frame = self.headwater.sql(text).await.unwrap();
            let batches = frame.collect().await.unwrap();
            batches.into_iter().next().unwrap()
        }

        /// Mode, reason and rows computed.
        async fn refresh(&self) -> String {
            let done = self.sql("REFRESH COLUMN twice ON boxes").await;
            let text = |name: &str| {
                let column = done.column_by_name(name).unwrap();
                column.as_string::<i32>().value(0).to_string()
            };
            let computed = done.column_by_name("rows_computed").unwrap();
            let computed = computed.as_primitive::<UInt64Type>().value(0);
            let wrong = "SELECT count(*) FROM boxes WHERE twice IS DISTINCT FROM x * 2";
            let wrong = self.sql(wrong).await;
            assert_eq!(wrong.column(0).as_primitive::<Int64Type>().value(0), 0);
            format!("{} {} {computed}", text("mode"), text("reason"))
        }

        async fn open(&self) -> Dataset {
            Dataset::open(&self.uri).await.unwrap()
        }

        async fn version(&self) -> u64 {
            self.open().await.version().version
        }

        /// What follows a refresh.
        async fn settle(&self) {
            let dataset = self.open().await;
            let id = dataset.schema().field("twice").unwrap().id;
            mirror_states("boxes", &dataset, &[id]).await.unwrap();
            let dataset = self.open().await;
            let needed = needed_versions("boxes", &dataset, &[id]).await.unwrap();
            let keep = needed.into_keys().collect();
            pin::release_except("boxes", &dataset, &keep).await.unwrap();
        }

        /// What others do who clean up all old versions.
        async fn clean_up(&self) {
            let dataset = self.open().await;
            let policy = CleanupPolicy {
                before_version: Some(dataset.version().version),
                ..CleanupPolicy::default()
            };
            dataset.cleanup_with_policy(policy).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_clean_up_by_others_leaves_the_next_refresh_incremental() {
        let scene = Scene::new().await;
        scene.settle().await;
        scene.sql("UPDATE boxes SET x = 11 WHERE id = 1").await;
        scene.sql("INSERT INTO boxes VALUES (4, 40)").await;
        scene.clean_up().await;
        assert_eq!(scene.refresh().await, "incremental  2");
        scene.settle().await;
        scene.clean_up().await;
        assert_eq!(scene.refresh().await, "none  0");
    }

    #[tokio::test]
    async fn without_a_copy_the_state_is_lost() {
        let scene = Scene::new().await;
        let dataset = scene.open().await;
        let copies = dataset.metadata().keys();
        let copies = copies.filter(|key| key.starts_with(COLUMN_STATE));
        let removed: MetadataChanges = copies.map(|key| (key.clone(), None)).collect();
        assert_eq!(removed.len(), 1);
        change_table_metadata("boxes", &dataset, removed)
            .await
            .unwrap();
        scene.sql("UPDATE boxes SET x = 11 WHERE id = 1").await;
        scene.clean_up().await;
        assert_eq!(scene.refresh().await, "full STATE_LOST 3");
    }

    #[tokio::test]
    async fn a_copy_is_made_now_and_then_and_an_older_one_only_computes_more() {
        let scene = Scene::new().await;
        // The first refresh has made one.
        let before = scene.version().await;
        scene.settle().await;
        assert_eq!(scene.version().await, before);
        scene.sql("UPDATE boxes SET x = 11 WHERE id = 1").await;
        assert_eq!(scene.refresh().await, "incremental  1");
        let before = scene.version().await;
        scene.settle().await;
        assert_eq!(scene.version().await, before);
        scene.sql("UPDATE boxes SET x = 21 WHERE id = 2").await;
        scene.clean_up().await;
        assert_eq!(scene.refresh().await, "incremental  2");
    }

    #[tokio::test]
    async fn copies_and_refreshes_at_the_same_time_all_succeed() {
        let scene = Scene::new().await;
        scene.sql("INSERT INTO boxes VALUES (4, 40)").await;
        let dataset = scene.open().await;
        let ids = [dataset.schema().field("twice").unwrap().id];
        let (a, b, refreshed) = tokio::join!(
            mirror_states_now("boxes", &dataset, &ids),
            mirror_states_now("boxes", &dataset, &ids),
            scene.refresh()
        );
        a.unwrap();
        b.unwrap();
        assert_eq!(refreshed, "incremental  1");
        scene.settle().await;
        scene.clean_up().await;
        // Which of them committed last is open, so the copy may be an older one.
        let refreshed = scene.refresh().await;
        assert!(!refreshed.starts_with("full"), "{refreshed}");
    }

    #[tokio::test]
    async fn a_copy_of_another_declaration_is_not_believed() {
        let scene = Scene::new().await;
        scene.settle().await;
        for expression in ["x * 3", "x * 2"] {
            let text =
                format!("ALTER TABLE boxes ALTER COLUMN twice SET EXPRESSION AS ({expression})");
            scene.sql(&text).await;
            if expression == "x * 3" {
                scene.sql("REFRESH COLUMN twice ON boxes").await;
            }
        }
        scene.sql("INSERT INTO boxes VALUES (4, 40)").await;
        scene.clean_up().await;
        assert_eq!(scene.refresh().await, "full STATE_LOST 4");
    }

    #[tokio::test]
    async fn an_overwrite_that_keeps_the_definition_is_computed_again() {
        let scene = Scene::new().await;
        scene.settle().await;
        let dataset = scene.open().await;
        let rows = dataset.scan().try_into_batch().await.unwrap();
        let schema = Arc::new(Schema::from(dataset.schema()));
        let mut columns = rows.columns().to_vec();
        columns[2] = Arc::new(Int32Array::from(vec![7; 3]));
        let rows = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let params = WriteParams {
            mode: WriteMode::Overwrite,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new([Ok(rows)], schema);
        Dataset::write(reader, scene.uri.as_str(), Some(params))
            .await
            .unwrap();
        scene.sql("INSERT INTO boxes VALUES (4, 40)").await;
        scene.clean_up().await;
        let refreshed = scene.refresh().await;
        assert!(refreshed.ends_with(" 4"), "{refreshed}");
    }

    #[tokio::test]
    async fn a_restore_in_between_is_noticed() {
        let scene = Scene::new().await;
        let read = scene.open().await;
        let mut old = read.checkout_version(2).await.unwrap();
        old.restore().await.unwrap();
        let changes = MetadataChanges::from([("k".to_string(), Some("v".to_string()))]);
        let committed = change_table_metadata("boxes", &read, changes)
            .await
            .unwrap();
        assert_eq!(committed.version().version, read.version().version + 2);
        let error = check_no_restore("boxes", &committed, read.version().version).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Conflict);
        let nothing = check_no_restore("boxes", &committed, committed.version().version - 1).await;
        assert!(nothing.is_ok());
    }

    #[tokio::test]
    async fn files_are_named_by_states_and_by_copies() {
        let scene = Scene::new().await;
        let dataset = scene.open().await;
        let id = dataset.schema().field("twice").unwrap().id;
        let located = locate_states("boxes", &dataset, &[id]).await.unwrap();
        let FoundState::State(mut state) = located[0].state.clone() else {
            panic!("no state");
        };
        state.pending = Pending::File("pending/a".to_string());
        let copy = Copy {
            declaration: String::new(),
            version: 1,
            written_millis: 0,
            state: Some(*state),
        };
        let text = serde_json::to_string(&copy).unwrap();
        let changes = MetadataChanges::from([(key(id), Some(text))]);
        let dataset = change_table_metadata("boxes", &dataset, changes)
            .await
            .unwrap();
        let files = files_named("boxes", &dataset).await.unwrap();
        assert_eq!(files, BTreeSet::from(["pending/a".to_string()]));
    }
}
