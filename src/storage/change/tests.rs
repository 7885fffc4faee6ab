use std::collections::BTreeMap;

use datafusion::arrow::array::{ArrayRef, Int64Array, StringArray, StringViewArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type};
use futures::TryStreamExt;
use lance::dataset::WriteParams;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;
use tempfile::TempDir;

use super::*;
use crate::ErrorKind;
use crate::storage::StoreSettings;
use crate::storage::write::{append, create_table, delete_rows};

const TABLE: &str = "totals";

struct Table {
    folder: TempDir,
    root: Root,
    dataset: Dataset,
}

/// Rows as (key, text).
type Rows = Vec<(i64, String)>;

impl Table {
    /// `k` from 0, `s` = "old <k>"; five rows a fragment.
    async fn of(rows: i64) -> Self {
        let folder = TempDir::new().unwrap();
        let root = Root::open(folder.path().to_str().unwrap(), StoreSettings::default());
        let root = root.await.unwrap();
        let layout = TableLayout {
            max_rows_per_fragment: Some(5),
            max_bytes_per_file: None,
        };
        let values = values((0..rows).map(|k| (k, format!("old {k}"))));
        let (schema, rows) = (values.schema(), stream_of(vec![Ok(values)]));
        let created = create_table(&root, TABLE, schema, Some(rows), false, &layout);
        let dataset = created.await.unwrap();
        Self {
            folder,
            root,
            dataset,
        }
    }

    async fn write(&self, changes: &[Row]) -> Result<Change> {
        self.write_stream(stream_of(vec![Ok(self.batch(changes).await)]))
            .await
    }

    async fn write_stream(&self, rows: SendableRecordBatchStream) -> Result<Change> {
        let layout = TableLayout {
            max_rows_per_fragment: Some(5),
            max_bytes_per_file: None,
        };
        write_change(&self.root, TABLE, &self.dataset, rows, &layout, 2).await
    }

    /// `changes` with the ids and addresses that the keys have now.
    async fn batch(&self, changes: &[Row]) -> RecordBatch {
        let now = ids(&self.dataset).await;
        let (mut k, mut s, mut id, mut address, mut kind) =
            (vec![], vec![], vec![], vec![], vec![]);
        for change in changes {
            let (key, text, change) = match change {
                Insert(key) => (*key, Some(format!("new {key}")), INSERT),
                Replace(key) => (*key, Some(format!("new {key}")), REPLACE),
                Delete(key) => (*key, None, DELETE),
            };
            let place = (change != INSERT).then(|| now[&key]);
            k.push((change != DELETE).then_some(key));
            s.push(text);
            id.push(place.map(|place| place.0));
            address.push(place.map(|place| place.1));
            kind.push(change);
        }
        RecordBatch::try_from_iter_with_nullable([
            ("k", Arc::new(Int64Array::from(k)) as ArrayRef, true),
            ("s", Arc::new(StringArray::from(s)), true),
            ("_rowid", Arc::new(UInt64Array::from(id)), true),
            ("_rowaddr", Arc::new(UInt64Array::from(address)), true),
            (CHANGE, Arc::new(UInt8Array::from(kind)), false),
        ])
        .unwrap()
    }

    async fn commit(&self, change: &Change) -> Result<Dataset> {
        commit_change(TABLE, &self.dataset, change, Properties::new(), false).await
    }

    fn data_files(&self) -> usize {
        let data = self.folder.path().join(format!("{TABLE}.lance/data"));
        std::fs::read_dir(data).map_or(0, Iterator::count)
    }
}

/// A row of a change, by its key.
#[derive(Debug, Clone, Copy)]
enum Row {
    Insert(i64),
    Replace(i64),
    Delete(i64),
}
use Row::{Delete, Insert, Replace};

fn values(rows: impl IntoIterator<Item = (i64, String)>) -> RecordBatch {
    let (k, s): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    RecordBatch::try_from_iter_with_nullable([
        ("k", Arc::new(Int64Array::from(k)) as ArrayRef, true),
        ("s", Arc::new(StringArray::from(s)), true),
    ])
    .unwrap()
}

fn stream_of(batches: Vec<Result<RecordBatch, DataFusionError>>) -> SendableRecordBatchStream {
    let schema = batches[0].as_ref().unwrap().schema();
    Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches)))
}

