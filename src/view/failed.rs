//! Rows of a view for which a call failed: `on_error = 'skip'`, and FAILED ONLY.
//!
//! Such a row has NULL in the column, and its key is in the state of the view. It stays so until what the column reads of
//! the sources changes, until FAILED ONLY asks for it, or until all is computed. That is possible where a value comes from
//! single rows of the sources: in the last projection of a by-row query.

use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::{concat, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use serde::{Deserialize, Serialize};

use super::assess::{Assessment, Functions, Part, check_columns, digest};
use super::compare::SourceChange;
use super::paid::{PaidColumn, paid_columns};
use super::query::Query;
use super::reason::{DEFINITION_CHANGED, FIRST_REFRESH, STATE_LOST, TARGET_MODIFIED};
use super::source::SourceVersions;
use super::state::{FoundState, find_state};
use crate::database::materialized_view::ViewDefinition;
use crate::database::view::Reading;
use crate::database::{Database, Table};
use crate::delta::VersionStamp;
use crate::function::has_call;
use crate::job::staged::{from_ipc, ipc};
use crate::storage::RowSet;
use crate::storage::keys::RowEncoder;
use crate::{Error, ErrorKind, Result};

/// Most bytes of keys in a state; more go to a file.
const INLINE_BYTES: usize = 64 << 10;

/// What becomes of a row whose call fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It fails the refresh.
    #[default]
    Fail,
    /// It gets NULL, and a record of the error.
    Skip,
}

/// Rows of a column that are on record as failed, as a state holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedRows {
    /// The column.
    pub column: String,
    /// How many rows.
    pub rows: u64,
    /// Their keys.
    pub keys: StoredKeys,
}

/// Keys of rows, as Arrow IPC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredKeys {
    /// In base64.
    Inline(String),
    /// In this file below `_headwater/`, because they are many.
    File(String),
}

/// Keys of rows that failed in a column.
#[derive(Debug, Default)]
pub(super) struct FailedKeys {
    /// By column of the key; each part as long in all of them.
    parts: Vec<Vec<ArrayRef>>,
    /// Their bytes, if they are looked up.
    bytes: HashSet<Box<[u8]>>,
}

impl FailedKeys {
    /// Adds keys.
    pub(super) fn push(&mut self, keys: &[ArrayRef]) {
        if keys.first().is_some_and(|key| !key.is_empty()) {
            self.parts.push(keys.to_vec());
        }
    }

    /// Whether the key with these bytes was there when it was read.
    pub(super) fn contains(&self, key: &[u8]) -> bool {
        !self.bytes.is_empty() && self.bytes.contains(key)
    }

