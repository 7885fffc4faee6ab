//! Random changes: after each, a delta from a random earlier version is held against
//! the values at both.
//!
//! A failure prints its seed; `HEADWATER_SEED` and `HEADWATER_STEPS` run others.

use lance::dataset::NewColumnTransform;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;

struct Walk {
    table: Table,
    rng: StdRng,
    /// Keys and values that were not there before.
    fresh: i64,
}

impl Walk {
    fn fresh(&mut self) -> i64 {
        self.fresh += 1;
        self.fresh
    }

    /// The keys of the rows that live now.
    async fn keys(&self) -> Vec<i64> {
        let mut scan = self.table.ds.scan();
        scan.project(&["id"]).unwrap();
        let rows = scan.try_into_batch().await.unwrap();
        rows["id"].as_primitive::<Int64Type>().values().to_vec()
    }

    async fn some_keys(&mut self) -> Vec<i64> {
        let keys = self.keys().await;
        let wanted = self.rng.random_range(1..6);
        keys.choose_multiple(&mut self.rng, wanted)
            .copied()
            .collect()
    }

    async fn filter(&mut self) -> String {
        let keys = self.some_keys().await;
        let keys: Vec<String> = keys.iter().map(i64::to_string).collect();
        match keys.is_empty() {
            true => "id < 0".to_string(),
            false => format!("id IN ({})", keys.join(", ")),
        }
    }

    /// Rows as they are, but for new values of `v`, merged back with a property.
    async fn update_of_ours(&mut self) {
        let filter = self.filter().await;
        let mut scan = self.table.ds.scan();
        scan.filter(&filter).unwrap();
        let rows = scan.try_into_batch().await.unwrap();
        if rows.num_rows() == 0 {
            return;
        }
        let values = Int64Array::from_iter_values((0..rows.num_rows()).map(|_| self.fresh()));
        let position = rows.schema().index_of("v").unwrap();
        let mut columns = rows.columns().to_vec();
        columns[position] = Arc::new(values);
        let rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
        let said = self.table.field("v").id.to_string();
        self.table.merge_saying(rows, &said).await;
    }

    async fn replace(&mut self) {
        let fragments: Vec<u64> = self.table.ds.iter_fragments().map(|f| f.id).collect();
        let Some(fragment) = fragments.choose(&mut self.rng).copied() else {
            return;
        };
        let keys = self.some_keys().await;
        let filter = format!(
            "_rowaddr >= {} AND _rowaddr < {} AND ({})",
            fragment << 32,
            (fragment + 1) << 32,
            keys.iter()
                .map(|key| format!("id = {key}"))
                .collect::<Vec<_>>()
                .join(" OR ")
        );
        let said = match self.rng.random_bool(0.5) {
            true => Some(self.table.ids(&filter).await.encode()),
            false => None,
        };
        let value = self.fresh();
        let replaced = |id: i64, old: Option<i64>| match keys.contains(&id) {
            true if value % 5 == 0 => None,
            true => Some(value),
            false => old,
        };
        self.table.replace("v", &[fragment], replaced, said).await;
    }

    async fn toggle_column(&mut self) {
        if self.table.ds.schema().field("extra").is_some() {
            self.table.ds.drop_columns(&["extra"]).await.unwrap();
        } else {
            let expressions = vec![("extra".to_string(), "v + 1".to_string())];
            let transform = NewColumnTransform::SqlExpressions(expressions);
            self.table
                .ds
                .add_columns(transform, None, None)
                .await
                .unwrap();
        }
    }

    /// Makes one change; gives its name.
    async fn step(&mut self) -> &'static str {
        let plain = self.table.ds.schema().field("extra").is_none();
        match self.rng.random_range(0..100) {
            0..15 if plain => {
                let first = self.fresh() * 1000;
                let rows = self.rng.random_range(1..12);
                self.table.append(first..first + rows).await;
                "append"
            }
            15..30 => {
                let (filter, value) = (self.filter().await, self.fresh());
                self.table.update(&filter, "v", &value.to_string()).await;
                "update of v"
            }
            30..38 => {
                let (filter, value) = (self.filter().await, self.fresh());
                self.table
                    .update(&filter, "text", &format!("'{value}'"))
                    .await;
                "update of text"
            }
            38..46 => {
                self.update_of_ours().await;
                "update of ours"
            }
            46..54 if plain => {
                let mut rows: Vec<(i64, i64)> = Vec::new();
                for key in self.some_keys().await {
                    rows.push((key, self.fresh()));
                }
                let key = self.fresh() * 1000;
                rows.push((key, 1));
                self.table.merge_rows(&rows).await;
                "merge of rows"
            }
            54..62 => {
                let mut rows: Vec<(i64, i64)> = Vec::new();
                for key in self.some_keys().await {
                    rows.push((key, self.fresh()));
                }
                if !rows.is_empty() {
                    self.table.merge_column(&rows).await;
                }
                "merge of a column"
            }
            62..70 => {
                let filter = self.filter().await;
                self.table.delete(&filter).await;
                "delete"
            }
            70..78 => {
                let rows = *[10, 40, 1000].choose(&mut self.rng).unwrap();
                self.table.compact(rows).await;
                "compaction"
            }
            78..88 => {
                self.replace().await;
                "replacement"
            }
            88..92 => {
                self.toggle_column().await;
                "another column"
            }
            92..94 => {
                self.table
                    .ds
                    .create_index(
                        &["id"],
                        IndexType::BTree,
                        None,
                        &ScalarIndexParams::default(),
                        true,
                    )
                    .await
                    .unwrap();
                "index"
            }
            94..98 => {
                let newest = self.table.version();
                let version = self
                    .rng
                    .random_range(newest.saturating_sub(12).max(1)..=newest);
                self.table.restore(version).await;
                "restore"
            }
            _ => {
                let filter = self.filter().await;
                self.table.update(&filter, "v", "v").await;
                "update to the same"
            }
        }
    }

    async fn check(&mut self) {
        let newest = self.table.version();
        let from = self
            .rng
            .random_range(newest.saturating_sub(25).max(1)..=newest);
        let fields = *[
            &["v"][..],
            &["text"],
            &["v", "text"],
            &["point"],
            &["id", "v"],
        ]
        .choose(&mut self.rng)
        .unwrap();
        println!("  delta of {fields:?} from {from} to {newest}");
        let checked = self.table.checked(from, fields).await;
        if fields == ["point"] {
            // Whole rows are merged with the same point: never certain, never true.
            assert!(checked.truth.is_empty());
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn walk(seed: u64) {
    let seed = setting("HEADWATER_SEED").unwrap_or(seed);
    let mut walk = Walk {
        table: Table::new(60, 20).await,
        rng: StdRng::seed_from_u64(seed),
        fresh: 1_000,
    };
    println!("seed {seed}");
    for _ in 0..setting("HEADWATER_STEPS").unwrap_or(150) {
        let step = walk.step().await;
        println!("version {}: {step}", walk.table.version());
        walk.check().await;
    }
    let newest = walk.table.version();
    for from in (1..newest).step_by(17) {
        walk.table.checked(from, &["v"]).await;
    }
}

#[tokio::test]
async fn after_random_changes_the_delta_is_right() {
    walk(1).await;
}

#[tokio::test]
async fn after_other_random_changes_the_delta_is_right() {
    walk(2).await;
}
