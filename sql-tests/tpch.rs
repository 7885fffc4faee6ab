//! The 22 queries of TPC-H as materialized views: after changes to all tables that they read, and a refresh, each
//! holds what its query gives. Which of them are maintained incrementally is in `docs/tpch.md`, which the trial
//! `tpch::page` compares with what is so; with `HEADWATER_COMPLETE=1` it writes the page.
//!
//! `HEADWATER_SEED` chooses other changes than those that are made by default, `HEADWATER_STEPS` up to three rounds of
//! them; a failure prints the seed.

mod queries;
mod rows;
#[path = "../examples/tpch/tables.rs"]
mod tables;
mod workload;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use headwater::session::Headwater;
use libtest_mimic::{Failed, Trial};
use queries::views;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rows::{Rows, is_same, only_in, rows};
use tables::{PARTS, TABLES, generated};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;
use tpchgen::distribution::Distributions;
use tpchgen::text::TextPool;
use workload::{MOST_ROUNDS, changes};

const DEFAULT_SEED: u64 = 20_261_121;
const DEFAULT_ROUNDS: u32 = 2;

/// 60,000 rows of lineitem.
const SCALE: f64 = 0.01;

/// The views are tried in so many trials, which run at the same time.
const TRIALS: usize = 4;

/// The page that says how each query is maintained.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tpch.md");

/// Text to cut comments from: tpchgen's own is 300 MB, which takes a debug build longer than all else.
static POOL: LazyLock<TextPool> =
    LazyLock::new(|| TextPool::new(1 << 20, Distributions::static_default()));

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// All trials.
pub(crate) fn trials() -> Vec<Trial> {
    let number = |name| -> Option<u64> { env::var(name).ok()?.parse().ok() };
    let seed = number("HEADWATER_SEED").unwrap_or(DEFAULT_SEED);
    let rounds = number("HEADWATER_STEPS").map_or(DEFAULT_ROUNDS, |rounds| rounds as u32);
    let rounds = rounds.clamp(1, MOST_ROUNDS);
    let base = Arc::new(Base::default());
    let mut trials: Vec<Trial> = (0..TRIALS)
        .map(|number| {
            let base = Arc::clone(&base);
            Trial::test(format!("tpch::views_{}", number + 1), move || {
                let done = Runtime::new()?.block_on(async {
                    let views: Vec<_> = views().into_iter().skip(number).step_by(TRIALS).collect();
                    Shop::new(&base, views).await?.run(seed, rounds).await
                });
                done.map_err(|error| Failed::from(format!("HEADWATER_SEED={seed}: {error}")))
            })
        })
        .collect();
    trials.push(Trial::test("tpch::page", move || {
        Runtime::new()?
            .block_on(page(&base))
            .map_err(|error| Failed::from(error.to_string()))
    }));
    trials
}

/// The tables, made once.
#[derive(Default)]
struct Base(OnceCell<TempDir>);

impl Base {
    /// The folder of a database with the tables; not to be changed.
    async fn folder(&self) -> Outcome<&Path> {
        let made = self.0.get_or_try_init(|| async {
            let folder = tempfile::tempdir()?;
            let headwater = Headwater::open(&folder.path().display().to_string()).await?;
            for name in TABLES {
                let table = generated(name, SCALE, 1..=PARTS, &POOL)?;
                headwater.context().register_table("generated", table)?;
                let statement = format!("CREATE TABLE {name} AS SELECT * FROM generated");
                sql(&headwater, &statement).await?;
                headwater.context().deregister_table("generated")?;
            }
            Outcome::Ok(folder)
        });
        Ok(made.await?.path())
    }
}

async fn sql(headwater: &Headwater, text: &str) -> Outcome<Vec<RecordBatch>> {
    let context = |error: &dyn std::fmt::Display| format!("{text}: {error}");
    let frame = headwater.sql(text).await;
    let rows = frame.map_err(|error| context(&error))?.collect().await;
    Ok(rows.map_err(|error| context(&error))?)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to)?,
            false => fs::copy(entry.path(), &to).map(|_| ())?,
        }
    }
    Ok(())
}

/// A database with the tables and some of the views.
struct Shop {
    _folder: TempDir,
    headwater: Headwater,
    views: Vec<View>,
}

struct View {
    name: &'static str,
    query: &'static str,
    /// Whether it is maintained incrementally.
    is_incremental: bool,
    /// What it holds.
    rows: Rows,
    has_changed: bool,
}

