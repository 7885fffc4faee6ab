//! GROUPING SETS, ROLLUP and CUBE as a union of groupings.

use std::sync::Arc;

use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::GroupingSet;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Projection, Union, lit};

use super::classify::{Classification, not_incremental};

/// Grouping sets as a union of groupings, with the same columns.
pub(super) fn grouping_sets(
    aggregate: &Aggregate,
    sets: &GroupingSet,
) -> Classification<LogicalPlan> {
    let all: Vec<Expr> = sets.distinct_expr().into_iter().cloned().collect();
    let groups: Vec<Vec<Expr>> = match sets {
        GroupingSet::GroupingSets(sets) => sets.clone(),
        GroupingSet::Rollup(exprs) => (0..=exprs.len())
            .rev()
            .map(|width| exprs[..width].to_vec())
            .collect(),
        // As many sets as a machine could never compute are refused when they are planned.
        GroupingSet::Cube(exprs) if exprs.len() > 16 => return Err(not_incremental("Aggregate")),
        GroupingSet::Cube(exprs) => (0..1_usize << exprs.len())
            .map(|set| {
                let chosen = exprs.iter().enumerate();
                let chosen = chosen.filter(|(place, _)| set & (1 << place) != 0);
                chosen.map(|(_, expr)| expr.clone()).collect()
            })
            .collect(),
    };
    let mut seen: Vec<&Vec<Expr>> = Vec::new();
    let mut inputs = Vec::with_capacity(groups.len());
    for group in &groups {
        if seen.contains(&group) {
            return Err(not_incremental("Aggregate"));
        }
        seen.push(group);
        let grouped = Aggregate::try_new(
            Arc::clone(&aggregate.input),
            group.clone(),
            aggregate.aggr_expr.clone(),
        )?;
        let columns = grouped.schema.columns();
        let mut id: u64 = 0;
        let mut values = Vec::with_capacity(aggregate.schema.fields().len());
        for (place, expr) in all.iter().enumerate() {
            let (qualifier, field) = aggregate.schema.qualified_field(place);
            id <<= 1;
            let value = match group.iter().position(|other| other == expr) {
                Some(at) => Expr::Column(columns[at].clone()),
                None => {
                    id |= 1;
                    lit(ScalarValue::try_from(field.data_type())?)
                }
            };
            values.push(value.alias_qualified(qualifier.cloned(), field.name()));
        }
        let (_, field) = aggregate.schema.qualified_field(all.len());
        let id = ScalarValue::UInt64(Some(id)).cast_to(field.data_type())?;
        values.push(lit(id).alias(field.name()));
        for (at, column) in columns.iter().enumerate().skip(group.len()) {
            let place = all.len() + 1 + at - group.len();
            let (qualifier, field) = aggregate.schema.qualified_field(place);
            let value = Expr::Column(Column::clone(column));
            values.push(value.alias_qualified(qualifier.cloned(), field.name()));
        }
        let grouped = Projection::try_new(values, Arc::new(LogicalPlan::Aggregate(grouped)))?;
        inputs.push(Arc::new(LogicalPlan::Projection(grouped)));
    }
    Ok(LogicalPlan::Union(Union {
        inputs,
        schema: Arc::clone(&aggregate.schema),
    }))
}
