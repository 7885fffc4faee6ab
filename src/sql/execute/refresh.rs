//! REFRESH COLUMN, EXPLAIN of it, and OPTIMIZE.

use std::sync::Arc;
use std::time::Instant;

use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;

use super::Executor;
use super::report::{Done, Rows};
use crate::Result;
use crate::column::plan::Pass;
use crate::column::refresh::{RanPass, Refresh, Scope, order, plan_pass};
use crate::column::run::begin;
use crate::job::jobs::Begun;
use crate::sql::format::quote_identifier;
use crate::sql::options::{OptimizeOptions, refresh_settings};
use crate::sql::statement::{RefreshColumn, RefreshScope, StatementOption};
use crate::storage::version::{CompactionSettings, compact};
use crate::storage::with_retries;

impl Executor {
    pub(super) async fn refresh_column(&self, statement: RefreshColumn) -> Result<DataFrame> {
        let request = self.refresh_request(&statement)?;
        let begun = begin(&self.environment(), &request).await?;
        match begun {
            Begun::Job(job) if statement.is_async => {
                let id = job.id().to_string();
                job.detach();
                let summary = self.jobs.ledger().job(&id).await?;
                self.submitted(&summary)
            }
            begun => self.refreshed(&begun.wait().await?),
        }
    }

    fn refresh_request(&self, statement: &RefreshColumn) -> Result<Refresh> {
        Ok(Refresh {
            table: self.name_of(&statement.table)?,
            columns: statement.columns.clone(),
            filter: statement.filter.as_ref().map(ToString::to_string),
            scope: match statement.scope {
                RefreshScope::Changed => Scope::Changed,
                RefreshScope::StaleOnly => Scope::StaleOnly,
                RefreshScope::Full => Scope::Full,
            },
            cascade: statement.cascade,
            settings: refresh_settings(&statement.options)?,
            statement: statement_text(statement),
        })
    }

    pub(super) async fn explain_refresh(
        &self,
        statement: RefreshColumn,
        analyze: bool,
    ) -> Result<DataFrame> {
        let request = self.refresh_request(&statement)?;
        let state = self.context.state();
        let mut lines = Lines::default();
        if analyze {
            for RanPass {
                pass,
                plan,
                reports,
            } in begin(&self.environment(), &request)
                .await?
                .wait()
                .await?
                .passes
            {
                explain_pass(&mut lines, &pass);
                for report in reports {
                    lines.add("ran", &report.object);
                    lines.add("rows computed", report.rows_computed);
                    lines.add("rows reused", report.rows_reused);
                    lines.add("rows pending after", report.rows_pending);
                    lines.add("fragments written", report.fragments);
                    lines.add("version after", report.version);
                    lines.add("elapsed", format!("{:.3} s", report.elapsed.as_secs_f64()));
                }
                if let Some(plan) = plan {
                    let text = DisplayableExecutionPlan::with_metrics(plan.as_ref())
                        .indent(false)
                        .to_string();
                    lines.add("physical plan", text.trim_end());
                }
            }
        } else {
            let table = self.database.table(&request.table).await?;
            for columns in order(&self.database, &state, &table, &request).await? {
                let pass =
                    plan_pass(&self.database, &state, table.clone(), &request, &columns).await?;
                explain_pass(&mut lines, &pass);
                if !pass.is_empty() {
                    let settings = &request.settings;
                    let cores = state.config().target_partitions();
                    let units = pass.units(settings.concurrency.unwrap_or(cores));
                    let plan = pass
                        .computation()
                        .physical_plan(&state, settings.batches, &units, Arc::default(), None)
                        .await?;
                    let text = DisplayableExecutionPlan::new(plan.as_ref())
                        .indent(false)
                        .to_string();
                    lines.add("physical plan", text.trim_end());
                }
            }
        }
        Rows::default()
            .text("item", lines.items)
            .text("value", lines.values)
            .frame(self)
    }

