//! Results that are computed, but not committed: what a run that ends early leaves to the next.
//!
//! A staged file holds values by row id, and says from which version of the table, definition and
//! inputs they were computed. It is good for any later run for which that is still the same,
//! whatever statement asked for it: so a value survives its process, and the compaction of its
//! fragment. There are two kinds: **checkpoints**, written while a fragment is computed, and the
//! **column files** of fragments that are whole.
//!
//! They are [files of a job](crate::job::staged). A refresh that is through removes those of its columns.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, UInt64Array};
use datafusion::arrow::compute::{interleave, take};
use datafusion::arrow::datatypes::UInt64Type;
use lance::Dataset;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::assess::{Column, rows_changed, same_fields};
use crate::database::{Database, Table};
use crate::delta::{FieldIdentity, VersionStamp};
use crate::job::staged::{
    from_ipc, is_of, new_name, records, records_where, remove_records, write_file, write_record,
};
use crate::storage::column_file::ColumnFileReader;
use crate::storage::fragments::{ids_at, offsets_of, places_of};
use crate::storage::{RowSet, storage_error};
use crate::{Error, ErrorKind, Result};

/// The column of row ids in a checkpoint.
const ROW_ID: &str = "_rowid";

/// What one staged file holds. Written once, after the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StagedRecord {
    /// The version of the table that was read.
    pub version: VersionStamp,
    /// The fragment of that version.
    pub fragment: u64,
    /// Its columns, in order.
    pub columns: Vec<StagedColumn>,
    /// The file.
    pub file: StagedFile,
}

/// A column of a staged file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StagedColumn {
    /// The field of the column.
    pub field_id: i32,
    /// Digest of its definition.
    pub definition: String,
    /// The stored columns that it was computed from.
    pub inputs: Vec<FieldIdentity>,
    /// The rows that were computed; what the file has for others is not their value.
    pub rows: RowSet,
}

/// A staged file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StagedFile {
    /// Arrow IPC below `_headwater/`: row ids, then the columns.
    Checkpoint(String),
    /// A file of the fragment, as JSON of Lance's `DataFile`.
    ColumnFile(String),
}

/// Stages what one pass computes.
#[derive(Debug)]
pub struct Staging {
    database: Arc<Database>,
    table: String,
    job: String,
    version: VersionStamp,
    /// The columns, without rows.
    columns: Vec<StagedColumn>,
}

impl Staging {
    /// For `columns` of `table`, computed by `job`.
    pub async fn new(
        database: Arc<Database>,
        table: &Table,
        columns: &[Column],
        job: &str,
    ) -> Result<Self> {
        let columns = columns.iter().map(|column| StagedColumn {
            field_id: column.field_id,
            definition: column.definition.digest(),
            inputs: column.inputs.clone(),
            rows: RowSet::default(),
        });
        Ok(Self {
            database,
            table: table.name.clone(),
            job: job.to_string(),
            version: VersionStamp::of(&table.dataset).await?,
            columns: columns.collect(),
        })
    }

    /// Writes values of rows of `fragment`: those of `batch`, whose columns are those of the pass. `ids`
    /// are the ids of its rows; `rows` say which of them were computed, by column.
    pub async fn checkpoint(
        &self,
        fragment: u64,
        ids: UInt64Array,
        batch: &RecordBatch,
        rows: Vec<RowSet>,
    ) -> Result<()> {
        let mut columns: Vec<(String, ArrayRef, bool)> =
            vec![(ROW_ID.into(), Arc::new(ids), false)];
        for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
            columns.push((field.name().clone(), Arc::clone(array), true));
        }
        let batch = RecordBatch::try_from_iter_with_nullable(columns)?;
        let name = new_name(&self.job);
        let path = write_file(&self.database, &self.table, &name, &batch).await?;
        self.record(&name, fragment, StagedFile::Checkpoint(path), rows)
            .await
    }

    /// Notes that the file of `fragment` is whole; `rows` as for [`checkpoint`](Self::checkpoint).
    pub async fn column_file(&self, fragment: u64, file: &str, rows: Vec<RowSet>) -> Result<()> {
        let file = StagedFile::ColumnFile(file.to_string());
        self.record(&new_name(&self.job), fragment, file, rows)
            .await
    }

    async fn record(
        &self,
        name: &str,
        fragment: u64,
        file: StagedFile,
        rows: Vec<RowSet>,
    ) -> Result<()> {
        let mut columns = self.columns.clone();
        for (column, rows) in columns.iter_mut().zip(rows) {
            column.rows = rows;
        }
        let record = StagedRecord {
            version: self.version.clone(),
            fragment,
            columns,
            file,
        };
        write_record(&self.database, &self.table, name, &record).await
    }
}

