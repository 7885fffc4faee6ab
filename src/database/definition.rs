//! Definitions of computed columns, as they are stored with the table.
//!
//! The definition of a STORED column is in the metadata of its field, so it is
//! committed with the column, renamed with it and dropped with it. A VIRTUAL
//! column has no field; its definition is in the schema's metadata.
//!
//! The keys `computed_column*` are those that LanceDB writes, so that its
//! clients see these columns as computed; the keys `headwater.*` hold what only
//! Headwater needs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use datafusion::arrow::datatypes::{Field, Schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, ErrorKind, Result};

const COMPUTED: &str = "computed_column";
const KIND: &str = "computed_column.kind";
const SQL_KIND: &str = "sql";
const EXPRESSION: &str = "computed_column.expression";
const INPUTS: &str = "computed_column.inputs";
/// LanceDB notes here which inputs each fragment was computed from; it treats a
/// column without this key as one that it can't keep track of.
const SOURCE_SIGNATURE: &str = "computed_refresh.source_signature";
const DEFINITION: &str = "headwater.definition";
/// Field metadata: the SQL text of a column's DEFAULT.
pub const DEFAULT: &str = "headwater.default";
/// Field metadata: "true" for a stored column that is left out of what users see: it serves the maintenance
/// of the table. Other programs see it as any other.
pub const HIDDEN: &str = "headwater.hidden";
/// Schema metadata: the virtual columns, as a JSON array. An overwrite of the table drops it
/// together with the columns it speaks of.
pub const VIRTUAL_COLUMNS: &str = "headwater.virtual_columns";

/// Whether `field` is a [hidden](HIDDEN) column.
pub fn is_hidden(field: &Field) -> bool {
    field.metadata().get(HIDDEN).is_some_and(|v| v == "true")
}

/// The columns of `schema` that are not [hidden](HIDDEN).
pub fn shown_columns(schema: &Schema) -> Schema {
    let fields = schema.fields().iter().filter(|field| !is_hidden(field));
    let fields: Vec<_> = fields.cloned().collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

/// How a column is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputedColumn {
    /// The column's name.
    pub name: String,
    /// SQL text of the expression over the table's other columns.
    pub expression: String,
    /// For a column made of one field of a struct-valued expression: the field's name.
    /// Columns with the same expression that take a field of it are computed together.
    pub struct_field: Option<String>,
    /// Names of the columns that the expression reads; also those that are virtual.
    pub input_names: BTreeSet<String>,
}

/// What the key `headwater.definition` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    struct_field: Option<String>,
    input_names: BTreeSet<String>,
    /// Another one each time that the definition is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

/// The id of the declaration in the metadata of a field: of two columns that had the same field id or the
/// same expression one after the other, it tells which one is meant. `None` for a plain column, and for one
/// that LanceDB declared.
pub fn declaration_id(metadata: &HashMap<String, String>) -> Option<String> {
    let stored: Stored = serde_json::from_str(metadata.get(DEFINITION)?).ok()?;
    stored.id
}

impl ComputedColumn {
    /// Identifies the definition: everything that a value depends on but the inputs
    /// themselves, whose identity a column's state records. 16 hexadecimal digits of SHA-256.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.expression.as_bytes());
        hasher.update([0]);
        hasher.update(self.struct_field.as_deref().unwrap_or_default().as_bytes());
        hasher.finalize()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The metadata to put on the column's field, as a declaration of its own.
    pub fn field_metadata(&self) -> Result<HashMap<String, String>> {
        let stored = Stored {
            struct_field: self.struct_field.clone(),
            input_names: self.input_names.clone(),
            id: Some(uuid::Uuid::new_v4().simple().to_string()),
        };
        let expression = match &self.struct_field {
            Some(field) => format!(
                "get_field({}, '{}')",
                self.expression,
                field.replace('\'', "''")
            ),
            None => self.expression.clone(),
        };
        Ok(HashMap::from([
            (COMPUTED.to_string(), "true".to_string()),
            (KIND.to_string(), SQL_KIND.to_string()),
            (EXPRESSION.to_string(), expression),
            (INPUTS.to_string(), json(&self.input_names)?),
            (SOURCE_SIGNATURE.to_string(), "{}".to_string()),
            (DEFINITION.to_string(), json(&stored)?),
        ]))
    }

