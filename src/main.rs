//! The `headwater` command.

use std::process::ExitCode;

use headwater::session::Headwater;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    headwater::shell::run(std::env::args_os(), Headwater::builder())
}
