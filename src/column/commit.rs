//! Commits of a refresh: column files and states in one transaction, again and again until all is in.
//!
//! Every commit of a pass, the first partial one too, writes the state *(definition, version read,
//! needed − landed)*. It goes on top of whatever others have committed meanwhile, with these
//! exceptions. A file whose fragment is gone (compacted away) or whose column others wrote is left
//! out; its rows stay pending. If others have refreshed one of the columns, or have restored an
//! older version, what was planned is no longer true: the pass is planned anew. If one was dropped,
//! or has another definition, the job fails. A change of an input in between does no harm: the
//! state says that the values reflect the version that was read, so the next refresh finds the
//! change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use lance::Dataset;
use lance::dataset::transaction::Operation;

use super::assess::Rows;
use super::plan::Pass;
use super::state::{ColumnState, Pending};
use crate::database::Database;
use crate::database::definition::ComputedColumn;
use crate::delta::VersionStamp;
use crate::job::counters::{Count, Phase};
use crate::job::driver::Driver;
use crate::storage::column_file::{commit_column_files, file_exists, files_that_fit, has_file};
use crate::storage::fragments::{all_live_ids, live_ids};
use crate::storage::properties::{COLUMN_STATE, COMPUTED_ROWS, JOB};
use crate::storage::version::operation_name;
use crate::storage::{Properties, RowSet, pin, storage_error, with_retries_until_known};
use crate::{Error, ErrorKind, Result};

/// Bytes of an encoded set of rows up to which it is written with the commit itself.
const INLINE_BYTES: usize = 64 << 10;

/// A fragment whose columns are written.
#[derive(Debug, Clone)]
pub struct Written {
    /// The file, as JSON of Lance's `DataFile`.
    pub file: String,
    /// The rows that were computed for it, by column.
    pub rows: Vec<RowSet>,
    /// Whether an earlier run wrote it.
    pub is_reused: bool,
}

/// Commits what a pass has written, in one or several commits.
#[derive(Debug)]
pub struct Committer {
    /// Rows that a column lacks, by column.
    needed: Vec<RowSet>,
    /// Rows that have landed, by column.
    landed: Vec<RowSet>,
    watermark: VersionStamp,
    /// The version up to which others' commits were looked at.
    seen: u64,
    /// Whether nobody else has changed data since the version that was read.
    is_alone: bool,
    /// The newest version that is known.
    pub version: u64,
    /// The table at the version of the last commit: what follows goes on from there.
    newest: Option<Dataset>,
    /// Fragments that have landed.
    pub fragments: u64,
}

/// What came of a commit.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Files that do not fit the newest version; of files that do, the rows that are no longer in their
    /// fragment, because others updated or deleted them.
    pub unfit: BTreeMap<u64, Written>,
    /// Whether what was planned is no longer true, and why.
    pub overtaken: Option<String>,
}

/// What others have done meanwhile.
enum Others {
    /// Nothing, or what changes no data.
    ChangedNothing,
    /// They changed data.
    ChangedData,
    /// What was planned is no longer true; with the reason.
    Overtook(String),
}

/// What one attempt comes to.
enum Attempt {
    Overtaken(String),
    Committed {
        dataset: Box<Dataset>,
        /// See the fields `seen` and `is_alone` of [`Committer`].
        looked: (u64, bool),
        landed: Vec<RowSet>,
        fitting: Vec<u64>,
    },
    NothingFits(u64),
}

impl Committer {
    /// For `pass`, of which nothing is committed.
    pub async fn new(pass: &Pass) -> Result<Self> {
        let table = &pass.table;
        let mut needed = Vec::with_capacity(pass.tasks.len());
        for task in &pass.tasks {
            needed.push(match task.assessment.todo() {
                Rows::All => all_live_ids(&table.name, &table.dataset).await?,
                Rows::Some(rows) => rows,
            });
        }
        Ok(Self {
            landed: vec![RowSet::default(); needed.len()],
            needed,
            watermark: VersionStamp::of(&table.dataset).await?,
            seen: pass.seen,
            is_alone: pass.seen == table.version(),
            version: table.version(),
            newest: None,
            fragments: 0,
        })
    }