    /// Keys of [`field_metadata`](Self::field_metadata), and those that LanceDB adds:
    /// what goes when the column becomes a plain one.
    pub fn is_definition_key(key: &str) -> bool {
        key == COMPUTED
            || key == DEFINITION
            || key.starts_with("computed_column.")
            || key.starts_with("computed_refresh.")
    }

    /// The definition of the column that `field` is, if it is a computed one.
    ///
    /// # Errors
    ///
    /// If the field is marked as computed, but by something that this version does not understand.
    pub fn of_field(field: &Field) -> Result<Option<Self>> {
        let metadata = field.metadata();
        if !Definitions::is_definition(field) {
            return Ok(None);
        }
        let name = field.name();
        if metadata.get(KIND).map(String::as_str) != Some(SQL_KIND) {
            let kind = metadata.get(KIND).map_or("unknown", String::as_str);
            return Err(Error::new(
                ErrorKind::NotAvailable,
                format!(
                    "column '{name}' is computed by something of the kind '{kind}', which this version can't run"
                ),
            ));
        }
        let expression = metadata
            .get(EXPRESSION)
            .ok_or_else(|| unreadable(name, "it has no expression"))?;
        let Some(stored) = metadata.get(DEFINITION) else {
            // Declared by LanceDB: the same expression, without what only we record.
            let input_names = metadata
                .get(INPUTS)
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default();
            return Ok(Some(Self {
                name: name.clone(),
                expression: expression.clone(),
                struct_field: None,
                input_names,
            }));
        };
        let stored: Stored =
            serde_json::from_str(stored).map_err(|error| unreadable(name, &error.to_string()))?;
        let expression = match &stored.struct_field {
            Some(field) => expression
                .strip_prefix("get_field(")
                .and_then(|rest| rest.strip_suffix(&format!(", '{}')", field.replace('\'', "''"))))
                .ok_or_else(|| unreadable(name, "expression and struct field differ"))?
                .to_string(),
            None => expression.clone(),
        };
        Ok(Some(Self {
            name: name.clone(),
            expression,
            struct_field: stored.struct_field,
            input_names: stored.input_names,
        }))
    }
}

/// A column that is computed when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualColumn {
    /// The column's name.
    pub name: String,
    /// SQL text of the expression over the table's other columns.
    pub expression: String,
    /// The declared type as Arrow writes it; `None` to take the expression's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_type: Option<String>,
    /// Names of the columns that the expression reads.
    pub input_names: BTreeSet<String>,
}

/// All computed columns of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definitions {
    /// Those that are stored, by name.
    pub stored: BTreeMap<String, ComputedColumn>,
    /// Those that are computed when read, in the order of their declaration.
    pub virtuals: Vec<VirtualColumn>,
    /// Columns that are marked as computed, but whose definitions this version can't use, and why.
    /// They can be read, not refreshed and not written.
    pub unusable: BTreeMap<String, String>,
}

impl Definitions {
    /// Reads the definitions out of a table's schema.
    pub fn read(schema: &Schema) -> Self {
        let mut definitions = Self::default();
        for field in schema.fields() {
            match ComputedColumn::of_field(field) {
                Ok(Some(column)) => {
                    definitions.stored.insert(column.name.clone(), column);
                }
                Ok(None) => {}
                Err(error) => {
                    let why = error.message().to_string();
                    definitions.unusable.insert(field.name().clone(), why);
                }
            }
        }
        match schema
            .metadata()
            .get(VIRTUAL_COLUMNS)
            .map(|text| serde_json::from_str(text))
        {
            Some(Ok(virtuals)) => definitions.virtuals = virtuals,
            Some(Err(error)) => {
                let why = format!("the definitions of virtual columns can't be read: {error}");
                definitions
                    .unusable
                    .insert(VIRTUAL_COLUMNS.to_string(), why);
            }
            None => {}
        }
        definitions
    }

    /// Fails if others have added a stored column with the name of a virtual one.
    pub fn check_no_clash(&self, schema: &Schema) -> Result<()> {
        match self.clash(schema) {
            Some(name) => Err(Error::invalid(format!(
                "column '{name}' is declared VIRTUAL, but others have added a stored column '{name}'"
            ))
            .with_hint("DROP COLUMN drops the virtual one")),
            None => Ok(()),
        }
    }