    pub(super) async fn optimize(
        &self,
        table: &TableReference,
        options: &[StatementOption],
    ) -> Result<DataFrame> {
        let started = Instant::now();
        let options = OptimizeOptions::read(options)?;
        let name = self.name_of(table)?;
        let settings = CompactionSettings {
            target_rows_per_fragment: options.target_rows_per_fragment,
            materialize_deletions: options.materialize_deletions,
            materialize_deletions_threshold: options.materialize_deletions_threshold,
        };
        let (table, compaction) = with_retries(|| async {
            let table = self.database.table(&name).await?;
            let mut dataset = table.dataset.as_ref().clone();
            let compaction = compact(&name, &mut dataset, settings).await?;
            Ok((dataset, compaction))
        })
        .await?;
        Rows::default()
            .text("statement", ["OPTIMIZE"])
            .text("object", [name.clone()])
            .number("rows", [None])
            .number("version", [Some(table.version().version)])
            .seconds("elapsed_seconds", [started.elapsed()])
            .number("fragments_removed", [Some(compaction.fragments_removed)])
            .number("fragments_added", [Some(compaction.fragments_added)])
            .frame(self)
    }
}

/// The statement in one form, whatever was typed: two that ask the same are the same job.
fn statement_text(statement: &RefreshColumn) -> String {
    let columns: Vec<String> = statement
        .columns
        .iter()
        .map(|column| quote_identifier(column))
        .collect();
    let table = quote_identifier(statement.table.table());
    let mut text = format!("REFRESH COLUMN {} ON {table}", columns.join(", "));
    if let Some(filter) = &statement.filter {
        text += &format!(" WHERE {filter}");
    }
    text += match statement.scope {
        RefreshScope::Changed => "",
        RefreshScope::StaleOnly => " STALE ONLY",
        RefreshScope::Full => " FULL",
    };
    if statement.cascade {
        text += " CASCADE";
    }
    if !statement.options.is_empty() {
        let options: Vec<String> = statement.options.iter().map(ToString::to_string).collect();
        text += &format!(" WITH ({})", options.join(", "));
    }
    text
}

/// Items and values of an explanation, in order.
#[derive(Default)]
struct Lines {
    items: Vec<String>,
    values: Vec<String>,
}

impl Lines {
    fn add(&mut self, item: &str, value: impl ToString) {
        self.items.push(item.to_string());
        self.values.push(value.to_string());
    }
}

fn explain_pass(lines: &mut Lines, pass: &Pass) {
    lines.add("table", &pass.table.name);
    lines.add("source version", pass.table.version());
    for task in &pass.tasks {
        let assessment = &task.assessment;
        lines.add("column", task.column.name());
        lines.add("expression", &task.column.definition.expression);
        lines.add(
            "watermark",
            assessment
                .watermark
                .map_or_else(|| "none".to_string(), |version| version.to_string()),
        );
        lines.add("mode", task.mode);
        lines.add(
            "reason",
            match (task.mode, task.reason.as_str()) {
                (_, reason) if !reason.is_empty() => reason.to_string(),
                ("none", _) => "no row lacks a value or has a stale one".to_string(),
                ("filtered", _) => "rows that match WHERE".to_string(),
                _ => format!(
                    "rows that changed in {} commits since the watermark, or are pending",
                    assessment.commits
                ),
            },
        );
        lines.add("rows to compute", task.rows);
        let skipped = pass.table_rows.saturating_sub(task.rows);
        let why = match task.mode {
            "filtered" => "they do not match WHERE, or are fresh",
            _ => "their inputs have not changed since the watermark",
        };
        lines.add(
            "rows skipped",
            match skipped {
                0 => "0".to_string(),
                skipped => format!("{skipped}: {why}"),
            },
        );
    }
    let all = pass.table.dataset.count_fragments();
    lines.add(
        "fragments to write",
        format!("{} of {all}", pass.fragments.len()),
    );
    lines.add(
        "columns read",
        pass.columns_read()
            .into_iter()
            .collect::<Vec<_>>()
            .join(", "),
    );
    lines.add("estimated bytes", pass.estimated_bytes());
}

impl Done {
    /// A statement that changed only what is known of a table.
    pub(super) fn altered(
        statement: &'static str,
        object: impl Into<String>,
        version: Option<u64>,
    ) -> Self {
        Self {
            statement,
            object: object.into(),
            rows: None,
            version,
        }
    }
}
