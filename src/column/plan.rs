//! Planning one pass of a refresh: which rows of which fragments, and the physical plan.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::assess::{Assessment, Column, REQUESTED_FULL, Rows};
use super::computation::{Computation, columns_read};
use crate::database::Table;
use crate::storage::RowSet;
use crate::storage::blob::is_blob;
use crate::storage::fragments::{all_live_ids, live_ids, live_rows, offsets_of};
use crate::storage::scan::type_width;
use crate::{Error, Result};

/// Rows of a fragment from which on it is divided among workers.
const ROWS_WORTH_DIVIDING: u64 = 2;

/// How large batches are; `None` for the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSize {
    /// Rows.
    pub rows: Option<usize>,
    /// Bytes.
    pub bytes: Option<u64>,
}

/// Which rows a refresh was asked for.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Those that lack a value or have a stale one.
    Changed,
    /// Of those, the ones with these ids.
    ChangedAmong(RowSet),
    /// The rows with these ids, whatever they have.
    Among(RowSet),
    /// All rows.
    Full,
}

/// What is done for one column.
#[derive(Debug, Clone)]
pub struct ColumnTask {
    /// The column.
    pub column: Column,
    /// What it needed.
    pub assessment: Assessment,
    /// Rows to compute.
    pub todo: Rows,
    /// `full`, `incremental`, `filtered`, or `none` if there is nothing to do.
    pub mode: &'static str,
    /// The reason code of a full refresh; empty otherwise.
    pub reason: String,
    /// Live rows to compute.
    pub rows: u64,
}

/// What one worker does at a time: a fragment, or some of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The fragment.
    pub fragment: u64,
    /// The rows of it, deleted ones included; `None` for all.
    pub rows: Option<Range<u32>>,
}

/// One pass: columns that are computed together, from one version of the table.
#[derive(Debug)]
pub struct Pass {
    /// The table at the version that is read.
    pub table: Table,
    /// The columns, none of which reads another.
    pub tasks: Vec<ColumnTask>,
    /// The version whose states say what the columns lack: the newest, also where an older one is read.
    pub seen: u64,
    /// Live rows of the table.
    pub table_rows: u64,
    /// Live rows in the fragments that are written.
    pub rows_in_fragments: u64,
    /// Fragments to write.
    pub fragments: Vec<u64>,
    /// Whether old values are read, because some rows of those fragments keep them.
    pub keeps_values: bool,
    /// Live rows of these fragments that are computed, by column.
    selected: Vec<Vec<u64>>,
    /// Addresses of the rows to compute, by column.
    addresses: Vec<Rows>,
}

/// What of a pass is left to others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Fragments at the beginning to leave out.
    pub skip_fragments: Option<usize>,
    /// Fragments to write at most.
    pub max_fragments: Option<usize>,
    /// Rows to compute at most, of all columns together; those that are staged do not count.
    pub max_calls: Option<u64>,
}

impl Pass {
    /// Plans a pass over `columns`, of which each has its assessment and what is wanted of it.
    pub async fn plan(
        table: Table,
        columns: Vec<Column>,
        assessments: Vec<Assessment>,
        wanted: Vec<Wanted>,
    ) -> Result<Self> {
        let mut tasks: Vec<ColumnTask> = columns
            .into_iter()
            .zip(assessments)
            .zip(&wanted)
            .map(|((column, assessment), wanted)| task(column, assessment, wanted))
            .collect();
        share_struct_calls(&mut tasks);
        Self::of_tasks(table, tasks).await
    }

    async fn of_tasks(table: Table, mut tasks: Vec<ColumnTask>) -> Result<Self> {
        for task in &mut tasks {
            task.rows = 0;
        }
        let name = table.name.clone();
        let dataset = Arc::clone(&table.dataset);
        let mut addresses: Vec<RowSet> = vec![RowSet::default(); tasks.len()];
        let mut fragments = Vec::new();
        let mut selected_rows: Vec<Vec<u64>> = vec![Vec::new(); tasks.len()];
        let (mut table_rows, mut rows_in_fragments, mut keeps_values) = (0, 0, false);
        for fragment in dataset.fragments().iter() {
            let live = live_rows(&name, &dataset, fragment).await?;
            table_rows += live;
            if live == 0 {
                continue;
            }
            let mut touched = false;
            let mut all_selected = true;
            let mut of_fragment = Vec::with_capacity(tasks.len());
            for (task, addresses) in tasks.iter_mut().zip(&mut addresses) {
                let selected = match &task.todo {
                    Rows::All => live,
                    Rows::Some(ids) if ids.is_empty() => 0,
                    Rows::Some(ids) => {
                        let offsets = offsets_of(&name, &dataset, fragment, ids).await?;
                        let base = fragment.id << 32;
                        addresses.extend(offsets.iter().map(|offset| base + u64::from(offset)));
                        offsets.len()
                    }
                };
                task.rows += selected;
                touched |= selected > 0;
                all_selected &= selected == live;
                of_fragment.push(selected);
            }
            if touched {
                fragments.push(fragment.id);
                for (all, rows) in selected_rows.iter_mut().zip(of_fragment) {
                    all.push(rows);
                }
                rows_in_fragments += live;
                keeps_values |= !all_selected;
            }
        }
        for task in &mut tasks {
            if task.rows == 0 {
                task.mode = "none";
            }
        }
        let addresses = tasks
            .iter()
            .zip(addresses)
            .map(|(task, addresses)| match task.todo {
                Rows::All => Rows::All,
                // Every live row of the fragments that are written: no need to ask row by row.
                Rows::Some(_) if task.rows == rows_in_fragments => Rows::All,
                Rows::Some(_) => Rows::Some(addresses),
            })
            .collect();
        Ok(Self {
            seen: table.version(),
            table,
            tasks,
            table_rows,
            rows_in_fragments,
            fragments,
            keeps_values,
            selected: selected_rows,
            addresses,
        })
    }