/// Which staged results are looked for.
#[derive(Debug, Clone, Copy)]
pub enum Sought<'a> {
    /// Those of any job.
    All,
    /// Those of one job, which computes rows again whatever they have.
    OfJob(&'a str),
    /// The checkpoints of one job, and the records at these paths.
    Checkpoints(&'a str, &'a [String]),
}

impl Sought<'_> {
    /// Whether the record at `path` is meant; `has_file` if there is a file beside it, as only a checkpoint has.
    fn is_met(&self, path: &str, has_file: bool) -> bool {
        match self {
            Self::All => true,
            Self::OfJob(job) => is_of(path, job),
            Self::Checkpoints(job, beside) => {
                (has_file && is_of(path, job)) || beside.iter().any(|other| other == path)
            }
        }
    }
}

/// A staged file whose values a pass may use.
#[derive(Debug)]
struct Source {
    /// Where its record is.
    path: String,
    record: StagedRecord,
    /// By column of the pass: its place in the file, and the rows whose value is still right.
    columns: Vec<Option<(usize, RowSet)>>,
}

/// What earlier runs have computed for the columns of a pass.
#[derive(Debug, Default)]
pub struct Staged {
    sources: Vec<Source>,
}

impl Staged {
    /// Finds what is staged for `columns` of `table`, as of its version.
    pub async fn find(
        database: &Database,
        table: &Table,
        columns: &[&Column],
        sought: Sought<'_>,
    ) -> Result<Self> {
        let mut changed = Changed::default();
        let mut sources = Vec::new();
        let wanted = |path: &str, has_file| sought.is_met(path, has_file);
        for (path, record) in records_where::<StagedRecord>(database, &table.name, wanted).await? {
            let mut found = Vec::with_capacity(columns.len());
            for column in columns {
                found.push(changed.still_right(table, column, &record).await?);
            }
            if found.iter().flatten().any(|(_, rows)| !rows.is_empty()) {
                sources.push(Source {
                    path,
                    record,
                    columns: found,
                });
            }
        }
        Ok(Self { sources })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Where the records are that have values of any of these rows.
    pub(super) fn records_of(&self, rows: &RowSet) -> Vec<String> {
        let has_some = |source: &&Source| {
            let columns = source.columns.iter().flatten();
            columns
                .map(|(_, right)| right)
                .any(|right| !right.is_disjoint(rows))
        };
        let sources = self.sources.iter().filter(has_some);
        sources.map(|source| source.path.clone()).collect()
    }

    /// Rows of the column at place `column` for which there is a value.
    pub fn rows(&self, column: usize) -> RowSet {
        let mut rows = RowSet::default();
        for source in &self.sources {
            if let Some((_, right)) = &source.columns[column] {
                rows.union_with(right);
            }
        }
        rows
    }

    /// Column files of `fragment`, with the rows whose values in them are right, by column. Only
    /// those that have all columns of the pass in their order and nothing else.
    pub fn column_files(
        &self,
        fragment: u64,
    ) -> impl Iterator<Item = (&VersionStamp, &str, Vec<&RowSet>)> {
        self.sources.iter().filter_map(move |source| {
            let StagedFile::ColumnFile(json) = &source.record.file else {
                return None;
            };
            let rows: Option<Vec<&RowSet>> = source
                .columns
                .iter()
                .enumerate()
                .map(|(place, column)| {
                    let (at, rows) = column.as_ref()?;
                    (*at == place).then_some(rows)
                })
                .collect();
            let rows = rows?;
            let fits =
                source.record.fragment == fragment && rows.len() == source.record.columns.len();
            fits.then_some((&source.record.version, json.as_str(), rows))
        })
    }
}

/// Removes what is staged of columns, by their field ids: their refresh is through.
pub async fn discard(database: &Database, table: &str, field_ids: &[i32]) -> Result<()> {
    let theirs = |column: &StagedColumn| field_ids.contains(&column.field_id);
    let all = records::<StagedRecord>(database, table).await?.into_iter();
    let all = all.filter(|(_, record)| record.columns.iter().all(theirs));
    let all = all.map(|(path, record)| match record.file {
        StagedFile::Checkpoint(file) => (path, Some(file)),
        StagedFile::ColumnFile(_) => (path, None),
    });
    remove_records(database, all.collect::<Vec<_>>()).await
}

/// What changed since the versions that records were computed from: many come from one version.
#[derive(Default)]
struct Changed {
    known: HashMap<(u64, String, i32), Option<RowSet>>,
}

impl Changed {
    /// Where `column` stands in a record, and for which rows its values there are still right.
    async fn still_right(
        &mut self,
        table: &Table,
        column: &Column,
        record: &StagedRecord,
    ) -> Result<Option<(usize, RowSet)>> {
        let digest = column.definition.digest();
        let found = record.columns.iter().enumerate().find(|(_, staged)| {
            staged.field_id == column.field_id
                && staged.definition == digest
                && same_fields(&staged.inputs, &column.inputs)
        });
        let Some((place, staged)) = found else {
            return Ok(None);
        };
        if record.version.version > table.version() {
            // Values of later inputs, where an older version is asked for.
            return Ok(None);
        }
        let key = (
            record.version.version,
            record.version.transaction.clone(),
            column.field_id,
        );
        if !self.known.contains_key(&key) {
            let changed = rows_changed(table, column, &record.version).await?;
            self.known.insert(key.clone(), changed);
        }
        let changed = self.known[&key].as_ref();
        Ok(changed.map(|changed| (place, staged.rows.clone().difference(changed))))
    }
}

/// The staged values of one fragment that is being computed.
pub(super) struct FragmentValues {
    database: Arc<Database>,
    table: String,
    dataset: Arc<Dataset>,
    staged: Arc<Staged>,
    /// By column: offset in the fragment, source and row id, by offset.
    places: Vec<Vec<(u32, usize, u64)>>,
    /// Files that were opened, by source: the last ones used.
    open: Vec<(usize, OpenFile)>,
}

/// Files that one fragment keeps open at once: rows follow each other in a file mostly.
const OPEN_FILES: usize = 4;

enum OpenFile {
    Checkpoint {
        rows: HashMap<u64, u32>,
        batch: RecordBatch,
    },
    ColumnFile {
        offsets: HashMap<u64, u32>,
        reader: Box<ColumnFileReader>,
    },
}

impl FragmentValues {
    /// The values that `staged` has for `fragment` of `dataset`.
    pub(super) async fn new(
        database: Arc<Database>,
        table: &str,
        dataset: Arc<Dataset>,
        staged: Arc<Staged>,
        fragment: u64,
    ) -> Result<Self> {
        let file = dataset
            .get_fragment(fragment as usize)
            .ok_or_else(|| Error::internal(format!("fragment {fragment} is gone")))?;
        let columns = staged.sources.first().map_or(0, |s| s.columns.len());
        let mut places: Vec<Vec<(u32, usize, u64)>> = vec![Vec::new(); columns];
        for (number, source) in staged.sources.iter().enumerate() {
            for (column, places) in source.columns.iter().zip(&mut places) {
                let Some((_, rows)) = column else { continue };
                let offsets = offsets_of(table, &dataset, file.metadata(), rows).await?;
                let ids = ids_at(table, &dataset, file.metadata(), &offsets).await?;
                places.extend(
                    offsets
                        .iter()
                        .zip(ids)
                        .map(|(offset, id)| (offset, number, id)),
                );
            }
        }
        for places in &mut places {
            places.sort_unstable();
            places.dedup_by_key(|place| place.0);
        }
        Ok(Self {
            database,
            table: table.to_string(),
            dataset,
            staged,
            places,
            open: Vec::new(),
        })
    }

