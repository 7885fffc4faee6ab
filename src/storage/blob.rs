//! Blobs: columns of large bytes that are read only when somebody asks for them.
//!
//! A scan shows a blob as a descriptor, a struct of its size and where it is: the row's address,
//! and the table, version and field as a text. A descriptor stands for itself, so it may go
//! through joins, unions and other processes before its bytes are read, and since a version of a
//! table never changes, they are always the bytes that the row had when it was scanned.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, LargeBinaryArray, LargeBinaryBuilder, RecordBatch, StringArray,
    StringViewArray, StructArray, UInt32Array, UInt64Array,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{
    DataType, Field, Fields, Schema, SchemaRef, UInt8Type, UInt64Type,
};
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance::arrow::ARROW_EXT_NAME_KEY;
use lance::dataset::BlobRangeRequest;
use lance::session::Session;
use lance_core::datatypes::{BLOB_V2_LOGICAL_MINIMAL_FIELDS, BlobKind};

use super::open;
use super::open::{storage_error, table_name};
use super::scan::DEFAULT_BATCH_BYTES;
use super::store::StoreSettings;
use crate::{Error, ErrorKind, Result};

#[cfg(test)]
mod tests;

/// Value of the extension name of a blob.
const BLOB_V2: &str = "lance.blob.v2";
/// Marks a blob of the first kind, which tables in older file formats have.
const BLOB_V1: &str = "lance-encoding:blob";
/// Bytes that one call may have asked for and not got yet, unless a single blob is larger.
const READ_AHEAD: u64 = 32 * 1024 * 1024;
/// Tables that stay open for the next call.
const OPEN_TABLES: usize = 16;

static DESCRIPTOR: LazyLock<Fields> = LazyLock::new(|| {
    Fields::from(vec![
        Field::new("size", DataType::UInt64, true),
        Field::new("address", DataType::UInt64, true),
        Field::new("source", DataType::Utf8View, true),
    ])
});

/// The type that a scan shows a blob as.
pub fn descriptor_type() -> DataType {
    DataType::Struct(DESCRIPTOR.clone())
}

/// Whether values of `data_type` are descriptors of blobs.
pub fn is_descriptor(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Struct(fields) if *fields == *DESCRIPTOR)
}

/// Whether a column that is stored as `field` holds blobs.
pub fn is_blob(field: &Field) -> bool {
    is_blob_v2(field)
        || (field.metadata().contains_key(BLOB_V1) && *field.data_type() == DataType::LargeBinary)
}

/// Whether `field` is stored as a blob, or something that is nested in it.
pub fn holds_blob(field: &Field) -> bool {
    is_blob(field)
        || match field.data_type() {
            DataType::Struct(fields) => fields.iter().any(|field| holds_blob(field)),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::Map(item, _) => holds_blob(item),
            _ => false,
        }
}

fn is_blob_v2(field: &Field) -> bool {
    field
        .metadata()
        .get(ARROW_EXT_NAME_KEY)
        .is_some_and(|name| name == BLOB_V2)
}

/// Whether bytes of this type can become a blob.
pub fn is_binary(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_)
            | DataType::Null
    )
}

/// The type of the values that are assigned to `field`: bytes if it is a blob.
pub fn value_type(field: &Field) -> DataType {
    match is_blob(field) {
        true => DataType::LargeBinary,
        false => field.data_type().clone(),
    }
}

