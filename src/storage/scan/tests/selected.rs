//! Scans of some rows, by their ids.

use super::*;
use crate::storage::RowSet;

fn set(ids: impl IntoIterator<Item = u64>) -> Arc<RowSet> {
    Arc::new(ids.into_iter().collect())
}

impl Table {
    /// A scan of `id` in as many partitions, as a table makes it.
    async fn select(&self, rows: RowFilter, partitions: usize) -> ScanDescription {
        let found = selected_rows("t", &self.dataset, &rows).await.unwrap();
        let fragments = partition_fragments(&found, partitions);
        let count = |id: &u64| found.iter().find(|f| f.0 == *id).unwrap().1;
        let counts = fragments.iter().map(|group| group.iter().map(count).sum());
        ScanDescription {
            counts: counts.collect(),
            fragments,
            rows,
            ..self.describe(&["id"], partitions)
        }
    }

    async fn compact(&mut self) {
        use lance::dataset::optimize::{CompactionOptions, compact_files};
        let mut dataset = self.dataset.as_ref().clone();
        let options = CompactionOptions {
            target_rows_per_fragment: 250,
            ..Default::default()
        };
        compact_files(&mut dataset, options, None).await.unwrap();
        self.dataset = Arc::new(dataset);
    }

    async fn update(&mut self, predicate: &str) {
        let update = lance::dataset::UpdateBuilder::new(self.dataset.clone());
        let update = update.update_where(predicate).unwrap().set("x", "-1");
        let updated = update.unwrap().build().unwrap().execute().await.unwrap();
        self.dataset = updated.new_dataset;
    }
}

#[tokio::test]
async fn only_fragments_that_hold_the_rows_are_read() {
    let mut table = Table::numbers(1000).await;
    table.delete("id = 205").await;
    // Row ids are as `id` here.
    let rows = RowFilter::Only(set([3, 4, 205, 206, 950, 5000]));
    let description = table.select(rows, 2).await;
    assert_eq!(description.fragments, [vec![0], vec![2, 9]]);
    assert_eq!(description.counts, [2, 2]);
    let scan = table.scan(description);
    let rows_of = |partition| scan.partition_statistics(partition).unwrap().num_rows;
    assert_eq!(rows_of(None), Precision::Exact(4));
    assert_eq!(rows_of(Some(0)), Precision::Exact(2));
    let shown = displayable(scan.as_ref()).one_line().to_string();
    assert!(shown.contains("rows=only 4 of 999"), "{shown}");
    let found = run(scan.clone()).await;
    assert_eq!(sorted::<Int64Type>(&found, "id"), [3, 4, 206, 950]);

    let nothing = table.select(RowFilter::Only(set([205, 7000])), 2).await;
    assert!(nothing.fragments.is_empty());
    assert_eq!(rows_read(&table, nothing).await, 0);
}

#[tokio::test]
async fn the_rows_of_a_set_can_be_left_out() {
    let mut table = Table::numbers(1000).await;
    table.delete("id = 205").await;
    let gone = set((100..200).chain([3, 205, 999, 5000]));
    let description = table.select(RowFilter::Except(gone), 3).await;
    assert!(!description.fragments.concat().contains(&1));
    let scan = table.scan(description);
    let rows_of = scan.partition_statistics(None).unwrap().num_rows;
    assert_eq!(rows_of, Precision::Exact(897));
    let shown = displayable(scan.as_ref()).one_line().to_string();
    assert!(shown.contains("rows=except 102 of 999"), "{shown}");
    let expected: Vec<i64> = (0..999)
        .filter(|id| *id != 3 && *id != 205 && !(100..200).contains(id))
        .collect();
    let found = run(scan).await;
    assert_eq!(sorted::<Int64Type>(&found, "id"), expected);

    let all = table.select(RowFilter::Except(set([])), 3).await;
    let scan = table.scan(all);
    let shown = displayable(scan.as_ref()).one_line().to_string();
    assert!(!shown.contains("rows="), "{shown}");
    assert_eq!(rows(&run(scan).await), 999);
}

