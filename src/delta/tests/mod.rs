//! Tests over real tables: every delta is compared with the values at both versions.

mod compare;
mod data;
mod random;
mod schema;
mod versions;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, UInt64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::transaction::{Operation, TransactionBuilder};
use lance::dataset::{
    CommitBuilder, InsertBuilder, MergeInsertBuilder, MergeInsertWriteMode, UpdateBuilder,
    WhenMatched, WhenNotMatched, WriteMode, WriteParams,
};
use tempfile::TempDir;

use super::*;
use crate::storage::properties::{COMPUTED_ROWS, UPDATED_FIELDS};

/// A table in a folder of its own.
struct Table {
    _dir: TempDir,
    uri: String,
    ds: Dataset,
}

/// A delta that was found right, and the rows that truly differ.
struct Checked {
    changes: RowChanges,
    truth: RowSet,
}

/// Rows `ids` as this table has them at first.
fn batch(ids: Range<i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.collect();
    rows_of(&ids.iter().map(|id| (*id, id * 10)).collect::<Vec<_>>())
}

/// Rows of the table with given values of `v`.
fn rows_of(rows: &[(i64, i64)]) -> RecordBatch {
    let ids: Vec<i64> = rows.iter().map(|(id, _)| *id).collect();
    let text: Vec<Option<String>> = ids
        .iter()
        .map(|id| (id % 7 != 0).then(|| format!("row {id}")))
        .collect();
    let point = StructArray::new(
        Fields::from(vec![
            Field::new("x", DataType::Float64, true),
            Field::new("y", DataType::Float64, true),
        ]),
        vec![
            Arc::new(Float64Array::from_iter_values(
                ids.iter().map(|id| *id as f64),
            )) as ArrayRef,
            Arc::new(Float64Array::from_iter_values(ids.iter().map(|_| f64::NAN))),
        ],
        None,
    );
    RecordBatch::try_from_iter_with_nullable(vec![
        ("id", Arc::new(Int64Array::from(ids)) as ArrayRef, true),
        (
            "v",
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, v)| *v))),
            true,
        ),
        ("text", Arc::new(StringArray::from(text)), true),
        ("point", Arc::new(point), true),
    ])
    .unwrap()
}

impl Table {
    /// `rows` rows with stable row ids, `per_fragment` in each fragment.
    async fn new(rows: i64, per_fragment: usize) -> Self {
        Self::of(batch(0..rows), per_fragment, true).await
    }

    async fn of(rows: RecordBatch, per_fragment: usize, stable: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let uri = dir.path().join("t.lance").to_str().unwrap().to_string();
        let ds = Self::create(&uri, rows, per_fragment, stable).await;
        Self { _dir: dir, uri, ds }
    }

    async fn create(uri: &str, rows: RecordBatch, per_fragment: usize, stable: bool) -> Dataset {
        let params = WriteParams {
            max_rows_per_file: per_fragment,
            enable_stable_row_ids: stable,
            mode: WriteMode::Create,
            ..Default::default()
        };
        InsertBuilder::new(uri)
            .with_params(&params)
            .execute(vec![rows])
            .await
            .unwrap()
    }

    fn version(&self) -> u64 {
        self.ds.manifest().version
    }

    async fn append(&mut self, ids: Range<i64>) {
        self.write(batch(ids), WriteMode::Append).await;
    }

    async fn write(&mut self, rows: RecordBatch, mode: WriteMode) {
        let params = WriteParams {
            mode,
            enable_stable_row_ids: true,
            ..Default::default()
        };
        self.ds = InsertBuilder::new(Arc::new(self.ds.clone()))
            .with_params(&params)
            .execute(vec![rows])
            .await
            .unwrap();
    }

    /// An UPDATE as Lance itself makes it: rows move, and nothing says what was set.
    async fn update(&mut self, filter: &str, column: &str, value: &str) {
        let updated = UpdateBuilder::new(Arc::new(self.ds.clone()))
            .update_where(filter)
            .unwrap()
            .set(column, value)
            .unwrap()
            .build()
            .unwrap()
            .execute()
            .await
            .unwrap();
        self.ds = updated.new_dataset.as_ref().clone();
    }

    async fn delete(&mut self, filter: &str) {
        self.ds.delete(filter).await.unwrap();
    }

    async fn compact(&mut self, rows_per_fragment: usize) {
        let options = CompactionOptions {
            target_rows_per_fragment: rows_per_fragment,
            materialize_deletions_threshold: 0.0,
            ..Default::default()
        };
        compact_files(&mut self.ds, options, None).await.unwrap();
    }

