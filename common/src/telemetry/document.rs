//! `docs/metrics.md`: what a person wrote about metrics, health and logs, and the tables of metrics, generated.

use std::fmt::Write;

use super::metrics::table;

/// The text above the tables.
const INTRODUCTION: &str = include_str!("document.txt");

/// The text of `docs/metrics.md`.
pub fn markdown() -> String {
    let mut out = INTRODUCTION.to_owned();
    let mut programs = "";
    for d in table() {
        if d.programs != programs {
            programs = d.programs;
            let head = "| Name | Kind | Labels | Meaning |\n|---|---|---|---|";
            // Writing to a string cannot fail.
            if writeln!(out, "\n### {programs}\n\n{head}").is_err() {
                return out;
            }
        }
        let labels: Vec<_> = d.labels.iter().map(|l| format!("`{l}`")).collect();
        if writeln!(out, "| `{}` | {} | {} | {} |", d.name, d.kind, labels.join(" "), d.meaning.trim())
            .is_err()
        {
            return out;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::telemetry::metrics;

    // `UPDATE=1 cargo test -p surety-common metrics_doc` rewrites the file.
    #[test]
    fn metrics_doc_matches_the_metrics() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let want = markdown();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &want).unwrap();
        }
        let have = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(have, want, "docs/metrics.md is not what the metrics say; run `make docs`");
    }

    // Shows: O-03
    #[test]
    fn every_metric_is_named_as_prometheus_wants_it_and_can_be_registered() {
        // Each group registers all of its metrics, or panics.
        metrics::shared();
        metrics::worker();
        metrics::reaper();
        let mut names = BTreeSet::new();
        for d in table() {
            assert!(d.name.starts_with("surety_") && names.insert(d.name), "{}", d.name);
            assert!(!d.meaning.trim().is_empty() && d.meaning.trim().ends_with('.'), "{}", d.name);
            assert_eq!(d.name.ends_with("_total"), d.kind == "counter", "{}", d.name);
            assert_eq!(d.buckets.is_some(), d.kind == "histogram", "{}", d.name);
            assert!(d.kind != "histogram" || d.name.ends_with("_seconds"), "{}", d.name);
            for unit in ["_ms", "_millis", "_kb", "_minutes"] {
                assert!(!d.name.contains(unit), "{}: not a base unit", d.name);
            }
        }
        assert!(names.len() > 25, "{} metrics", names.len());
    }
}
