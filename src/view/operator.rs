//! The operators of a view's query, as maintenance sees them.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::common::{Column, DFSchemaRef};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};
use datafusion::physical_plan::execute_stream;
use futures::StreamExt;
use tokio::sync::{Mutex, OnceCell};

use super::keys::KeySet;
use super::relation::{KeyColumn, Side, arrange, hidden_names, project};
use super::source::SourceVersions;
use crate::{Error, Result};

/// An operator of a class: it says how its relations follow from those of its inputs.
#[async_trait]
pub(super) trait Operator: Debug + Send + Sync {
    /// One word for the class, as EXPLAIN shows it.
    fn class(&self) -> &'static str;

    /// What it reads from.
    fn inputs(&self) -> Vec<&Node>;

    /// One of its relations, with the columns of its node and the key behind them, in this order; `None` if there can't
    /// be a row in it.
    async fn relation(&self, node: &Node, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>>;

    /// Whether computing its relations costs more than keeping them.
    fn is_costly(&self) -> bool {
        false
    }

    /// Its input and the columns that it computes, if it is a projection.
    fn projection(&self) -> Option<(&Node, &[Expr])> {
        None
    }

    /// The columns of sources that a column of its output is computed from; `None` if that can't be told.
    fn origins(&self, _: &Column) -> Option<Origins> {
        None
    }

    /// The keys of the rows that may be removed or added, if they are found without computing these.
    async fn touched_keys(&self, _: &Node, _: &Pass) -> Result<Option<Arc<KeySet>>> {
        Ok(None)
    }

    /// Whether each of its rows comes from single rows of the sources, whose ids are its key, so that a row of
    /// its output changed only if one of those did.
    fn is_by_row(&self) -> bool {
        false
    }
}

/// Columns of sources, each with the place of its source among those of the query.
pub(super) type Origins = BTreeSet<(usize, String)>;

/// An operator in its place in the query.
#[derive(Debug)]
pub(super) struct Node {
    /// Its number, one in the query.
    pub(super) id: usize,
    /// The columns of its output, without the key.
    pub(super) schema: DFSchemaRef,
    /// Its key.
    pub(super) keys: Vec<KeyColumn>,
    operator: Box<dyn Operator>,
}

impl Node {
    /// An operator with these columns and this key.
    pub(super) fn new(
        id: usize,
        schema: DFSchemaRef,
        keys: Vec<KeyColumn>,
        operator: impl Operator + 'static,
    ) -> Self {
        Self {
            id,
            schema,
            keys,
            operator: Box::new(operator),
        }
    }

    /// One of its relations. What it removes and adds is computed once, and kept as long as it is small.
    pub(super) async fn relation(&self, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        let is_asked_again = matches!(side, Side::Removed | Side::Added);
        if is_asked_again && self.operator.is_costly() {
            return pass.kept_relation(self, side).await;
        }
        self.stream(pass, side).await
    }

    /// As [`relation`](Self::relation), for one that is asked for once only.
    pub(super) async fn stream(&self, pass: &Pass, side: Side) -> Result<Option<LogicalPlan>> {
        self.operator.relation(self, pass, side).await
    }

    /// Its input and the columns that it computes, if it is a projection.
    pub(super) fn projection(&self) -> Option<(&Node, &[Expr])> {
        self.operator.projection()
    }

    /// The columns of sources that a column of its output is computed from; `None` if that can't be told.
    pub(super) fn origins(&self, column: &Column) -> Option<Origins> {
        self.operator.origins(column)
    }

    /// The keys of the rows that are removed, and perhaps of others that may be.
    pub(super) async fn touched_keys(&self, pass: &Pass) -> Result<Option<Arc<KeySet>>> {
        self.operator.touched_keys(self, pass).await
    }

    /// Its columns and its key, taken from a plan that has them among others.
    pub(super) fn arrange(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        Ok(arrange(plan, &self.schema, &self.keys)?)
    }

    /// Whether each row comes from single rows of the sources, whose ids are its key.
    pub(super) fn is_by_row(&self) -> bool {
        self.operator.is_by_row() && self.operator.inputs().iter().all(|input| input.is_by_row())
    }

    /// The classes in it, from the top down, each once.
    pub(super) fn classes(&self) -> Vec<&'static str> {
        let mut classes = Vec::new();
        self.add_classes(&mut classes);
        classes
    }

    fn add_classes(&self, classes: &mut Vec<&'static str>) {
        if !classes.contains(&self.operator.class()) {
            classes.push(self.operator.class());
        }
        for input in self.operator.inputs() {
            input.add_classes(classes);
        }
    }
}

