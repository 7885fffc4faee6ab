//! Which filters Lance evaluates exactly as DataFusion does.
//!
//! Only what is certain to give the same rows, and no error, may be pushed down;
//! the rest stays in a filter above the scan. Known differences, and so refused:
//!
//! - Lance compares with a zero as IEEE 754 says (`-0.0 = 0.0`), DataFusion by
//!   total order.
//! - Lance evaluates without the session: functions that read its settings (the
//!   time zone, say) would see the defaults. It matches some functions by name.
//! - An expression that fails on a row would fail below filters that leave this
//!   row out, and as an error of the store. So divisions are by a constant.
//! - Lance limits the depth of an expression.
//! - Blobs and JSON are stored as something else than the scan shows.

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::ScalarValue;
use datafusion::functions::core::get_field;
use datafusion::functions::{string, unicode};
use datafusion::logical_expr::expr::{Cast, InList, ScalarFunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use lance::arrow::ARROW_EXT_NAME_KEY;

use super::row_field;
use crate::storage::blob::is_descriptor;
use crate::storage::keys::is_of_keys;

/// Marks a field that is stored as a blob of the first kind.
const BLOB: &str = "lance-encoding:blob";

/// Well below the depth at which Lance refuses an expression.
const MAX_DEPTH: usize = 100;

/// Whether Lance's scanner selects exactly the rows for which `filter`, whose types
/// agree already, is true over a table of `schema`.
///
/// Columns are looked up by name alone; `_rowid` and `_rowaddr` count as columns.
pub fn can_push_down(filter: &Expr, schema: &Schema) -> bool {
    type_of(filter, schema, 0) == Some(DataType::Boolean)
}

/// The type of `expr` if it may be pushed down, or be a part of what is.
fn type_of(expr: &Expr, schema: &Schema, depth: usize) -> Option<DataType> {
    if depth > MAX_DEPTH {
        return None;
    }
    let inner = |expr: &Expr| type_of(expr, schema, depth + 1);
    let boolean = |expr: &Expr| inner(expr).filter(|t| *t == DataType::Boolean);
    match expr {
        Expr::Alias(alias) => inner(&alias.expr),
        Expr::Column(column) => column_type(column.name(), schema),
        Expr::Literal(value, _) => literal_type(value),
        Expr::Not(e)
        | Expr::IsTrue(e)
        | Expr::IsFalse(e)
        | Expr::IsUnknown(e)
        | Expr::IsNotTrue(e)
        | Expr::IsNotFalse(e)
        | Expr::IsNotUnknown(e) => boolean(e),
        Expr::IsNull(e) | Expr::IsNotNull(e) => {
            let known = match e.as_ref() {
                // Also of a struct or a list.
                Expr::Column(column) => {
                    find(column.name(), schema).is_some_and(|f| is_shown_as_stored(&f))
                }
                other => inner(other).is_some(),
            };
            known.then_some(DataType::Boolean)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (of_left, of_right) = (inner(left)?, inner(right)?);
            match op {
                Operator::Divide | Operator::Modulo => {
                    let is_safe = of_left.is_integer() && of_left == of_right && divides(right);
                    is_safe.then_some(of_left)
                }
                _ => binary_type(of_left, *op, of_right),
            }
        }
        Expr::Between(between) => {
            let t = inner(&between.expr)?;
            (inner(&between.low)? == t && inner(&between.high)? == t).then_some(DataType::Boolean)
        }
        Expr::InList(InList { expr, list, .. }) => {
            let t = inner(expr)?;
            list.iter()
                .all(|item| matches!(item, Expr::Literal(..)) && inner(item).as_ref() == Some(&t))
                .then_some(DataType::Boolean)
        }
        Expr::Like(like) => {
            let t = inner(&like.expr)?;
            let plain = matches!(like.pattern.as_ref(), Expr::Literal(..))
                && like.escape_char.is_none_or(|c| c == '\\');
            (plain && is_text(&t) && inner(&like.pattern)? == t).then_some(DataType::Boolean)
        }
        Expr::Case(case) => {
            let of = match &case.expr {
                Some(of) => inner(of)?,
                None => DataType::Boolean,
            };
            let conditions = || case.when_then_expr.iter().map(|(when, _)| when);
            let mut results = case
                .when_then_expr
                .iter()
                .map(|(_, then)| then)
                .chain(&case.else_expr);
            let t = inner(results.next()?)?;
            let same = conditions().all(|when| inner(when).as_ref() == Some(&of))
                && results.all(|result| inner(result).as_ref() == Some(&t));
            same.then_some(t)
        }
        Expr::Cast(Cast { expr, field }) => {
            // Casts of literals have been folded, unless they fail.
            let column = !matches!(expr.as_ref(), Expr::Literal(..));
            (column && widens(&inner(expr)?, field.data_type())).then(|| field.data_type().clone())
        }
        Expr::ScalarFunction(call) => function_type(call, schema, depth),
        _ => None,
    }
}

fn column_type(name: &str, schema: &Schema) -> Option<DataType> {
    let field = find(name, schema)?;
    (is_shown_as_stored(&field) && is_plain(field.data_type())).then(|| field.data_type().clone())
}

fn find(name: &str, schema: &Schema) -> Option<FieldRef> {
    match row_field(name) {
        Some(field) => Some(field.into()),
        None => schema.fields().find(name).map(|(_, field)| field.clone()),
    }
}

/// Whether Lance finds `field` by its name in an expression, and stores what it shows.
fn is_shown_as_stored(field: &Field) -> bool {
    let metadata = field.metadata();
    !field.name().contains(['.', '`'])
        && !metadata.contains_key(ARROW_EXT_NAME_KEY)
        && !metadata.contains_key(BLOB)
        && !is_descriptor(field.data_type())
}

/// Types whose values Lance and DataFusion compare with the same kernels.
fn is_plain(t: &DataType) -> bool {
    matches!(
        t,
        DataType::Boolean
            | DataType::Float32
            | DataType::Float64
            | DataType::Decimal128(_, _)
            | DataType::Date32
            | DataType::Date64
            | DataType::Timestamp(_, _)
            | DataType::Time32(_)
            | DataType::Time64(_)
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::FixedSizeBinary(_)
    ) || t.is_integer()
        || is_text(t)
}

fn is_text(t: &DataType) -> bool {
    matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn literal_type(value: &ScalarValue) -> Option<DataType> {
    let exact = match value {
        // A zero is where the two differ, and NaN is not worth a thought.
        ScalarValue::Float32(Some(v)) => *v != 0.0 && !v.is_nan(),
        ScalarValue::Float64(Some(v)) => *v != 0.0 && !v.is_nan(),
        _ => true,
    };
    let t = value.data_type();
    (exact && is_plain(&t)).then_some(t)
}

fn binary_type(left: DataType, op: Operator, right: DataType) -> Option<DataType> {
    if left != right {
        return None;
    }
    match op {
        Operator::And | Operator::Or => (left == DataType::Boolean).then_some(left),
        Operator::Eq
        | Operator::NotEq
        | Operator::Lt
        | Operator::LtEq
        | Operator::Gt
        | Operator::GtEq
        | Operator::IsDistinctFrom
        | Operator::IsNotDistinctFrom => Some(DataType::Boolean),
        // These wrap around; for divisions see `divides`.
        Operator::Plus | Operator::Minus | Operator::Multiply => {
            (left.is_integer() || left.is_floating()).then_some(left)
        }
        _ => None,
    }
}

/// Whether every integer can be divided by this one: not by 0, and the least not by -1.
fn divides(divisor: &Expr) -> bool {
    let Expr::Literal(value, _) = divisor else {
        return false;
    };
    let value = value.cast_to(&DataType::Int64);
    matches!(value, Ok(ScalarValue::Int64(Some(value))) if value > 0)
}

/// Whether every value of `from` becomes one of `to`.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    match (from, to) {
        (from, to) if from == to => true,
        (from, to) if is_text(from) && is_text(to) => true,
        (from, Float64) => from.is_integer() || *from == Float32,
        (Int8, Int16 | Int32 | Int64)
        | (Int16, Int32 | Int64)
        | (Int32, Int64)
        | (UInt8, UInt16 | UInt32 | UInt64 | Int16 | Int32 | Int64)
        | (UInt16, UInt32 | UInt64 | Int32 | Int64)
        | (UInt32, UInt64 | Int64) => true,
        _ => false,
    }
}

