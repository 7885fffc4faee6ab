//! How far behind its sources a view may be, and how far it is.
//!
//! A view with a `target_lag` that is not suspended is **kept**: whoever keeps views ([`serve`](crate::serve)) refreshes it,
//! and before it the kept views that it reads. So the **limit** of a kept view is the smallest of its own lag and the
//! limits of the kept views that read it; `'downstream'` has no lag of its own, and is not kept while no kept view reads
//! it. A view that nobody keeps, and a suspended one, is a source like a table: only someone's REFRESH brings it on.
//!
//! A view is behind since the first commit, to a table that it reads directly or through kept views, of which it does
//! not show the rows: also where that changed only the inputs of a computed column that it reads. A commit that changed
//! nothing that it reads does not count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::assess::digest;
use super::declare::tables_read;
use super::options::{TargetLag, ViewOptions};
use super::refresh::open_view;
use super::state::{FoundState, SourceState, ViewState, find_state};
use crate::database::materialized_view::ViewDefinition;
use crate::database::{Database, Table};
use crate::delta::{self, Delta, FieldIdentity};
use crate::storage::version::first_change_after;
use crate::{Error, Result};

/// A view, as far as its lag goes.
#[derive(Debug, Clone)]
struct Declared {
    lag: Option<TargetLag>,
    suspended: bool,
    /// Tables and materialized views that it reads, also through other views.
    reads: BTreeSet<String>,
}

/// Which views are kept, and within which limits.
#[derive(Debug, Clone, Default)]
pub struct Lags {
    limits: BTreeMap<String, Duration>,
    reads: BTreeMap<String, BTreeSet<String>>,
}

impl Lags {
    /// The limits of the views that have these definitions.
    ///
    /// # Errors
    ///
    /// If the views that they read can't be looked up.
    pub async fn of(
        database: &Database,
        definitions: &BTreeMap<String, ViewDefinition>,
    ) -> Result<Self> {
        let mut declared = BTreeMap::new();
        for (name, definition) in definitions {
            // Options that this release can't read are told when the view is refreshed.
            let options = ViewOptions::of(definition).unwrap_or_default();
            let view = Declared {
                lag: options.target_lag,
                suspended: definition.suspended,
                reads: tables_read(database, definition).await?,
            };
            declared.insert(name.clone(), view);
        }
        Ok(Self::limits_of(&declared))
    }

    /// The limits of all views of a database.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn load(database: &Database) -> Result<Self> {
        let mut definitions = BTreeMap::new();
        for name in database.materialized_view_names().await? {
            // One that can't be read is kept by nobody.
            if let Ok(Some(definition)) = database.materialized_view(&name).await {
                definitions.insert(name, definition);
            }
        }
        Self::of(database, &definitions).await
    }

    fn limits_of(views: &BTreeMap<String, Declared>) -> Self {
        let mut limits: BTreeMap<String, Duration> = BTreeMap::new();
        let mut next: Vec<(&String, Duration)> = Vec::new();
        for (name, view) in views.iter().filter(|(_, view)| !view.suspended) {
            if let Some(TargetLag::Within(lag)) = view.lag {
                next.push((name, lag));
            }
        }
        // Limits only become smaller, so this ends, even if definitions that others wrote are circular.
        while let Some((name, limit)) = next.pop() {
            if limits.get(name).is_some_and(|known| *known <= limit) {
                continue;
            }
            limits.insert(name.clone(), limit);
            let reads = views.get(name).into_iter().flat_map(|view| &view.reads);
            next.extend(reads.filter_map(|read| {
                let (read, view) = views.get_key_value(read)?;
                (!view.suspended && view.lag.is_some()).then_some((read, limit))
            }));
        }
        let kept = views.iter().filter(|(name, _)| limits.contains_key(*name));
        let reads = kept.map(|(name, view)| (name.clone(), view.reads.clone()));
        Self {
            reads: reads.collect(),
            limits,
        }
    }

    /// How far a view may be behind; `None` if nobody keeps it.
    pub fn limit(&self, view: &str) -> Option<Duration> {
        self.limits.get(view).copied()
    }

    /// The kept views, with their limits.
    pub fn kept(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.limits.iter().map(|(name, limit)| (&**name, *limit))
    }

    /// The kept views that a kept view reads, directly or through others.
    pub fn before(&self, view: &str) -> BTreeSet<String> {
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut next = vec![view];
        while let Some(name) = next.pop() {
            for read in self.reads.get(name).into_iter().flatten() {
                if self.limits.contains_key(read) && read != view && found.insert(read.clone()) {
                    next.push(read);
                }
            }
        }
        found
    }
}

/// How far behind a view is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// It shows what its sources have.
    No,
    /// Since then, in milliseconds since 1970, UTC.
    Since(i64),
    /// It was never refreshed, or nothing is known of what it shows, or that is of another definition.
    Unknown,
}

