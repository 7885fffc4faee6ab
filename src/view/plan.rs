//! From the text of a view's query to a plan that can be divided into operators.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::source_as_provider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::optimizer::decorrelate_lateral_join::DecorrelateLateralJoin;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion::optimizer::eliminate_filter::EliminateFilter;
use datafusion::optimizer::eliminate_join::EliminateJoin;
use datafusion::optimizer::eliminate_outer_join::EliminateOuterJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::rewrite_set_comparison::RewriteSetComparison;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerContext, OptimizerRule};

use super::extract::extract_calls;
use crate::database::LanceTable;
use crate::database::materialized_view::ViewDefinition;
use crate::{Error, Result};

/// Plans the query of a view, with subqueries turned into joins, filters at their sources and only the columns that are
/// needed.
pub(super) async fn plan_query(
    state: &SessionState,
    definition: &ViewDefinition,
) -> Result<LogicalPlan> {
    let plan = Box::pin(state.create_logical_plan(&definition.query)).await?;
    let mut options: ConfigOptions = state.config().options().as_ref().clone();
    // Else they would stay expressions, of which nothing is known.
    options
        .optimizer
        .enable_physical_uncorrelated_scalar_subquery = false;
    options.optimizer.skip_failed_rules = false;
    let plan = state
        .analyzer()
        .execute_and_check(plan, &options, |_, _| {})?;
    let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![
        Arc::new(RewriteSetComparison::new()),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(EliminateJoin::new()),
        Arc::new(DecorrelatePredicateSubquery::new()),
        Arc::new(ScalarSubqueryToJoin::new()),
        Arc::new(DecorrelateLateralJoin::new()),
        Arc::new(ExtractEquijoinPredicate::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(EliminateFilter::new()),
        Arc::new(EliminateCrossJoin::new()),
        Arc::new(EliminateOuterJoin::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(OptimizeProjections::new()),
    ];
    // Without the time of day: now() must not become a constant here.
    let context = OptimizerContext::new_with_config_options(Arc::new(options))
        .without_query_execution_start_time();
    let plan = Optimizer::with_rules(rules).optimize(plan, &context, |_, _| {})?;
    Ok(extract_calls(plan)?)
}

/// Refuses what no materialized view can read: files, and tables of the session.
pub(super) fn check_sources(plan: &LogicalPlan) -> Result<()> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            let is_listed =
                scan.table_name.schema().is_some() || scan.table_name.catalog().is_some();
            // Rows of the query itself: of the recursion that it stands in, or of a table function.
            let is_own = provider.downcast_ref::<CteWorkTable>().is_some()
                || (!is_listed && is_function(scan));
            if provider.downcast_ref::<LanceTable>().is_none() && !is_own {
                refused = Some(scan.table_name.to_string());
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match refused {
        Some(table) => Err(Error::invalid(format!(
            "SOURCE_NOT_VERSIONED: '{table}' has no versions, so a materialized view can't read it"
        ))
        .with_hint("load it into a table first: CREATE TABLE … AS SELECT * FROM …")),
        None => Ok(()),
    }
}

/// Whether a scan is the call of a table function, such as `generate_series(1, 10)`.
fn is_function(scan: &datafusion::logical_expr::TableScan) -> bool {
    scan.table_name.table().ends_with(')') || scan.table_name.table().ends_with("()")
}

/// The first function in the plan that may give another result each time, and whether within one statement, too.
pub(super) fn unstable_function(plan: &LogicalPlan) -> Result<Option<String>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && call.func.signature().volatility != Volatility::Immutable
                {
                    found = Some(call.func.name().to_string());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(match found {
            Some(_) => TreeNodeRecursion::Stop,
            None => TreeNodeRecursion::Continue,
        })
    })?;
    Ok(found)
}
