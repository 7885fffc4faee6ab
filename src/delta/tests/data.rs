//! Changes of rows and of values.

use lance::dataset::NewColumnTransform;
use lance::dataset::rowids::{
    INLINE_ROW_LINEAGE_MAX_BYTES_CONFIG_KEY, SPILL_ROW_LINEAGE_CONFIG_KEY,
};
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;
use lance_table::format::RowIdMeta;

use super::*;

fn set(ids: impl IntoIterator<Item = u64>) -> RowSet {
    ids.into_iter().collect()
}

#[tokio::test]
async fn a_version_does_not_differ_from_itself() {
    let t = Table::new(100, 50).await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes, RowChanges::default());
}

#[tokio::test]
async fn an_append_inserts_and_updates_nothing() {
    let mut t = Table::new(100, 50).await;
    for n in 0..20 {
        t.append(1000 + n * 10..1000 + n * 10 + 5).await;
    }
    let changes = t.checked(1, &["v", "text"]).await.changes;
    assert_eq!(changes.inserted, set(100..200));
    assert_eq!(changes.commits, 20);
    assert!(changes.updated.is_empty() && changes.deleted.is_empty());
}

#[tokio::test]
async fn a_delete_deletes_and_updates_nothing() {
    let mut t = Table::new(100, 50).await;
    t.delete("id IN (3, 60)").await;
    let between = t.version();
    t.delete("id < 50").await;
    t.delete("id = 61").await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.deleted, set((0..50).chain([60, 61])));
    assert!(changes.updated.is_empty() && changes.inserted.is_empty());
    let changes = t.checked(between, &["v"]).await.changes;
    assert_eq!(
        changes.deleted,
        set((0..50).filter(|id| *id != 3).chain([61]))
    );
}

#[tokio::test]
async fn a_foreign_update_is_unconfirmed_and_confirming_is_exact() {
    let mut t = Table::new(100, 50).await;
    // Sets 10 to 10 in one row of three.
    t.update("id IN (1, 2, 70)", "v", "10").await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.updated, set([1, 2, 70]));
    assert_eq!(checked.changes.unconfirmed, set([1, 2, 70]));
    assert_eq!(checked.truth, set([2, 70]));
}

#[tokio::test]
async fn a_foreign_update_of_another_field_is_unconfirmed_and_confirmed_as_nothing() {
    let mut t = Table::new(100, 50).await;
    t.update("id IN (1, 2, 70)", "text", "'new'").await;
    let checked = t.checked(1, &["v", "point"]).await;
    assert_eq!(checked.changes.unconfirmed, set([1, 2, 70]));
    assert!(checked.truth.is_empty());
    assert_eq!(t.checked(1, &["text"]).await.truth, set([1, 2, 70]));
}

#[tokio::test]
async fn an_update_that_says_it_set_another_field_changes_nothing() {
    let mut t = Table::new(100, 50).await;
    let said = t.field("text").id.to_string();
    t.merge_rows_saying(&[(4, 40), (5, 50), (200, 1)], &said)
        .await;
    let changes = t.checked(1, &["v", "point"]).await.changes;
    assert!(changes.updated.is_empty());
    assert_eq!(changes.inserted, set([100]));
    let changes = t.checked(1, &["text"]).await.changes;
    assert_eq!(changes.updated, set([4, 5]));
}

#[tokio::test]
async fn an_update_that_says_it_set_a_field_is_certain() {
    let mut t = Table::new(100, 50).await;
    let said = format!("{}, {}", t.field("text").id, t.field("v").id);
    t.merge_rows_saying(&[(4, 1), (5, 2)], &said).await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.updated, set([4, 5]));
    assert!(checked.changes.unconfirmed.is_empty());
    assert_eq!(checked.truth, set([4, 5]));
}

#[tokio::test]
async fn a_row_that_one_commit_wrote_for_sure_needs_no_confirming() {
    let mut t = Table::new(100, 50).await;
    let said = t.field("v").id.to_string();
    t.merge_rows_saying(&[(4, 1)], &said).await;
    t.update("id IN (4, 5)", "text", "'x'").await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.updated, set([4, 5]));
    assert_eq!(changes.unconfirmed, set([5]));
}

#[tokio::test]
async fn a_property_that_can_not_be_read_counts_as_absent() {
    let mut t = Table::new(100, 50).await;
    for said in ["", "x", "1,", "1.5"] {
        t.merge_rows_saying(&[(4, 1)], said).await;
    }
    t.replace("v", &[1], |_, v| v, Some("not a set".into()))
        .await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.unconfirmed, set([4].into_iter().chain(50..100)));
}

#[tokio::test]
async fn a_merge_of_whole_rows_inserts_and_updates() {
    let mut t = Table::new(100, 50).await;
    t.merge_rows(&[(7, 70), (8, 0), (99, 0), (500, 5), (501, 6)])
        .await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.updated, set([7, 8, 99]));
    assert_eq!(checked.changes.inserted.len(), 2);
    assert_eq!(checked.truth, set([8, 99]));
}

