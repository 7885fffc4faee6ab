//! One round of a pass: its units are computed, and what they have written is committed.
//!
//! Units finish in any order. What is finished waits for a commit, of which there is one every so many
//! fragments or seconds; what waits for long is written down, so that another process may commit it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use futures::future::pending;
use lance::Dataset;
use tokio::task::JoinHandle;

use super::Run;
use crate::column::assess::{Column, Rows, rows_changed};
use crate::column::commit::{Committer, Outcome, Written};
use crate::column::computation::Computation;
use crate::column::plan::{Pass, Unit};
use crate::column::refresh::{CHECKPOINT_INTERVAL, COMMIT_EVERY, COMMIT_INTERVAL};
use crate::column::remote::{self, run_units};
use crate::column::staged::{Sought, Staged, Staging};
use crate::column::state::ColumnState;
use crate::column::work::{Pace, Work, is_stop};
use crate::column::write::written_units;
use crate::engine::run_partitions;
use crate::job::admission::InFlight;
use crate::job::counters::Count;
use crate::job::signal::{Signal, Stop};
use crate::storage::column_file::{SplitFile, files_that_fit};
use crate::storage::fragments::live_ids;
use crate::storage::properties::{COLUMN_STATE, COMPUTED_ROWS, JOB};
use crate::storage::{RowSet, pin};
use crate::{Error, Result};

/// How long units that were told to stop are waited for: they write down what they have.
const GRACE: Duration = Duration::from_millis(700);
/// The same for units of other processes, which hear of it later.
const REMOTE_GRACE: Duration = Duration::from_millis(1500);
/// How long a written fragment may be known to its driver only.
const UNRECORDED: Duration = Duration::from_secs(1);

/// What one round of a pass leaves.
pub(super) struct Round {
    pub(super) committer: Committer,
    /// Rows that were computed, but have not landed, by column.
    pub(super) unfit: Vec<RowSet>,
    /// Rows that landed with values of an earlier run, by column.
    pub(super) reused: Vec<RowSet>,
    pub(super) plan: Option<Arc<dyn ExecutionPlan>>,
    /// Why it ended early.
    pub(super) stopped: Option<Stop>,
    pub(super) failed: Option<Error>,
}

