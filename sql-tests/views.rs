//! Materialized views under random changes: after each refresh a view holds the rows that its query gives, and
//! it was maintained incrementally wherever that is promised.
//!
//! `HEADWATER_SEED` and `HEADWATER_STEPS` choose another walk than the ones that run by default; a failure prints both.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use headwater::session::Headwater;
use lance::Dataset;
use lance::dataset::UpdateBuilder;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use libtest_mimic::{Failed, Trial};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::Engine;
use regex::Regex;

const DEFAULT_SEEDS: [u64; 1] = [20_261_121];
const DEFAULT_STEPS: usize = 40;
const STEPS_ON_CLUSTER: usize = 10;

/// The class of queries that are computed in full.
const FULL: &str = "full";

/// Queries by class, some with another one behind CHECK that gives the same. All are deterministic: what ties is ordered by an id as well.
const CLASSES: &[(&str, &[&str])] = &[
    (
        "row",
        &[
            "SELECT id, x, s FROM a WHERE x > 0",
            "SELECT x + coalesce(k, 0) AS z, upper(s) AS s FROM a",
            "SELECT b.* FROM (SELECT id, y, k FROM b WHERE y IS NOT NULL) b WHERE k IN (1, 2, 3)",
            "SELECT * FROM va WHERE p > 2",
        ],
    ),
    (
        "union",
        &[
            "SELECT k, x AS v FROM a UNION ALL SELECT k, y FROM b",
            "SELECT k, x AS v FROM a WHERE x > 5 UNION ALL SELECT k, x FROM a WHERE k = 1 UNION ALL SELECT 7, 8",
            "SELECT k FROM a UNION SELECT k FROM b",
        ],
    ),
    (
        "unnest",
        &[
            "SELECT id, unnest(string_to_array(s, ' ')) AS word FROM a",
            "SELECT id, unnest(l) AS e, x FROM a WHERE x > 0",
        ],
    ),
    (
        "group",
        &[
            "SELECT k, count(*) AS n, sum(x) AS s, avg(x) AS m FROM a GROUP BY k",
            "SELECT k, min(x) AS lo, max(s) AS hi, count(DISTINCT s) AS n FROM a WHERE x > -50 GROUP BY k",
            "SELECT count(*) AS n, sum(d) AS s, max(x) AS hi FROM a",
            // DataFusion makes one group or two of 0.0 and -0.0, as its plan has it; a view makes one.
            "SELECT f, count(*) AS n FROM a GROUP BY f \
             CHECK SELECT CAST(t AS DOUBLE) AS f, count(*) AS n FROM \
             (SELECT replace(CAST(f AS VARCHAR), '-0.0', '0.0') AS t FROM a) z GROUP BY t",
            "SELECT k % 2 AS odd, s, sum(d) AS d FROM a GROUP BY k % 2, s HAVING count(*) > 1",
            "SELECT DISTINCT k, s FROM a",
            "SELECT k, s, grouping(k) AS g, sum(x) AS x FROM a GROUP BY ROLLUP (k, s)",
            "SELECT k, s, count(*) AS n FROM a GROUP BY CUBE (k, s)",
            "SELECT k, array_agg(x ORDER BY id) AS xs, string_agg(s, ',' ORDER BY id) AS ss FROM a GROUP BY k",
        ],
    ),
    (
        "join",
        &[
            "SELECT a.id, b.id AS bid, a.x, b.y FROM a JOIN b ON a.k = b.k WHERE a.x > b.y",
            "SELECT l.id, r.id AS rid FROM a l JOIN a r ON l.k = r.k AND l.id < r.id",
            "SELECT a.id, b.y, c.s FROM a JOIN b ON a.k = b.k JOIN a c ON c.id = b.id",
            "SELECT a.id, b.id AS bid FROM a CROSS JOIN b WHERE a.x + b.y > 120",
        ],
    ),
    (
        "matching",
        &[
            "SELECT a.id, b.id AS bid, b.y FROM a LEFT JOIN b ON a.k = b.k AND b.y > 0",
            "SELECT a.id, b.id AS bid FROM a FULL JOIN b ON a.id = b.id",
            "SELECT a.id, b.id AS bid FROM a RIGHT JOIN b ON a.k = b.k",
            "SELECT id FROM a WHERE EXISTS (SELECT 1 FROM b WHERE b.k = a.k AND b.y > a.x)",
            "SELECT id FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.k = a.k)",
            "SELECT id FROM a WHERE k IN (SELECT k FROM b WHERE y > 0)",
            "SELECT id FROM a WHERE k NOT IN (SELECT k FROM b WHERE y > 60)",
            "SELECT id, (SELECT max(y) FROM b WHERE b.k = a.k) AS hi FROM a",
            "SELECT id FROM a WHERE x > (SELECT avg(y) FROM b)",
        ],
    ),
    (
        "window",
        &[
            "SELECT id, row_number() OVER (PARTITION BY k ORDER BY x, id) AS n FROM a",
            "SELECT id, sum(x) OVER (PARTITION BY k) AS s, rank() OVER (PARTITION BY k, s ORDER BY x) AS r FROM a",
            "SELECT id, lag(x) OVER (PARTITION BY k ORDER BY id) AS p FROM a WHERE x > 0",
        ],
    ),
    (
        "top",
        &[
            "SELECT id, x FROM a ORDER BY x DESC, id LIMIT 5",
            "SELECT id FROM a ORDER BY s, id LIMIT 4 OFFSET 2",
            "SELECT k, sum(x) AS s FROM a GROUP BY k ORDER BY s DESC NULLS LAST, k LIMIT 3",
        ],
    ),
    (
        FULL,
        &[
            "SELECT id, row_number() OVER (ORDER BY id) AS n FROM a",
            "SELECT id, sum(x) OVER () AS s FROM a WHERE x > 0",
            "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 4) SELECT r.n, a.id FROM r JOIN a ON a.k = r.n",
        ],
    ),
    (
        "composed",
        &[
            "SELECT b.t, sum(a.x) AS s, count(*) AS n FROM a JOIN b ON a.k = b.k GROUP BY b.t",
            "SELECT b.id, g.s FROM b JOIN (SELECT k, sum(x) AS s FROM a GROUP BY k) g ON b.k = g.k",
            "SELECT k, n, rank() OVER (PARTITION BY n % 3 ORDER BY k) AS r FROM (SELECT k, count(*) AS n FROM a GROUP BY k) g",
            "SELECT n, count(*) AS m FROM (SELECT k, count(*) AS n FROM a GROUP BY k) g GROUP BY n",
            "SELECT a.k, b.y FROM a JOIN b ON a.k = b.k UNION ALL SELECT k, x FROM a WHERE x < 0",
            "WITH g AS (SELECT k, max(x) AS hi FROM a GROUP BY k) SELECT a.id, g.hi FROM a LEFT JOIN g ON a.k = g.k WHERE a.x = g.hi",
            "SELECT id, x FROM a WHERE x = (SELECT max(x) FROM a i WHERE i.k = a.k)",
        ],
    ),
];

