//! Release pylance reads and changes our tables between our refreshes.

use std::path::{Path, PathBuf};
use std::process::Command;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Int64Type, UInt64Type};
use headwater::session::Headwater;
use libtest_mimic::{Failed, Trial};

use crate::harness::python::{python, run};

pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test("pylance::reads_and_changes_our_tables", || {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime
            .block_on(async {
                reads_and_changes_our_tables().await?;
                cleans_up_beside_our_pins_and_sees_our_tags().await?;
                reads_and_changes_our_views().await
            })
            .map_err(|error| Failed::from(error.to_string()))
    })]
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Scene {
    python: PathBuf,
    table: String,
    headwater: Headwater,
}

impl Scene {
    /// A table of 100 rows whose computed column was refreshed.
    async fn new(folder: &Path) -> Outcome<Self> {
        let url = folder.join("db").display().to_string();
        let scene = Self {
            python: python()?,
            table: format!("{url}/boxes.lance"),
            headwater: Headwater::open(&url).await?,
        };
        scene
            .sql(
                "CREATE TABLE boxes (id BIGINT, x INT, y INT, note VARCHAR,
                    area INT GENERATED ALWAYS AS (x * y))",
            )
            .await?;
        scene
            .sql(
                "INSERT INTO boxes SELECT value AS id, CAST(value AS INT) AS x, 2 AS y,
                    'ours' AS note FROM generate_series(1, 100)",
            )
            .await?;
        scene.refresh("the first rows", 100).await?;
        Ok(scene)
    }

    /// Runs a script in which `ds` is the table.
    fn pylance(&self, script: &str) -> Outcome<String> {
        let script = format!(
            "import lance, pyarrow as pa\nds = lance.dataset({:?})\n{script}",
            self.table
        );
        run(Command::new(&self.python).arg("-c").arg(script))
    }

    async fn sql(&self, text: &str) -> Outcome<()> {
        let frame = self.headwater.sql(text).await?;
        frame.collect().await?;
        Ok(())
    }

    /// Refreshes `area` and checks how many rows were computed, and that all are right.
    async fn refresh(&self, after: &str, expected: u64) -> Outcome<()> {
        let frame = self.headwater.sql("REFRESH COLUMN area ON boxes").await?;
        let batches = frame.collect().await?;
        let computed = batches[0]
            .column_by_name("rows_computed")
            .ok_or("no rows_computed")?
            .as_primitive::<UInt64Type>()
            .value(0);
        if computed != expected {
            return Err(format!("after {after}: computed {computed} rows, not {expected}").into());
        }
        let wrong = "SELECT count(*) FROM boxes WHERE area IS DISTINCT FROM x * y";
        let batches = self.headwater.sql(wrong).await?.collect().await?;
        match batches[0].column(0).as_primitive::<Int64Type>().value(0) {
            0 => Ok(()),
            wrong => Err(format!("after {after}: {wrong} rows are wrong").into()),
        }
    }
}

async fn reads_and_changes_our_tables() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::new(folder.path()).await?;

    let read = scene.pylance("print(sum(ds.to_table()['area'].to_pylist()))")?;
    if read.trim() != "10100" {
        return Err(format!("pylance read {read}, not 10100").into());
    }

    scene.pylance("ds.update({'x': 'x + 1'}, where='id <= 5')")?;
    scene.refresh("an update of an input", 5).await?;

    scene.pylance("ds.update({'note': \"'theirs'\"}, where='id > 90')")?;
    scene.refresh("an update of another column", 0).await?;

    scene.pylance(
        "new = pa.table({'id': pa.array([101, 102], pa.int64()), 'x': pa.array([3, 4], pa.int32()), \
         'y': pa.array([5, None], pa.int32()), 'note': ['a', 'b']})\n\
         lance.write_dataset(new, ds.uri, mode='append')",
    )?;
    scene
        .refresh("an append without the computed column", 2)
        .await?;

    scene.pylance(
        "t = ds.to_table(filter='id in (10, 11)')\n\
         t = t.set_column(t.schema.get_field_index('y'), t.schema.field('y'), pa.array([7, 8], pa.int32()))\n\
         ds.merge_insert('id').when_matched_update_all().when_not_matched_insert_all().execute(t)",
    )?;
    scene.refresh("a merge_insert of whole rows", 2).await?;

    scene.pylance(
        "t = pa.table({'id': pa.array([20, 21, 22], pa.int64()), 'y': pa.array([9, 9, 9], pa.int32())})\n\
         ds.merge_insert('id').when_matched_update_all().execute(t)",
    )?;
    scene.refresh("a merge_insert of one column", 3).await?;

    scene.pylance("ds.delete('id > 100')")?;
    scene.refresh("a delete", 0).await?;

    scene.pylance("ds.optimize.compact_files()")?;
    scene.refresh("a compaction", 0).await?;

    scene.sql("UPDATE boxes SET y = 3 WHERE id = 1").await?;
    scene.pylance("ds.optimize.compact_files()")?;
    scene
        .refresh("an update of ours and a compaction of theirs", 1)
        .await?;

    scene.pylance("ds.add_columns({'more': 'x + 1'})")?;
    scene.refresh("another column of theirs", 0).await?;

    scene.pylance("ds.validate()")?;
    let rows = scene.pylance("print(ds.count_rows('area = x * y'))")?;
    match rows.trim() {
        "100" => Ok(()),
        other => Err(format!("pylance finds {other} right rows, not 100").into()),
    }
}

