use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use arrow::record_batch::RecordBatchIterator;
use datafusion::common::stats::Precision;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::*;
use lance::Dataset;
use lance::dataset::WriteParams;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;
use tempfile::TempDir;

mod late;
mod look_up;
mod selected;
use super::*;

/// A table of its own folder, gone with the value.
struct Table {
    folder: TempDir,
    dataset: Arc<Dataset>,
}

impl Table {
    async fn write(batches: Vec<RecordBatch>, rows_per_fragment: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let uri = folder.path().join("t.lance");
        let schema = batches[0].schema();
        let params = WriteParams {
            max_rows_per_file: rows_per_fragment,
            enable_stable_row_ids: true,
            ..Default::default()
        };
        let reader = RecordBatchIterator::new(batches.into_iter().map(Ok), schema);
        let dataset = Dataset::write(reader, uri.to_str().unwrap(), Some(params))
            .await
            .unwrap();
        Self {
            folder,
            dataset: Arc::new(dataset),
        }
    }

    /// `id` from 0, `x` = id * 10, `s` = "row <id>", in fragments of 100 rows.
    async fn numbers(rows: i64) -> Self {
        Self::write(vec![numbers(0..rows)], 100).await
    }

    async fn append(&mut self, batch: RecordBatch) {
        let schema = batch.schema();
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        let mut dataset = self.dataset.as_ref().clone();
        dataset.append(reader, None).await.unwrap();
        self.dataset = Arc::new(dataset);
    }

    async fn delete(&mut self, predicate: &str) {
        let mut dataset = self.dataset.as_ref().clone();
        dataset.delete(predicate).await.unwrap();
        self.dataset = Arc::new(dataset);
    }

    async fn index(&mut self, column: &str) {
        let mut dataset = self.dataset.as_ref().clone();
        dataset
            .create_index(
                &[column],
                IndexType::BTree,
                None,
                &ScalarIndexParams::default(),
                true,
            )
            .await
            .unwrap();
        self.dataset = Arc::new(dataset);
    }

    fn describe(&self, columns: &[&str], partitions: usize) -> ScanDescription {
        ScanDescription {
            columns: columns.iter().map(|c| c.to_string()).collect(),
            fragments: partition_fragments(&fragment_rows(&self.dataset), partitions),
            ..ScanDescription::new(&self.dataset)
        }
    }

    fn scan(&self, description: ScanDescription) -> Arc<LanceScanExec> {
        Arc::new(LanceScanExec::try_new(self.dataset.clone(), description).unwrap())
    }

    async fn read(&self, description: ScanDescription) -> Vec<RecordBatch> {
        run(self.scan(description)).await
    }
}

fn numbers(ids: std::ops::Range<i64>) -> RecordBatch {
    let id = Int64Array::from_iter_values(ids.clone());
    let x = Int32Array::from_iter_values(ids.clone().map(|i| i as i32 * 10));
    let s = StringArray::from_iter_values(ids.map(|i| format!("row {i}")));
    RecordBatch::try_from_iter([
        ("id", Arc::new(id) as ArrayRef),
        ("x", Arc::new(x)),
        ("s", Arc::new(s)),
    ])
    .unwrap()
}