impl Shop {
    async fn new(base: &Base, views: Vec<(&'static str, &'static str)>) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        copy(base.folder().await?, folder.path())?;
        let headwater = Headwater::open(&folder.path().display().to_string()).await?;
        let mut made = Vec::with_capacity(views.len());
        for (name, query) in views {
            let statement = format!("CREATE MATERIALIZED VIEW {name} AS {query}");
            sql(&headwater, &statement).await?;
            let described = sql(&headwater, &format!("DESCRIBE MATERIALIZED VIEW {name}")).await?;
            made.push(View {
                name,
                query,
                is_incremental: item(&described, "maintenance") == "incremental",
                rows: BTreeMap::new(),
                has_changed: false,
            });
        }
        Ok(Self {
            _folder: folder,
            headwater,
            views: made,
        })
    }

    async fn run(&mut self, seed: u64, rounds: u32) -> Outcome<()> {
        let mut random = StdRng::seed_from_u64(seed);
        self.check(0).await?;
        for round in 1..=rounds {
            for change in changes(round, &mut random) {
                sql(&self.headwater, &change).await?;
            }
            self.check(round).await?;
        }
        // Else nothing was tried. Other changes may miss what a query selects.
        match self.views.iter().find(|view| !view.has_changed) {
            Some(view) if seed == DEFAULT_SEED => {
                Err(format!("{}: no change changed it", view.name).into())
            }
            _ => Ok(()),
        }
    }

    /// Refreshes each view and compares it with its query. In round 0 there is nothing to refresh.
    async fn check(&mut self, round: u32) -> Outcome<()> {
        for view in &mut self.views {
            let View { name, query, .. } = view;
            let refresh = format!("REFRESH MATERIALIZED VIEW {name}");
            let report = sql(&self.headwater, &refresh).await?;
            let mode = text(&report, "mode").unwrap_or_default();
            let expected = match (round, view.is_incremental) {
                (0, _) => "none",
                (_, true) => "incremental",
                (_, false) => "full",
            };
            if mode != expected {
                let reason = text(&report, "reason").unwrap_or_default();
                return Err(
                    format!("{name}: its refresh was {mode}, not {expected}: {reason}").into(),
                );
            }
            let held = rows(&sql(&self.headwater, &format!("SELECT * FROM {name}")).await?)?;
            let wanted = rows(&sql(&self.headwater, query).await?)?;
            if !is_same(&held, &wanted) {
                return Err(format!(
                    "{name}, round {round}: it holds\n{}\ninstead of\n{}",
                    only_in(&held, &wanted),
                    only_in(&wanted, &held)
                )
                .into());
            }
            view.has_changed |= round > 0 && !is_same(&held, &view.rows);
            view.rows = held;
        }
        Ok(())
    }
}

/// The first value of a column of text.
fn text<'a>(batches: &'a [RecordBatch], column: &str) -> Option<&'a str> {
    let column = batches
        .first()?
        .column_by_name(column)?
        .as_string_opt::<i32>()?;
    (!column.is_empty()).then(|| column.value(0))
}

/// The value of an item of a description.
fn item(described: &[RecordBatch], item: &str) -> String {
    let found = described.iter().find_map(|batch| {
        let items = batch.column_by_name("item")?.as_string_opt::<i32>()?;
        let values = batch.column_by_name("value")?.as_string_opt::<i32>()?;
        let row = items.iter().position(|other| other == Some(item))?;
        Some(values.value(row).to_string())
    });
    found.unwrap_or_default()
}

/// Compares the page with how the queries are maintained, or writes it.
async fn page(base: &Base) -> Outcome<()> {
    let headwater = Headwater::open(&base.folder().await?.display().to_string()).await?;
    let mut lines = vec![
        "# The queries of TPC-H as materialized views".to_string(),
        String::new(),
        "How the [22 queries](../examples/tpch/views.sql) are maintained: the classes of their \
         operators, from the top down;"
            .to_string(),
        "whether a refresh computes what changed or all of it; and if all, the reason code. The test \
         `tpch` writes this page,"
            .to_string(),
        "and compares each view with its query after changes to all tables that it reads.".to_string(),
        String::new(),
        "| query | classes | mode | reason |".to_string(),
        "|---|---|---|---|".to_string(),
    ];
    for (name, query) in views() {
        let statement = format!("EXPLAIN CREATE MATERIALIZED VIEW {name} AS {query}");
        let explained = sql(&headwater, &statement).await?;
        let [classes, mode, reason] =
            ["classes", "mode", "reason"].map(|name| item(&explained, name));
        lines.push(format!("| {name} | {classes} | {mode} | {reason} |").replace("|  |", "| |"));
    }
    let page = lines.join("\n") + "\n";
    if env::var_os("HEADWATER_COMPLETE").is_some_and(|value| value == "1") {
        return Ok(fs::write(PAGE, page)?);
    }
    match fs::read_to_string(PAGE)? == page {
        true => Ok(()),
        false => Err("docs/tpch.md is out of date: HEADWATER_COMPLETE=1 writes it".into()),
    }
}