impl Behind {
    /// The worse of the two.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Since(one), Self::Since(other)) => Self::Since(one.min(other)),
            (Self::Since(since), Self::No) | (Self::No, Self::Since(since)) => Self::Since(since),
            (Self::No, Self::No) => Self::No,
        }
    }

    /// How long it has been behind at `now`; `None` if that is not known.
    pub fn age(self, now: i64) -> Option<Duration> {
        match self {
            Self::No => Some(Duration::ZERO),
            // Clocks differ.
            Self::Since(since) => {
                let millis = u64::try_from(now.saturating_sub(since)).unwrap_or(0);
                Some(Duration::from_millis(millis))
            }
            Self::Unknown => None,
        }
    }
}

/// A version of a table.
type Version = (String, u64);

/// Finds out how far views are behind. What it has found it remembers, so that looking again costs no more than opening
/// tables whose versions have not changed.
#[derive(Debug, Default)]
pub struct Watch {
    /// The tables as they were when this look began.
    tables: HashMap<String, Table>,
    /// What versions of views reflect; `None` where that is not known.
    states: HashMap<Version, Option<Arc<ViewState>>>,
    /// Since when a version of a source with these columns is out of date, up to a newer version.
    changes: HashMap<(String, u64, Vec<i32>), (u64, Behind)>,
    /// Of views, with their version: the versions of sources for which a refresh found nothing to do.
    settled: HashMap<Version, BTreeMap<String, u64>>,
}

impl Watch {
    /// Begins another look: tables may have newer versions.
    pub fn begin(&mut self) {
        self.tables.clear();
    }

    /// Takes note that there was nothing to refresh in version `version` of a view, with its sources at these versions.
    pub fn settle(&mut self, view: &str, version: u64, sources: BTreeMap<String, u64>) {
        self.settled.retain(|(name, _), _| name != view);
        self.settled.insert((view.to_string(), version), sources);
    }

    /// Forgets what belongs to no view of `lags`.
    pub fn forget_others(&mut self, lags: &Lags) {
        let is_kept = |name: &str| lags.limit(name).is_some();
        self.settled.retain(|(name, _), _| is_kept(name));
        self.states.retain(|(name, _), _| is_kept(name));
        let read: BTreeSet<&String> = lags.reads.values().flatten().collect();
        self.changes.retain(|(name, ..), _| read.contains(name));
    }

    /// How far behind a view is.
    ///
    /// # Errors
    ///
    /// If it, or what it reads, can't be opened.
    pub async fn behind(&mut self, database: &Database, lags: &Lags, view: &str) -> Result<Behind> {
        let (table, definition) = open_view(database, view).await?;
        let version = table.version();
        self.tables.insert(view.to_string(), table);
        let Some(state) = self.state(database, view, version).await? else {
            return Ok(Behind::Unknown);
        };
        if state.definition != digest(database, &definition).await? {
            return Ok(Behind::Unknown);
        }
        self.reflecting(database, lags, view.to_string(), version, state)
            .await
    }

    /// How far behind version `version` of a view is.
    fn reflecting<'a>(
        &'a mut self,
        database: &'a Database,
        lags: &'a Lags,
        view: String,
        version: u64,
        state: Arc<ViewState>,
    ) -> BoxFuture<'a, Result<Behind>> {
        async move {
            let mut behind = Behind::No;
            for source in state.tables() {
                let settled = self.settled.get(&(view.clone(), version));
                let seen = settled.and_then(|sources| sources.get(&source.table).copied());
                behind = behind.or(self.changed(database, source, seen).await?);
                if lags.limit(&source.table).is_none() {
                    continue;
                }
                // A version that is gone tells nothing, and is older than the one looked at above.
                let seen = seen.unwrap_or(source.version.version);
                let found = self.state(database, &source.table, seen).await;
                if let Ok(Some(state)) = found {
                    let table = source.table.clone();
                    let through = self.reflecting(database, lags, table, seen, state).await?;
                    behind = behind.or(through);
                }
            }
            Ok(behind)
        }
        .boxed()
    }

    async fn table(&mut self, database: &Database, name: &str) -> Result<Table> {
        if let Some(table) = self.tables.get(name) {
            return Ok(table.clone());
        }
        let table = database.table(name).await?;
        self.tables.insert(name.to_string(), table.clone());
        Ok(table)
    }

    /// What a version of a view reflects.
    async fn state(
        &mut self,
        database: &Database,
        view: &str,
        version: u64,
    ) -> Result<Option<Arc<ViewState>>> {
        let key = (view.to_string(), version);
        if let Some(state) = self.states.get(&key) {
            return Ok(state.clone());
        }
        let newest = self.table(database, view).await?;
        let table = match newest.version() == version {
            true => newest,
            false => database.table_at(view, Some(version)).await?,
        };
        let state = match find_state(view, &table.dataset).await? {
            FoundState::State(state) => Some(Arc::from(state)),
            FoundState::Never | FoundState::Lost | FoundState::Modified => None,
        };
        self.states.insert(key, state.clone());
        Ok(state)
    }

    /// Since when a source has other rows, in what is read of it, than at the version that `then` names; or at `seen`, if a
    /// refresh found nothing to do with that.
    async fn changed(
        &mut self,
        database: &Database,
        then: &SourceState,
        seen: Option<u64>,
    ) -> Result<Behind> {
        let table = self.table(database, &then.table).await?;
        let newest = table.version();
        let from = then.version.version;
        if newest == seen.unwrap_or(from) {
            return Ok(Behind::No);
        }
        let fields = fields_and_inputs(&table, &then.columns);
        let key = (
            then.table.clone(),
            from,
            fields.iter().map(|field| field.id).collect(),
        );
        let mut clean = seen.unwrap_or(from);
        match self.changes.get(&key) {
            Some((at, behind)) if *at == newest && seen.is_none() => return Ok(*behind),
            // What was there then had changed nothing that is read.
            Some((at, Behind::No)) if *at > from => clean = clean.max(*at),
            _ => {}
        }
        let is_same = match delta::changes(&table.dataset, &then.version, &fields).await? {
            Delta::Rows(rows) => {
                rows.inserted.is_empty() && rows.updated.is_empty() && rows.deleted.is_empty()
            }
            Delta::Everything(_) => false,
        };
        let behind = match is_same {
            true => Behind::No,
            false => match first_change_after(&then.table, &table.dataset, clean).await? {
                Some(since) => Behind::Since(since),
                // It was dropped and made again.
                None => Behind::Unknown,
            },
        };
        self.changes.insert(key, (newest, behind));
        Ok(behind)
    }
}

