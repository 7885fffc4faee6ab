//! GROUP BY with counts, sums and averages of integers and decimals, which can be taken back.
//!
//! Key: the group. With every group its state is stored: how many rows it has and, for each argument, how many
//! values and their sum. With σ the state of the groups of a relation,
//!
//! - state₁ = state₀ + σ(S⁺) − σ(S⁻),
//!
//! so the input is read only where it changed. A group without rows goes. Arithmetic on integers and decimals is exact,
//! so the result is the one that the query gives; sums of floats would depend on what was added and taken back on the way,
//! and are grouped anew (see [`super::group`]).
//!
//! The state has to be stored with the result, so this is for a grouping above which there are only projections.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Decimal128Array};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Int64Type};
use datafusion::common::{Column, DFSchema, DataFusionError};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::functions_aggregate::expr_fn::{count, sum};
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams};
use datafusion::logical_expr::{
    Aggregate, Cast, ColumnarValue, Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast, lit, when,
};
use futures::TryStreamExt;
use futures::future::BoxFuture;

use super::cost::{Cost, Known, touched};
use super::operator::{Node, Operator, Planned};
use super::pass::{GroupDelta, Pass};
use super::relation::{KeyColumn, Side, project, union};
use crate::storage::key_set::KeySet;
use crate::storage::keys::{in_keys, one_zero};
use crate::{Error, Result};

/// A grouping whose results can be taken back.
#[derive(Debug)]
pub(super) struct SignedGroup {
    /// Where the rows come from.
    pub(super) input: Node,
    /// What they are grouped by; empty for one group.
    pub(super) groups: Vec<Expr>,
    /// How each aggregate follows from the state.
    pub(super) results: Vec<Finish>,
    /// What the state is made of, behind the number of rows: aggregates of the input.
    pub(super) states: Vec<Expr>,
}

/// How an aggregate follows from the state of its group; numbers are places in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finish {
    /// A count.
    Count(usize),
    /// A sum, NULL if there is no value.
    Sum { sum: usize, count: usize },
    /// An average, NULL if there is no value.
    Average { sum: usize, count: usize },
}

/// The place of the number of rows in a state.
const ROWS: usize = 0;

/// What the aggregates of a grouping need; `None` if there is one that can't be taken back.
pub(super) fn states(
    aggregates: &[Expr],
    schema: &DFSchema,
) -> datafusion::common::Result<Option<(Vec<Expr>, Vec<Finish>)>> {
    let mut states = vec![count(lit(1_i64))];
    let mut results = Vec::with_capacity(aggregates.len());
    let place = |state: Expr, states: &mut Vec<Expr>| match states.iter().position(|s| *s == state)
    {
        Some(place) => place,
        None => {
            states.push(state);
            states.len() - 1
        }
    };
    for aggregate in aggregates {
        let Expr::AggregateFunction(call) = aggregate.clone().unalias() else {
            return Ok(None);
        };
        let AggregateFunctionParams {
            args,
            distinct,
            order_by,
            ..
        } = &call.params;
        let [argument] = args.as_slice() else {
            return Ok(None);
        };
        if *distinct || !order_by.is_empty() {
            return Ok(None);
        }
        let counted = like(&call, count(argument.clone()));
        let data_type = argument.get_type(schema)?;
        results.push(match (call.func.name(), data_type) {
            ("count", _) => Finish::Count(place(counted, &mut states)),
            ("sum", DataType::Int64 | DataType::Decimal128(_, _)) => Finish::Sum {
                sum: place(like(&call, sum(argument.clone())), &mut states),
                count: place(counted, &mut states),
            },
            ("avg", DataType::Decimal128(_, _)) => Finish::Average {
                sum: place(like(&call, sum(argument.clone())), &mut states),
                count: place(counted, &mut states),
            },
            ("avg", DataType::Float64) => {
                // Integers are averaged as floats.
                let Some(integer) = integer_below(argument, schema)? else {
                    return Ok(None);
                };
                let exact = cast(integer, DataType::Decimal128(20, 0));
                Finish::Average {
                    sum: place(like(&call, sum(exact)), &mut states),
                    count: place(counted, &mut states),
                }
            }
            _ => return Ok(None),
        });
    }
    Ok(Some((states, results)))
}

