//! Tests of the harness, and of the form of the test files.

use std::fs;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float64Array, Int32Array, ListArray,
    RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type};
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::SessionContext;
use libtest_mimic::{Failed, Trial};
use sqllogictest::Record;

use crate::functions;
use crate::harness::command::{self, Command};
use crate::harness::database::Place;
use crate::harness::normalize::Normalizer;
use crate::harness::render::{ColumnKind, Rendered, render};
use crate::harness::{Engine, Failure, files};

type Check = fn() -> Result<(), Failed>;

/// A trial for each check.
pub fn trials() -> Vec<Trial> {
    let checks: [(&str, Check); 9] = [
        ("every_file_parses", every_file_parses),
        ("values_render", values_render),
        ("nested_values_render", nested_values_render),
        (
            "floats_render_to_twelve_digits",
            floats_render_to_twelve_digits,
        ),
        ("volatile_columns_are_masked", volatile_columns_are_masked),
        ("lines_become_rows", lines_become_rows),
        ("commands_parse", commands_parse),
        ("folders_and_variables", folders_and_variables),
        ("functions_are_seen", functions_are_seen),
    ];
    checks
        .into_iter()
        .map(|(name, check)| Trial::test(format!("harness/{name}"), check))
        .collect()
}

fn expect<T: PartialEq + std::fmt::Debug>(actual: T, expected: T) -> Result<(), Failed> {
    if actual == expected {
        return Ok(());
    }
    Err(Failed::from(format!(
        "expected {expected:?}, got {actual:?}"
    )))
}

