use std::collections::HashMap;

use arrow::array::*;
use arrow::buffer::NullBuffer;
use arrow::datatypes::*;
use arrow::record_batch::RecordBatchIterator;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::physical_plan::{collect, displayable};
use datafusion::prelude::*;
use lance::dataset::WriteParams;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::{BuiltinIndexType, ScalarIndexParams};
use tempfile::TempDir;

use super::*;

/// Gives out numbers that look random, the same ones each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }

    /// One of `values`, or NULL one time in six.
    fn pick<T: Clone>(&mut self, values: &[T]) -> Option<T> {
        match self.roll(6) {
            0 => None,
            _ => Some(values[self.roll(values.len() as u64) as usize].clone()),
        }
    }

    fn array<T: Clone, A: FromIterator<Option<T>>>(&mut self, rows: usize, values: &[T]) -> A {
        (0..rows).map(|_| self.pick(values)).collect()
    }
}

/// Rows of every type that a filter may compare, full of NULLs and special values.
fn varied(ids: std::ops::Range<i64>) -> RecordBatch {
    let n = (ids.end - ids.start) as usize;
    let mut dice = Dice(ids.start as u64 + 7);
    let texts = [
        "", "a", "abc", "ab_c", "ab%c", "ABC", "zebra", "übung", "a\\b", "日本",
    ];
    let floats = [
        0.0,
        -0.0,
        1.5,
        -2.25,
        7.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e300,
        5e-324,
    ];
    let floats32: Vec<f32> = floats.iter().map(|f| *f as f32).collect();
    let days: Vec<i32> = vec![-400, 0, 1, 19000, 19723];
    let micros: Vec<i64> = vec![
        -1,
        0,
        1_700_000_000_000_000,
        1_700_000_000_000_001,
        86_400_000_000,
    ];
    let bytes: Vec<&[u8]> = vec![b"", b"a", b"ab", &[0xff, 0]];
    let inner = StructArray::from(vec![(
        Arc::new(Field::new("c", DataType::Int32, true)),
        Arc::new(dice.array::<_, Int32Array>(n, &[1, 2, 3])) as ArrayRef,
    )]);
    let valid: Vec<bool> = (0..n).map(|_| dice.roll(5) > 0).collect();
    let nested = StructArray::new(
        vec![
            Field::new("a", DataType::Int64, true),
            Field::new("t", DataType::Utf8, true),
            Field::new("n", inner.data_type().clone(), true),
        ]
        .into(),
        vec![
            Arc::new(dice.array::<_, Int64Array>(n, &[-5, 0, 5, 50])),
            Arc::new(dice.array::<_, StringArray>(n, &texts)),
            Arc::new(inner),
        ],
        Some(NullBuffer::from(valid)),
    );
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..n).map(|_| dice.pick(&[vec![Some(1), Some(2)], vec![], vec![None, Some(3)]])),
    );
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(ids))),
        (
            "flag",
            Arc::new(dice.array::<_, BooleanArray>(n, &[true, false])),
        ),
        (
            "i8",
            Arc::new(dice.array::<_, Int8Array>(n, &[-128, -1, 0, 1, 127])),
        ),
        (
            "i16",
            Arc::new(dice.array::<_, Int16Array>(n, &[-300, 0, 5, 300])),
        ),
        (
            "i32",
            Arc::new(dice.array::<_, Int32Array>(n, &[i32::MIN, -7, 0, 7, 70, i32::MAX])),
        ),
        (
            "i64",
            Arc::new(dice.array::<_, Int64Array>(n, &[i64::MIN, -9, 0, 9, 90, i64::MAX])),
        ),
        (
            "u8",
            Arc::new(dice.array::<_, UInt8Array>(n, &[0, 1, 200, 255])),
        ),
        (
            "u32",
            Arc::new(dice.array::<_, UInt32Array>(n, &[0, 1, 4_000_000_000])),
        ),
        (
            "u64",
            Arc::new(dice.array::<_, UInt64Array>(n, &[0, 1, u64::MAX])),
        ),
        ("f32", Arc::new(dice.array::<_, Float32Array>(n, &floats32))),
        ("f64", Arc::new(dice.array::<_, Float64Array>(n, &floats))),
        (
            "dec",
            Arc::new(
                dice.array::<_, Decimal128Array>(n, &[-12345, 0, 1, 1500, 99_999])
                    .with_precision_and_scale(12, 3)
                    .unwrap(),
            ),
        ),
        ("s", Arc::new(dice.array::<_, StringArray>(n, &texts))),
        ("ls", Arc::new(dice.array::<_, LargeStringArray>(n, &texts))),
        ("bin", Arc::new(dice.array::<_, BinaryArray>(n, &bytes))),
        ("d32", Arc::new(dice.array::<_, Date32Array>(n, &days))),
        (
            "ts",
            Arc::new(dice.array::<_, TimestampMicrosecondArray>(n, &micros)),
        ),
        (
            "tz",
            Arc::new(
                dice.array::<_, TimestampMicrosecondArray>(n, &micros)
                    .with_timezone("+02:00"),
            ),
        ),
        (
            "utc",
            Arc::new(
                dice.array::<_, TimestampNanosecondArray>(n, &[0, 1_700_000_000_000_000_001])
                    .with_timezone("UTC"),
            ),
        ),
        (
            "tm",
            Arc::new(dice.array::<_, Time64MicrosecondArray>(n, &[0, 3_600_000_000])),
        ),
        ("st", Arc::new(nested)),
        ("list", Arc::new(list)),
        (
            "dict",
            Arc::new(
                (0..n)
                    .map(|_| dice.pick(&["red", "green", "blue"]))
                    .collect::<DictionaryArray<Int32Type>>(),
            ),
        ),
    ];
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), *name != "id"))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