    fn merge_builder(&self, mode: MergeInsertWriteMode) -> MergeInsertBuilder {
        let mut builder =
            MergeInsertBuilder::try_new(Arc::new(self.ds.clone()), vec!["id".into()]).unwrap();
        let not_matched = match mode {
            MergeInsertWriteMode::RewriteColumns => WhenNotMatched::DoNothing,
            _ => WhenNotMatched::InsertAll,
        };
        builder
            .when_matched(WhenMatched::UpdateAll)
            .when_not_matched(not_matched)
            .write_mode(mode);
        builder
    }

    /// A merge of whole rows: matched ones move, others are inserted.
    async fn merge_rows(&mut self, rows: &[(i64, i64)]) {
        let mut builder = self.merge_builder(MergeInsertWriteMode::RewriteRows);
        let (ds, _) = builder
            .try_build()
            .unwrap()
            .execute_batches(vec![rows_of(rows)])
            .await
            .unwrap();
        self.ds = ds.as_ref().clone();
    }

    /// A merge that rewrites `v` of the matched rows in place.
    async fn merge_column(&mut self, rows: &[(i64, i64)]) {
        let source = rows_of(rows).project(&[0, 1]).unwrap();
        let mut builder = self.merge_builder(MergeInsertWriteMode::RewriteColumns);
        let (ds, _) = builder
            .try_build()
            .unwrap()
            .execute_batches(vec![source])
            .await
            .unwrap();
        self.ds = ds.as_ref().clone();
    }

    /// A merge of whole rows with a property that says which fields it set.
    async fn merge_rows_saying(&mut self, rows: &[(i64, i64)], updated_fields: &str) {
        self.merge_saying(rows_of(rows), updated_fields).await;
    }

    async fn merge_saying(&mut self, rows: RecordBatch, updated_fields: &str) {
        let mut builder = self.merge_builder(MergeInsertWriteMode::RewriteRows);
        let mut uncommitted = builder
            .try_build()
            .unwrap()
            .execute_uncommitted_batches(vec![rows])
            .await
            .unwrap();
        uncommitted.transaction.transaction_properties = Some(Arc::new(HashMap::from([(
            UPDATED_FIELDS.to_string(),
            updated_fields.to_string(),
        )])));
        let mut commit = CommitBuilder::new(Arc::new(self.ds.clone()));
        if let Some(affected) = uncommitted.affected_rows {
            commit = commit.with_affected_rows(affected);
        }
        self.ds = commit.execute(uncommitted.transaction).await.unwrap();
    }

    /// Puts new files in the place of an Int64 column's in some fragments, as the
    /// refresh of a computed column does: each row gets what `value` makes of its id
    /// and its old value.
    async fn replace(
        &mut self,
        column: &str,
        fragments: &[u64],
        value: impl Fn(i64, Option<i64>) -> Option<i64>,
        computed_rows: Option<String>,
    ) {
        let schema = self.ds.schema().project(&[column]).unwrap();
        let arrow_schema = Arc::new(Schema::from(&schema));
        let mut replacements = Vec::new();
        for id in fragments {
            let fragment = self.ds.get_fragment(*id as usize).unwrap();
            let mut scan = fragment.scan();
            scan.project(&["id", column]).unwrap();
            scan.with_row_address();
            let live = scan.try_into_batch().await.unwrap();
            let mut values = vec![None; fragment.physical_rows().await.unwrap()];
            let addresses = live["_rowaddr"].as_primitive::<UInt64Type>();
            let ids = live["id"].as_primitive::<Int64Type>();
            let old = live[column].as_primitive::<Int64Type>();
            for row in 0..live.num_rows() {
                let old = old.is_valid(row).then(|| old.value(row));
                values[addresses.value(row) as u32 as usize] = value(ids.value(row), old);
            }
            let values = Arc::new(Int64Array::from(values)) as ArrayRef;
            let file = RecordBatch::try_new(arrow_schema.clone(), vec![values]).unwrap();
            let stream = futures::stream::iter([Ok(file)]);
            replacements.push(fragment.write_columns(stream, &schema).await.unwrap());
        }
        let key = format!("{COMPUTED_ROWS}{}", schema.fields[0].id);
        let properties = computed_rows.map(|rows| (key.as_str(), rows));
        self.commit(Operation::DataReplacement { replacements }, properties)
            .await;
    }

