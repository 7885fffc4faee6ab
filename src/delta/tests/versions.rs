//! Versions that were restored, replaced or cleaned up.

use lance::dataset::builder::DatasetBuilder;
use lance::dataset::cleanup::CleanupPolicyBuilder;

use super::*;

fn set(ids: impl IntoIterator<Item = u64>) -> RowSet {
    ids.into_iter().collect()
}

impl Table {
    async fn clean_up(&self, versions: &[u64]) {
        let policy = CleanupPolicyBuilder::default()
            .versions(versions.to_vec())
            .unwrap()
            .delete_unverified(true)
            .build();
        let removed = self.ds.cleanup_with_policy(policy).await.unwrap();
        assert_eq!(removed.old_versions, versions.len() as u64);
    }

    /// Opens the table anew, with nothing remembered.
    async fn reopen(&mut self) {
        self.ds = Dataset::open(&self.uri).await.unwrap();
    }
}

#[tokio::test]
async fn a_restore_to_a_version_in_between_takes_back_what_came_after() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "v", "2").await;
    let kept = t.version();
    t.update("id = 2", "v", "3").await;
    t.append(200..205).await;
    t.delete("id = 9").await;
    t.restore(kept).await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.updated, set([1]));
    assert!(changes.inserted.is_empty() && changes.deleted.is_empty());
    assert_eq!(changes.commits, 2, "the undone ones don't count");
    // From a version that was undone.
    let changes = t.checked(kept + 2, &["v"]).await.changes;
    assert_eq!(changes.updated, set([2]));
    assert_eq!(changes.deleted, set(100..105));
}

#[tokio::test]
async fn a_restore_to_before_the_first_version_is_followed() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "v", "2").await;
    t.delete("id = 9").await;
    t.append(200..205).await;
    let from = t.version();
    t.update("id = 3", "v", "4").await;
    t.restore(1).await;
    t.update("id = 4", "v", "5").await;
    let changes = t.checked(from, &["v"]).await.changes;
    assert_eq!(changes.updated, set([1, 4]));
    assert_eq!(changes.inserted, set([9]));
    assert_eq!(changes.deleted, set(100..105));
}

#[tokio::test]
async fn rows_written_after_a_restore_get_ids_of_their_own() {
    let mut t = Table::new(100, 50).await;
    t.append(200..205).await;
    let from = t.version();
    t.restore(1).await;
    t.append(300..305).await;
    let changes = t.checked(from, &["v"]).await.changes;
    assert_eq!(changes.inserted, set(105..110));
    assert_eq!(changes.deleted, set(100..105));
}

#[tokio::test]
async fn restores_of_restores_are_followed() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "v", "2").await;
    t.update("id = 2", "v", "2").await;
    t.restore(2).await;
    t.update("id = 3", "v", "2").await;
    t.restore(3).await;
    t.compact(1000).await;
    t.restore(4).await;
    for from in 1..t.version() {
        t.checked(from, &["v"]).await;
    }
    assert_eq!(t.checked(1, &["v"]).await.truth, set([1]));
    assert_eq!(t.checked(5, &["v"]).await.truth, set([3]));
}

#[tokio::test]
async fn restoring_the_first_version_itself_leaves_no_change() {
    let mut t = Table::new(100, 50).await;
    t.ds.drop_columns(&["v"]).await.unwrap();
    t.compact(1000).await;
    t.write(batch(0..3).project(&[0]).unwrap(), WriteMode::Overwrite)
        .await;
    t.restore(1).await;
    t.unchanged(1, &["v", "text"]).await;
}

#[tokio::test]
async fn a_field_that_was_away_between_two_branches_is_replaced() {
    let mut t = Table::new(100, 50).await;
    let add = |t: &Table, value: &str| {
        let expressions = vec![("x".to_string(), value.to_string())];
        let mut ds = t.ds.clone();
        async move {
            let transform = lance::dataset::NewColumnTransform::SqlExpressions(expressions);
            ds.add_columns(transform, None, None).await.unwrap();
            ds
        }
    };
    t.ds = add(&t, "v + 1").await;
    let (from, recorded) = (t.version(), t.fields(&["x"]));
    t.restore(1).await;
    t.ds = add(&t, "v + 2").await;
    let delta = changes(&t.ds, &t.stamp(from).await, &recorded)
        .await
        .unwrap();
    assert_eq!(delta, Delta::Everything(FullReason::InputReplaced));
}

