//! Stores that fail, are slow or full, clocks that are wrong, and drivers that come back from the dead.
//!
//! Whatever happens, a refresh goes on or fails with an error that says why, and the next one goes on from
//! there: no value is wrong, nothing is committed twice, and little is computed twice.
//!
//! `HEADWATER_SEED` chooses other calls that fail, and `HEADWATER_FAULTS=4` lets one in four do so.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater::job::clock::Clock;
use headwater::session::{Headwater, HeadwaterBuilder};
use headwater::{Error, ErrorKind};
use lance::Dataset;
use lance::dataset::transaction::Operation;
use lance::io::ObjectStore;
use lance_table::io::commit::write_manifest_file_to_path;
use libtest_mimic::Trial;
use tokio::sync::oneshot;

use crate::functions;
use crate::harness::faults::{Faults, SetClock};
use crate::harness::scene::{Outcome, Scene, block_on};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);
const HOUR: i64 = 3600;
const FULL: &str = "No space left on device";

/// All trials.
pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("a_slow_store_is_only_slow", a_slow_store_is_only_slow),
        trial("a_job_on_a_slow_store_is_cancelled_at_once", || {
            a_job_on_a_slow_store_is_cancelled_at_once()
        }),
        trial("a_full_store_is_named_and_the_job_goes_on_later", || {
            a_full_store_is_named_and_the_job_goes_on_later()
        }),
        trial("a_store_that_goes_away_and_comes_back", || {
            a_store_that_goes_away_and_comes_back()
        }),
        trial("a_full_disk", a_full_disk),
        trial("a_table_that_needs_a_newer_reader", || {
            newer_format(Newer::Reader)
        }),
        trial("a_table_that_needs_a_newer_writer", || {
            newer_format(Newer::Writer)
        }),
        trial("a_table_with_newer_files", || newer_format(Newer::Files)),
        trial("a_stopped_driver_that_comes_back", || {
            a_stopped_driver_that_comes_back()
        }),
        trial("a_driver_with_another_clock_is_left_alone", || {
            a_driver_with_another_clock_is_left_alone()
        }),
        trial("a_clock_that_is_set_back", a_clock_that_is_set_back),
        trial("two_drivers_of_one_column", two_drivers_of_one_column),
    ];
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let one_in = number("HEADWATER_FAULTS").unwrap_or(20);
    let seeds = match number("HEADWATER_SEED") {
        Some(seed) => vec![seed],
        None => vec![1, 2, 3],
    };
    for seed in seeds {
        trials.push(trial(
            &format!("a_store_that_fails_now_and_then_seed_{seed}"),
            move || a_store_that_fails_now_and_then(seed, one_in),
        ));
    }
    trials
}

fn trial<F, T>(name: &str, test: F) -> Trial
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = Outcome<()>>,
{
    Trial::test(format!("faults/{name}"), move || block_on(test()))
}

/// A table of four fragments with a column `y` that is not computed yet: its function counts its calls and
/// takes its time.
async fn table(rows: usize, millis: usize) -> Outcome<Scene> {
    let scene = Scene::new(&[
        &format!(
            "CREATE TABLE t WITH (max_rows_per_fragment = {}) AS \
             SELECT value AS id, value AS x FROM generate_series(1, {rows})",
            rows / 4
        ),
        &format!("ALTER TABLE t ADD COLUMN y BIGINT AS (count_calls(sleep_ms(x, {millis})))"),
    ])
    .await?;
    Ok(scene)
}

/// Another session of this process on the database of `scene`.
async fn session(
    scene: &Scene,
    url: String,
    set: impl FnOnce(HeadwaterBuilder) -> HeadwaterBuilder,
) -> Outcome<Headwater> {
    let functions = functions::all(Some(scene.file("calls")));
    let builder = set(Headwater::builder().database(url));
    let builder = functions.into_iter().fold(builder, |builder, function| {
        builder.scalar_function(function)
    });
    Ok(builder.build().await?)
}