/// The column that is stored as `field`, as a scan shows it.
pub fn shown_field(field: &Field) -> Field {
    if !is_blob(field) {
        return field.clone();
    }
    // What belongs to the column stays; how it is stored is not true of a descriptor.
    let metadata = field
        .metadata()
        .iter()
        .filter(|(key, _)| !key.starts_with("ARROW:") && !key.starts_with("lance-encoding"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Field::new(field.name(), descriptor_type(), field.is_nullable()).with_metadata(metadata)
}

/// The columns that are stored as `schema`, as a scan shows them.
pub fn shown_schema(schema: &Schema) -> Schema {
    let fields: Vec<Field> = schema.fields().iter().map(|f| shown_field(f)).collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

/// `field` with the type in which the writer takes its values.
fn written_field(field: &Field) -> Field {
    match is_blob_v2(field) {
        true => field
            .clone()
            .with_data_type(DataType::Struct(BLOB_V2_LOGICAL_MINIMAL_FIELDS.clone())),
        false => field.clone(),
    }
}

/// `schema` with the types in which the writer takes values.
pub fn written_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> = schema.fields().iter().map(|f| written_field(f)).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// `values` as the writer takes them for `field`: bytes are wrapped if that is a blob.
pub fn written_array(field: &Field, values: &ArrayRef) -> Result<ArrayRef, DataFusionError> {
    if !is_blob_v2(field) || values.data_type() == written_field(field).data_type() {
        return Ok(Arc::clone(values));
    }
    let bytes = cast(values, &DataType::LargeBinary)?;
    let nulls = bytes.logical_nulls();
    let uris: ArrayRef = Arc::new(StringArray::new_null(bytes.len()));
    let fields = BLOB_V2_LOGICAL_MINIMAL_FIELDS.clone();
    Ok(Arc::new(StructArray::try_new(
        fields,
        vec![bytes, uris],
        nulls,
    )?))
}

/// `batch`, whose blobs are bytes, as the writer takes it for the columns of `schema`; columns that
/// `schema` does not have stay as they are.
pub fn written_batch(batch: &RecordBatch, schema: &Schema) -> Result<RecordBatch, DataFusionError> {
    let own = batch.schema();
    let mut fields = Vec::with_capacity(own.fields().len());
    let mut arrays = Vec::with_capacity(own.fields().len());
    for (field, array) in own.fields().iter().zip(batch.columns()) {
        match schema.field_with_name(field.name()) {
            Ok(stored) if is_blob(stored) => {
                fields.push(written_field(stored));
                arrays.push(written_array(stored, array)?);
            }
            _ => {
                fields.push(field.as_ref().clone());
                arrays.push(Arc::clone(array));
            }
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// Where the blobs of one column are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    uri: String,
    version: u64,
    /// When the version was made: a table that replaced another counts from 1 again.
    made: u128,
    field: i32,
}

impl Source {
    fn of(dataset: &Dataset, field: i32) -> Self {
        Self {
            uri: dataset.uri().to_string(),
            version: dataset.manifest().version,
            made: dataset.manifest().timestamp_nanos,
            field,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (uri, rest) = text.rsplit_once("?version=")?;
        let (version, rest) = rest.split_once("&made=")?;
        let (made, field) = rest.split_once("&field=")?;
        Some(Self {
            uri: uri.to_string(),
            version: version.parse().ok()?,
            made: made.parse().ok()?,
            field: field.parse().ok()?,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}?version={}&made={}&field={}",
            self.uri, self.version, self.made, self.field
        )
    }
}

/// Makes descriptors of what Lance stores about the blobs of one column.
#[derive(Debug)]
pub(super) struct Describer {
    /// The text of the source, once; rows share it.
    source: StringViewArray,
}

impl Describer {
    /// For the column of `dataset` with the id `field`.
    pub(super) fn new(dataset: &Dataset, field: i32) -> Self {
        let source = Source::of(dataset, field).to_string();
        Self {
            source: StringViewArray::from(vec![source]),
        }
    }

    /// The descriptors of the rows at `addresses`, of which Lance gave `stored`.
    pub(super) fn describe(
        &self,
        stored: &ArrayRef,
        addresses: &ArrayRef,
    ) -> Result<ArrayRef, DataFusionError> {
        let unknown = || Error::internal("the scan gives blobs in an unknown form");
        let stored = stored.as_struct_opt().ok_or_else(unknown)?;
        let number = |name: &str| {
            let column = stored.column_by_name(name)?;
            column.as_primitive_opt::<UInt64Type>()
        };
        let (sizes, positions) = number("size").zip(number("position")).ok_or_else(unknown)?;
        let kinds = stored
            .column_by_name("kind")
            .and_then(|kinds| kinds.as_primitive_opt::<UInt8Type>());
        let rows = stored.len();
        let valid = |row: usize| {
            stored.is_valid(row)
                && match kinds {
                    Some(kinds) => kinds.is_valid(row),
                    // The first kind tells NULL by an empty blob that is somewhere.
                    None => {
                        sizes.is_valid(row)
                            && positions.is_valid(row)
                            && (sizes.value(row) > 0 || positions.value(row) == 0)
                    }
                }
        };
        let size = |row: usize| {
            let size = sizes.value(row);
            let external = kinds.is_some_and(|kinds| kinds.value(row) == BlobKind::External as u8);
            // Of a whole file elsewhere, Lance does not store how large it is.
            (valid(row) && !(external && size == 0)).then_some(size)
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new((0..rows).map(size).collect::<UInt64Array>()),
            Arc::clone(addresses),
            take(&self.source, &UInt32Array::from(vec![0; rows]), None)?,
        ];
        let nulls = NullBuffer::from_iter((0..rows).map(valid));
        let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
        Ok(Arc::new(StructArray::try_new(
            DESCRIPTOR.clone(),
            columns,
            nulls,
        )?))
    }
}

/// The sizes of blobs, from their descriptors: `None` for NULL and where it is not known.
pub fn known_sizes(descriptors: &StructArray) -> impl Iterator<Item = Option<u64>> + '_ {
    let sizes = descriptors
        .column_by_name("size")
        .and_then(|sizes| sizes.as_primitive_opt::<UInt64Type>());
    (0..descriptors.len()).map(move |row| {
        let sizes = sizes?;
        (descriptors.is_valid(row) && sizes.is_valid(row)).then(|| sizes.value(row))
    })
}

/// Bytes of all blobs whose descriptors are in `batch`.
pub fn described_bytes(batch: &RecordBatch) -> u64 {
    batch
        .columns()
        .iter()
        .filter(|column| is_descriptor(column.data_type()))
        .filter_map(|column| column.as_struct_opt())
        .map(|column| known_sizes(column).flatten().fold(0, u64::saturating_add))
        .fold(0, u64::saturating_add)
}

/// A part of a blob; what lies beyond its end is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// The first byte, counted from 0.
    pub offset: u64,
    /// How many bytes; `None` for all that follow.
    pub length: Option<u64>,
}

/// Reads the bytes of blobs from their descriptors.
pub struct BlobReader {
    settings: StoreSettings,
    state: Mutex<State>,
}

struct State {
    session: Arc<Session>,
    /// The tables read from last, the newest first.
    open: VecDeque<(Source, Arc<Dataset>)>,
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Storage options hold credentials.
        f.debug_struct("BlobReader").finish_non_exhaustive()
    }
}

impl BlobReader {
    /// Reads from stores that are opened with `settings`.
    pub fn new(settings: StoreSettings, session: Arc<Session>) -> Self {
        let open = VecDeque::new();
        Self {
            settings,
            state: Mutex::new(State { session, open }),
        }
    }

    /// The same, with caches of its own.
    pub fn with_caches(settings: StoreSettings) -> Self {
        Self::new(settings, super::new_session())
    }

    /// Options of the stores.
    pub fn options(&self) -> &HashMap<String, String> {
        self.settings.options()
    }

    /// Closes all tables, and opens the next ones with `session`.
    pub fn forget(&self, session: Arc<Session>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.session = session;
        state.open.clear();
    }

    /// Opens the table of a source; another column of it shares the handle.
    async fn open(&self, source: &Source) -> Result<Arc<Dataset>> {
        let same = |other: &Source| {
            (&other.uri, other.version, other.made) == (&source.uri, source.version, source.made)
        };
        let session = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(index) = state.open.iter().position(|(other, _)| same(other))
                && let Some(found) = state.open.remove(index)
            {
                let dataset = Arc::clone(&found.1);
                state.open.push_front(found);
                return Ok(dataset);
            }
            Arc::clone(&state.session)
        };
        let dataset = open(
            &source.uri,
            Some(source.version),
            &self.settings,
            Some(session),
        )
        .await?;
        if dataset.manifest().timestamp_nanos != source.made {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "table '{}' was made anew after its blobs were looked up",
                    table_name(&source.uri)
                ),
            )
            .with_hint("run the statement again"));
        }
        let dataset = Arc::new(dataset);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .open
            .push_front((source.clone(), Arc::clone(&dataset)));
        state.open.truncate(OPEN_TABLES);
        Ok(dataset)
    }

    /// The size of each blob, in bytes; `None` for NULL.
    pub async fn sizes(&self, descriptors: &StructArray) -> Result<Vec<Option<u64>>> {
        let mut sizes: Vec<Option<u64>> = known_sizes(descriptors).collect();
        let unknown: Vec<usize> = (0..sizes.len())
            .filter(|row| sizes[*row].is_none() && descriptors.is_valid(*row))
            .collect();
        for (source, rows) in by_source(descriptors, unknown)? {
            let dataset = self.open(&source).await?;
            let fail = |error| storage_error(table_name(&source.uri), error);
            let path = column_path(&dataset, &source)?;
            let addresses: Vec<u64> = rows.iter().map(|(_, address)| *address).collect();
            let files = dataset
                .take_blobs_by_addresses(&addresses, &path)
                .await
                .map_err(fail)?;
            for ((row, _), file) in rows.into_iter().zip(files) {
                sizes[row] = file.map(|file| file.size());
            }
        }
        Ok(sizes)
    }

    /// Reads a part of each blob; `None`, as a NULL blob, gives NULL.
    ///
    /// # Errors
    ///
    /// If the table or its version is gone, or a file of it can't be read.
    pub async fn read(
        &self,
        descriptors: &StructArray,
        parts: &[Option<Part>],
    ) -> Result<LargeBinaryArray> {
        let sizes = self.sizes(descriptors).await?;
        let mut values: Vec<Option<Bytes>> = vec![None; descriptors.len()];
        let mut ranges = vec![(0, 0); descriptors.len()];
        let mut wanted = Vec::new();
        for (row, (size, part)) in sizes.iter().zip(parts).enumerate() {
            let (Some(size), Some(part)) = (size, part) else {
                continue;
            };
            let offset = part.offset.min(*size);
            let length = part.length.unwrap_or(u64::MAX).min(size - offset);
            values[row] = Some(Bytes::new());
            if length > 0 {
                ranges[row] = (offset, length);
                wanted.push(row);
            }
        }
        for (source, rows) in by_source(descriptors, wanted)? {
            let dataset = self.open(&source).await?;
            let fail = |error| storage_error(table_name(&source.uri), error);
            let path = column_path(&dataset, &source)?;
            let requests: Vec<BlobRangeRequest> = rows
                .iter()
                .map(|(row, address)| {
                    let (offset, length) = ranges[*row];
                    BlobRangeRequest::new(*address, offset, length)
                })
                .collect();
            let mut found = dataset
                .read_blob_ranges(&path)
                .map_err(fail)?
                .with_row_addresses(requests)
                .with_io_buffer_size_bytes(READ_AHEAD)
                .preserve_order(false)
                .try_into_stream()
                .await
                .map_err(fail)?;
            while let Some(range) = found.try_next().await.map_err(fail)? {
                if let Some((row, _)) = rows.get(range.request_index) {
                    values[*row] = range.data;
                }
            }
        }
        let bytes = values.iter().flatten().map(Bytes::len).sum();
        let mut array = LargeBinaryBuilder::with_capacity(values.len(), bytes);
        for value in values {
            array.append_option(value);
        }
        Ok(array.finish())
    }
}

