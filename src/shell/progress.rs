//! A sign of life for statements that take their time.
//!
//! It is drawn on stderr, and only if that is a terminal; elsewhere every call does nothing.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a statement runs before its progress is shown.
pub const DELAY: Duration = Duration::from_millis(500);

const TICK: Duration = Duration::from_millis(120);
const SPINNER: &str = "{spinner} {elapsed} {msg}";
const BAR: &str = "{spinner} {elapsed} [{bar:30}] {percent}% {msg}";

/// The progress of one statement. Clones are the same one.
///
/// Once cleared it stays away, so that nothing is drawn into a result.
#[derive(Clone)]
pub struct Progress {
    state: Option<Arc<Mutex<State>>>,
}

struct State {
    started: Instant,
    bar: Option<ProgressBar>,
    /// Done and in all, and what is being counted.
    measure: Option<(u64, u64, String)>,
    cleared: bool,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

impl Progress {
    /// The progress of a statement that begins now. Nothing is ever drawn if `wanted` is
    /// false, or if stderr is no terminal.
    pub fn new(wanted: bool) -> Self {
        let state = (wanted && io::stderr().is_terminal()).then(|| {
            Arc::new(Mutex::new(State {
                started: Instant::now(),
                bar: None,
                measure: None,
                cleared: false,
            }))
        });
        Self { state }
    }

    /// Says that `done` of `all` is done, and of what: rows, fragments. With `all` 0, which
    /// stands for not known, only the text is shown.
    pub fn report(&self, done: u64, all: u64, what: &str) {
        if let Some(mut state) = self.lock() {
            state.measure = Some((done, all, what.to_string()));
            state.update();
        }
    }

    /// Begins to draw, unless it was cleared.
    pub fn show(&self) {
        if let Some(mut state) = self.lock()
            && !state.cleared
            && state.bar.is_none()
        {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Some(started) = Instant::now().checked_duration_since(state.started) {
                bar.set_elapsed(started);
            }
            bar.enable_steady_tick(TICK);
            state.bar = Some(bar);
            state.update();
        }
    }

    /// Takes it off the screen for good.
    pub fn clear(&self) {
        if let Some(mut state) = self.lock() {
            state.cleared = true;
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state
            .as_ref()
            .map(|state| state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn update(&self) {
        let Some(bar) = &self.bar else { return };
        let (done, all, what) = match &self.measure {
            Some((done, all, what)) => (*done, *all, what.as_str()),
            None => (0, 0, "running"),
        };
        let template = if all > 0 { BAR } else { SPINNER };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if all > 0 {
            bar.set_length(all);
            bar.set_position(done.min(all));
            bar.set_message(format!("{done} of {all} {what}"));
        } else {
            bar.set_message(what.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn() -> Progress {
        Progress {
            state: Some(Arc::new(Mutex::new(State {
                started: Instant::now(),
                bar: Some(ProgressBar::hidden()),
                measure: None,
                cleared: false,
            }))),
        }
    }

    #[test]
    fn an_unwanted_one_takes_every_call() {
        let progress = Progress::new(false);
        progress.show();
        progress.report(1, 2, "rows");
        progress.clear();
        assert!(progress.state.is_none());
    }

    #[test]
    fn a_report_moves_the_bar() {
        let progress = drawn();
        progress.report(3, 10, "fragments");
        let state = progress.lock().unwrap();
        let bar = state.bar.as_ref().unwrap();
        assert_eq!((bar.position(), bar.length()), (3, Some(10)));
        assert_eq!(bar.message(), "3 of 10 fragments");
    }

    #[test]
    fn nothing_is_drawn_after_it_was_cleared() {
        let progress = drawn();
        progress.clone().clear();
        progress.show();
        progress.report(1, 2, "rows");
        assert!(progress.lock().unwrap().bar.is_none());
    }
}
