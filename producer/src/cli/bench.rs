//! `surety bench`.

use clap::Args;

use super::{Context, failure::Failure};
use crate::bench::{Plan, bench, guards, open_records};

/// Measure what the promises cost, against the plain broker, on private servers
///
/// Each round starts fresh servers and measures: plain publish and plain pull-and-ack, enqueue, no-op jobs with every promise
/// on, command jobs against a bare spawn, and the time from enqueue to start on an idle worker. Rates depend on the machine;
/// the ratios are what to compare.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety bench --rounds 3 --json")]
pub(super) struct BenchArgs {
    /// Jobs of each rate measurement
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    jobs: u32,
    /// Commands of the command measurement
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    commands: u32,
    /// Jobs of the latency measurement
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    starts: u32,
    /// Rounds, of which the best is reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Slots of the worker that runs the no-op jobs
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    slots: u32,
    /// Instead of all that: what so many open jobs cost while 100 of them come due each second
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1_000..=2_000_000))]
    open: Vec<u32>,
    /// Instead of all that: what guards cost, and a key that so many jobs wait for
    #[arg(long, value_name = "N", conflicts_with = "open", value_parser = clap::value_parser!(u32).range(100..=200_000))]
    guards: Option<u32>,
}

pub(super) async fn run(cx: &Context, a: BenchArgs) -> Result<(), Failure> {
    if !a.open.is_empty() {
        let report = Box::pin(open_records(&a.open, &|line| cx.screen.note(line)))
            .await
            .map_err(|e| Failure::no(e.to_string()))?;
        return cx.screen.show(&report, || report.table());
    }
    let plan = Plan {
        jobs: a.jobs as usize,
        commands: a.commands as usize,
        starts: a.starts as usize,
        rounds: a.rounds as usize,
        slots: a.slots as usize,
    };
    let screen = cx.screen;
    if let Some(crowd) = a.guards {
        let report = Box::pin(guards(&plan, crowd as usize, &|line| screen.note(line)))
            .await
            .map_err(|e| Failure::no(e.to_string()))?;
        return screen.show(&report, || report.table());
    }
    let report =
        Box::pin(bench(&plan, &|line| screen.note(line))).await.map_err(|e| Failure::no(e.to_string()))?;
    screen.show(&report, || report.table())
}