#[tokio::test]
async fn a_delta_goes_backwards_too() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "v", "2").await;
    t.append(200..205).await;
    t.delete("id = 9").await;
    let newest = t.version();
    t.ds = t.ds.checkout_version(1).await.unwrap();
    let changes = t.checked(newest, &["v"]).await.changes;
    assert_eq!(changes.updated, set([1]));
    assert_eq!(changes.inserted, set([9]));
    assert_eq!(changes.deleted, set(100..105));
}

#[tokio::test]
async fn an_overwritten_table_is_replaced() {
    let mut t = Table::new(100, 50).await;
    t.write(batch(0..100), WriteMode::Overwrite).await;
    t.append(200..201).await;
    let everything = Delta::Everything(FullReason::SourceReplaced);
    assert_eq!(t.delta(1, &["v"]).await, everything);
    let changes = t.checked(2, &["v"]).await.changes;
    assert_eq!(changes.inserted.len(), 1);
}

#[tokio::test]
async fn a_table_dropped_and_made_again_is_replaced() {
    for same_session in [false, true] {
        let mut t = Table::new(100, 50).await;
        t.append(200..201).await;
        let (stamp, fields) = (t.stamp(2).await, t.fields(&["v"]));
        let session = t.ds.session();
        // What is remembered of the old table must not be taken for the new one.
        t.checked(1, &["v"]).await;
        std::fs::remove_dir_all(&t.uri).unwrap();
        Table::create(&t.uri, batch(0..100), 50, true).await;
        let mut builder = DatasetBuilder::from_uri(&t.uri);
        if same_session {
            builder = builder.with_session(session);
        }
        t.ds = builder.load().await.unwrap();
        t.append(200..201).await;
        t.append(201..202).await;
        let delta = changes(&t.ds, &stamp, &fields).await.unwrap();
        assert_eq!(delta, Delta::Everything(FullReason::SourceReplaced));
        t.update("id = 3", "v", "-1").await;
        assert_eq!(t.checked(1, &["v"]).await.truth, set([3]));
    }
}

#[tokio::test]
async fn a_stamp_names_the_version_and_its_transaction() {
    let mut t = Table::new(100, 50).await;
    let first = t.stamp(1).await;
    t.restore(1).await;
    for version in [1, 2] {
        let stamp = t.stamp(version).await;
        let transaction = t.ds.read_transaction_by_version(version).await.unwrap();
        assert_eq!(stamp.version, version);
        assert_eq!(stamp.transaction, transaction.unwrap().uuid);
        let json = serde_json::to_string(&stamp).unwrap();
        assert_eq!(serde_json::from_str::<VersionStamp>(&json).unwrap(), stamp);
    }
    assert_eq!(t.stamp(1).await, first);
}

#[tokio::test]
async fn a_table_without_stable_row_ids_has_no_delta() {
    let mut t = Table::of(batch(0..100), 50, false).await;
    t.update("id = 1", "v", "2").await;
    let everything = Delta::Everything(FullReason::RowTrackingNotEnabled);
    assert_eq!(t.delta(1, &["v"]).await, everything);
}

#[tokio::test]
async fn a_migrated_table_has_deltas_from_then_on() {
    let mut t = Table::of(batch(0..100), 50, false).await;
    t.delete("id = 9").await;
    t.ds.migrate_to_stable_row_ids().await.unwrap();
    let everything = Delta::Everything(FullReason::RowTrackingNotEnabled);
    assert_eq!(t.delta(2, &["v"]).await, everything);
    let from = t.version();
    t.merge_column(&[(7, 0), (60, 0)]).await;
    t.update("id = 8", "v", "2").await;
    t.compact(1000).await;
    t.append(200..202).await;
    let checked = t.checked(from, &["v"]).await;
    assert_eq!(checked.changes.updated.len(), 3);
    assert_eq!(checked.truth.len(), 3);
}