/// A file parses, says first what it tests, runs to its end and uses no command that
/// is not there.
fn every_file_parses() -> Result<(), Failed> {
    let mut problems = Vec::new();
    for file in files::find()? {
        let name = files::relative(&file);
        if !fs::read_to_string(&file)?.starts_with("# ") {
            problems.push(format!("{name}: must begin with a comment"));
        }
        let records = match sqllogictest::parse_file::<ColumnKind>(&file) {
            Ok(records) => records,
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        for record in records {
            match record {
                Record::Halt { loc } => problems.push(format!("{loc}: halt")),
                Record::Statement { loc, sql, .. } | Record::Query { loc, sql, .. } => {
                    if let Err(error) = Command::parse(&sql) {
                        problems.push(format!("{loc}: {error}"));
                    }
                }
                _ => {}
            }
        }
    }
    expect(problems, Vec::new())
}

fn rendered(column: &str, array: ArrayRef) -> Result<Rendered, Failure> {
    let batch = RecordBatch::try_from_iter([(column, array)]).map_err(Failure::new)?;
    render(&batch, &|text| text.to_string())
}

fn column(array: ArrayRef) -> Result<(ColumnKind, Vec<String>), Failure> {
    let Rendered { kinds, rows } = rendered("c", array)?;
    Ok((kinds[0], rows.concat()))
}

fn values_render() -> Result<(), Failed> {
    let (kind, values) = column(Arc::new(StringArray::from(vec![
        Some("a b"),
        Some(""),
        None,
    ])))?;
    expect(kind, ColumnKind::Text)?;
    expect(
        values,
        ["a b", "(empty)", "NULL"].map(String::from).to_vec(),
    )?;

    let (kind, values) = column(Arc::new(BooleanArray::from(vec![true, false])))?;
    expect(kind, ColumnKind::Boolean)?;
    expect(values, ["true", "false"].map(String::from).to_vec())?;

    let timestamp = TimestampMicrosecondArray::from(vec![1_500_000]);
    let (kind, values) = column(Arc::new(timestamp))?;
    expect(kind, ColumnKind::Timestamp)?;
    expect(values, vec!["1970-01-01T00:00:01.500".to_string()])?;

    let decimal = Decimal128Array::from(vec![150]).with_precision_and_scale(5, 2)?;
    let (kind, values) = column(Arc::new(decimal))?;
    expect(kind, ColumnKind::Real)?;
    expect(values, vec!["1.50".to_string()])?;

    let (kind, values) = column(Arc::new(BinaryArray::from_vec(vec![b"\x01\xff", b""])))?;
    expect(kind, ColumnKind::Other)?;
    expect(values, ["01ff", "(empty)"].map(String::from).to_vec())
}

fn nested_values_render() -> Result<(), Failed> {
    let lists = vec![Some(vec![Some(1), None]), Some(vec![]), None];
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
    let (kind, values) = column(Arc::new(lists))?;
    expect(kind, ColumnKind::Other)?;
    expect(
        values,
        ["[1, NULL]", "[]", "NULL"].map(String::from).to_vec(),
    )?;

    let fields = StructArray::from(vec![
        (
            Arc::new(Field::new("a", DataType::Int32, true)),
            Arc::new(Int32Array::from(vec![Some(1)])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("b", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec![None::<&str>])) as ArrayRef,
        ),
    ]);
    let (_, values) = column(Arc::new(fields))?;
    expect(values, vec!["{a: 1, b: NULL}".to_string()])
}

fn floats_render_to_twelve_digits() -> Result<(), Failed> {
    let floats = vec![
        0.1 + 0.2,
        1.0,
        1e20,
        -0.0,
        f64::NAN,
        f64::NEG_INFINITY,
        1.0 / 3.0,
    ];
    let (kind, values) = column(Arc::new(Float64Array::from(floats)))?;
    expect(kind, ColumnKind::Real)?;
    let expected = [
        "0.3",
        "1",
        "100000000000000000000",
        "0",
        "NaN",
        "-Infinity",
        "0.333333333333",
    ];
    expect(values, expected.map(String::from).to_vec())
}

fn volatile_columns_are_masked() -> Result<(), Failed> {
    let seconds = rendered("elapsed_seconds", Arc::new(Float64Array::from(vec![0.25])))?;
    expect(seconds.rows, vec![vec!["<elapsed_seconds>".to_string()]])?;

    let place = Place::new(Engine::Local)?;
    let normalizer = Normalizer::new(&place)?;
    let text = format!(
        "{}/t.lance/data/010101010101010101010101{}.lance of 67e55044-10b1-426f-9247-bb680e5fe0c8",
        place.database.display(),
        "0123456789abcdef0123456789"
    );
    expect(
        normalizer.normalize(&text, false).as_str(),
        "$DB/t.lance/data/<file>.lance of <uuid>",
    )?;
    expect(
        normalizer
            .normalize("job '20261121-065202258-09accae0'", false)
            .as_str(),
        "job '<job>'",
    )?;
    let text = "Scan: metrics=[output_rows=3, elapsed_compute=1.5ms], 12 ms, 1.5 KiB, 3 rows";
    expect(
        normalizer.normalize(text, true).as_str(),
        "Scan: metrics=[<metrics>], <time>, <size>, 3 rows",
    )?;
    expect(normalizer.normalize(text, false).as_str(), text)
}

fn lines_become_rows() -> Result<(), Failed> {
    let batch = RecordBatch::try_from_iter([
        (
            "plan_type",
            Arc::new(StringArray::from(vec!["plan"])) as ArrayRef,
        ),
        (
            "plan",
            Arc::new(StringArray::from(vec!["Filter\n  Scan"])) as ArrayRef,
        ),
    ])?;
    let rendered = render(&batch, &|text| text.to_string())?;
    let expected = vec![
        vec!["plan".to_string(), "01)Filter".to_string()],
        vec!["02)--Scan".to_string()],
    ];
    expect(rendered.rows, expected)
}

fn commands_parse() -> Result<(), Failed> {
    expect(Command::parse("SELECT 1")?, None)?;
    let pick = Command::Pick {
        columns: vec!["mode", "rows_computed"],
        statement: "REFRESH COLUMN c\nON t",
    };
    let text = "\\pick mode, rows_computed\nREFRESH COLUMN c\nON t";
    expect(Command::parse(text)?, Some(pick))?;
    let bind = Command::Let {
        variable: "v",
        column: Some("version"),
        statement: "TRUNCATE t",
    };
    expect(Command::parse("\\let v version\nTRUNCATE t")?, Some(bind))?;
    expect(Command::parse("\\reopen")?, Some(Command::Reopen))?;
    expect(Command::parse("\\foreign delete t").is_err(), true)?;
    expect(Command::parse("\\nothing").is_err(), true)?;
    expect(command::is_explain("explain SELECT 1"), true)
}

fn folders_and_variables() -> Result<(), Failed> {
    let place = Place::new(Engine::Local)?;
    let text = place.substitute("'$TMP/a' '${DB}/b' $1 $$ body $$ $TMPX")?;
    let expected = format!(
        "'{}/a' '{}/b' $1 $$ body $$ $TMPX",
        place.files.display(),
        place.database.display()
    );
    expect(text, expected)
}

/// Each function in plain DataFusion.
fn functions_are_seen() -> Result<(), Failed> {
    let place = Place::new(Engine::Local)?;
    let context = SessionContext::new();
    for function in functions::all(Some(place.calls())) {
        context.register_udf(ScalarUDF::clone(&function));
    }
    let run = async |sql: &str| context.sql(sql).await?.collect().await;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        run("SELECT count_calls(x), sleep_ms(x, 1) FROM (VALUES (1), (2), (NULL)) AS t(x)").await?;
        expect(command::take_calls(&place.calls())?, 3)?;
        expect(command::take_calls(&place.calls())?, 0)?;
        run("SELECT fail_if(x, 3) FROM (VALUES (1), (2), (NULL)) AS t(x)").await?;
        match run("SELECT fail_if(x, 2) FROM (VALUES (1), (2)) AS t(x)").await {
            Ok(_) => Err(Failed::from("fail_if did not fail")),
            Err(error) => expect(error.to_string().contains("the value is 2"), true),
        }
    })
}
