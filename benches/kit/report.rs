//! A benchmark's result as Markdown.

use std::fmt::{self, Display};
use std::time::Duration;

use super::Best;

/// What a benchmark found.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    /// What is measured, and against what.
    about: String,
    rows: Vec<[String; 5]>,
}

impl Report {
    /// A report without rows. `about` says what floor and ours are.
    pub fn new(name: &'static str, about: impl Into<String>) -> Self {
        Self {
            name,
            about: about.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of two times. `goal` is what the ratio, or ours, should be.
    pub fn time(&mut self, what: impl Display, best: Best, goal: impl Display) {
        let ratio = best.ours.as_secs_f64() / best.floor.as_secs_f64();
        self.row(
            what,
            milliseconds(best.floor),
            milliseconds(best.ours),
            format!("{ratio:.2}"),
            goal,
        );
    }

    /// Adds a row.
    pub fn row(
        &mut self,
        what: impl Display,
        floor: impl Display,
        ours: impl Display,
        ratio: impl Display,
        goal: impl Display,
    ) {
        let row = [
            what.to_string(),
            floor.to_string(),
            ours.to_string(),
            ratio.to_string(),
            goal.to_string(),
        ];
        // The table is printed when it is whole, which may take long.
        eprintln!("{}", row.join(" | "));
        self.rows.push(row);
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n\n{}\n", self.name, self.about)?;
        writeln!(f, "| what | floor | ours | ratio | goal |")?;
        writeln!(f, "|---|---:|---:|---:|---|")?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        Ok(())
    }
}

/// A time in milliseconds.
pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