    /// All keys; `None` if there are none.
    fn batch(&self) -> Result<Option<RecordBatch>> {
        let Some(first) = self.parts.first() else {
            return Ok(None);
        };
        let columns = (0..first.len()).map(|place| {
            let parts: Vec<&dyn Array> = self.parts.iter().map(|p| p[place].as_ref()).collect();
            Ok((format!("_key_{}", place + 1), concat(&parts)?, true))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(Some(RecordBatch::try_from_iter_with_nullable(columns)?))
    }

    /// It as a state holds it; `None` if there are no keys.
    async fn stored(&self, database: &Database, column: &str) -> Result<Option<FailedRows>> {
        let Some(batch) = self.batch()? else {
            return Ok(None);
        };
        let bytes = ipc(&batch)?;
        let keys = match bytes.len() <= INLINE_BYTES {
            true => StoredKeys::Inline(BASE64.encode(&bytes)),
            false => {
                let path = format!("pending/{}", uuid::Uuid::new_v4());
                database.root().create_own(&path, bytes).await?;
                StoredKeys::File(path)
            }
        };
        Ok(Some(FailedRows {
            column: column.to_string(),
            rows: batch.num_rows() as u64,
            keys,
        }))
    }

    /// The keys of a column that a state has, if they have these types. Those that are gone count as none: the rows keep
    /// NULL until their inputs change.
    async fn read(database: &Database, failed: &FailedRows, types: &[DataType]) -> Result<Self> {
        let damaged = |error: &dyn std::fmt::Display| {
            Error::new(
                ErrorKind::Storage,
                format!(
                    "the failed rows of column '{}' can't be read: {error}",
                    failed.column
                ),
            )
            .with_hint("REFRESH … FULL computes all rows")
        };
        let bytes = match &failed.keys {
            StoredKeys::Inline(text) => BASE64.decode(text).map_err(|e| damaged(&e))?,
            StoredKeys::File(path) => match database.root().read_own(path).await? {
                Some(bytes) => bytes.to_vec(),
                None => return Ok(Self::default()),
            },
        };
        let batch = from_ipc(&bytes, None).map_err(|error| damaged(&error))?;
        let found = batch.columns().iter().map(|column| column.data_type());
        if !found.eq(types) {
            return Ok(Self::default());
        }
        let encoder = RowEncoder::new(types)?
            .ok_or_else(|| Error::internal("the key of a view can't be compared"))?;
        let rows = encoder.encode(batch.columns())?;
        Ok(Self {
            bytes: rows.iter().map(|row| row.as_ref().into()).collect(),
            parts: vec![batch.columns().to_vec()],
        })
    }

    /// Adds the keys of `before` none of whose rows of the sources are in `removed`, each set with its place in the key:
    /// this refresh did not look at them.
    fn carry(&mut self, before: &Self, removed: &[(usize, Arc<RowSet>)]) -> Result<()> {
        let Some(batch) = before.batch()? else {
            return Ok(());
        };
        let stays: BooleanArray = (0..batch.num_rows())
            .map(|row| {
                let is_removed = removed.iter().any(|(place, removed)| {
                    let ids = batch.column(*place).as_primitive::<UInt64Type>();
                    ids.is_valid(row) && removed.contains(ids.value(row))
                });
                Some(!is_removed)
            })
            .collect();
        self.push(filter_record_batch(&batch, &stays)?.columns());
        Ok(())
    }
}

/// The rows of `columns` that `state` has on record as failed, in their order.
pub(super) async fn read(
    database: &Database,
    state: &[FailedRows],
    columns: &[PaidColumn],
    types: &[DataType],
) -> Result<Vec<FailedKeys>> {
    let mut all = Vec::with_capacity(columns.len());
    for column in columns {
        let found = state.iter().find(|failed| failed.column == column.name);
        all.push(match found {
            Some(failed) => FailedKeys::read(database, failed, types).await?,
            None => FailedKeys::default(),
        });
    }
    Ok(all)
}

/// What the state after a refresh has on record: what failed in it, and what it left alone. `removed` are the rows of
/// sources that changed, each with its place in the key; `None` if all rows were computed.
pub(super) async fn after(
    database: &Database,
    columns: &[PaidColumn],
    mut now: Vec<FailedKeys>,
    before: &[FailedKeys],
    removed: Option<&[(usize, Arc<RowSet>)]>,
) -> Result<Vec<FailedRows>> {
    let mut stored = Vec::new();
    for ((column, now), before) in columns.iter().zip(&mut now).zip(before) {
        if let Some(removed) = removed {
            now.carry(before, removed)?;
        }
        stored.extend(now.stored(database, &column.name).await?);
    }
    Ok(stored)
}

/// Refuses `on_error = 'skip'` where a row can't be skipped.
pub(super) fn check_skip(view: &str, query: &Query) -> Result<()> {
    let refuse = |why: &str, hint: &str| {
        Err(Error::invalid(format!(
            "on_error = 'skip': materialized view '{view}' {why}"
        ))
        .with_hint(hint))
    };
    let columns = match &query.root {
        Some(root) => paid_columns(root, query)?,
        None => Vec::new(),
    };
    let mut others = 0;
    let mut is_top = true;
    query.plan.apply_with_subqueries(|node| {
        let is_skipped =
            is_top && !columns.is_empty() && matches!(node, LogicalPlan::Projection(_));
        is_top &= !matches!(node, LogicalPlan::Projection(_));
        if !is_skipped {
            node.apply_expressions(|expr| {
                others += usize::from(has_call(expr));
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if others > 0 {
        return refuse(
            "calls a function below its columns, where its result is part of other rows",
            "call it in a view of its own, in a column, and let this view read that; or leave on_error out",
        );
    }
    if !query.stages.is_empty() {
        return refuse(
            "calls functions for rows that are grouped or limited before",
            "call them in a view of its own, which reads this one; or leave on_error out",
        );
    }
    if columns.is_empty() {
        return refuse("calls no function in a column", "leave on_error out");
    }
    Ok(())
}

/// What FAILED ONLY has to do: compute the rows on record as failed, at the versions that the view reflects.
pub(super) async fn assess(
    database: &Database,
    session: &SessionState,
    view: &Table,
    definition: &ViewDefinition,
) -> Result<Assessment> {
    let name = &view.name;
    let refuse = |code: &str| {
        Err(Error::invalid(format!(
            "REFRESH MATERIALIZED VIEW {name} FAILED ONLY: {code}"
        ))
        .with_hint(format!(
            "REFRESH MATERIALIZED VIEW {name} computes what is to be computed"
        )))
    };
    let state = match find_state(name, &view.dataset).await? {
        FoundState::State(state) => *state,
        FoundState::Never => return refuse(FIRST_REFRESH),
        FoundState::Lost => return refuse(STATE_LOST),
        FoundState::Modified => return refuse(TARGET_MODIFIED),
    };
    if state.definition != digest(database, definition).await? {
        return refuse(DEFINITION_CHANGED);
    }
    let versions = state.tables();
    let reading = Reading {
        versions: versions
            .map(|s| (s.table.clone(), s.version.version))
            .collect(),
        ..definition.reading()
    };
    let query = Query::plan(session, definition, reading)
        .await
        .map_err(|error| error.context(format!("materialized view '{name}'")))?;
    check_columns(view, &query)?;
    let mut keys = Vec::new();
    // Where there are stages, no row is on record.
    if let Some(root) = query.root.as_ref().filter(|_| query.stages.is_empty()) {
        let columns = paid_columns(root, &query)?;
        let types: Vec<DataType> = root.keys.iter().map(|key| key.data_type.clone()).collect();
        keys = read(database, &state.failed, &columns, &types).await?;
    }
    let (mut versions, mut changes) = (Vec::new(), Vec::new());
    for ((source, dataset), then) in query.tables().zip(state.tables()) {
        if VersionStamp::of(dataset).await? != then.version {
            return refuse(crate::delta::FullReason::SourceReplaced.code());
        }
        let mut rows = RowSet::new();
        let place = versions.len();
        let key = query.root.as_ref().map(|root| &root.keys);
        let key = key.and_then(|keys| keys.iter().position(|key| key.source == Some(place)));
        for failed in &keys {
            if let (Some(batch), Some(key)) = (failed.batch()?, key) {
                rows.extend(
                    batch
                        .column(key)
                        .as_primitive::<UInt64Type>()
                        .iter()
                        .flatten(),
                );
            }
        }
        let rows = Arc::new(rows);
        changes.push(SourceChange {
            table: source.table.clone(),
            from: Some(then.version.version),
            to: then.version.version,
            rows: Some([0, 0, 0]),
            commits: 0,
        });
        versions.push(SourceVersions {
            old: Some(Arc::clone(dataset)),
            new: Arc::clone(dataset),
            removed: Arc::clone(&rows),
            added: rows,
        });
    }
    let mode = match versions.iter().all(|source| source.added.is_empty()) {
        true => "none",
        false => "filtered",
    };
    Ok(Assessment {
        view: Part::again(query, mode, state, versions),
        stages: Vec::new(),
        changes,
        estimates: Vec::new(),
        functions: Functions::new(),
    })
}
