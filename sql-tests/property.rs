//! Computed columns under random changes: after each refresh a column equals its expression over the
//! inputs, and a refresh computes every row that needs it and none that does not.
//!
//! `HEADWATER_SEED` and `HEADWATER_STEPS` choose another walk than the ones that run by default; a
//! failure prints both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, Int32Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{Int32Type, Int64Type, UInt64Type};
use headwater::session::Headwater;
use lance::Dataset;
use lance::dataset::cleanup::CleanupPolicy;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{
    InsertBuilder, MergeInsertBuilder, UpdateBuilder, WhenMatched, WhenNotMatched, WriteMode,
    WriteParams,
};
use libtest_mimic::{Failed, Trial};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use crate::harness::Engine;

const DEFAULT_SEEDS: [u64; 2] = [1, 20_261_121];
const DEFAULT_STEPS: usize = 120;
const STEPS_ON_CLUSTER: usize = 30;

/// The random walks; and a shorter one on a cluster.
pub(crate) fn trials() -> Vec<Trial> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let given = number("HEADWATER_STEPS").map(|steps: u64| steps as usize);
    let seeds = number("HEADWATER_SEED").map_or(DEFAULT_SEEDS.to_vec(), |seed| vec![seed]);
    let here = seeds
        .iter()
        .map(|seed| (Engine::Local, "", DEFAULT_STEPS, *seed));
    let there = seeds.last();
    let there = there.map(|seed| (Engine::Cluster, "_on_cluster", STEPS_ON_CLUSTER, *seed));
    here.chain(there)
        .map(|(engine, name, steps, seed)| {
            let steps = given.unwrap_or(steps);
            let walk = move || {
                let runtime = tokio::runtime::Runtime::new()?;
                let walk = async {
                    let mut walk = Walk::new(engine, seed).await?;
                    walk.run(steps).await
                };
                runtime.block_on(walk).map_err(|error| {
                    Failed::from(format!(
                        "HEADWATER_SEED={seed} HEADWATER_STEPS={steps}: {error}"
                    ))
                })
            };
            Trial::test(
                format!("property::computed_columns{name}_seed_{seed}"),
                walk,
            )
        })
        .collect()
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A row as it should be.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    x: Option<i32>,
    y: Option<i32>,
    note: String,
}

/// Rows that a column has to compute at its next refresh, and rows that it may.
#[derive(Debug, Clone, Default)]
struct Stale {
    must: BTreeSet<i64>,
    /// Written by a statement of ours that named the input, but the value stayed.
    may: BTreeSet<i64>,
}

/// What the table was at a version.
struct Past {
    version: u64,
    rows: BTreeMap<i64, Row>,
    area: Stale,
    tier: Stale,
}

struct Walk {
    _folder: tempfile::TempDir,
    uri: String,
    headwater: Headwater,
    random: StdRng,
    rows: BTreeMap<i64, Row>,
    next_id: i64,
    area: Stale,
    tier: Stale,
    /// Versions to restore.
    past: Vec<Past>,
    log: Vec<String>,
}

