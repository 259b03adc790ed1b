//! `surety schedule next`.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use surety_common::{
    clock::{parse_time, wall_now},
    domain::{QueueName, schedule::When},
};

use super::{find, json_times, server_now, time};
use crate::cli::{Context, failure::Failure};

/// Show when a schedule fires next
///
/// Of a schedule that exists, or of a cron expression before there is one: then no server is asked.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety schedule next nightly\n  \
                        surety schedule next --cron '0 30 9 * * MON-FRI' --zone Europe/Vienna -n 3")]
pub(super) struct NextArgs {
    /// Name of a schedule
    #[arg(value_name = "NAME", required_unless_present = "cron", conflicts_with = "cron")]
    name: Option<String>,
    /// A cron expression instead
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// IANA name of the time zone of --cron [default: UTC]
    #[arg(long, value_name = "ZONE", conflicts_with = "name")]
    zone: Option<String>,
    /// Its queue, where several have one of this name
    #[arg(long, value_name = "NAME", conflicts_with = "cron")]
    queue: Option<QueueName>,
    /// Firings to show, at most 1000
    #[arg(short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    n: u16,
    /// From this time on instead of now
    #[arg(long, value_name = "RFC3339", value_parser = parse_time)]
    from: Option<Timestamp>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Answer {
    /// The firings, in order.
    next: Vec<String>,
}

pub(super) async fn run(cx: &Context, args: NextArgs) -> Result<(), Failure> {
    let n = usize::from(args.n);
    let (when, next) = match (&args.cron, &args.name) {
        (Some(text), _) => {
            let when = When::cron(text, args.zone.as_deref()).map_err(|e| Failure::input(e.to_string()))?;
            let from = args.from.unwrap_or_else(wall_now);
            let next = when.next(from, from, n);
            (when, next)
        }
        (None, Some(name)) => {
            let client = cx.client().await?;
            let s = find(client.broker(), name, args.queue.as_ref()).await?;
            let from = match args.from {
                Some(t) => t,
                None => server_now(client.broker()).await?,
            };
            let next = s.next(from, n);
            let when =
                s.when.map_err(|e| Failure::no(format!("this release cannot read the schedule: {e}")))?;
            (when, next)
        }
        (None, None) => return Err(Failure::bug("neither a name nor an expression was given")),
    };
    if next.is_empty() {
        return Err(Failure::no(format!("{} has no firing after that", when.pattern())));
    }
    cx.screen.show(&Answer { next: json_times(&next) }, || {
        next.iter().map(|t| time(*t, &when)).collect::<Vec<_>>().join("\n")
    })
}