/// The random walks, one for each class; and shorter ones on a cluster.
pub(crate) fn trials() -> Vec<Trial> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let given = number("HEADWATER_STEPS").map(|steps: u64| steps as usize);
    let seeds = number("HEADWATER_SEED").map_or(DEFAULT_SEEDS.to_vec(), |seed| vec![seed]);
    let mut trials = Vec::new();
    for (class, queries) in CLASSES {
        for seed in seeds.iter().copied() {
            for (engine, name, steps) in [
                (Engine::Local, "", DEFAULT_STEPS),
                (Engine::Cluster, "_on_cluster", STEPS_ON_CLUSTER),
            ] {
                let steps = given.unwrap_or(steps);
                let walk = move || {
                    let runtime = tokio::runtime::Runtime::new()?;
                    let walk = async {
                        let mut walk = Walk::new(engine, seed, class, queries).await?;
                        walk.run(steps).await
                    };
                    runtime.block_on(walk).map_err(|error| {
                        Failed::from(format!(
                            "HEADWATER_SEED={seed} HEADWATER_STEPS={steps}: {error}"
                        ))
                    })
                };
                trials.push(Trial::test(
                    format!("views::{class}{name}_seed_{seed}"),
                    walk,
                ));
            }
        }
    }
    trials
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Walk {
    _folder: tempfile::TempDir,
    url: String,
    headwater: Headwater,
    random: StdRng,
    class: &'static str,
    queries: &'static [&'static str],
    next_id: i64,
    log: Vec<String>,
}