impl Walk {
    async fn new(engine: Engine, seed: u64) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let url = folder.path().join("db").display().to_string();
        let headwater = engine.open(&url).await?;
        let walk = Self {
            uri: format!("{url}/t.lance"),
            _folder: folder,
            headwater,
            random: StdRng::seed_from_u64(seed),
            rows: BTreeMap::new(),
            next_id: 0,
            area: Stale::default(),
            tier: Stale::default(),
            past: Vec::new(),
            log: Vec::new(),
        };
        walk.sql(
            "CREATE TABLE t (id BIGINT, x INT, y INT, note VARCHAR,
                area INT GENERATED ALWAYS AS (x * y),
                total BIGINT GENERATED ALWAYS AS (area + coalesce(x, 0)),
                sum INT GENERATED ALWAYS AS (x + y) VIRTUAL)",
        )
        .await?;
        walk.sql(
            "ALTER TABLE t ADD COLUMN tier AS
                (CASE WHEN x IS NULL THEN 'none' WHEN x > 50 THEN 'high' ELSE 'low' END)",
        )
        .await?;
        Ok(walk)
    }

    async fn sql(&self, text: &str) -> Outcome<Vec<RecordBatch>> {
        let frame = self
            .headwater
            .sql(text)
            .await
            .map_err(|error| format!("{text}: {error}"))?;
        Ok(frame
            .collect()
            .await
            .map_err(|error| format!("{text}: {error}"))?)
    }

    async fn run(&mut self, steps: usize) -> Outcome<()> {
        for step in 0..steps {
            if let Err(error) = self.step().await {
                let from = self.log.len().saturating_sub(12);
                return Err(format!(
                    "step {step}: {error}\nthe last steps:\n{}",
                    self.log[from..].join("\n")
                )
                .into());
            }
        }
        self.refresh_all("area, tier, total").await?;
        self.check_values().await
    }

    async fn step(&mut self) -> Outcome<()> {
        match self.random.random_range(0..19) {
            0 | 1 => self.insert().await,
            2 => self.foreign_append().await,
            3 => self.update_x().await,
            4 => self.update_note().await,
            5 => self.foreign_update_x().await,
            6 => self.foreign_update_note().await,
            7 => self.foreign_merge().await,
            8 => self.delete().await,
            9 => self.compact().await,
            10 => self.refresh_where().await,
            11 => self.refresh_stale_only().await,
            12 => self.refresh_all("area").await,
            13 => self.refresh_all("tier").await,
            14 => self.refresh_all("area, tier").await,
            15 => self.vacuum().await,
            16 | 17 => self.remember_or_restore().await,
            _ => {
                self.refresh_all("area, tier, total").await?;
                self.check_values().await
            }
        }
    }

    fn note(&mut self, text: String) {
        self.log.push(text);
    }

    fn some_ids(&mut self, most: usize) -> Vec<i64> {
        let count = self.random.random_range(1..=most);
        let mut ids = self
            .rows
            .keys()
            .copied()
            .choose_multiple(&mut self.random, count);
        ids.sort_unstable();
        ids
    }

    fn new_rows(&mut self) -> Vec<(i64, Row)> {
        let count = self.random.random_range(1..12);
        (0..count)
            .map(|_| {
                let value = |random: &mut StdRng| {
                    random
                        .random_bool(0.85)
                        .then(|| random.random_range(-100..100))
                };
                let row = Row {
                    x: value(&mut self.random),
                    y: value(&mut self.random),
                    note: format!("note {}", self.random.random_range(0..1000)),
                };
                self.next_id += 1;
                (self.next_id, row)
            })
            .collect()
    }

    fn remember_new(&mut self, rows: Vec<(i64, Row)>) {
        for (id, row) in rows {
            self.area.must.insert(id);
            self.tier.must.insert(id);
            self.rows.insert(id, row);
        }
    }

    async fn insert(&mut self) -> Outcome<()> {
        let rows = self.new_rows();
        let values: Vec<String> = rows
            .iter()
            .map(|(id, row)| {
                format!(
                    "({id}, {}, {}, '{}')",
                    sql_number(row.x),
                    sql_number(row.y),
                    row.note
                )
            })
            .collect();
        let text = format!("INSERT INTO t VALUES {}", values.join(", "));
        self.note(text.clone());
        self.sql(&text).await?;
        self.remember_new(rows);
        Ok(())
    }

    fn batch(rows: &[(i64, Row)]) -> Outcome<RecordBatch> {
        let ids: Int64Array = rows.iter().map(|(id, _)| Some(*id)).collect();
        let xs: Int32Array = rows.iter().map(|(_, row)| row.x).collect();
        let ys: Int32Array = rows.iter().map(|(_, row)| row.y).collect();
        let notes: StringArray = rows.iter().map(|(_, row)| Some(row.note.clone())).collect();
        Ok(RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(ids) as _, true),
            ("x", Arc::new(xs) as _, true),
            ("y", Arc::new(ys) as _, true),
            ("note", Arc::new(notes) as _, true),
        ])?)
    }

    async fn foreign_append(&mut self) -> Outcome<()> {
        let rows = self.new_rows();
        self.note(format!("foreign append of {} rows", rows.len()));
        let dataset = Dataset::open(&self.uri).await?;
        let params = WriteParams {
            mode: WriteMode::Append,
            ..Default::default()
        };
        InsertBuilder::new(Arc::new(dataset))
            .with_params(&params)
            .execute(vec![Self::batch(&rows)?])
            .await?;
        self.remember_new(rows);
        Ok(())
    }

    async fn update_x(&mut self) -> Outcome<()> {
        let ids = self.some_ids(5);
        if ids.is_empty() {
            return Ok(());
        }
        let text = format!("UPDATE t SET x = x + 7 WHERE id IN ({})", join(&ids));
        self.note(text.clone());
        self.sql(&text).await?;
        self.add_to_x(&ids, 7, true);
        Ok(())
    }

    async fn foreign_update_x(&mut self) -> Outcome<()> {
        let ids = self.some_ids(5);
        if ids.is_empty() {
            return Ok(());
        }
        self.note(format!("foreign update of x of {}", join(&ids)));
        let dataset = Arc::new(Dataset::open(&self.uri).await?);
        UpdateBuilder::new(dataset)
            .update_where(&format!("id IN ({})", join(&ids)))?
            .set("x", "x + 3")?
            .build()?
            .execute()
            .await?;
        self.add_to_x(&ids, 3, false);
        Ok(())
    }

    fn add_to_x(&mut self, ids: &[i64], more: i32, ours: bool) {
        for id in ids {
            let Some(row) = self.rows.get_mut(id) else {
                continue;
            };
            match &mut row.x {
                Some(x) => {
                    *x += more;
                    self.area.must.insert(*id);
                    self.tier.must.insert(*id);
                }
                // The value stays NULL; a statement of ours has named the column all the same.
                None if ours => {
                    self.area.may.insert(*id);
                    self.tier.may.insert(*id);
                }
                None => {}
            }
        }
    }

    async fn update_note(&mut self) -> Outcome<()> {
        let ids = self.some_ids(8);
        if ids.is_empty() {
            return Ok(());
        }
        let text = format!("UPDATE t SET note = 'new' WHERE id IN ({})", join(&ids));
        self.note(text.clone());
        self.sql(&text).await?;
        for id in ids {
            if let Some(row) = self.rows.get_mut(&id) {
                row.note = "new".to_string();
            }
        }
        Ok(())
    }

    async fn foreign_update_note(&mut self) -> Outcome<()> {
        let ids = self.some_ids(8);
        if ids.is_empty() {
            return Ok(());
        }
        self.note(format!("foreign update of note of {}", join(&ids)));
        let dataset = Arc::new(Dataset::open(&self.uri).await?);
        UpdateBuilder::new(dataset)
            .update_where(&format!("id IN ({})", join(&ids)))?
            .set("note", "'theirs'")?
            .build()?
            .execute()
            .await?;
        for id in ids {
            if let Some(row) = self.rows.get_mut(&id) {
                row.note = "theirs".to_string();
            }
        }
        Ok(())
    }

    /// merge_insert of others: changes y of some rows, and adds some.
    async fn foreign_merge(&mut self) -> Outcome<()> {
        let ids = self.some_ids(4);
        let mut source: Vec<(i64, Row)> = ids
            .iter()
            .filter_map(|id| self.rows.get(id).map(|row| (*id, row.clone())))
            // Where x is 0 another y gives the same `area`, so `total`, which they overwrite with NULL,
            // would rightly keep their NULL.
            .filter(|(_, row)| row.x != Some(0))
            .collect();
        for (id, row) in &mut source {
            row.y = Some(row.y.unwrap_or(0) + 1);
            self.area.must.insert(*id);
        }
        let added = self.new_rows();
        let updated = source.clone();
        source.extend(added.iter().cloned());
        self.note(format!(
            "foreign merge of {} and {} new",
            join(&ids),
            added.len()
        ));
        let dataset = Arc::new(Dataset::open(&self.uri).await?);
        let batch = Self::batch(&source)?;
        // Columns that the source lacks must be there for new rows: give the computed ones as NULL.
        let full = Dataset::open(&self.uri).await?;
        let schema = datafusion::arrow::datatypes::Schema::from(full.schema());
        let columns = schema
            .fields()
            .iter()
            .map(|field| match batch.column_by_name(field.name()) {
                Some(column) => Arc::clone(column),
                None => {
                    datafusion::arrow::array::new_null_array(field.data_type(), batch.num_rows())
                }
            })
            .collect();
        let batch = RecordBatch::try_new(Arc::new(schema), columns)?;
        let mut builder = MergeInsertBuilder::try_new(dataset, vec!["id".to_string()])?;
        builder
            .when_matched(WhenMatched::UpdateAll)
            .when_not_matched(WhenNotMatched::InsertAll);
        builder.try_build()?.execute_batches(vec![batch]).await?;
        // Their NULL took the place of `tier`, and stays until x changes: what others write into a
        // computed column is kept. So only `area`, whose input changed, is compared afterwards.
        self.rows.extend(updated);
        self.remember_new(added);
        Ok(())
    }

    async fn delete(&mut self) -> Outcome<()> {
        let ids = self.some_ids(4);
        if ids.is_empty() {
            return Ok(());
        }
        let text = format!("DELETE FROM t WHERE id IN ({})", join(&ids));
        self.note(text.clone());
        self.sql(&text).await?;
        for id in ids {
            self.rows.remove(&id);
            for stale in [&mut self.area, &mut self.tier] {
                stale.must.remove(&id);
                stale.may.remove(&id);
            }
        }
        Ok(())
    }

    async fn compact(&mut self) -> Outcome<()> {
        if self.random.random_bool(0.5) {
            self.note("OPTIMIZE t".to_string());
            self.sql("OPTIMIZE t").await?;
        } else {
            self.note("foreign compaction".to_string());
            let mut dataset = Dataset::open(&self.uri).await?;
            compact_files(&mut dataset, CompactionOptions::default(), None).await?;
        }
        Ok(())
    }

    /// Takes all versions that no refresh needs; what others do right afterwards takes none of the others.
    async fn vacuum(&mut self) -> Outcome<()> {
        let text = "VACUUM t RETAIN 0 HOURS";
        self.note(text.to_string());
        self.sql(text).await?;
        if self.random.random_bool(0.5) {
            self.note("foreign clean-up".to_string());
            let dataset = Dataset::open(&self.uri).await?;
            let policy = CleanupPolicy {
                before_version: Some(dataset.version().version),
                ..CleanupPolicy::default()
            };
            dataset.cleanup_with_policy(policy).await?;
        }
        self.past.clear();
        Ok(())
    }

    /// After a restore everything is as it was: rows, values, and what is to be computed.
    async fn remember_or_restore(&mut self) -> Outcome<()> {
        let past = match self.random.random_bool(0.5) {
            true => self.past.iter().choose(&mut self.random),
            false => None,
        };
        let Some(past) = past else {
            let dataset = Dataset::open(&self.uri).await?;
            self.past.push(Past {
                version: dataset.version().version,
                rows: self.rows.clone(),
                area: self.area.clone(),
                tier: self.tier.clone(),
            });
            return Ok(());
        };
        let text = format!("RESTORE TABLE t TO VERSION AS OF {}", past.version);
        self.rows = past.rows.clone();
        self.area = past.area.clone();
        self.tier = past.tier.clone();
        self.note(text.clone());
        self.sql(&text).await?;
        Ok(())
    }

    /// WHERE computes every row that matches, and leaves the others as they are.
    async fn refresh_where(&mut self) -> Outcome<()> {
        let limit = self.random.random_range(0..=self.next_id.max(1));
        let text = format!("REFRESH COLUMN area ON t WHERE id < {limit}");
        self.note(text.clone());
        let computed = self.refresh(&text).await?;
        let matching = self.rows.range(..limit).count() as u64;
        if computed != [matching] {
            return Err(format!("{text}: computed {computed:?}, not {matching}").into());
        }
        self.area.must.retain(|id| *id >= limit);
        self.area.may.retain(|id| *id >= limit);
        Ok(())
    }

    async fn refresh_stale_only(&mut self) -> Outcome<()> {
        let limit = self.random.random_range(0..=self.next_id.max(1));
        let text = format!("REFRESH COLUMN tier ON t STALE ONLY WHERE id >= {limit}");
        self.note(text.clone());
        let computed = self.refresh(&text).await?;
        let must = self.tier.must.range(limit..).count() as u64;
        let may = self.tier.may.range(limit..).count() as u64;
        check_count(&text, computed[0], must, may)?;
        self.tier.must.retain(|id| *id < limit);
        self.tier.may.retain(|id| *id < limit);
        Ok(())
    }

    async fn refresh_all(&mut self, columns: &str) -> Outcome<()> {
        let text = format!("REFRESH COLUMN {columns} ON t");
        self.note(text.clone());
        let computed = self.refresh(&text).await?;
        for (index, column) in columns.split(", ").enumerate() {
            let stale = match column {
                "area" => &mut self.area,
                "tier" => &mut self.tier,
                _ => continue,
            };
            let (must, may) = (stale.must.len() as u64, stale.may.len() as u64);
            check_count(&text, computed[index], must, may)?;
            stale.must.clear();
            stale.may.clear();
        }
        self.check_fresh(columns).await
    }

    /// Runs a refresh and gives the rows computed, by column.
    async fn refresh(&self, text: &str) -> Outcome<Vec<u64>> {
        let mut computed = Vec::new();
        for batch in self.sql(text).await? {
            let column = batch
                .column_by_name("rows_computed")
                .ok_or("no rows_computed")?;
            computed.extend(column.as_primitive::<UInt64Type>().values());
        }
        Ok(computed)
    }

    /// After a refresh the columns equal their expressions.
    async fn check_fresh(&self, columns: &str) -> Outcome<()> {
        for column in columns.split(", ") {
            let expression = match column {
                "area" => "x * y",
                "total" => "CAST(area AS BIGINT) + coalesce(x, 0)",
                _ => continue,
            };
            let text = format!(
                "SELECT id, x, y, {column} FROM t WHERE {column} IS DISTINCT FROM {expression}"
            );
            let wrong = self.sql(&text).await?;
            let count: usize = wrong.iter().map(RecordBatch::num_rows).sum();
            if count > 0 {
                let rows = datafusion::arrow::util::pretty::pretty_format_batches(&wrong)?;
                return Err(format!("{column} is wrong in {count} rows:\n{rows}").into());
            }
        }
        Ok(())
    }

    /// The table holds the rows that it should.
    async fn check_values(&self) -> Outcome<()> {
        let batches = self
            .sql("SELECT id, x, y, note, sum FROM t ORDER BY id")
            .await?;
        let mut expected = self.rows.iter();
        for batch in batches {
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let xs = batch.column(1).as_primitive::<Int32Type>();
            let ys = batch.column(2).as_primitive::<Int32Type>();
            let notes = batch.column(3).as_string::<i32>();
            let sums = batch.column(4).as_primitive::<Int32Type>();
            for (((id, x), (y, sum)), note) in
                ids.iter().zip(xs).zip(ys.iter().zip(sums)).zip(notes)
            {
                let row = Row {
                    x,
                    y,
                    note: note.unwrap_or_default().to_string(),
                };
                let want = expected.next();
                if want.map(|(id, row)| (*id, row)) != id.map(|id| (id, &row)) {
                    return Err(format!("row {id:?} is {row:?}, not {want:?}").into());
                }
                if sum != x.zip(y).map(|(x, y)| x + y) {
                    return Err(format!("the virtual column of row {id:?} is {sum:?}").into());
                }
            }
        }
        match expected.next() {
            Some(missing) => Err(format!("row {missing:?} is missing").into()),
            None => Ok(()),
        }
    }
}

fn check_count(text: &str, computed: u64, must: u64, may: u64) -> Outcome<()> {
    if (must..=must + may).contains(&computed) {
        return Ok(());
    }
    Err(format!("{text}: computed {computed} rows, not {must} (or up to {may} more)").into())
}

fn sql_number(value: Option<i32>) -> String {
    value.map_or_else(|| "NULL".to_string(), |value| value.to_string())
}

fn join(ids: &[i64]) -> String {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}
