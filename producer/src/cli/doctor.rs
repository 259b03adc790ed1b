//! `surety doctor`: what is wrong with the servers or the fleet, and how to repair it.

use std::{collections::BTreeSet, time::Duration};

use clap::{Args, ValueEnum};
use serde::Serialize;
use surety_common::{
    doctor::{
        CHECKS, Facts, Finding, Role, Severity,
        facts::{Known, Monitor},
        gather, judge,
    },
    domain::text::nearest,
};

use super::{
    Context,
    failure::{Exit, Failure},
};
use crate::render::{Screen, Tone, printable};

const HELP: &str = "\
Exit codes:
   0  nothing is wrong (notes, and what is not known, do not count)
   1  warnings
  78  something must be fixed
  69  NATS or Redis cannot be reached

docs/operating.md explains every finding.

Example:
  surety doctor
  surety doctor --as worker --monitor http://127.0.0.1:8222 --skip redis_fsync";

/// Check the servers, what is provisioned on them, and the fleet
///
/// Reads only. Each finding says what is so, where, and the command or setting that repairs it. Workers and reapers check
/// the part that could lose jobs at their start, and refuse to.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct DoctorArgs {
    /// Judge as this kind of process: what it may publish to, with its own settings and login
    #[arg(long = "as", value_enum, value_name = "ROLE", default_value_t = As::Operator)]
    role: As,
    /// Monitoring port of the NATS server: tells how often messages reach its disk
    #[arg(long, value_name = "URL")]
    monitor: Option<String>,
    /// Leave out what these checks find, such as `power_loss,redis_fsync`: a risk that is known and taken
    #[arg(long, value_name = "CHECKS", value_delimiter = ',', value_parser = check)]
    skip: Vec<&'static str>,
}

/// The name of a check.
fn check(text: &str) -> Result<&'static str, String> {
    let names = || CHECKS.iter().map(|c| c.name);
    names().find(|n| *n == text).ok_or_else(|| match nearest(text, names()) {
        Some(n) => format!("there is no such check; did you mean {n:?}?"),
        None => "there is no such check; docs/operating.md lists them".to_owned(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum As {
    Operator,
    Worker,
    Reaper,
}

impl From<As> for Role {
    fn from(a: As) -> Self {
        match a {
            As::Operator => Self::Operator,
            As::Worker => Self::Worker,
            As::Reaper => Self::Reaper,
        }
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Report<'a> {
    /// `fine`, `warnings`, `must_fix` or `unreachable`.
    verdict: &'static str,
    /// Number of different checks that this release has.
    checks: usize,
    nats: Option<&'a str>,
    redis: Option<&'a str>,
    /// Live workers.
    workers: Option<usize>,
    findings: &'a [Finding],
}

/// Longest wait for the monitoring port.
const MONITOR_WITHIN: Duration = Duration::from_secs(5);

/// Largest answer of it that is read.
const MONITOR_BYTES: u64 = 4 << 20;

async fn ask_monitor(url: &str) -> Known<Monitor> {
    let (varz, is_local) = (format!("{}/varz", url.trim_end_matches('/')), gather::is_local(url));
    let get = move || -> Result<serde_json::Value, ureq::Error> {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(MONITOR_WITHIN)).build().into();
        agent.get(&varz).call()?.into_body().into_with_config().limit(MONITOR_BYTES).read_json()
    };
    match tokio::task::spawn_blocking(get).await {
        Ok(Ok(answer)) => Monitor::of_varz(&answer, is_local),
        Ok(Err(e)) => Err(format!("{url} does not answer: {e}")),
        Err(e) => Err(e.to_string()),
    }
}

pub(super) async fn run(cx: &Context, args: DoctorArgs) -> Result<(), Failure> {
    let monitor = match &args.monitor {
        Some(url) => Some(ask_monitor(url).await),
        None => None,
    };
    let facts = Box::pin(gather::all(&cx.settings, args.role.into(), monitor)).await;
    let mut findings = judge(&facts);
    findings.retain(|f| !args.skip.contains(&f.check));
    let (verdict, exit) = verdict(&findings);
    let report = Report {
        verdict,
        checks: CHECKS.len(),
        nats: facts.nats.as_ref().ok().map(|n| n.version.as_str()),
        redis: facts.redis.as_ref().and_then(|r| r.as_ref().ok()).and_then(|r| r.version()),
        workers: facts.fleet.as_ref().map(|f| f.fleet.alive().count()),
        findings: &findings,
    };
    cx.screen.show(&report, || text(cx.screen, &facts, &report))?;
    match exit {
        Exit::Fine => Ok(()),
        exit => Err(Failure { exit, text: String::new() }),
    }
}

fn verdict(findings: &[Finding]) -> (&'static str, Exit) {
    let checks: BTreeSet<_> = findings.iter().map(|f| f.check).collect();
    if checks.contains("nats_unreachable") || checks.contains("redis_unreachable") {
        return ("unreachable", Exit::Unreachable);
    }
    match findings.iter().map(|f| f.severity).max() {
        Some(Severity::MustFix) => ("must_fix", Exit::Config),
        Some(Severity::Warning) => ("warnings", Exit::No),
        _ => ("fine", Exit::Fine),
    }
}

fn text(screen: Screen, facts: &Facts, report: &Report<'_>) -> String {
    let mut out = String::new();
    for f in report.findings {
        let tone = match f.severity {
            Severity::MustFix => Tone::Bad,
            Severity::Warning => Tone::Warn,
            Severity::Unknown | Severity::Note => Tone::Live,
        };
        let mark = screen.paint(Some(tone), f.severity.words());
        out += &format!(
            "{mark}  {}: {}\n    {}\n    fix: {}\n",
            f.check,
            printable(&f.place),
            printable(&f.what),
            printable(&f.fix)
        );
    }
    let n = |s| report.findings.iter().filter(|f| f.severity == s).count();
    let s = |n: usize| if n == 1 { "" } else { "s" };
    let server = |name: &str, version: Option<&str>| match version {
        Some(v) => format!("{name} {v}"),
        None => format!("{name} not reached"),
    };
    out += &format!(
        "{}, {}, {} live worker{}: {} to fix, {} warning{}, {} note{}, {} not known",
        server("nats-server", report.nats),
        server("redis", report.redis),
        report.workers.map_or_else(|| "?".into(), |w| w.to_string()),
        s(report.workers.unwrap_or(0)),
        n(Severity::MustFix),
        n(Severity::Warning),
        s(n(Severity::Warning)),
        n(Severity::Note),
        s(n(Severity::Note)),
        n(Severity::Unknown),
    );
    if facts.role != Role::Operator && report.findings.iter().any(|f| f.refuses_start) {
        out += "\nsuch a process would refuse to start";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides_the_exit_code() {
        let f = |check, severity| Finding {
            check,
            severity,
            what: String::new(),
            place: String::new(),
            fix: String::new(),
            refuses_start: false,
        };
        assert_eq!(verdict(&[]), ("fine", Exit::Fine));
        assert_eq!(verdict(&[f("a", Severity::Note), f("b", Severity::Unknown)]), ("fine", Exit::Fine));
        assert_eq!(verdict(&[f("a", Severity::Note), f("b", Severity::Warning)]), ("warnings", Exit::No));
        assert_eq!(verdict(&[f("a", Severity::MustFix), f("b", Severity::Note)]), ("must_fix", Exit::Config));
        let away = f("redis_unreachable", Severity::MustFix);
        assert_eq!(verdict(&[f("a", Severity::MustFix), away]), ("unreachable", Exit::Unreachable));
    }
}