async fn scanned(dataset: &Dataset) -> Vec<RecordBatch> {
    let mut scan = dataset.scan();
    scan.with_row_id().with_row_address();
    let rows = scan.try_into_stream().await.unwrap();
    rows.try_collect().await.unwrap()
}

async fn contents(dataset: &Dataset) -> Rows {
    let mut rows = Rows::new();
    for batch in scanned(dataset).await {
        let k = batch["k"].as_primitive::<Int64Type>();
        let s = batch["s"].as_string::<i32>();
        rows.extend((0..batch.num_rows()).map(|row| (k.value(row), s.value(row).to_string())));
    }
    rows.sort();
    rows
}

/// The row id and the address of each key, which there is once.
async fn ids(dataset: &Dataset) -> BTreeMap<i64, (u64, u64)> {
    let mut ids = BTreeMap::new();
    let mut seen = RowSet::new();
    for batch in scanned(dataset).await {
        let k = batch["k"].as_primitive::<Int64Type>();
        let id = batch["_rowid"].as_primitive::<UInt64Type>();
        let address = batch["_rowaddr"].as_primitive::<UInt64Type>();
        for row in 0..batch.num_rows() {
            ids.insert(k.value(row), (id.value(row), address.value(row)));
            assert!(seen.insert(id.value(row)), "a row id is there twice");
        }
    }
    ids
}

fn old(keys: impl IntoIterator<Item = i64>) -> Rows {
    keys.into_iter().map(|k| (k, format!("old {k}"))).collect()
}

fn new(keys: impl IntoIterator<Item = i64>) -> Rows {
    keys.into_iter().map(|k| (k, format!("new {k}"))).collect()
}

fn sorted(parts: [Rows; 2]) -> Rows {
    let mut rows = parts.concat();
    rows.sort();
    rows
}

#[tokio::test]
async fn rows_are_inserted_replaced_and_deleted_at_once() {
    let table = Table::of(12).await;
    let before = ids(&table.dataset).await;
    let rows = [
        Insert(100),
        Replace(11),
        Delete(3),
        Replace(2),
        Insert(101),
        Delete(10),
    ];
    let change = table.write(&rows).await.unwrap();
    assert_eq!(
        (
            change.rows_inserted,
            change.rows_replaced,
            change.rows_deleted
        ),
        (2, 2, 2)
    );
    assert!(change.bytes > 0 && !change.is_empty() && change.version() == 1);
    assert_eq!(contents(&table.dataset).await, old(0..12), "not committed");

    let properties = Properties::from([("state".to_string(), "7".to_string())]);
    let committed = commit_change(TABLE, &table.dataset, &change, properties, false);
    let committed = committed.await.unwrap();
    assert_eq!(committed.version().version, 2);
    let left = (0..12).filter(|k| ![2, 3, 10, 11].contains(k));
    let expected = sorted([old(left), new([2, 11, 100, 101])]);
    assert_eq!(contents(&committed).await, expected);
    let after = ids(&committed).await;
    for key in [0, 2, 5, 11] {
        assert_eq!(after[&key].0, before[&key].0, "row {key} keeps its id");
    }
    assert!(after[&100].0 > before[&11].0);
    committed.validate().await.unwrap();
    let transaction = committed.read_transaction().await.unwrap().unwrap();
    let properties = transaction.transaction_properties.unwrap();
    assert_eq!(properties["state"], "7");
}

#[tokio::test]
async fn rows_may_come_in_many_batches_and_other_types() {
    let table = Table::of(20).await;
    let all: Vec<Row> = (0..20)
        .flat_map(|k| match k % 4 {
            0 => vec![Replace(k), Insert(100 + k)],
            1 => vec![Delete(k)],
            2 => vec![Insert(200 + k)],
            _ => vec![],
        })
        .collect();
    let mut batches = Vec::new();
    for rows in all.chunks(3) {
        let batch = table.batch(rows).await;
        let mut columns = batch.columns().to_vec();
        columns[1] = Arc::new(StringViewArray::from_iter(batch["s"].as_string::<i32>()));
        let mut fields: Vec<Field> = batch
            .schema()
            .fields()
            .iter()
            .map(|f| (**f).clone())
            .collect();
        fields[1] = Field::new("s", DataType::Utf8View, true);
        let schema = Arc::new(Schema::new(fields));
        batches.push(Ok(RecordBatch::try_new(schema, columns).unwrap()));
    }
    let change = table.write_stream(stream_of(batches)).await.unwrap();
    assert_eq!(change.inserted.len(), 2, "ten rows, five a fragment");
    let before = ids(&table.dataset).await;
    let committed = table.commit(&change).await.unwrap();
    let left = (0..20).filter(|k| k % 4 > 1);
    let replaced = (0..20).filter(|k| k % 4 == 0);
    let inserted = (0..20).step_by(4).map(|k| 100 + k);
    let inserted = inserted.chain((2..20).step_by(4).map(|k| 200 + k));
    let expected = sorted([old(left), new(replaced.chain(inserted))]);
    assert_eq!(contents(&committed).await, expected);
    let after = ids(&committed).await;
    for key in (0..20).step_by(4) {
        assert_eq!(after[&key].0, before[&key].0, "row {key} keeps its id");
    }
    committed.validate().await.unwrap();
}

