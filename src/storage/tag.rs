//! Tags: names for versions, which Lance keeps and other programs see.
//!
//! A tag keeps its version from being cleaned up by anyone.

use lance::Dataset;
use lance::dataset::refs::TagContents;

use super::storage_error;
use crate::{Error, Result};

/// A tag of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its name.
    pub name: String,
    /// The version it is on.
    pub version: u64,
    /// The branch that the version is of; `None` for the table itself.
    pub branch: Option<String>,
    /// When it was made, in milliseconds since 1970, UTC; `None` if it does not say.
    pub created_millis: Option<i64>,
}

impl Tag {
    fn new(name: String, contents: TagContents) -> Self {
        Self {
            name,
            version: contents.version,
            branch: contents.branch,
            created_millis: contents.created_at.map(|at| at.timestamp_millis()),
        }
    }
}

/// The tags of a table, by name.
pub async fn tags(table: &str, dataset: &Dataset) -> Result<Vec<Tag>> {
    let found = dataset.tags().list().await;
    let found = found.map_err(|error| storage_error(table, error))?;
    let mut tags: Vec<Tag> = found
        .into_iter()
        .map(|(name, contents)| Tag::new(name, contents))
        .collect();
    tags.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tags)
}

/// The version of the table that `tag` is on.
///
/// # Errors
///
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound), with the nearest name, if there is no such
/// tag; [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if it is on a branch.
pub async fn tag_version(table: &str, dataset: &Dataset, tag: &str) -> Result<u64> {
    let contents = match dataset.tags().get(tag).await {
        Ok(contents) => contents,
        Err(lance::Error::RefNotFound { .. }) => return Err(no_such_tag(table, dataset, tag).await),
        Err(error) => return Err(storage_error(table, error)),
    };
    match contents.branch {
        None => Ok(contents.version),
        Some(branch) => Err(Error::invalid(format!(
            "tag '{tag}' of table '{table}' is on branch '{branch}', which can't be read here"
        ))),
    }
}

/// The error for a tag that is not there.
pub async fn no_such_tag(table: &str, dataset: &Dataset, tag: &str) -> Error {
    let known = tags(table, dataset).await.unwrap_or_default();
    let error = Error::not_found("tag", tag, known.iter().map(|tag| tag.name.as_str()));
    let error = error.context(format!("table '{table}'"));
    match error.hint() {
        Some(_) => error,
        None => error.with_hint(format!("SHOW TAGS FROM {table} lists them")),
    }
}

/// Puts a tag on a version, which must be there. Returns false, and changes nothing, if there is a tag of
/// that name.
pub async fn create_tag(table: &str, dataset: &Dataset, tag: &str, version: u64) -> Result<bool> {
    match dataset.tags().create(tag, version).await {
        Ok(()) => Ok(true),
        Err(lance::Error::RefConflict { .. }) => Ok(false),
        Err(error) => Err(storage_error(table, error)),
    }
}

/// Puts a tag on a version, which must be there, wherever it was before.
pub async fn move_tag(table: &str, dataset: &Dataset, tag: &str, version: u64) -> Result<()> {
    loop {
        match dataset.tags().update(tag, version).await {
            Ok(()) => return Ok(()),
            Err(lance::Error::RefNotFound { .. }) => {}
            Err(error) => return Err(storage_error(table, error)),
        }
        // Another may make or drop it in between.
        if create_tag(table, dataset, tag, version).await? {
            return Ok(());
        }
    }
}

/// Removes a tag. Returns false if there is none of that name.
pub async fn drop_tag(table: &str, dataset: &Dataset, tag: &str) -> Result<bool> {
    match dataset.tags().delete(tag).await {
        Ok(()) => Ok(true),
        Err(lance::Error::RefNotFound { .. }) => Ok(false),
        Err(error) => Err(storage_error(table, error)),
    }
}
