//! The integration tests: every `.slt` file below this folder, and the trials of the
//! modules named in [`trials`].
//!
//! With `HEADWATER_TEST_SHELL=1` in its environment the same binary is the `headwater`
//! shell with the functions of [`functions`] added, so that a test can start, watch
//! and kill a process whose computation counts its calls, sleeps or fails. `HEADWATER_TEST_CLUSTER` names
//! the scheduler of a cluster that it drives.

mod cluster;
mod conflicts;
mod crash;
mod faults;
mod functions;
mod harness;
mod opening;
mod property;
mod pylance;
mod s3;
mod serve;
mod server;
mod tpch;
mod view_crash;
mod view_paid;
mod views;

use std::env;
use std::process::ExitCode;
use std::sync::Arc;

use headwater::engine::Engine;
use headwater::session::Headwater;
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if env::var_os("HEADWATER_TEST_SHELL").is_some_and(|value| value == "1") {
        return shell();
    }
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, trials()).exit_code()
}

/// All tests. A module with tests of its own is one more line.
fn trials() -> Vec<Trial> {
    [
        harness::files::trials(),
        harness::checks::trials(),
        cluster::trials(),
        conflicts::trials(),
        crash::trials(),
        faults::trials(),
        opening::trials(),
        property::trials(),
        pylance::trials(),
        s3::trials(),
        serve::trials(),
        server::trials(),
        tpch::trials(),
        view_crash::trials(),
        view_paid::trials(),
        views::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The shell, with the functions of the tests.
fn shell() -> ExitCode {
    if env::var_os("HEADWATER_TEST_LEASH").is_some_and(|value| value == "1") {
        // Ends with the process that holds the other end, however that ends.
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(0);
        });
    }
    let calls = env::var_os("HEADWATER_CALLS").map(Into::into);
    let builder = Headwater::builder().function_codec(Arc::new(functions::CallsCodec));
    let builder = functions::all(calls)
        .into_iter()
        .fold(builder, |builder, function| {
            builder.scalar_function(function)
        });
    let builder = match env::var("HEADWATER_TEST_CLUSTER") {
        Ok(url) => builder.engine(Engine::ballista(url)),
        Err(_) => builder,
    };
    headwater::shell::run(env::args_os(), builder)
}