/// A session whose store has `faults`.
async fn faulty(scene: &Scene, faults: &Faults) -> Outcome<Headwater> {
    // Lance reads and writes plain local files past the store.
    let url = format!("file-object-store://{}", scene.database().display());
    session(scene, url, |builder| {
        builder.store_wrapper(Arc::new(faults.clone()))
    })
    .await
}

/// A session that tells the time by `clock`.
async fn clocked(scene: &Scene, clock: Arc<dyn Clock>) -> Outcome<Headwater> {
    let url = scene.database().display().to_string();
    session(scene, url, |builder| builder.clock(clock)).await
}

async fn run(headwater: &Headwater, statement: &str) -> Result<(), Error> {
    headwater.sql(statement).await?.collect().await?;
    Ok(())
}

/// A statement that runs on a runtime of its own: its function blocks the threads that it runs on.
struct Apart {
    thread: std::thread::JoinHandle<Option<Result<(), Error>>>,
    waiting: oneshot::Sender<()>,
}

impl Apart {
    fn run(headwater: &Headwater, statement: &'static str) -> Self {
        let headwater = headwater.clone();
        let (waiting, left) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().ok()?;
            runtime.block_on(async {
                tokio::select! {
                    result = run(&headwater, statement) => Some(result),
                    _ = left => None,
                }
            })
        });
        Self { thread, waiting }
    }

    /// What came of it.
    async fn end(self) -> Outcome<Result<(), Error>> {
        let ended = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        let result = ended.map_err(|_| "a statement panicked")?;
        Ok(result.ok_or("a statement was left")?)
    }

    /// Waits for it no more.
    async fn leave(self) -> Outcome<()> {
        drop(self.waiting);
        tokio::task::spawn_blocking(|| self.thread.join())
            .await?
            .map(|_| ())
            .map_err(|_| "a statement panicked".into())
    }
}

/// Fails unless an error is of the kind `kind` and has each of `words` in its text.
fn check_error(error: &Error, kind: ErrorKind, words: &[&str]) -> Outcome<()> {
    let text = error.to_string();
    match error.kind() == kind && words.iter().all(|word| text.contains(word)) {
        true => Ok(()),
        false => Err(format!(
            "not {kind:?} with {words:?}, but {:?}: {text}",
            error.kind()
        )
        .into()),
    }
}

/// Fails unless each value is right, no fragment was committed twice, and another refresh has nothing to do.
async fn check_all_done(scene: &Scene) -> Outcome<()> {
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    let pending = "SELECT sum(rows_pending + rows_stale) FROM system.computed_columns";
    scene.expect(pending, 0).await?;
    let (calls, jobs) = (scene.all_calls()?, "SELECT count(*) FROM system.jobs");
    let before = scene.number(jobs).await?;
    scene.run("REFRESH COLUMN y ON t").await?;
    scene.expect(jobs, before).await?;
    check(scene.all_calls()? == calls, || {
        "another refresh computed something".into()
    })?;
    let unfinished =
        "SELECT count(*) FROM system.jobs WHERE state NOT IN ('done', 'failed', 'cancelled')";
    scene.expect(unfinished, 0).await
}

/// Fails if the column of a fragment was written by more than one commit.
async fn check_committed_once(scene: &Scene) -> Outcome<()> {
    let path = scene.database().join("t.lance");
    let newest = Dataset::open(&path.display().to_string()).await?;
    let mut written = BTreeSet::new();
    for version in 1..=newest.version().version {
        let Some(transaction) = newest.read_transaction_by_version(version).await? else {
            continue;
        };
        if let Operation::DataReplacement { replacements } = transaction.operation {
            for group in replacements {
                check(written.insert(group.0), || {
                    format!("fragment {} was committed twice", group.0)
                })?;
            }
        }
    }
    Ok(())
}

fn check(is_right: bool, message: impl FnOnce() -> String) -> Outcome<()> {
    match is_right {
        true => Ok(()),
        false => Err(message().into()),
    }
}

