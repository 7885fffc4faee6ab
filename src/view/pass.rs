//! One pass of maintenance, and what is found out once in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Column;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};
use datafusion::physical_plan::execute_stream;
use futures::StreamExt;
use tokio::sync::{Mutex, OnceCell};

use super::index::LookUps;
use super::operator::Node;
use super::relation::{KeyColumn, Restriction, Side, hidden_names, project};
use super::source::SourceVersions;
use crate::storage::key_set::KeySet;
use crate::{Error, Result};

/// What is found out once, by what it is of.
type Memo<K, V> = Mutex<HashMap<K, Arc<OnceCell<V>>>>;

/// One pass of maintenance: which versions it goes from and to, and what was found out on the way.
#[derive(Debug)]
pub(super) struct Pass {
    /// The session.
    pub(super) state: SessionState,
    /// The versions of each source, in the order of the query.
    pub(super) sources: Vec<SourceVersions>,
    /// Where rows were looked up by key.
    pub(super) look_ups: Arc<LookUps>,
    /// The keys that changes touch, by node: found once, used by several relations.
    touched: Memo<usize, Arc<KeySet>>,
    /// What changes add to groups, by node.
    deltas: Memo<usize, Arc<GroupDelta>>,
    /// What nodes remove and add, by node.
    kept: Memo<Relation, Kept>,
    /// Keys that kept relations are restricted by: as long as they are held, no other set has the address of one.
    restricted_by: Mutex<Vec<Arc<KeySet>>>,
    /// The rows of the view, with all its columns.
    stored: LogicalPlan,
}

/// Which relation of which node, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Relation {
    Side(usize, Side),
    /// Its unchanged rows with some keys, by the address of their set.
    Restricted(usize, usize),
}

/// Rows of a restriction.
#[derive(Debug)]
pub(super) struct Restricted {
    /// The rows; `None` if there are none.
    pub(super) rows: Option<LogicalPlan>,
    /// Whether they are in memory.
    pub(super) is_kept: bool,
}

/// A relation that was computed.
#[derive(Debug, Clone)]
enum Kept {
    /// It has no row.
    Empty,
    /// Its rows.
    Rows(Arc<MemTable>),
    /// It is too large to be kept.
    TooLarge,
}

/// Rows of sources that are rather read again than looked for some of them.
const FEW_ROWS: u64 = 10_000;

/// Bytes of a relation that is kept.
const MOST_KEPT: usize = 64 << 20;

/// What changes of its input add to the groups of a node and take away.
#[derive(Debug)]
pub(super) struct GroupDelta {
    /// The groups.
    pub(super) keys: Arc<KeySet>,
    /// Their states; `None` if there is no change.
    pub(super) rows: Option<Arc<MemTable>>,
}

impl Pass {
    /// A pass over these versions, for a view whose rows `stored` gives. Look-ups are noted in `look_ups`.
    pub(super) fn new(
        state: SessionState,
        sources: Vec<SourceVersions>,
        look_ups: Arc<LookUps>,
        stored: LogicalPlan,
    ) -> Self {
        Self {
            state,
            sources,
            look_ups,
            touched: Mutex::default(),
            deltas: Mutex::default(),
            kept: Mutex::default(),
            restricted_by: Mutex::default(),
            stored,
        }
    }

    /// A relation of a node that is computed when it is first asked for.
    pub(super) async fn kept_relation(
        &self,
        node: &Node,
        side: Side,
    ) -> Result<Option<LogicalPlan>> {
        let cell = self.kept_cell(Relation::Side(node.id, side)).await;
        let kept = cell.get_or_try_init(async || {
            self.keep(
                &format!("{} {side:?}", node.name()),
                node.stream(self, side).await?,
            )
            .await
        });
        match kept.await? {
            Kept::Empty => Ok(None),
            Kept::TooLarge => node.stream(self, side).await,
            Kept::Rows(table) => scan_kept(node, table).map(Some),
        }
    }