impl Run {
    /// Computes and commits a pass, as far as it goes.
    pub(super) async fn round(&mut self, pass: &mut Pass, number: usize) -> Result<Round> {
        let database = Arc::clone(&self.environment.database);
        let columns = pass.tasks.len();
        let sought = match self.request.is_forced() {
            true => Sought::OfJob(self.driver.id()),
            false => Sought::All,
        };
        let staged = {
            let columns: Vec<&Column> = pass.tasks.iter().map(|task| &task.column).collect();
            Staged::find(&database, &pass.table, &columns, sought).await?
        };
        self.has_staged |= !staged.is_empty();
        let mut reused = vec![RowSet::default(); columns];
        if self.request.is_forced() && number == 0 && self.driver.is_resumed() {
            // What this very job has landed before it was interrupted is not computed again.
            let there = self.landed_before(pass).await?;
            pass.leave_out(&there).await?;
        }
        let known: Vec<RowSet> = (0..columns).map(|place| staged.rows(place)).collect();
        if number == 0 {
            let left = pass.limit(self.limits, &known).await?;
            self.limits.max_calls = left;
            if let Some(max) = &mut self.limits.max_fragments {
                *max = max.saturating_sub(pass.fragments.len());
            }
        }
        for (place, known) in known.iter().enumerate() {
            reused[place] = pass.todo_ids(place).await?.intersection(known);
        }
        let counters = self.driver.counters();
        let is_first = number == 0;
        if is_first {
            // What another round lays out anew is planned already.
            counters.add(Count::RowsPlanned, pass.tasks.iter().map(|t| t.rows).sum());
        }
        counters.add(Count::FragmentsPlanned, pass.fragments.len() as u64);
        let committer = Committer::new(pass).await?;
        self.count_pending(Some((pass, &committer)));
        let whole = whole_files(pass, &staged).await?;
        if is_first {
            let reused_rows = whole.values().flat_map(|w| &w.rows).map(RowSet::len).sum();
            counters.add(Count::RowsReused, reused_rows);
        }
        let left = pass.fragments.len() - whole.len();
        let mut stopped = match left {
            0 => None,
            _ => self.admitted(left).await?,
        };
        let concurrency = self.concurrency().await;
        let units: Vec<Unit> = match stopped {
            Some(_) => Vec::new(),
            None => pass.units(concurrency),
        };
        let units: Vec<Unit> = units
            .into_iter()
            .filter(|unit| !whole.contains_key(&unit.fragment))
            .collect();
        let checkpoint_interval = self
            .settings()
            .checkpoint_interval
            .unwrap_or(CHECKPOINT_INTERVAL);
        let computation = pass.computation();
        let staging = Staging::new(
            Arc::clone(&database),
            &computation.table,
            &computation.columns,
            self.driver.id(),
        );
        let work = Arc::new(Work {
            job: self.driver.id().to_string(),
            signal: self.driver.signal().clone(),
            counters: Arc::clone(counters),
            checkpoint_interval,
            ledger: self.driver.ledger().clone(),
            database: Arc::clone(&database),
            staging: staging.await?,
            staged: Arc::new(staged),
            counts_reused: is_first,
            pace: match self.settings().fixed_batches {
                true => Pace::fixed(),
                false => Pace::adaptive(checkpoint_interval),
            },
        });
        let pinning = {
            let (name, dataset) = (pass.table.name.clone(), Arc::clone(&pass.table.dataset));
            let version = pass.table.version();
            // Beside the work: it has to be there when the first state goes back to this version.
            tokio::spawn(async move { pin::pin(&name, &dataset, version).await })
        };
        let mut flight = Flight {
            pinning: Some(pinning),
            run: self,
            pass,
            computation,
            work,
            committer,
            done: whole,
            unrecorded: BTreeMap::new(),
            unrecorded_since: None,
            unfit: vec![RowSet::default(); columns],
            committed_at: Instant::now(),
            parts: HashMap::new(),
            overtaken: Arc::default(),
        };
        let mut plan = None;
        let mut failed = None;
        if !units.is_empty() {
            let split = flight.split(&units)?;
            let made = flight.plan(&units, split.clone()).await?;
            plan = Some(Arc::clone(&made));
            match flight.fly(made, &units, &split, concurrency).await? {
                Landing::Through => {}
                Landing::Stopped(stop) => stopped = Some(stop),
                Landing::Failed(error) => failed = Some(error),
            }
        }
        if stopped != Some(Stop::Superseded) {
            flight.commit(true).await?;
        }
        let Flight {
            committer,
            mut unfit,
            work,
            overtaken,
            ..
        } = flight;
        if overtaken.load(Ordering::Relaxed) {
            for (place, unfit) in unfit.iter_mut().enumerate() {
                *unfit = pass
                    .todo_ids(place)
                    .await?
                    .difference(committer.landed(place));
            }
        }
        self.has_staged |=
            work.counters.get(Count::Checkpoints) > 0 || unfit.iter().any(|rows| !rows.is_empty());
        Ok(Round {
            committer,
            unfit,
            reused,
            plan,
            stopped,
            failed,
        })
    }

    /// The rows, by column, that earlier drivers of this job have committed, and whose inputs have not
    /// changed since. Where a commit does not say which rows, they are computed again.
    async fn landed_before(&self, pass: &Pass) -> Result<Vec<RowSet>> {
        let table = &pass.table;
        let mut landed = vec![RowSet::default(); pass.tasks.len()];
        let own = format!("{}/", self.driver.id());
        for version in self.driver.record().version + 1..=table.version() {
            let transaction = table.dataset.read_transaction_by_version(version).await;
            let Some(properties) = transaction
                .ok()
                .flatten()
                .and_then(|transaction| transaction.transaction_properties)
            else {
                continue;
            };
            if !properties
                .get(JOB)
                .is_some_and(|mark| mark.starts_with(&own))
            {
                continue;
            }
            for (task, landed) in pass.tasks.iter().zip(&mut landed) {
                let column = &task.column;
                let state = properties.get(&format!("{COLUMN_STATE}{}", column.field_id));
                let rows = properties.get(&format!("{COMPUTED_ROWS}{}", column.field_id));
                let state = state.and_then(|text| serde_json::from_str::<ColumnState>(text).ok());
                if let (Some(state), Some(rows)) = (state, rows)
                    && state.definition == column.definition.digest()
                    && let Some(changed) = rows_changed(table, column, &state.watermark).await?
                {
                    landed.union_with(&RowSet::decode(rows)?.difference(&changed));
                }
            }
        }
        Ok(landed)
    }