/// Rows of a batch by their index, with their addresses in the table.
type AddressedRows = Vec<(usize, u64)>;

/// The rows of each source, with their addresses.
fn by_source(descriptors: &StructArray, rows: Vec<usize>) -> Result<Vec<(Source, AddressedRows)>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let unreadable = || Error::invalid("a value is no descriptor of a blob");
    let addresses = descriptors
        .column_by_name("address")
        .and_then(|column| column.as_primitive_opt::<UInt64Type>())
        .ok_or_else(unreadable)?;
    let sources = descriptors
        .column_by_name("source")
        .and_then(|column| column.as_string_view_opt())
        .ok_or_else(unreadable)?;
    let mut groups: Vec<(Source, Vec<(usize, u64)>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for row in rows {
        if addresses.is_null(row) || sources.is_null(row) {
            return Err(unreadable());
        }
        let text = sources.value(row);
        let place = match places.get(text) {
            Some(place) => *place,
            None => {
                groups.push((Source::parse(text).ok_or_else(unreadable)?, Vec::new()));
                places.insert(text, groups.len() - 1);
                groups.len() - 1
            }
        };
        groups[place].1.push((row, addresses.value(row)));
    }
    Ok(groups)
}

/// The column of a source as Lance names it.
fn column_path(dataset: &Dataset, source: &Source) -> Result<String> {
    dataset
        .schema()
        .field_path(source.field)
        .map_err(|error| storage_error(table_name(&source.uri), error))
}