/// `state` with the FILTER of `call`.
fn like(call: &AggregateFunction, state: Expr) -> Expr {
    match state {
        Expr::AggregateFunction(mut state) => {
            state.params.filter = call.params.filter.clone();
            Expr::AggregateFunction(state)
        }
        other => other,
    }
}

/// The integer that `argument` makes a float of, if it does.
fn integer_below(argument: &Expr, schema: &DFSchema) -> datafusion::common::Result<Option<Expr>> {
    let Expr::Cast(Cast { expr, .. }) = argument else {
        return Ok(None);
    };
    Ok(match expr.get_type(schema)? {
        data_type if data_type.is_integer() => Some(expr.as_ref().clone()),
        _ => None,
    })
}

impl SignedGroup {
    /// The groups of some rows: the columns of their key, and of their states.
    fn grouped(&self, node: &Node, rows: LogicalPlan, negative: bool) -> Result<LogicalPlan> {
        let groups = self
            .groups
            .iter()
            .cloned()
            .map(|group| one_zero(group, rows.schema()));
        let groups = groups.collect::<datafusion::common::Result<Vec<_>>>()?;
        let width = groups.len();
        // Names leave casts out, so those of two states may be the same.
        let states = self.states.iter().enumerate();
        let states = states.map(|(place, state)| state.clone().alias(format!("__state_{place}")));
        let grouped = Aggregate::try_new(Arc::new(rows), groups, states.collect())?;
        let columns: Vec<Expr> = grouped
            .schema
            .columns()
            .into_iter()
            .map(Expr::Column)
            .collect();
        let (keys, states) = columns.split_at(width);
        let keys: Vec<Expr> = match width {
            0 => vec![lit(0_u64)],
            _ => keys.to_vec(),
        };
        let states = states.iter().map(|state| match negative {
            true => Expr::Negative(Box::new(state.clone())),
            false => state.clone(),
        });
        let named = keys
            .into_iter()
            .chain(states)
            .zip(&node.keys)
            .map(|(value, column)| cast(value, column.data_type.clone()).alias(&column.name));
        Ok(project(LogicalPlan::Aggregate(grouped), named.collect())?)
    }

    /// The results of groups, from the columns that [`Self::grouped`] gives.
    fn finished(&self, node: &Node, groups: LogicalPlan) -> Result<LogicalPlan> {
        let keys: Vec<&KeyColumn> = node.keys.iter().filter(|key| !key.is_state).collect();
        let states: Vec<&KeyColumn> = node.keys.iter().filter(|key| key.is_state).collect();
        let state = |place: usize| states[place].column();
        let mut all = Vec::with_capacity(node.schema.fields().len() + node.keys.len());
        for (place, (qualifier, field)) in node.schema.iter().enumerate() {
            let value = match place.checked_sub(self.groups.len()) {
                None => keys[place].column(),
                Some(result) => match self.results[result] {
                    Finish::Count(count) => state(count),
                    Finish::Sum { sum, count } => {
                        when(state(count).gt(lit(0_i64)), state(sum)).end()?
                    }
                    Finish::Average { sum, count } => {
                        let mean = mean(state(sum), state(count), field.data_type());
                        when(state(count).gt(lit(0_i64)), mean).end()?
                    }
                },
            };
            let value = cast(value, field.data_type().clone());
            all.push(value.alias_qualified(qualifier.cloned(), field.name()));
        }
        all.extend(node.keys.iter().map(KeyColumn::column));
        Ok(project(groups, all)?)
    }

    /// What the changes of the input add to each group and take away.
    async fn delta(&self, node: &Node, pass: &Pass) -> Result<Arc<GroupDelta>> {
        let cell = pass.group_delta(node.id).await;
        let found = cell.get_or_try_init(|| self.find_delta(node, pass)).await?;
        Ok(Arc::clone(found))
    }

