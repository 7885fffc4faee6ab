use std::sync::Arc;

use datafusion::arrow::datatypes::Fields;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::reader::SIMPLE;
use super::*;
use crate::ErrorKind;

fn read_type(text: &str) -> DataType {
    match parse("c", text) {
        Ok(field) => field.data_type().clone(),
        Err(error) => panic!("{text}: {error}"),
    }
}

fn failure(text: &str) -> String {
    match parse("c", text) {
        Ok(field) => panic!("{text} was read as {field}"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Syntax, "{text}");
            error.to_string()
        }
    }
}

fn item(data_type: DataType, nullable: bool) -> FieldRef {
    Arc::new(Field::new("item", data_type, nullable))
}

#[test]
fn simple_types_by_sql_and_arrow_name() {
    for (texts, expected) in [
        ("TINYINT int8 tinyint(4)", DataType::Int8),
        ("SMALLINT int16 INT2", DataType::Int16),
        ("INT INTEGER int32 INT4 int(11)", DataType::Int32),
        ("BIGINT int64", DataType::Int64),
        ("UTINYINT uint8", DataType::UInt8),
        ("USMALLINT uint16", DataType::UInt16),
        ("UINTEGER UINT uint32", DataType::UInt32),
        ("UBIGINT uint64", DataType::UInt64),
        ("FLOAT16 HALF halffloat", DataType::Float16),
        ("FLOAT REAL FLOAT32 FLOAT4 float(24)", DataType::Float32),
        ("DOUBLE FLOAT64 FLOAT8 FLOAT(53)", DataType::Float64),
        ("BOOLEAN bool", DataType::Boolean),
        (
            "VARCHAR TEXT STRING utf8 VARCHAR(20) CHAR(3) VARCHAR(MAX)",
            DataType::Utf8,
        ),
        ("LARGE_UTF8 large_string", DataType::LargeUtf8),
        ("BINARY BYTEA VARBINARY VARBINARY(16)", DataType::Binary),
        ("LARGE_BINARY", DataType::LargeBinary),
        (
            "FIXED_SIZE_BINARY(16) fixed_size_binary[16]",
            DataType::FixedSizeBinary(16),
        ),
        ("DATE date32", DataType::Date32),
        ("DATE64", DataType::Date64),
        ("INTERVAL", DataType::Interval(IntervalUnit::MonthDayNano)),
        ("DECIMAL NUMERIC", DataType::Decimal128(38, 10)),
        ("DECIMAL(10) decimal128(10)", DataType::Decimal128(10, 0)),
        ("DECIMAL(38,38)", DataType::Decimal128(38, 38)),
        (
            "NUMERIC(39,2) DECIMAL256(39,2)",
            DataType::Decimal256(39, 2),
        ),
        ("DECIMAL(5,-2)", DataType::Decimal128(5, -2)),
        (
            "TIME TIME(9) time64[ns] time64",
            DataType::Time64(TimeUnit::Nanosecond),
        ),
        (
            "TIME(6) time64[us]",
            DataType::Time64(TimeUnit::Microsecond),
        ),
        (
            "TIME(3) time32[ms] TIME32",
            DataType::Time32(TimeUnit::Millisecond),
        ),
        ("TIME(0) time32[s]", DataType::Time32(TimeUnit::Second)),
        (
            "DURATION DURATION(9)",
            DataType::Duration(TimeUnit::Nanosecond),
        ),
        (
            "DURATION(0) duration[s]",
            DataType::Duration(TimeUnit::Second),
        ),
        (
            "TIMESTAMP TIMESTAMP(9) timestamp[ns] timestamp_ns DATETIME",
            DataType::Timestamp(TimeUnit::Nanosecond, None),
        ),
        (
            "TIMESTAMP(6) timestamp[us] TIMESTAMP_US",
            DataType::Timestamp(TimeUnit::Microsecond, None),
        ),
        (
            "TIMESTAMP(3) timestamp[ms]",
            DataType::Timestamp(TimeUnit::Millisecond, None),
        ),
        (
            "TIMESTAMP(0) timestamp[s]",
            DataType::Timestamp(TimeUnit::Second, None),
        ),
    ] {
        for text in texts.split(' ') {
            assert_eq!(read_type(text), expected, "{text}");
            assert_eq!(
                read_type(&text.to_lowercase()),
                expected,
                "{text} in lower case"
            );
            assert_eq!(
                read_type(&text.to_uppercase()),
                expected,
                "{text} in upper case"
            );
        }
    }
}

