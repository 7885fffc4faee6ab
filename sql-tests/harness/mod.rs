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
//! - [`cluster`] is a cluster: a scheduler, and executors in processes of their own,
//! - [`python`] is a Python that has pylance, or moto,
//! - [`s3`] is a store that answers as S3 does,
//! - [`scene`] is a database for tests of several processes,
//! - [`checks`] tests all of this.

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

use std::fmt;

/// Where the plans of a file run. Every file runs on every engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// In this process.
    Local,
    /// On a cluster that this process drives.
    Cluster,
    /// In the process of a server, one for each file.
    Server,
}

impl Engine {
    /// All engines.
    pub const ALL: [Engine; 3] = [Engine::Local, Engine::Cluster, Engine::Server];

    /// Its name in the names of trials, and the label for `onlyif` and `skipif`.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Local => "local",
            Engine::Cluster => "cluster",
            Engine::Server => "server",
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