    async fn commit(&mut self, operation: Operation, property: Option<(&str, String)>) {
        let properties =
            property.map(|(key, value)| Arc::new(HashMap::from([(key.to_string(), value)])));
        let transaction = TransactionBuilder::new(self.version(), operation)
            .transaction_properties(properties)
            .build();
        self.ds = CommitBuilder::new(Arc::new(self.ds.clone()))
            .execute(transaction)
            .await
            .unwrap();
    }

    async fn restore(&mut self, version: u64) {
        let mut old = self.ds.checkout_version(version).await.unwrap();
        old.restore().await.unwrap();
        self.ds = Dataset::open(&self.uri).await.unwrap();
    }

    /// The ids of the rows that a filter finds now.
    async fn ids(&self, filter: &str) -> RowSet {
        let mut scan = self.ds.scan();
        scan.project(&["_rowid"]).unwrap();
        scan.filter(filter).unwrap();
        let rows = scan.try_into_batch().await.unwrap();
        let ids = rows["_rowid"].as_primitive::<UInt64Type>();
        ids.values().iter().copied().collect()
    }

    async fn stamp(&self, version: u64) -> VersionStamp {
        let ds = self.ds.checkout_version(version).await.unwrap();
        VersionStamp::of(&ds).await.unwrap()
    }

    fn field(&self, name: &str) -> FieldIdentity {
        FieldIdentity::of(&self.ds, name).unwrap()
    }

    fn fields(&self, names: &[&str]) -> Vec<FieldIdentity> {
        names.iter().map(|name| self.field(name)).collect()
    }

    async fn delta(&self, from: u64, names: &[&str]) -> Delta {
        let stamp = self.stamp(from).await;
        changes(&self.ds, &stamp, &self.fields(names))
            .await
            .unwrap()
    }

    /// The delta since `from`, held against the values at both versions.
    async fn checked(&self, from: u64, names: &[&str]) -> Checked {
        let changes = match self.delta(from, names).await {
            Delta::Rows(changes) => changes,
            Delta::Everything(reason) => panic!("everything: {reason}"),
        };
        let old = self.ds.checkout_version(from).await.unwrap();
        let fields = self.fields(names);
        let (before, after) = (values(&old, &fields).await, values(&self.ds, &fields).await);
        let inserted: RowSet = after
            .keys()
            .filter(|id| !before.contains_key(id))
            .copied()
            .collect();
        let deleted: RowSet = before
            .keys()
            .filter(|id| !after.contains_key(id))
            .copied()
            .collect();
        let truth: RowSet = after
            .iter()
            .filter(|(id, value)| before.get(id).is_some_and(|old| old != *value))
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(changes.inserted, inserted, "inserted");
        assert_eq!(changes.deleted, deleted, "deleted");
        for id in truth.iter() {
            assert!(
                changes.updated.contains(id),
                "row {id} changed: {changes:?}"
            );
        }
        for id in changes.updated.iter() {
            assert!(before.contains_key(&id) && after.contains_key(&id));
        }
        assert!(changes.unconfirmed.is_subset(&changes.updated));
        let confirmed = confirm(&self.ds, from, &changes.updated, &fields)
            .await
            .unwrap();
        assert_eq!(confirmed, truth, "confirmed");
        Checked { changes, truth }
    }

    /// A delta in which no row changed at all.
    async fn unchanged(&self, from: u64, names: &[&str]) {
        let checked = self.checked(from, names).await;
        let expected = RowChanges {
            commits: checked.changes.commits,
            ..Default::default()
        };
        assert_eq!(checked.changes, expected);
    }
}

/// The values of fields, by row id, as texts that tell everything apart.
async fn values(ds: &Dataset, fields: &[FieldIdentity]) -> BTreeMap<u64, Vec<String>> {
    let mut scan = ds.scan();
    let mut names = vec!["_rowid".to_string()];
    for field in fields {
        names.push(Inputs::find(ds.schema(), field.id).unwrap().name.clone());
    }
    scan.project(&names).unwrap();
    let rows = scan.try_into_batch().await.unwrap();
    let options = FormatOptions::new().with_null("NULL");
    let ids = rows["_rowid"].as_primitive::<UInt64Type>().clone();
    let columns: Vec<ArrayFormatter> = names[1..]
        .iter()
        .map(|name| ArrayFormatter::try_new(rows[name.as_str()].as_ref(), &options).unwrap())
        .collect();
    (0..rows.num_rows())
        .map(|row| {
            let texts = columns
                .iter()
                .map(|column| column.value(row).to_string())
                .collect();
            (ids.value(row), texts)
        })
        .collect()
}