    /// The unchanged rows of a node that meet `restriction`, computed when they are first asked for.
    pub(super) async fn kept_restricted(
        &self,
        node: &Node,
        restriction: &Restriction,
    ) -> Result<Restricted> {
        if restriction.keys.is_empty() {
            return Ok(Restricted {
                rows: None,
                is_kept: true,
            });
        }
        let most = node.source_rows(self);
        if most < FEW_ROWS || restriction.keys.len() as u64 > most / 2 {
            return Ok(Restricted {
                rows: node.filtered(self, restriction).await?,
                is_kept: false,
            });
        }
        let set = Arc::as_ptr(&restriction.keys) as usize;
        let cell = self.kept_cell(Relation::Restricted(node.id, set)).await;
        let kept = cell.get_or_try_init(async || {
            self.restricted_by
                .lock()
                .await
                .push(Arc::clone(&restriction.keys));
            let what = format!("{} with {} keys", node.name(), restriction.keys.len());
            self.keep(&what, node.stream_restricted(self, restriction).await?)
                .await
        });
        Ok(match kept.await? {
            Kept::Empty => Restricted {
                rows: None,
                is_kept: true,
            },
            Kept::TooLarge => Restricted {
                rows: node.stream_restricted(self, restriction).await?,
                is_kept: false,
            },
            Kept::Rows(table) => Restricted {
                rows: Some(scan_kept(node, table)?),
                is_kept: true,
            },
        })
    }

    async fn kept_cell(&self, relation: Relation) -> Arc<OnceCell<Kept>> {
        Arc::clone(self.kept.lock().await.entry(relation).or_default())
    }

