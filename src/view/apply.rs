//! From what is removed and added to what is written: rows that are equal to the stored ones stay, rows whose key
//! lasts are replaced in their place, the rest is inserted or deleted.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, AsArray, RecordBatch, UInt8Array, UInt32Array, UInt64Array, new_null_array,
};
use datafusion::arrow::compute::{concat_batches, take};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};

use crate::storage::change::{CHANGE, DELETE, INSERT, REPLACE};
use crate::storage::keys::RowEncoder;
use crate::{Error, Result};

/// Rows of a batch of deletions.
const BATCH_ROWS: usize = 8192;

/// How the rows of a view are stored.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// All columns of the table.
    pub(super) stored: SchemaRef,
    /// How many of them, from the front, the query gives: what users see and the key.
    pub(super) width: usize,
    /// Where the key is among them.
    pub(super) keys: Vec<usize>,
}

impl Layout {
    /// The columns of a change: those stored, and which row it is about. Deletions have no values, whatever the table
    /// allows.
    fn changes(&self) -> SchemaRef {
        let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let mut fields: Vec<Field> = self.stored.fields().iter().map(nullable).collect();
        for name in ["_rowid", "_rowaddr"] {
            fields.push(Field::new(name, DataType::UInt64, true));
        }
        fields.push(Field::new(CHANGE, DataType::UInt8, true));
        Arc::new(Schema::new(fields))
    }
}

/// A stored row that may change.
#[derive(Debug, Clone, Copy)]
struct StoredRow {
    id: u64,
    address: u64,
    /// Tells whether two rows are equal.
    digest: Option<[u64; 2]>,
    /// Where it is among [`StoredRows::others`].
    place: u32,
}

/// Stored rows that may change, by key.
pub(super) struct StoredRows {
    layout: Layout,
    keys: RowEncoder,
    /// `None` if there is a column that can't be compared.
    values: Option<RowEncoder>,
    hashers: [RandomState; 2],
    rows: HashMap<Box<[u8]>, StoredRow>,
    /// Columns that others added to the table.
    others: RecordBatch,
}

impl StoredRows {
    /// No rows yet.
    pub(super) fn new(layout: Layout) -> Result<Self> {
        let fields = layout.stored.fields();
        let keys = layout.keys.iter().map(|key| fields[*key].data_type());
        let keys = RowEncoder::new(keys)?
            .ok_or_else(|| Error::internal("the key of a view can't be compared"))?;
        let values = RowEncoder::new(fields[..layout.width].iter().map(|f| f.data_type()))?;
        let others: Vec<usize> = (layout.width..fields.len()).collect();
        let others = RecordBatch::new_empty(Arc::new(layout.stored.project(&others)?));
        Ok(Self {
            layout,
            keys,
            values,
            hashers: [RandomState::new(), RandomState::new()],
            rows: HashMap::new(),
            others,
        })
    }

