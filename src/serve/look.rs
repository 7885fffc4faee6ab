//! One look at all views: which of them are to be refreshed now. It changes nothing, but for failures that are out of date.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};

use super::report::Report;
use super::{Keeper, LOOKS_PER_LIMIT, READS, RHYTHM, SOON};
use crate::Result;
use crate::database::materialized_view::ViewDefinition;
use crate::job::ledger::last_state;
use crate::view::failures::{self, Failures};
use crate::view::lag::{Behind, Lags};
use crate::view::refresh::open_view;

/// What a look has found.
pub(super) struct Look {
    /// Views that are to be refreshed.
    pub(super) due: Vec<String>,
    /// How far the kept views are behind that could be refreshed now.
    pub(super) behind: BTreeMap<String, Behind>,
    pub(super) lags: Arc<Lags>,
    pub(super) definitions: Arc<BTreeMap<String, ViewDefinition>>,
    /// When to look again.
    pub(super) next: Duration,
}

impl Keeper {
    /// Looks at all views, and says which are to be refreshed now.
    pub(super) async fn look(&mut self, once: bool) -> Result<Look> {
        self.come_back().await?;
        let database = Arc::clone(self.database());
        let mut definitions = BTreeMap::new();
        let names = database.materialized_view_names().await?;
        let mut opened = stream::iter(names.clone())
            .map(|name| {
                let database = &database;
                async move {
                    let found = open_view(database, &name).await;
                    (name, found.map(|(_, definition)| definition))
                }
            })
            .buffered(READS);
        while let Some((name, found)) = opened.next().await {
            let definition = match found {
                Ok(definition) => Some(definition),
                // One whose table can't be opened is due if its copy says so, and fails with the error.
                Err(_) => database.materialized_view(&name).await.unwrap_or_default(),
            };
            definitions.extend(definition.map(|definition| (name, definition)));
        }
        drop(opened);
        let lags = Lags::of(&database, &definitions).await?;
        let kept: Vec<(String, Duration)> = lags.kept().map(|(v, l)| (v.to_string(), l)).collect();
        let shortest = kept.iter().map(|(_, limit)| *limit).min();
        let rhythm = shortest.map_or(RHYTHM.1, |limit| limit / LOOKS_PER_LIMIT);
        let every = self.settings.every;
        let mut next = every.unwrap_or(rhythm.clamp(RHYTHM.0, RHYTHM.1));
        if self.kept != Some(kept.len()) && !once {
            (self.tell)(&Report::Keeping(kept.len(), next));
        }
        self.kept = Some(kept.len());
        let failed = self.failures(&definitions).await?;
        let interrupted = match self.interrupted.take() {
            Some(found) => found,
            None => self.interrupted_views().await?,
        };
        self.watch.begin();
        self.watch.forget_others(&lags);
        let mut due = Vec::new();
        let mut all_behind = BTreeMap::new();
        let until_next = next;
        for (view, limit) in kept {
            if self.busy.contains(&view) || self.elsewhere.contains_key(&view) {
                continue;
            }
            let rest = self.rest(&view, &lags, &failed);
            if !once && let Some(rest) = rest {
                next = next.min(rest.max(SOON));
                continue;
            }
            let behind = match self.watch.behind(&database, &lags, &view).await {
                Ok(behind) => behind,
                // What is wrong with it is told by the refresh.
                Err(_) => Behind::Unknown,
            };
            all_behind.insert(view.clone(), behind);
            let is_due = match behind.age(self.now()) {
                None => true,
                Some(age) => {
                    let took = self.took.get(&view).copied().unwrap_or_default();
                    let ahead = age + until_next + took;
                    match (behind, once, every) {
                        (Behind::No, ..) => interrupted.contains(&view),
                        (_, true, None) => true,
                        _ => ahead >= limit || interrupted.contains(&view),
                    }
                }
            };
            if is_due {
                due.push(view);
            } else if behind == Behind::No && failed.contains_key(&view) {
                // Someone else has refreshed it.
                failures::forget(&database, &view).await?;
            }
        }
        self.interrupted = Some(HashSet::new());
        if !self.elsewhere.is_empty() {
            next = next.min(SOON);
        }
        Ok(Look {
            due,
            behind: all_behind,
            lags: Arc::new(lags),
            definitions: Arc::new(definitions),
            next,
        })
    }

    /// How long a view, or one that it reads, is still left alone after it failed or was cancelled; `None` if it is not.
    fn rest(
        &self,
        view: &str,
        lags: &Lags,
        failed: &BTreeMap<String, Failures>,
    ) -> Option<Duration> {
        let now = self.now();
        let mut all = lags.before(view);
        all.insert(view.to_string());
        let rests = all.iter().filter_map(|name| {
            let failed = failed.get(name).map_or(0, |failed| failed.next - now);
            let failed = Duration::from_millis(u64::try_from(failed).unwrap_or(0));
            let cancelled = self.cancelled.get(name);
            let cancelled = cancelled.map_or(Duration::ZERO, |until| {
                until.saturating_duration_since(Instant::now())
            });
            Some(failed.max(cancelled)).filter(|rest| !rest.is_zero())
        });
        rests.max()
    }

    /// The failures of views, without those of views that were made again.
    async fn failures(
        &self,
        definitions: &BTreeMap<String, ViewDefinition>,
    ) -> Result<BTreeMap<String, Failures>> {
        let database = self.database();
        let names = failures::names(database).await?;
        let found: Vec<(String, Option<Failures>)> = stream::iter(names)
            .map(|name| async move {
                let found = failures::read(database, &name).await?;
                Ok::<_, crate::Error>((name, found))
            })
            .buffered(READS)
            .try_collect()
            .await?;
        let of_now = |(name, found): (String, Option<Failures>)| {
            let found = found?;
            (definitions.get(&name)?.id == found.definition).then_some((name, found))
        };
        Ok(found.into_iter().filter_map(of_now).collect())
    }

    /// Views with a job whose process is gone.
    async fn interrupted_views(&self) -> Result<HashSet<String>> {
        let ledger = self.environment.jobs.ledger();
        let mut views = HashSet::new();
        for id in ledger.active().await? {
            if let Some(files) = ledger.read(&id).await?
                && files.record.columns.is_empty()
                && !ledger.is_alive(&files)
                && !last_state(&files.events).is_final()
            {
                views.insert(files.record.table);
            }
        }
        Ok(views)
    }

    /// Forgets the jobs of others that have ended.
    pub(super) async fn come_back(&mut self) -> Result<()> {
        let ledger = self.environment.jobs.ledger();
        let mut still = BTreeMap::new();
        for (view, job) in std::mem::take(&mut self.elsewhere) {
            let files = match &job {
                Some(id) => ledger.read(id).await?,
                None => None,
            };
            if files.is_some_and(|files| ledger.is_alive(&files)) {
                still.insert(view, job);
            }
        }
        self.elsewhere = still;
        Ok(())
    }
}
