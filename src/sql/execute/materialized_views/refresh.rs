//! REFRESH MATERIALIZED VIEW, and EXPLAIN of it.

use std::collections::BTreeMap;
use std::time::Duration;

use datafusion::prelude::DataFrame;

use crate::job::jobs::Begun;
use crate::sql::execute::Executor;
use crate::sql::execute::report::Rows;
use crate::sql::options::views::RefreshViewOptions;
use crate::sql::statement::{RefreshView, ViewRefreshMode};
use crate::view::assess::Scope;
use crate::view::cascade::{self, Ran, Step};
use crate::view::explain::explain;
use crate::view::refresh::{ViewRefresh, ViewReport, begin};
use crate::{Error, Result};

/// What is said of one object.
#[derive(Debug)]
struct Line {
    object: String,
    mode: String,
    reason: String,
    /// Inserted, updated, deleted.
    rows: [u64; 3],
    version: u64,
    job: Option<String>,
    elapsed: Duration,
}

impl Executor {
    pub(in crate::sql::execute) async fn refresh_view(
        &self,
        refresh: RefreshView,
    ) -> Result<DataFrame> {
        let request = self.view_request(&refresh).await?;
        if refresh.cascade {
            if refresh.is_async {
                let job = Box::pin(cascade::submit(&self.environment(), &request)).await?;
                let id = job.id().to_string();
                job.detach();
                return self.submitted(&self.jobs.ledger().job(&id).await?);
            }
            let ran = Box::pin(cascade::refresh(&self.environment(), &request)).await?;
            return self.cascaded(&ran);
        }
        cascade::check_as_of(&self.environment(), &request).await?;
        match begin(&self.environment(), &request).await? {
            Begun::Job(job) if refresh.is_async => {
                let id = job.id().to_string();
                job.detach();
                let summary = self.jobs.ledger().job(&id).await?;
                self.submitted(&summary)
            }
            begun => self.view_refreshed(&begun.wait().await?),
        }
    }

    pub(in crate::sql::execute) async fn view_request(
        &self,
        refresh: &RefreshView,
    ) -> Result<ViewRefresh> {
        let options = RefreshViewOptions::read(&refresh.options)?;
        if refresh.mode == ViewRefreshMode::FailedOnly {
            let beside = [
                (!refresh.as_of.is_empty(), "AS OF"),
                (refresh.cascade, "CASCADE"),
            ];
            if let Some((_, other)) = beside.iter().find(|(is_given, _)| *is_given) {
                return Err(Error::invalid(format!(
                    "FAILED ONLY reads what the view reflects, so it does not go with {other}"
                ))
                .with_hint("leave one of them out"));
            }
        }
        let view = self.name_of(&refresh.name)?;
        self.view_named(&view).await?;
        let mut as_of = BTreeMap::new();
        for (table, version) in &refresh.as_of {
            let name = self.name_of(table)?;
            if self.database.view(&name).await?.is_some() {
                return Err(Error::invalid(format!(
                    "AS OF: '{name}' is a view: it has no versions"
                ))
                .with_hint("name the tables that it reads"));
            }
            let number = match self.database.root().has_table(&name).await? {
                true => self.database.table_version(&name, version).await?.version(),
                // What is no source is refused with the names of those that are.
                false => 0,
            };
            as_of.insert(name, number);
        }
        Ok(ViewRefresh {
            view,
            scope: match refresh.mode {
                ViewRefreshMode::Auto => Scope::Auto,
                ViewRefreshMode::FailedOnly => Scope::FailedOnly,
                ViewRefreshMode::Full => Scope::Full,
                ViewRefreshMode::Incremental => Scope::Incremental,
            },
            as_of,
            concurrently: refresh.concurrently,
            timeout: options.timeout,
            checkpoint_interval: options.checkpoint_interval,
            on_error: options.on_error,
            concurrency: options.concurrency,
            placement: options.placement,
            statement: refresh.text(),
        })
    }

