//! What a rule did, counted.

use std::time::Instant;

use prometheus::{Gauge, Histogram, IntCounter};
use surety_common::{
    clock::wall_now,
    telemetry::metrics::{reaper, since},
};
use tokio::time::error::Elapsed;

use crate::rule::{Done, RuleError};

/// The series of one rule.
pub(crate) struct Meter {
    acted: IntCounter,
    ok: IntCounter,
    failed: IntCounter,
    timed_out: IntCounter,
    length: Histogram,
    last: Gauge,
}

impl Meter {
    /// All of them at zero from now on.
    pub(crate) fn of(rule: &str) -> Self {
        let m = reaper();
        let steps = |result| m.steps.with_label_values(&[rule, result]);
        Self {
            acted: m.actions.with_label_values(&[rule]),
            ok: steps("ok"),
            failed: steps("failed"),
            timed_out: steps("timed_out"),
            length: m.step.with_label_values(&[rule]),
            last: m.last_step.with_label_values(&[rule]),
        }
    }

    pub(crate) fn step(&self, started: Instant, step: &Result<Result<Done, RuleError>, Elapsed>) {
        since(&self.length, started);
        match step {
            Ok(Ok(done)) => {
                self.ok.inc();
                self.acted.inc_by(done.acted as u64);
                self.last.set(wall_now().as_millisecond() as f64 / 1000.0);
            }
            Ok(Err(_)) => self.failed.inc(),
            Err(_) => self.timed_out.inc(),
        }
    }
}