    async fn keep(&self, what: &str, plan: Option<LogicalPlan>) -> Result<Kept> {
        let Some(plan) = plan else {
            return Ok(Kept::Empty);
        };
        // Names without qualifiers, each once.
        let columns = plan.schema().columns().into_iter().enumerate();
        let columns = columns
            .map(|(place, column)| Expr::Column(column).alias(format!("__column_{place}")))
            .collect();
        let began = Instant::now();
        let mut rows = self.execute(&project(plan, columns)?).await?;
        let planned = began.elapsed();
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            bytes += batch.get_array_memory_size();
            if bytes > MOST_KEPT {
                return Ok(Kept::TooLarge);
            }
            if batch.num_rows() > 0 {
                batches.push(batch);
            }
        }
        log::debug!(
            "{what}: {} rows, {bytes} bytes, planned in {planned:?}, all in {:?}",
            batches.iter().map(RecordBatch::num_rows).sum::<usize>(),
            began.elapsed()
        );
        match batches.first().map(RecordBatch::schema) {
            Some(schema) => Ok(Kept::Rows(Arc::new(MemTable::try_new(
                schema,
                vec![batches],
            )?))),
            None => Ok(Kept::Empty),
        }
    }

    /// Where the changes of a node's groups are kept once they are found.
    pub(super) async fn group_delta(&self, node: usize) -> Arc<OnceCell<Arc<GroupDelta>>> {
        Arc::clone(self.deltas.lock().await.entry(node).or_default())
    }

    /// The stored rows of the view: the columns `keys` of its last operator, by their names in plans.
    pub(super) fn stored_groups(&self, keys: &[KeyColumn]) -> Result<LogicalPlan> {
        let stored = self.stored.clone();
        let qualifier = stored.schema().qualified_field(0).0.cloned();
        let columns = hidden_names(keys).into_iter().zip(keys).map(|(name, key)| {
            // Text may be stored in another way than plans hold it.
            let stored = Expr::Column(Column::new(qualifier.clone(), name));
            cast(stored, key.data_type.clone()).alias(&key.name)
        });
        Ok(project(stored, columns.collect())?)
    }

    /// Runs a plan.
    pub(super) async fn execute(&self, plan: &LogicalPlan) -> Result<SendableRecordBatchStream> {
        let plan = self.state.optimize(plan)?;
        let plan = self
            .state
            .query_planner()
            .create_physical_plan(&plan, &self.state)
            .await?;
        Ok(execute_stream(plan, self.state.task_ctx())?)
    }

    /// The values of `keys`, over the output of `input`, in the rows that are removed from it or added to it. `place` tells them
    /// from others of the same query: three times the node's number, and up to two more.
    pub(super) async fn touched(
        &self,
        place: usize,
        inputs: &[(&Node, &[Expr])],
    ) -> Result<Arc<KeySet>> {
        let cell = Arc::clone(self.touched.lock().await.entry(place).or_default());
        let found = cell
            .get_or_try_init(|| self.find_keys(inputs, &[Side::Removed, Side::Added]))
            .await?;
        Ok(Arc::clone(found))
    }

    /// The keys of the rows that are removed from the output of `root`, and perhaps of others.
    pub(super) async fn removed_keys(&self, root: &Node) -> Result<Arc<KeySet>> {
        if let Some(touched) = root.touched_keys(self).await? {
            return Ok(touched);
        }
        let keys = root.keys.iter().filter(|key| !key.is_state);
        let keys: Vec<Expr> = keys.map(KeyColumn::column).collect();
        self.find_keys(&[(root, &keys)], &[Side::Removed]).await
    }

    /// The values of `key` in `rows`; `None` for rows that there are none of.
    pub(super) async fn keys_of(
        &self,
        rows: Option<LogicalPlan>,
        key: &[Expr],
    ) -> Result<Arc<KeySet>> {
        let mut found = None;
        if let Some(rows) = rows {
            self.add_keys(&mut found, rows, key).await?;
        }
        found_keys(found)
    }

    async fn add_keys(
        &self,
        found: &mut Option<KeySet>,
        rows: LogicalPlan,
        key: &[Expr],
    ) -> Result<()> {
        let rows = match key.is_empty() {
            // Whether there is a row at all.
            true => {
                let one = project(rows, vec![lit(true)])?;
                LogicalPlanBuilder::from(one).limit(0, Some(1))?.build()?
            }
            false => project(rows, key.to_vec())?,
        };
        if found.is_none() {
            let fields = rows.schema().fields().iter();
            let set = KeySet::new(fields.map(|field| field.data_type()))?;
            *found = Some(set.ok_or_else(|| Error::internal("a key can't be compared"))?);
        }
        if let Some(found) = found {
            let began = Instant::now();
            found.extend(self.execute(&rows).await?).await?;
            log::debug!(
                "{} keys found by now, in {:?}",
                found.len(),
                began.elapsed()
            );
        }
        Ok(())
    }

    async fn find_keys(&self, inputs: &[(&Node, &[Expr])], sides: &[Side]) -> Result<Arc<KeySet>> {
        let mut found: Option<KeySet> = None;
        for (input, key) in inputs {
            for side in sides.iter().copied() {
                if let Some(rows) = input.relation(self, side).await? {
                    self.add_keys(&mut found, rows, key).await?;
                }
            }
        }
        found_keys(found)
    }

    /// Whether nothing is removed from the output of `input`, nor added to it.
    pub(super) async fn is_unchanged(&self, place: usize, input: &Node) -> Result<bool> {
        Ok(self.touched(place, &[(input, &[])]).await?.is_empty())
    }
}

fn found_keys(found: Option<KeySet>) -> Result<Arc<KeySet>> {
    let found = match found {
        Some(found) => Some(found),
        None => KeySet::new([])?,
    };
    found
        .map(Arc::new)
        .ok_or_else(|| Error::internal("an empty key can't be compared"))
}

/// Rows of `node` that were computed, with its columns and its key.
fn scan_kept(node: &Node, table: &Arc<MemTable>) -> Result<LogicalPlan> {
    let name = format!("__kept_{}", node.id);
    let table = provider_as_source(Arc::clone(table) as _);
    let rows = LogicalPlanBuilder::scan(name.as_str(), table, None)?.build()?;
    let mut columns = rows.schema().columns().into_iter().map(Expr::Column);
    let shown = node.schema.iter().zip(columns.by_ref());
    let mut all: Vec<Expr> = shown
        .map(|((qualifier, field), column)| {
            column.alias_qualified(qualifier.cloned(), field.name())
        })
        .collect();
    let keys = node.keys.iter().zip(columns);
    all.extend(keys.map(|(key, column)| column.alias(&key.name)));
    Ok(project(rows, all)?)
}
