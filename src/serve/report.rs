//! What a keeper does, a line each.

use std::fmt;
use std::time::Duration;

use crate::column::run::Refreshed;
use crate::view::options::TargetLag;
use crate::view::refresh::ViewReport;

/// Something that a [`Keeper`](super::Keeper) did, or found. Printed, it is one line.
#[derive(Debug)]
pub enum Report {
    /// Another process keeps the views.
    Waiting(String),
    /// So many views are kept, and looked at so often.
    Keeping(usize, Duration),
    /// A view was refreshed.
    Refreshed {
        /// What was done.
        report: ViewReport,
        /// How far it was behind; `None` if that is not known.
        behind: Option<Duration>,
        /// How far it may be.
        limit: Duration,
    },
    /// Computed columns were refreshed.
    Columns(Refreshed),
    /// Another job works on a view.
    Elsewhere(String, Option<String>),
    /// A view could not be refreshed.
    Failed {
        /// The view.
        view: String,
        /// What was done, what went wrong, what mends it.
        error: String,
        /// How often in a row.
        count: u32,
        /// After how many it is suspended.
        of: Option<u32>,
        /// When it is tried again.
        rest: Duration,
    },
    /// The refresh of a view was cancelled by someone.
    Cancelled(String, String),
    /// A view is not tried any more.
    Suspended(String, u32),
    /// The database could not be read or written.
    Unreadable(String),
    /// Another process has taken over.
    Superseded,
    /// Told to stop; so many jobs run, and may go on for a while.
    Stopping(usize, Duration),
    /// A job is cancelled.
    Cancelling(String, String),
    /// The end.
    Stopped,
}

impl Report {
    /// Whether it is about something that went wrong.
    pub fn is_error(&self) -> bool {
        matches!(
            self,
            Self::Failed { .. } | Self::Suspended(..) | Self::Unreadable(_) | Self::Superseded
        )
    }
}

/// A number of seconds to the millisecond.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.0.as_secs_f64())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(holder) => write!(
                f,
                "waiting: {holder} keeps the views of this database; this one goes on when that ends"
            ),
            Self::Keeping(0, every) => write!(
                f,
                "no view has a target_lag (looking every {}); ALTER MATERIALIZED VIEW … SET (target_lag = '10 minutes') gives one",
                Seconds(*every)
            ),
            Self::Keeping(views, every) => {
                write!(f, "keeping {views} view(s), looking every {}", Seconds(*every))
            }
            Self::Refreshed {
                report,
                behind,
                limit,
            } => refreshed(f, report, *behind, *limit),
            Self::Columns(refreshed) => {
                let reports = refreshed.passes.iter().flat_map(|pass| &pass.reports);
                for (n, report) in reports.enumerate() {
                    let comma = if n == 0 { "refreshed " } else { ", " };
                    write!(
                        f,
                        "{comma}{}: {}, {} rows computed, {} reused, {} pending, {}",
                        report.object,
                        report.mode,
                        report.rows_computed,
                        report.rows_reused,
                        report.rows_pending,
                        Seconds(report.elapsed)
                    )?;
                }
                job(f, refreshed.job.as_deref())
            }
            Self::Elsewhere(view, job) => {
                write!(f, "waiting for ")?;
                match job {
                    Some(job) => write!(f, "job '{job}', which works on {view}"),
                    None => write!(f, "another job, which works on {view}"),
                }
            }
            Self::Failed {
                view,
                error,
                count,
                of,
                rest,
            } => {
                write!(f, "failed {view} ({count}")?;
                match of {
                    Some(of) => write!(f, " of {of} in a row)")?,
                    None => write!(f, " in a row)")?,
                }
                write!(f, ", again in {}: {error}", Seconds(*rest))
            }
            Self::Cancelled(view, error) => {
                write!(f, "cancelled {view}, again when its lag is over: {error}")
            }
            Self::Suspended(view, count) => write!(
                f,
                "suspended {view} after {count} failure(s) in a row; mend: once what is wrong is put right, ALTER MATERIALIZED VIEW {view} RESUME"
            ),
            Self::Unreadable(error) => write!(f, "error: {error}"),
            Self::Superseded => f.write_str(
                "error: another process keeps the views now: this one was taken for dead; mend: start it again",
            ),
            Self::Stopping(0, _) => f.write_str("stopping"),
            Self::Stopping(jobs, grace) => write!(
                f,
                "stopping: {jobs} job(s) may go on for {}; another signal ends at once",
                Seconds(*grace)
            ),
            Self::Cancelling(job, statement) => write!(f, "cancelling job '{job}' ({statement})"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

fn refreshed(
    f: &mut fmt::Formatter<'_>,
    report: &ViewReport,
    behind: Option<Duration>,
    limit: Duration,
) -> fmt::Result {
    write!(f, "refreshed {}: {}", report.view, report.mode)?;
    if !report.reason.is_empty() {
        write!(f, " ({})", report.reason)?;
    }
    write!(
        f,
        ", {} rows inserted, {} updated, {} deleted, {}",
        report.rows_inserted,
        report.rows_updated,
        report.rows_deleted,
        Seconds(report.elapsed)
    )?;
    match behind {
        Some(behind) => write!(f, ", was {} behind", Seconds(behind))?,
        None => f.write_str(", nobody knows how far it was behind")?,
    }
    write!(f, " (limit {})", TargetLag::Within(limit))?;
    for notice in &report.notices {
        write!(f, ", notice: {notice}")?;
    }
    job(f, report.job.as_deref())
}

fn job(f: &mut fmt::Formatter<'_>, job: Option<&str>) -> fmt::Result {
    match job {
        Some(job) => write!(f, ", job '{job}'"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_line_with_what_one_wants_to_know() {
        let report = Report::Refreshed {
            report: ViewReport {
                view: "v".to_string(),
                mode: "full",
                reason: "FIRST_REFRESH".to_string(),
                rows_inserted: 3,
                rows_updated: 2,
                rows_deleted: 1,
                version: 4,
                sources: Vec::new(),
                job: Some("j".to_string()),
                elapsed: Duration::from_millis(1234),
                notices: Vec::new(),
            },
            behind: Some(Duration::from_secs(9)),
            limit: Duration::from_secs(60),
        };
        assert_eq!(
            report.to_string(),
            "refreshed v: full (FIRST_REFRESH), 3 rows inserted, 2 updated, 1 deleted, 1.234 s, \
             was 9.000 s behind (limit 1 minute), job 'j'"
        );
        let failed = Report::Failed {
            view: "v".to_string(),
            error: "REFRESH MATERIALIZED VIEW v: no; mend: yes".to_string(),
            count: 2,
            of: Some(5),
            rest: Duration::from_millis(2500),
        };
        assert!(failed.is_error());
        assert_eq!(
            failed.to_string(),
            "failed v (2 of 5 in a row), again in 2.500 s: REFRESH MATERIALIZED VIEW v: no; mend: yes"
        );
    }
}