    /// The offsets for which the column at place `column` has a value.
    pub(super) fn offsets(&self, column: usize) -> RoaringBitmap {
        let places = self.places.get(column).into_iter().flatten();
        places.map(|place| place.0).collect()
    }

    /// The values of the column at place `column` at `offsets`, all of which must have one.
    pub(super) async fn values(&mut self, column: usize, offsets: &[u32]) -> Result<ArrayRef> {
        let mut wanted: Vec<(usize, u64)> = Vec::with_capacity(offsets.len());
        let places = &self.places[column];
        for offset in offsets {
            let at = places
                .binary_search_by_key(offset, |place| place.0)
                .map_err(|_| Error::internal("a staged value is missing"))?;
            wanted.push((places[at].1, places[at].2));
        }
        // By source: the ids to take of it, and where each goes.
        let mut arrays: Vec<ArrayRef> = Vec::new();
        let mut indices: Vec<(usize, usize)> = vec![(0, 0); wanted.len()];
        let mut sources: Vec<usize> = wanted.iter().map(|(source, _)| *source).collect();
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            let ids: Vec<u64> = wanted
                .iter()
                .filter(|(from, _)| *from == source)
                .map(|(_, id)| *id)
                .collect();
            let array = self.read(source, column, &ids).await?;
            let mut next = 0;
            for (index, (from, _)) in indices.iter_mut().zip(&wanted) {
                if *from == source {
                    *index = (arrays.len(), next);
                    next += 1;
                }
            }
            arrays.push(array);
        }
        if arrays.len() == 1 {
            return Ok(arrays.remove(0));
        }
        let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
        Ok(interleave(&arrays, &indices)?)
    }