    /// Waits until there are executors, if there is a cluster; unless the job is told to stop meanwhile.
    async fn admitted(&self, units: usize) -> Result<Option<Stop>> {
        let Some(cluster) = self.environment.cluster() else {
            return Ok(None);
        };
        let placement = &self.settings().placement;
        let signal = self.driver.signal();
        tokio::select! {
            admitted = placement.admitted(&cluster, &self.driver, units) => admitted.map(|()| None),
            stop = signal.stopped() => Ok(Some(stop)),
        }
    }

    async fn concurrency(&self) -> usize {
        if let Some(units) = self.settings().concurrency {
            return units;
        }
        let cores = self.environment.state.config().target_partitions();
        let Some(cluster) = self.environment.cluster() else {
            return cores;
        };
        match cluster
            .slots(self.settings().placement.pool.as_deref())
            .await
        {
            Ok(slots) if slots > 0 => slots,
            _ => cores,
        }
    }
}

/// How the units of a round came to their end.
enum Landing {
    Through,
    Stopped(Stop),
    Failed(Error),
}

/// A round whose units are on their way.
struct Flight<'a> {
    /// Pins the version that is read.
    pinning: Option<JoinHandle<Result<bool>>>,
    run: &'a mut Run,
    pass: &'a Pass,
    /// What computes its columns.
    computation: Computation,
    work: Arc<Work>,
    committer: Committer,
    /// Fragments that wait for a commit.
    done: BTreeMap<u64, Written>,
    /// Of these, the ones that only this process knows.
    unrecorded: BTreeMap<u64, Written>,
    unrecorded_since: Option<Instant>,
    /// Rows whose files did not fit, by column.
    unfit: Vec<RowSet>,
    committed_at: Instant,
    /// Parts of fragments that are not whole, by fragment and first row.
    parts: HashMap<u64, BTreeMap<u32, String>>,
    /// Whether what was planned is no longer true: then what is on its way is staged, and laid out
    /// anew with the rest.
    overtaken: Arc<AtomicBool>,
}