/// Turns `rows`, whose blobs are bytes or descriptors, into rows that the writer takes for the
/// columns of `schema`. Of blobs that are copied, only so many are in memory as one batch of a
/// scan holds.
pub fn written_rows(
    reader: Arc<BlobReader>,
    rows: SendableRecordBatchStream,
    schema: &SchemaRef,
) -> SendableRecordBatchStream {
    if !schema.fields().iter().any(|field| is_blob(field)) {
        return rows;
    }
    let stored = Arc::clone(schema);
    let written = written_schema(schema);
    let output = Arc::clone(&written);
    let rows = rows
        .map_ok(|batch| stream::iter(parts_by_bytes(batch).into_iter().map(Ok)))
        .try_flatten()
        .and_then(move |batch: RecordBatch| {
            let (reader, stored) = (Arc::clone(&reader), Arc::clone(&stored));
            let written = Arc::clone(&written);
            async move {
                let mut arrays = Vec::with_capacity(batch.num_columns());
                for (field, array) in stored.fields().iter().zip(batch.columns()) {
                    let bytes = match array.as_struct_opt() {
                        Some(descriptors) if is_blob(field) && is_descriptor(array.data_type()) => {
                            let parts = vec![Some(Part::default()); descriptors.len()];
                            Arc::new(reader.read(descriptors, &parts).await?) as ArrayRef
                        }
                        _ => Arc::clone(array),
                    };
                    arrays.push(written_array(field, &bytes)?);
                }
                Ok(RecordBatch::try_new(written, arrays)?)
            }
        });
    Box::pin(RecordBatchStreamAdapter::new(output, rows.boxed()))
}

/// Cuts a batch so that the blobs it describes are few bytes, unless a single row has more.
pub(super) fn parts_by_bytes(batch: RecordBatch) -> Vec<RecordBatch> {
    let rows = batch.num_rows();
    if rows < 2 || described_bytes(&batch) <= DEFAULT_BATCH_BYTES {
        return vec![batch];
    }
    let mut parts = parts_by_bytes(batch.slice(0, rows / 2));
    parts.extend(parts_by_bytes(batch.slice(rows / 2, rows - rows / 2)));
    parts
}