    async fn read(&mut self, source: usize, column: usize, ids: &[u64]) -> Result<ArrayRef> {
        let place = self.staged.sources[source].columns[column]
            .as_ref()
            .map(|(place, _)| *place)
            .ok_or_else(|| Error::internal("a staged column is missing"))?;
        let file = match self.open.iter().position(|(number, _)| *number == source) {
            Some(at) => self.open.remove(at).1,
            None => self.open(source).await?,
        };
        let missing = || Error::internal("a staged row is missing");
        let array = match &file {
            OpenFile::Checkpoint { rows, batch } => {
                let rows: Vec<u32> = ids
                    .iter()
                    .map(|id| rows.get(id).copied().ok_or_else(missing))
                    .collect::<Result<_>>()?;
                take(batch.column(place + 1), &UInt32Array::from(rows), None)?
            }
            OpenFile::ColumnFile { offsets, reader } => {
                let offsets: Vec<u32> = ids
                    .iter()
                    .map(|id| offsets.get(id).copied().ok_or_else(missing))
                    .collect::<Result<_>>()?;
                reader.take(place, &offsets).await?
            }
        };
        if self.open.len() == OPEN_FILES {
            self.open.remove(0);
        }
        self.open.push((source, file));
        Ok(array)
    }

    async fn open(&self, source: usize) -> Result<OpenFile> {
        let record = &self.staged.sources[source].record;
        match &record.file {
            StagedFile::Checkpoint(path) => {
                let bytes = self.database.root().read_own(path).await?.ok_or_else(|| {
                    Error::new(ErrorKind::Storage, format!("'_headwater/{path}' is gone"))
                        .with_hint("run the statement again: what is gone is computed again")
                })?;
                let batch = from_ipc(bytes, None)?;
                let ids = batch.column(0).as_primitive::<UInt64Type>();
                let rows = ids.values().iter().zip(0u32..).map(|(id, row)| (*id, row));
                Ok(OpenFile::Checkpoint {
                    rows: rows.collect(),
                    batch: batch.clone(),
                })
            }
            StagedFile::ColumnFile(json) => {
                let then = self
                    .dataset
                    .checkout_version(record.version.version)
                    .await
                    .map_err(|error| storage_error(&self.table, error))?;
                let fields: Vec<i32> = record.columns.iter().map(|c| c.field_id).collect();
                let reader = ColumnFileReader::new(
                    &self.table,
                    &self.dataset,
                    record.fragment,
                    json,
                    &fields,
                )?;
                let fragment = then.get_fragment(record.fragment as usize).ok_or_else(|| {
                    Error::internal(format!("fragment {} was never there", record.fragment))
                })?;
                let mut wanted = RowSet::default();
                for (_, rows) in self.staged.sources[source].columns.iter().flatten() {
                    wanted.union_with(rows);
                }
                Ok(OpenFile::ColumnFile {
                    offsets: places_of(&self.table, &then, fragment.metadata(), &wanted).await?,
                    reader: Box::new(reader),
                })
            }
        }
    }
}