/// Filters over [`varied`]: what they are, and whether the scan must take them.
const PUSHED: &[&str] = &[
    "i32 % 7 = 0",
    "i64 / 3 > 50",
    "i8 % 5 = 1",
    "flag",
    "NOT flag",
    "flag IS NOT TRUE",
    "flag IS UNKNOWN",
    "flag = false",
    "i8 = -128",
    "i8 > 0",
    "i16 + 1 = 6",
    "i32 <> 7",
    "i32 <= 7 AND i32 >= -7",
    "i32 BETWEEN -7 AND 70",
    "i32 NOT BETWEEN -7 AND 70",
    "i32 = 2147483647 OR i64 = 9",
    "i32 + 1 < 0",
    "i32 * 2 > 100",
    "i64 = 9223372036854775807",
    "i64 > i32",
    "i64 IN (9, 90, 1000)",
    "i64 NOT IN (9, 90, 1000)",
    "i64 IN (1,2,3,4,5,6,7,8,9,10,11,12,13)",
    "i64 NOT IN (1,2,3,4,5,6,7,8,9,10,11,12,13)",
    "NOT (i64 = 9)",
    "NOT (i64 > 9 AND i32 > 7)",
    "NOT (i64 > 9 OR i32 IS NULL)",
    "i64 IS NULL",
    "i64 IS NOT NULL",
    "i64 IS DISTINCT FROM 9",
    "i64 IS NOT DISTINCT FROM i32",
    "u8 >= 200",
    "u32 = 4000000000",
    "u64 > 1",
    "u64 = 18446744073709551615",
    "f64 > 1.0",
    "f64 < 1.0",
    "f64 >= 7",
    "f64 = 1.5",
    "f64 <> 1.5",
    "f64 IN (1.5, 7.0)",
    "f64 NOT IN (1.5, 7.0)",
    "f64 BETWEEN -3 AND 8",
    "f64 NOT BETWEEN -3 AND 8",
    "NOT (f64 > 1.0)",
    "f64 = f32",
    "f64 IS NULL",
    "f32 > 1.5",
    "dec = 1.5",
    "dec > 0.001",
    "dec IN (1.5, 99.999)",
    "dec < -12.3",
    "s = 'abc'",
    "s <> 'abc'",
    "s > 'ab'",
    "s >= 'abc' AND s < 'abd'",
    "s IN ('abc', 'zebra', 'nothing')",
    "s LIKE 'ab%'",
    "s LIKE 'ab\\_c'",
    "s LIKE 'ab\\%%'",
    "s LIKE '%b%'",
    "s LIKE 'a_c'",
    "s LIKE 'übu%'",
    "s LIKE ''",
    "s LIKE '%'",
    "s NOT LIKE 'ab%'",
    "s ILIKE 'aBc%'",
    "s = '日本'",
    "ls = 'abc'",
    "ls LIKE 'ab%'",
    "ls IN ('abc', 'ABC')",
    "ls = s",
    "starts_with(s, 'ab')",
    "starts_with(s, 'ab_')",
    "ends_with(s, 'c')",
    "contains(s, 'b')",
    "contains(s, 'ebr')",
    "lower(s) = 'abc'",
    "upper(s) = 'ABC'",
    "length(s) > 3",
    "s = arrow_cast('abc', 'Utf8View')",
    "s LIKE arrow_cast('ab%', 'Utf8View')",
    "bin = X'6162'",
    "bin > X'61'",
    "d32 = DATE '2024-01-01'",
    "d32 < DATE '1970-01-02'",
    "d32 BETWEEN DATE '1960-01-01' AND DATE '2022-01-08'",
    "ts = TIMESTAMP '2023-11-14 22:13:20'",
    "ts > TIMESTAMP '1970-01-01 00:00:00'",
    "ts >= '2023-11-14T22:13:20.000001'",
    "tz > TIMESTAMP '2023-11-15 00:13:20+02:00'",
    "tz = '2023-11-14T22:13:20Z'",
    "utc > '1970-01-01T00:00:00Z'",
    "tm = arrow_cast('01:00:00', 'Time64(Microsecond)')",
    "st.a = 5",
    "st.a > 0 AND st.t LIKE 'ab%'",
    "st.n.c IN (1, 2)",
    "st.n.c = 2 AND st.a = 5",
    "st.a IS NULL",
    "st IS NULL",
    "st IS NOT NULL AND st.t IS NULL",
    "list IS NULL",
    "list IS NOT NULL AND i32 > 0",
    "CASE WHEN i32 > 0 THEN s = 'abc' ELSE flag END",
    "CASE i8 WHEN 1 THEN 'one' WHEN 127 THEN 'many' END = 'many'",
    "CAST(i32 AS BIGINT) * 2 = 14",
    "CAST(i32 AS DOUBLE) = f64",
    "i64 = 9 AND s = 'abc'",
    "i64 = 9 OR (s LIKE 'ab%' AND flag)",
    "(i64 = 9 AND i32 > 0) OR (i64 = 90 AND i32 < 0)",
    "(i64 > 0) = (i32 > 0)",
    "_rowid < 100",
    "_rowid = 17",
    "_rowid IN (3, 17, 250, 99999) AND i32 IS NOT NULL",
    "_rowid NOT IN (3, 17, 250)",
    "_rowaddr >= 4294967296",
    "_rowid = 17 OR i64 = 9",
    // DataFusion makes comparisons of these before it asks.
    "CAST(i32 AS VARCHAR) = '7'",
];

