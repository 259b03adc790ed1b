//! What is wrong with the servers, with what is provisioned on them, or with the fleet, and how to repair it.
//!
//! [`gather`] asks the servers and returns [`Facts`]; [`judge`] is a plain function from facts to findings, one file for
//! each subject. A worker and a reaper judge the short form of it at their start ([`crate::connect`]) and refuse what would
//! lose jobs; `surety doctor` judges everything. Deliberately absent: repairing anything.

mod checks;
mod consumers;
pub mod facts;
mod fleet;
pub mod gather;
mod layout;
mod monitor;
mod permissions;
mod redis;
mod servers;
mod streams;
#[cfg(test)]
mod tests;

pub use checks::{CHECKS, Check};
pub use facts::{Facts, Role};
use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Could not be found out from here.
    Unknown,
    /// Will hurt some day, or costs something now.
    Warning,
    /// Loses jobs, or stops them.
    MustFix,
}

impl Severity {
    /// In plain words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::MustFix => "must fix",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Finding {
    /// Name of the check, as [`CHECKS`] and `docs/operating.md` have it.
    pub check: &'static str,
    pub severity: Severity,
    /// What is so, and what follows from it.
    pub what: String,
    /// Server, stream, consumer or queue.
    #[serde(rename = "where")]
    pub place: String,
    /// A command or a setting to apply.
    pub fix: String,
    /// A worker or reaper that meets it does not start.
    pub refuses_start: bool,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.what, self.fix)
    }
}

/// Judges: everything that the facts show, the worst first.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut out = Vec::new();
    match &facts.nats {
        Ok(nats) => {
            servers::nats(nats, &mut out);
            streams::judge(facts, nats, &mut out);
            consumers::judge(facts, nats, &mut out);
            permissions::judge(nats, &mut out);
        }
        Err(why) => out.push(checks::NATS_UNREACHABLE.must_fix(
            "nats",
            why,
            "check --nats (NATS_URL), the login, and that the server runs",
        )),
    }
    match &facts.redis {
        Some(Ok(found)) => redis::judge(&facts.settings, found, &mut out),
        Some(Err(why)) => out.push(checks::REDIS_UNREACHABLE.must_fix(
            "redis",
            why,
            "check --redis (REDIS_URL), the login, and that the server runs",
        )),
        None => {}
    }
    if let Some(fleet) = &facts.fleet {
        fleet::judge(facts, fleet, &mut out);
    }
    out.sort_by_key(|f| std::cmp::Reverse(f.severity));
    out
}

/// What of a Redis makes a process refuse to start, one line each.
pub fn redis_refusals(settings: &crate::config::Settings, facts: &facts::RedisFacts) -> Vec<String> {
    let mut out = Vec::new();
    redis::judge(settings, facts, &mut out);
    refusals(&out)
}

/// What makes a process refuse to start, one line each.
pub fn refusals(findings: &[Finding]) -> Vec<String> {
    findings.iter().filter(|f| f.refuses_start).map(ToString::to_string).collect()
}
