//! Types by name: SQL's, and Arrow's own, in any case.
//!
//! [`parse`] reads a type, [`type_name`] writes it, and what is written reads back as the same
//! type. `INT8` is Arrow's int8, eight bits, not PostgreSQL's eight bytes. The
//! precision of a time or timestamp is 0, 3, 6 or 9 digits of a second, 9 if left out. Lengths of
//! texts and byte strings and display widths of integers are accepted and ignored.
//!
//! | SQL | Arrow |
//! |---|---|
//! | `TINYINT` `SMALLINT` `INT` `BIGINT` | int8 … int64 |
//! | `UTINYINT` `USMALLINT` `UINTEGER` `UBIGINT`, or `UNSIGNED` after the others | uint8 … uint64 |
//! | `FLOAT16`, `FLOAT` or `REAL`, `DOUBLE` | float16, float32, float64 |
//! | `DECIMAL(p, s)` | decimal128, from 39 digits on decimal256 |
//! | `BOOLEAN`, `VARCHAR`, `BINARY`, `FIXED_SIZE_BINARY(n)` | bool, utf8, binary, fixed_size_binary |
//! | `DATE`, `TIME(p)`, `TIMESTAMP(p) [WITH TIME ZONE ['zone']]` (UTC), `DURATION(p)` | date32, … |
//! | `FLOAT[384]`, `FLOAT[]`, `STRUCT(a INT, b VARCHAR)`, `MAP(VARCHAR, INT)` | fixed-size list, list, … |
//! | `BLOB` | a blob of Lance |

mod reader;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::format::quote_identifier;
use super::parser::dialect::HeadwaterDialect;
use super::parser::failure::Read;
use crate::Result;
use crate::storage::blob;

pub(super) use reader::read;

/// Reads a type, as a nullable field called `name`, whose metadata marks a blob.
///
/// # Errors
///
/// [`ErrorKind::Syntax`](crate::ErrorKind::Syntax) if `text` is not a type; names the nearest that is.
pub fn parse(name: &str, text: &str) -> Result<FieldRef> {
    let read = || -> Read<FieldRef> {
        let tokens = Tokenizer::new(&HeadwaterDialect, text).tokenize_with_location()?;
        let mut parser = Parser::new(&HeadwaterDialect).with_tokens_with_locations(tokens);
        let field = read(&mut parser, name, true)?;
        parser.expect_token(&Token::EOF)?;
        Ok(field)
    };
    read().map_err(|failure| failure.into_error(text))
}

/// Gives DataFusion's planner our types, for casts.
#[derive(Debug, Clone, Copy, Default)]
pub struct TypeNames;

impl TypePlanner for TypeNames {
    fn plan_type_field(
        &self,
        sql_type: &ast::DataType,
    ) -> datafusion::common::Result<Option<FieldRef>> {
        use ast::DataType as Sql;
        match sql_type {
            // These follow settings of the session: the width of its strings, its time zone.
            Sql::Varchar(_) | Sql::Char(_) | Sql::Text | Sql::String(_) | Sql::Timestamp(..) => {
                Ok(None)
            }
            other => match parse("", &other.to_string()) {
                Ok(field) if is_blob(&field) => Ok(None),
                Ok(field) => Ok(Some(field)),
                Err(error) => Err(DataFusionError::from(error)),
            },
        }
    }
}

/// Whether `field` is a blob of Lance, as it is stored or as a scan shows it.
pub fn is_blob(field: &Field) -> bool {
    blob::is_blob(field) || blob::is_descriptor(field.data_type())
}

/// Our name of a field's type, without name and nullability of the field itself.
/// [`parse`] reads it as the same type; types that no name stands for are written as Arrow does.
pub fn type_name(field: &Field) -> String {
    if is_blob(field) {
        return "BLOB".to_string();
    }
    let element = |field: &Field| {
        let not_null = if field.is_nullable() { "" } else { " NOT NULL" };
        format!("{}{not_null}", type_name(field))
    };
    match field.data_type() {
        DataType::Null => "NULL".to_string(),
        DataType::Boolean => "BOOLEAN".to_string(),
        DataType::Int8 => "TINYINT".to_string(),
        DataType::Int16 => "SMALLINT".to_string(),
        DataType::Int32 => "INT".to_string(),
        DataType::Int64 => "BIGINT".to_string(),
        DataType::UInt8 => "UTINYINT".to_string(),
        DataType::UInt16 => "USMALLINT".to_string(),
        DataType::UInt32 => "UINTEGER".to_string(),
        DataType::UInt64 => "UBIGINT".to_string(),
        DataType::Float16 => "FLOAT16".to_string(),
        DataType::Float32 => "FLOAT".to_string(),
        DataType::Float64 => "DOUBLE".to_string(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Decimal256(precision, scale) if *precision > 38 => {
            format!("DECIMAL({precision}, {scale})")
        }
        DataType::Decimal256(precision, scale) => format!("DECIMAL256({precision}, {scale})"),
        DataType::Utf8 | DataType::Utf8View => "VARCHAR".to_string(),
        DataType::LargeUtf8 => "LARGE_UTF8".to_string(),
        DataType::Binary | DataType::BinaryView => "BINARY".to_string(),
        DataType::LargeBinary => "LARGE_BINARY".to_string(),
        DataType::FixedSizeBinary(length) => format!("FIXED_SIZE_BINARY({length})"),
        DataType::Date32 => "DATE".to_string(),
        DataType::Date64 => "DATE64".to_string(),
        DataType::Time32(unit) | DataType::Time64(unit) => format!("TIME({})", digits(*unit)),
        DataType::Timestamp(unit, None) => format!("TIMESTAMP({})", digits(*unit)),
        DataType::Timestamp(unit, Some(zone)) if zone.as_ref() == "UTC" => {
            format!("TIMESTAMP({}) WITH TIME ZONE", digits(*unit))
        }
        DataType::Timestamp(unit, Some(zone)) => format!(
            "TIMESTAMP({}) WITH TIME ZONE '{}'",
            digits(*unit),
            zone.replace('\'', "''")
        ),
        DataType::Duration(unit) => format!("DURATION({})", digits(*unit)),
        DataType::Interval(IntervalUnit::MonthDayNano) => "INTERVAL".to_string(),
        DataType::List(item) if item.is_nullable() => format!("{}[]", type_name(item)),
        DataType::List(item) => format!("LIST<{}>", element(item)),
        DataType::LargeList(item) => format!("LARGE_LIST<{}>", element(item)),
        DataType::FixedSizeList(item, length) if item.is_nullable() => {
            format!("{}[{length}]", type_name(item))
        }
        DataType::FixedSizeList(item, length) => {
            format!("FIXED_SIZE_LIST<{}, {length}>", element(item))
        }
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{} {}", quote_identifier(field.name()), element(field)))
                .collect();
            format!("STRUCT({})", fields.join(", "))
        }
        DataType::Map(entries, false) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                format!("MAP({}, {})", type_name(&fields[0]), element(&fields[1]))
            }
            _ => field.data_type().to_string(),
        },
        DataType::Dictionary(key, value) => format!(
            "DICTIONARY({}, {})",
            type_name(&Field::new("", key.as_ref().clone(), true)),
            type_name(&Field::new("", value.as_ref().clone(), true))
        ),
        other => other.to_string(),
    }
}

/// How many digits of a second a unit counts.
fn digits(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}

#[cfg(test)]
mod tests;