    pub(in crate::sql::execute) fn view_refreshed(&self, report: &ViewReport) -> Result<DataFrame> {
        self.lines(vec![self.line(report)])
    }

    fn line(&self, report: &ViewReport) -> Line {
        for notice in &report.notices {
            self.notice(notice);
        }
        Line {
            object: report.view.clone(),
            mode: report.mode.to_string(),
            reason: report.reason.clone(),
            rows: [
                report.rows_inserted,
                report.rows_updated,
                report.rows_deleted,
            ],
            version: report.version,
            job: report.job.clone(),
            elapsed: report.elapsed,
        }
    }

    fn cascaded(&self, ran: &[Ran]) -> Result<DataFrame> {
        let mut lines = Vec::new();
        for ran in ran {
            match ran {
                Ran::View(report) => lines.push(self.line(report)),
                Ran::Columns(refreshed) => {
                    for notice in &refreshed.notices {
                        self.notice(notice);
                    }
                    let reports = refreshed.passes.iter().flat_map(|pass| &pass.reports);
                    lines.extend(reports.map(|report| Line {
                        object: report.object.clone(),
                        mode: report.mode.to_string(),
                        reason: report.reason.clone(),
                        rows: [0, report.rows_computed + report.rows_reused, 0],
                        version: report.version,
                        job: refreshed.job.clone(),
                        elapsed: report.elapsed,
                    }));
                }
            }
        }
        self.lines(lines)
    }

    fn lines(&self, lines: Vec<Line>) -> Result<DataFrame> {
        let rows = |place: usize| lines.iter().map(move |line| Some(line.rows[place]));
        Rows::default()
            .text("object", lines.iter().map(|l| l.object.clone()))
            .text("mode", lines.iter().map(|l| l.mode.clone()))
            .text("reason", lines.iter().map(|l| l.reason.clone()))
            .number("rows_inserted", rows(0))
            .number("rows_updated", rows(1))
            .number("rows_deleted", rows(2))
            .number("version", lines.iter().map(|l| Some(l.version)))
            .optional_text("job_id", lines.iter().map(|l| l.job.clone()))
            .seconds("elapsed_seconds", lines.iter().map(|l| l.elapsed))
            .frame(self)
    }

    pub(in crate::sql::execute) async fn explain_refresh_view(
        &self,
        refresh: RefreshView,
        analyze: bool,
    ) -> Result<DataFrame> {
        let environment = self.environment();
        let request = self.view_request(&refresh).await?;
        let mut lines = Vec::new();
        if refresh.cascade {
            let steps = cascade::steps(&environment, &request).await?;
            let names = steps.iter().map(Step::to_string);
            lines.push(("order", names.collect::<Vec<_>>().join(" → ")));
            for step in &steps {
                // Each as the sources are now: what a step before it will change is not counted.
                if let Step::View(view) = step {
                    let as_of = &request.as_of;
                    let one = cascade::of_step(&environment, &request, view, as_of).await?;
                    lines.extend(explain(&environment, &one).await?);
                }
            }
        } else {
            cascade::check_as_of(&environment, &request).await?;
            lines = explain(&environment, &request).await?;
        }
        if analyze {
            let reports = match refresh.cascade {
                true => Box::pin(cascade::refresh(&environment, &request)).await?,
                false => vec![Ran::View(
                    begin(&environment, &request).await?.wait().await?,
                )],
            };
            for ran in &reports {
                if let Ran::View(report) = ran {
                    let line = self.line(report);
                    if refresh.cascade {
                        lines.push(("materialized view", line.object));
                    }
                    lines.push(("ran", line.mode));
                    lines.push(("rows inserted", line.rows[0].to_string()));
                    lines.push(("rows updated", line.rows[1].to_string()));
                    lines.push(("rows deleted", line.rows[2].to_string()));
                    lines.push(("version after", line.version.to_string()));
                    let elapsed = format!("{:.3} s", line.elapsed.as_secs_f64());
                    lines.push(("elapsed", elapsed));
                }
            }
        }
        self.explained(lines)
    }
}
