//! What a refresh would do, and why, as lines of an item and a value.

use super::assess::{Assessment, assess};
use super::cost::Estimate;
use super::reason::{explained, mend};
use super::refresh::{ViewRefresh, open_view};
use crate::Result;
use crate::job::environment::Environment;

/// Explains a refresh without running it.
pub async fn explain(
    environment: &Environment,
    request: &ViewRefresh,
) -> Result<Vec<(&'static str, String)>> {
    let (view, definition) = open_view(&environment.database, &request.view).await?;
    let assessment = assess(
        &environment.database,
        &environment.state,
        &view,
        &definition,
        &request.wanted(),
    )
    .await?;
    let (mode, query) = (assessment.mode(), assessment.query());
    let Assessment {
        view: part,
        changes,
        estimates,
        stages,
        functions,
    } = &assessment;
    let mut lines = vec![
        ("materialized view", view.name.clone()),
        ("mode", mode.to_string()),
        (
            "reason",
            match (mode, part.reason.as_str()) {
                ("none", _) => "nothing that it reads has changed".to_string(),
                ("incremental", _) => "only what changed in its sources".to_string(),
                (_, reason) => explained(reason),
            },
        ),
        (
            "classes",
            match query.obstacle.as_str() {
                "" => query.classes().join(", "),
                obstacle => format!("full: {obstacle}"),
            },
        ),
    ];
    if let Some(mend) = mend(&query.obstacle) {
        lines.push(("mend", mend.to_string()));
    }
    let in_full = stages.iter().filter(|(_, stage)| stage.mode == "full");
    if mode != "full" {
        lines.extend(in_full.map(|(_, stage)| ("stage in full", explained(&stage.reason))));
    }
    lines.extend(functions.iter().map(|(name, measured)| {
        let said = match measured {
            Some(found) => format!(
                "{name}: {} seconds a call, from {} calls of job {}",
                rounded(found.seconds_per_call()),
                found.calls,
                found.job
            ),
            None => format!("{name}: no job has measured its calls yet"),
        };
        ("function", said)
    }));
    if !estimates.is_empty() {
        let sum = |cost: fn(&Estimate) -> f64| estimates.iter().map(cost).sum::<f64>().round();
        lines.push(("cost of changes", sum(|part| part.incremental).to_string()));
        lines.push(("cost of all", sum(|part| part.full).to_string()));
    }
    for (change, (source, _)) in changes.iter().zip(query.tables()) {
        lines.push(("source", change.table.clone()));
        lines.push(("columns read", source.columns.join(", ")));
        let versions = match change.from {
            Some(from) => format!("{from} to {}, {} commits", change.to, change.commits),
            None => change.to.to_string(),
        };
        lines.push(("versions", versions));
        let rows = match change.rows {
            Some([inserted, updated, deleted]) => {
                format!("{inserted} inserted, {updated} updated, {deleted} deleted")
            }
            None => "all".to_string(),
        };
        lines.push(("rows", rows));
    }
    Ok(lines)
}

/// Two digits that count.
fn rounded(seconds: f64) -> String {
    let digits = -seconds.abs().max(1e-9).log10().floor() + 1.0;
    format!("{seconds:.*}", digits.max(0.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_two_digits_that_count() {
        let shown = [0.0, 1.26e-7, 0.00123, 0.996, 1.25, 12.3, 345.0].map(rounded);
        let expected = [
            "0.0000000000",
            "0.00000013",
            "0.0012",
            "1.00",
            "1.2",
            "12",
            "345",
        ];
        assert_eq!(shown, expected);
    }
}