impl Flight<'_> {
    /// The files of the fragments that several units write.
    fn split(&self, units: &[Unit]) -> Result<Arc<HashMap<u64, SplitFile>>> {
        let names = self.pass.column_names();
        let table = &self.pass.table;
        let mut split = HashMap::new();
        for unit in units.iter().filter(|unit| unit.rows.is_some()) {
            if let Entry::Vacant(entry) = split.entry(unit.fragment) {
                entry.insert(SplitFile::new(&table.name, &table.dataset, &names)?);
            }
        }
        Ok(Arc::new(split))
    }

    async fn plan(
        &self,
        units: &[Unit],
        split: Arc<HashMap<u64, SplitFile>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let work = Some(Arc::clone(&self.work));
        let state = &self.run.environment.state;
        let batches = self.run.settings().batches;
        self.computation
            .physical_plan(state, batches, units, split, work)
            .await
    }

    /// What a cluster has to know of the round.
    fn remote_round(&self) -> remote::Round {
        let settings = self.run.settings();
        remote::Round {
            computation: self.computation.clone(),
            work: Arc::clone(&self.work),
            batches: settings.batches,
            fixed_batches: settings.fixed_batches,
            purpose: settings.placement.purpose(&self.work.job),
        }
    }

    /// Runs the units, and commits what is due meanwhile.
    async fn fly(
        &mut self,
        plan: Arc<dyn ExecutionPlan>,
        units: &[Unit],
        split: &Arc<HashMap<u64, SplitFile>>,
        concurrency: usize,
    ) -> Result<Landing> {
        let signal = self.work.signal.clone();
        let go_on = {
            let (signal, overtaken) = (signal.clone(), Arc::clone(&self.overtaken));
            move || !matches!(signal.now(), Signal::Stop(_)) && !overtaken.load(Ordering::Relaxed)
        };
        let environment = &self.run.environment;
        let cluster = environment.cluster();
        let grace_for_all = match &cluster {
            Some(_) => REMOTE_GRACE,
            None => GRACE,
        };
        let mut writing = match cluster {
            Some(cluster) => run_units(
                environment,
                cluster,
                self.remote_round(),
                units.to_vec(),
                Arc::clone(split),
                InFlight::new(
                    self.run.settings().concurrency,
                    remote::PER_SLOT * concurrency,
                ),
                go_on,
            ),
            None => run_partitions(
                plan,
                environment.state.task_ctx(),
                concurrency,
                environment.workers.clone(),
                go_on,
            )
            .map(|batches| {
                let written = batches?.into_iter().map(|batch| written_units(&batch));
                Ok(written.collect::<Result<Vec<_>>>()?.concat())
            })
            .boxed(),
        };
        let mut failed = None;
        let mut grace: Option<Instant> = None;
        let stopped = loop {
            let due = self.next_due();
            tokio::select! {
                biased;
                unit = writing.next() => match unit {
                    None => break match signal.now() {
                        Signal::Stop(stop) => Some(stop),
                        _ => None,
                    },
                    Some(Ok(units_written)) => {
                        for written in units_written {
                            self.written(written.unit, units, written.file, split).await?;
                            self.do_what_is_due().await?;
                        }
                    }
                    Some(Err(error)) if is_stop(&error) => {}
                    Some(Err(error)) => {
                        // The others write down what they have.
                        signal.tell(Signal::Stop(Stop::Failed));
                        failed.get_or_insert(error);
                    }
                },
                stop = signal.stopped(), if grace.is_none() => {
                    let _ = stop;
                    grace = Some(Instant::now() + grace_for_all);
                }
                () = until(grace), if grace.is_some() => break match signal.now() {
                    Signal::Stop(stop) => Some(stop),
                    _ => None,
                },
                () = until(due), if due.is_some() => {}
            }
            self.do_what_is_due().await?;
        };
        drop(writing);
        Ok(match (failed, stopped) {
            (Some(error), _) => Landing::Failed(error),
            (None, Some(stop)) => Landing::Stopped(stop),
            (None, None) => Landing::Through,
        })
    }

    /// Takes note of a unit that is written; puts its fragment together when it is whole.
    async fn written(
        &mut self,
        unit: usize,
        units: &[Unit],
        file: String,
        split: &HashMap<u64, SplitFile>,
    ) -> Result<()> {
        let unit = &units[unit];
        let fragment = unit.fragment;
        let file = match (&unit.rows, split.get(&fragment)) {
            (Some(rows), Some(target)) => {
                let parts = self.parts.entry(fragment).or_default();
                parts.insert(rows.start, file);
                if parts.len() < units.iter().filter(|u| u.fragment == fragment).count() {
                    return Ok(());
                }
                let parts: Vec<String> = parts.values().cloned().collect();
                self.parts.remove(&fragment);
                target.join(&parts).await?.json
            }
            _ => file,
        };
        let rows = self.rows_of(fragment).await?;
        let written = Written {
            file,
            rows,
            is_reused: false,
        };
        self.work.counters.add(Count::FragmentsWritten, 1);
        self.unrecorded_since.get_or_insert_with(Instant::now);
        self.unrecorded.insert(fragment, written.clone());
        self.done.insert(fragment, written);
        Ok(())
    }

    /// The rows of a fragment that were to be computed, by column.
    async fn rows_of(&self, fragment: u64) -> Result<Vec<RowSet>> {
        let table = &self.pass.table;
        let file = table.dataset.get_fragment(fragment as usize);
        let file = file.ok_or_else(|| Error::internal(format!("fragment {fragment} is gone")))?;
        let live = live_ids(&table.name, &table.dataset, file.metadata()).await?;
        let rows = self.pass.tasks.iter().map(|task| match &task.todo {
            Rows::All => live.clone(),
            Rows::Some(todo) => todo.clone().intersection(&live),
        });
        Ok(rows.collect())
    }

    /// When something is to be done next.
    fn next_due(&self) -> Option<Instant> {
        let interval = self.commit_interval().filter(|_| !self.done.is_empty());
        let commit = interval.map(|interval| self.committed_at + interval);
        let record = self.unrecorded_since.map(|since| since + UNRECORDED);
        [commit, record].into_iter().flatten().min()
    }

    /// `None` if all is to be committed at once, and nobody said how long that may take.
    fn commit_interval(&self) -> Option<Duration> {
        let settings = self.run.settings();
        match (settings.commit_interval, settings.commit_every) {
            (Some(interval), _) => Some(interval),
            (None, Some(0)) => None,
            (None, _) => Some(COMMIT_INTERVAL),
        }
    }

    async fn do_what_is_due(&mut self) -> Result<()> {
        if self.work.signal.now() == Signal::Stop(Stop::Superseded) {
            return Ok(());
        }
        let (least, part) = COMMIT_EVERY;
        let every = match self.run.settings().commit_every {
            None => least.max(self.pass.fragments.len() / part),
            Some(0) => usize::MAX,
            Some(every) => every,
        };
        let interval = self.commit_interval();
        let late = interval.is_some_and(|interval| self.committed_at.elapsed() >= interval);
        if self.done.len() >= every || (late && !self.done.is_empty()) {
            let landed = self.committer.fragments + self.done.len() as u64;
            let is_last = landed >= self.pass.fragments.len() as u64;
            self.commit(is_last).await?;
        }
        if self
            .unrecorded_since
            .is_some_and(|since| since.elapsed() >= UNRECORDED)
        {
            self.record().await?;
        }
        Ok(())
    }

    /// Writes down which fragments are written, so that another process may commit them.
    async fn record(&mut self) -> Result<()> {
        self.unrecorded_since = None;
        let unrecorded = std::mem::take(&mut self.unrecorded);
        if !unrecorded.is_empty() {
            self.run.has_staged = true;
        }
        for (fragment, written) in unrecorded {
            let staging = &self.work.staging;
            staging
                .column_file(fragment, &written.file, written.rows)
                .await?;
        }
        Ok(())
    }

    /// Waits until the version that is read is pinned.
    async fn pinned(&mut self) -> Result<()> {
        let Some(pinning) = self.pinning.take() else {
            return Ok(());
        };
        let is_pinned = pinning
            .await
            .map_err(|error| Error::internal(format!("pinning failed: {error}")))??;
        if !is_pinned {
            let (name, version) = (&self.pass.table.name, self.pass.table.version());
            self.run.notices.push(format!(
                "SOURCE_NOT_PINNED: version {version} of table '{name}' can't be kept from others' clean-up; if it is removed, the next refresh is full"
            ));
        }
        Ok(())
    }

    /// Commits what is written; `is_last` if nothing more comes.
    async fn commit(&mut self, is_last: bool) -> Result<()> {
        self.pinned().await?;
        let done = std::mem::take(&mut self.done);
        let unfit = match self.overtaken.load(Ordering::Relaxed) {
            true => done,
            false => {
                let run = &self.run;
                let Outcome { unfit, overtaken } = self
                    .committer
                    .commit(
                        &run.environment.database,
                        &run.driver,
                        self.pass,
                        done,
                        is_last,
                    )
                    .await?;
                if let Some(why) = overtaken {
                    self.run.driver.event("overtaken", why, None).await?;
                    self.overtaken.store(true, Ordering::Relaxed);
                }
                unfit
            }
        };
        self.committed_at = Instant::now();
        self.run.count_pending(Some((self.pass, &self.committer)));
        self.unrecorded
            .retain(|fragment, _| unfit.contains_key(fragment));
        // Their results are paid for: another round, or another run, finds them here.
        self.record().await?;
        for (_, written) in unfit {
            for (place, (all, rows)) in self.unfit.iter_mut().zip(written.rows).enumerate() {
                all.union_with(&rows.difference(self.committer.landed(place)));
            }
        }
        Ok(())
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => pending().await,
    }
}

