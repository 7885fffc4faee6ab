//! Ctrl-C: ends the statement that runs, not the shell.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle};

/// Exit status of a command that Ctrl-C ended.
pub(super) const EXIT_STATUS: u8 = 130;

/// How long a statement that was told to end is waited for. Only where it waits itself, for
/// a file or another task, does it notice.
const GRACE: Duration = Duration::from_secs(1);

/// Nothing runs.
const IDLE: u8 = 0;
/// A statement runs.
const RUNNING: u8 = 1;
/// A statement has been told to end.
const ENDING: u8 = 2;

/// Listens for Ctrl-C on behalf of the statements that run, one after the other.
///
/// One during a statement ends it; one between two statements of a script ends the process.
#[derive(Debug)]
pub(super) struct Interrupts {
    /// Apart from the one that statements run on: signals and clocks stand still on a runtime
    /// whose workers all compute without a pause.
    runtime: Runtime,
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
    Cancelled {
        /// Whether it is gone; if not, it will be when what it computes comes to a pause.
        gone: bool,
    },
}

impl Interrupts {
    /// Begins to listen. At an `interactive` prompt the editor sees Ctrl-C before this does,
    /// and one that comes just after a statement must not end the shell.
    ///
    /// # Errors
    ///
    /// If the system gives no thread, or no signals.
    pub(super) fn listen(interactive: bool) -> io::Result<Self> {
        let interrupts = Self::deaf()?;
        let listener = Arc::clone(&interrupts.shared);
        // Polled here, so that the handler is there when this returns: an editor puts back,
        // when it ends, the one that it found when it began.
        let mut pressed = Box::pin(tokio::signal::ctrl_c());
        {
            let _runtime = interrupts.runtime.enter();
            if let Some(result) = (&mut pressed).now_or_never() {
                result?;
            }
        }
        interrupts.runtime.spawn(async move {
            while pressed.await.is_ok() {
                if listener.press() == IDLE && !interactive {
                    std::process::exit(i32::from(EXIT_STATUS));
                }
                pressed = Box::pin(tokio::signal::ctrl_c());
            }
        });
        Ok(interrupts)
    }

    fn deaf() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("interrupts")
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            shared: Arc::new(Shared::default()),
        })
    }

    /// Runs `statement` on `runtime` until it ends or is cancelled. Calls `watch` every `interval`
    /// meanwhile, and `cancel` when it is to end.
    pub(super) fn run<T: Send + 'static>(
        &self,
        runtime: &Handle,
        statement: impl Future<Output = T> + Send + 'static,
        interval: Duration,
        watch: impl FnMut(),
        cancel: impl FnOnce(),
    ) -> Ended<T> {
        // A task of its own: it has a worker's stack, and a panic ends only it.
        self.runtime
            .block_on(self.attend(runtime.spawn(statement), interval, watch, cancel))
    }

    async fn attend<T>(
        &self,
        mut task: JoinHandle<T>,
        interval: Duration,
        mut watch: impl FnMut(),
        cancel: impl FnOnce(),
    ) -> Ended<T> {
        // What was meant for the statement before came too late for it.
        let _ = self.shared.pressed.notified().now_or_never();
        self.shared.state.store(RUNNING, Ordering::SeqCst);
        let mut next = tokio::time::Instant::now() + interval;
        let result = loop {
            tokio::select! {
                result = &mut task => break Some(result),
                () = self.shared.pressed.notified() => {
                    cancel();
                    task.abort();
                    break tokio::time::timeout(GRACE, &mut task).await.ok();
                }
                () = tokio::time::sleep_until(next) => {
                    watch();
                    next = tokio::time::Instant::now() + interval;
                }
            }
        };
        let interrupted = self.shared.state.swap(IDLE, Ordering::SeqCst) == ENDING;
        match result {
            None => Ended::Cancelled { gone: false },
            Some(Ok(value)) => Ended::Finished { value, interrupted },
            Some(Err(error)) if error.is_cancelled() => Ended::Cancelled { gone: true },
            Some(Err(error)) => Ended::Panicked(panic_message(error)),
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

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);

    /// Runs `statement` on one worker, and `during` while it runs.
    fn run<T: Send + 'static>(
        interrupts: &Interrupts,
        statement: impl Future<Output = T> + Send + 'static,
        during: impl FnOnce(),
    ) -> Ended<T> {
        let mut during = Some(during);
        let during = || {
            if let Some(during) = during.take() {
                during();
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let ended = interrupts.run(runtime.handle(), statement, SOON, during, || {});
        runtime.shutdown_background();
        ended
    }

    fn finished<T>(value: T) -> Ended<T> {
        let interrupted = false;
        Ended::Finished { value, interrupted }
    }

    #[test]
    fn a_statement_ends_by_itself() {
        let interrupts = Interrupts::deaf().unwrap();
        assert_eq!(run(&interrupts, async { 7 }, || {}), finished(7));
    }

    #[test]
    fn ctrl_c_ends_the_statement_and_drops_what_it_holds() {
        let interrupts = Interrupts::deaf().unwrap();
        let held = Arc::new(());
        let holds = Arc::clone(&held);
        let statement = async move {
            let _holds = holds;
            tokio::time::sleep(NEVER).await;
        };
        let ended = run(&interrupts, statement, || {
            assert_eq!(interrupts.shared.press(), RUNNING);
            assert_eq!(interrupts.shared.press(), ENDING);
        });
        assert_eq!(ended, Ended::Cancelled { gone: true });
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(interrupts.shared.press(), IDLE);
    }

    #[test]
    fn a_statement_that_never_pauses_is_not_waited_for() {
        let interrupts = Interrupts::deaf().unwrap();
        let statement = async { std::thread::sleep(3 * GRACE) };
        let ended = run(&interrupts, statement, || {
            interrupts.shared.press();
        });
        assert_eq!(ended, Ended::Cancelled { gone: false });
        assert_eq!(interrupts.shared.press(), IDLE);
    }

    #[test]
    fn one_that_comes_too_late_does_not_end_the_next_statement() {
        let interrupts = Interrupts::deaf().unwrap();
        let shared = Arc::clone(&interrupts.shared);
        // Whether the end or Ctrl-C is seen first is open; what follows must be untouched.
        run(&interrupts, async move { shared.press() }, || {});
        assert_eq!(run(&interrupts, async { 8 }, || {}), finished(8));
    }

    #[test]
    fn a_panic_is_the_end_of_its_statement_only() {
        let interrupts = Interrupts::deaf().unwrap();
        let ended: Ended<()> = run(&interrupts, async { panic!("bad {}", 1) }, || {});
        assert_eq!(ended, Ended::Panicked("bad 1".to_string()));
    }
}
