//! How a materialized view is computed: stored with the table that holds its rows.
//!
//! The definition is in the metadata of the table's schema, written in the commit that makes the table. A copy is in
//! `_headwater/materialized-views/<name>.json`, so that what reads a table is found without opening all others, and
//! so that a definition that other programs have overwritten is missed.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::arrow::datatypes::Schema;
use datafusion::config::ConfigOptions;
use datafusion::execution::SessionState;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::view::Reading;
use super::{Database, Table};
use crate::storage::properties::VIEW_STATE;
use crate::storage::version::{NewestProperty, newest_property};
use crate::{Error, ErrorKind, Result};

/// The key in the schema's metadata.
pub const MATERIALIZED_VIEW: &str = "headwater.materialized_view";

/// The key under which LanceDB looks for the definition of a materialized view.
const LANCEDB_DEFINITION: &str = "mv.definition";

/// Settings of a session that the result of a query depends on.
const SETTINGS: [&str; 5] = [
    "datafusion.execution.time_zone",
    "datafusion.sql_parser.dialect",
    "datafusion.sql_parser.parse_float_as_decimal",
    "datafusion.sql_parser.enable_ident_normalization",
    "datafusion.sql_parser.default_null_ordering",
];

/// The definition of a materialized view.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDefinition {
    /// Tells it from others that had the same name.
    pub id: String,
    /// SQL text of the query, with the names that the catalog understands (see
    /// [`TableName`](super::name::TableName)).
    pub query: String,
    /// SQL text of the query as users write it.
    pub text: String,
    /// Names for the columns of the query; empty if they keep theirs.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Names of the tables and views that it reads, as they stand in the query.
    pub reads: BTreeSet<String>,
    /// The columns that each table which it reads had when the query was written: `*` means these.
    #[serde(default)]
    pub source_columns: BTreeMap<String, Vec<String>>,
    /// Settings of the session that made it which its result depends on.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// How often the functions that it calls became others.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub upgrades: u64,
    /// Its options.
    #[serde(default)]
    pub options: serde_json::Value,
    /// Whether it is refreshed only when someone says so, whatever its options are.
    #[serde(default)]
    pub suspended: bool,
    /// Why it was suspended, if nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_because: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ViewDefinition {
    /// The definition that `table` has; `None` if it is no materialized view.
    ///
    /// # Errors
    ///
    /// If there is one that this release can't read.
    pub fn of(table: &Table) -> Result<Option<Self>> {
        Self::in_schema(table.dataset.schema().metadata.get(MATERIALIZED_VIEW))
            .map_err(|error| error.context(format!("materialized view '{}'", table.name)))
    }

    fn in_schema(text: Option<&String>) -> Result<Option<Self>> {
        let Some(text) = text else {
            return Ok(None);
        };
        serde_json::from_str(text).map(Some).map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("its definition can't be read: {error}"),
            )
            .with_hint("it was damaged, or a newer release wrote it")
        })
    }

    /// It as the value of [`MATERIALIZED_VIEW`].
    pub fn text(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::internal(format!("a definition can't be written: {error}")))
    }

    /// How the query sees the tables that it reads: each at its newest version.
    pub fn reading(&self) -> Reading {
        Reading {
            columns: self.source_columns.clone(),
            ..Default::default()
        }
    }

    /// What the metadata of the schema says of it.
    ///
    /// LanceDB (0.41, `materialized_view.rs`) takes a table for a materialized view if it has a definition of whatever kind,
    /// and refuses to write to it. It refreshes only what it has defined itself: a kind that it does not know is left alone.
    pub fn metadata(&self) -> Result<[(String, String); 2]> {
        let definition = json!({
            "kind": "headwater",
            "query": self.text,
            "columns": self.columns,
        });
        Ok([
            (MATERIALIZED_VIEW.to_string(), self.text()?),
            (LANCEDB_DEFINITION.to_string(), definition.to_string()),
        ])
    }

    /// `schema` with this definition in its metadata.
    pub fn with_schema(&self, schema: &Schema) -> Result<Schema> {
        let mut metadata = schema.metadata.clone();
        metadata.extend(self.metadata()?);
        Ok(schema.clone().with_metadata(metadata))
    }

    /// What changes when the rows have to be computed anew: not the name, nor the options.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.id.as_bytes());
        for part in [&self.query].into_iter().chain(&self.columns) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        for (name, value) in &self.settings {
            hash.update(format!("\0{name}\0{value}").as_bytes());
        }
        if self.upgrades > 0 {
            hash.update(format!("\0upgrade {}", self.upgrades).as_bytes());
        }
        format!("{:x}", hash.finalize())
    }

    /// A session like `state`, with the settings of the one that made the view.
    pub fn session(&self, state: &SessionState) -> Result<SessionState> {
        let mut state = state.clone();
        let options: &mut ConfigOptions = state.config_mut().options_mut();
        for (name, value) in &self.settings {
            options.set(name, value)?;
        }
        Ok(state)
    }
}