/// Filters that stay above the scan.
const KEPT: &[&str] = &[
    "f64 = 0",
    "f64 > 0.0",
    "f64 >= -0.0",
    "f32 <> 0",
    "f64 IN (0, 1.5)",
    "f64 = 'NaN'::double",
    "1000 / (u8 + 1) > 7",
    "i64 / -3 > 5",
    "u64 % 5 = 1",
    "f64 / 2.0 > 1.0",
    "TRY_CAST(i64 AS INT) IS NULL",
    "dict = 'red'",
    "dict IN ('red', 'blue')",
    "list = [1, 2]",
    "array_has(list, 1)",
    "half(i64) = 45",
    "i64 > (SELECT avg(id) FROM mem)",
    "i64 IN (SELECT i64 FROM mem WHERE id < 5)",
    "EXISTS (SELECT 1 FROM mem m WHERE m.id = t.i64)",
    "random() < 2 AND i64 = 9",
    "dec * 2 = 3",
    "date_trunc('day', tz) > TIMESTAMP '1970-01-03 00:00:00+00:00'",
    "to_timestamp(i8) > to_timestamp(0)",
    "s || 'x' = 'abcx'",
    "i32 & 1 = 1",
    "ts::date = DATE '2023-11-14'",
];

struct Fixture {
    _folder: TempDir,
    dataset: Dataset,
}

