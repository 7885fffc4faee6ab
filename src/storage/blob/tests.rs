use std::collections::HashMap;

use datafusion::arrow::array::{Int32Array, RecordBatchIterator};
use datafusion::arrow::datatypes::Int32Type;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::collect;
use lance::dataset::WriteParams;
use tempfile::TempDir;

use super::*;
use crate::storage::RowSet;
use crate::storage::scan::{LanceScanExec, RowFilter, ScanDescription};

const SIZES: [Option<usize>; 6] = [Some(3), Some(0), None, Some(70_000), Some(5_000_000), None];

fn bytes(row: usize) -> Option<Vec<u8>> {
    SIZES[row].map(|size| (0..size).map(|i| (i + row) as u8).collect())
}

/// A table whose column `b` has a blob of each of [`SIZES`].
async fn table(folder: &TempDir, field: Field, version: &str) -> Dataset {
    let ids: ArrayRef = Arc::new(Int32Array::from_iter_values(0..SIZES.len() as i32));
    let values: LargeBinaryArray = (0..SIZES.len()).map(bytes).collect();
    let values = written_array(&field, &(Arc::new(values) as ArrayRef)).unwrap();
    let id = Field::new("id", DataType::Int32, false);
    let schema = Arc::new(Schema::new(vec![id, field]));
    let batch = RecordBatch::try_new(schema.clone(), vec![ids, values]).unwrap();
    let params = WriteParams {
        data_storage_version: Some(version.parse().unwrap()),
        max_rows_per_file: 4,
        enable_stable_row_ids: true,
        ..Default::default()
    };
    let uri = format!("{}/t.lance", folder.path().display());
    let reader = RecordBatchIterator::new([Ok(batch)], schema);
    Dataset::write(reader, uri.as_str(), Some(params))
        .await
        .unwrap()
}

fn first_kind() -> Field {
    let mark = HashMap::from([(BLOB_V1.to_string(), "true".to_string())]);
    Field::new("b", DataType::LargeBinary, true).with_metadata(mark)
}

async fn descriptors(dataset: Dataset, columns: &[&str]) -> Vec<RecordBatch> {
    let description = ScanDescription {
        columns: columns.iter().map(ToString::to_string).collect(),
        ..ScanDescription::new(&dataset)
    };
    let scan = LanceScanExec::try_new(Arc::new(dataset), description).unwrap();
    collect(Arc::new(scan), Arc::new(TaskContext::default()))
        .await
        .unwrap()
}

fn reader(dataset: &Dataset) -> BlobReader {
    BlobReader::new(StoreSettings::default(), dataset.session())
}

#[tokio::test]
async fn descriptors_of_both_kinds_lead_to_the_bytes() {
    for (field, version) in [(lance::blob_field("b", true), "2.2"), (first_kind(), "2.1")] {
        let folder = TempDir::new().unwrap();
        let dataset = table(&folder, field, version).await;
        let reader = reader(&dataset);
        let mut row = 0;
        for batch in descriptors(dataset, &["b", "id"]).await {
            let blobs = batch.column(0).as_struct();
            let sizes = reader.sizes(blobs).await.unwrap();
            let whole = vec![Some(Part::default()); blobs.len()];
            let read = reader.read(blobs, &whole).await.unwrap();
            for (index, size) in sizes.iter().enumerate() {
                assert_eq!(*size, SIZES[row].map(|size| size as u64));
                assert_eq!(read.is_null(index), SIZES[row].is_none());
                if let Some(expected) = bytes(row) {
                    assert_eq!(read.value(index), expected);
                }
                row += 1;
            }
        }
        assert_eq!(row, SIZES.len());
    }
}