#[tokio::test]
async fn of_two_changes_of_one_version_one_is_committed() {
    let kinds: [(&[Row], bool); 6] = [
        (&[Insert(100)], false),
        (&[Delete(1)], false),
        (&[Delete(7)], false),
        (&[], false),
        (&[Insert(100), Replace(3), Delete(8)], false),
        (&[Insert(100), Replace(3)], true),
    ];
    for (first, first_all) in kinds {
        for (second, second_all) in kinds {
            let table = Table::of(12).await;
            let changes = [
                table.write(first).await.unwrap(),
                table.write(second).await.unwrap(),
            ];
            let commit = async |change: &Change, all| {
                commit_change(TABLE, &table.dataset, change, Properties::new(), all).await
            };
            let committed = commit(&changes[0], first_all).await.unwrap();
            let rows = contents(&committed).await;
            let error = commit(&changes[1], second_all).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{first:?} {second:?}");
            let mut newest = committed.clone();
            newest.checkout_latest().await.unwrap();
            assert_eq!(newest.version().version, 2);
            assert_eq!(contents(&newest).await, rows);
            let files = table.data_files();
            let [_, second] = changes;
            let written = second.fragments().count();
            discard_change(&table.dataset, second).await;
            assert_eq!(table.data_files(), files - written);
            assert_eq!(contents(&newest).await, rows);
        }
    }
}

#[tokio::test]
async fn a_change_without_rows_moves_the_state() {
    for replace_all in [false, true] {
        let table = Table::of(if replace_all { 0 } else { 3 }).await;
        let change = table.write(&[]).await.unwrap();
        assert!(change.is_empty());
        let properties = Properties::from([("state".to_string(), "8".to_string())]);
        let committed = commit_change(TABLE, &table.dataset, &change, properties, replace_all);
        let committed = committed.await.unwrap();
        assert_eq!(committed.version().version, 2);
        assert_eq!(contents(&committed).await, contents(&table.dataset).await);
        let transaction = committed.read_transaction().await.unwrap().unwrap();
        assert_eq!(transaction.transaction_properties.unwrap()["state"], "8");
        assert_eq!(table.data_files(), if replace_all { 0 } else { 1 });
    }
}

#[tokio::test]
async fn all_rows_are_replaced_without_an_overwrite() {
    let table = Table::of(12).await;
    let before = ids(&table.dataset).await;
    let change = table.write(&[Insert(100), Replace(4)]).await.unwrap();
    let committed = commit_change(TABLE, &table.dataset, &change, Properties::new(), true);
    let committed = committed.await.unwrap();
    assert_eq!(contents(&committed).await, new([4, 100]));
    let after = ids(&committed).await;
    assert_eq!(after[&4].0, before[&4].0);
    assert!(after[&100].0 >= 12, "ids are not used again");
    committed.validate().await.unwrap();
    assert_eq!(contents(&table.dataset).await, old(0..12));
}