    async fn find_delta(&self, node: &Node, pass: &Pass) -> Result<Arc<GroupDelta>> {
        let key = self.key(node);
        let types = key.iter().map(|key| &key.data_type);
        let mut keys =
            KeySet::new(types)?.ok_or_else(|| Error::internal("a group can't be compared"))?;
        let mut parts = Vec::new();
        for (side, negative) in [(Side::Added, false), (Side::Removed, true)] {
            if let Some(rows) = self.input.relation(pass, side).await? {
                // A relation that is empty after all would be one group without rows.
                parts.push(Some(self.grouped(node, rows, negative)?));
            }
        }
        let Some(plan) = union(parts)? else {
            return Ok(Arc::new(GroupDelta {
                keys: Arc::new(keys),
                rows: None,
            }));
        };
        let schema = Arc::new(plan.schema().as_arrow().clone());
        let rows = node.keys.iter().filter(|key| key.is_state).nth(ROWS);
        let rows = rows.ok_or_else(|| Error::internal("a group has no number of rows"))?;
        let some = LogicalPlanBuilder::from(plan).filter(rows.column().not_eq(lit(0_i64)))?;
        let batches: Vec<_> = pass.execute(&some.build()?).await?.try_collect().await?;
        let width = key.len();
        for batch in &batches {
            keys.insert(&batch.columns()[..width])?;
        }
        let rows = MemTable::try_new(schema, vec![batches])?;
        Ok(Arc::new(GroupDelta {
            keys: Arc::new(keys),
            rows: Some(Arc::new(rows)),
        }))
    }

    fn key<'a>(&self, node: &'a Node) -> Vec<&'a KeyColumn> {
        node.keys.iter().filter(|key| !key.is_state).collect()
    }

    /// The groups that changed, as they are now.
    async fn changed(&self, node: &Node, pass: &Pass) -> Result<Option<LogicalPlan>> {
        let delta = self.delta(node, pass).await?;
        let Some(rows) = delta.rows.as_ref().filter(|_| !delta.keys.is_empty()) else {
            return Ok(None);
        };
        let own: Vec<Expr> = self.key(node).iter().map(|key| key.column()).collect();
        let stored = pass.stored_groups(&node.keys)?;
        let stored = LogicalPlan::Filter(Filter::try_new(
            in_keys(&delta.keys, own.clone()),
            Arc::new(stored),
        )?);
        let table = provider_as_source(Arc::clone(rows) as _);
        let changes = LogicalPlanBuilder::scan("__changes", table, None)?;
        let columns = node
            .keys
            .iter()
            .map(|key| Expr::Column(Column::new(Some("__changes"), &key.name)).alias(&key.name));
        let changes = project(changes.build()?, columns.collect())?;
        let all = union([Some(stored), Some(changes)])?
            .ok_or_else(|| Error::internal("a union of two has no part"))?;
        let states = node.keys.iter().filter(|key| key.is_state);
        let sums = states.map(|state| sum(state.column()).alias(format!("{}_sum", state.name)));
        let summed = Aggregate::try_new(Arc::new(all), own, sums.collect())?;
        let columns = node.keys.iter().map(|key| match key.is_state {
            true => {
                let total = Expr::Column(Column::new_unqualified(format!("{}_sum", key.name)));
                cast(total, key.data_type.clone()).alias(&key.name)
            }
            false => key.column(),
        });
        let mut groups = project(LogicalPlan::Aggregate(summed), columns.collect())?;
        if !self.groups.is_empty() {
            let rows = node.keys.iter().filter(|key| key.is_state).nth(ROWS);
            let rows = rows.ok_or_else(|| Error::internal("a group has no number of rows"))?;
            groups = LogicalPlan::Filter(Filter::try_new(
                rows.column().gt(lit(0_i64)),
                Arc::new(groups),
            )?);
        }
        self.finished(node, groups).map(Some)
    }
}

