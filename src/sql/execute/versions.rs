//! VACUUM, tags and RESTORE.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datafusion::prelude::DataFrame;
use datafusion::sql::TableReference;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::{ObjectNamePart, visit_relations};

use super::Executor;
use super::report::{Done, Rows};
use crate::column::mirror::{
    files_named, mirror_states_now, needed_once_mirrored, needed_versions,
};
use crate::database::Table;
use crate::database::materialized_view::ViewDefinition;
use crate::database::name::{TableName, Version};
use crate::database::system::optional_timestamp;
use crate::job::record::JobSummary;
use crate::job::staged::folder as staged_folder;
use crate::sql::parser::parse;
use crate::sql::statement::{CreateTag, DropTag, Statement, Vacuum};
use crate::storage::properties::VIEW_STATE;
use crate::storage::tag::{create_tag, drop_tag, move_tag, no_such_tag, tags};
use crate::storage::vacuum::{Removed, remove_versions};
use crate::storage::version::{NewestProperty, newest_property, restore, version_times};
use crate::storage::{OwnFile, pin, with_retries};
use crate::{Error, ErrorKind, Result};

/// RETAIN where it is not said.
const DEFAULT_RETAIN_HOURS: u64 = 168;
/// Files of pending rows that are younger may be of a refresh that is about to commit, whatever RETAIN says.
const PENDING_FILE_AGE: Duration = Duration::from_secs(60 * 60);
/// Jobs that are kept, and for how long: 90 days.
const JOBS: usize = 10_000;
const JOB_AGE_MILLIS: i64 = 90 * 24 * 60 * 60 * 1000;
/// The folder of these files, below `_headwater/`.
const PENDING: &str = "pending";