const FOLDER: &str = "materialized-views";

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}.json")
}

impl Database {
    /// Names of all materialized views, sorted.
    pub async fn materialized_view_names(&self) -> Result<Vec<String>> {
        let files = self.root().list_own(FOLDER).await?;
        Ok(files
            .iter()
            .filter_map(|file| file.strip_suffix(".json"))
            .map(str::to_string)
            .collect())
    }

    /// The name of the materialized view whose definition has this id.
    pub async fn materialized_view_of(&self, id: &str) -> Result<Option<String>> {
        for name in self.materialized_view_names().await? {
            let definition = self.materialized_view(&name).await?;
            if definition.is_some_and(|definition| definition.id == id) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The copy of a materialized view's definition.
    pub async fn materialized_view(&self, name: &str) -> Result<Option<ViewDefinition>> {
        let Some(bytes) = self.root().read_own(&path(name)).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(
                ErrorKind::Storage,
                format!("the definition of materialized view '{name}' can't be read: {error}"),
            )
        })
    }

    /// Stores the copy of a definition.
    pub async fn store_materialized_view(
        &self,
        name: &str,
        definition: &ViewDefinition,
    ) -> Result<()> {
        let text = serde_json::to_string_pretty(definition)
            .map_err(|error| Error::internal(format!("a definition can't be written: {error}")))?;
        self.root().replace_own(&path(name), text).await
    }

    /// Removes the copy of a definition.
    pub async fn forget_materialized_view(&self, name: &str) -> Result<()> {
        self.root().remove_own(&path(name)).await
    }
}

impl Table {
    /// Refuses a statement that changes rows, if the table is a materialized view.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], with what to do instead.
    pub fn check_not_materialized(&self, statement: &str) -> Result<()> {
        if ViewDefinition::of(self)?.is_none() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{statement}: '{}' is a materialized view: its rows come from its query",
            self.name
        ))
        .with_hint(format!(
            "change what it reads, then REFRESH MATERIALIZED VIEW {}",
            self.name
        )))
    }

    /// Refuses to read a materialized view that was never refreshed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], with what to do.
    pub async fn check_populated(&self) -> Result<()> {
        // Only a refresh makes rows.
        if self.dataset.count_fragments() > 0 || ViewDefinition::of(self)?.is_none() {
            return Ok(());
        }
        match newest_property(&self.name, &self.dataset, VIEW_STATE).await? {
            NewestProperty::Never => Err(Error::invalid(format!(
                "materialized view '{}' has not been populated",
                self.name
            ))
            .with_hint(format!("REFRESH MATERIALIZED VIEW {}", self.name))),
            _ => Ok(()),
        }
    }
}

/// The settings of a session that the result of a query depends on.
pub fn settings_of(state: &SessionState) -> BTreeMap<String, String> {
    let options = state.config().options().entries();
    options
        .into_iter()
        .filter(|entry| SETTINGS.contains(&entry.key.as_str()))
        .filter_map(|entry| Some((entry.key, entry.value?)))
        .collect()
}