/// Waits until the function was called for so many rows.
async fn wait_for_calls(scene: &Scene, calls: usize) -> Outcome<()> {
    let started = Instant::now();
    while scene.all_calls()? < calls {
        check(started.elapsed() < PATIENCE, || {
            "nothing is computed".into()
        })?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

const REFRESH: &str =
    "REFRESH COLUMN y ON t WITH (checkpoint_interval = 0.06, commit_every = 1, concurrency = 2)";

/// Rows that two workers may compute again after a failure: what each did since its last checkpoint, and
/// what it was writing down, at `millis` each.
fn may_be_lost(millis: usize) -> usize {
    2 * 2 * (60 / millis)
}

async fn a_store_that_fails_now_and_then(seed: u64, one_in: u64) -> Outcome<()> {
    const ROWS: usize = 200;
    let scene = table(ROWS, 3).await?;
    let faults = Faults::new(seed);
    let headwater = faulty(&scene, &faults).await?;
    faults.fail_one_in(one_in);
    let mut failures = 0;
    while let Err(error) = run(&headwater, REFRESH).await {
        check_error(&error, ErrorKind::Storage, &["the test lost it"])?;
        failures += 1;
        check(failures < 20, || {
            format!("it fails again and again: {error}")
        })?;
    }
    faults.fail_one_in(0);
    check(faults.failed() > 0, || "nothing failed".into())?;
    check_all_done(&scene).await?;
    check_committed_once(&scene).await?;
    let calls = scene.all_calls()?;
    check(calls <= ROWS + failures * may_be_lost(3), || {
        format!("HEADWATER_SEED={seed}: {calls} calls after {failures} failures")
    })
}

async fn a_store_that_goes_away_and_comes_back() -> Outcome<()> {
    const ROWS: usize = 240;
    let scene = table(ROWS, 4).await?;
    let faults = Faults::new(0);
    let headwater = faulty(&scene, &faults).await?;
    for calls in [60, 130] {
        let refresh = Apart::run(&headwater, REFRESH);
        wait_for_calls(&scene, calls).await?;
        faults.away(true);
        let error = match refresh.end().await? {
            Ok(()) => return Err("it went on without a store".into()),
            Err(error) => error,
        };
        check_error(&error, ErrorKind::Storage, &["the test lost it"])?;
        faults.away(false);
    }
    run(&headwater, REFRESH).await?;
    check_all_done(&scene).await?;
    check_committed_once(&scene).await?;
    // This process knows that it does not drive the job any more, so it goes on with it at once.
    scene.expect("SELECT count(*) FROM system.jobs", 1).await?;
    let calls = scene.all_calls()?;
    check(calls <= ROWS + 2 * may_be_lost(4), || {
        format!("{calls} calls")
    })
}

async fn a_slow_store_is_only_slow() -> Outcome<()> {
    let scene = table(80, 1).await?;
    let faults = Faults::new(5);
    faults.delay(5, 15);
    let headwater = faulty(&scene, &faults).await?;
    run(&headwater, REFRESH).await?;
    check_all_done(&scene).await?;
    check_committed_once(&scene).await?;
    check(scene.all_calls()? == 80, || {
        "some calls were made twice".into()
    })
}

async fn a_job_on_a_slow_store_is_cancelled_at_once() -> Outcome<()> {
    const CANCELLED: &str = "SELECT count(*) FROM system.jobs WHERE state = 'cancelled'";
    let scene = table(4000, 5).await?;
    let faults = Faults::new(5);
    faults.delay(20, 50);
    let headwater = faulty(&scene, &faults).await?;
    // As Ctrl-C does: nobody waits any more.
    let refresh = Apart::run(&headwater, "REFRESH COLUMN y ON t");
    wait_for_calls(&scene, 50).await?;
    let started = Instant::now();
    refresh.leave().await?;
    while !headwater.jobs().running().is_empty() {
        check(started.elapsed() < PATIENCE, || "it goes on".into())?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let alone = started.elapsed();
    check(alone < Duration::from_secs(3), || {
        format!("Ctrl-C took {alone:?}")
    })?;
    scene.expect(CANCELLED, 1).await?;
    // By another session.
    let refresh = Apart::run(&headwater, "REFRESH COLUMN y ON t");
    let started = Instant::now();
    let job = loop {
        match headwater.jobs().running().pop() {
            Some(job) if job.figures.rows_computed > 0 => break job,
            _ => check(started.elapsed() < PATIENCE, || "no job runs".into())?,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // Long enough to beat.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let alive = format!(
        "SELECT count(*) FROM system.jobs \
         WHERE job_id = '{}' AND state = 'running' AND rows_computed > 0",
        job.id
    );
    scene.expect(&alive, 1).await?;
    let started = Instant::now();
    scene.run(&format!("CANCEL JOB '{}'", job.id)).await?;
    let error = match refresh.end().await? {
        Ok(()) => return Err("it went on to its end".into()),
        Err(error) => error,
    };
    check_error(&error, ErrorKind::Cancelled, &["was cancelled"])?;
    let told = started.elapsed();
    check(told < Duration::from_secs(4), || {
        format!("CANCEL JOB took {told:?}")
    })?;
    scene.expect(CANCELLED, 2).await
}

async fn a_full_store_is_named_and_the_job_goes_on_later() -> Outcome<()> {
    const ROWS: usize = 240;
    let scene = table(ROWS, 4).await?;
    let faults = Faults::new(0);
    let headwater = faulty(&scene, &faults).await?;
    let mut failures = 0;
    for calls in [0, 60, 130] {
        let refresh = Apart::run(&headwater, REFRESH);
        if calls == 0 {
            faults.full(true);
        }
        wait_for_calls(&scene, calls).await?;
        faults.full(true);
        let error = match refresh.end().await? {
            Ok(()) => return Err("it went on without space".into()),
            Err(error) => error,
        };
        failures += 1;
        check_error(&error, ErrorKind::Storage, &[FULL, "free some space"])?;
        // What is there can be read.
        scene.expect("SELECT count(*) FROM t", ROWS as i64).await?;
        let wrong = "SELECT count(*) FROM t WHERE y IS NOT NULL AND y <> x";
        scene.expect(wrong, 0).await?;
        let others = [
            "INSERT INTO t (id, x) VALUES (0, 0)",
            "CREATE TABLE u AS SELECT 1 AS a",
        ];
        for statement in others {
            match run(&headwater, statement).await {
                Ok(()) => return Err(format!("{statement} worked").into()),
                Err(error) => check_error(&error, ErrorKind::Storage, &[FULL, "free some space"])?,
            }
        }
        faults.full(false);
    }
    run(&headwater, REFRESH).await?;
    check_all_done(&scene).await?;
    check_committed_once(&scene).await?;
    let done = "SELECT count(*) FROM system.jobs WHERE state = 'done'";
    scene.expect(done, 1).await?;
    let calls = scene.all_calls()?;
    check(calls <= ROWS + failures * may_be_lost(4), || {
        format!("{calls} calls")
    })
}

/// A small file system in memory, as long as it lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where it is not permitted to mount one.
    fn mount(folder: PathBuf, megabytes: usize) -> Outcome<Option<Self>> {
        fs::create_dir_all(&folder)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(&folder)
            .output();
        Ok(match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => None,
        })
    }

    /// Writes a file until no space is left.
    fn fill(&self) -> Outcome<PathBuf> {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path)?;
        for size in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a session may have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn a_full_disk() -> Outcome<()> {
    const ROWS: i64 = 20_000;
    let scene = Scene::new(&[]).await?;
    let Some(disk) = SmallDisk::mount(scene.database(), 4)? else {
        eprintln!("faults/a_full_disk: skipped, file systems can't be mounted here");
        return Ok(());
    };
    let some = format!("SELECT value AS id, random() AS x FROM generate_series(1, {ROWS})");
    scene.run(&format!("CREATE TABLE t AS {some}")).await?;
    scene
        .run("ALTER TABLE t ADD COLUMN y DOUBLE AS (x * 1.7)")
        .await?;
    let sum = "SELECT CAST(sum(x * 1e6) AS BIGINT) FROM t";
    let before = scene.number(sum).await?;
    let statements = [
        ("t", format!("INSERT INTO t (id, x) {some}")),
        ("u", format!("CREATE TABLE u AS {some}")),
        ("t", "REFRESH COLUMN y ON t".to_string()),
        ("t", "UPDATE t SET x = x + 1".to_string()),
        ("t", "OPTIMIZE t".to_string()),
        ("t", "ALTER TABLE t ADD COLUMN z INT".to_string()),
    ];
    // Nothing fits, then a part does.
    for spare in [0, 100 << 10] {
        let filler = disk.fill()?;
        let full = fs::metadata(&filler)?.len();
        fs::File::options()
            .write(true)
            .open(&filler)?
            .set_len(full.saturating_sub(spare))?;
        for (name, statement) in &statements {
            if spare > 0 && (statement.starts_with("OPTIMIZE") || statement.starts_with("ALTER")) {
                continue;
            }
            match run(&scene.headwater, statement).await {
                Ok(()) if statement.starts_with("OPTIMIZE") => {}
                Ok(()) => return Err(format!("{statement} worked on a full disk").into()),
                Err(error) => {
                    check_error(&error, ErrorKind::Storage, &[FULL, "free some space"])
                        .map_err(|error| format!("{statement}: {error}"))?;
                    check(
                        error.to_string().contains(&format!("'{name}'"))
                            || statement.starts_with("REFRESH"),
                        || format!("{statement} does not name the table: {error}"),
                    )?;
                }
            }
            scene.expect("SELECT count(*) FROM t", ROWS).await?;
            scene.expect(sum, before).await?;
            scene
                .expect("SELECT count(*) FROM t WHERE y IS NOT NULL", 0)
                .await?;
        }
        fs::remove_file(filler)?;
    }
    scene.run("REFRESH COLUMN y ON t").await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x * 1.7", 0)
        .await?;
    scene.run(&statements[0].1).await?;
    scene.run(&statements[1].1).await?;
    scene.expect("SELECT count(*) FROM t", 2 * ROWS).await?;
    scene.expect("SELECT count(*) FROM u", ROWS).await
}

/// What of a table only a newer release understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Newer {
    Reader,
    Writer,
    Files,
}

async fn newer_format(newer: Newer) -> Outcome<()> {
    const UNKNOWN_FLAG: u64 = 1 << 40;
    let scene = table(40, 0).await?;
    scene.run("CREATE TABLE other AS SELECT 1 AS a").await?;
    scene.run("REFRESH COLUMN y ON t").await?;
    scene.run("INSERT INTO t (id, x) VALUES (41, 41)").await?;
    let path = scene.database().join("t.lance");
    let dataset = Dataset::open(&path.display().to_string()).await?;
    let mut manifest = dataset.manifest().clone();
    manifest.version += 1;
    match newer {
        Newer::Reader => {
            manifest.reader_feature_flags |= UNKNOWN_FLAG;
            manifest.writer_feature_flags |= UNKNOWN_FLAG;
        }
        Newer::Writer => manifest.writer_feature_flags |= UNKNOWN_FLAG,
        // Below.
        Newer::Files => {}
    }
    let base = object_store::path::Path::from_absolute_path(&path)?;
    let naming = dataset.manifest_location().naming_scheme;
    let target = naming.manifest_path(&base, manifest.version);
    write_manifest_file_to_path(&ObjectStore::local(), &mut manifest, None, &target, None).await?;
    if newer == Newer::Files {
        let file = Path::new("/").join(target.as_ref());
        let mut bytes = fs::read(&file)?;
        // The format's name, a tag, and the length of its version, which has three bytes.
        let name = b"lance\x12\x03";
        let at = bytes.windows(name.len()).position(|window| window == name);
        let at = at.ok_or("the manifest does not name its format")? + name.len();
        bytes[at..at + 3].copy_from_slice(b"9.9");
        fs::write(&file, bytes)?;
    }

    let reading = [
        "SELECT count(*) FROM t",
        "SELECT t.id FROM t, other WHERE t.id = other.a",
        "DESCRIBE t",
        "EXPLAIN REFRESH COLUMN y ON t",
    ];
    let writing = [
        "INSERT INTO t (id, x) VALUES (42, 42)",
        "REFRESH COLUMN y ON t",
        "UPDATE t SET x = 1 WHERE id = 1",
        "DELETE FROM t WHERE id = 1",
        "ALTER TABLE t ADD COLUMN z INT",
        "OPTIMIZE t WITH (target_rows_per_fragment = 100)",
    ];
    for statement in reading.iter().chain(&writing) {
        let result = run(&scene.headwater, statement).await;
        match result {
            Ok(()) if newer == Newer::Writer && reading.contains(statement) => {}
            Ok(()) => return Err(format!("{newer:?}: {statement} worked").into()),
            Err(error) => check_error(
                &error,
                ErrorKind::Storage,
                &["'t'", "newer Lance format", "upgrade Headwater"],
            )
            .map_err(|error| format!("{newer:?}: {statement}: {error}"))?,
        }
    }
    // The others are usable.
    for statement in [
        "SHOW TABLES",
        "INSERT INTO other VALUES (2)",
        "ALTER TABLE other ADD COLUMN b INT AS (a + 1)",
        "REFRESH COLUMN b ON other",
        "SELECT * FROM system.jobs",
    ] {
        scene
            .run(statement)
            .await
            .map_err(|error| format!("{newer:?}: {error}"))?;
    }
    scene.expect("SELECT sum(b) FROM other", 5).await?;
    // The job that could not commit does not stand in the way.
    let unfinished = "SELECT count(*) FROM system.jobs WHERE state NOT IN ('done', 'failed')";
    scene.expect(unfinished, 0).await
}

fn signal(child: &Child, signal: &str) -> Outcome<()> {
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()?;
    check(status.success(), || format!("kill {signal} failed"))
}

async fn a_stopped_driver_that_comes_back() -> Outcome<()> {
    const ROWS: usize = 240;
    let scene = table(ROWS, 4).await?;
    let mut child = scene.shell.start(&[REFRESH])?;
    wait_for_calls(&scene, 80).await?;
    signal(&child, "-STOP")?;
    let computed = scene.all_calls()?;
    check(child.try_wait()?.is_none(), || "it was quicker".into())?;
    // For others it is alive for a while.
    match scene.run(REFRESH).await {
        Ok(_) => return Err("a driver was taken for dead at once".into()),
        Err(error) => check(error.to_string().contains("is at work on it"), || {
            error.to_string()
        })?,
    }
    let later = clocked(&scene, Arc::new(SetClock::ahead(60))).await?;
    run(&later, REFRESH).await?;
    scene
        .expect("SELECT count(*) FROM t WHERE y IS DISTINCT FROM x", 0)
        .await?;
    signal(&child, "-CONT")?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    check(
        !output.status.success() && said.contains("has taken over"),
        || format!("the first driver ended with {}: {said}", output.status),
    )?;
    check_all_done(&scene).await?;
    check_committed_once(&scene).await?;
    scene.expect("SELECT count(*) FROM system.jobs", 1).await?;
    scene
        .expect("SELECT count(*) FROM system.jobs WHERE state = 'done'", 1)
        .await?;
    let calls = scene.all_calls()?;
    // What it had computed when it was stopped but had not written down, and what it does before it looks.
    check(calls <= ROWS + 2 * may_be_lost(4), || {
        format!("{calls} calls, {computed} of them before it was stopped")
    })?;
    let left = scene.own_files("active-jobs")?;
    check(left.is_empty(), || format!("left: {left:?}"))
}

async fn a_driver_with_another_clock_is_left_alone() -> Outcome<()> {
    const ROWS: usize = 1000;
    let scene = table(ROWS, 40).await?;
    let child = scene
        .shell
        .start(&["REFRESH COLUMN y ON t WITH (concurrency = 1)"])?;
    wait_for_calls(&scene, 1).await?;
    for hours in [-2, 2] {
        let other = clocked(&scene, Arc::new(SetClock::ahead(hours * HOUR))).await?;
        match run(&other, "REFRESH COLUMN y ON t FULL").await {
            Ok(()) => return Err("a driver that beats was taken for dead".into()),
            Err(error) => check_error(&error, ErrorKind::Busy, &["is at work on it"])?,
        }
    }
    signal(&child, "-INT")?;
    let output = child.wait_with_output()?;
    check(!output.status.success(), || "it did not hear Ctrl-C".into())?;
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE state = 'cancelled'",
            1,
        )
        .await
}

async fn a_clock_that_is_set_back() -> Outcome<()> {
    const ROWS: usize = 240;
    let scene = table(ROWS, 4).await?;
    let clock = Arc::new(SetClock::default());
    let headwater = clocked(&scene, clock.clone()).await?;
    let refresh = Apart::run(&headwater, REFRESH);
    wait_for_calls(&scene, 80).await?;
    clock.set(-2 * HOUR);
    // It is listed, and nobody else begins.
    let watcher = clocked(&scene, clock.clone()).await?;
    match run(&watcher, "REFRESH COLUMN y ON t FULL").await {
        Ok(()) => return Err("two jobs worked on one column".into()),
        Err(error) => check_error(&error, ErrorKind::Busy, &["is at work on it"])?,
    }
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE state = 'running'",
            1,
        )
        .await?;
    refresh.end().await??;
    check_all_done(&scene).await?;
    check(scene.all_calls()? == ROWS, || {
        "calls were made twice".into()
    })?;
    // Another job, submitted before the first one as it seems.
    run(&headwater, "UPDATE t SET x = x + 1000 WHERE id <= 10").await?;
    run(&headwater, REFRESH).await?;
    check_all_done(&scene).await?;
    scene
        .expect(
            "SELECT count(DISTINCT job_id) FROM system.jobs WHERE state = 'done'",
            2,
        )
        .await?;
    scene
        .expect(
            "SELECT count(*) FROM system.jobs WHERE elapsed_seconds < 0",
            0,
        )
        .await?;
    // A driver that is gone, with a heartbeat from the future.
    run(&headwater, "UPDATE t SET x = x + 1000").await?;
    let child = scene.shell.start(&[REFRESH])?;
    wait_for_calls(&scene, ROWS + 50).await?;
    signal(&child, "-STOP")?;
    run(&headwater, REFRESH).await?;
    signal(&child, "-KILL")?;
    child.wait_with_output()?;
    check_all_done(&scene).await
}

async fn two_drivers_of_one_column() -> Outcome<()> {
    const ROWS: usize = 240;
    let scene = table(ROWS, 4).await?;
    let child = scene.shell.start(&[REFRESH])?;
    wait_for_calls(&scene, 40).await?;
    remove_claims(&scene.database())?;
    // Neither finds the other's claim.
    let second = run(&scene.headwater, REFRESH).await;
    let first = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&first.stderr);
    check(second.is_ok() || first.status.success(), || {
        format!("both failed: {said}, and {second:?}")
    })?;
    for (is_right, said) in [
        (first.status.success(), said.to_string()),
        (second.is_ok(), format!("{second:?}")),
    ] {
        check(
            is_right || !said.to_lowercase().contains("internal"),
            || said,
        )?;
    }
    scene
        .expect("SELECT count(*) FROM t WHERE y IS NOT NULL AND y <> x", 0)
        .await?;
    scene.run("REFRESH COLUMN y ON t").await?;
    check_all_done(&scene).await?;
    check_committed_once(&scene).await
}

fn remove_claims(database: &Path) -> Outcome<()> {
    Ok(fs::remove_dir_all(database.join("_headwater/claims"))?)
}