/// Fragments of a pass that an earlier run has written as they are needed now.
async fn whole_files(pass: &Pass, staged: &Staged) -> Result<BTreeMap<u64, Written>> {
    let mut whole = BTreeMap::new();
    if staged.is_empty() {
        return Ok(whole);
    }
    let table = &pass.table;
    let names = pass.column_names();
    let mut versions: HashMap<u64, Option<Dataset>> = HashMap::new();
    for fragment in &pass.fragments {
        let Some(file) = table.dataset.get_fragment(*fragment as usize) else {
            continue;
        };
        let live = live_ids(&table.name, &table.dataset, file.metadata()).await?;
        for (version, json, rows) in staged.column_files(*fragment) {
            let todo: Vec<RowSet> = pass
                .tasks
                .iter()
                .map(|task| match &task.todo {
                    Rows::All => live.clone(),
                    Rows::Some(todo) => todo.clone().intersection(&live),
                })
                .collect();
            if !todo
                .iter()
                .zip(&rows)
                .all(|(todo, rows)| todo.is_subset(rows))
            {
                continue;
            }
            if let Entry::Vacant(entry) = versions.entry(version.version) {
                let then = table.dataset.checkout_version(version.version).await;
                entry.insert(then.ok());
            }
            let Some(Some(then)) = versions.get(&version.version) else {
                continue;
            };
            let files = HashMap::from([(*fragment, json.to_string())]);
            if files_that_fit(then, &table.dataset, &names, &files)?.contains(fragment) {
                let written = Written {
                    file: json.to_string(),
                    rows: todo,
                    is_reused: true,
                };
                whole.insert(*fragment, written);
                break;
            }
        }
    }
    Ok(whole)
}
