//! BTrees on columns that rows are looked up in.

use std::collections::HashSet;

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::optimize::OptimizeOptions;
use lance_index::scalar::ScalarIndexParams;
use lance_table::format::{Fragment, IndexMetadata};
use roaring::RoaringBitmap;

use super::storage_error;
use crate::Result;

/// Rows of a page of a BTree, as Lance makes them: with a key for each page, all of it is read.
pub const PAGE_ROWS: u64 = 4096;

/// What the names of indexes begin with that nobody asked for.
const PREFIX: &str = "headwater_";
/// Of how many rows one lies in fragments that an index does not cover when it is extended.
const UNCOVERED: u64 = 8;
/// Parts of an index from which on they are merged.
const PARTS: usize = 8;

/// Names of the columns of `table` that there is a BTree on.
///
/// # Errors
///
/// If the store fails.
pub async fn btree_columns(table: &str, dataset: &Dataset) -> Result<HashSet<String>> {
    let indices = dataset.load_indices().await;
    let indices = indices.map_err(|error| storage_error(table, error))?;
    let fields = indices.iter().filter_map(btree_field);
    let fields = fields.filter_map(|id| dataset.schema().field_by_id(id));
    Ok(fields.map(|field| field.name.clone()).collect())
}

/// The field that an index is a BTree on.
fn btree_field(index: &IndexMetadata) -> Option<i32> {
    let details = index.index_details.as_ref()?;
    match index.fields.as_slice() {
        [field] if details.type_url.ends_with("BTreeIndexDetails") => Some(*field),
        _ => None,
    }
}

/// What became of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// There was none.
    Made,
    /// It did not cover enough rows.
    Extended,
    /// There was nothing to do.
    AsItWas,
}

/// Makes a BTree on `column` of the newest version of a table, or extends the one that is there, if it does not cover
/// enough rows. One that somebody else has made is left alone.
///
/// # Errors
///
/// If the store fails, or other writers were quicker.
pub async fn keep_btree(table: &str, dataset: &Dataset, column: &str) -> Result<Kept> {
    let failed = |error| storage_error(table, error);
    let mut dataset = dataset.clone();
    dataset.checkout_latest().await.map_err(failed)?;
    let Some(field) = dataset.schema().field(column).map(|field| field.id) else {
        return Ok(Kept::AsItWas);
    };
    let indices = dataset.load_indices().await.map_err(failed)?;
    let parts: Vec<&IndexMetadata> = indices
        .iter()
        .filter(|index| btree_field(index) == Some(field))
        .collect();
    let Some(first) = parts.first() else {
        let name = Some(format!("{PREFIX}{column}"));
        let params = ScalarIndexParams::default();
        let columns = [column];
        let made = dataset.create_index(&columns, IndexType::BTree, name, &params, false);
        made.await.map_err(failed)?;
        return Ok(Kept::Made);
    };
    let name = first.name.clone();
    if !name.starts_with(PREFIX) {
        return Ok(Kept::AsItWas);
    }
    let bitmaps = parts
        .iter()
        .filter_map(|part| part.fragment_bitmap.as_ref());
    let covered: RoaringBitmap = bitmaps.fold(RoaringBitmap::new(), |all, part| all | part);
    let is_covered = |fragment: &Fragment| covered.contains(fragment.id as u32);
    let (mut all, mut uncovered) = (0, 0);
    for fragment in dataset.fragments().iter() {
        let rows = fragment.physical_rows.unwrap_or_default() as u64;
        all += rows;
        uncovered += if is_covered(fragment) { 0 } else { rows };
    }
    if uncovered * UNCOVERED <= all {
        return Ok(Kept::AsItWas);
    }
    let options = match parts.len() < PARTS {
        true => OptimizeOptions::append(),
        false => OptimizeOptions::merge(parts.len()),
    };
    let options = options.index_names(vec![name]);
    let extended = dataset.optimize_indices(&options);
    extended.await.map_err(failed)?;
    Ok(Kept::Extended)
}