#[tokio::test]
async fn what_others_did_to_rows_is_a_conflict_or_stays() {
    for (what, conflicts) in [
        ("append", true),
        ("delete here", true),
        ("elsewhere", false),
    ] {
        let table = Table::of(12).await;
        let change = table.write(&[Insert(100), Delete(1)]).await.unwrap();
        let places = ids(&table.dataset).await;
        let delete = |key| RowSet::from_iter([places[&key].1]);
        match what {
            "append" => {
                let rows = stream_of(vec![Ok(values([(50, "theirs".to_string())]))]);
                append(&table.root, TABLE, &table.dataset, rows).await
            }
            "delete here" => delete_rows(TABLE, &table.dataset, &delete(2)).await,
            _ => delete_rows(TABLE, &table.dataset, &delete(11)).await,
        }
        .unwrap();
        let committed = table.commit(&change).await;
        match conflicts {
            true => assert_eq!(committed.unwrap_err().kind(), ErrorKind::Conflict, "{what}"),
            false => {
                let left = (0..11).filter(|k| *k != 1);
                let expected = sorted([old(left), new([100])]);
                assert_eq!(contents(&committed.unwrap()).await, expected);
            }
        }
    }
}

#[tokio::test]
async fn an_index_does_not_hide_new_values() {
    let mut table = Table::of(12).await;
    let params = ScalarIndexParams::default();
    let columns = ["s"];
    let indexed = table
        .dataset
        .create_index(&columns, IndexType::BTree, None, &params, true);
    indexed.await.unwrap();
    let rows = [Replace(2), Replace(7), Delete(3), Insert(100)];
    let change = table.write(&rows).await.unwrap();
    let committed = table.commit(&change).await.unwrap();
    for (text, found) in [
        ("new 2", 1),
        ("old 2", 0),
        ("old 3", 0),
        ("old 4", 1),
        ("new 100", 1),
    ] {
        let filter = format!("s = '{text}'");
        let rows = committed.count_rows(Some(filter)).await.unwrap();
        assert_eq!(rows, found, "{text}");
    }
}

#[tokio::test]
async fn an_error_of_the_stream_comes_back_and_leaves_no_file() {
    let table = Table::of(12).await;
    let files = table.data_files();
    let many: Vec<Row> = (100..112).map(Insert).collect();
    let many = table.batch(&many).await;
    let failed = || {
        Err(Error::invalid("the price is missing")
            .with_hint("give one")
            .into())
    };
    for before in [0, 1, 3] {
        let mut batches = vec![Ok(many.slice(0, 0))];
        batches.extend((0..before).map(|_| Ok(many.clone())));
        batches.push(failed());
        let error = table.write_stream(stream_of(batches)).await.unwrap_err();
        assert_eq!(error.message(), "the price is missing");
        assert_eq!(error.hint(), Some("give one"));
        assert_eq!(table.data_files(), files);
    }
}

