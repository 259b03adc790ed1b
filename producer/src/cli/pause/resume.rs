//! `surety resume`.

use clap::{ArgGroup, Args};
use serde::Serialize;
use surety_common::domain::{QueueName, TypeName, pause::Target};

use super::{Shown, target};
use crate::cli::{Context, failure::Failure};

/// End a pause: what it held starts
///
/// The same names as in `surety pause`. The consumers of a queue are resumed also where something else than `surety pause` paused
/// them. A job that is held by another pause besides (its queue, its type, its key) stays held.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true).args(["queue", "kind", "key"]),
    after_help = "\
Example:
  surety resume default
  surety resume --type thumbnail

Exit codes: 0 resumed; 1 it was not paused; 2 bad arguments, or an unknown queue."
)]
pub(in crate::cli) struct ResumeArgs {
    /// A declared queue
    #[arg(value_name = "QUEUE")]
    queue: Option<QueueName>,
    /// All jobs of a type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<TypeName>,
    /// All jobs with this key; of a pause that cannot be read, `#` and the hash that `surety pause --list` shows
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(in crate::cli) struct Answer {
    /// `queue`, `type` or `key`.
    kind: &'static str,
    /// Name of the queue or the type, or the key itself.
    name: String,
    /// The pause that was ended; left out where only consumers were paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<Shown>,
    /// Consumers of the queue that were resumed at the broker.
    consumers: usize,
}

pub(in crate::cli) async fn run(cx: &Context, args: ResumeArgs) -> Result<(), Failure> {
    let client = cx.client().await?;
    let broker = client.broker();
    let target = target(broker, args.queue, args.kind, args.key).await?;
    let done = broker.resume(client.publisher(), &target).await?;
    let now_ms = broker.now_ms().await?;
    if done.pause.is_none() && done.consumers == 0 {
        return Err(Failure::no(format!("{target} is not paused; `surety pause --list` shows what is")));
    }
    let answer = Answer {
        kind: target.kind(),
        name: target.name().to_owned(),
        pause: done.pause.as_ref().map(|p| Shown::of(p, now_ms)),
        consumers: done.consumers,
    };
    cx.screen.show(&answer, || text(&target, &answer))
}

fn text(target: &Target, a: &Answer) -> String {
    match &a.pause {
        Some(p) => format!("{target} is resumed; it was paused {}", p.whose()),
        None => format!("{target} is resumed; its consumers were paused, and nobody had said why"),
    }
}