#[tokio::test]
async fn when_versions_in_between_are_gone_the_end_points_are_compared() {
    let mut t = Table::new(100, 50).await;
    t.append(200..202).await;
    t.update("id = 1", "v", "2").await;
    t.delete("id = 60").await;
    t.append(300..302).await;
    t.clean_up(&[2, 3, 4]).await;
    t.reopen().await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.unconfirmed, set([1]));
    assert_eq!(checked.changes.commits, 4);
    // A compaction in between leaves nothing to go by.
    t.compact(1000).await;
    let newest = t.version();
    t.append(400..401).await;
    t.clean_up(&[newest]).await;
    t.reopen().await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.unconfirmed.len(), 99);
    assert_eq!(checked.truth, set([1]));
}

#[tokio::test]
async fn replaced_files_are_seen_when_versions_in_between_are_gone() {
    let mut t = Table::new(100, 50).await;
    t.replace("v", &[1], |id, v| if id == 70 { None } else { v }, None)
        .await;
    t.append(200..202).await;
    t.clean_up(&[2]).await;
    t.reopen().await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.unconfirmed, set(50..100));
    assert_eq!(checked.truth, set([70]));
    assert!(t.checked(1, &["text"]).await.changes.updated.is_empty());
}

#[tokio::test]
async fn a_field_replaced_in_a_version_that_is_gone_is_compared_by_value() {
    let mut t = Table::new(100, 50).await;
    let expressions = vec![("x".to_string(), "v + 7".to_string())];
    let transform = lance::dataset::NewColumnTransform::SqlExpressions(expressions);
    t.ds.add_columns(transform, None, None).await.unwrap();
    let (from, recorded) = (t.version(), t.fields(&["x"]));
    t.ds.drop_columns(&["x"]).await.unwrap();
    t.compact(1000).await;
    let expressions = vec![("x".to_string(), "v + 7 + id % 2".to_string())];
    let transform = lance::dataset::NewColumnTransform::SqlExpressions(expressions);
    t.ds.add_columns(transform, None, None).await.unwrap();
    t.clean_up(&[from + 1, from + 2, from + 3]).await;
    t.reopen().await;
    assert_eq!(t.fields(&["x"]), recorded);
    let checked = t.checked(from, &["x"]).await;
    assert_eq!(checked.truth.len(), 50);
}

#[tokio::test]
async fn a_version_cleaned_up_has_no_delta() {
    let mut t = Table::new(100, 50).await;
    let (stamp, fields) = (t.stamp(1).await, t.fields(&["v"]));
    t.append(200..202).await;
    t.clean_up(&[1]).await;
    t.reopen().await;
    let delta = changes(&t.ds, &stamp, &fields).await.unwrap();
    assert_eq!(delta, Delta::Everything(FullReason::SourceVersionGone));
    assert_eq!(
        FullReason::SourceVersionGone.to_string(),
        "SOURCE_VERSION_GONE"
    );
    // Nor has one that was never there.
    let stamp = VersionStamp {
        version: 77,
        ..stamp
    };
    let delta = changes(&t.ds, &stamp, &fields).await.unwrap();
    assert_eq!(delta, Delta::Everything(FullReason::SourceVersionGone));
}

#[tokio::test]
async fn a_commit_without_a_transaction_is_compared_with_the_version_before() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "v", "2").await;
    t.replace("v", &[1], |id, v| if id == 70 { None } else { v }, None)
        .await;
    t.append(200..202).await;
    let inputs = Inputs::resolve(t.ds.schema(), &t.fields(&["v"])).unwrap();
    let old = t.ds.checkout_version(1).await.unwrap();
    let dirty = replay::compare_each(&old, &t.ds, &inputs).await.unwrap();
    assert!(set([1]).union(&set(50..100)).is_subset(&dirty));
    assert!(!dirty.contains(2));
}

#[tokio::test]
async fn confirming_against_a_version_that_is_gone_is_an_error() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "v", "2").await;
    t.clean_up(&[1]).await;
    t.reopen().await;
    let error = confirm(&t.ds, 1, &set([1]), &t.fields(&["v"]))
        .await
        .unwrap_err();
    assert!(
        error.message().starts_with("version 1 can't be read"),
        "{error}"
    );
}
