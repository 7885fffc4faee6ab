//! The arguments of a run.

use super::Result;

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names of benchmarks, in the order to run them.
    pub names: Vec<String>,
    /// Rows of a table; `None` for each benchmark's own default.
    pub rows: Option<u64>,
    /// Scale of TPC-H's tables; `None` for 1.
    pub scale: Option<f64>,
    /// How often each thing is measured; the best counts.
    pub runs: usize,
}

impl Settings {
    /// Reads the arguments; `None` if the program should only tell how it is used.
    ///
    /// # Errors
    ///
    /// For a name that is not among `known`, and for what is not an option.
    pub fn read(arguments: &[String], known: &[&str]) -> Result<Option<Self>> {
        let mut settings = Self {
            names: Vec::new(),
            rows: None,
            scale: None,
            runs: 5,
        };
        // `cargo bench` says so; `cargo test --benches` does not, and should measure nothing.
        let mut is_bench = false;
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => is_bench = true,
                "--help" | "-h" => return Ok(None),
                "--rows" => settings.rows = Some(number("--rows", arguments.next())?),
                "--scale" => settings.scale = Some(scale(arguments.next())?),
                "--runs" => settings.runs = number("--runs", arguments.next())? as usize,
                name if known.contains(&name) => settings.names.push(name.to_string()),
                other => {
                    let known = known.join(", ");
                    return Err(format!("'{other}' is no benchmark; there are {known}").into());
                }
            }
        }
        if settings.names.is_empty() {
            if !is_bench {
                return Ok(None);
            }
            settings.names = known.iter().map(ToString::to_string).collect();
        }
        Ok(Some(settings))
    }
}

/// A number such as `10000000`, `10_000_000` or `10M`.
fn number(option: &str, value: Option<&String>) -> Result<u64> {
    let text = value.map_or("", String::as_str).replace('_', "");
    let (digits, unit) = match text.strip_suffix(['M', 'm']) {
        Some(digits) => (digits, 1_000_000),
        None => match text.strip_suffix(['K', 'k']) {
            Some(digits) => (digits, 1_000),
            None => (text.as_str(), 1),
        },
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(number) if number > 0 => Ok(number),
        _ => Err(format!("{option} takes a number such as 100000 or 10M, not '{text}'").into()),
    }
}

fn scale(value: Option<&String>) -> Result<f64> {
    match value.and_then(|text| text.parse::<f64>().ok()) {
        // Below, a part of the orders would be empty.
        Some(scale) if (0.001..=1000.0).contains(&scale) => Ok(scale),
        _ => Err("--scale takes a number from 0.001 to 1000".into()),
    }
}
