//! What the demo found, and how it is shown.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::render::facts;

/// What the journal says.
#[derive(Debug, Clone, Default, Serialize, schemars::JsonSchema)]
pub struct Figures {
    pub jobs: usize,
    pub by_type: BTreeMap<&'static str, usize>,
    pub attempts: usize,
    /// Attempts that ended with their worker and were repeated.
    pub lost_attempts: usize,
    /// Progress reports of running attempts.
    pub reports: usize,
    /// Jobs without an outcome.
    pub lost_jobs: usize,
    /// Jobs with more than one outcome.
    pub duplicates: usize,
    /// Jobs with another outcome than `done`.
    pub not_done: usize,
    /// Jobs whose result is not what is true of their file.
    pub wrong_results: usize,
    /// From stored to the first start: time of the stream and time of the store.
    pub wait_p50_ms: Option<u64>,
    pub wait_p99_ms: Option<u64>,
    /// From the first job stored to the last outcome.
    pub seconds: f64,
    pub jobs_per_second: f64,
    /// Empty exactly if everything is proved.
    pub problems: Vec<String>,
}

/// The whole run.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Report {
    pub tree: String,
    #[serde(flatten)]
    pub figures: Figures,
    /// Which worker was killed.
    pub killed: String,
    /// How many jobs had ended then.
    pub killed_after: usize,
    /// Handlers of the killed worker that were running.
    pub handlers_at_kill: usize,
    /// From the kill until no process of that worker was left.
    pub gone_ms: f64,
    /// Processes that outlived their worker, or the demo.
    pub left_behind: usize,
    /// From the start of the servers to the end of the last process.
    pub total_seconds: f64,
}

impl Report {
    /// Whether everything is proved.
    pub fn is_proved(&self) -> bool {
        self.figures.problems.is_empty()
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let f = &self.figures;
        let types: Vec<String> = f.by_type.iter().map(|(t, n)| format!("{n} {t}")).collect();
        let repeated = if f.lost_jobs == 0 { ", each repeated" } else { "" };
        let wait = |w: Option<u64>| w.map(|ms| format!("{:.2} s", ms as f64 / 1000.0));
        facts(&[
            ("files of", Some(self.tree.clone())),
            ("jobs", Some(format!("{} ({})", f.jobs, types.join(", ")))),
            ("attempts", Some(f.attempts.to_string())),
            ("killed", Some(format!("{} after {} jobs, with kill -9", self.killed, self.killed_after))),
            (
                "its handlers",
                Some(format!("{} running, none left after {:.0} ms", self.handlers_at_kill, self.gone_ms))
                    .filter(|_| self.left_behind == 0),
            ),
            ("attempts lost", Some(format!("{}{repeated}", f.lost_attempts))),
            ("jobs lost", Some(f.lost_jobs.to_string())),
            ("duplicates", Some(f.duplicates.to_string())),
            ("not done", Some(f.not_done.to_string())),
            ("wrong digests", Some(f.wrong_results.to_string())),
            ("left behind", Some(format!("{} processes", self.left_behind))),
            ("progress reports", Some(f.reports.to_string())),
            ("wait p50", wait(f.wait_p50_ms)),
            ("wait p99", wait(f.wait_p99_ms)),
            ("jobs per second", Some(format!("{:.0}, over {:.1} s", f.jobs_per_second, f.seconds))),
            ("total", Some(format!("{:.1} s, servers and proof included", self.total_seconds))),
            ("proved", Some(if self.is_proved() { "yes" } else { "NO" }.into())),
        ])
    }
}