async fn cleans_up_beside_our_pins_and_sees_our_tags() -> Outcome<()> {
    const CLEAN_UP: &str = "import datetime\nds.cleanup_old_versions(datetime.timedelta(0))";

    let folder = tempfile::tempdir()?;
    let scene = Scene::new(folder.path()).await?;

    // It pins what the next refresh needs.
    scene.sql("VACUUM boxes RETAIN 0 HOURS").await?;
    scene.pylance("ds.update({'x': 'x + 1'}, where='id <= 5')")?;
    scene.pylance("ds.delete('id = 100')")?;
    scene.pylance("ds.optimize.compact_files()")?;
    scene.pylance(CLEAN_UP)?;
    let versions = scene.pylance("print(len(ds.versions()))")?;
    if versions.trim() != "2" {
        return Err(format!("pylance left {versions} versions, not 2").into());
    }
    scene.refresh("a clean-up", 5).await?;

    // A pin keeps its version from those only who name the table as it is named here.
    scene.sql("VACUUM boxes RETAIN 0 HOURS").await?;
    scene.pylance("ds.update({'x': 'x + 1'}, where='id <= 5')")?;
    scene.pylance(&format!(
        "import os\nos.chdir(os.path.dirname(ds.uri))\nds = lance.dataset('boxes.lance')\n{CLEAN_UP}"
    ))?;
    scene.refresh("a clean-up by a relative path", 99).await?;

    scene.sql("CREATE TAG 'v1' ON boxes").await?;
    scene.pylance("ds.update({'x': 'x + 1'})")?;
    let read = scene.pylance(
        "print(sorted(ds.tags.list()), ds.checkout_version('v1').count_rows('area = x * y'))",
    )?;
    if read.trim() != "['v1'] 99" {
        return Err(format!("pylance read {read} of our tag").into());
    }
    scene.pylance("ds.tags.create('theirs', ds.version)")?;
    scene
        .sql("RESTORE TABLE boxes TO VERSION AS OF 'v1'")
        .await?;
    scene.refresh("a restore of ours", 0).await?;
    scene
        .sql("RESTORE TABLE boxes TO VERSION AS OF 'theirs'")
        .await?;
    scene.refresh("a restore to their tag", 99).await?;
    scene.pylance("ds.validate()")?;
    Ok(())
}

async fn reads_and_changes_our_views() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::new(folder.path()).await?;
    let query = "SELECT id, x * y AS size FROM boxes WHERE id > 10";
    scene
        .sql(&format!("CREATE MATERIALIZED VIEW sizes AS {query}"))
        .await?;
    let view = |script: &str| {
        scene.pylance(&format!(
            "import datetime, json\nview = lance.dataset(ds.uri.replace('boxes', 'sizes'))\n{script}"
        ))
    };
    let refreshed = async |after: &str, expected: &str| -> Outcome<()> {
        let frame = scene
            .headwater
            .sql("REFRESH MATERIALIZED VIEW sizes")
            .await?;
        let done = frame.collect().await?;
        let texts = ["mode", "reason"].map(|name| {
            let column = done[0].column_by_name(name);
            column.map_or("", |column| column.as_string::<i32>().value(0))
        });
        if texts.join(" ").trim() != expected {
            return Err(format!("after {after}: {texts:?}, not {expected}").into());
        }
        let wrong = format!(
            "SELECT count(*) FROM sizes FULL JOIN ({query}) AS wanted ON sizes.id = wanted.id \
             WHERE sizes.size IS DISTINCT FROM wanted.size"
        );
        let batches = scene.headwater.sql(&wrong).await?.collect().await?;
        match batches[0].column(0).as_primitive::<Int64Type>().value(0) {
            0 => Ok(()),
            wrong => Err(format!("after {after}: {wrong} rows are wrong").into()),
        }
    };

    let read = view(
        "print(json.loads(view.schema.metadata[b'mv.definition'])['query'], sum(view.to_table()['size'].to_pylist()))",
    )?;
    if read.trim() != format!("{query} 9990") {
        return Err(format!("pylance read {read} of our view").into());
    }

    scene.pylance("ds.update({'x': 'x + 1'}, where='id <= 20')")?;
    scene.pylance("ds.delete('id = 30')")?;
    refreshed("changes of a source", "incremental").await?;

    scene.pylance("ds.optimize.compact_files()")?;
    view("view.optimize.compact_files()")?;
    refreshed("compactions", "none").await?;
    scene.pylance("ds.update({'x': 'x + 1'}, where='id <= 20')")?;
    refreshed("compactions and a change", "incremental").await?;

    view("view.create_scalar_index('size', 'BTREE')")?;
    scene.pylance("ds.update({'x': 'x + 1'}, where='id <= 20')")?;
    refreshed("an index on the view", "incremental").await?;

    view("view.cleanup_old_versions(datetime.timedelta(0))")?;
    scene.pylance("ds.delete('id = 31')")?;
    refreshed("a clean-up of the view", "incremental").await?;

    view("view.delete('id = 40')")?;
    refreshed("a delete from the view", "full TARGET_MODIFIED").await?;
    view("view.validate()")?;
    Ok(())
}
