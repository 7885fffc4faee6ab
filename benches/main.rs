//! What Headwater's statements cost, against a floor that is measured in the same run.
//!
//! ```sh
//! cargo bench                            # all of them
//! cargo bench -- refresh append          # some of them
//! cargo bench -- refresh --rows 1000000 --runs 3
//! ```
//!
//! Each prints a Markdown table: what was measured, the floor, ours, and their ratio. Nothing is
//! asserted of times, which depend on the machine; results are checked. See `README.md`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

mod kit;
mod suite;

use kit::{Result, Settings};

// As the command has it; it serves the floors too.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Stack of a worker thread, in bytes, as the command has it.
const WORKER_STACK: usize = 16 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    // What RUST_LOG asks for, such as headwater=debug.
    env_logger::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(WORKER_STACK)
        .build()?;
    // A benchmark starts this program again to measure a process of its own.
    if let [flag, rest @ ..] = arguments {
        match flag.as_str() {
            suite::memory::CHILD => return runtime.block_on(suite::memory::child(rest)),
            suite::cluster::EXECUTOR => return runtime.block_on(suite::cluster::executor(rest)),
            suite::cluster::DRIVER => return runtime.block_on(suite::cluster::driver(rest)),
            _ => {}
        }
    }
    let Some(settings) = Settings::read(arguments, &suite::names())? else {
        println!("{}", usage());
        return Ok(());
    };
    if cfg!(debug_assertions) {
        println!("This is a debug build: its figures say nothing.\n");
    }
    runtime.block_on(async {
        for name in &settings.names {
            let report = suite::run(name, &settings).await?;
            println!("{report}");
        }
        Ok(())
    })
}

fn usage() -> String {
    format!(
        "Usage: cargo bench -- [NAME …] [--rows N] [--scale S] [--runs N]\n\nNames: {}",
        suite::names().join(", ")
    )
}