#[tokio::test]
async fn a_merge_that_rewrites_a_column_updates_the_rows_it_matched() {
    let mut t = Table::new(100, 50).await;
    t.delete("id IN (0, 1, 2)").await;
    let from = t.version();
    t.merge_column(&[(7, 70), (8, 0), (99, 0)]).await;
    let checked = t.checked(from, &["v"]).await;
    assert_eq!(checked.changes.updated, set([7, 8, 99]));
    assert_eq!(checked.changes.unconfirmed, set([7, 8, 99]));
    assert_eq!(checked.truth, set([8, 99]));
    t.unchanged(from, &["text", "point"]).await;
}

#[tokio::test]
async fn rewritten_columns_without_offsets_make_the_whole_fragment_unconfirmed() {
    let mut t = Table::new(100, 50).await;
    let before = t.ds.clone();
    t.merge_column(&[(7, 0)]).await;
    let transaction = t.ds.read_transaction_by_version(2).await.unwrap().unwrap();
    let Operation::Update {
        updated_fragments,
        fields_modified,
        update_mode,
        ..
    } = transaction.operation
    else {
        panic!("a merge is an update");
    };
    t.restore(1).await;
    assert_eq!(
        t.ds.count_rows(None).await.unwrap(),
        before.count_rows(None).await.unwrap()
    );
    let operation = Operation::Update {
        removed_fragment_ids: vec![],
        updated_fragments,
        new_fragments: vec![],
        fields_modified,
        compacted_sstables: vec![],
        fields_for_preserving_frag_bitmap: vec![],
        update_mode,
        inserted_rows_filter: None,
        updated_fragment_offsets: None,
    };
    t.commit(operation, None).await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.unconfirmed, set(0..50));
    assert_eq!(checked.truth, set([7]));
    t.unchanged(1, &["text"]).await;
}

#[tokio::test]
async fn a_compaction_changes_nothing() {
    let mut t = Table::new(100, 10).await;
    t.compact(1000).await;
    assert_eq!(t.ds.count_fragments(), 1);
    t.unchanged(1, &["id", "v", "text", "point"]).await;
}

#[tokio::test]
async fn a_compaction_after_deletes_and_updates_changes_nothing() {
    let mut t = Table::new(100, 10).await;
    t.delete("id % 5 = 0").await;
    t.update("id = 3", "v", "7").await;
    let from = t.version();
    t.compact(1000).await;
    t.unchanged(from, &["v", "text"]).await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.updated, set([3]));
    t.compact(20).await;
    t.unchanged(from, &["v"]).await;
}

#[tokio::test]
async fn replaced_files_of_another_column_change_nothing() {
    let mut t = Table::new(100, 50).await;
    t.replace("v", &[0, 1], |_, v| v.map(|v| v + 1), None).await;
    t.unchanged(1, &["text", "point"]).await;
    // The same after a compaction, which puts all columns into one file.
    t.compact(1000).await;
    let from = t.version();
    let fragment = t.ds.fragments()[0].id;
    t.replace("v", &[fragment], |_, v| v.map(|v| v + 1), None)
        .await;
    t.unchanged(from, &["text", "point"]).await;
}

#[tokio::test]
async fn replaced_files_of_a_field_are_unconfirmed() {
    let mut t = Table::new(100, 50).await;
    t.delete("id = 60").await;
    let from = t.version();
    t.replace("v", &[1], |id, v| if id == 70 { None } else { v }, None)
        .await;
    let checked = t.checked(from, &["v", "text"]).await;
    assert_eq!(
        checked.changes.unconfirmed,
        set((50..100).filter(|id| *id != 60)),
        "a row deleted before is not an updated one"
    );
    assert_eq!(checked.truth, set([70]));
}

#[tokio::test]
async fn replaced_files_that_say_which_rows_were_computed_are_certain() {
    let mut t = Table::new(100, 50).await;
    let computed = set([70, 71]);
    t.replace(
        "v",
        &[0, 1],
        |id, v| if id == 70 { Some(1) } else { v },
        Some(computed.encode()),
    )
    .await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.updated, computed);
    assert!(checked.changes.unconfirmed.is_empty());
    assert_eq!(checked.truth, set([70]));
}

#[tokio::test]
async fn a_column_that_is_filled_for_the_first_time_changes() {
    let mut t = Table::new(100, 50).await;
    let schema = Schema::new(vec![Field::new("c", DataType::Int64, true)]);
    t.ds.add_columns(NewColumnTransform::AllNulls(Arc::new(schema)), None, None)
        .await
        .unwrap();
    let from = t.version();
    t.unchanged(1, &["v"]).await;
    t.replace("c", &[0], |id, _| Some(id), None).await;
    let checked = t.checked(from, &["c"]).await;
    assert_eq!(checked.truth, set(0..50));
    t.compact(1000).await;
    assert_eq!(t.checked(from, &["c"]).await.truth, set(0..50));
}

