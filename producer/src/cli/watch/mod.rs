//! `surety watch`: the journal as it grows.

pub(super) mod batch;
mod line;
mod tally;

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use clap::{Args, builder::PossibleValuesParser};
use surety_common::{
    broker::follow::{From, News, Part},
    clock::{format_span, parse_span},
    domain::{BatchId, EventKind, JobId, QueueName, TypeName},
    wire::event::Event,
};

use super::{Context, enqueue::undeclared, failure::Failure};
use line::Lines;

/// Watch the journal live
///
/// Shows what happens to jobs, from now on or --since, until Ctrl-C (exit code 130). Options of one sort are alternatives,
/// those of different sorts must all hold. An outage of NATS is said once; afterwards it goes on where it was, without gaps
/// or repeats. --json writes one event a line (schema/event.json).
///
/// With --batch it follows all jobs of a batch to their ends, then says how they ended; exit code 1 unless all are done.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety watch --queue default --kind attempt_failed --kind lost\n  \
                        surety watch --since 10m --kind finished --json | jq .data.receipt\n  \
                        surety watch --batch import-7")]
pub(super) struct WatchArgs {
    /// Of this queue only; may be repeated
    #[arg(long, value_name = "NAME")]
    queue: Vec<QueueName>,
    /// Of this type only; may be repeated
    #[arg(long = "type", value_name = "NAME")]
    types: Vec<TypeName>,
    /// Of jobs with this key only; may be repeated
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// Of this kind only; may be repeated
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    kind: Vec<String>,
    /// Of this job only; may be repeated
    #[arg(long, value_name = "ID")]
    job: Vec<JobId>,
    /// Begin this long ago, by the clock of NATS [default: now]
    #[arg(long, value_name = "DURATION", value_parser = parse_span)]
    since: Option<Duration>,
    /// Follow the jobs that `surety batch --batch-id NAME` enqueued, instead
    #[arg(long, value_name = "NAME", conflicts_with_all = ["queue", "types", "key", "kind", "job", "since"])]
    batch: Option<BatchId>,
}

fn kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(EventKind::ALL.iter().map(|k| k.name()))
}

impl WatchArgs {
    fn wants(&self, e: &Event) -> bool {
        fn any<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(is)
        }
        any(&self.queue, |q| q.as_str() == e.queue)
            && any(&self.types, |t| t.as_str() == e.job_type)
            && any(&self.key, |k| Some(k) == e.key.as_ref())
            && any(&self.kind, |k| *k == e.kind)
            && any(&self.job, |j| j.as_str() == e.job)
    }

    /// The part of the journal that can hold what is wanted.
    fn part(&self) -> Part {
        let n_ended = self.kind.iter().filter(|k| *k == EventKind::Finished.name()).count();
        match n_ended {
            0 if self.kind.is_empty() => Part::All,
            0 => Part::Open,
            n if n == self.kind.len() => Part::Ended,
            _ => Part::All,
        }
    }
}

/// Knows events that came before: an entry may stand in the journal twice, when it was relayed after the broker forgot it.
pub(super) struct Once {
    known: HashSet<(String, u64)>,
    order: VecDeque<(String, u64)>,
}

/// Events that are remembered.
const REMEMBERED: usize = 64 * 1024;

impl Once {
    pub(super) fn new() -> Self {
        Self { known: HashSet::new(), order: VecDeque::new() }
    }

    pub(super) fn is_new(&mut self, e: &Event) -> bool {
        let name = (e.job.clone(), e.rev);
        if !self.known.insert(name.clone()) {
            return false;
        }
        self.order.push_back(name);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

pub(super) async fn run(cx: &Context, args: WatchArgs) -> Result<(), Failure> {
    let client = cx.client().await?;
    let broker = client.broker();
    if let Some(batch) = &args.batch {
        return batch::run(cx.screen, broker, batch).await;
    }
    let declared = broker.found().await?.queues;
    if let Some(unknown) = args.queue.iter().find(|q| !declared.contains(q)) {
        return Err(undeclared(unknown, &declared));
    }
    let from = args.since.map_or(From::Now, From::Ago);
    let mut follow = broker.follow(&args.queue, args.part(), from).await?;
    let since =
        args.since.map_or_else(|| "from now on".to_owned(), |s| format!("since {} ago", format_span(s)));
    cx.screen.note(&format!("watching the journal {since}; Ctrl-C ends"));
    let (mut once, mut lines) = (Once::new(), Lines::new(cx.screen));
    let mut gone = std::pin::pin!(cx.screen.reader_gone());
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let news = tokio::select! {
            biased;
            _ = &mut interrupt => return Err(Failure::interrupted()),
            () = &mut gone => return Ok(()),
            news = follow.news() => news,
        };
        match news {
            News::Events(events) => {
                let wanted = events.iter().filter(|e| args.wants(e) && once.is_new(e));
                lines.write(wanted)?;
            }
            News::Lost(e) => cx.screen.note(&lost(&e)),
            News::Back => cx.screen.note("NATS is back"),
        }
    }
}

/// What is said of an outage.
pub(super) fn lost(e: &surety_common::broker::BrokerError) -> String {
    format!("{e}; going on when it is back")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        watch: WatchArgs,
    }

    fn args(line: &str) -> WatchArgs {
        Line::try_parse_from(std::iter::once("watch").chain(line.split_whitespace())).unwrap().watch
    }

    fn event(kind: &str, queue: &str, key: Option<&str>) -> Event {
        serde_json::from_value(serde_json::json!({
            "v": 1, "job": "a", "gen": 1, "rev": 1, "kind": kind, "at": "2026-11-21T08:00:00.123Z", "queue": queue,
            "type": "t", "key": key, "status": "running", "contract": "acked", "attempt": 1, "epoch": 1,
        }))
        .unwrap()
    }

    #[test]
    fn filters_of_one_sort_are_alternatives_and_sorts_add_up() {
        let a = args("--queue default --queue critical --kind lost --key k");
        assert!(a.wants(&event("lost", "critical", Some("k"))));
        assert!(!a.wants(&event("lost", "slow", Some("k"))));
        assert!(!a.wants(&event("started", "default", Some("k"))));
        assert!(!a.wants(&event("lost", "default", None)));
        assert!(args("").wants(&event("of_tomorrow", "default", None)));
        assert!(!args("--type other").wants(&event("lost", "default", None)));
        assert!(!args("--job b").wants(&event("lost", "default", None)));
    }

    #[test]
    fn the_server_leaves_out_what_no_filter_can_want() {
        assert_eq!(args("").part(), Part::All);
        assert_eq!(args("--kind finished").part(), Part::Ended);
        assert_eq!(args("--kind started --kind lost").part(), Part::Open);
        assert_eq!(args("--kind finished --kind lost").part(), Part::All);
    }

    #[test]
    fn a_copy_is_noticed_and_memory_is_bounded() {
        let mut once = Once::new();
        let mut e = event("started", "default", None);
        assert!(once.is_new(&e) && !once.is_new(&e));
        for rev in 2..=(REMEMBERED as u64 + 1) {
            e.rev = rev;
            assert!(once.is_new(&e));
        }
        assert_eq!((once.known.len(), once.order.len()), (REMEMBERED, REMEMBERED));
    }
}
