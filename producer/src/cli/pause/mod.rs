//! `surety pause` and `surety resume`: hold the starts of a queue, a type or a key, and let them go again.

mod author;
pub(super) mod list;
pub(super) mod resume;

use std::time::Duration;

use clap::{ArgGroup, Args};
use jiff::Timestamp;
use serde::Serialize;
use surety_common::{
    broker::Broker,
    clock::{iso_millis, parse_span, parse_time},
    domain::{
        QueueName, TypeName,
        pause::{AUTHOR_CAP, Pause, REASON_CAP, Target},
    },
    wire::pause::PauseDocument,
};

use super::{Context, enqueue::undeclared, failure::Failure, workers::span};

/// Hold the starts of a queue, of a type, or of all jobs with a key
///
/// What runs goes on; nothing more is started, on any worker, until `surety resume`, or until the end that --for or --until
/// names. Enqueueing goes on, deadlines too: a job that is held past its `expires_at` or its finish deadline ends by them. A
/// pause is kept by NATS: it outlives the restart of every process, and the loss of everything in Redis. To pause again replaces
/// reason, author and end.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true).args(["queue", "kind", "key", "list"]),
    after_help = "\
Example:
  surety pause default --reason 'database moves' --for 2h
  surety pause --type thumbnail --until 2027-01-01T06:00:00Z
  surety pause --key acme/site
  surety pause --list

Exit codes: 0 paused; 2 bad arguments, an unknown queue, or an end that is not ahead."
)]
pub(super) struct PauseArgs {
    /// A declared queue
    #[arg(value_name = "QUEUE")]
    queue: Option<QueueName>,
    /// All jobs of a type, in every queue
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<TypeName>,
    /// All jobs with this key, in every queue and of every type
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Show what is paused, and change nothing
    #[arg(long, conflicts_with_all = ["reason", "span", "until", "by"])]
    list: bool,
    /// Why, for whoever asks
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// End by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_span, conflicts_with = "until")]
    span: Option<Duration>,
    /// End by itself at this time
    #[arg(long, value_name = "RFC3339", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Who pauses it [default: user@host]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// A pause, as people and programs are shown it.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct Shown {
    #[serde(flatten)]
    pause: PauseDocument,
    /// How much longer it holds, where it has an end.
    left_ms: Option<u64>,
}

impl Shown {
    pub(super) fn of(pause: &Pause, now_ms: u64) -> Self {
        Self {
            pause: PauseDocument::from(pause),
            left_ms: pause.until_ms.map(|end| end.saturating_sub(now_ms)),
        }
    }

    /// `for another 2h 0m (until 2027-01-01T06:00:00Z)`, or `until it is resumed`.
    fn end(&self) -> String {
        match (self.left_ms, &self.pause.until) {
            (Some(ms), Some(until)) => format!("for another {} (until {until})", span(ms)),
            _ => "until it is resumed".to_owned(),
        }
    }

    /// `by ann@host: database moves`.
    pub(super) fn whose(&self) -> String {
        let reason = self.pause.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
        format!("by {}{reason}", self.pause.by)
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    paused: Shown,
    /// The pause that was there before, and is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Shown>,
}

pub(super) async fn run(cx: &Context, args: PauseArgs) -> Result<(), Failure> {
    let client = cx.client().await?;
    let broker = client.broker();
    if args.list {
        return list::run(cx, broker).await;
    }
    let target = target(broker, args.queue, args.kind, args.key).await?;
    let now_ms = broker.now_ms().await?;
    let pause = Pause {
        target,
        reason: text("--reason", args.reason, REASON_CAP)?,
        by: text("--by", args.by, AUTHOR_CAP)?.unwrap_or_else(author::who),
        at_ms: now_ms,
        until_ms: end(now_ms, args.span, args.until)?,
    };
    let replaced = broker.pause(client.publisher(), &pause).await?;
    let answer = Answer {
        paused: Shown::of(&pause, now_ms),
        replaced: replaced.as_ref().map(|p| Shown::of(p, now_ms)),
    };
    cx.screen.show(&answer, || {
        let before =
            answer.replaced.as_ref().map_or_else(String::new, |r| format!("; it was, {}", r.whose()));
        format!("{} is paused {}{before}", pause.target, answer.paused.end())
    })
}

/// What is named: one of the three.
async fn target(
    broker: &Broker,
    queue: Option<QueueName>,
    kind: Option<TypeName>,
    key: Option<String>,
) -> Result<Target, Failure> {
    match (queue, kind, key) {
        (Some(queue), None, None) => {
            let declared = broker.found().await?.queues;
            if declared.contains(&queue) {
                Ok(Target::Queue(queue))
            } else {
                Err(undeclared(&queue, &declared))
            }
        }
        (None, Some(kind), None) => Ok(Target::Type(kind)),
        (None, None, Some(key)) => Target::key(&key).map_err(|e| Failure::input(format!("--key: {e}"))),
        _ => Err(Failure::input("name one of QUEUE, --type and --key")),
    }
}

/// When a pause ends by itself (milliseconds of the broker's clock).
fn end(now_ms: u64, span: Option<Duration>, until: Option<Timestamp>) -> Result<Option<u64>, Failure> {
    let at = match (span, until) {
        (Some(span), _) => now_ms.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        (None, Some(t)) => u64::try_from(t.as_millisecond()).unwrap_or(0),
        (None, None) => return Ok(None),
    };
    match iso_millis(at) {
        Some(_) if at > now_ms => Ok(Some(at)),
        Some(at) => Err(Failure::input(format!(
            "the pause would end at {at}, which is not ahead: name a later end, or none"
        ))),
        None => Err(Failure::input("the pause would end too far ahead: leave its end out")),
    }
}

/// A text of an argument: trimmed, of a bounded length; `None` where nothing is left.
fn text(argument: &str, given: Option<String>, most: usize) -> Result<Option<String>, Failure> {
    let given = given.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    match given {
        Some(t) if t.len() > most => {
            Err(Failure::input(format!("{argument} has {} bytes; at most {most} are kept", t.len())))
        }
        given => Ok(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_ahead_or_refused() {
        let at = |ms: i64| Some(Timestamp::from_millisecond(ms).unwrap());
        assert_eq!(end(1000, None, None).unwrap(), None);
        assert_eq!(end(1000, Some(Duration::from_secs(2)), None).unwrap(), Some(3000));
        assert_eq!(end(1000, None, at(1001)).unwrap(), Some(1001));
        for bad in [
            end(1000, Some(Duration::ZERO), None),
            end(1000, None, at(1000)),
            end(1000, None, at(-5)),
            end(1000, Some(Duration::MAX), None),
        ] {
            let text = bad.unwrap_err().text;
            assert!(text.contains("ahead"), "{text}");
        }
    }

    #[test]
    fn texts_are_bounded_and_empty_ones_left_out() {
        assert_eq!(text("--by", Some("  ".into()), 4).unwrap(), None);
        assert_eq!(text("--by", Some(" ann ".into()), 4).unwrap().as_deref(), Some("ann"));
        assert!(text("--by", Some("annabel".into()), 4).unwrap_err().text.contains("at most 4"));
    }
}
