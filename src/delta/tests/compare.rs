//! Comparing by values, for every kind of value.

use arrow::array::{
    BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, FixedSizeBinaryArray,
    FixedSizeListArray, Float16Array, Float32Array, LargeStringArray, ListArray, NullArray,
    TimestampMicrosecondArray, UInt8Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Float32Type, Int8Type};

use lance::dataset::ColumnAlteration;

use super::super::compare::differing;
use super::*;

fn set(ids: impl IntoIterator<Item = u64>) -> RowSet {
    ids.into_iter().collect()
}

/// Which rows of two columns differ.
fn differ(old: impl Array + 'static, new: impl Array + 'static) -> Vec<bool> {
    let (old, new) = (Arc::new(old) as ArrayRef, Arc::new(new) as ArrayRef);
    let forth = differing(&old, &new).unwrap();
    assert_eq!(forth, differing(&new, &old).unwrap());
    assert_eq!(differing(&old, &old).unwrap().true_count(), 0);
    (0..forth.len()).map(|row| forth.value(row)).collect()
}

#[test]
fn null_equals_null_and_nothing_else() {
    let old = Int64Array::from(vec![Some(1), None, None, Some(0)]);
    let new = Int64Array::from(vec![Some(1), None, Some(0), None]);
    assert_eq!(differ(old, new), [false, false, true, true]);
    let old = BooleanArray::from(vec![Some(false), None, Some(true)]);
    let new = BooleanArray::from(vec![None, None, Some(true)]);
    assert_eq!(differ(old, new), [true, false, false]);
    assert_eq!(differ(NullArray::new(2), NullArray::new(2)), [false, false]);
}

#[test]
fn floats_are_compared_by_their_bits() {
    let old = Float64Array::from(vec![f64::NAN, 0.0, 1.0, f64::INFINITY]);
    let new = Float64Array::from(vec![f64::NAN, -0.0, 1.5, f64::INFINITY]);
    assert_eq!(differ(old, new), [false, true, true, false]);
    let old = Float32Array::from(vec![f32::NAN, 0.0]);
    let new = Float32Array::from(vec![-f32::NAN, 0.0]);
    assert_eq!(differ(old, new), [true, false]);
    let half = |bits: [u16; 2]| {
        use arrow::array::ArrowPrimitiveType;
        type Half = <arrow::datatypes::Float16Type as ArrowPrimitiveType>::Native;
        Float16Array::from_iter_values(bits.map(Half::from_bits))
    };
    assert_eq!(
        differ(half([0x7e00, 0]), half([0x7e00, 0x8000])),
        [false, true]
    );
}

#[test]
fn flat_types_are_compared() {
    let old = LargeStringArray::from(vec![Some(""), Some("a"), None]);
    let new = LargeStringArray::from(vec![None, Some("b"), None]);
    assert_eq!(differ(old, new), [true, true, false]);
    let old = BinaryArray::from_vec(vec![b"a", b"b"]);
    let new = BinaryArray::from_vec(vec![b"a", b""]);
    assert_eq!(differ(old, new), [false, true]);
    let fixed = |rows: [[u8; 2]; 2]| FixedSizeBinaryArray::try_from_iter(rows.iter()).unwrap();
    assert_eq!(
        differ(fixed([[1, 2], [3, 4]]), fixed([[1, 2], [3, 5]])),
        [false, true]
    );
    let decimal = |rows: [i128; 2]| {
        Decimal128Array::from_iter_values(rows)
            .with_precision_and_scale(30, 2)
            .unwrap()
    };
    assert_eq!(differ(decimal([100, 7]), decimal([100, 8])), [false, true]);
    assert_eq!(
        differ(Date32Array::from(vec![1]), Date32Array::from(vec![2])),
        [true]
    );
    let time = |at| TimestampMicrosecondArray::from(vec![at]).with_timezone("+02:00");
    assert_eq!(differ(time(5), time(5)), [false]);
    assert_eq!(
        differ(UInt8Array::from(vec![255]), UInt8Array::from(vec![0])),
        [true]
    );
}

#[test]
fn dictionaries_are_compared_by_what_they_stand_for() {
    let of = |rows: &[Option<&str>]| rows.iter().copied().collect::<DictionaryArray<Int8Type>>();
    let old = of(&[Some("a"), Some("b"), None]);
    let new = of(&[Some("b"), Some("b"), None]);
    assert_eq!(differ(old, new), [true, false, false]);
}