#[test]
fn names_of_several_words() {
    assert_eq!(read_type("INT UNSIGNED"), DataType::UInt32);
    assert_eq!(read_type("bigint(20) unsigned"), DataType::UInt64);
    assert_eq!(read_type("BIGINT SIGNED"), DataType::Int64);
    assert_eq!(read_type("DOUBLE PRECISION"), DataType::Float64);
    assert_eq!(read_type("CHARACTER VARYING(10)"), DataType::Utf8);
    assert_eq!(
        read_type("TIME WITHOUT TIME ZONE"),
        DataType::Time64(TimeUnit::Nanosecond)
    );
    assert_eq!(
        read_type("TIMESTAMP(3) WITHOUT TIME ZONE"),
        DataType::Timestamp(TimeUnit::Millisecond, None)
    );
}

#[test]
fn timestamps_with_a_zone() {
    let zoned = |unit, zone: &str| DataType::Timestamp(unit, Some(zone.into()));
    for (text, expected) in [
        (
            "TIMESTAMP WITH TIME ZONE",
            zoned(TimeUnit::Nanosecond, "UTC"),
        ),
        (
            "TIMESTAMP(6) with time zone",
            zoned(TimeUnit::Microsecond, "UTC"),
        ),
        ("TIMESTAMPTZ(3)", zoned(TimeUnit::Millisecond, "UTC")),
        (
            "TIMESTAMP(6) WITH TIME ZONE 'Europe/Berlin'",
            zoned(TimeUnit::Microsecond, "Europe/Berlin"),
        ),
        ("timestamp[us, tz=UTC]", zoned(TimeUnit::Microsecond, "UTC")),
        (
            "timestamp[us, tz=Europe/Berlin]",
            zoned(TimeUnit::Microsecond, "Europe/Berlin"),
        ),
        (
            "timestamp[ms, tz='+01:00']",
            zoned(TimeUnit::Millisecond, "+01:00"),
        ),
        (
            "timestamp[ms, tz=+01:00]",
            zoned(TimeUnit::Millisecond, "+01:00"),
        ),
    ] {
        assert_eq!(read_type(text), expected, "{text}");
    }
    assert!(failure("TIMESTAMP WITH TIME ZONE 'Berlin'").contains("'Berlin' is not a time zone"));
}

#[test]
fn nested_types() {
    let int = || item(DataType::Int32, true);
    for (text, expected) in [
        (
            "FLOAT[384]",
            DataType::FixedSizeList(item(DataType::Float32, true), 384),
        ),
        ("FLOAT[]", DataType::List(item(DataType::Float32, true))),
        (
            "INT[][3]",
            DataType::FixedSizeList(item(DataType::List(int()), true), 3),
        ),
        ("ARRAY<INT>", DataType::List(int())),
        (
            "list<int32 not null>",
            DataType::List(item(DataType::Int32, false)),
        ),
        (
            "ARRAY<ARRAY<ARRAY<INT>>>",
            DataType::List(item(
                DataType::List(item(DataType::List(int()), true)),
                true,
            )),
        ),
        ("LARGE_LIST<INT>", DataType::LargeList(int())),
        ("fixed_size_list<int, 3>", DataType::FixedSizeList(int(), 3)),
        (
            "STRUCT(a INT, \"B c\" VARCHAR NOT NULL)",
            DataType::Struct(Fields::from(vec![
                Field::new("a", DataType::Int32, true),
                Field::new("B c", DataType::Utf8, false),
            ])),
        ),
        (
            "STRUCT<A: INT, b STRUCT<c ARRAY<INT>>>",
            DataType::Struct(Fields::from(vec![
                Field::new("a", DataType::Int32, true),
                Field::new(
                    "b",
                    DataType::Struct(Fields::from(vec![Field::new(
                        "c",
                        DataType::List(int()),
                        true,
                    )])),
                    true,
                ),
            ])),
        ),
        (
            "DICTIONARY(INT, VARCHAR)",
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        ),
    ] {
        assert_eq!(read_type(text), expected, "{text}");
    }
    for text in ["MAP(VARCHAR, INT)", "map<utf8, int32>"] {
        let DataType::Map(entries, false) = read_type(text) else {
            panic!("{text} is not a map");
        };
        assert_eq!(entries.name(), "entries");
        assert_eq!(
            entries.data_type(),
            &DataType::Struct(Fields::from(vec![
                Field::new("key", DataType::Utf8, false),
                Field::new("value", DataType::Int32, true),
            ]))
        );
    }
}

