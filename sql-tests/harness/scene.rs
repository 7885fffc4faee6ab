//! A database for tests that need more than one process.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use headwater::engine::Engine;
use headwater::session::Headwater;
use tempfile::TempDir;

use crate::functions;
use crate::harness::process::TestShell;

/// What a test gives, or why it failed.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A database in a folder of its own, a session over it in this process, and a shell to start others with.
/// The functions of the tests write to one file in all of them.
pub struct Scene {
    folder: TempDir,
    /// The session in this process.
    pub headwater: Headwater,
    /// Starts other processes.
    pub shell: TestShell,
}

impl Scene {
    /// A database made by `statements`.
    pub async fn new(statements: &[&str]) -> Outcome<Self> {
        let folder = TempDir::new()?;
        let database = folder.path().join("db");
        Self::at(folder, &database, HashMap::new(), statements).await
    }

    /// A database made by `statements`, whose plans run on a cluster.
    pub async fn on_cluster(cluster: &str, statements: &[&str]) -> Outcome<Self> {
        let mut scene = Self::new(&[]).await?;
        let database = scene.database().display().to_string();
        scene.drive(cluster, &database, HashMap::new()).await?;
        for statement in statements {
            scene.run(statement).await?;
        }
        Ok(scene)
    }

    /// A database at a URL, in a store with `options`, whose plans run on a cluster.
    pub async fn at_url_on_cluster(
        cluster: &str,
        url: &str,
        options: HashMap<String, String>,
        statements: &[&str],
    ) -> Outcome<Self> {
        let mut scene = Self::at_url(url, options.clone(), &[]).await?;
        scene.drive(cluster, url, options).await?;
        for statement in statements {
            scene.run(statement).await?;
        }
        Ok(scene)
    }

    /// From now on plans run on a cluster.
    async fn drive(
        &mut self,
        cluster: &str,
        database: &str,
        options: HashMap<String, String>,
    ) -> Outcome<()> {
        let builder = Headwater::builder()
            .database(database)
            .storage_options(options)
            .engine(Engine::ballista(cluster))
            .function_codec(Arc::new(functions::CallsCodec));
        let functions = functions::all(Some(self.file("calls")));
        let builder = functions.into_iter().fold(builder, |builder, function| {
            builder.scalar_function(function)
        });
        self.headwater = builder.build().await?;
        Ok(())
    }

    /// A database at a URL, in a store with `options`, made by `statements`.
    pub async fn at_url(
        url: &str,
        options: HashMap<String, String>,
        statements: &[&str],
    ) -> Outcome<Self> {
        Self::at(TempDir::new()?, Path::new(url), options, statements).await
    }

    async fn at(
        folder: TempDir,
        database: &Path,
        options: HashMap<String, String>,
        statements: &[&str],
    ) -> Outcome<Self> {
        let calls = folder.path().join("calls");
        let scene = Self {
            headwater: Self::open(database, options.clone(), &calls).await?,
            shell: TestShell::new(database, &calls).with_options(options),
            folder,
        };
        for statement in statements {
            scene.run(statement).await?;
        }
        Ok(scene)
    }

    async fn open(
        database: &Path,
        options: HashMap<String, String>,
        calls: &Path,
    ) -> Outcome<Headwater> {
        let functions = functions::all(Some(calls.to_path_buf()));
        let builder = Headwater::builder()
            .database(database.display().to_string())
            .storage_options(options);
        let builder = functions.into_iter().fold(builder, |builder, function| {
            builder.scalar_function(function)
        });
        Ok(builder.build().await?)
    }

    /// The folder of the database, if it is in one.
    pub fn database(&self) -> PathBuf {
        self.folder.path().join("db")
    }

    /// A file beside it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a statement in this process.
    pub async fn run(&self, statement: &str) -> Outcome<Vec<RecordBatch>> {
        let frame = self.headwater.sql(statement).await;
        let frame = frame.map_err(|error| format!("{statement}: {error}"))?;
        let batches = frame.collect().await;
        Ok(batches.map_err(|error| format!("{statement}: {error}"))?)
    }

    /// The number that a query gives.
    pub async fn number(&self, query: &str) -> Outcome<i64> {
        for batch in self.run(query).await? {
            if batch.num_rows() > 0 {
                let column = cast(batch.column(0), &DataType::Int64)?;
                let column = column.as_primitive::<Int64Type>();
                return match column.is_null(0) {
                    true => Err(format!("{query}: NULL").into()),
                    false => Ok(column.value(0)),
                };
            }
        }
        Err(format!("{query}: no row").into())
    }

    /// Fails unless a query gives `expected`.
    pub async fn expect(&self, query: &str, expected: i64) -> Outcome<()> {
        let number = self.number(query).await?;
        match number == expected {
            true => Ok(()),
            false => Err(format!("{query}: {number}, not {expected}").into()),
        }
    }

    /// How often `count_calls` was called, by value.
    pub fn calls(&self) -> Outcome<BTreeMap<String, usize>> {
        let text = match fs::read_to_string(self.file("calls")) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            *calls.entry(line.to_string()).or_default() += 1;
        }
        Ok(calls)
    }

    /// All calls of `count_calls`.
    pub fn all_calls(&self) -> Outcome<usize> {
        Ok(self.calls()?.values().sum())
    }

    /// The files below one of Headwater's own folders.
    pub fn own_files(&self, folder: &str) -> Outcome<Vec<String>> {
        let mut found = Vec::new();
        let mut left = vec![self.database().join("_headwater").join(folder)];
        while let Some(folder) = left.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(_) => continue,
            };
            for entry in entries {
                let path = entry?.path();
                match path.is_dir() {
                    true => left.push(path),
                    false => found.push(path.display().to_string()),
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Runs a test on a runtime of its own.
pub fn block_on(test: impl Future<Output = Outcome<()>>) -> Result<(), libtest_mimic::Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(test)
        .map_err(|error| libtest_mimic::Failed::from(error.to_string()))
}
