//! The packed record of a job, as the scripts write it (`prelude.lua` has the same positions). Fields are only ever
//! appended; a record with more fields than this release knows still decodes.

use super::packed::{Packer, Unpacker, Unreadable};
use crate::domain::{Contract, ErrorCode, JobState, Status};

/// First byte of a record.
const VERSION: u8 = 3;

/// Why a record cannot be read: names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record does not decode: {field}: {problem}")]
pub struct Undecodable {
    pub field: &'static str,
    pub problem: &'static str,
}

/// Releases to come that this one leaves alone: more of a difference is damage.
const NEWER: u8 = 16;

/// Whether a record that does not decode was written by a newer release, and is no business of this one.
pub(super) fn is_of_newer_release(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|v| *v > VERSION && *v <= VERSION + NEWER)
}

/// What Redis knows of a job. Times are milliseconds of the store's clock, 0 for "not set"; texts are empty for "not set".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub status: Status,
    pub contract: Contract,
    pub generation: u32,
    pub rev: u64,
    pub epoch: u64,
    pub attempt: u32,
    pub charged: u32,
    pub max_retries: u32,
    pub start_failures: u32,
    pub due_ms: u64,
    pub started_ms: u64,
    /// Time limit of the attempt that runs; before the first one: `expires_at`.
    pub deadline_ms: u64,
    pub created_ms: u64,
    pub finish_by_ms: u64,
    pub ended_ms: u64,
    /// By when the next thing that is promised has to happen; the contract and the status say what ([`Record::state`]).
    pub promise_ms: u64,
    /// Tries of what is being told: the start, the nudge, the receipt.
    pub told: u32,
    /// The attempt that runs was asked to stop.
    pub is_cancelling: bool,
    pub queue: String,
    pub job_type: String,
    /// A JSON string literal, or empty.
    pub key: String,
    pub trace: String,
    pub carrier: String,
    /// Subject that acks the recorded delivery.
    pub ack_subject: String,
    pub session: String,
    pub code: String,
    /// Outbox entry of the last transition.
    pub entry: String,
    /// Who is to be told ([`crate::domain::Requester`] as JSON), or empty.
    pub notify: String,
    /// Public, one line.
    pub summary: String,
    /// Fingerprint of the last report ([`crate::domain::fingerprint()`]).
    pub print: String,
    /// Why the last try to tell did not surface.
    pub tell_error: String,
    /// Attempts of this generation that were lost (at most 255).
    pub lost: u32,
}

impl Record {
    /// The record of a job of which nothing is known but that it waits.
    pub fn queued() -> Self {
        Self {
            status: Status::Queued,
            contract: Contract::Created,
            generation: 1,
            rev: 0,
            epoch: 0,
            attempt: 0,
            charged: 0,
            max_retries: 0,
            start_failures: 0,
            due_ms: 0,
            started_ms: 0,
            deadline_ms: 0,
            created_ms: 0,
            finish_by_ms: 0,
            ended_ms: 0,
            promise_ms: 0,
            told: 0,
            is_cancelling: false,
            queue: String::new(),
            job_type: String::new(),
            key: String::new(),
            trace: String::new(),
            carrier: String::new(),
            ack_subject: String::new(),
            session: String::new(),
            code: String::new(),
            entry: String::new(),
            notify: String::new(),
            summary: String::new(),
            print: String::new(),
            tell_error: String::new(),
            lost: 0,
        }
    }