fn function_type(call: &ScalarFunction, schema: &Schema, depth: usize) -> Option<DataType> {
    if call.func == get_field() {
        return nested_type(&call.args, schema);
    }
    let args = call
        .args
        .iter()
        .map(|arg| type_of(arg, schema, depth + 1))
        .collect::<Option<Vec<_>>>()?;
    if is_of_keys(&call.func) {
        return call.func.return_type(&args).ok();
    }
    if !args.iter().all(is_text) {
        return None;
    }
    // Compared whole, not by name: a user may have put a function of their own in
    // the place of one of these.
    let func = &call.func;
    if [
        string::starts_with(),
        string::ends_with(),
        string::contains(),
    ]
    .contains(func)
    {
        Some(DataType::Boolean)
    } else if [
        string::lower(),
        string::upper(),
        unicode::character_length(),
    ]
    .contains(func)
    {
        func.return_type(&args).ok()
    } else {
        None
    }
}

/// The type of a field of a struct column: `get_field(s, 'a', …)`.
fn nested_type(args: &[Expr], schema: &Schema) -> Option<DataType> {
    let (Expr::Column(column), path) = args.split_first()? else {
        return None;
    };
    let mut field = find(column.name(), schema).filter(|f| is_shown_as_stored(f))?;
    for part in path {
        let Expr::Literal(ScalarValue::Utf8(Some(name)), _) = part else {
            return None;
        };
        let DataType::Struct(children) = field.data_type() else {
            return None;
        };
        let (_, child) = children.find(name)?;
        field = Some(child.clone()).filter(|f| is_shown_as_stored(f))?;
    }
    is_plain(field.data_type()).then(|| field.data_type().clone())
}
