//! `make chaos`: a run under random faults. `SEED`, `DURATION` (`10m`) and `WIPE` (`0`: Redis keeps its data) come from the
//! environment.
#![allow(clippy::disallowed_methods, reason = "a test's switches, and a seed")]

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use surety_common::clock::parse_span;
use surety_tests::chaos::{self, schedule::Plan};

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

#[tokio::main]
async fn main() -> ExitCode {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos());
    let seed = env("SEED").map_or(nanos as u64 % 1_000_000, |s| s.parse().expect("SEED is a number"));
    let duration = env("DURATION")
        .map_or(Duration::from_secs(600), |d| parse_span(&d).expect("DURATION is a span, such as 10m"));
    let may_wipe = env("WIPE").is_none_or(|w| w != "0");
    let plan = Plan { may_wipe, ..Plan::new(seed, duration, chaos::TTL) };
    eprintln!("SEED={seed} DURATION={}s: {} faults", duration.as_secs(), plan.steps().len());
    let report = chaos::run(&plan, true).await;
    println!("{}", report.summary());
    if report.problems.is_empty() {
        println!("every promise was kept (SEED={seed})");
        return ExitCode::SUCCESS;
    }
    println!("{}\n{} problems with SEED={seed}", report.story, report.problems.len());
    ExitCode::FAILURE
}