    /// Reads a packed record. The error names the field and is counted; nothing is ever replaced by a default.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        Self::read(&mut Unpacker::new(bytes)).map_err(|e| {
            super::script::unreadable();
            Undecodable { field: e.field, problem: e.problem }
        })
    }

    fn read(u: &mut Unpacker<'_>) -> Result<Self, Unreadable> {
        let unknown = |field| Unreadable { field, problem: "this release does not know it" };
        if u.byte("version")? != VERSION {
            return Err(unknown("version"));
        }
        let status = Status::from_code(u.byte("status")?).ok_or(unknown("status"))?;
        let contract = Contract::from_code(u.byte("contract")?).ok_or(unknown("contract"))?;
        let generation = u.u32("generation")?;
        let (rev, epoch) = (u.u48("rev")?, u.u48("epoch")?);
        let (attempt, charged) = (u.u32("attempt")?, u.u32("charged")?);
        let (max_retries, start_failures) = (u.u32("max_retries")?, u.u32("start_failures")?);
        let (due_ms, started_ms, deadline_ms) = (u.u48("due")?, u.u48("started")?, u.u48("deadline")?);
        let (created_ms, finish_by_ms, ended_ms) = (u.u48("created")?, u.u48("finish_by")?, u.u48("ended")?);
        let (promise_ms, told) = (u.u48("promise")?, u.u32("told")?);
        let is_cancelling = u.byte("cancel")? == 1;
        let mut text = |field| u.text(field).map(str::to_owned);
        let (queue, job_type, key, trace) = (text("queue")?, text("type")?, text("key")?, text("trace")?);
        let (carrier, ack_subject, session) = (text("carrier")?, text("reply")?, text("session")?);
        let (code, _call, entry) = (text("code")?, text("call")?, text("entry")?);
        let (notify, summary) = (text("notify")?, text("summary")?);
        let (print, tell_error) = (text("print")?, text("tell_error")?);
        let lost = if u.is_empty() { 0 } else { u32::from(u.byte("lost")?) };
        let missing = |field| Unreadable { field, problem: "it is empty" };
        if generation == 0 {
            return Err(missing("generation"));
        }
        if queue.is_empty() || job_type.is_empty() {
            return Err(missing(if queue.is_empty() { "queue" } else { "type" }));
        }
        Ok(Self {
            status,
            contract,
            generation,
            rev,
            epoch,
            attempt,
            charged,
            max_retries,
            start_failures,
            due_ms,
            started_ms,
            deadline_ms,
            created_ms,
            finish_by_ms,
            ended_ms,
            promise_ms,
            told,
            is_cancelling,
            queue,
            job_type,
            key,
            trace,
            carrier,
            ack_subject,
            session,
            code,
            entry,
            notify,
            summary,
            print,
            tell_error,
            lost,
        })
    }

    /// The packed form, as of a record that no call has written yet.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut p = Packer::with_capacity(300);
        p.byte(VERSION).byte(self.status.code()).byte(self.contract.code());
        p.u32(self.generation).u48(self.rev).u48(self.epoch).u32(self.attempt).u32(self.charged);
        p.u32(self.max_retries).u32(self.start_failures);
        p.u48(self.due_ms).u48(self.started_ms).u48(self.deadline_ms);
        p.u48(self.created_ms).u48(self.finish_by_ms).u48(self.ended_ms);
        p.u48(self.promise_ms).u32(self.told).byte(u8::from(self.is_cancelling));
        let call = "";
        for text in [
            &self.queue,
            &self.job_type,
            &self.key,
            &self.trace,
            &self.carrier,
            &self.ack_subject,
            &self.session,
            &self.code,
            call,
            &self.entry,
            &self.notify,
            &self.summary,
            &self.print,
            &self.tell_error,
        ] {
            p.text(text);
        }
        if self.lost > 0 {
            p.byte(u8::try_from(self.lost).unwrap_or(u8::MAX));
        }
        p.into_bytes()
    }

    /// The part that the job machine knows.
    pub fn state(&self) -> JobState {
        JobState {
            status: self.status,
            contract: self.contract,
            generation: self.generation,
            rev: self.rev,
            epoch: self.epoch,
            attempt: self.attempt,
            charged: self.charged,
            max_retries: self.max_retries,
            start_failures: self.start_failures,
            due_ms: self.due_ms,
            is_cancelling: self.is_cancelling,
            lost: self.lost,
            error: if self.status.is_terminal() { ErrorCode::from_name(&self.code) } else { None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::packed::Packer, *};

    // Shows: B-03
    #[test]
    fn a_record_of_a_newer_release_still_decodes_and_a_broken_one_names_its_field() {
        let mut p = Packer::default();
        p.byte(VERSION).byte(4).byte(2).u32(1).u48(7).u48(2);
        p.u32(2).u32(1).u32(3).u32(0);
        p.u48(0).u48(10).u48(20).u48(5).u48(30).u48(0);
        p.u48(15).u32(1).byte(0);
        for s in ["default", "thumb", "", "", "JOBS:1", "ack", "s1", "", "call", "1-0", "", "", "", ""] {
            p.text(s);
        }
        let mut bytes = p.into_bytes();
        let r = Record::decode(&bytes).unwrap();
        assert_eq!(Record::decode(&r.encode()), Ok(Record { entry: "1-0".into(), ..r.clone() }));
        assert_eq!(
            (r.status, r.epoch, r.queue.as_str(), r.entry.as_str()),
            (Status::Running, 2, "default", "1-0")
        );

        bytes.extend_from_slice(b"\x02a field of the future\0");
        let lost = Record { lost: 2, ..r.clone() };
        assert_eq!(Record::decode(&bytes).unwrap(), lost);
        assert_eq!(Record::decode(&lost.encode()), Ok(Record { entry: "1-0".into(), ..lost }));

        let e = Record::decode(&bytes[..20]).unwrap_err();
        assert_eq!(e.field, "attempt");
        bytes[1] = 99;
        let e = Record::decode(&bytes).unwrap_err();
        assert_eq!(e.field, "status");
        bytes[0] = 1;
        let e = Record::decode(&bytes).unwrap_err();
        assert_eq!(e.to_string(), "record does not decode: version: this release does not know it");
    }
}