/// What is found out once, by what it is of.
type Memo<K, V> = Mutex<HashMap<K, Arc<OnceCell<V>>>>;

/// One pass of maintenance: which versions it goes from and to, and what was found out on the way.
#[derive(Debug)]
pub(super) struct Pass {
    /// The session.
    pub(super) state: SessionState,
    /// The versions of each source, in the order of the query.
    pub(super) sources: Vec<SourceVersions>,
    /// The keys that changes touch, by node: found once, used by several relations.
    touched: Memo<usize, Arc<KeySet>>,
    /// What changes add to groups, by node.
    deltas: Memo<usize, Arc<GroupDelta>>,
    /// What nodes remove and add, by node.
    kept: Memo<(usize, Side), Kept>,
    /// The rows of the view, with all its columns.
    stored: LogicalPlan,
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
    /// A pass over these versions, for a view whose rows `stored` gives.
    pub(super) fn new(
        state: SessionState,
        sources: Vec<SourceVersions>,
        stored: LogicalPlan,
    ) -> Self {
        Self {
            state,
            sources,
            touched: Mutex::default(),
            deltas: Mutex::default(),
            kept: Mutex::default(),
            stored,
        }
    }

    /// A relation of a node that is computed when it is first asked for.
    async fn kept_relation(&self, node: &Node, side: Side) -> Result<Option<LogicalPlan>> {
        let cell = Arc::clone(self.kept.lock().await.entry((node.id, side)).or_default());
        let kept = cell.get_or_try_init(|| self.keep(node, side)).await?;
        let table = match kept {
            Kept::Empty => return Ok(None),
            Kept::TooLarge => return node.stream(self, side).await,
            Kept::Rows(table) => Arc::clone(table),
        };
        let name = format!("__kept_{}", node.id);
        let rows = LogicalPlanBuilder::scan(name.as_str(), provider_as_source(table), None)?;
        let rows = rows.build()?;
        let mut columns = rows.schema().columns().into_iter().map(Expr::Column);
        let shown = node.schema.iter().zip(columns.by_ref());
        let mut all: Vec<Expr> = shown
            .map(|((qualifier, field), column)| {
                column.alias_qualified(qualifier.cloned(), field.name())
            })
            .collect();
        let keys = node.keys.iter().zip(columns);
        all.extend(keys.map(|(key, column)| column.alias(&key.name)));
        Ok(Some(project(rows, all)?))
    }

    async fn keep(&self, node: &Node, side: Side) -> Result<Kept> {
        let Some(plan) = node.stream(self, side).await? else {
            return Ok(Kept::Empty);
        };
        // Names without qualifiers, each once.
        let columns = plan.schema().columns().into_iter().enumerate();
        let columns = columns
            .map(|(place, column)| Expr::Column(column).alias(format!("__column_{place}")))
            .collect();
        let mut rows = self.execute(&project(plan, columns)?).await?;
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

    async fn find_keys(&self, inputs: &[(&Node, &[Expr])], sides: &[Side]) -> Result<Arc<KeySet>> {
        let mut found: Option<KeySet> = None;
        for (input, keys) in inputs {
            for side in sides.iter().copied() {
                let Some(rows) = input.relation(self, side).await? else {
                    continue;
                };
                let rows = match keys.is_empty() {
                    // Whether there is a row at all.
                    true => {
                        let one = project(rows, vec![lit(true)])?;
                        LogicalPlanBuilder::from(one).limit(0, Some(1))?.build()?
                    }
                    false => project(rows, keys.to_vec())?,
                };
                let types: Vec<_> = rows
                    .schema()
                    .fields()
                    .iter()
                    .map(|field| field.data_type().clone())
                    .collect();
                if found.is_none() {
                    let set = KeySet::new(&types)?
                        .ok_or_else(|| Error::internal("a key can't be compared"))?;
                    found = Some(set);
                }
                if let Some(found) = &mut found {
                    found.extend(self.execute(&rows).await?).await?;
                }
            }
        }
        match found {
            Some(found) => Ok(Arc::new(found)),
            None => KeySet::new([])?
                .map(Arc::new)
                .ok_or_else(|| Error::internal("an empty key can't be compared")),
        }
    }

    /// Whether nothing is removed from the output of `input`, nor added to it.
    pub(super) async fn is_unchanged(&self, place: usize, input: &Node) -> Result<bool> {
        Ok(self.touched(place, &[(input, &[])]).await?.is_empty())
    }
}