    /// Leaves to others what is over `limits`, and says how much of [`Limits::max_calls`] is left.
    ///
    /// `known` rows need no call, by column.
    pub async fn limit(&mut self, limits: Limits, known: &[RowSet]) -> Result<Option<u64>> {
        let skip = limits.skip_fragments.unwrap_or(0).min(self.fragments.len());
        let take = limits.max_fragments.unwrap_or(usize::MAX);
        let end = skip.saturating_add(take).min(self.fragments.len());
        if skip > 0 || end < self.fragments.len() {
            let kept = self.fragments[skip..end].to_vec();
            self.keep_fragments(&kept).await?;
        }
        let Some(mut left) = limits.max_calls else {
            return Ok(None);
        };
        for place in 0..self.tasks.len() {
            let todo = self.todo_ids(place).await?;
            let free = known.get(place).cloned().unwrap_or_default();
            let (free, mut paid) = (todo.clone().intersection(&free), todo.difference(&free));
            if paid.len() > left {
                paid = paid.iter().take(left as usize).collect();
            }
            left -= paid.len();
            self.tasks[place].todo = Rows::Some(free.union(&paid));
        }
        self.select().await?;
        Ok(Some(left))
    }

    /// Leaves out all fragments but these.
    pub async fn keep_fragments(&mut self, kept: &[u64]) -> Result<()> {
        let mut ids = RowSet::default();
        for fragment in self.table.dataset.fragments().iter() {
            if kept.contains(&fragment.id) {
                ids.union_with(&live_ids(&self.table.name, &self.table.dataset, fragment).await?);
            }
        }
        for task in &mut self.tasks {
            task.todo = Rows::Some(match &task.todo {
                Rows::All => ids.clone(),
                Rows::Some(todo) => todo.clone().intersection(&ids),
            });
        }
        self.select().await
    }

    /// Leaves out rows, by column.
    pub async fn leave_out(&mut self, rows: &[RowSet]) -> Result<()> {
        for (place, rows) in rows.iter().enumerate() {
            if rows.is_empty() {
                continue;
            }
            let todo = self.todo_ids(place).await?;
            self.tasks[place].todo = Rows::Some(todo.difference(rows));
        }
        self.select().await
    }

    /// Ids of the rows to compute of the column at `place`.
    pub async fn todo_ids(&self, place: usize) -> Result<RowSet> {
        Ok(match &self.tasks[place].todo {
            Rows::Some(ids) => ids.clone(),
            Rows::All => all_live_ids(&self.table.name, &self.table.dataset).await?,
        })
    }

    /// Finds fragments and addresses anew, after what is to be done of a column became less.
    async fn select(&mut self) -> Result<()> {
        let tasks = std::mem::take(&mut self.tasks);
        let modes: Vec<&'static str> = tasks.iter().map(|task| task.mode).collect();
        let again = Self::of_tasks(self.table.clone(), tasks).await?;
        *self = Self {
            seen: self.seen,
            ..again
        };
        for (task, mode) in self.tasks.iter_mut().zip(modes) {
            // What was left out does not make it another kind of refresh.
            task.mode = mode;
        }
        Ok(())
    }

    /// Rows to compute of the columns in a fragment, all together.
    pub fn rows_in(&self, fragment: u64) -> u64 {
        let place = self.fragments.iter().position(|id| *id == fragment);
        let rows = |place: usize| self.selected.iter().map(move |rows| rows[place]).sum();
        place.map_or(0, rows)
    }

