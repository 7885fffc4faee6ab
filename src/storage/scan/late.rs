//! Scans with a filter: when the columns that it does not look at are read.
//!
//! With the others, or only for the rows that are found? Lance decides it by the width of a column alone, and to
//! look for half of the rows costs it three times as much as to read them all. Here the filter is evaluated first,
//! for some fragments at a time, and the number of rows that it finds decides.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::metrics::Count;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use lance::index::DatasetIndexExt;
use lance_core::ROW_ADDR;
use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::ScanDescription;
use super::look_up::compared;
use super::read::{Job, Reading};
use super::rows::{RowFilter, Selected, Selection, is_wide, row_addresses};
use super::schema::row_field;
use super::width::type_width;
use crate::Result;
use crate::storage::fragments::offsets_of;
use crate::storage::open::storage_error;

/// Of how many rows one is found, at least, where other columns are read for the found ones alone; if rows are wide, any that
/// is not found counts.
const LATE: u64 = 5;
/// Rows of the fragments that are decided about at a time, at least, but for the last.
const ROWS_AT_A_TIME: u64 = 1 << 20;
/// Of how many of these the rows are found at once.
const PARTS_AHEAD: usize = 2;

/// How a scan reads what its filter does not look at.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    /// In one go, as this says.
    AtOnce(Reading),
    /// The filter decides.
    ByFound,
}

impl Order {
    pub(super) async fn of(job: &Job) -> Result<Self> {
        let description = &job.description;
        let Some(filter) = &description.filter else {
            return Ok(Self::AtOnce(Reading::Plain));
        };
        let looked_at = looked_at(filter);
        let is_found_otherwise = looked_at.iter().any(|name| row_field(name).is_some())
            || is_indexed(job, &compared(filter)).await?;
        // A limit may be reached after a few rows.
        if is_found_otherwise || description.limit.is_some() {
            return Ok(Self::AtOnce(Reading::Plain));
        }
        // What is named by ids is few.
        if matches!(description.rows, RowFilter::Only(_)) {
            return Ok(Self::AtOnce(Reading::Early));
        }
        let others = description.columns.iter().map(String::as_str);
        let others = others.filter(|name| row_field(name).is_none() && !looked_at.contains(name));
        let schema = Schema::from(job.dataset.schema());
        let bytes = |names: &mut dyn Iterator<Item = &str>| -> u64 {
            let fields = names.filter_map(|name| schema.field_with_name(name).ok());
            fields.map(|field| type_width(field.data_type())).sum()
        };
        let (first, rest) = (
            bytes(&mut looked_at.iter().copied()),
            bytes(&mut { others }),
        );
        // The filter's columns may have to be read twice.
        Ok(match first < rest {
            true => Self::ByFound,
            false => Self::AtOnce(Reading::Early),
        })
    }
}

fn looked_at(filter: &Expr) -> HashSet<&str> {
    let columns = filter.column_refs();
    columns.into_iter().map(|column| column.name()).collect()
}

/// Whether there is an index that may find the rows.
async fn is_indexed(job: &Job, names: &HashSet<&str>) -> Result<bool> {
    let indices = job.dataset.load_indices().await;
    let indices = indices.map_err(|error| storage_error(job.description.table(), error))?;
    let fields = &job.dataset.schema().fields;
    let ids: HashSet<i32> = fields
        .iter()
        .filter(|field| names.contains(field.name.as_str()))
        .map(|field| field.id)
        .collect();
    Ok(indices
        .iter()
        .any(|index| index.fields.iter().any(|field| ids.contains(field))))
}

/// The rows of `job`, some fragments at a time.
pub(super) fn batches(
    job: Arc<Job>,
    bytes_read: Count,
) -> BoxStream<'static, Result<RecordBatch, DataFusionError>> {
    let parts = parts(&job);
    stream::iter(parts)
        .map(move |part| {
            let (job, bytes_read) = (Arc::clone(&job), bytes_read.clone());
            async move {
                let part = job.part(part);
                let (found, reading) = find(&part, bytes_read.clone()).await?;
                match found {
                    0 => Ok(stream::empty().boxed()),
                    _ => part.batches(bytes_read, reading).await,
                }
            }
        })
        .buffered(PARTS_AHEAD)
        .try_flatten()
        .boxed()
}

/// The fragments of `job`, as ranges of their places in its partition.
fn parts(job: &Job) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut rows = 0;
    for (place, (_, fragment)) in job.fragments().enumerate() {
        let more = fragment.physical_rows.unwrap_or_default() as u64;
        match parts.last_mut() {
            Some(part) if rows < ROWS_AT_A_TIME => part.end = place + 1,
            _ => {
                parts.push(place..place + 1);
                rows = 0;
            }
        }
        rows += more;
    }
    parts
}

/// How many rows `job` has, and how they are best read.
async fn find(job: &Job, bytes_read: Count) -> Result<(u64, Reading)> {
    let description = &job.description;
    // It is cheaper to find rows that are excepted, too, than to skip them.
    let excepted = match &description.rows {
        RowFilter::Except(ids) => Some(ids),
        RowFilter::All | RowFilter::Only(_) => None,
    };
    let finding = Job {
        description: Arc::new(ScanDescription {
            columns: vec![ROW_ADDR.to_string()],
            rows: match excepted {
                Some(_) => RowFilter::All,
                None => description.rows.clone(),
            },
            ..description.as_ref().clone()
        }),
        ..job.clone()
    };
    let mut found: HashMap<u32, RoaringBitmap> = HashMap::new();
    let mut batches = finding.batches(bytes_read, Reading::Early).await?;
    while let Some(batch) = batches.try_next().await? {
        for run in row_addresses(&batch, 0)?
            .values()
            .chunk_by(|a, b| a >> 32 == b >> 32)
        {
            let offsets = found.entry((run[0] >> 32) as u32).or_default();
            offsets.extend(run.iter().map(|address| *address as u32));
        }
    }
    if let Some(ids) = excepted {
        for (_, fragment) in job.fragments() {
            if let Some(found) = found.get_mut(&(fragment.id as u32)) {
                *found -= offsets_of(description.table(), &job.dataset, fragment, ids).await?;
            }
        }
    }
    let rows: u64 = found.values().map(RoaringBitmap::len).sum();
    let fragments: Vec<&Fragment> = job.fragments().map(|(_, fragment)| fragment).collect();
    let all = (fragments.iter()).map(|fragment| fragment.physical_rows.unwrap_or_default() as u64);
    let late = match fragments
        .iter()
        .any(|fragment| is_wide(&job.schema, fragment))
    {
        true => 1,
        false => LATE,
    };
    if rows.saturating_mul(late) >= all.sum() {
        return Ok((rows, Reading::Early));
    }
    let found = fragments.into_iter().map(|fragment| {
        let offsets = found.get(&(fragment.id as u32)).cloned();
        let offsets = offsets.unwrap_or_default();
        let found = Selected {
            rows: offsets.len(),
            offsets: Some(offsets),
        };
        (fragment, found)
    });
    Ok((rows, Reading::Found(Selection::new(&job.schema, found))))
}