    /// A virtual column whose name a stored one has, too.
    pub fn clash(&self, schema: &Schema) -> Option<&str> {
        self.virtuals
            .iter()
            .map(|column| column.name.as_str())
            .find(|name| schema.field_with_name(name).is_ok())
    }

    /// Whether a field carries the definition of a computed column.
    pub fn is_definition(field: &Field) -> bool {
        field.metadata().get(COMPUTED).map(String::as_str) == Some("true")
    }

    /// Whether `column` is computed, stored or virtual.
    pub fn is_computed(&self, column: &str) -> bool {
        self.stored.contains_key(column)
            || self.virtual_column(column).is_some()
            || self.unusable.contains_key(column)
    }

    /// The virtual column of that name.
    pub fn virtual_column(&self, column: &str) -> Option<&VirtualColumn> {
        self.virtuals.iter().find(|v| v.name == column)
    }

    /// Names of the computed columns that read `column` directly.
    pub fn dependents(&self, column: &str) -> Vec<String> {
        let stored = self
            .stored
            .values()
            .filter(|c| c.input_names.contains(column))
            .map(|c| c.name.clone());
        let virtuals = self
            .virtuals
            .iter()
            .filter(|c| c.input_names.contains(column))
            .map(|c| c.name.clone());
        stored.chain(virtuals).collect()
    }

    /// Names of the computed columns that read `column`, directly or through others, nearest first.
    pub fn all_dependents(&self, column: &str) -> Vec<String> {
        let mut found: Vec<String> = self.dependents(column);
        let mut next = 0;
        while next < found.len() {
            for name in self.dependents(&found[next].clone()) {
                if !found.contains(&name) {
                    found.push(name);
                }
            }
            next += 1;
        }
        found
    }

    /// The columns that `column` reads, if it is a computed one.
    pub fn inputs_of(&self, column: &str) -> Option<&BTreeSet<String>> {
        self.stored
            .get(column)
            .map(|c| &c.input_names)
            .or_else(|| self.virtual_column(column).map(|c| &c.input_names))
    }

    /// Columns on a way from `from` back to `to` through inputs, ends included; `None` if there
    /// is none. Used to refuse cycles and to name them.
    pub fn path(&self, from: &str, to: &str) -> Option<Vec<String>> {
        self.path_avoiding(from, to, &mut BTreeSet::new())
    }

    /// As [`path`](Self::path), not through the columns that were `seen`: definitions that others wrote
    /// may be circular.
    fn path_avoiding<'a>(
        &'a self,
        from: &'a str,
        to: &str,
        seen: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if from == to {
            return Some(vec![from.to_string()]);
        }
        if !seen.insert(from) {
            return None;
        }
        self.inputs_of(from)?.iter().find_map(|input| {
            self.path_avoiding(input, to, seen).map(|mut rest| {
                rest.insert(0, from.to_string());
                rest
            })
        })
    }
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::internal(format!("a definition can't be written: {error}")))
}

fn unreadable(column: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Storage,
        format!("the definition of column '{column}' can't be read: {why}"),
    )
    .with_hint("ALTER COLUMN … SET EXPRESSION writes a new one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(inputs: &[(&str, &str)]) -> Definitions {
        let stored = inputs.iter().map(|(name, input)| {
            let column = ComputedColumn {
                name: name.to_string(),
                expression: input.to_string(),
                struct_field: None,
                input_names: BTreeSet::from([input.to_string()]),
            };
            (name.to_string(), column)
        });
        Definitions {
            stored: stored.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_path_leads_through_inputs() {
        let definitions = reading(&[("c", "b"), ("b", "a")]);
        let path = ["c", "b", "a"].map(str::to_string).to_vec();
        assert_eq!(definitions.path("c", "a"), Some(path));
        assert_eq!(definitions.path("b", "c"), None);
    }

    #[test]
    fn circular_definitions_of_others_come_to_an_end() {
        let definitions = reading(&[("a", "b"), ("b", "a"), ("c", "a")]);
        assert_eq!(definitions.path("c", "x"), None);
        assert!(definitions.path("a", "b").is_some());
    }
}
