//! A job as people and programs are shown it, wherever it was found.

use serde::Serialize;

use crate::{
    broker::{pull::Delivery, schedule::due_at},
    clock::iso,
    connect::Connected,
    domain::{Contract, JobId, QueueName, Status, guard::GuardKind},
    lookup::{LookupError, Seen, find, generation},
    store::Record,
    wire::event::Event,
};

/// One job, as every command shows it.
#[derive(Debug, Clone, Default, Serialize, schemars::JsonSchema)]
pub struct JobView {
    pub id: String,
    pub status: &'static str,
    pub is_terminal: bool,
    /// `record`, `queue`, `schedule` or `journal`: where this was read.
    pub source: &'static str,
    pub queue: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub job_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contract: Option<&'static str>,
    /// Who is told how it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// By when its start is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_by: Option<String>,
    /// By when it shows progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_by: Option<String>,
    /// Progress was missed, and whoever should be nudged was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_nudged: Option<bool>,
    /// Tries so far of what is being told: the start, or the receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<u32>,
    /// Why the last of them did not surface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tell_error: Option<String>,
    /// Fingerprint of the last report of its handler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_report: Option<String>,
    pub generation: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rev: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub charged: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Not tried again before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Error text and output tails of the last failed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

impl JobView {
    /// Looks a job up; `None` when no source knows it.
    pub async fn find(c: &Connected, id: &JobId) -> Result<Option<Self>, LookupError> {
        Ok(match find(c, id).await? {
            None => None,
            Some(Seen::Record(r)) => Some(Self::of_record(id, &r, c.store.detail(id).await?.as_deref())),
            Some(Seen::Waiting(queue, m)) => Some(Self::of_carrier(id, &queue, &m)),
            Some(Seen::Journal(e)) => {
                let newer = || LookupError::NewerRelease { id: id.clone(), status: e.status.clone() };
                Some(Self::of_event(id, &e).ok_or_else(newer)?)
            }
        })
    }

    /// From the record; `detail` is the JSON kept beside it.
    pub fn of_record(id: &JobId, r: &Record, detail: Option<&str>) -> Self {
        let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let promised =
            |by: &[Contract]| iso(r.promise_ms).filter(|_| r.status.is_running() && by.contains(&r.contract));
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
            requester: serde_json::from_str(&r.notify).ok(),
            summary: text(&r.summary),
            ack_by: promised(&[Contract::Created]),
            progress_by: promised(&[Contract::Acked, Contract::Progressing]),
            is_nudged: r
                .status
                .is_running()
                .then_some(r.contract == Contract::SlaMissed && r.promise_ms == 0),
            tries: (r.told > 0).then_some(r.told),
            tell_error: text(&r.tell_error),
            last_report: text(&r.print),
            generation: r.generation,
            rev: Some(r.rev),
            attempt: Some(r.attempt),
            charged: Some(r.charged),
            max_retries: Some(r.max_retries),
            epoch: Some(r.epoch),
            session: text(&r.session),
            error_code: text(&r.code).filter(|code| !(r.status.is_running() && GuardKind::is_reason(code))),
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
    pub fn of_carrier(id: &JobId, queue: &QueueName, m: &Delivery) -> Self {
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
    pub fn of_event(id: &JobId, e: &Event) -> Option<Self> {
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
}

fn json_or_log(text: &str) -> Option<serde_json::Value> {
    serde_json::from_str(text)
        .inspect_err(
            |error| tracing::warn!(%error, "the detail of the last attempt is not JSON and is left out"),
        )
        .ok()
}
