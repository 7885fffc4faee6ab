//! Takes out of text what differs from run to run.

use regex::Regex;

use crate::harness::Failure;
use crate::harness::database::Place;

/// What to look for and what to write instead.
pub struct Normalizer {
    always: Vec<(Regex, String)>,
    plans: Vec<(Regex, String)>,
}

impl Normalizer {
    /// Writes the folders of `place` as `$DB`, `$TMP` and `$DATA`, identifiers as `<uuid>`,
    /// data files as `<file>.lance`, jobs as `<job>`; in plans also times as `<time>`, sizes as `<size>`
    /// and metrics as `<metrics>`.
    pub fn new(place: &Place) -> Result<Self, Failure> {
        let mut always = Vec::new();
        for (name, path) in place.folders() {
            // Object stores write paths without the slash that they begin with.
            let path = regex::escape(path.display().to_string().trim_start_matches('/'));
            always.push((format!("(file://)?/?{path}"), format!("$${name}")));
        }
        always.extend(
            [
                (r"\b[01]{24}[0-9a-f]{26}\.lance\b", "<file>.lance"),
                (
                    r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
                    "<uuid>",
                ),
                (r"\b[0-9]{8}-[0-9]{9}-[0-9a-f]{8}\b", "<job>"),
            ]
            .map(|(pattern, text)| (pattern.to_string(), text.to_string())),
        );
        let plans = [
            (r"metrics=\[[^\]]*\]", "metrics=[<metrics>]"),
            (r"\b\d+(\.\d+)?\s?(ns|µs|us|ms|s)\b", "<time>"),
            (r"\b\d+(\.\d+)?\s?([KMG]i?)?B\b", "<size>"),
            (r"\b\d+(\.\d+)?\s?bytes\b", "<size>"),
        ]
        .map(|(pattern, text)| (pattern.to_string(), text.to_string()));
        Ok(Self {
            always: compile(always)?,
            plans: compile(plans)?,
        })
    }

    /// The text without what differs from run to run.
    pub fn normalize(&self, text: &str, is_plan: bool) -> String {
        let plans = self.plans.iter().filter(|_| is_plan);
        self.always
            .iter()
            .chain(plans)
            .fold(text.to_string(), |text, (pattern, instead)| {
                pattern.replace_all(&text, instead).into_owned()
            })
    }
}

fn compile(
    rules: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(Regex, String)>, Failure> {
    rules
        .into_iter()
        .map(|(pattern, text)| Ok((Regex::new(&pattern).map_err(Failure::new)?, text)))
        .collect()
}