impl Walk {
    async fn new(
        engine: Engine,
        seed: u64,
        class: &'static str,
        queries: &'static [&'static str],
    ) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let url = folder.path().join("db").display().to_string();
        let headwater = engine.open(&url).await?;
        let mut walk = Self {
            url,
            _folder: folder,
            headwater,
            random: StdRng::seed_from_u64(seed),
            class,
            queries,
            next_id: 0,
            log: Vec::new(),
        };
        walk.sql(
            "CREATE TABLE a (id BIGINT, k INT, x INT, s VARCHAR, f DOUBLE, d DECIMAL(12, 2), l INT[],
                c INT GENERATED ALWAYS AS (x + 1))",
        )
        .await?;
        walk.sql("CREATE TABLE b (id BIGINT, k INT, y INT, t VARCHAR)")
            .await?;
        walk.sql("CREATE VIEW va AS SELECT id, k + 1 AS p FROM a")
            .await?;
        // Some begin on empty tables.
        for place in 0..queries.len() {
            if walk.random.random_bool(0.5) {
                walk.create(place).await?;
            }
        }
        for _ in 0..4 {
            walk.insert_a().await?;
            walk.insert_b().await?;
        }
        for place in 0..queries.len() {
            walk.create(place).await?;
        }
        Ok(walk)
    }

    async fn create(&self, place: usize) -> Outcome<()> {
        let (query, _) = parts(self.queries[place]);
        self.sql(&format!(
            "CREATE MATERIALIZED VIEW IF NOT EXISTS v{place} AS {query}"
        ))
        .await?;
        Ok(())
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
        self.check().await
    }

    async fn step(&mut self) -> Outcome<()> {
        match self.random.random_range(0..20) {
            0..=2 => self.insert_a().await,
            3 | 4 => self.insert_b().await,
            5 => self.change("UPDATE a SET x = x + 9 WHERE {}", "a").await,
            6 => {
                self.change("UPDATE a SET k = k % 4, s = 'moved' WHERE {}", "a")
                    .await
            }
            7 => {
                self.change("UPDATE a SET f = -f, d = d + 1.25 WHERE {}", "a")
                    .await
            }
            8 => self.change("UPDATE b SET y = y - 5 WHERE {}", "b").await,
            9 => {
                self.change("UPDATE b SET t = 'q', k = NULL WHERE {}", "b")
                    .await
            }
            10 => self.change("DELETE FROM a WHERE {}", "a").await,
            11 => self.change("DELETE FROM b WHERE {}", "b").await,
            12 => self.again().await,
            13 => self.compact().await,
            14 => self.foreign_update().await,
            15 => self.rare().await,
            _ => self.check().await,
        }
    }

    fn pick(&mut self, words: &[&'static str]) -> &'static str {
        words.choose(&mut self.random).copied().unwrap_or("NULL")
    }

    fn number(&mut self, least: i32, most: i32) -> String {
        match self.random.random_bool(0.12) {
            true => "NULL".to_string(),
            false => self.random.random_range(least..most).to_string(),
        }
    }

    async fn insert_a(&mut self) -> Outcome<()> {
        let count = self.random.random_range(1..14);
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            self.next_id += 1;
            let (id, k, x) = (self.next_id, self.number(0, 7), self.number(-99, 100));
            let s = self.pick(&["'red fox'", "'red'", "''", "'a b c'", "NULL", "'é\"'"]);
            let f = self.pick(&["0.0", "-0.0", "0.25", "'NaN'", "NULL", "1.5"]);
            let d = self.pick(&["1.25", "-3.50", "0", "NULL", "99.99"]);
            let l = self.pick(&["[1, 2]", "[]", "[NULL, 3]", "NULL", "[5]"]);
            rows.push(format!(
                "({id}, {k}, {x}, {s}, CAST({f} AS DOUBLE), {d}, {l})"
            ));
        }
        self.change_by(format!("INSERT INTO a VALUES {}", rows.join(", ")))
            .await
    }

    async fn insert_b(&mut self) -> Outcome<()> {
        let count = self.random.random_range(1..7);
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            self.next_id += 1;
            let id = self.random.random_range(1..=self.next_id);
            let (k, y) = (self.number(0, 7), self.number(-99, 100));
            let t = self.pick(&["'p'", "'q'", "NULL"]);
            rows.push(format!("({id}, {k}, {y}, {t})"));
        }
        self.change_by(format!("INSERT INTO b VALUES {}", rows.join(", ")))
            .await
    }

    async fn change_by(&mut self, text: String) -> Outcome<()> {
        self.log.push(text.clone());
        self.sql(&text).await?;
        Ok(())
    }

    /// Runs a statement with some rows in the place of `{}`.
    async fn change(&mut self, text: &str, table: &str) -> Outcome<()> {
        let (divisor, rest) = (
            self.random.random_range(2..30),
            self.random.random_range(0..2),
        );
        let condition = match (table, self.random.random_bool(0.3)) {
            ("a", true) => format!("k = {}", self.random.random_range(0..7)),
            _ => format!("id % {divisor} = {rest}"),
        };
        self.change_by(text.replace("{}", &condition)).await
    }

    /// Deletes rows and inserts some with the same values.
    async fn again(&mut self) -> Outcome<()> {
        self.change_by("CREATE OR REPLACE TABLE gone AS SELECT * FROM b WHERE id % 3 = 1".into())
            .await?;
        self.change_by("DELETE FROM b WHERE id % 3 = 1".into())
            .await?;
        self.change_by("INSERT INTO b SELECT * FROM gone".into())
            .await
    }

    async fn compact(&mut self) -> Outcome<()> {
        let table = self.pick(&["a", "b"]);
        self.log.push(format!("compaction of {table}"));
        let mut dataset = Dataset::open(&format!("{}/{table}.lance", self.url)).await?;
        compact_files(&mut dataset, CompactionOptions::default(), None).await?;
        Ok(())
    }

    async fn foreign_update(&mut self) -> Outcome<()> {
        self.log.push("foreign update of x and of t".into());
        for (table, column, value) in [("a", "x", "x - 3"), ("b", "t", "'p'")] {
            let dataset = Dataset::open(&format!("{}/{table}.lance", self.url)).await?;
            UpdateBuilder::new(Arc::new(dataset))
                .update_where("id % 7 = 2")?
                .set(column, value)?
                .build()?
                .execute()
                .await?;
        }
        Ok(())
    }

    /// What happens now and then.
    async fn rare(&mut self) -> Outcome<()> {
        match self.random.random_range(0..7) {
            0 => self.change_by("DELETE FROM a".into()).await,
            1 => self.change_by("DELETE FROM b".into()).await,
            2 => self.change_by("REFRESH COLUMN c ON a".into()).await,
            3 => {
                let newest = self.sql("SHOW VERSIONS FROM a").await?;
                let newest: usize = newest.iter().map(RecordBatch::num_rows).sum();
                let version = newest.saturating_sub(2).max(2);
                self.change_by(format!("RESTORE TABLE a TO VERSION AS OF {version}"))
                    .await
            }
            4 => {
                let place = self.random.random_range(0..self.queries.len());
                self.change_by(format!("REFRESH MATERIALIZED VIEW v{place} FULL"))
                    .await
            }
            5 => self.as_of().await,
            _ => {
                let place = self.random.random_range(0..self.queries.len());
                self.change_by(format!(
                    "REFRESH MATERIALIZED VIEW CONCURRENTLY v{place} FULL"
                ))
                .await
            }
        }
    }

    /// Brings one view to what a table was some versions ago, if it reads that table.
    async fn as_of(&mut self) -> Outcome<()> {
        let place = self.random.random_range(0..self.queries.len());
        let table = self.pick(&["a", "b"]);
        let newest = self.sql(&format!("SHOW VERSIONS FROM {table}")).await?;
        let newest: usize = newest.iter().map(RecordBatch::num_rows).sum();
        let back = self.random.random_range(0..6);
        let version = newest.saturating_sub(back).max(1);
        let query = parts(self.queries[place]).1;
        let then = Regex::new(&format!(r"\b(FROM|JOIN) {table}\b"))?;
        let then = then.replace_all(query, format!("$1 {table} VERSION AS OF {version}"));
        if then == query || query.contains("FROM va") {
            return Ok(());
        }
        let refresh =
            format!("REFRESH MATERIALIZED VIEW v{place} AS OF ({table} VERSION {version})");
        self.log.push(refresh.clone());
        self.compare(place, &refresh, &then).await
    }

    /// Refreshes every view and compares it with its query.
    async fn check(&mut self) -> Outcome<()> {
        for (place, query) in self.queries.iter().enumerate() {
            let refresh = format!("REFRESH MATERIALIZED VIEW v{place}");
            self.compare(place, &refresh, parts(query).1).await?;
        }
        self.log.push("refresh".into());
        Ok(())
    }

    /// Refreshes a view and compares it with `query`.
    async fn compare(&self, place: usize, refresh: &str, query: &str) -> Outcome<()> {
        let report = rendered(&self.sql(refresh).await?)?;
        if self.class != FULL && report.iter().any(|row| row.contains("full")) {
            return Err(format!("v{place}, {query}: was refreshed in full: {report:?}").into());
        }
        let held = rendered(&self.sql(&format!("SELECT * FROM v{place}")).await?)?;
        let wanted = rendered(&self.sql(query).await?)?;
        if held == wanted {
            return Ok(());
        }
        let more: Vec<_> = held.iter().filter(|row| !wanted.contains(row)).collect();
        let less: Vec<_> = wanted.iter().filter(|row| !held.contains(row)).collect();
        Err(format!(
            "v{place}, {query}: {} rows instead of {}; wrong: {more:?}; missing: {less:?}; last: {report:?}",
            held.len(),
            wanted.len(),
        )
        .into())
    }
}

/// The query of a view, and the one that it is compared with.
fn parts(query: &str) -> (&str, &str) {
    query.split_once(" CHECK ").unwrap_or((query, query))
}

/// All rows as text, sorted: a multiset.
fn rendered(batches: &[RecordBatch]) -> Outcome<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let values: Vec<String> = columns
                .iter()
                .map(|column| match column.value(row).to_string().as_str() {
                    // They are one group.
                    "-0.0" => "0.0".to_string(),
                    value => value.to_string(),
                })
                .collect();
            rows.push(values.join(" | "));
        }
    }
    rows.sort();
    Ok(rows)
}