impl Fixture {
    async fn write(batch: RecordBatch) -> Self {
        let folder = TempDir::new().unwrap();
        let uri = folder.path().join("t.lance");
        let params = WriteParams {
            max_rows_per_file: 250,
            enable_stable_row_ids: true,
            ..Default::default()
        };
        let schema = batch.schema();
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        let dataset = Dataset::write(reader, uri.to_str().unwrap(), Some(params))
            .await
            .unwrap();
        Self {
            _folder: folder,
            dataset,
        }
    }

    async fn append(&mut self, batch: RecordBatch) {
        let schema = batch.schema();
        let reader = RecordBatchIterator::new([Ok(batch)], schema);
        self.dataset.append(reader, None).await.unwrap();
    }

    async fn index(&mut self, column: &str, kind: BuiltinIndexType) {
        let index_type = match kind {
            BuiltinIndexType::Bitmap => IndexType::Bitmap,
            BuiltinIndexType::ZoneMap => IndexType::ZoneMap,
            BuiltinIndexType::NGram => IndexType::NGram,
            _ => IndexType::BTree,
        };
        let params = ScalarIndexParams::for_builtin(kind);
        self.dataset
            .create_index(&[column], index_type, None, &params, true)
            .await
            .unwrap_or_else(|e| panic!("index on {column}: {e}"));
    }

    fn table(&self) -> LanceTable {
        LanceTable::new("t", Arc::new(self.dataset.clone()), true)
    }

    /// A context with the table `t`, and the same rows in memory as `mem`.
    async fn context(&self) -> SessionContext {
        let config = SessionConfig::new().with_target_partitions(3);
        let context = SessionContext::new_with_config(config);
        let half = |args: &[ColumnarValue]| {
            let arrays = ColumnarValue::values_to_arrays(args)?;
            let halves: Int64Array = arrays[0]
                .as_primitive::<Int64Type>()
                .unary(|v| v.div_euclid(2));
            Ok(ColumnarValue::Array(Arc::new(halves) as ArrayRef))
        };
        context.register_udf(create_udf(
            "half",
            vec![DataType::Int64],
            DataType::Int64,
            Volatility::Immutable,
            Arc::new(half),
        ));
        context.register_table("t", Arc::new(self.table())).unwrap();
        let rows = context.sql("SELECT * FROM t").await.unwrap();
        let schema = rows.schema().as_arrow().clone();
        let rows = rows.collect().await.unwrap();
        let memory = MemTable::try_new(Arc::new(schema), vec![rows]).unwrap();
        context.register_table("mem", Arc::new(memory)).unwrap();
        context
    }
}

async fn ids(context: &SessionContext, table: &str, filter: &str) -> Result<Vec<i64>> {
    let filter = match table {
        "mem" => filter.replace("t.i64", "mem.i64"),
        _ => filter.to_string(),
    };
    let sql = format!("SELECT id FROM {table} WHERE {filter}");
    let batches = context.sql(&sql).await?.collect().await?;
    let mut ids: Vec<i64> = batches
        .iter()
        .flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    ids.sort();
    Ok(ids)
}

async fn shown_plan(context: &SessionContext, sql: &str) -> Result<String> {
    let plan = context.sql(sql).await?.create_physical_plan().await?;
    Ok(displayable(plan.as_ref()).indent(false).to_string())
}