impl Operator for SignedGroup {
    fn class(&self) -> &'static str {
        "signed group"
    }

    fn inputs(&self) -> Vec<&Node> {
        vec![&self.input]
    }

    /// There are as many groups as rows are stored.
    fn cost(&self, inputs: &[Cost], known: &Known) -> Cost {
        let input = Cost::of_rows(inputs);
        let groups = known.stored.max(1.0);
        Cost {
            rows: groups,
            changed: 2.0 * touched(input.changed, groups) * groups,
            ..input
        }
    }

    fn touched_keys<'a>(
        &'a self,
        node: &'a Node,
        pass: &'a Pass,
    ) -> BoxFuture<'a, Result<Option<Arc<KeySet>>>> {
        Box::pin(async move { Ok(Some(Arc::clone(&self.delta(node, pass).await?.keys))) })
    }

    fn relation<'a>(&'a self, node: &'a Node, pass: &'a Pass, side: Side) -> Planned<'a> {
        Box::pin(async move {
            match side {
                Side::New => {
                    let Some(rows) = self.input.relation(pass, side).await? else {
                        return Ok(None);
                    };
                    let groups = self.grouped(node, rows, false)?;
                    self.finished(node, groups).map(Some)
                }
                Side::Added => self.changed(node, pass).await,
                Side::Old | Side::Unchanged | Side::Removed => Err(Error::internal(
                    "only the new rows of a signed group are ever needed",
                )),
            }
        })
    }
}

/// The mean of `count` values whose sum is `sum`.
fn mean(sum: Expr, count: Expr, data_type: &DataType) -> Expr {
    match data_type {
        DataType::Decimal128(_, _) => {
            ScalarUDF::new_from_impl(DecimalMean::new(data_type.clone())).call(vec![sum, count])
        }
        _ => cast(sum, DataType::Float64) / cast(count, DataType::Float64),
    }
}

/// The mean of decimals, with as many digits as DataFusion's `avg` gives: the rest is cut off.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct DecimalMean {
    data_type: DataType,
    signature: Signature,
}

impl DecimalMean {
    pub(super) fn new(data_type: DataType) -> Self {
        Self {
            data_type,
            signature: Signature::any(2, Volatility::Immutable),
        }
    }

    pub(super) fn data_type(&self) -> &DataType {
        &self.data_type
    }
}

impl ScalarUDFImpl for DecimalMean {
    fn name(&self) -> &str {
        "decimal_mean"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> datafusion::common::Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn invoke_with_args(
        &self,
        args: ScalarFunctionArgs,
    ) -> datafusion::common::Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let ([sums, counts], DataType::Decimal128(precision, scale)) =
            (columns.as_slice(), &self.data_type)
        else {
            return Err(DataFusionError::Internal(
                "decimal_mean() of no decimal".into(),
            ));
        };
        let DataType::Decimal128(_, sum_scale) = sums.data_type() else {
            return Err(DataFusionError::Internal(
                "decimal_mean() of no decimal".into(),
            ));
        };
        let factor = 10_i128.checked_pow((scale - sum_scale).max(0) as u32);
        let sums = sums.as_primitive::<Decimal128Type>();
        let counts = counts.as_primitive::<Int64Type>();
        let means = sums.iter().zip(counts.iter()).map(|(sum, count)| {
            let (Some(sum), Some(count)) = (sum, count.filter(|count| *count != 0)) else {
                return Ok(None);
            };
            match factor.and_then(|factor| sum.checked_mul(factor)) {
                Some(sum) => Ok(Some(sum / i128::from(count))),
                None => Err(DataFusionError::Execution(
                    "Arithmetic overflow in avg()".to_string(),
                )),
            }
        });
        let means: Vec<Option<i128>> = means.collect::<datafusion::common::Result<_>>()?;
        let means = Decimal128Array::from(means).with_precision_and_scale(*precision, *scale)?;
        Ok(ColumnarValue::Array(Arc::new(means) as ArrayRef))
    }
}