#[test]
fn a_blob_is_marked_in_its_metadata() {
    let blob = parse("b", "BLOB").unwrap();
    assert!(is_blob(&blob));
    assert_eq!(*blob, lance::blob_field("b", true));
    assert!(!is_blob(&parse("b", "BINARY").unwrap()));
    let list = parse("b", "BLOB[]").unwrap();
    let DataType::List(element) = list.data_type() else {
        panic!("not a list");
    };
    assert!(is_blob(element) && !is_blob(&list));
}

#[test]
fn a_field_has_the_name_and_is_nullable() {
    let field = parse("my column", "INT").unwrap();
    assert_eq!(*field, Field::new("my column", DataType::Int32, true));
}

#[test]
fn wrong_types_say_what_is_wrong() {
    for (text, expected) in [
        ("INTT", "unknown type 'INTT'"),
        ("INTT", "did you mean INT?"),
        ("Varchr", "did you mean VARCHAR?"),
        ("JSON", "unknown type 'JSON'"),
        ("DECIMAL(77, 2)", "DECIMAL takes 1 to 76 digits, not 77"),
        (
            "DECIMAL128(39, 2)",
            "DECIMAL128 takes 1 to 38 digits, not 39",
        ),
        ("DECIMAL(0)", "takes 1 to 76 digits"),
        (
            "DECIMAL(5, 6)",
            "the scale of DECIMAL(5, 6) is greater than its precision",
        ),
        ("TIMESTAMP(4)", "0, 3, 6 or 9 digits"),
        ("TIME(2)", "0, 3, 6 or 9 digits"),
        (
            "time32[us]",
            "TIME32 counts seconds (s) or milliseconds (ms)",
        ),
        ("TIME WITH TIME ZONE", "use TIMESTAMP WITH TIME ZONE"),
        ("timestamp[xs]", "expected s, ms, us or ns, found 'xs'"),
        ("FLOAT(54)", "FLOAT takes 1 to 53 bits"),
        ("FLOAT[0]", "a fixed size is from 1 to"),
        ("FLOAT[99999999999]", "a fixed size is from 1 to"),
        ("FLOAT[3", "expected ], found the end of the text"),
        ("STRUCT(a)", "expected a type, found ')'"),
        ("STRUCT()", "expected the name of a field"),
        ("STRUCT(a INT, a INT)", "field 'a' is named twice"),
        ("STRUCT(a INT", "found the end of the text"),
        ("ARRAY<INT", "found the end of the text"),
        ("ARRAY(INT>", "found '>'"),
        ("ARRAY<INT>>", "this '>' closes nothing"),
        ("MAP(INT)", "expected ,"),
        (
            "DICTIONARY(VARCHAR, INT)",
            "the keys of a DICTIONARY are integers",
        ),
        ("INT INT", "found 'INT'"),
        ("", "expected a type, found the end of the text"),
        ("5", "expected a type, found '5'"),
        ("fixed_size_binary", "expected '(' or '['"),
    ] {
        let error = failure(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
    let nested = "ARRAY<".repeat(500);
    assert!(failure(&nested).contains("nested too deeply"));
}

#[test]
fn types_nobody_can_name_are_written_as_arrow_does() {
    let field = Field::new("c", DataType::Interval(IntervalUnit::DayTime), true);
    assert_eq!(type_name(&field), field.data_type().to_string());
    assert_eq!(
        type_name(&Field::new("c", DataType::Utf8View, true)),
        "VARCHAR"
    );
    assert_eq!(
        type_name(&Field::new("c", DataType::BinaryView, true)),
        "BINARY"
    );
}

#[test]
fn names_are_those_that_people_write() {
    for name in [
        "BIGINT",
        "INT",
        "DECIMAL(10, 2)",
        "DECIMAL(50, 2)",
        "DECIMAL256(10, 2)",
        "VARCHAR",
        "DOUBLE",
        "FLOAT[384]",
        "FLOAT[]",
        "LIST<INT NOT NULL>",
        "STRUCT(a INT, b VARCHAR NOT NULL, \"C d\" INT[])",
        "MAP(VARCHAR, INT NOT NULL)",
        "TIMESTAMP(6) WITH TIME ZONE",
        "TIMESTAMP(9) WITH TIME ZONE 'Europe/Berlin'",
        "TIME(6)",
        "BLOB",
    ] {
        assert_eq!(type_name(&parse("c", name).unwrap()), name);
    }
}

/// A type that has a name, at most `depth` deep.
fn random_type(random: &mut StdRng, name: &str, depth: usize) -> Field {
    let unit = match random.random_range(0..4) {
        0 => TimeUnit::Second,
        1 => TimeUnit::Millisecond,
        2 => TimeUnit::Microsecond,
        _ => TimeUnit::Nanosecond,
    };
    let nullable = random.random_bool(0.7);
    let leaves = 21;
    let choice = random.random_range(0..if depth == 0 { leaves } else { leaves + 6 });
    let data_type = match choice {
        0 => SIMPLE[random.random_range(0..SIMPLE.len())].1.clone(),
        1 => DataType::Int32,
        2 => DataType::Int64,
        3 => DataType::UInt16,
        4 => {
            let precision = random.random_range(1..=38);
            DataType::Decimal128(precision, random.random_range(0..=precision) as i8)
        }
        5 => {
            let precision = random.random_range(1..=76);
            DataType::Decimal256(precision, -(random.random_range(0..=precision) as i8))
        }
        6 => DataType::Utf8,
        7 => DataType::LargeUtf8,
        8 => DataType::Binary,
        9 => DataType::LargeBinary,
        10 => DataType::FixedSizeBinary(random.random_range(1..100)),
        11 => match unit {
            TimeUnit::Second | TimeUnit::Millisecond => DataType::Time32(unit),
            other => DataType::Time64(other),
        },
        12 => DataType::Timestamp(unit, None),
        13 => DataType::Timestamp(unit, Some("UTC".into())),
        14 => DataType::Timestamp(unit, Some("America/New_York".into())),
        15 => DataType::Timestamp(unit, Some("-03:30".into())),
        16 => DataType::Duration(unit),
        17 => DataType::Date64,
        18 => return lance::blob_field(name, nullable),
        19 => DataType::Null,
        20 => DataType::Dictionary(Box::new(DataType::UInt8), Box::new(DataType::Utf8)),
        21 => DataType::List(random_type(random, "item", depth - 1).into()),
        22 => DataType::LargeList(random_type(random, "item", depth - 1).into()),
        23 => {
            let length = random.random_range(1..2000);
            DataType::FixedSizeList(random_type(random, "item", depth - 1).into(), length)
        }
        24 => {
            let key = random_type(random, "key", 0).with_nullable(false);
            let value = random_type(random, "value", depth - 1);
            let entries = DataType::Struct(vec![key, value].into());
            DataType::Map(Field::new("entries", entries, false).into(), false)
        }
        _ => {
            let names = [
                "a", "B", "my field", "select", "value", "quo\"te", "ä", "default",
            ];
            let fields: Vec<Field> = names[..random.random_range(1..=names.len())]
                .iter()
                .map(|name| random_type(random, name, depth - 1))
                .collect();
            DataType::Struct(fields.into())
        }
    };
    Field::new(name, data_type, nullable)
}

#[test]
fn what_is_written_reads_back_as_the_same_type() {
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..3000 {
        let field = random_type(&mut random, "c", 3).with_nullable(true);
        let name = type_name(&field);
        match parse("c", &name) {
            Ok(read) => assert_eq!(*read, field, "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn the_planner_takes_our_types_in_casts() {
    use datafusion::sql::sqlparser::ast::Expr;
    let plan = |text: &str| {
        let mut parser = Parser::new(&HeadwaterDialect).try_with_sql(text).unwrap();
        let Expr::Cast { data_type, .. } = parser.parse_expr().unwrap() else {
            panic!("{text} is not a cast");
        };
        TypeNames.plan_type_field(&data_type)
    };
    for (text, expected) in [
        ("x::FLOAT16", Some(DataType::Float16)),
        ("CAST(x AS int8)", Some(DataType::Int8)),
        ("CAST(x AS UTINYINT)", Some(DataType::UInt8)),
        ("CAST(x AS DOUBLE PRECISION)", Some(DataType::Float64)),
        ("CAST(x AS BIGINT UNSIGNED)", Some(DataType::UInt64)),
        (
            "CAST(x AS FLOAT[3])",
            Some(DataType::FixedSizeList(item(DataType::Float32, true), 3)),
        ),
        (
            "CAST(x AS DECIMAL(10, 2))",
            Some(DataType::Decimal128(10, 2)),
        ),
        (
            "CAST(x AS STRUCT<a INT>)",
            Some(DataType::Struct(
                vec![Field::new("a", DataType::Int32, true)].into(),
            )),
        ),
        // Left to the session's settings.
        ("CAST(x AS VARCHAR)", None),
        ("CAST(x AS TIMESTAMP)", None),
        ("CAST(x AS TIMESTAMP WITH TIME ZONE)", None),
    ] {
        let field = plan(text).unwrap();
        assert_eq!(
            field.map(|field| field.data_type().clone()),
            expected,
            "{text}"
        );
    }
    let error = plan("CAST(x AS FLOTA)").unwrap_err().to_string();
    assert!(
        error.contains("unknown type") && error.contains("FLOAT"),
        "{error}"
    );
}