/// Every filter finds through the table what it finds in memory.
async fn compare(context: &SessionContext) {
    let mut wrong = Vec::new();
    for filter in PUSHED.iter().chain(KEPT) {
        let found = ids(context, "t", filter).await;
        let expected = ids(context, "mem", filter).await;
        match (found, expected) {
            (Ok(found), Ok(expected)) if found == expected => {}
            (Ok(found), Ok(expected)) => {
                wrong.push(format!("{filter}: {found:?}, not {expected:?}"))
            }
            (found, expected) => wrong.push(format!("{filter}: {found:?}, {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn filters_are_pushed_down_where_lance_agrees() {
    let fixture = Fixture::write(varied(0..60)).await;
    let context = fixture.context().await;
    let mut wrong = Vec::new();
    for (filters, pushed) in [(PUSHED, true), (KEPT, false)] {
        for filter in filters {
            let shown = shown_plan(&context, &format!("SELECT id FROM t WHERE {filter}")).await;
            match shown {
                Ok(shown) => {
                    let above = shown.contains("FilterExec") || shown.contains("Join");
                    if above == pushed {
                        wrong.push(format!("{filter}:\n{shown}"));
                    }
                }
                Err(error) => wrong.push(format!("{filter}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn filters_find_the_same_rows_as_in_memory() {
    let mut fixture = Fixture::write(varied(0..600)).await;
    fixture.dataset.delete("id % 7 = 3").await.unwrap();
    compare(&fixture.context().await).await;
}

#[tokio::test]
async fn filters_find_the_same_rows_through_btrees() {
    let mut fixture = Fixture::write(varied(0..600)).await;
    for column in [
        "flag", "i8", "i32", "i64", "u64", "f32", "f64", "dec", "s", "ls", "bin", "d32", "ts",
        "tz", "utc", "st.a", "st.n.c",
    ] {
        fixture.index(column, BuiltinIndexType::BTree).await;
    }
    fixture.dataset.delete("id % 7 = 3").await.unwrap();
    fixture.append(varied(600..900)).await;
    compare(&fixture.context().await).await;
}

#[tokio::test]
async fn filters_find_the_same_rows_through_bitmaps_and_zone_maps() {
    let mut fixture = Fixture::write(varied(0..600)).await;
    for column in ["flag", "i8", "i64", "f64", "s", "d32", "ts"] {
        fixture.index(column, BuiltinIndexType::Bitmap).await;
    }
    for column in ["i16", "i32", "f32", "ls", "u64", "tz", "dec"] {
        fixture.index(column, BuiltinIndexType::ZoneMap).await;
    }
    fixture.dataset.delete("id % 7 = 3").await.unwrap();
    fixture.append(varied(600..900)).await;
    compare(&fixture.context().await).await;
}

#[tokio::test]
async fn filters_find_the_same_rows_through_n_grams() {
    let mut fixture = Fixture::write(varied(0..600)).await;
    fixture.index("s", BuiltinIndexType::NGram).await;
    fixture.append(varied(600..900)).await;
    compare(&fixture.context().await).await;
}

/// A table of one column, read back through SQL.
async fn read_back(array: ArrayRef) -> ArrayRef {
    let batch = RecordBatch::try_from_iter_with_nullable([("c", array, true)]).unwrap();
    let fixture = Fixture::write(batch).await;
    let context = fixture.context().await;
    let frame = context
        .sql("SELECT c, _rowid FROM t ORDER BY _rowid")
        .await
        .unwrap();
    let schema = frame.schema().as_arrow().clone();
    let batches = frame.collect().await.unwrap();
    let all = arrow::compute::concat_batches(&Arc::new(schema), &batches).unwrap();
    assert_eq!(all.column(1).null_count(), 0);
    all.column(0).clone()
}

#[tokio::test]
async fn every_type_that_lance_stores_comes_back() {
    let n = 20;
    let mut dice = Dice(3);
    let floats: Float32Array = dice.array(3 * n, &[0.5, -1.0]);
    let item = |t: DataType| Arc::new(Field::new("item", t, true));
    let structs = varied(0..n as i64).column_by_name("st").unwrap().clone();
    let offsets = arrow::buffer::OffsetBuffer::from_lengths((0..n).map(|_| 1));
    let list_of_struct = ListArray::new(item(structs.data_type().clone()), offsets, structs, None);
    let mut maps = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    for i in 0..n as i32 {
        maps.keys().append_value(format!("k{i}"));
        maps.values().append_option(dice.pick(&[1, 2]));
        maps.append(i % 3 != 0).unwrap();
    }
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(FixedSizeListArray::new(
            item(DataType::Float32),
            3,
            Arc::new(floats),
            None,
        )),
        Arc::new(list_of_struct),
        Arc::new(maps.finish()),
        Arc::new(dice.array::<_, Decimal256Array>(n, &[i256::from(7), i256::MAX])),
        Arc::new(dice.array::<_, LargeBinaryArray>(n, &[b"x".as_slice(), b"yz"])),
        Arc::new(dice.array::<_, Date64Array>(n, &[0, 86_400_000])),
        Arc::new(dice.array::<_, DurationMillisecondArray>(n, &[5, -5])),
        Arc::new(
            dice.array::<_, TimestampSecondArray>(n, &[0, 5])
                .with_timezone("Europe/Paris"),
        ),
        Arc::new(FixedSizeBinaryArray::try_from_iter((0..n).map(|i| [i as u8; 16])).unwrap()),
        Arc::new(NullArray::new(n)),
        Arc::new(StringArray::new_null(n)),
        Arc::new(Int32Array::new_null(n)),
    ];
    arrays.extend(varied(0..n as i64).columns().iter().skip(1).cloned());
    for array in arrays {
        let back = read_back(array.clone()).await;
        assert_eq!(back.data_type(), array.data_type());
        assert_eq!(&back, &array, "{}", array.data_type());
    }
}

#[tokio::test]
async fn a_blob_shows_where_it_is_until_its_bytes_are_asked_for() {
    let mut blobs = lance::BlobArrayBuilder::new(3);
    blobs.push_bytes(vec![7; 30]).unwrap();
    blobs.push_null().unwrap();
    blobs.push_bytes(vec![9; 100_000]).unwrap();
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        lance::blob_field("b", true),
    ]);
    let id = Int64Array::from(vec![0, 1, 2]);
    let columns = vec![Arc::new(id) as ArrayRef, blobs.finish().unwrap()];
    let fixture = Fixture::write(RecordBatch::try_new(Arc::new(schema), columns).unwrap()).await;
    let context = fixture.context().await;

    let batches = context
        .sql("SELECT b, id FROM t ORDER BY id")
        .await
        .unwrap();
    let batches = batches.collect().await.unwrap();
    let shown = batches[0].column(0).as_struct();
    let sizes = shown
        .column_by_name("size")
        .unwrap()
        .as_primitive::<UInt64Type>();
    assert_eq!((sizes.value(0), sizes.value(2)), (30, 100_000));

    for filter in ["b IS NOT NULL", "b IS NULL", "b.size > 30"] {
        let sql = format!("SELECT id FROM t WHERE {filter}");
        let shown = shown_plan(&context, &sql).await.unwrap();
        assert!(shown.contains("FilterExec"), "{shown}");
        let found = ids(&context, "t", filter).await.unwrap();
        assert_eq!(found, ids(&context, "mem", filter).await.unwrap());
    }

    let table = fixture.table();
    let description = ScanDescription {
        columns: vec!["b".to_string(), "id".to_string()],
        blobs: Blobs::Binary,
        ..ScanDescription::new(table.dataset())
    };
    let scan = LanceScanExec::try_new(table.dataset().clone(), description).unwrap();
    let batches = collect(Arc::new(scan), context.task_ctx()).await.unwrap();
    let bytes = batches[0].column(0).as_binary::<i64>();
    assert_eq!(
        (bytes.value(0), bytes.value(2).len()),
        ([7; 30].as_slice(), 100_000)
    );
}

#[tokio::test]
async fn json_shows_as_text() {
    let extension = HashMap::from([("ARROW:extension:name".to_string(), "arrow.json".to_string())]);
    let field = Field::new("j", DataType::Utf8, true).with_metadata(extension);
    let schema = Schema::new(vec![Field::new("id", DataType::Int64, false), field]);
    let id = Int64Array::from(vec![0, 1, 2]);
    let texts = StringArray::from(vec![Some(r#"{"a":1}"#), None, Some("[2]")]);
    let columns = vec![Arc::new(id) as ArrayRef, Arc::new(texts)];
    let fixture = Fixture::write(RecordBatch::try_new(Arc::new(schema), columns).unwrap()).await;
    let context = fixture.context().await;
    for filter in ["j = '[2]'", "j LIKE '%a%'", "j IS NULL"] {
        let found = ids(&context, "t", filter).await.unwrap();
        assert_eq!(found, ids(&context, "mem", filter).await.unwrap());
        assert_eq!(found.len(), 1, "{filter}");
    }
}

#[tokio::test]
async fn row_ids_show_only_if_exposed() {
    let fixture = Fixture::write(varied(0..20)).await;
    let dataset = Arc::new(fixture.dataset.clone());
    let names = |table: &LanceTable| -> Vec<String> {
        table
            .schema()
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .collect()
    };
    let plain = LanceTable::new("t", dataset.clone(), false);
    let exposed = LanceTable::new("t", dataset, true);
    assert!(!names(&plain).contains(&"_rowid".to_string()));
    assert_eq!(
        names(&exposed)[names(&plain).len()..],
        ["_rowid", "_rowaddr"]
    );
    let row_id = exposed.schema().field_with_name("_rowid").unwrap().clone();
    assert_eq!(
        (row_id.data_type(), row_id.is_nullable()),
        (&DataType::UInt64, false)
    );
}

#[tokio::test]
async fn hidden_columns_show_only_if_asked_for() {
    let mut fixture = Fixture::write(varied(0..20)).await;
    let hidden = [("headwater.hidden", "true")];
    let update = fixture.dataset.update_field_metadata();
    update.update("i8", hidden).unwrap().await.unwrap();
    let dataset = Arc::new(fixture.dataset.clone());
    let all = table_schema(&dataset, Blobs::Descriptors);
    for row_ids in [false, true] {
        let table = LanceTable::new("t", dataset.clone(), row_ids);
        let width = all.fields().len() + if row_ids { 2 } else { 0 };
        assert!(table.schema().field_with_name("i8").is_err());
        assert_eq!(table.schema().fields().len(), width - 1);
        let full = table.with_hidden();
        assert_eq!(full.schema().fields().len(), width);
        let place = all.index_of("i8").unwrap();
        assert_eq!(full.schema().index_of("i8").unwrap(), place);
        let context = SessionContext::new();
        context.register_table("t", Arc::new(full)).unwrap();
        let query = "SELECT i8 FROM t WHERE i8 IS NOT NULL OR id = 1";
        let rows = context.sql(query).await.unwrap().collect().await;
        assert!(
            rows.unwrap()
                .iter()
                .map(RecordBatch::num_rows)
                .sum::<usize>()
                > 1
        );
    }
}

#[tokio::test]
async fn a_table_of_some_rows_knows_how_many() {
    use crate::storage::RowSet;

    let fixture = Fixture::write(varied(0..1500)).await;
    let context = fixture.context().await;
    let few: RowSet = [7, 8, 900, 4000].into_iter().collect();
    let few = Arc::new(few);
    for (rows, number, shown) in [
        (RowFilter::Only(few.clone()), 3, "rows=only 3 of 1500"),
        (RowFilter::Except(few), 1497, "rows=except 3 of 1500"),
    ] {
        let table = Arc::new(fixture.table().with_rows(rows));
        context.register_table("some", table).unwrap();
        let plan = shown_plan(&context, "SELECT sum(id) FROM some")
            .await
            .unwrap();
        assert!(plan.contains(shown), "{plan}");
        let plan = shown_plan(&context, "SELECT count(*) FROM some")
            .await
            .unwrap();
        assert!(
            !plan.contains("LanceScanExec"),
            "the number is known: {plan}"
        );
        let found = ids(&context, "some", "id >= 8 AND _rowid < 1000")
            .await
            .unwrap();
        assert_eq!(found.len(), if number == 3 { 2 } else { 990 });
        context.deregister_table("some").unwrap();
    }
}

#[tokio::test]
async fn a_query_uses_every_core_and_counts_from_the_manifest() {
    let fixture = Fixture::write(varied(0..1500)).await;
    let context = fixture.context().await;
    let shown = shown_plan(&context, "SELECT i8, sum(id) FROM t GROUP BY i8")
        .await
        .unwrap();
    assert!(
        shown.contains("partitions=3, fragments=6, columns=[id, i8]"),
        "{shown}"
    );
    let shown = shown_plan(&context, "SELECT count(*) FROM t")
        .await
        .unwrap();
    assert!(!shown.contains("LanceScanExec"), "{shown}");

    for (sql, expected) in [
        ("SELECT count(*) FROM t", 1500),
        ("SELECT count(*) FROM t WHERE id >= 1000", 500),
        ("SELECT count(*) FROM (SELECT 1 FROM t LIMIT 400)", 400),
        (
            "SELECT count(*) FROM (SELECT id FROM t LIMIT 400 OFFSET 1400)",
            100,
        ),
        (
            "SELECT count(*) FROM (SELECT id FROM t WHERE id % 2 = 0 LIMIT 400)",
            400,
        ),
        (
            "SELECT count(*) FROM (SELECT id FROM t WHERE id < 700 LIMIT 600)",
            600,
        ),
        ("SELECT count(*) FROM t a JOIN t b ON a.id = b._rowid", 1500),
    ] {
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let found = batches[0].column(0).as_primitive::<Int64Type>().value(0);
        assert_eq!(found, expected, "{sql}");
    }
}

#[tokio::test]
async fn a_long_filter_is_no_error() {
    let fixture = Fixture::write(varied(0..600)).await;
    let context = fixture.context().await;
    let long: Vec<_> = (0..150)
        .map(|i| format!("(i32 = {i} OR id <> {i})"))
        .collect();
    for operator in [" AND ", " OR "] {
        let filter = long.join(operator);
        let found = ids(&context, "t", &filter).await.unwrap();
        assert_eq!(found, ids(&context, "mem", &filter).await.unwrap());
    }

    // More than Lance takes one below the other.
    let filters: Vec<_> = (0..550i64).map(|i| col("id").not_eq(lit(i))).collect();
    let table = fixture.table();
    let scan = table
        .scan(&context.state(), Some(&vec![0]), &filters, None)
        .await
        .unwrap();
    let batches = collect(scan, context.task_ctx()).await.unwrap();
    assert_eq!(batches.iter().map(|b| b.num_rows()).sum::<usize>(), 50);
}

#[tokio::test]
async fn names_that_look_like_paths_are_only_names() {
    let columns = ["A", "a", "two words", "it's", "ünï"];
    let batch = RecordBatch::try_from_iter(
        [("id", 0)]
            .into_iter()
            .chain(columns.into_iter().zip(1..))
            .map(|(name, i)| {
                (
                    name,
                    Arc::new(Int64Array::from(vec![i, i + 10, i + 20])) as ArrayRef,
                )
            }),
    )
    .unwrap();
    let fixture = Fixture::write(batch).await;
    let context = fixture.context().await;
    for (column, value) in columns.into_iter().zip(11..) {
        let filter = format!("\"{column}\" = {value}");
        assert_eq!(
            ids(&context, "t", &filter).await.unwrap(),
            vec![10],
            "{column}"
        );
    }
}
