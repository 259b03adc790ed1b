//! Writing a job document field by field.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use surety_common::{
    clock::format_span,
    domain::Lineage,
    wire::job::{ContractDocument, JobDocument, NotifyDocument, Refused, RetryDocument},
};

/// A job to enqueue. Values are checked when it is sent, all at once; each method replaces what an earlier call set.
#[derive(Debug, Clone, Default)]
pub struct JobBuilder {
    pub(super) document: JobDocument,
    pub(super) traceparent: Option<Box<str>>,
    pub(super) start: Start,
    /// The client's lineage is not for it.
    is_detached: bool,
    /// What was wrong with values that do not fit into the document.
    pub(super) problems: Vec<String>,
}

/// When a job may start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Start {
    #[default]
    Now,
    At(jiff::Timestamp),
    After(Duration),
}

impl From<JobDocument> for JobBuilder {
    fn from(document: JobDocument) -> Self {
        Self { document, ..Self::default() }
    }
}

impl JobBuilder {
    /// A job of this type (1 to 64 of `a-z 0-9 _ -`).
    pub fn new(kind: impl Into<String>) -> Self {
        JobDocument { kind: kind.into(), ..JobDocument::default() }.into()
    }

    /// Anything that serializes to JSON, at most 512 KiB. The error says why it does not serialize.
    pub fn payload(mut self, payload: &impl Serialize) -> Result<Self, Refused> {
        match serde_json::value::to_raw_value(payload) {
            Ok(raw) => {
                self.document.payload = Some(raw);
                Ok(self)
            }
            Err(e) => Err(Refused {
                code: surety_common::domain::ErrorCode::InvalidJob,
                problems: vec![format!("payload: does not serialize: {e}")],
            }),
        }
    }

    /// A payload that is JSON text already.
    #[must_use]
    pub fn raw_payload(mut self, payload: Box<RawValue>) -> Self {
        self.document.payload = Some(payload);
        self
    }

    /// Names this enqueue for ever (1 to 128 of `A-Z a-z 0-9 _ -`); a ULID when not set.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.document.id = Some(id.into());
        self
    }

    /// The id that was set.
    pub fn named(&self) -> Option<&str> {
        self.document.id.as_deref()
    }

    /// What limits and filters group by, 1 to 256 bytes.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.document.key = Some(key.into());
        self
    }

    /// A public one-line description, at most 512 bytes.
    #[must_use]
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.document.summary = Some(summary.into());
        self
    }

    /// Adds a free label: at most 16, of at most 256 bytes each.
    #[must_use]
    pub fn meta(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.document.meta.get_or_insert_default().insert(name.into(), value.into());
        self
    }

    /// Adds a lock: an attempt starts when it has all of them, and nobody else has one while it runs. At most 16 names of 1 to
    /// 256 bytes.
    #[must_use]
    pub fn lock(mut self, name: impl Into<String>) -> Self {
        self.document.locks.get_or_insert_default().push(name.into());
        self
    }

    /// The job whose handler enqueues this one; it is taken as the root, unless the client knows it better
    /// ([`Client::with_lineage`](super::Client::with_lineage)).
    #[must_use]
    pub fn parent(mut self, parent: impl Into<String>) -> Self {
        let doc = &mut self.document;
        (doc.parent, doc.root, doc.depth) = (Some(parent.into()), None, None);
        self
    }

    /// The line that it comes from: that of the children of the job whose handler enqueues it.
    #[must_use]
    pub fn lineage(mut self, lineage: &Lineage) -> Self {
        self.document.set_lineage(lineage);
        self
    }

    /// Nobody's child, whatever the client's own lineage is: for work that lives on by itself. No loop guard sees where it
    /// comes from.
    #[must_use]
    pub fn detached(mut self) -> Self {
        let doc = &mut self.document;
        (doc.parent, doc.root, doc.depth) = (None, None, None);
        self.is_detached = true;
        self
    }

    /// Fills in the lineage of whoever enqueues it.
    pub(super) fn adopted(mut self, by: Option<&Lineage>) -> Self {
        if let Some(lineage) = by.filter(|_| !self.is_detached) {
            self.document.adopt(lineage);
        }
        self
    }

    fn retry(&mut self) -> &mut RetryDocument {
        self.document.retry.get_or_insert_default()
    }

    fn contract(&mut self) -> &mut ContractDocument {
        self.document.contract.get_or_insert_default()
    }

    /// Retries after the first attempt, 0 to 1000; 3 when not set.
    #[must_use]
    pub fn max_retries(mut self, n: u32) -> Self {
        self.retry().max_retries = Some(n);
        self
    }

    /// Delay before retry 1, 2, …; the last one repeats. 1, 5 and 30 minutes when not set.
    #[must_use]
    pub fn backoff(mut self, delays: &[Duration]) -> Self {
        self.retry().backoff = Some(delays.iter().copied().map(format_span).collect());
        self
    }

    /// Time limit of one attempt.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.contract().timeout = Some(format_span(limit));
        self
    }

    /// The job has ended by then, over all its attempts.
    #[must_use]
    pub fn finish(mut self, limit: Duration) -> Self {
        self.contract().finish = Some(format_span(limit));
        self
    }

    /// The start is told to the requester, if there is one, within this time.
    #[must_use]
    pub fn ack_within(mut self, time: Duration) -> Self {
        self.contract().ack = Some(format_span(time));
        self
    }

    /// A running job shows progress at least this often, or its requester is told.
    #[must_use]
    pub fn progress_within(mut self, time: Duration) -> Self {
        self.contract().progress = Some(format_span(time));
        self
    }

    fn requester(&mut self) -> &mut NotifyDocument {
        self.document.notify.get_or_insert_default()
    }

    /// A NATS subject that is told the start, silence, and the outcome: each message is a request, and any reply to it says
    /// that it was seen.
    #[must_use]
    pub fn notify(mut self, subject: impl Into<String>) -> Self {
        self.requester().subject = subject.into();
        self
    }

    /// The subject of [`JobBuilder::notify`] is told the outcome and nothing before it.
    #[must_use]
    pub fn without_notices(mut self) -> Self {
        self.requester().notices = Some(false);
        self
    }

    /// A job that was not started by then fails with `expired`.
    #[must_use]
    pub fn expires_at(mut self, at: jiff::Timestamp) -> Self {
        self.document.expires_at = Some(at.to_string());
        self
    }

    /// Not started before then, by the clock of nats-server. Must lie in the future when the job is sent.
    #[must_use]
    pub fn at(mut self, at: jiff::Timestamp) -> Self {
        self.start = Start::At(at);
        self
    }

    /// Not started until this long after it is prepared for sending, by the clock of this machine.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.start = Start::After(delay);
        self
    }

    /// W3C trace context of the caller; travels with the job as a header.
    #[must_use]
    pub fn traceparent(mut self, value: &str) -> Self {
        if is_traceparent(value) {
            self.traceparent = Some(value.into());
        } else {
            self.problems.push(format!(
                "traceparent: {value:?} is not a W3C trace context (00-<32 hex>-<16 hex>-<2 hex>)"
            ));
        }
        self
    }
}

/// Whether a text is a W3C trace context of version 00 or a later one.
pub fn is_traceparent(value: &str) -> bool {
    let hex = |s: &str, n: usize| {
        s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = value.split('-');
    let mut next = |n| parts.next().is_some_and(|p| hex(p, n));
    next(2) && next(32) && next(16) && next(2) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_contexts_are_told_from_rubbish() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in ["", "00", "00-x-y-z", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX: y"] {
            assert!(!is_traceparent(bad), "{bad:?}");
        }
    }
}
