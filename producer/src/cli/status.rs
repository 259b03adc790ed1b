//! `surety status`: where a job is.

use clap::Args;
use serde::Serialize;
use surety_common::{
    broker::{pull::Delivery, schedule::due_at},
    clock::iso,
    domain::{JobId, QueueName, Status},
    store::Record,
    wire::{event::Event, headers},
};

use super::{
    Context,
    failure::Failure,
    lookup::{self, Seen},
};
use crate::render::Screen;

/// Show where a job is
///
/// Reads the record; a job that nobody has pulled yet is found in its queue, one that is scheduled by its schedule, one whose
/// record is gone in the journal.
/// Statuses: queued, scheduled, deferred, running, waiting_input, retry_wait, and terminal: done, failed, cancelled,
/// timed_out.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety status 01JD0000000000000000000000")]
pub(super) struct StatusArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
}

/// One job, as every command shows it.
#[derive(Debug, Default, Serialize, schemars::JsonSchema)]
pub(super) struct JobView {
    id: String,
    status: &'static str,
    is_terminal: bool,
    /// `record`, `queue`, `schedule` or `journal`: where this was read.
    source: &'static str,
    queue: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    job_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contract: Option<&'static str>,
    generation: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rev: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    charged: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    carrier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    /// Not tried again before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// Error text and output tails of the last failed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<serde_json::Value>,
}

impl JobView {
    /// From the record; `detail` is the JSON kept beside it.
    pub(super) fn of_record(id: &JobId, r: &Record, detail: Option<&str>) -> Self {
        let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        Self {
            id: id.to_string(),
            status: r.status.name(),
            is_terminal: r.status.is_terminal(),
            source: "record",
            queue: r.queue.clone(),
            job_type: text(&r.job_type),
            // The record has it as a JSON string literal.
            key: serde_json::from_str(&r.key).ok(),
            contract: Some(r.contract.name()),
            generation: r.generation,
            rev: Some(r.rev),
            attempt: Some(r.attempt),
            charged: Some(r.charged),
            max_retries: Some(r.max_retries),
            epoch: Some(r.epoch),
            session: text(&r.session),
            error_code: text(&r.code),
            carrier: text(&r.carrier),
            created_at: iso(r.created_ms),
            started_at: iso(r.started_ms),
            due_at: iso(r.due_ms).filter(|_| !r.status.is_terminal()),
            deadline_at: iso(r.deadline_ms).filter(|_| r.status.is_running()),
            finish_by: iso(r.finish_by_ms).filter(|_| !r.status.is_terminal()),
            ended_at: iso(r.ended_ms),
            detail: detail.and_then(json_or_log),
        }
    }

    /// From the message of a job that nobody has pulled.
    pub(super) fn of_carrier(id: &JobId, queue: &QueueName, m: &Delivery) -> Self {
        let body: Option<serde_json::Value> = serde_json::from_slice(&m.payload).ok();
        let field = |name: &str| body.as_ref()?.get(name)?.as_str().map(str::to_owned);
        let due_at = due_at(m);
        let (status, source) =
            if due_at.is_some() { (Status::Scheduled, "schedule") } else { (Status::Queued, "queue") };
        Self {
            id: id.to_string(),
            status: status.name(),
            source,
            queue: queue.to_string(),
            job_type: field("type"),
            key: field("key"),
            generation: generation(m),
            carrier: Some(m.carrier().to_string()),
            created_at: iso(m.stored_ms),
            due_at: due_at.map(|t| t.to_string()),
            ..Self::default()
        }
    }

    /// From the last event of a job whose record is gone. `None`: the event has a status that this release does not know.
    pub(super) fn of_event(id: &JobId, e: &Event) -> Option<Self> {
        let status = *Status::ALL.iter().find(|s| s.name() == e.status)?;
        Some(Self {
            id: id.to_string(),
            status: status.name(),
            is_terminal: status.is_terminal(),
            source: "journal",
            queue: e.queue.clone(),
            job_type: Some(e.job_type.clone()),
            key: e.key.clone(),
            generation: e.generation,
            rev: Some(e.rev),
            attempt: Some(e.attempt),
            epoch: Some(e.epoch),
            carrier: e.carrier.clone(),
            error_code: e
                .data
                .pointer("/receipt/error_code")
                .and_then(serde_json::Value::as_str)
                .map(str::to_owned),
            ended_at: status.is_terminal().then(|| e.at.clone()),
            ..Self::default()
        })
    }

    fn human(&self, screen: Screen) -> String {
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        let attempt = self.attempt.map(|a| match (self.charged, self.max_retries) {
            (Some(c), Some(m)) => format!("{a} ({c} of {} failed)", u64::from(m) + 1),
            _ => a.to_string(),
        });
        let text = |name: &str| {
            self.detail.as_ref().and_then(|d| d.get(name)).and_then(|v| v.as_str()).map(str::to_owned)
        };
        screen.facts(&[
            ("id", Some(self.id.clone())),
            ("status", Some(self.status.to_owned())),
            ("read from", Some(self.source.to_owned())),
            ("queue", Some(self.queue.clone())),
            ("type", self.job_type.clone()),
            ("key", self.key.clone()),
            ("contract", self.contract.map(str::to_owned)),
            ("generation", Some(self.generation.to_string())),
            ("rev", number(self.rev)),
            ("attempt", attempt),
            ("epoch", number(self.epoch)),
            ("session", self.session.clone()),
            ("error code", self.error_code.clone()),
            ("error", text("message")),
            ("carrier", self.carrier.clone()),
            ("created at", self.created_at.clone()),
            ("started at", self.started_at.clone()),
            ("not before", self.due_at.clone()),
            ("attempt ends by", self.deadline_at.clone()),
            ("finish by", self.finish_by.clone()),
            ("ended at", self.ended_at.clone()),
        ])
    }
}

/// Generation of a carrier: 1 unless a replay published it.
pub(super) fn generation(m: &Delivery) -> u32 {
    m.header(headers::GENERATION).and_then(|g| g.parse().ok()).unwrap_or(1)
}

fn json_or_log(text: &str) -> Option<serde_json::Value> {
    serde_json::from_str(text)
        .inspect_err(
            |error| tracing::warn!(%error, "the detail of the last attempt is not JSON and is left out"),
        )
        .ok()
}

pub(super) async fn run(cx: &Context, args: StatusArgs) -> Result<(), Failure> {
    let id = args.id;
    let c = cx.look().await?;
    let view = match lookup::find(&c, &id).await? {
        None => return Err(lookup::unknown(&id)),
        Some(Seen::Record(r)) => JobView::of_record(&id, &r, c.store.detail(&id).await?.as_deref()),
        Some(Seen::Waiting(queue, m)) => JobView::of_carrier(&id, &queue, &m),
        Some(Seen::Journal(e)) => JobView::of_event(&id, &e).ok_or_else(|| {
            Failure::no(format!(
                "{id} is in status {:?}, which this release does not know: upgrade",
                e.status
            ))
        })?,
    };
    cx.screen.show(&view, || view.human(cx.screen))
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    // Shows: I-02
    #[test]
    fn the_help_lists_every_status_and_which_are_terminal() {
        let help = StatusArgs::augment_args(clap::Command::new("status"))
            .get_long_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let (open, terminal) = help.split_once("and terminal:").unwrap();
        for s in Status::ALL {
            let part = if s.is_terminal() { terminal } else { open };
            assert!(part.contains(s.name()), "{} is not in the right list of:\n{help}", s.name());
        }
    }
}
