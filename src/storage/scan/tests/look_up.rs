//! Scans that look rows up by keys, with an index and without one.

use arrow::array::ArrayRef;
use lance::dataset::UpdateBuilder;

use super::*;
use crate::storage::RowSet;
use crate::storage::index::{Kept, btree_columns, keep_btree};
use crate::storage::key_set::KeySet;
use crate::storage::keys::in_keys;

/// Rows of the table: enough that a few keys are looked up.
const ROWS: i64 = 60_000;

fn keys(values: &[Option<i32>]) -> Arc<KeySet> {
    let mut set = KeySet::new([&DataType::Int32]).unwrap().unwrap();
    let values: ArrayRef = Arc::new(Int32Array::from(values.to_vec()));
    set.insert(&[values]).unwrap();
    Arc::new(set)
}

/// `id` and `x`, which is `id / 4`, or NULL for every thousandth.
fn batch(ids: std::ops::Range<i64>) -> RecordBatch {
    let x: Int32Array = ids
        .clone()
        .map(|id| (id % 1000 != 999).then_some(id as i32 / 4))
        .collect();
    let id = Int64Array::from_iter_values(ids);
    RecordBatch::try_from_iter([("id", Arc::new(id) as ArrayRef), ("x", Arc::new(x))]).unwrap()
}

impl Table {
    /// At its newest version.
    async fn reopen(&mut self) {
        let mut dataset = self.dataset.as_ref().clone();
        dataset.checkout_latest().await.unwrap();
        self.dataset = Arc::new(dataset);
    }
}

async fn found(table: &Table, filter: &Expr, rows: &RowFilter) -> (Vec<i64>, usize) {
    let plan = table.scan(ScanDescription {
        filter: Some(filter.clone()),
        rows: rows.clone(),
        ..table.describe(&["id"], 2)
    });
    let ids = sorted::<Int64Type>(&run(plan.clone()).await, "id");
    let metrics = plan.metrics().unwrap();
    let bytes = metrics.sum_by_name("bytes_scanned").unwrap().as_usize();
    (ids, bytes)
}

fn filters() -> Vec<Expr> {
    let x = |values: &[Option<i32>]| in_keys(&keys(values), vec![col("x")]);
    let id = |values: &[u64]| {
        let rows: RowSet = values.iter().copied().collect();
        crate::storage::keys::in_rows(&rows, col("_rowid"))
    };
    vec![
        x(&[Some(5)]),
        x(&[Some(5), Some(14_000), Some(-7), Some(1_000_000)]),
        x(&[None, Some(300)]),
        x(&[Some(5), Some(6)]).and(col("id").gt(lit(21i64))),
        x(&[Some(5)]).or(x(&[Some(77), Some(15_100)])),
        // What no index answers.
        x(&[Some(5)]).or(col("id").eq(lit(9i64))),
        x(&[Some(5)]).or(id(&[17, 50_000])),
        // More than are looked up.
        x(&(0..200).map(|key| Some(key * 50)).collect::<Vec<_>>()),
        x(&[]),
    ]
}

#[tokio::test]
async fn keys_are_found_through_an_index_as_without_one() {
    let mut plain = Table::write(vec![batch(0..ROWS)], 20_000).await;
    let mut indexed = Table::write(vec![batch(0..ROWS)], 20_000).await;
    let made = keep_btree("t", &indexed.dataset, "x").await.unwrap();
    assert_eq!(made, Kept::Made);
    indexed.reopen().await;
    let names = btree_columns("t", &indexed.dataset).await.unwrap();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["x"]);
    let excepted: RowSet = (0..ROWS as u64).step_by(5).collect();
    let excepted = RowFilter::Except(Arc::new(excepted));
    for step in 0..4 {
        for filter in &filters() {
            for rows in [&RowFilter::All, &excepted] {
                let (expected, all) = found(&plain, filter, rows).await;
                let (ids, read) = found(&indexed, filter, rows).await;
                assert_eq!(ids, expected, "step {step}: {filter}");
                if step == 0 && filter == &filters()[1] && rows.is_all() {
                    assert!(read * 2 < all, "{read} of {all} bytes");
                }
            }
        }
        for table in [&mut plain, &mut indexed] {
            match step {
                // Rows get other keys, and lie where the index does not know them.
                0 => {
                    let update = UpdateBuilder::new(Arc::clone(&table.dataset))
                        .update_where("x IN (5, 77, 300) OR id % 977 = 3")
                        .unwrap()
                        .set("x", "x + 1")
                        .unwrap()
                        .build()
                        .unwrap();
                    table.dataset = update.execute().await.unwrap().new_dataset;
                }
                1 => {
                    table.delete("id % 3 = 1").await;
                    table.append(batch(ROWS..ROWS + 20_000)).await;
                }
                _ => {}
            }
        }
        if step == 1 {
            // Now the index knows both places of what was moved.
            for expected in [Kept::Extended, Kept::AsItWas] {
                let kept = keep_btree("t", &indexed.dataset, "x").await.unwrap();
                assert_eq!(kept, expected);
                indexed.reopen().await;
            }
        }
    }
}
