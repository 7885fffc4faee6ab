//! Stages: parts of a query whose rows are stored in tables of their own, which nobody sees.
//!
//! Below other operators, the rows of a grouping cost more to compute again than to keep, and so do results of functions
//! that are paid for, and what an order with a limit is over. Such a part is maintained as if it were a view: with a state, in
//! one commit with its rows. A refresh brings the stages to the versions that it reads, each behind those that it
//! reads itself, and then reads what changed in them as in any source.
//!
//! The tables are in `_headwater/stages/<id of the view>/<digest of the part>`. A refresh that was killed behind the commit of a
//! stage leaves it ahead of the view, which still knows the version that it reflects: so a stage's old versions stay
//! until the view has moved on.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use lance::Dataset;
use sha2::{Digest, Sha256};

use super::classify::{StagePlan, stage_columns};
use super::query::Query;
use crate::database::definition::Definitions;
use crate::database::{Database, Table};
use crate::storage::vacuum::remove_versions;
use crate::storage::version::{CompactionSettings, compact, version_times};
use crate::storage::write::{TableLayout, create_table};
use crate::{ErrorKind, Result};

/// The folder of the tables of all stages.
const FOLDER: &str = "stages";
/// After how many versions a table is tidied.
const TIDIED: u64 = 16;

/// A stage of a query.
#[derive(Debug)]
pub(super) struct Stage {
    /// The name of its table.
    pub(super) table: String,
    /// The part of the query. It has no stages of its own.
    pub(super) query: Arc<Query>,
}

fn folder(view: &str) -> String {
    format!("{FOLDER}/{view}")
}

impl Stage {
    /// A stage of the view whose definition has the id `view`.
    pub(super) fn new(view: &str, stage: StagePlan) -> Self {
        let digest = Sha256::digest(&stage.text);
        let digest: String = format!("{digest:x}").chars().take(16).collect();
        let query = Query {
            names: stage_columns(stage.plan.schema()),
            plan: stage.plan,
            root: Some(stage.root),
            obstacle: String::new(),
            sources: stage.sources,
            stages: Vec::new(),
        };
        Self {
            table: format!("_headwater/{}/{digest}", folder(view)),
            query: Arc::new(query),
        }
    }

    /// What its state is of, in a view whose own state is of `view`.
    pub(super) fn definition(&self, view: &str) -> String {
        format!("{view}/{}", self.table)
    }

    /// Its table; `None` if it has none yet.
    pub(super) async fn open(&self, database: &Database) -> Result<Option<Table>> {
        match database.root().open_table(&self.table, None).await {
            Ok(dataset) => Ok(Some(self.as_table(dataset))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes its table.
    pub(super) async fn create(&self, database: &Database) -> Result<Table> {
        let (root, schema) = (database.root(), Arc::new(self.query.schema()));
        let layout = TableLayout::default();
        match create_table(root, &self.table, schema, None, false, &layout).await {
            Ok(dataset) => Ok(self.as_table(dataset)),
            // Another refresh was quicker.
            Err(error) => self.open(database).await?.ok_or(error),
        }
    }

    /// Merges small fragments, and removes versions that nobody needs any more, now and then. The view reflects the version of
    /// `dataset`.
    pub(super) async fn tidy(&self, dataset: &Dataset) -> Result<()> {
        let version = dataset.version().version;
        if !version.is_multiple_of(TIDIED) {
            return Ok(());
        }
        let old: BTreeSet<u64> = version_times(&self.table, dataset)
            .await?
            .into_iter()
            .map(|(old, _)| old)
            // A refresh that began before this one may still read them.
            .filter(|old| old + TIDIED < version)
            .collect();
        if !old.is_empty() {
            remove_versions(&self.table, dataset, &old, false).await?;
        }
        if dataset.count_fragments() as u64 > TIDIED {
            let mut table = dataset.clone();
            compact(&self.table, &mut table, CompactionSettings::default()).await?;
        }
        Ok(())
    }

    fn as_table(&self, dataset: Dataset) -> Table {
        let definitions = Definitions::read(&Schema::from(dataset.schema()));
        Table {
            name: self.table.clone(),
            dataset: Arc::new(dataset),
            definitions,
        }
    }
}

/// Removes the stages of a view.
pub async fn remove_stages(database: &Database, view: &str) -> Result<()> {
    database.root().remove_own_folder(&folder(view)).await
}