    /// Rows that have landed of the column at `place`.
    pub fn landed(&self, place: usize) -> &RowSet {
        &self.landed[place]
    }

    /// Rows that the column at `place` lacks still.
    pub fn pending(&self, place: usize) -> RowSet {
        self.needed[place].clone().difference(&self.landed[place])
    }

    /// Commits `files`, by fragment; `is_last` if no more commits of the pass follow.
    pub async fn commit(
        &mut self,
        database: &Database,
        driver: &Driver,
        pass: &Pass,
        mut files: BTreeMap<u64, Written>,
        is_last: bool,
    ) -> Result<Outcome> {
        if files.is_empty() {
            return Ok(Outcome::default());
        }
        driver.check_claims().await?;
        let started = Instant::now();
        let mut attempts = 0;
        let attempt = with_retries_until_known(|| {
            attempts += 1;
            self.attempt(database, driver, pass, &files, is_last)
        });
        let attempt = match attempt.await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                return Err(self.name_the_other(pass, error).await);
            }
            attempt => attempt?,
        };
        driver.counters().add(Count::Retries, attempts - 1);
        driver.counters().spent_since(Phase::Committing, started);
        let (dataset, looked, landed, fitting) = match attempt {
            Attempt::Overtaken(why) => {
                return Ok(Outcome {
                    unfit: files,
                    overtaken: Some(why),
                });
            }
            Attempt::NothingFits(version) => {
                self.version = version;
                return Ok(Outcome {
                    unfit: files,
                    overtaken: None,
                });
            }
            Attempt::Committed {
                dataset,
                looked,
                landed,
                fitting,
            } => (dataset, looked, landed, fitting),
        };
        (self.seen, self.is_alone) = looked;
        self.version = dataset.version().version;
        self.newest = Some(*dataset);
        self.fragments += fitting.len() as u64;
        for (all, landed) in self.landed.iter_mut().zip(&landed) {
            all.union_with(landed);
        }
        for fragment in &fitting {
            let is_whole = files.get(fragment).is_none_or(|written| {
                let mut rows = written.rows.iter().zip(&landed);
                rows.all(|(rows, landed)| rows.is_subset(landed))
            });
            if is_whole {
                files.remove(fragment);
            }
        }
        driver.counters().add(Count::Commits, 1);
        driver
            .counters()
            .add(Count::FragmentsCommitted, fitting.len() as u64);
        let rows: u64 = landed.iter().map(RowSet::len).sum();
        let message = format!(
            "version {}: {rows} rows in {} fragments",
            self.version,
            fitting.len()
        );
        driver.event("committed", message, None).await?;
        Ok(Outcome {
            unfit: files,
            overtaken: None,
        })
    }

    async fn attempt(
        &self,
        database: &Database,
        driver: &Driver,
        pass: &Pass,
        files: &BTreeMap<u64, Written>,
        is_last: bool,
    ) -> Result<Attempt> {
        let table = &pass.table.name;
        let latest = match &self.newest {
            // What comes of it is what the next statement reads: it goes into the caches of the database.
            _ if is_last => database.root().open_table(table, None).await?,
            None => database.root().open_for_commits(table).await?,
            Some(newest) => {
                let mut latest = newest.clone();
                let newer = latest.checkout_latest().await;
                newer.map_err(|error| storage_error(table, error))?;
                latest
            }
        };
        check_definitions(pass, &latest)?;
        let is_alone = match self.look_at_others(driver, pass, &latest).await? {
            Others::Overtook(why) => return Ok(Attempt::Overtaken(why)),
            Others::ChangedNothing => self.is_alone,
            Others::ChangedData => false,
        };
        let mut watermark = self.watermark.clone();
        if is_last && is_alone && latest.version().version > watermark.version {
            // The same inputs, and the next refresh need not go through the commits of this one.
            let version = latest.version().version;
            if pin::pin(table, &latest, version).await? {
                watermark = VersionStamp::of(&latest).await?;
            }
        }
        let there = already_there(&latest, files)?;
        if !there.is_empty() {
            return Ok(Attempt::Committed {
                landed: self.landed_by(pass, &latest, files, &there).await?,
                looked: (latest.version().version, is_alone),
                dataset: Box::new(latest),
                fitting: there.into_iter().collect(),
            });
        }
        let names = pass.column_names();
        let jsons: HashMap<u64, String> = files
            .iter()
            .map(|(fragment, written)| (*fragment, written.file.clone()))
            .collect();
        let mut fitting = files_that_fit(&pass.table.dataset, &latest, &names, &jsons)?;
        for (fragment, written) in files {
            // A cleanup of others may have removed what an earlier run wrote, and Lance would not notice.
            if written.is_reused
                && fitting.contains(fragment)
                && !file_exists(table, &latest, &written.file).await?
            {
                fitting.remove(fragment);
            }
        }
        if fitting.is_empty() {
            return Ok(Attempt::NothingFits(latest.version().version));
        }
        let landed = self.landed_by(pass, &latest, files, &fitting).await?;
        let mut properties = self.states(database, pass, &watermark, &landed).await?;
        properties.insert(JOB.to_string(), driver.mark());
        let jsons: HashMap<u64, String> = jsons
            .into_iter()
            .filter(|(fragment, _)| fitting.contains(fragment))
            .collect();
        let dataset = commit_column_files(table, &latest, &jsons, properties).await?;
        Ok(Attempt::Committed {
            dataset: Box::new(dataset),
            looked: (latest.version().version, is_alone),
            landed,
            fitting: fitting.into_iter().collect(),
        })
    }

    /// The rows that land in `latest` with the files of the fragments `fitting`, by column.
    async fn landed_by(
        &self,
        pass: &Pass,
        latest: &Dataset,
        files: &BTreeMap<u64, Written>,
        fitting: &HashSet<u64>,
    ) -> Result<Vec<RowSet>> {
        let mut landed = vec![RowSet::default(); pass.tasks.len()];
        for fragment in latest.fragments().iter() {
            let Some(written) = files
                .get(&fragment.id)
                .filter(|_| fitting.contains(&fragment.id))
            else {
                continue;
            };
            // What was read of a fragment is cached where it is still the same.
            let then = pass.table.dataset.get_fragment(fragment.id as usize);
            let is_same =
                then.is_some_and(|f| f.metadata().deletion_file == fragment.deletion_file);
            let dataset = match is_same {
                true => &pass.table.dataset,
                false => latest,
            };
            let live = live_ids(&pass.table.name, dataset, fragment).await?;
            for (landed, rows) in landed.iter_mut().zip(&written.rows) {
                landed.union_with(&rows.clone().intersection(&live));
            }
        }
        Ok(landed)
    }

    /// What others have done since they were last looked at.
    async fn look_at_others(
        &self,
        driver: &Driver,
        pass: &Pass,
        latest: &Dataset,
    ) -> Result<Others> {
        let table = &pass.table.name;
        let keys: Vec<String> = pass
            .tasks
            .iter()
            .map(|task| format!("{COLUMN_STATE}{}", task.column.field_id))
            .collect();
        let mut others = Others::ChangedNothing;
        for version in self.seen + 1..=latest.version().version {
            let transaction = latest
                .read_transaction_by_version(version)
                .await
                .map_err(|error| storage_error(table, error))?;
            let Some(transaction) = transaction else {
                others = Others::ChangedData;
                continue;
            };
            let operation = &transaction.operation;
            if matches!(
                operation,
                Operation::Restore { .. } | Operation::Overwrite { .. }
            ) {
                let what = operation_name(operation);
                return Ok(Others::Overtook(format!(
                    "version {version} is a {what} of others"
                )));
            }
            let properties = transaction.transaction_properties.as_deref();
            let property = |key: &str| properties.and_then(|properties| properties.get(key));
            if property(JOB).is_some_and(|mark| *mark == driver.mark()) {
                continue;
            }
            if keys.iter().any(|key| property(key).is_some()) {
                return Ok(Others::Overtook(format!(
                    "version {version} is a refresh of the same column by others"
                )));
            }
            if !matches!(
                operation,
                Operation::UpdateConfig { .. } | Operation::CreateIndex { .. }
            ) {
                others = Others::ChangedData;
            }
        }
        Ok(others)
    }

    /// The states to write with a commit by which `landed` rows land, by column.
    async fn states(
        &self,
        database: &Database,
        pass: &Pass,
        watermark: &VersionStamp,
        landed: &[RowSet],
    ) -> Result<Properties> {
        let mut properties = Properties::new();
        for (place, (task, landed)) in pass.tasks.iter().zip(landed).enumerate() {
            let encoded = landed.encode();
            // Without it the next reader of this column compares values instead: slower, not wrong.
            if encoded.len() <= INLINE_BYTES {
                properties.insert(format!("{COMPUTED_ROWS}{}", task.column.field_id), encoded);
            }
            let pending = self.pending(place).difference(landed);
            let state = ColumnState {
                definition: task.column.definition.digest(),
                watermark: watermark.clone(),
                inputs: task.column.inputs.clone(),
                pending: store_pending(database, pending).await?,
            };
            let (key, value) = state.property(task.column.field_id)?;
            properties.insert(key, value);
        }
        Ok(properties)
    }

    /// Says who kept a commit from landing.
    async fn name_the_other(&self, pass: &Pass, error: Error) -> Error {
        let newest = async {
            let mut latest = pass.table.dataset.as_ref().clone();
            latest.checkout_latest().await.ok()?;
            let transaction = latest.read_transaction().await.ok()??;
            let version = latest.version().version;
            Some((operation_name(&transaction.operation), version))
        };
        match newest.await {
            Some((operation, version)) => error.context(format!(
                "the last of others' commits is {operation}, version {version}"
            )),
            None => error,
        }
    }
}

