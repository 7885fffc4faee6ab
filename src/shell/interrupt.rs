//! Ctrl-C: ends the statement that runs, not the shell.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinError;

/// Exit status of a command that Ctrl-C ended.
pub(super) const EXIT_STATUS: u8 = 130;

/// Nothing runs.
const IDLE: u8 = 0;
/// A statement runs.
const RUNNING: u8 = 1;
/// A statement has been told to end.
const ENDING: u8 = 2;

/// Listens for Ctrl-C on behalf of the statements that run, one after the other.
///
/// The first one during a statement ends it. A second one before it has ended, or one between
/// two statements of a script, ends the process.
#[derive(Debug)]
pub(super) struct Interrupts {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: AtomicU8,
    pressed: Notify,
}

/// How a statement came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended<T> {
    /// By itself.
    Finished {
        /// What it yielded.
        value: T,
        /// Whether Ctrl-C came, but too late.
        interrupted: bool,
    },
    /// By a panic, with its message.
    Panicked(String),
    /// By Ctrl-C.
    Cancelled,
}

impl Interrupts {
    /// Begins to listen. At an `interactive` prompt the editor sees Ctrl-C before this does,
    /// and one that comes just after a statement must not end the shell.
    pub(super) fn listen(runtime: &Handle, interactive: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let listener = Arc::clone(&shared);
        runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                match listener.press() {
                    RUNNING => {}
                    IDLE if interactive => {}
                    _ => std::process::exit(i32::from(EXIT_STATUS)),
                }
            }
        });
        Self { shared }
    }

    /// Runs `statement` on the runtime until it ends or is cancelled; in either case nothing
    /// of it is left when this returns. Calls `slow` once it has run for `patience`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        statement: impl Future<Output = T> + Send + 'static,
        patience: Duration,
        slow: impl FnOnce(),
    ) -> Ended<T> {
        // What was meant for the statement before came too late for it.
        let _ = self.shared.pressed.notified().now_or_never();
        self.shared.state.store(RUNNING, Ordering::SeqCst);
        // A task of its own: it has a worker's stack, a panic ends only it, and one that
        // computes without a pause does not keep Ctrl-C from being heard.
        let mut task = tokio::spawn(statement);
        let mut slow = Some(slow);
        let result = loop {
            tokio::select! {
                result = &mut task => break result,
                () = self.shared.pressed.notified() => {
                    task.abort();
                    break (&mut task).await;
                }
                () = tokio::time::sleep(patience), if slow.is_some() => {
                    if let Some(slow) = slow.take() {
                        slow();
                    }
                }
            }
        };
        let interrupted = self.shared.state.swap(IDLE, Ordering::SeqCst) == ENDING;
        match result {
            Ok(value) => Ended::Finished { value, interrupted },
            Err(error) if error.is_cancelled() => Ended::Cancelled,
            Err(error) => Ended::Panicked(panic_message(error)),
        }
    }
}

impl Shared {
    /// Takes note of Ctrl-C, and says what the state was.
    fn press(&self) -> u8 {
        let before =
            self.state
                .compare_exchange(RUNNING, ENDING, Ordering::SeqCst, Ordering::SeqCst);
        match before {
            Ok(before) => {
                self.pressed.notify_one();
                before
            }
            Err(before) => before,
        }
    }
}

fn panic_message(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "no message".to_string()),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupts() -> Interrupts {
        Interrupts {
            shared: Arc::new(Shared::default()),
        }
    }

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_statement_ends_by_itself() {
        let ended = interrupts()
            .run(async { 7 }, NEVER, || panic!("slow"))
            .await;
        let value = 7;
        let interrupted = false;
        assert_eq!(ended, Ended::Finished { value, interrupted });
    }

    #[tokio::test]
    async fn ctrl_c_ends_the_statement_and_drops_what_it_holds() {
        let interrupts = interrupts();
        let held = Arc::new(());
        let shared = Arc::clone(&interrupts.shared);
        let holds = Arc::clone(&held);
        let statement = async move {
            let _holds = holds;
            tokio::time::sleep(NEVER).await;
        };
        let ended = interrupts
            .run(statement, SOON, || {
                assert_eq!(shared.press(), RUNNING);
                assert_eq!(shared.press(), ENDING);
            })
            .await;
        assert_eq!(ended, Ended::Cancelled);
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(interrupts.shared.press(), IDLE);
    }

    #[tokio::test]
    async fn one_that_comes_too_late_does_not_end_the_next_statement() {
        let interrupts = interrupts();
        let shared = Arc::clone(&interrupts.shared);
        let statement = async move { assert_eq!(shared.press(), RUNNING) };
        // Which of the two is seen first is open; what follows must be untouched.
        interrupts.run(statement, NEVER, || {}).await;
        let ended = interrupts.run(async { 8 }, NEVER, || {}).await;
        let value = 8;
        let interrupted = false;
        assert_eq!(ended, Ended::Finished { value, interrupted });
    }

    #[tokio::test]
    async fn a_panic_is_the_end_of_its_statement_only() {
        let interrupts = interrupts();
        let ended: Ended<()> = interrupts
            .run(async { panic!("bad {}", 1) }, NEVER, || {})
            .await;
        assert_eq!(ended, Ended::Panicked("bad 1".to_string()));
    }
}