/// The columns that are read, with those from which stored computed ones among them are computed.
fn fields_and_inputs(table: &Table, columns: &[FieldIdentity]) -> Vec<FieldIdentity> {
    let mut fields = columns.to_vec();
    let mut place = 0;
    while let Some(field) = fields.get(place) {
        place += 1;
        let stored = table.definitions.stored.get(&field.name);
        let inputs = stored.into_iter().flat_map(|column| &column.input_names);
        let inputs = inputs.filter_map(|name| FieldIdentity::of(&table.dataset, name));
        let new: Vec<FieldIdentity> = inputs.filter(|input| !fields.contains(input)).collect();
        fields.extend(new);
    }
    fields
}

/// Why a view can't be kept, in one line: what was done, what went wrong, what mends it.
pub fn in_one_line(error: &Error) -> String {
    let text = match error.hint() {
        Some(hint) => format!("{}; mend: {hint}", error.message()),
        None => error.message().to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(lag: Option<u64>, suspended: bool, reads: &[&str]) -> Declared {
        Declared {
            lag: lag.map(|seconds| match seconds {
                0 => TargetLag::Downstream,
                seconds => TargetLag::Within(Duration::from_secs(seconds)),
            }),
            suspended,
            reads: reads.iter().map(ToString::to_string).collect(),
        }
    }

    fn limits(views: &[(&str, Declared)]) -> Vec<(String, u64)> {
        let views = views.iter().cloned();
        let views = views.map(|(name, view)| (name.to_string(), view)).collect();
        let lags = Lags::limits_of(&views);
        let kept = lags.kept();
        kept.map(|(name, limit)| (name.to_string(), limit.as_secs()))
            .collect()
    }

    fn expect(views: &[(&str, Declared)], expected: &[(&str, u64)]) {
        let expected = expected.iter().map(|(name, s)| (name.to_string(), *s));
        assert_eq!(limits(views), expected.collect::<Vec<_>>());
    }

    #[test]
    fn downstream_is_the_smallest_lag_of_the_readers() {
        expect(
            &[
                ("a", declared(Some(0), false, &["t"])),
                ("b", declared(Some(0), false, &["a"])),
                ("c", declared(Some(60), false, &["b"])),
                ("d", declared(Some(20), false, &["a", "t"])),
                ("e", declared(Some(0), false, &["t"])),
            ],
            &[("a", 20), ("b", 60), ("c", 60), ("d", 20)],
        );
    }

    #[test]
    fn a_reader_in_more_of_a_hurry_takes_what_it_reads_along() {
        expect(
            &[
                ("a", declared(Some(600), false, &["t"])),
                ("b", declared(Some(10), false, &["a"])),
            ],
            &[("a", 10), ("b", 10)],
        );
    }

    #[test]
    fn what_nobody_keeps_passes_nothing_on() {
        expect(
            &[
                ("a", declared(Some(0), false, &["t"])),
                ("b", declared(None, false, &["a"])),
                ("c", declared(Some(10), false, &["b"])),
                ("d", declared(Some(0), false, &["t"])),
                ("e", declared(Some(10), true, &["d"])),
            ],
            &[("c", 10)],
        );
    }

    #[test]
    fn circles_of_others_end() {
        expect(
            &[
                ("a", declared(Some(0), false, &["b"])),
                ("b", declared(Some(5), false, &["a"])),
            ],
            &[("a", 5), ("b", 5)],
        );
    }

    #[test]
    fn the_worse_of_two_counts() {
        assert_eq!(Behind::No.or(Behind::Since(7)), Behind::Since(7));
        assert_eq!(Behind::Since(5).or(Behind::Since(7)), Behind::Since(5));
        assert_eq!(Behind::Unknown.or(Behind::Since(7)), Behind::Unknown);
        assert_eq!(Behind::Since(5).age(2005), Some(Duration::from_secs(2)));
        assert_eq!(Behind::Since(5).age(0), Some(Duration::ZERO));
    }
}