#[tokio::test]
async fn descriptors_of_some_rows_lead_to_their_bytes() {
    for (field, version) in [(lance::blob_field("b", true), "2.2"), (first_kind(), "2.1")] {
        let folder = TempDir::new().unwrap();
        let dataset = table(&folder, field, version).await;
        let reader = reader(&dataset);
        let rows: RowSet = [0, 2, 3, 4].into_iter().collect();
        let description = ScanDescription {
            columns: vec!["b".to_string(), "id".to_string()],
            rows: RowFilter::Only(Arc::new(rows)),
            ..ScanDescription::new(&dataset)
        };
        let scan = LanceScanExec::try_new(Arc::new(dataset), description).unwrap();
        let batches = collect(Arc::new(scan), Arc::new(TaskContext::default()));
        let mut found = Vec::new();
        for batch in batches.await.unwrap() {
            let blobs = batch.column(0).as_struct();
            let whole = vec![Some(Part::default()); blobs.len()];
            let read = reader.read(blobs, &whole).await.unwrap();
            for (index, id) in batch["id"].as_primitive::<Int32Type>().iter().enumerate() {
                let id = id.unwrap() as usize;
                let value = read.is_valid(index).then(|| read.value(index).to_vec());
                assert_eq!(value, bytes(id));
                found.push(id);
            }
        }
        assert_eq!(found, [0, 2, 3, 4]);
    }
}

#[tokio::test]
async fn a_part_is_cut_at_the_end_of_its_blob() {
    let folder = TempDir::new().unwrap();
    let field = lance::blob_field("b", true);
    let dataset = table(&folder, field, "2.2").await;
    let reader = reader(&dataset);
    let batches = descriptors(dataset, &["b"]).await;
    let blobs = batches[0].column(0).as_struct().slice(0, 1);
    for (offset, length, expected) in [
        (0, Some(2), vec![0, 1]),
        (1, None, vec![1, 2]),
        (2, Some(9), vec![2]),
        (3, Some(1), vec![]),
        (u64::MAX, Some(u64::MAX), vec![]),
    ] {
        let read = reader
            .read(&blobs, &[Some(Part { offset, length })])
            .await
            .unwrap();
        assert_eq!(read.value(0), expected);
    }
    assert!(reader.read(&blobs, &[None]).await.unwrap().is_null(0));
}

#[tokio::test]
async fn batches_are_cut_by_the_blobs_they_describe() {
    let folder = TempDir::new().unwrap();
    let field = lance::blob_field("b", true);
    let dataset = table(&folder, field, "2.2").await;
    let description = ScanDescription {
        columns: vec!["b".to_string()],
        batch_bytes: 1_000_000,
        ..ScanDescription::new(&dataset)
    };
    let scan = LanceScanExec::try_new(Arc::new(dataset), description).unwrap();
    let batches = collect(Arc::new(scan), Arc::new(TaskContext::default()))
        .await
        .unwrap();
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, SIZES.len());
    assert!(
        batches
            .iter()
            .all(|batch| batch.num_rows() == 1 || described_bytes(batch) <= 1_000_000)
    );
}

#[tokio::test]
async fn a_table_that_was_made_anew_is_told_from_the_old_one() {
    let folder = TempDir::new().unwrap();
    let field = lance::blob_field("b", true);
    let dataset = table(&folder, field.clone(), "2.2").await;
    let batches = descriptors(dataset, &["b"]).await;
    std::fs::remove_dir_all(folder.path().join("t.lance")).unwrap();
    let dataset = table(&folder, field, "2.2").await;
    let blobs = batches[0].column(0).as_struct();
    let whole = vec![Some(Part::default()); blobs.len()];
    let error = reader(&dataset).read(blobs, &whole).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("'t'"), "{error}");
}

#[test]
fn a_source_reads_back_from_its_text() {
    let source = Source {
        uri: "s3://bucket/a?version=1&made=2&field=3/t.lance".to_string(),
        version: 7,
        made: u128::MAX,
        field: 4,
    };
    assert_eq!(Source::parse(&source.to_string()), Some(source));
    for text in [
        "",
        "t.lance",
        "t?version=x&made=1&field=2",
        "t?version=1&field=2",
    ] {
        assert_eq!(Source::parse(text), None, "{text}");
    }
}
