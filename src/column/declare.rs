//! Declaring computed columns: from expressions to definitions, checked.

use std::collections::BTreeSet;

use datafusion::arrow::compute::can_cast_types;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::execution::SessionState;

use crate::database::definition::{ComputedColumn, Definitions, VirtualColumn};
use crate::database::expression::{plan_expression, type_error, volatile_function};
use crate::storage::blob::{is_binary, is_blob, is_descriptor};
use crate::{Error, ErrorKind, Result};

/// A computed column as a statement declares it.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// Its name.
    pub name: String,
    /// The declared column, with its metadata; `None` to take the expression's type.
    pub field: Option<Field>,
    /// SQL text of the expression.
    pub expression: String,
    /// The field of the expression's struct that becomes the column; `None` to take it whole.
    pub struct_field: Option<String>,
    /// Whether it is computed when read.
    pub is_virtual: bool,
}

/// What declarations come to.
#[derive(Debug, Default)]
pub struct Declared {
    /// Fields to add for the stored ones, with the definitions in their metadata.
    pub fields: Vec<Field>,
    /// The virtual ones.
    pub virtuals: Vec<VirtualColumn>,
}

/// Checks `declarations` against the columns that are there (`schema`, virtual ones too) and their
/// `definitions`. They may read one another, in any order.
///
/// # Errors
///
/// For an unknown column, a cycle, a type that does not fit, a volatile expression of a stored
/// column, an aggregate or a subquery.
pub fn declare(
    state: &SessionState,
    schema: &Schema,
    definitions: &Definitions,
    declarations: &[Declaration],
) -> Result<Declared> {
    let mut visible: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .filter(|field| !declarations.iter().any(|d| d.name == *field.name()))
        .collect();
    visible.extend(declarations.iter().filter_map(|d| d.field.clone()));
    let mut waiting: Vec<&Declaration> = declarations.iter().collect();
    let mut combined = definitions.clone();
    let mut declared = Declared::default();
    // Each round settles those whose inputs have a type; one without a type makes the next wait.
    while !waiting.is_empty() {
        let mut unsettled = Vec::new();
        let mut failure = None;
        for declaration in &waiting {
            let columns = Schema::new(
                visible
                    .iter()
                    .filter(|field| {
                        // A column can't read itself, unless it has a declared type: that is
                        // told as a cycle below.
                        declaration.field.is_some() || *field.name() != declaration.name
                    })
                    .cloned()
                    .collect::<Vec<_>>(),
            );
            match settle(state, &columns, declaration) {
                Ok(settled) => {
                    if declaration.field.is_none() {
                        visible.push(Field::new(
                            &declaration.name,
                            settled.data_type.clone(),
                            true,
                        ));
                    }
                    add(&mut declared, &mut combined, declaration, settled)?;
                }
                Err(error) => {
                    failure.get_or_insert(error);
                    unsettled.push(*declaration);
                }
            }
        }
        if let (true, Some(error)) = (unsettled.len() == waiting.len(), failure) {
            return Err(cycle_of_untyped(&unsettled).unwrap_or(error));
        }
        waiting = unsettled;
    }
    for declaration in declarations {
        check_cycle(&combined, &declaration.name)?;
    }
    Ok(declared)
}

/// Fails if `column` reads itself through its inputs.
fn check_cycle(definitions: &Definitions, column: &str) -> Result<()> {
    let cycle = definitions.inputs_of(column).and_then(|inputs| {
        inputs
            .iter()
            .find_map(|input| definitions.path(input, column))
    });
    match cycle {
        Some(path) => Err(cycle_error(column, &path)),
        None => Ok(()),
    }
}

fn cycle_error(column: &str, path: &[String]) -> Error {
    Error::invalid(format!(
        "computed column '{column}' would read itself: {column} → {}",
        path.join(" → ")
    ))
    .with_hint(
        "a computed column can read plain columns and other computed ones, but not in a circle",
    )
}

/// Untyped columns that read only one another never get a type.
fn cycle_of_untyped(waiting: &[&Declaration]) -> Option<Error> {
    let names: BTreeSet<&str> = waiting.iter().map(|d| d.name.as_str()).collect();
    let first = waiting.first()?;
    let mentions = |text: &str, name: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == name)
    };
    let all_blocked = waiting
        .iter()
        .all(|d| names.iter().any(|name| mentions(&d.expression, name)));
    all_blocked.then(|| {
        let path: Vec<String> = names.iter().map(ToString::to_string).collect();
        cycle_error(&first.name, &path)
    })
}

struct Settled {
    data_type: DataType,
    inputs: BTreeSet<String>,
}

