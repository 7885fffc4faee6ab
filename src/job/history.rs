//! Summaries of the jobs that have ended, so that a listing reads a few files whatever their number.
//!
//! A job that ends adds a file of its own to `job-history/`. When there are [`FANOUT`] of these, whoever
//! adds the last puts them together in one, and so on with those. The new file is there before the old
//! ones go, and a job that stands in two files is one job: so nobody who reads meanwhile misses one,
//! and it does no harm if two do it at once.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};

use super::counters::Figures;
use super::ledger::{ACTIVE, DEAD_AFTER_MILLIS, Ledger, json, last_state};
use super::process::Process;
use super::record::{Ended, JobRecord, JobSummary};
use crate::{Error, ErrorKind, Result};

const FOLDER: &str = "job-history";
/// Files of one size that are put together.
const FANOUT: usize = 64;
/// Files that are read at once.
const READS: usize = 16;
/// How often a listing begins anew because files were put together meanwhile.
const ATTEMPTS: usize = 10;

impl Ledger {
    /// Ends a job: writes down how, as its last event, adds it to the history, and takes it off the list of those at
    /// work.
    pub async fn end(
        &self,
        record: &JobRecord,
        driver: &Process,
        ending: Ended,
        figures: Figures,
    ) -> Result<()> {
        let Ended {
            event,
            message,
            state,
        } = ending;
        let last = self
            .event(&record.id, driver, event, message, Some(state), figures)
            .await?;
        let summary = JobSummary {
            record: record.clone(),
            state,
            finished_at: Some(last.at),
            driver: last.driver,
            figures,
            message: last.message,
        };
        self.settle(&summary).await
    }

    /// Moves a job whose last event says that it has ended from the list of those at work to the history.
    async fn settle(&self, summary: &JobSummary) -> Result<()> {
        let id = &summary.record.id;
        let path = format!("{FOLDER}/1-{id}.json");
        self.root().create_own(&path, json(&[summary])?).await?;
        self.compact_history().await?;
        self.retire(id).await
    }

    /// All jobs, newest first.
    pub async fn jobs(&self) -> Result<Vec<JobSummary>> {
        let mut jobs = self.history().await?;
        for id in self.active().await? {
            let Some(files) = self.read(&id).await? else {
                continue;
            };
            jobs.entry(id).or_insert_with(|| self.summary(&files));
        }
        Ok(jobs.into_values().rev().collect())
    }

    /// One job.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is none of that name.
    pub async fn job(&self, id: &str) -> Result<JobSummary> {
        if let Some(files) = self.read(id).await? {
            return Ok(self.summary(&files));
        }
        let mut history = self.history().await?;
        history.remove(id).ok_or_else(|| {
            Error::not_found("job", id, history.keys().map(String::as_str))
                .with_hint("SHOW JOBS lists those that are known")
        })
    }

    /// Forgets jobs that have ended: those that `is_old` says, given their place among all, newest
    /// first. Gives how many.
    pub async fn forget_jobs(
        &self,
        is_old: impl Fn(usize, &JobSummary) -> bool,
        dry_run: bool,
    ) -> Result<usize> {
        let jobs = self.jobs().await?;
        let (old, kept): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .enumerate()
            .partition(|(place, job)| job.state.is_final() && is_old(*place, job));
        if old.is_empty() || dry_run {
            return Ok(old.len());
        }
        let names = self.root().list_own(FOLDER).await?;
        let kept: Vec<&JobSummary> = kept
            .iter()
            .map(|(_, job)| job)
            .filter(|job| job.state.is_final())
            .collect();
        self.write_history(&kept).await?;
        for name in names {
            self.root().remove_own(&format!("{FOLDER}/{name}")).await?;
        }
        for (_, job) in &old {
            self.remove(&job.record.id).await?;
        }
        Ok(old.len())
    }

    async fn history(&self) -> Result<BTreeMap<String, JobSummary>> {
        'again: for _ in 0..ATTEMPTS {
            let names = self.root().list_own(FOLDER).await?;
            let mut read = stream::iter(names)
                .map(|name| async move {
                    let path = format!("{FOLDER}/{name}");
                    self.read_json::<Vec<JobSummary>>(&path).await
                })
                .buffer_unordered(READS);
            let mut jobs = BTreeMap::new();
            while let Some(summaries) = read.try_next().await? {
                let Some(summaries) = summaries else {
                    continue 'again;
                };
                for summary in summaries {
                    jobs.insert(summary.record.id.clone(), summary);
                }
            }
            return Ok(jobs);
        }
        Err(Error::new(
            ErrorKind::Conflict,
            "the list of jobs changed while it was read",
        )
        .with_hint("run the statement again"))
    }

    /// Puts files together of which there are many.
    async fn compact_history(&self) -> Result<()> {
        let names = self.root().list_own(FOLDER).await?;
        let mut by_level: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for name in &names {
            if let Some((level, _)) = name.split_once('-') {
                by_level.entry(level).or_default().push(name);
            }
        }
        for (level, names) in by_level {
            let Ok(level) = level.parse::<u32>() else {
                continue;
            };
            if names.len() < FANOUT {
                continue;
            }
            let mut jobs = BTreeMap::new();
            for name in &names {
                let path = format!("{FOLDER}/{name}");
                // Gone: another process does the same.
                let Some(summaries) = self.read_json::<Vec<JobSummary>>(&path).await? else {
                    return Ok(());
                };
                for summary in summaries {
                    jobs.insert(summary.record.id.clone(), summary);
                }
            }
            let jobs: Vec<JobSummary> = jobs.into_values().collect();
            let new = format!("{FOLDER}/{}-{}.json", level + 1, uuid::Uuid::new_v4());
            self.root().create_own(&new, json(&jobs)?).await?;
            for name in names {
                self.root().remove_own(&format!("{FOLDER}/{name}")).await?;
            }
        }
        Ok(())
    }

    async fn write_history(&self, jobs: &[&JobSummary]) -> Result<()> {
        if jobs.is_empty() {
            return Ok(());
        }
        let path = format!("{FOLDER}/2-{}.json", uuid::Uuid::new_v4());
        self.root().create_own(&path, json(&jobs)?).await?;
        Ok(())
    }

    /// Ends the jobs whose last event says that they have ended, but whose process died before it could
    /// say so everywhere.
    pub async fn tidy(&self) -> Result<()> {
        for marker in self.root().list_own_files(ACTIVE).await? {
            let id = &marker.name;
            match self.read(id).await? {
                Some(files) if last_state(&files.events).is_final() => {
                    self.settle(&self.summary(&files)).await?
                }
                // It died between the marker and the job.
                None if self.now() - marker.modified_millis > DEAD_AFTER_MILLIS => {
                    self.retire(id).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
