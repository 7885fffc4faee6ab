//! Fields as definitions record them, and where they are at a version.

use std::collections::BTreeSet;

use lance::Dataset;
use lance_core::datatypes::{Field, Schema};
use serde::{Deserialize, Serialize};

/// A top-level field as a definition records it.
///
/// A name alone does not identify a field: a column that is dropped and added again
/// is another one, and so is one that was cast, while a renamed one is the same.
/// What identifies it is the id together with the type; the id alone does not,
/// because Lance gives the id of a dropped column away again once no file holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldIdentity {
    /// The name at the newest version that the definition speaks of.
    pub name: String,
    /// The id that Lance gave the field.
    pub id: i32,
    /// The type with all its children, as a text that does not change between
    /// releases. Whether NULL is allowed is no part of it.
    pub data_type: String,
}

impl FieldIdentity {
    /// The top-level field `name` at the version that `dataset` is checked out at;
    /// `None` when there is none. The name is taken as it is: no path, no quotes.
    pub fn of(dataset: &Dataset, name: &str) -> Option<Self> {
        let field = dataset.schema().fields.iter().find(|f| f.name == name)?;
        Some(Self {
            name: field.name.clone(),
            id: field.id,
            data_type: type_text(field),
        })
    }
}

/// A field's type as Lance itself stores it, with the children of nested types.
/// Names count for the fields of a struct only: lists call their items differently
/// from writer to writer.
fn type_text(field: &Field) -> String {
    let kind = field.logical_type.to_string();
    if field.children.is_empty() {
        return kind;
    }
    let children: Vec<String> = field
        .children
        .iter()
        .map(|child| match field.logical_type.is_struct() {
            true => format!("{}: {}", child.name, type_text(child)),
            false => type_text(child),
        })
        .collect();
    format!("{kind}<{}>", children.join(", "))
}

/// Adds the ids of a field and all its children.
fn collect_ids(field: &Field, ids: &mut BTreeSet<i32>) {
    ids.insert(field.id);
    for child in &field.children {
        collect_ids(child, ids);
    }
}

/// The fields of a delta, found in the schema at its end.
#[derive(Debug)]
pub(super) struct Inputs {
    /// The top-level fields.
    fields: Vec<Field>,
    /// Their ids and those of all their children: files may hold some of them only.
    ids: BTreeSet<i32>,
}

impl Inputs {
    /// Finds the fields by name; `None` when one is gone or is another field now.
    pub(super) fn resolve(schema: &Schema, identities: &[FieldIdentity]) -> Option<Self> {
        let mut inputs = Self {
            fields: Vec::with_capacity(identities.len()),
            ids: BTreeSet::new(),
        };
        for identity in identities {
            let field = schema.fields.iter().find(|f| f.name == identity.name)?;
            if field.id != identity.id || type_text(field) != identity.data_type {
                return None;
            }
            collect_ids(field, &mut inputs.ids);
            inputs.fields.push(field.clone());
        }
        Some(inputs)
    }

    /// Whether the same fields are there in another version's schema, under whatever
    /// names: same id, same type, same children.
    pub(super) fn present_in(&self, schema: &Schema) -> bool {
        self.fields.iter().all(|field| {
            schema.fields.iter().any(|other| {
                other.id == field.id && {
                    let (mut ids, mut others) = (BTreeSet::new(), BTreeSet::new());
                    collect_ids(field, &mut ids);
                    collect_ids(other, &mut others);
                    ids == others && type_text(field) == type_text(other)
                }
            })
        })
    }

    /// Whether there is no field at all.
    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Whether an id is that of one of the fields or of a child of one.
    pub(super) fn holds(&self, id: i32) -> bool {
        self.ids.contains(&id)
    }

    /// Whether one of the ids is that of a top-level field of the delta.
    pub(super) fn name_any(&self, ids: &BTreeSet<i32>) -> bool {
        self.fields.iter().any(|field| ids.contains(&field.id))
    }

    /// The top-level field with this id, in a schema that has it.
    pub(super) fn find(schema: &Schema, id: i32) -> Option<&Field> {
        schema.fields.iter().find(|field| field.id == id)
    }
}