#[tokio::test]
async fn rows_that_make_no_sense_are_internal_errors() {
    let table = Table::of(12).await;
    let files = table.data_files();
    let twice: [&[Row]; 3] = [
        &[Replace(1), Replace(1)],
        &[Delete(1), Delete(2), Delete(1)],
        &[Insert(1), Replace(1), Delete(1)],
    ];
    for rows in twice {
        let error = table.write(rows).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.message().contains("two rows"), "{error}");
    }
    let good = table.batch(&[Replace(1), Delete(2)]).await;
    let (width, nulls) = (good.num_columns(), UInt64Array::new_null(2));
    for (place, column) in [
        (
            width - 1,
            Arc::new(UInt8Array::from(vec![1, 3])) as ArrayRef,
        ),
        (width - 2, Arc::new(nulls.clone())),
        (width - 3, Arc::new(nulls)),
        (width - 2, Arc::new(Int64Array::from(vec![1, 2]))),
    ] {
        let mut columns = good.columns().to_vec();
        let mut fields: Vec<_> = good.schema().fields().iter().cloned().collect();
        let field = fields[place].as_ref().clone();
        fields[place] = Arc::new(field.with_data_type(column.data_type().clone()));
        columns[place] = column;
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        let error = table.write_stream(stream_of(vec![Ok(batch)])).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Internal);
    }
    let fewer = good.project(&[1, 2, 3, 4]).unwrap();
    let error = table.write_stream(stream_of(vec![Ok(fewer)])).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(table.data_files(), files);

    let change = table.write(&[Insert(100)]).await.unwrap();
    let committed = table.commit(&change).await.unwrap();
    let late = commit_change(TABLE, &committed, &change, Properties::new(), false).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn a_table_without_lasting_row_ids_is_refused() {
    let mut table = Table::of(1).await;
    let uri = format!("{}/plain.lance", table.folder.path().display());
    let rows = values([(1, "x".to_string())]);
    let schema = rows.schema();
    let rows = datafusion::arrow::array::RecordBatchIterator::new([Ok(rows)], schema);
    let params = WriteParams::default();
    table.dataset = Dataset::write(rows, &uri, Some(params)).await.unwrap();
    let error = table.write(&[Insert(100)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn blobs_are_bytes_or_descriptors() {
    use datafusion::arrow::array::LargeBinaryArray;
    use datafusion::physical_plan::collect;

    use crate::storage::blob::written_batch;
    use crate::storage::scan::{Blobs, LanceScanExec, ScanDescription};

    let mut table = Table::of(1).await;
    let bytes = |row: u8| vec![row; 100_000 * usize::from(row)];
    let blobs = LargeBinaryArray::from_iter_values([1, 2].map(bytes));
    let field = lance::blob_field("b", true);
    let stored = Schema::new(vec![Field::new("k", DataType::Int64, true), field]);
    let keys = Arc::new(Int64Array::from(vec![1, 2]));
    let rows = [
        ("k", keys as ArrayRef, true),
        ("b", Arc::new(blobs) as ArrayRef, true),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(rows).unwrap();
    let rows = written_batch(&rows, &stored).unwrap();
    let (schema, layout) = (rows.schema(), TableLayout::default());
    let rows = stream_of(vec![Ok(rows)]);
    let created = create_table(&table.root, "blobs", schema, Some(rows), false, &layout);
    table.dataset = created.await.unwrap();
    let read = async |dataset: &Dataset, columns: &[&str], blobs| {
        let description = ScanDescription {
            columns: columns.iter().map(ToString::to_string).collect(),
            blobs,
            ..ScanDescription::new(dataset)
        };
        let scan = LanceScanExec::try_new(Arc::new(dataset.clone()), description).unwrap();
        let rows = collect(Arc::new(scan), Default::default()).await.unwrap();
        let schema = rows[0].schema();
        datafusion::arrow::compute::concat_batches(&schema, &rows).unwrap()
    };

    // A third row comes; the first gets the blob of the second.
    let now = read(
        &table.dataset,
        &["k", "b", "_rowid", "_rowaddr"],
        Blobs::Descriptors,
    )
    .await;
    let ids = |column: &str| now[column].as_primitive::<UInt64Type>().value(0);
    let one = |id: Option<u64>| Arc::new(UInt64Array::from(vec![id])) as ArrayRef;
    let moved = [
        ("k", Arc::new(Int64Array::from(vec![7])) as ArrayRef, true),
        ("b", now["b"].slice(1, 1), true),
        ("_rowid", one(Some(ids("_rowid"))), true),
        ("_rowaddr", one(Some(ids("_rowaddr"))), true),
        (CHANGE, Arc::new(UInt8Array::from(vec![REPLACE])), false),
    ];
    let moved = RecordBatch::try_from_iter_with_nullable(moved).unwrap();
    let fresh = LargeBinaryArray::from_iter_values([bytes(50)]);
    let fresh = [
        ("k", Arc::new(Int64Array::from(vec![8])) as ArrayRef, true),
        ("b", Arc::new(fresh) as ArrayRef, true),
        ("_rowid", one(None), true),
        ("_rowaddr", one(None), true),
        (CHANGE, Arc::new(UInt8Array::from(vec![INSERT])), false),
    ];
    let fresh = RecordBatch::try_from_iter_with_nullable(fresh).unwrap();
    let data = table.folder.path().join("blobs.lance/data");
    let entries = || std::fs::read_dir(&data).unwrap().count();
    for rows in [fresh, moved] {
        let before = entries();
        let change = table.write_stream(stream_of(vec![Ok(rows.clone())])).await;
        discard_change(&table.dataset, change.unwrap()).await;
        assert_eq!(entries(), before, "files beside the file go too");
        let change = table.write_stream(stream_of(vec![Ok(rows)])).await.unwrap();
        table.dataset = table.commit(&change).await.unwrap();
    }
    let all = read(&table.dataset, &["k", "b"], Blobs::Binary).await;
    let keys = all["k"].as_primitive::<Int64Type>().values();
    assert_eq!(keys, &[2, 8, 7]);
    let blobs = all["b"].as_binary::<i64>();
    for (place, blob) in [2, 50, 2].into_iter().enumerate() {
        assert_eq!(blobs.value(place), bytes(blob));
    }
}