    /// Adds rows: all stored columns, then `_rowid` and `_rowaddr`.
    pub(super) async fn extend(&mut self, mut rows: SendableRecordBatchStream) -> Result<()> {
        let width = self.layout.stored.fields().len();
        let mut others = vec![self.others.clone()];
        let mut before = self.others.num_rows();
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let ids = batch.column(width).as_primitive::<UInt64Type>();
            let addresses = batch.column(width + 1).as_primitive::<UInt64Type>();
            let digests = self.digests(&batch)?;
            let keys = self.keys.encode(&self.key_of(&batch))?;
            for (row, key) in keys.iter().enumerate() {
                let stored = StoredRow {
                    id: ids.value(row),
                    address: addresses.value(row),
                    digest: digests.as_ref().map(|digests| digests[row]),
                    place: u32::try_from(before + row)
                        .map_err(|_| Error::internal("too many rows change at once"))?,
                };
                self.rows.insert(key.as_ref().into(), stored);
            }
            before += batch.num_rows();
            let columns: Vec<usize> = (self.layout.width..width).collect();
            others.push(batch.project(&columns)?);
        }
        self.others = concat_batches(&self.others.schema(), &others)?;
        Ok(())
    }

    /// How many there are that were not met yet.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    fn key_of(&self, batch: &RecordBatch) -> Vec<ArrayRef> {
        let columns = self.layout.keys.iter();
        columns.map(|key| Arc::clone(batch.column(*key))).collect()
    }

    fn digests(&self, batch: &RecordBatch) -> Result<Option<Vec<[u64; 2]>>> {
        let Some(values) = &self.values else {
            return Ok(None);
        };
        let rows = values.encode(&batch.columns()[..self.layout.width])?;
        let digest = |row: &[u8]| [self.hashers[0].hash_one(row), self.hashers[1].hash_one(row)];
        Ok(Some(rows.iter().map(|row| digest(row.as_ref())).collect()))
    }

    /// What becomes of a batch of added rows, which has the first columns of the layout.
    fn compare(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        if self.rows.is_empty() {
            return self.inserted(batch);
        }
        let digests = self.digests(batch)?;
        let (mut takes, mut places) = (Vec::new(), Vec::new());
        let (mut ids, mut addresses, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        let keys = self.keys.encode(&self.key_of(batch))?;
        for row in 0..batch.num_rows() {
            let stored = self.rows.remove(keys.row(row).as_ref());
            if let (Some(stored), Some(digests)) = (&stored, &digests)
                && stored.digest == Some(digests[row])
            {
                continue;
            }
            takes.push(row as u32);
            places.push(stored.map(|stored| stored.place));
            ids.push(stored.map(|stored| stored.id));
            addresses.push(stored.map(|stored| stored.address));
            changes.push(match stored {
                Some(_) => REPLACE,
                None => INSERT,
            });
        }
        let (takes, places) = (UInt32Array::from(takes), UInt32Array::from(places));
        let mut columns: Vec<ArrayRef> = Vec::new();
        for column in &batch.columns()[..self.layout.width] {
            columns.push(take(column, &takes, None)?);
        }
        for column in self.others.columns() {
            columns.push(take(column, &places, None)?);
        }
        self.finish(columns, ids, addresses, changes)
    }

    /// All rows of a batch as new ones.
    fn inserted(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let mut columns = batch.columns()[..self.layout.width].to_vec();
        let others = self.others.schema();
        let others = others.fields().iter();
        columns.extend(others.map(|field| new_null_array(field.data_type(), rows)));
        columns.push(new_null_array(&DataType::UInt64, rows));
        columns.push(new_null_array(&DataType::UInt64, rows));
        columns.push(Arc::new(UInt8Array::from_value(INSERT, rows)));
        Ok(RecordBatch::try_new(self.layout.changes(), columns)?)
    }

    /// The rows that were not among those added: they go.
    fn rest(&mut self) -> Result<Vec<RecordBatch>> {
        let rows: Vec<StoredRow> = self.rows.drain().map(|(_, row)| row).collect();
        let batches = rows.chunks(BATCH_ROWS).map(|rows| {
            let fields = self.layout.stored.fields().iter();
            let columns = fields.map(|f| new_null_array(f.data_type(), rows.len()));
            let ids = rows.iter().map(|row| Some(row.id)).collect();
            let addresses = rows.iter().map(|row| Some(row.address)).collect();
            self.finish(columns.collect(), ids, addresses, vec![DELETE; rows.len()])
        });
        batches.collect()
    }

    fn finish(
        &self,
        mut columns: Vec<ArrayRef>,
        ids: Vec<Option<u64>>,
        addresses: Vec<Option<u64>>,
        changes: Vec<u8>,
    ) -> Result<RecordBatch> {
        columns.push(Arc::new(UInt64Array::from(ids)));
        columns.push(Arc::new(UInt64Array::from(addresses)));
        columns.push(Arc::new(UInt8Array::from(changes)));
        Ok(RecordBatch::try_new(self.layout.changes(), columns)?)
    }
}

/// What has to be written, given the rows that are added and the stored ones that they may replace.
pub(super) fn changes(
    added: Option<SendableRecordBatchStream>,
    stored: StoredRows,
) -> SendableRecordBatchStream {
    let schema = stored.layout.changes();
    let start = (added, Some(stored), Vec::new());
    let batches = stream::try_unfold(start, |(mut added, mut stored, mut rest)| async move {
        loop {
            if let Some(batch) = rest.pop() {
                return Ok(Some((batch, (added, stored, rest))));
            }
            let Some(rows) = &mut stored else {
                return Ok::<_, DataFusionError>(None);
            };
            match &mut added {
                Some(stream) => match stream.next().await.transpose()? {
                    Some(batch) => {
                        let batch = rows.compare(&batch)?;
                        if batch.num_rows() > 0 {
                            rest.push(batch);
                        }
                    }
                    None => added = None,
                },
                None => {
                    rest = rows.rest()?;
                    stored = None;
                }
            }
        }
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}