    /// The work units: fragments, but parts of them where there are fewer than `workers`.
    pub fn units(&self, workers: usize) -> Vec<Unit> {
        let whole = |fragment: &u64| Unit {
            fragment: *fragment,
            rows: None,
        };
        let blobs = self.tasks.iter().any(|task| is_blob(&task.column.field));
        // A part of a blob's file needs names for the blobs that no other part uses.
        if blobs || self.fragments.is_empty() || self.fragments.len() >= workers {
            return self.fragments.iter().map(whole).collect();
        }
        let parts = workers.div_ceil(self.fragments.len()) as u32;
        let mut units = Vec::new();
        for fragment in &self.fragments {
            let rows = self.table.dataset.get_fragment(*fragment as usize);
            let rows = rows.and_then(|file| file.metadata().physical_rows);
            match rows.and_then(|rows| u32::try_from(rows).ok()) {
                Some(rows) if self.rows_in(*fragment) >= ROWS_WORTH_DIVIDING => {
                    let part = rows.div_ceil(parts).max(1);
                    units.extend((0..rows).step_by(part as usize).map(|start| Unit {
                        fragment: *fragment,
                        rows: Some(start..rows.min(start + part)),
                    }));
                }
                _ => units.push(whole(fragment)),
            }
        }
        units
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    /// Names of the columns.
    pub fn column_names(&self) -> Vec<&str> {
        self.tasks.iter().map(|task| task.column.name()).collect()
    }

    /// What computes its columns.
    pub fn computation(&self) -> Computation {
        Computation {
            table: self.table.clone(),
            columns: self.tasks.iter().map(|task| task.column.clone()).collect(),
            rows: self.addresses.clone(),
            keeps_values: self.keeps_values,
        }
    }

    /// Names of the stored columns that are read: inputs, and old values where rows keep them.
    pub fn columns_read(&self) -> BTreeSet<String> {
        columns_read(
            self.tasks.iter().map(|task| &task.column),
            self.keeps_values,
        )
    }

    /// Bytes that will probably be read and written: rows × the width of the columns' types.
    pub fn estimated_bytes(&self) -> u64 {
        let schema = self.table.stored_schema();
        let width = |name: &str| {
            schema
                .field_with_name(name)
                .map_or(0, |field| type_width(field.data_type()))
        };
        let read: u64 = self.columns_read().iter().map(|name| width(name)).sum();
        let written: u64 = self.column_names().into_iter().map(width).sum();
        self.rows_in_fragments * (read + written)
    }
}

fn task(column: Column, assessment: Assessment, wanted: &Wanted) -> ColumnTask {
    let (todo, mode, reason) = match wanted {
        Wanted::Full => (Rows::All, "full", REQUESTED_FULL.to_string()),
        Wanted::Among(rows) => (Rows::Some(rows.clone()), "filtered", String::new()),
        Wanted::ChangedAmong(rows) => {
            let todo = match assessment.todo() {
                Rows::All => rows.clone(),
                Rows::Some(todo) => todo.intersection(rows),
            };
            (Rows::Some(todo), "filtered", String::new())
        }
        Wanted::Changed => match &assessment.full_reason {
            Some(reason) => (Rows::All, "full", reason.clone()),
            None => (assessment.todo(), "incremental", String::new()),
        },
    };
    ColumnTask {
        column,
        assessment,
        todo,
        mode,
        reason,
        rows: 0,
    }
}

/// Columns of one struct call are computed for the same rows, so that the call is made once a row.
fn share_struct_calls(tasks: &mut [ColumnTask]) {
    for index in 0..tasks.len() {
        if tasks[index].column.definition.struct_field.is_none() {
            continue;
        }
        let text = tasks[index].column.definition.expression.clone();
        let same = |task: &&ColumnTask| {
            task.column.definition.struct_field.is_some()
                && task.column.definition.expression == text
        };
        let mut shared: Option<Rows> = None;
        for task in tasks.iter().filter(same) {
            shared = Some(match (shared, &task.todo) {
                (None, todo) => todo.clone(),
                (Some(Rows::Some(a)), Rows::Some(b)) => Rows::Some(a.union(b)),
                _ => Rows::All,
            });
        }
        if let Some(shared) = shared {
            tasks[index].todo = shared;
        }
    }
}

/// Orders `columns` so that each comes after those it reads; gives one list a pass.
///
/// # Errors
///
/// If they read one another in a circle (others may have written such definitions).
pub fn passes(table: &Table, columns: &[String]) -> Result<Vec<Vec<String>>> {
    let mut left: Vec<String> = columns.to_vec();
    let mut passes = Vec::new();
    while !left.is_empty() {
        let (ready, waiting): (Vec<String>, Vec<String>) =
            left.iter().cloned().partition(|column| {
                !left
                    .iter()
                    .any(|other| other != column && table.definitions.path(column, other).is_some())
            });
        if ready.is_empty() {
            return Err(Error::invalid(format!(
                "computed columns of table '{}' read one another in a circle: {}",
                table.name,
                waiting.join(", ")
            )));
        }
        passes.push(ready);
        left = waiting;
    }
    Ok(passes)
}
