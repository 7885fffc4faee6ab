//! Runs sqllogictest files against a database: one fresh folder for each file.
//!
//! - [`files`] finds the files and makes a trial of each,
//! - [`database`] is the database as sqllogictest sees it,
//! - [`faults`] makes a store fail, answer slowly, and be full, and sets clocks,
//! - [`command`] are the lines that begin with a backslash: what a test does besides SQL,
//! - [`foreign`] changes tables as other Lance programs do,
//! - [`render`] turns results into text, [`normalize`] takes out of it what differs from
//!   run to run,
//! - [`process`] runs this binary as a shell in a process of its own, [`daemon`] listens to one that goes on,
//! - [`certificates`] makes certificates,
//! - [`cluster`] is a cluster: a scheduler, and executors in processes of their own,
//! - [`python`] is a Python that has pylance, or moto,
//! - [`s3`] is a store that answers as S3 does,
//! - [`scene`] is a database for tests of several processes,
//! - [`checks`] tests all of this.

pub mod certificates;
pub mod checks;
pub mod cluster;
pub mod command;
pub mod daemon;
pub mod database;
pub mod faults;
pub mod files;
pub mod foreign;
pub mod normalize;
pub mod process;
pub mod python;
pub mod render;
pub mod s3;
pub mod scene;

use std::env;
use std::fmt;

use headwater::session::{Headwater, HeadwaterBuilder};

/// The variable with which all files run on a server.
const ALL_ON_SERVER: &str = "HEADWATER_ALL_ON_SERVER";

/// The files that run on a server in any case: results of all types, errors, notices, sessions, jobs.
const ON_SERVER: [&str; 20] = [
    "columns/errors.slt",
    "columns/explain_refresh.slt",
    "columns/refresh.slt",
    "columns/virtual.slt",
    "jobs/async.slt",
    "jobs/control.slt",
    "jobs/errors.slt",
    "materialized_views/alter.slt",
    "materialized_views/create.slt",
    "materialized_views/jobs.slt",
    "not_available/functions.slt",
    "tables/copy.slt",
    "tables/files_by_path.slt",
    "tables/insert.slt",
    "tables/others.slt",
    "tables/queries.slt",
    "tables/transactions.slt",
    "tables/types.slt",
    "tables/types_blob.slt",
    "tables/types_nested.slt",
];

/// The files that run on a database in an object store: what executors read and write there.
const STORED: [&str; 8] = [
    "columns/refresh.slt",
    "columns/cascade.slt",
    "jobs/control.slt",
    "materialized_views/create.slt",
    "materialized_views/paid_calls.slt",
    "materialized_views/stages.slt",
    "tables/queries.slt",
    "tables/types_blob.slt",
];

/// Where the plans of a file run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// In this process.
    Local,
    /// On a cluster that this process drives.
    Cluster,
    /// On a server and its two executors, for each file processes of their own.
    Server,
    /// On the cluster, and the database is in an object store.
    Stored,
}

impl Engine {
    /// All engines.
    pub const ALL: [Engine; 4] = [
        Engine::Local,
        Engine::Cluster,
        Engine::Server,
        Engine::Stored,
    ];

    /// Whether a file runs on it. On a server only some of each folder do, since each starts a process, and what differs
    /// from `local` is the way of statements and results; with [`ALL_ON_SERVER`] set to 1 all of them.
    pub fn runs(self, file: &str) -> bool {
        match self {
            Engine::Local | Engine::Cluster => true,
            Engine::Server => {
                let all = env::var_os(ALL_ON_SERVER).is_some_and(|value| value == "1");
                all || ON_SERVER.contains(&file)
            }
            Engine::Stored => STORED.contains(&file),
        }
    }

    /// Opens a database without functions of the tests.
    pub async fn open(self, url: &str) -> Result<Headwater, Failure> {
        self.builder()
            .await?
            .database(url)
            .build()
            .await
            .map_err(Failure::new)
    }

    /// A session whose plans run on it.
    async fn builder(self) -> Result<HeadwaterBuilder, Failure> {
        Ok(match self {
            Engine::Local | Engine::Server => Headwater::builder(),
            Engine::Cluster | Engine::Stored => {
                let cluster = cluster::Cluster::shared().await?;
                Headwater::builder().engine(headwater::engine::Engine::ballista(cluster.url()))
            }
        })
    }

    /// Its name in the names of trials, and the label for `onlyif` and `skipif`.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Local => "local",
            Engine::Cluster => "cluster",
            Engine::Server => "server",
            Engine::Stored => "stored",
        }
    }
}

/// Why a statement or a command failed, as the text that a test matches.
#[derive(Debug, Clone)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A failure that says `message`.
    pub fn new(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}