#[tokio::test]
async fn a_row_inserted_and_updated_is_inserted_only() {
    let mut t = Table::new(100, 50).await;
    t.append(200..205).await;
    t.update("id >= 99", "v", "-1").await;
    t.merge_column(&[(201, 4)]).await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.updated, set([99]));
    assert_eq!(changes.inserted, set(100..105));
}

#[tokio::test]
async fn a_row_updated_and_deleted_is_deleted_only() {
    let mut t = Table::new(100, 50).await;
    t.update("id >= 98", "v", "-1").await;
    t.append(200..205).await;
    t.update("id = 200", "v", "-1").await;
    t.delete("id = 99 OR id = 200").await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.updated, set([98]));
    assert_eq!(changes.deleted, set([99]));
    assert_eq!(changes.inserted, set(101..105));
}

#[tokio::test]
async fn a_key_deleted_and_inserted_again_is_another_row() {
    let mut t = Table::new(100, 50).await;
    t.delete("id = 5").await;
    t.append(5..6).await;
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!((changes.deleted, changes.inserted), (set([5]), set([100])));
    assert!(changes.updated.is_empty());
}

#[tokio::test]
async fn an_index_or_a_setting_changes_nothing() {
    let mut t = Table::new(100, 50).await;
    t.ds.create_index(
        &["v"],
        IndexType::BTree,
        None,
        &ScalarIndexParams::default(),
        true,
    )
    .await
    .unwrap();
    t.ds.update_config([("a", "b")]).await.unwrap();
    t.ds.update_field_metadata()
        .update("v", [("note", "x")])
        .unwrap()
        .await
        .unwrap();
    assert!(t.version() > 3);
    t.unchanged(1, &["v", "text"]).await;
}

#[tokio::test]
async fn without_fields_only_rows_that_come_and_go_count() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "v", "2").await;
    t.replace("v", &[1], |_, _| None, None).await;
    t.append(200..201).await;
    t.delete("id = 9").await;
    let changes = t.checked(1, &[]).await.changes;
    assert!(changes.updated.is_empty());
    assert_eq!(changes.inserted.len() + changes.deleted.len(), 2);
}

#[tokio::test]
async fn a_nested_field_changes_with_each_of_its_children() {
    let mut t = Table::new(100, 50).await;
    t.update("id = 1", "point", "named_struct('x', 1.5, 'y', 2.5)")
        .await;
    assert_eq!(t.checked(1, &["point"]).await.truth, set([1]));
    assert_eq!(t.field("point").data_type, "struct<x: double, y: double>");
}

#[tokio::test]
async fn row_ids_stored_outside_the_manifest_are_found() {
    let mut t = Table::new(2_000, 500).await;
    t.ds.update_config([
        (SPILL_ROW_LINEAGE_CONFIG_KEY, "true"),
        (INLINE_ROW_LINEAGE_MAX_BYTES_CONFIG_KEY, "1"),
    ])
    .await
    .unwrap();
    t.update("id % 7 = 0", "v", "v + 1").await;
    let moved = t.version();
    t.update("id % 11 = 0", "v", "v + 1").await;
    t.delete("id % 13 = 0").await;
    t.compact(10_000).await;
    t.append(5_000..5_010).await;
    let spilled = |ds: &Dataset| {
        ds.iter_fragments()
            .any(|f| f.row_id_meta == Some(RowIdMeta::Column))
    };
    assert!(spilled(&t.ds));
    let changes = t.checked(1, &["v"]).await.changes;
    assert_eq!(changes.updated.len(), changes.unconfirmed.len());
    let changes = t.checked(moved, &["v"]).await.changes;
    assert_eq!(changes.inserted.len(), 10);
}

#[tokio::test]
async fn cells_laid_over_a_fragment_are_unconfirmed() {
    let mut t = Table::new(100, 50).await;
    let schema = t.ds.schema().project(&["v"]).unwrap();
    let fragment = t.ds.get_fragment(1).unwrap();
    let mut writer = fragment.write_overlay(&schema).await.unwrap();
    let cells = RecordBatch::try_from_iter_with_nullable(vec![
        (
            "_rowaddr",
            Arc::new(arrow::array::UInt64Array::from(vec![
                (1 << 32) + 3,
                (1 << 32) + 9,
            ])) as ArrayRef,
            false,
        ),
        (
            "v",
            Arc::new(Int64Array::from(vec![530, 0])) as ArrayRef,
            true,
        ),
    ])
    .unwrap();
    writer.write_batch(&cells).await.unwrap();
    let group = writer.finish().await.unwrap().unwrap();
    t.commit(
        Operation::DataOverlay {
            groups: vec![group],
        },
        None,
    )
    .await;
    let checked = t.checked(1, &["v"]).await;
    assert_eq!(checked.changes.unconfirmed, set([53, 59]));
    assert_eq!(checked.truth, set([59]));
    t.unchanged(1, &["text"]).await;
    t.compact(1000).await;
    assert_eq!(t.checked(1, &["v"]).await.truth, set([59]));
}
