//! `surety schedule rm`.

use clap::Args;
use serde::Serialize;
use surety_common::domain::{JobId, QueueName};

use super::{find, server_now, time, words};
use crate::cli::{
    Context,
    cancel::{self, CancelArgs},
    confirm::Consent,
    failure::Failure,
};

/// Remove a schedule
///
/// Its jobs that came due already stay. What would be removed is shown first and asked about; where nobody can be asked, it
/// needs --yes (exit code 2). A schedule that fires once is a job, and is cancelled, as `surety cancel` does.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety schedule rm nightly --yes")]
pub(super) struct RemoveArgs {
    /// Name of the schedule
    #[arg(value_name = "NAME")]
    name: String,
    /// Its queue, where several have one of this name
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Selected<'a> {
    name: &'a str,
    queue: &'a str,
    /// When it fires, as the header says it.
    pattern: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<String>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Preview<'a> {
    would_remove: &'a Selected<'a>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Answer<'a> {
    removed: &'a Selected<'a>,
}

pub(super) async fn run(cx: &Context, args: RemoveArgs) -> Result<(), Failure> {
    let client = cx.client().await?;
    let broker = client.broker();
    let s = find(broker, &args.name, args.queue.as_ref()).await?;
    let next = s.next(server_now(broker).await?, 1).first().copied();
    let selected = Selected {
        name: &s.name,
        queue: &s.queue,
        pattern: &s.pattern,
        zone: s.zone.as_deref(),
        next_at: next.map(|t| t.to_string()),
    };
    if !args.consent.is_given() {
        cx.screen.show(&Preview { would_remove: &selected }, || {
            let when = s.when.as_ref().ok();
            cx.screen.facts(&[
                ("name", Some(s.name.clone())),
                ("queue", Some(s.queue.clone())),
                ("fires", Some(when.map_or_else(|| s.pattern.clone(), words))),
                ("next", when.zip(next).map(|(w, t)| time(t, w))),
            ])
        })?;
        args.consent.to(cx.screen, &format!("schedule {:?} would be removed", s.name)).await?;
    }
    if !s.is_recurring() {
        let id = JobId::new(&s.name).map_err(|e| Failure::no(e.to_string()))?;
        return cancel::run(cx, CancelArgs::of(id)).await;
    }
    if !broker.remove_schedule(&s.queue, &s.name).await? {
        return Err(Failure::no(format!("schedule {:?} was removed by somebody else meanwhile", s.name)));
    }
    cx.screen.show(&Answer { removed: &selected }, || format!("{}: removed", s.name))
}