impl Executor {
    pub(super) async fn vacuum(&self, vacuum: Vacuum) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(&vacuum.table)?;
        let table = self.database.table(&name).await?;
        let hours = vacuum.retain_hours.unwrap_or(DEFAULT_RETAIN_HOURS);
        let retain = Duration::from_secs(hours * 60 * 60);
        let newest = table.version();
        let table = match vacuum.dry_run {
            true => table,
            false => keep_states(table).await?,
        };
        let mut kept = self.kept(&table, newest, hours).await?;
        let going: BTreeSet<u64> = std::mem::take(&mut kept.going);
        let pins = pin::pinned(&name, &table.dataset).await?;
        let pins: BTreeSet<u64> = pins.intersection(&going).copied().collect();
        if !vacuum.dry_run {
            pin::release(&name, &table.dataset, &pins).await?;
        }
        let mut removed = remove_versions(&name, &table.dataset, &going, vacuum.dry_run).await?;
        if vacuum.dry_run && !pins.is_empty() {
            removed.versions = going.len() as u64;
            self.notice(format!(
                "files that only version {} of table '{name}' names are not counted: it is still pinned",
                join(&pins)
            ));
        }
        for (folder, found) in [
            (
                PENDING.to_string(),
                self.unnamed_pending(&name, &going, retain).await?,
            ),
            (
                staged_folder(&name),
                self.left_by_jobs(&name, retain).await?,
            ),
        ] {
            if !vacuum.dry_run {
                for file in &found {
                    let path = format!("{folder}/{}", file.name);
                    self.database.root().remove_own(&path).await?;
                }
            }
            removed.files += found.len() as u64;
            removed.bytes += found.iter().map(|file| file.bytes).sum::<u64>();
        }
        let ledger = self.jobs.ledger();
        if !vacuum.dry_run {
            ledger.tidy().await?;
        }
        let oldest = ledger.now().saturating_sub(JOB_AGE_MILLIS);
        let is_old = |place: usize, job: &JobSummary| {
            place >= JOBS || job.finished_at.is_some_and(|at| at < oldest)
        };
        let jobs = ledger.forget_jobs(is_old, vacuum.dry_run).await?;
        if removed.failed > 0 {
            self.notice(format!(
                "{} files of table '{name}' could not be removed; VACUUM finds them again",
                removed.failed
            ));
        }
        self.vacuumed(name, vacuum.dry_run, removed, jobs, kept.text(), started)
    }

    fn vacuumed(
        &self,
        name: String,
        dry_run: bool,
        removed: Removed,
        jobs: usize,
        kept: String,
        started: Instant,
    ) -> Result<DataFrame> {
        let statement = match dry_run {
            true => "VACUUM DRY RUN",
            false => "VACUUM",
        };
        Rows::default()
            .text("statement", [statement])
            .text("object", [name])
            .number("versions_removed", [Some(removed.versions)])
            .number("files_removed", [Some(removed.files)])
            .number("jobs_removed", [Some(jobs as u64)])
            .number("bytes", [Some(removed.bytes)])
            .text("kept", [kept])
            .seconds("elapsed_seconds", [started.elapsed()])
            .frame(self)
    }

    /// Which versions of a table stay, and why, and which go; those from `newest` on stay.
    async fn kept(&self, table: &Table, newest: u64, hours: u64) -> Result<Kept> {
        let (name, dataset) = (&table.name, &table.dataset);
        let columns = computed_fields(table);
        let oldest =
            millis_now().saturating_sub(i64::try_from(hours * 3_600_000).unwrap_or(i64::MAX));
        let mut kept = Kept::default();
        let mut left = BTreeSet::new();
        for (version, committed) in version_times(name, dataset).await? {
            if version >= newest {
                kept.add(version, "newest".to_string());
            } else if committed > oldest {
                kept.add(version, format!("younger than {hours} hours"));
            } else {
                left.insert(version);
            }
        }
        let mut reasons: Vec<(u64, String)> = Vec::new();
        for tag in tags(name, dataset).await? {
            if tag.branch.is_none() {
                reasons.push((tag.version, format!("tag '{}'", tag.name)));
            }
        }
        let ids: Vec<i32> = columns.keys().copied().collect();
        for (version, ids) in needed_once_mirrored(name, dataset, &ids).await? {
            let names = ids.iter().filter_map(|id| columns.get(id));
            let names: Vec<&str> = names.map(String::as_str).collect();
            reasons.push((version, format!("computed column {}", names.join(", "))));
        }
        if let Some(first) = self.jobs.ledger().first_version_read(name, None).await? {
            // Its later passes read later versions.
            let read = left.range(first..).copied();
            reasons.extend(read.map(|version| (version, "a job reads it".to_string())));
        }
        for (version, branches) in pin::foreign_branches(name, dataset).await? {
            let branches: Vec<String> = branches.into_iter().collect();
            reasons.push((version, format!("branch '{}'", branches.join("', '"))));
        }
        for (owner, versions) in pin::owners(name, dataset).await? {
            let view = self.database.materialized_view_of(&owner).await?;
            let holder = match view {
                Some(view) => format!("materialized view '{view}'"),
                None => format!("pinned by {owner}"),
            };
            let held = versions
                .into_iter()
                .map(|version| (version, holder.clone()));
            reasons.extend(held);
        }
        if ViewDefinition::of(table)?.is_some()
            && let NewestProperty::Found(_, carried) =
                newest_property(name, dataset, VIEW_STATE).await?
        {
            // It is found by walking back to it.
            let way = left.range(carried..).copied();
            reasons.extend(way.map(|version| (version, "the view's state".to_string())));
        }
        for (version, made) in pin::pin_times(name, dataset).await? {
            // A refresh that this session knows nothing of may be reading it.
            if made.saturating_mul(1000) > u64::try_from(oldest).unwrap_or(0) {
                reasons.push((version, "pinned lately".to_string()));
            }
        }
        for (view, version) in self.versions_in_views(name).await? {
            reasons.push((version, format!("view '{view}'")));
        }
        for (version, reason) in reasons {
            if left.contains(&version) {
                kept.add(version, reason);
            }
        }
        left.retain(|version| !kept.reasons.contains_key(version));
        kept.going = left;
        Ok(kept)
    }

    /// The versions of a table that views read by their numbers.
    async fn versions_in_views(&self, table: &str) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for view in self.database.view_names().await? {
            let Some(definition) = self.database.view(&view).await? else {
                continue;
            };
            if !definition.reads.contains(table) {
                continue;
            }
            for statement in parse(&definition.query)? {
                let Statement::DataFusion(statement) = statement else {
                    continue;
                };
                let DataFusionStatement::Statement(query) = *statement else {
                    continue;
                };
                let _ = visit_relations(&query, |name| {
                    let last = name.0.last().and_then(ObjectNamePart::as_ident);
                    let named = last.map(|ident| TableName::parse(&ident.value));
                    if let Some(named) = named
                        && let (true, Some(Version::Number(version))) =
                            (named.name == table, named.version)
                    {
                        found.push((view.clone(), version));
                    }
                    ControlFlow::<()>::Continue(())
                });
            }
        }
        Ok(found)
    }

    /// Files of pending rows that no state names any more, once `going` are gone from the table `name`.
    /// States of all tables count, in all their versions; if one can't be read, no file is known to be
    /// unnamed.
    async fn unnamed_pending(
        &self,
        name: &str,
        going: &BTreeSet<u64>,
        retain: Duration,
    ) -> Result<Vec<OwnFile>> {
        let root = self.database.root();
        let age = retain.max(PENDING_FILE_AGE);
        let oldest =
            millis_now().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let mut files = root.list_own_files(PENDING).await?;
        files.retain(|file| file.modified_millis <= oldest);
        if files.is_empty() {
            return Ok(files);
        }
        let mut named = BTreeSet::new();
        for table in root.table_names().await? {
            match self
                .pending_named_by(&table, (table == name).then_some(going))
                .await
            {
                Ok(files) => named.extend(files),
                Err(error) => {
                    self.notice(format!(
                        "files below _headwater/{PENDING} were not looked at: {error}"
                    ));
                    return Ok(Vec::new());
                }
            }
        }
        files.retain(|file| !named.contains(&format!("{PENDING}/{}", file.name)));
        Ok(files)
    }

    /// What jobs have staged that have ended, and whose results nobody has asked for since.
    async fn left_by_jobs(&self, name: &str, retain: Duration) -> Result<Vec<OwnFile>> {
        let ledger = self.jobs.ledger();
        let active = ledger.active().await?;
        let age = i64::try_from(retain.as_millis()).unwrap_or(i64::MAX);
        let oldest = millis_now().saturating_sub(age);
        let root = self.database.root();
        let mut files = root.list_own_files(&staged_folder(name)).await?;
        files.retain(|file| {
            file.modified_millis <= oldest && !active.iter().any(|id| file.name.starts_with(id))
        });
        Ok(files)
    }

    /// The files that a table's versions name, but those in `without`.
    async fn pending_named_by(
        &self,
        table: &str,
        without: Option<&BTreeSet<u64>>,
    ) -> Result<BTreeSet<String>> {
        let newest = self.database.root().open_table(table, None).await?;
        let mut named = BTreeSet::new();
        for (version, _) in version_times(table, &newest).await? {
            if without.is_some_and(|without| without.contains(&version)) {
                continue;
            }
            let dataset = match self.database.root().open_table(table, Some(version)).await {
                Ok(dataset) => dataset,
                // Another cleans up at the same time.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            named.extend(files_named(table, &dataset).await?);
        }
        Ok(named)
    }

    pub(super) async fn create_tag(&self, create: CreateTag) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(&create.table)?;
        let tag = &create.tag;
        let table = match &create.version {
            Some(version) => self.database.table_version(&name, version).await?,
            None => self.database.table(&name).await?,
        };
        let mut version = table.version();
        if create.or_replace {
            move_tag(&name, &table.dataset, tag, version).await?;
        } else if !create_tag(&name, &table.dataset, tag, version).await? {
            let there = tags(&name, &table.dataset).await?;
            let there = there.into_iter().find(|there| there.name == *tag);
            let on = there.map(|there| there.version);
            if !create.if_not_exists {
                let error = Error::new(
                    ErrorKind::AlreadyExists,
                    match on {
                        Some(on) => {
                            format!("table '{name}' has a tag '{tag}' already, on version {on}")
                        }
                        None => format!("table '{name}' has a tag '{tag}' already"),
                    },
                );
                return Err(error.with_hint("CREATE OR REPLACE TAG moves it"));
            }
            self.notice(format!(
                "table '{name}' has a tag '{tag}' already; nothing was done"
            ));
            version = on.unwrap_or(version);
        }
        self.tagged("CREATE TAG", name, Some(version), started)
    }

    pub(super) async fn drop_tag(&self, drop: DropTag) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(&drop.table)?;
        let table = self.database.table(&name).await?;
        let tag = &drop.tag;
        if !drop_tag(&name, &table.dataset, tag).await? {
            if !drop.if_exists {
                return Err(no_such_tag(&name, &table.dataset, tag).await);
            }
            self.notice(format!(
                "table '{name}' has no tag '{tag}'; nothing was done"
            ));
        }
        self.tagged("DROP TAG", name, None, started)
    }

    fn tagged(
        &self,
        statement: &'static str,
        object: String,
        version: Option<u64>,
        started: Instant,
    ) -> Result<DataFrame> {
        let done = Done {
            statement,
            object,
            rows: None,
            version,
        };
        self.done(vec![done], started)
    }

    pub(super) async fn show_tags(&self, reference: &TableReference) -> Result<DataFrame> {
        let name = self.name_of(reference)?;
        let table = self.database.table(&name).await?;
        let tags = tags(&name, &table.dataset).await?;
        let (field, times) = optional_timestamp("created", tags.iter().map(|t| t.created_millis));
        Rows::default()
            .text("tag_name", tags.iter().map(|tag| tag.name.clone()))
            .number("version", tags.iter().map(|tag| Some(tag.version)))
            .column(field, times)
            .optional_text("branch", tags.iter().map(|tag| tag.branch.clone()))
            .frame(self)
    }

    pub(super) async fn restore(
        &self,
        reference: &TableReference,
        version: &Version,
    ) -> Result<DataFrame> {
        let started = Instant::now();
        let name = self.name_of(reference)?;
        let then = self.database.table_version(&name, version).await?;
        let broken = self
            .database
            .views_broken_by(&name, self.visible_schema(&then)?)
            .await?;
        let restored = with_retries(|| async {
            let now = self.database.table(&name).await?;
            restore(&name, &now.dataset, then.version()).await
        })
        .await?;
        for view in broken {
            let what = match view.is_materialized {
                true => "refreshed",
                false => "read",
            };
            self.notice(format!(
                "{view} can't be {what} with the columns that table '{name}' has now"
            ));
        }
        // A materialized view has the query again that it had then.
        if let Some(definition) = ViewDefinition::of(&then)? {
            self.database
                .store_materialized_view(&name, &definition)
                .await?;
        }
        let version = restored.version().version;
        let restored = Table {
            dataset: restored.into(),
            ..then
        };
        if let Err(error) = keep_states(restored).await {
            // The table is restored all the same.
            self.notice(format!(
                "the next refresh may compute more than necessary if others clean up: {error}"
            ));
        }
        self.tagged("RESTORE", name, Some(version), started)
    }
}