async fn run(plan: Arc<dyn ExecutionPlan>) -> Vec<RecordBatch> {
    collect(plan, Arc::new(TaskContext::default()))
        .await
        .unwrap()
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// All values of an integer column, sorted.
fn sorted<T: ArrowPrimitiveType>(batches: &[RecordBatch], column: &str) -> Vec<T::Native>
where
    T::Native: Ord,
{
    let mut values: Vec<T::Native> = batches
        .iter()
        .flat_map(|b| {
            let array = b.column_by_name(column).unwrap();
            array.as_primitive::<T>().values().to_vec()
        })
        .collect();
    values.sort();
    values
}

#[tokio::test]
async fn columns_come_in_the_order_asked_for() {
    let table = Table::numbers(250).await;
    for columns in [
        vec!["id", "x", "s"],
        vec!["s", "id"],
        vec!["_rowid", "s"],
        vec!["s", "_rowaddr", "x", "_rowid", "id"],
        vec!["_rowaddr"],
    ] {
        let scan = table.scan(table.describe(&columns, 2));
        let names: Vec<_> = scan
            .schema()
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .collect();
        assert_eq!(names, columns);
        let batches = run(scan.clone()).await;
        assert_eq!(rows(&batches), 250);
        for batch in &batches {
            assert_eq!(batch.schema(), scan.schema());
        }
    }
}

#[tokio::test]
async fn a_scan_of_no_column_yields_the_number_of_rows() {
    let mut table = Table::numbers(250).await;
    table.delete("id % 2 = 0").await;
    let scan = table.scan(table.describe(&[], 3));
    assert_eq!(rows(&run(scan.clone()).await), 125);
    let read = scan
        .metrics()
        .unwrap()
        .sum_by_name("bytes_scanned")
        .unwrap();
    assert_eq!(read.as_usize(), 0, "the manifest knows");

    let filtered = ScanDescription {
        filter: Some(col("x").lt(lit(100i32))),
        ..table.describe(&[], 3)
    };
    assert_eq!(rows(&table.read(filtered).await), 5);

    let limited = ScanDescription {
        limit: Some(7),
        batch_rows: 5,
        ..table.describe(&[], 1)
    };
    let sizes: Vec<_> = table
        .read(limited)
        .await
        .iter()
        .map(|b| b.num_rows())
        .collect();
    assert_eq!(sizes, vec![5, 2]);
}

#[tokio::test]
async fn deleted_rows_do_not_show() {
    let mut table = Table::numbers(300).await;
    table.delete("id >= 50 AND id < 250").await;
    let batches = table.read(table.describe(&["id"], 2)).await;
    let expected: Vec<i64> = (0..50).chain(250..300).collect();
    assert_eq!(sorted::<Int64Type>(&batches, "id"), expected);
}

#[tokio::test]
async fn statistics_are_exact_without_a_filter() {
    let mut table = Table::numbers(300).await;
    table.delete("id < 30").await;
    let rows =
        |scan: &LanceScanExec, partition| scan.partition_statistics(partition).unwrap().num_rows;

    let scan = table.scan(table.describe(&["id"], 3));
    assert_eq!(rows(&scan, None), Precision::Exact(270));
    assert_eq!(rows(&scan, Some(0)), Precision::Exact(70));
    assert_eq!(rows(&scan, Some(2)), Precision::Exact(100));
    assert!(scan.partition_statistics(Some(3)).is_err());
    let size = scan.partition_statistics(None).unwrap().total_byte_size;
    assert_eq!(size, Precision::Exact(270 * 8));

    let limited = scan.with_fetch(Some(80)).unwrap();
    let statistics = limited.partition_statistics(None).unwrap();
    assert_eq!(statistics.num_rows, Precision::Exact(70 + 80 + 80));

    let filtered = table.scan(ScanDescription {
        filter: Some(col("id").gt(lit(100i64))),
        ..table.describe(&["id"], 3)
    });
    assert_eq!(rows(&filtered, None), Precision::Inexact(270));
}

#[tokio::test]
async fn a_limit_holds_for_each_partition() {
    let table = Table::numbers(300).await;
    let limited = |limit, filter| ScanDescription {
        limit: Some(limit),
        filter,
        ..table.describe(&["id"], 3)
    };
    assert_eq!(rows(&table.read(limited(20, None)).await), 60);
    assert_eq!(rows(&table.read(limited(0, None)).await), 0);
    assert_eq!(rows(&table.read(limited(1000, None)).await), 300);
    let filter = Some(col("id").gt_eq(lit(95i64)));
    assert_eq!(rows(&table.read(limited(20, filter)).await), 5 + 20 + 20);

    let scan = table.scan(table.describe(&["id"], 1));
    let fetched = scan.with_fetch(Some(3)).unwrap();
    assert_eq!(fetched.fetch(), Some(3));
    assert_eq!(rows(&run(fetched).await), 3);
}

#[tokio::test]
async fn an_empty_table_has_one_empty_partition() {
    let schema = numbers(0..0).schema();
    let table = Table::write(vec![RecordBatch::new_empty(schema)], 100).await;
    let scan = table.scan(table.describe(&["s", "_rowid"], 4));
    assert_eq!(scan.properties().partitioning.partition_count(), 1);
    let statistics = scan.partition_statistics(None).unwrap();
    assert_eq!(statistics.num_rows, Precision::Exact(0));
    assert!(run(scan).await.is_empty());
}

#[tokio::test]
async fn a_scan_stays_at_its_version() {
    let mut table = Table::numbers(100).await;
    let before = table.scan(table.describe(&["id"], 2));
    table.append(numbers(100..150)).await;
    table.delete("id = 3").await;
    assert_eq!(rows(&run(before).await), 100);
    assert_eq!(rows(&table.read(table.describe(&["id"], 2)).await), 149);
}

#[tokio::test]
async fn in_order_each_partition_follows_its_fragments() {
    let table = Table::numbers(1000).await;
    let mut description = table.describe(&["id"], 1);
    description.fragments = vec![vec![7, 2, 4]];
    description.batch_rows = 30;
    let ids: Vec<i64> = table
        .read(description)
        .await
        .iter()
        .flat_map(|b| b["id"].as_primitive::<Int64Type>().values().to_vec())
        .collect();
    let expected: Vec<i64> = (700..800).chain(200..300).chain(400..500).collect();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn batches_are_bounded_in_rows_and_bytes() {
    let wide = StringArray::from_iter_values((0..500).map(|i| "y".repeat(10 + (i % 7) * 1000)));
    let batch = RecordBatch::try_from_iter([("s", Arc::new(wide) as ArrayRef)]).unwrap();
    let table = Table::write(vec![batch], 200).await;
    let description = |filter| ScanDescription {
        batch_rows: 64,
        batch_bytes: 100_000,
        filter,
        ..table.describe(&["s"], 2)
    };
    let filter = Some(col("s").not_eq(lit("y")));
    for description in [description(None), description(filter)] {
        let batches = table.read(description).await;
        assert_eq!(rows(&batches), 500);
        for batch in &batches {
            let bytes = batch.column(0).to_data().get_slice_memory_size().unwrap();
            assert!(batch.num_rows() <= 64, "{} rows", batch.num_rows());
            assert!(bytes <= 100_000, "{bytes} bytes");
        }
    }
}

#[tokio::test]
async fn a_row_larger_than_a_batch_still_comes() {
    let huge = StringArray::from_iter_values((0..4).map(|_| "z".repeat(50_000)));
    let batch = RecordBatch::try_from_iter([("s", Arc::new(huge) as ArrayRef)]).unwrap();
    let table = Table::write(vec![batch], 200).await;
    let description = ScanDescription {
        batch_bytes: 1000,
        ..table.describe(&["s"], 1)
    };
    assert_eq!(rows(&table.read(description).await), 4);
}

#[tokio::test]
async fn small_batches_that_a_filter_leaves_are_gathered() {
    let table = Table::numbers(2000).await;
    let description = ScanDescription {
        filter: Some(col("id").lt(lit(1000i64))),
        batch_rows: 500,
        ..table.describe(&["id"], 1)
    };
    let sizes: Vec<_> = table
        .read(description)
        .await
        .iter()
        .map(|b| b.num_rows())
        .collect();
    assert_eq!(sizes, vec![500, 500]);
}

#[tokio::test]
async fn an_index_serves_a_filter_though_some_fragments_are_not_indexed() {
    let mut table = Table::numbers(500).await;
    table.index("x").await;
    table.delete("id = 42").await;
    table.append(numbers(490..700)).await;
    let find = |value: i32, partitions| ScanDescription {
        filter: Some(col("x").eq(lit(value))),
        ..table.describe(&["_rowid", "id"], partitions)
    };
    for partitions in [1, 4] {
        // Indexed, deleted, only in the new fragments, in both.
        for (value, expected) in [
            (1230, vec![123]),
            (420, vec![]),
            (6000, vec![600]),
            (4950, vec![495, 495]),
        ] {
            let found = table.read(find(value, partitions)).await;
            assert_eq!(sorted::<Int64Type>(&found, "id"), expected, "x = {value}");
        }
        let range = ScanDescription {
            filter: Some(
                col("x")
                    .gt_eq(lit(4800i32))
                    .and(col("id").not_eq(lit(481i64))),
            ),
            ..table.describe(&["id"], partitions)
        };
        let expected: Vec<i64> = {
            let mut ids: Vec<i64> = (480..500).chain(490..700).filter(|i| *i != 481).collect();
            ids.sort();
            ids
        };
        let found = table.read(range).await;
        assert_eq!(sorted::<Int64Type>(&found, "id"), expected);
    }
}

#[tokio::test]
async fn rows_are_found_by_id_and_by_address() {
    let mut table = Table::numbers(400).await;
    table.delete("id = 5 OR id = 205").await;
    let all = table
        .read(table.describe(&["_rowid", "_rowaddr", "id"], 1))
        .await;
    let by_id: HashMap<i64, (u64, u64)> = all
        .iter()
        .flat_map(|b| {
            let ids = b["id"].as_primitive::<Int64Type>().values().to_vec();
            let rowids = b["_rowid"].as_primitive::<UInt64Type>().values().to_vec();
            let addrs = b["_rowaddr"].as_primitive::<UInt64Type>().values().to_vec();
            ids.into_iter()
                .zip(rowids.into_iter().zip(addrs))
                .collect::<Vec<_>>()
        })
        .collect();
    let (rowid, addr) = by_id[&333];
    let (other, _) = by_id[&17];
    let gone = 5u64;
    for (filter, expected) in [
        (col("_rowid").eq(lit(rowid)), vec![333]),
        (col("_rowaddr").eq(lit(addr)), vec![333]),
        (col("_rowid").eq(lit(gone)), vec![]),
        (
            col("_rowid").in_list(vec![lit(rowid), lit(other), lit(gone)], false),
            vec![17, 333],
        ),
        (
            col("_rowid")
                .eq(lit(rowid))
                .or(col("_rowid").eq(lit(other))),
            vec![17, 333],
        ),
        (
            col("_rowid").eq(lit(rowid)).and(col("x").gt(lit(5000i32))),
            vec![],
        ),
        (col("_rowid").lt(lit(3u64)), vec![0, 1, 2]),
        (
            col("_rowaddr")
                .gt_eq(lit(3u64 << 32))
                .and(col("id").lt(lit(302i64))),
            vec![300, 301],
        ),
        (
            col("_rowid").in_list((1..400u64).map(lit).collect(), true),
            vec![0],
        ),
    ] {
        for columns in [vec!["id"], vec!["s", "id", "_rowaddr"]] {
            let description = ScanDescription {
                filter: Some(filter.clone()),
                ..table.describe(&columns, 3)
            };
            let found = table.read(description).await;
            assert_eq!(sorted::<Int64Type>(&found, "id"), expected, "{filter}");
        }
        let count = ScanDescription {
            filter: Some(filter.clone()),
            ..table.describe(&[], 3)
        };
        assert_eq!(rows(&table.read(count).await), expected.len(), "{filter}");
    }
}

#[tokio::test]
async fn a_copy_of_the_node_counts_for_itself() {
    let table = Table::numbers(250).await;
    let scan: Arc<dyn ExecutionPlan> = table.scan(table.describe(&["id"], 2));
    let copy = scan.clone().with_new_children(vec![]).unwrap();
    run(scan.clone()).await;
    assert_eq!(scan.metrics().unwrap().output_rows(), Some(250));
    assert_eq!(
        copy.metrics().unwrap().output_rows(),
        Some(0).filter(|_| false)
    );
    run(copy.clone()).await;
    assert_eq!(copy.metrics().unwrap().output_rows(), Some(250));
    let read = copy
        .metrics()
        .unwrap()
        .sum_by_name("bytes_scanned")
        .unwrap();
    assert!(read.as_usize() > 0);
}

#[tokio::test]
async fn the_node_says_what_it_reads() {
    let table = Table::numbers(250).await;
    let scan = table.scan(ScanDescription {
        filter: Some(col("x").gt(lit(5i32))),
        limit: Some(9),
        ..table.describe(&["s", "_rowid"], 2)
    });
    let line = displayable(scan.as_ref()).one_line().to_string();
    assert_eq!(
        line.trim(),
        "LanceScanExec: table=t, version=1, partitions=2, fragments=3, columns=[s, _rowid], \
         filter=x > Int32(5), limit=9"
    );
}

#[tokio::test]
async fn what_is_not_in_the_version_is_refused() {
    let table = Table::numbers(250).await;
    let try_new = |description| LanceScanExec::try_new(table.dataset.clone(), description);

    let error = try_new(table.describe(&["id", "xs"], 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.message().contains("'t'") && error.message().contains("'xs'"),
        "{error}"
    );
    assert_eq!(error.hint(), Some("did you mean 'x'?"));

    let error = try_new(ScanDescription {
        fragments: vec![vec![0, 12]],
        ..table.describe(&["id"], 1)
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("no fragment 12"), "{error}");

    let error = try_new(ScanDescription {
        version: 9,
        ..table.describe(&["id"], 1)
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

/// The data files of a table, largest first.
fn data_files(table: &Table) -> Vec<std::path::PathBuf> {
    let data = table.folder.path().join("t.lance/data");
    let mut files: Vec<_> = std::fs::read_dir(data)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    files
}

async fn failure(table: &Table) -> Error {
    let scan = table.scan(table.describe(&["id", "s"], 2));
    let result = collect(scan, Arc::new(TaskContext::default())).await;
    Error::from(result.unwrap_err())
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let table = Table::numbers(250).await;
    let file = data_files(&table).remove(1);
    std::fs::remove_file(&file).unwrap();
    let error = failure(&table).await;
    let name = file.file_name().unwrap().to_str().unwrap();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.message().contains("table 't'"), "{error}");
    assert!(error.message().contains(name), "{error}");
    assert!(error.message().contains("missing"), "{error}");
    assert!(!error.message().contains(".rs:"), "{error}");
}

#[tokio::test]
async fn a_corrupt_file_is_named() {
    for damage in [
        |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2),
        |bytes: &mut Vec<u8>| bytes.clear(),
        |bytes: &mut Vec<u8>| {
            let middle = bytes.len() / 2;
            bytes[middle..].fill(0xa5)
        },
        |bytes: &mut Vec<u8>| {
            let end = bytes.len() - 16;
            bytes[..end].fill(0xff)
        },
    ] {
        let table = Table::numbers(250).await;
        let file = data_files(&table).remove(1);
        let mut bytes = std::fs::read(&file).unwrap();
        damage(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
        let error = failure(&table).await;
        let name = file.file_name().unwrap().to_str().unwrap();
        assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
        assert!(error.message().contains("table 't'"), "{error}");
        assert!(error.message().contains(name), "{error}");
    }
}

#[tokio::test]
async fn a_column_that_was_added_without_data_is_null() {
    let mut table = Table::numbers(250).await;
    let mut dataset = table.dataset.as_ref().clone();
    let added = Arc::new(Schema::new(vec![Field::new("y", DataType::Int32, true)]));
    let nulls = lance::dataset::NewColumnTransform::AllNulls(added);
    dataset.add_columns(nulls, None, None).await.unwrap();
    table.dataset = Arc::new(dataset);
    table
        .append(
            RecordBatch::try_from_iter([
                ("id", Arc::new(Int64Array::from(vec![900, 901])) as ArrayRef),
                ("x", Arc::new(Int32Array::from(vec![0, 0]))),
                ("s", Arc::new(StringArray::from(vec!["new", "new"]))),
                ("y", Arc::new(Int32Array::from(vec![1, 2]))),
            ])
            .unwrap(),
        )
        .await;
    for (filter, expected) in [
        (None, 252),
        (Some(col("y").is_null()), 250),
        (Some(col("y").gt(lit(1i32))), 1),
        (Some(col("y").is_not_null().and(col("s").eq(lit("new")))), 2),
    ] {
        let description = ScanDescription {
            filter,
            ..table.describe(&["y", "s"], 2)
        };
        assert_eq!(rows(&table.read(description).await), expected);
    }
}