#[test]
fn lists_are_compared_element_by_element() {
    let of = |rows: Vec<Option<Vec<Option<f32>>>>| {
        ListArray::from_iter_primitive::<Float32Type, _, _>(rows)
    };
    let nan = Some(vec![Some(f32::NAN)]);
    let old = of(vec![
        nan.clone(),
        Some(vec![]),
        None,
        Some(vec![None]),
        Some(vec![Some(1.0)]),
    ]);
    let new = of(vec![
        nan,
        None,
        None,
        Some(vec![]),
        Some(vec![Some(1.0), None]),
    ]);
    assert_eq!(differ(old, new), [false, true, false, true, true]);
    let vectors = |rows: Vec<f32>, nulls: Vec<bool>| {
        FixedSizeListArray::new(
            Arc::new(Field::new("item", DataType::Float32, true)),
            2,
            Arc::new(Float32Array::from(rows)),
            Some(NullBuffer::from(nulls)),
        )
    };
    let old = vectors(vec![1., 2., 3., 4., 9., 9.], vec![true, true, false]);
    let new = vectors(vec![1., 2., 3., 5., 0., 0.], vec![true, true, false]);
    assert_eq!(
        differ(old, new),
        [false, true, false],
        "what lies under a NULL does not count"
    );
}

#[test]
fn nested_types_are_compared_at_every_depth() {
    let of = |leaf: Vec<Option<i64>>, nulls: Vec<bool>| {
        let leaves = Arc::new(Int64Array::from(leaf)) as ArrayRef;
        let inner = StructArray::new(
            Fields::from(vec![Field::new("n", DataType::Int64, true)]),
            vec![leaves],
            Some(NullBuffer::from(nulls)),
        );
        ListArray::new(
            Arc::new(Field::new("item", inner.data_type().clone(), true)),
            OffsetBuffer::from_lengths([2, 1, 0, 1]),
            Arc::new(inner),
            None,
        )
    };
    let old = of(
        vec![Some(1), Some(2), Some(3), None],
        vec![true, true, true, true],
    );
    let new = of(
        vec![Some(1), Some(9), Some(3), None],
        vec![true, true, true, false],
    );
    assert_eq!(differ(old, new), [true, false, false, true]);
}

#[test]
fn a_type_that_differs_in_nullability_only_is_the_same() {
    let of = |nullable: bool, values: Vec<i64>| {
        StructArray::new(
            Fields::from(vec![Field::new("n", DataType::Int64, nullable)]),
            vec![Arc::new(Int64Array::from(values)) as ArrayRef],
            None,
        )
    };
    assert_eq!(
        differ(of(true, vec![1, 2]), of(false, vec![1, 3])),
        [false, true]
    );
}

#[test]
fn a_long_column_with_few_changes_is_searched_by_halves() {
    let of = |changed: &[usize]| {
        let mut values: Vec<f64> = (0..10_000).map(f64::from).collect();
        for row in changed {
            values[*row] = -1.0;
        }
        StructArray::new(
            Fields::from(vec![Field::new("n", DataType::Float64, true)]),
            vec![Arc::new(Float64Array::from(values)) as ArrayRef],
            None,
        )
    };
    let rows = differ(of(&[]), of(&[0, 4_999, 9_999]));
    let found: Vec<usize> = (0..rows.len()).filter(|row| rows[*row]).collect();
    assert_eq!(found, [0, 4_999, 9_999]);
}

#[tokio::test]
async fn a_row_missing_at_one_of_the_versions_counts_as_changed() {
    let mut t = Table::new(100, 50).await;
    t.append(200..201).await;
    t.delete("id = 3").await;
    let ids = set([1, 2, 3, 100, 1 << 40]);
    for fields in [t.fields(&["v"]), vec![]] {
        let changed = confirm(&t.ds, 1, &ids, &fields).await.unwrap();
        assert_eq!(changed, set([3, 100, 1 << 40]));
        assert_eq!(
            confirm(&t.ds, 1, &RowSet::new(), &fields).await.unwrap(),
            RowSet::new()
        );
    }
}

#[tokio::test]
async fn more_rows_than_fit_one_chunk_are_compared() {
    let mut t = Table::new(20_000, 7_000).await;
    t.delete("id % 11 = 5").await;
    t.update("id % 3 = 0", "text", "text").await;
    t.update("id % 9 = 0", "v", "v + 1").await;
    t.compact(9_000).await;
    let truth = t.ids("id % 9 = 0").await;
    let all = t.ids("id >= 0").await;
    let fields = t.fields(&["v", "point", "text"]);
    assert_eq!(confirm(&t.ds, 2, &all, &fields).await.unwrap(), truth);
}

#[tokio::test]
async fn a_field_is_found_by_its_id_at_both_versions() {
    let mut t = Table::new(100, 50).await;
    let name = "w x-y";
    let rename = ColumnAlteration::new("v".into()).rename(name.into());
    t.ds.alter_columns(&[rename]).await.unwrap();
    t.replace(name, &[0], |id, v| if id == 4 { None } else { v }, None)
        .await;
    let fields = t.fields(&[name]);
    let changed = confirm(&t.ds, 1, &set(0..10), &fields).await.unwrap();
    assert_eq!(changed, set([4]));
    let unknown = FieldIdentity {
        id: 99,
        ..fields[0].clone()
    };
    let error = confirm(&t.ds, 1, &set([1]), &[unknown]).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::NotFound);
}