/// Sees to it that the next refresh of a table finds what it needs, whatever versions are removed. Gives the
/// table at its newest version.
async fn keep_states(table: Table) -> Result<Table> {
    let ids: Vec<i32> = computed_fields(&table).into_keys().collect();
    let dataset = mirror_states_now(&table.name, &table.dataset, &ids).await?;
    for version in needed_versions(&table.name, &dataset, &ids).await?.keys() {
        match pin::pin(&table.name, &dataset, *version).await {
            Ok(_) => {}
            // Others removed it before.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Table {
        dataset: dataset.into(),
        ..table
    })
}

/// The versions of a table that stay, each with its reasons, and those that go.
#[derive(Debug, Default)]
struct Kept {
    reasons: BTreeMap<u64, Vec<String>>,
    going: BTreeSet<u64>,
}

impl Kept {
    fn add(&mut self, version: u64, reason: String) {
        self.reasons.entry(version).or_default().push(reason);
    }

    /// `12: newest; 9-11: younger than 168 hours; 5: tag 'v1', computed column area`, newest first.
    fn text(&self) -> String {
        let mut groups: Vec<(u64, u64, String)> = Vec::new();
        for (version, reasons) in self.reasons.iter().rev() {
            let reasons = reasons.join(", ");
            match groups.last_mut() {
                Some((first, _, last)) if *first == version + 1 && *last == reasons => {
                    *first = *version;
                }
                _ => groups.push((*version, *version, reasons)),
            }
        }
        let text = groups
            .iter()
            .map(|(first, last, reasons)| match first == last {
                true => format!("{first}: {reasons}"),
                false => format!("{first}-{last}: {reasons}"),
            });
        text.collect::<Vec<_>>().join("; ")
    }
}

/// The stored computed columns of a table: names by the ids of their fields.
fn computed_fields(table: &Table) -> BTreeMap<i32, String> {
    let names = table.definitions.stored.keys();
    names
        .filter_map(|name| Some((table.dataset.schema().field(name)?.id, name.clone())))
        .collect()
}

fn join(versions: &BTreeSet<u64>) -> String {
    let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
    versions.join(", ")
}

fn millis_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}
