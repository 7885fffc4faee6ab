//! Scans with a filter, by how many rows it finds.

use super::*;
use crate::storage::RowSet;

/// What a scan of `id` and `s`, in one partition, gives for a filter: the ids as they come.
async fn found(table: &Table, filter: Expr, rows: RowFilter) -> Vec<i64> {
    let description = ScanDescription {
        filter: Some(filter),
        rows,
        ..table.describe(&["s", "id"], 1)
    };
    let batches = table.read(description).await;
    let mut ids = Vec::new();
    for batch in &batches {
        let texts = batch["s"].as_string::<i32>();
        for (id, text) in batch["id"]
            .as_primitive::<Int64Type>()
            .values()
            .iter()
            .zip(texts)
        {
            assert_eq!(text, Some(format!("row {id}").as_str()));
            ids.push(*id);
        }
    }
    ids
}

#[tokio::test]
async fn filters_give_the_same_rows_however_many_they_find() {
    // Two parts that are decided about: of six fragments and of one.
    let mut table = Table::write(vec![numbers(0..1_300_000)], 200_000).await;
    table.delete("id % 1000 = 7").await;
    let live = |id: &i64| id % 1000 != 7;
    let x = || col("x");
    let tens = |id: i64| lit(id as i32 * 10);
    for (filter, expected) in [
        (x().lt(tens(0)), 0..0),
        (x().eq(tens(250_000)), 250_000..250_001),
        (x().lt(tens(100)), 0..100),
        // In both parts: few of the one, most of the other.
        (x().gt_eq(tens(1_190_000)), 1_190_000..1_300_000),
        (x().gt_eq(tens(0)), 0..1_300_000),
    ] {
        let expected: Vec<i64> = expected.filter(live).collect();
        assert!(
            found(&table, filter.clone(), RowFilter::All).await == expected,
            "{filter}"
        );
        let except: RowSet = (0..1_300_000).step_by(3).collect();
        let expected: Vec<i64> = expected.into_iter().filter(|id| id % 3 != 0).collect();
        let rows = RowFilter::Except(Arc::new(except));
        assert!(
            found(&table, filter.clone(), rows).await == expected,
            "{filter}"
        );
    }
    // Scattered: those between are read too, and dropped.
    let scattered = (x() % lit(70i32)).eq(lit(0i32));
    let expected: Vec<i64> = (0..1_300_000).step_by(7).filter(live).collect();
    assert!(found(&table, scattered, RowFilter::All).await == expected);
}

#[tokio::test]
async fn of_wide_rows_only_those_are_read_that_are_found() {
    let ids = Int64Array::from_iter_values(0..4000);
    // Texts that don't compress to nothing.
    let letter =
        |number: u64| b'a' + ((number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % 26) as u8;
    let text = |id: u64| (0..2000).map(move |place| char::from(letter(id * 2000 + place)));
    let wide = StringArray::from_iter_values((0..4000).map(|id| text(id).collect::<String>()));
    let columns = [("id", Arc::new(ids) as ArrayRef), ("s", Arc::new(wide))];
    let table = Table::write(vec![RecordBatch::try_from_iter(columns).unwrap()], 1000).await;
    let bytes_of = async |filter: Option<Expr>| {
        let plan = table.scan(ScanDescription {
            filter,
            ..table.describe(&["s"], 1)
        });
        let rows = rows(&run(plan.clone()).await);
        let metrics = plan.metrics().unwrap();
        let bytes = metrics.sum_by_name("bytes_scanned").unwrap().as_usize();
        (rows, bytes)
    };
    let (all, everything) = bytes_of(None).await;
    let (half, read) = bytes_of(Some(col("id").gt_eq(lit(2500i64)))).await;
    assert_eq!((all, half), (4000, 1500));
    assert!(read < everything / 2, "{read} of {everything} bytes");
}
