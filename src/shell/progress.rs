//! A sign of life for statements that take their time: how far their job is.
//!
//! It is written to stderr: as a bar if that is a terminal, else as a line every few seconds.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use crate::job::jobs::RunningJob;

/// How often it is brought up to date; and how long a statement runs before it is shown.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(5);

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
    /// Whether it is drawn, or written as lines.
    is_drawn: bool,
    bar: Option<ProgressBar>,
    last_line: Instant,
    cleared: bool,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

impl Progress {
    /// The progress of a statement that begins now. Nothing is ever shown if `wanted` is
    /// false.
    pub fn new(wanted: bool) -> Self {
        let state = wanted.then(|| {
            Arc::new(Mutex::new(State {
                started: Instant::now(),
                is_drawn: io::stderr().is_terminal(),
                bar: None,
                last_line: Instant::now(),
                cleared: false,
            }))
        });
        Self { state }
    }

    /// Shows how far the statement is: its job, if it has one.
    pub fn update(&self, job: Option<&RunningJob>) {
        if let Some(mut state) = self.lock()
            && !state.cleared
        {
            match (state.is_drawn, job) {
                (true, job) => state.draw(job),
                (false, Some(job)) => state.write(job),
                (false, None) => {}
            }
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
    fn draw(&mut self, job: Option<&RunningJob>) {
        let started = self.started;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_elapsed(started.elapsed());
            bar.enable_steady_tick(TICK);
            bar
        });
        let planned = job.map_or(0, |job| job.figures.planned());
        let template = if planned > 0 { BAR } else { SPINNER };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        match job {
            Some(job) if planned > 0 => {
                bar.set_length(planned);
                bar.set_position(job.figures.done().min(planned));
                bar.set_message(describe(job));
            }
            Some(job) if job.figures.rows_computed > 0 => bar.set_message(describe(job)),
            _ => bar.set_message("running"),
        }
    }

    fn write(&mut self, job: &RunningJob) {
        if self.last_line.elapsed() < LINES {
            return;
        }
        self.last_line = Instant::now();
        let percent = match job.figures.planned() {
            0 => 0,
            planned => (job.figures.done().min(planned) * 100) / planned,
        };
        let elapsed = job.elapsed.as_secs();
        say(&format!(
            "job {}: {percent}% after {elapsed} s, {}",
            job.id,
            describe(job)
        ));
    }
}

/// Rows, rows a second, fragments, and how long it will take from here.
fn describe(job: &RunningJob) -> String {
    let figures = &job.figures;
    let seconds = job.elapsed.as_secs_f64().max(1e-3);
    if figures.are_of_view() {
        let written = figures.rows_computed + figures.rows_reused;
        if figures.planned() + written == 0 {
            return "running".to_string();
        }
        return format!(
            "{} of {} source rows read, {} rows written, {} rows/s",
            HumanCount(job.figures.done()),
            HumanCount(figures.planned()),
            HumanCount(written),
            HumanCount((written as f64 / seconds) as u64),
        );
    }
    let rate = figures.rows_computed as f64 / seconds;
    let left = figures.rows_planned.saturating_sub(job.figures.done());
    let mut text = format!(
        "{} of {} rows, {} rows/s, {} of {} fragments",
        HumanCount(job.figures.done()),
        HumanCount(figures.rows_planned),
        HumanCount(rate as u64),
        figures.fragments_written,
        figures.fragments_planned,
    );
    if left == 0 {
        text += ", writing";
    } else if rate > 0.0 {
        let eta = Duration::try_from_secs_f64(left as f64 / rate).unwrap_or(Duration::MAX);
        text += &format!(", {} left", HumanDuration(eta));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::counters::Figures;

    fn job() -> RunningJob {
        RunningJob {
            id: "1".to_string(),
            statement: String::new(),
            elapsed: Duration::from_secs(10),
            figures: Figures {
                rows_planned: 10_000,
                rows_computed: 2_000,
                rows_reused: 600,
                fragments_planned: 4,
                fragments_written: 1,
                ..Figures::default()
            },
        }
    }

    fn drawn() -> Progress {
        Progress {
            state: Some(Arc::new(Mutex::new(State {
                started: Instant::now(),
                is_drawn: true,
                bar: Some(ProgressBar::hidden()),
                last_line: Instant::now(),
                cleared: false,
            }))),
        }
    }

    #[test]
    fn an_unwanted_one_takes_every_call() {
        let progress = Progress::new(false);
        progress.update(Some(&job()));
        progress.clear();
        assert!(progress.state.is_none());
    }

    #[test]
    fn an_update_moves_the_bar() {
        let progress = drawn();
        progress.update(Some(&job()));
        let state = progress.lock().unwrap();
        let bar = state.bar.as_ref().unwrap();
        assert_eq!((bar.position(), bar.length()), (2_600, Some(10_000)));
        assert_eq!(
            bar.message(),
            "2,600 of 10,000 rows, 200 rows/s, 1 of 4 fragments, 37 seconds left"
        );
    }

    #[test]
    fn a_view_is_as_far_as_its_sources_are_read() {
        let mut job = job();
        job.figures = Figures {
            source_rows: 4_000,
            source_rows_read: 1_000,
            rows_computed: 50,
            rows_reused: 50,
            ..Figures::default()
        };
        let progress = drawn();
        progress.update(Some(&job));
        let state = progress.lock().unwrap();
        let bar = state.bar.as_ref().unwrap();
        assert_eq!((bar.position(), bar.length()), (1_000, Some(4_000)));
        assert_eq!(
            bar.message(),
            "1,000 of 4,000 source rows read, 100 rows written, 10 rows/s"
        );
    }

    #[test]
    fn nothing_is_drawn_after_it_was_cleared() {
        let progress = drawn();
        progress.clone().clear();
        progress.update(Some(&job()));
        assert!(progress.lock().unwrap().bar.is_none());
    }
}
