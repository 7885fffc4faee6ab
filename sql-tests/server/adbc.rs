//! ADBC's driver for Flight SQL, from Python.

use std::process::Command;

use libtest_mimic::Trial;

use super::start;
use crate::harness::python::{python_with_adbc, run};
use crate::harness::scene::{Outcome, Scene, block_on};

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test("server/adbc", || block_on(adbc()))]
}

async fn adbc() -> Outcome<()> {
    let scene = Scene::new(&[]).await?;
    let (mut server, url) = start(&scene, &["--token", "secret"]).await?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sql-tests/server/adbc.py");
    let mut python = Command::new(python_with_adbc()?);
    let said = tokio::task::spawn_blocking(move || run(python.arg(script).arg(url).arg("secret")));
    if said.await?? != "ok\n" {
        return Err("the script did not come to its end".into());
    }
    server.terminate().await
}