#[tokio::test]
async fn selected_rows_go_with_filters_limits_and_an_index() {
    let mut table = Table::numbers(1000).await;
    table.index("x").await;
    let ids = set((0..1000).step_by(3));
    for indexed in [true, false] {
        for (rows, left) in [
            (RowFilter::Only(ids.clone()), 0),
            (RowFilter::Except(ids.clone()), 1),
        ] {
            let kept = |id: &i64| (id % 3 == 0) == (left == 0);
            let description = table.select(rows, 3).await;
            let range = match indexed {
                true => col("x").gt_eq(lit(2500i32)).and(col("x").lt(lit(4000i32))),
                false => col("id").gt_eq(lit(250i64)).and(col("id").lt(lit(400i64))),
            };
            let filtered = ScanDescription {
                filter: Some(range),
                ..description.clone()
            };
            let scan = table.scan(filtered);
            let rows_of = scan.partition_statistics(None).unwrap().num_rows;
            assert!(matches!(rows_of, Precision::Inexact(_)));
            let found = run(scan).await;
            let expected: Vec<i64> = (250..400).filter(kept).collect();
            assert_eq!(sorted::<Int64Type>(&found, "id"), expected);

            let limited = ScanDescription {
                limit: Some(7),
                ..description.clone()
            };
            assert_eq!(rows_read(&table, limited).await, 21);
            let counted = ScanDescription {
                columns: Vec::new(),
                ..description.clone()
            };
            let expected = (0..1000).filter(kept).count();
            assert_eq!(rows_read(&table, counted).await, expected);
            let uncounted = ScanDescription {
                columns: Vec::new(),
                counts: Vec::new(),
                ..description
            };
            let scan = table.scan(uncounted.clone());
            let rows_of = scan.partition_statistics(None).unwrap().num_rows;
            assert_eq!(rows_of, Precision::Absent);
            assert_eq!(rows_read(&table, uncounted).await, expected);
        }
    }
}

async fn rows_read(table: &Table, description: ScanDescription) -> usize {
    rows(&table.read(description).await)
}

#[tokio::test]
async fn ids_name_the_same_rows_wherever_they_move() {
    let mut table = Table::numbers(600).await;
    let old = table.dataset.clone();
    table.update("id % 7 = 0").await;
    table.delete("id % 50 = 1").await;
    table.compact().await;
    table.update("id % 11 = 0").await;
    table.append(numbers(600..650)).await;
    let ids: Vec<u64> = (0..700).filter(|id| id % 5 == 0 || id % 7 == 0).collect();
    let wanted = |id: &i64| ids.contains(&(*id as u64));
    for (only, partitions) in [(true, 1), (true, 4), (false, 1), (false, 4)] {
        let rows = match only {
            true => RowFilter::Only(set(ids.clone())),
            false => RowFilter::Except(set(ids.clone())),
        };
        let description = table.select(rows.clone(), partitions).await;
        let expected: Vec<i64> = (0..650)
            .filter(|id| id % 50 != 1 || *id >= 600)
            .filter(|id| wanted(id) == only)
            .collect();
        let counted: u64 = description.counts.iter().sum();
        assert_eq!(counted, expected.len() as u64);
        let found = table.read(description).await;
        assert_eq!(sorted::<Int64Type>(&found, "id"), expected);

        let before = Table {
            folder: TempDir::new().unwrap(),
            dataset: old.clone(),
        };
        let description = before.select(rows, partitions).await;
        let found = before.read(description).await;
        let expected: Vec<i64> = (0..600).filter(|id| wanted(id) == only).collect();
        assert_eq!(sorted::<Int64Type>(&found, "id"), expected);
    }
}

#[tokio::test]
async fn rows_without_lasting_ids_are_not_selected() {
    let folder = TempDir::new().unwrap();
    let uri = folder.path().join("plain.lance");
    let batch = numbers(0..10);
    let schema = batch.schema();
    let reader = RecordBatchIterator::new([Ok(batch)], schema);
    let dataset = Dataset::write(reader, uri.to_str().unwrap(), None).await;
    let dataset = Arc::new(dataset.unwrap());
    let rows = RowFilter::Only(set([1]));
    let error = selected_rows("plain", &dataset, &rows).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    let description = ScanDescription {
        rows,
        ..ScanDescription::new(&dataset)
    };
    let error = LanceScanExec::try_new(dataset, description).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn rows_that_are_read_between_others_are_dropped() {
    let mut table = Table::numbers(1000).await;
    table.delete("id % 10 = 4").await;
    let wanted = |id: &i64| id % 3 == 0 || (id % 100 == 7) || (400..480).contains(id);
    let ids = set((0..1000).filter(|id| wanted(&(*id as i64))));
    for columns in [
        vec!["id"],
        vec!["_rowaddr", "s", "id"],
        vec!["id", "_rowid"],
    ] {
        for (rows, only) in [
            (RowFilter::Only(ids.clone()), true),
            (RowFilter::Except(ids.clone()), false),
        ] {
            let description = table.select(rows, 2).await;
            let description = ScanDescription {
                columns: columns.iter().map(|c| c.to_string()).collect(),
                ..description
            };
            let expected: Vec<i64> = (0..1000)
                .filter(|id| id % 10 != 4 && wanted(id) == only)
                .collect();
            let found = table.read(description.clone()).await;
            for batch in &found {
                assert_eq!(batch.num_columns(), columns.len());
            }
            assert_eq!(sorted::<Int64Type>(&found, "id"), expected);
            // The order is that of the addresses, and the limit counts what is wanted.
            let first = ScanDescription {
                limit: Some(45),
                fragments: vec![description.fragments.concat()],
                counts: Vec::new(),
                ..description
            };
            let found = table.read(first).await;
            assert_eq!(sorted::<Int64Type>(&found, "id"), expected[..45]);
        }
    }
}