/// Plans the expression of one declaration, and finds the type of the column.
fn settle(state: &SessionState, schema: &Schema, declaration: &Declaration) -> Result<Settled> {
    let purpose = format!("computed column '{}'", declaration.name);
    let planned = plan_expression(state, schema, &declaration.expression, &purpose)?;
    if let (false, Some(function)) = (declaration.is_virtual, volatile_function(&planned.logical)) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{purpose}: {function}() does not always give the same result"),
        )
        .with_hint(
            "declare the column VIRTUAL, or leave out what depends on the time or on chance",
        ));
    }
    let result = match &declaration.struct_field {
        None => planned.data_type,
        Some(name) => {
            field_type(&planned.data_type, name).map_err(|error| error.context(&purpose))?
        }
    };
    let data_type = match &declaration.field {
        None if result == DataType::Null => {
            return Err(Error::invalid(format!(
                "{purpose}: the expression is always NULL, so it gives no type"
            ))
            .with_hint("declare the column's type"));
        }
        None if is_descriptor(&result) && !declaration.is_virtual => {
            return Err(
                Error::invalid(format!("{purpose}: the expression gives a BLOB"))
                    .with_hint("declare the column's type: BLOB copies the bytes"),
            );
        }
        None => result,
        Some(field) if is_blob(field) => {
            if declaration.is_virtual {
                return Err(
                    Error::invalid(format!("{purpose}: a virtual column can't be BLOB"))
                        .with_hint("leave the type out"),
                );
            }
            if !is_descriptor(&result) && !is_binary(&result) {
                return Err(Error::invalid(format!(
                    "column '{}' is BLOB, but the expression gives {result}",
                    declaration.name
                )));
            }
            field.data_type().clone()
        }
        Some(field) => {
            if *field.data_type() != result && !is_assignable(&result, field.data_type()) {
                return Err(type_error(&declaration.name, &result, field.data_type()));
            }
            field.data_type().clone()
        }
    };
    Ok(Settled {
        data_type,
        inputs: planned.inputs,
    })
}

/// The type of one field of a struct.
fn field_type(data_type: &DataType, name: &str) -> Result<DataType> {
    let DataType::Struct(fields) = data_type else {
        return Err(Error::invalid(format!(
            "ADD COLUMNS takes the fields of a struct, but the expression gives {data_type}"
        )));
    };
    match fields.iter().find(|field| field.name() == name) {
        Some(field) => Ok(field.data_type().clone()),
        None => Err(Error::not_found(
            "field",
            name,
            fields.iter().map(|field| field.name().as_str()),
        )),
    }
}

/// Whether a result of type `from` is stored in a column of type `to` without being asked:
/// between numbers, between strings, and between points in time; not from text to numbers.
pub(crate) fn is_assignable(from: &DataType, to: &DataType) -> bool {
    let is_text =
        |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let is_binary = |t: &DataType| {
        matches!(
            t,
            DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
                | DataType::FixedSizeBinary(_)
        )
    };
    if !can_cast_types(from, to) {
        return false;
    }
    match (from, to) {
        (DataType::Null, _) => true,
        (from, to) if from.is_numeric() && to.is_numeric() => true,
        (from, to) if is_text(from) && is_text(to) => true,
        (from, to) if is_binary(from) && is_binary(to) => true,
        (from, to) if from.is_temporal() && to.is_temporal() => {
            std::mem::discriminant(from) == std::mem::discriminant(to)
                || matches!(
                    (from, to),
                    (DataType::Date32 | DataType::Date64, DataType::Timestamp(..))
                        | (DataType::Date32, DataType::Date64)
                )
        }
        (from, to) if from.is_nested() && to.is_nested() => same_shape(from, to),
        (DataType::Dictionary(_, value), to) => is_assignable(value, to),
        (from, DataType::Dictionary(_, value)) => is_assignable(from, value),
        _ => from == to,
    }
}

/// Whether nested types have the same structure, with items that can be assigned.
fn same_shape(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (
            DataType::List(a) | DataType::LargeList(a) | DataType::FixedSizeList(a, _),
            DataType::List(b) | DataType::LargeList(b) | DataType::FixedSizeList(b, _),
        ) => a.data_type() == b.data_type() || is_assignable(a.data_type(), b.data_type()),
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| {
                    a.name() == b.name()
                        && (a.data_type() == b.data_type()
                            || is_assignable(a.data_type(), b.data_type()))
                })
        }
        _ => from == to,
    }
}

/// Adds what a settled declaration comes to.
fn add(
    declared: &mut Declared,
    combined: &mut Definitions,
    declaration: &Declaration,
    settled: Settled,
) -> Result<()> {
    let name = declaration.name.clone();
    if declaration.is_virtual {
        let column = VirtualColumn {
            name: name.clone(),
            expression: declaration.expression.clone(),
            data_type: declaration
                .field
                .as_ref()
                .map(|field| field.data_type().to_string()),
            input_names: settled.inputs,
        };
        combined.stored.remove(&name);
        combined.virtuals.retain(|other| other.name != name);
        combined.virtuals.push(column.clone());
        declared.virtuals.push(column);
        return Ok(());
    }
    let column = ComputedColumn {
        name: name.clone(),
        expression: declaration.expression.clone(),
        struct_field: declaration.struct_field.clone(),
        input_names: settled.inputs,
    };
    let mut metadata = declaration
        .field
        .as_ref()
        .map(|field| field.metadata().clone())
        .unwrap_or_default();
    metadata.extend(column.field_metadata()?);
    declared
        .fields
        .push(Field::new(&name, settled.data_type, true).with_metadata(metadata));
    combined.virtuals.retain(|other| other.name != name);
    combined.stored.insert(name, column);
    Ok(())
}