/// The fragments of `latest` that have their file already: an earlier attempt has landed, and the answer was
/// lost. Another one would not fit, and its rows would count as pending.
fn already_there(latest: &Dataset, files: &BTreeMap<u64, Written>) -> Result<HashSet<u64>> {
    let mut there = HashSet::new();
    for fragment in latest.fragments().iter() {
        if let Some(written) = files.get(&fragment.id)
            && has_file(fragment, &written.file)?
        {
            there.insert(fragment.id);
        }
    }
    Ok(there)
}

/// Fails if a column was dropped or got another definition since the pass was planned: its values
/// must not be mixed.
fn check_definitions(pass: &Pass, latest: &Dataset) -> Result<()> {
    use datafusion::arrow::datatypes::Schema;

    let schema = Schema::from(latest.schema());
    for task in &pass.tasks {
        let name = task.column.name();
        let now = match schema.field_with_name(name) {
            Ok(field) => ComputedColumn::of_field(field)?,
            Err(_) => None,
        };
        let same_field = latest.schema().field(name).map(|f| f.id) == Some(task.column.field_id);
        let same =
            same_field && now.is_some_and(|now| now.digest() == task.column.definition.digest());
        if !same {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "column '{name}' of table '{}' was dropped or got another definition while it was refreshed; no more was written",
                    pass.table.name
                ),
            )
            .with_hint("run the statement again"));
        }
    }
    Ok(())
}

/// A set of pending rows as a state holds it: in a file of its own if it is large.
async fn store_pending(database: &Database, rows: RowSet) -> Result<Pending> {
    let encoded = rows.encode();
    if encoded.len() <= INLINE_BYTES {
        return Ok(Pending::Rows(rows));
    }
    let path = format!("pending/{}", uuid::Uuid::new_v4());
    database.root().create_own(&path, encoded).await?;
    Ok(Pending::File(path))
}
