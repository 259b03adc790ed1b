//! Outbox entries: what a script wrote, and the journal message that it becomes.
//!
//! The scripts write an entry packed, because each byte costs time in Redis; here it becomes the JSON array of its events.
//! The text depends on the entry alone, never on who makes it or when, so that a relayed copy has the same bytes.

use super::packed::{Unpacker, Unreadable};
use crate::{
    clock::iso_millis,
    domain::{Contract, ErrorCode, JobId, Status, TypeName},
    telemetry::metrics::shared,
    wire::receipt::Draft,
};

/// The data set that an entry belongs to.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Incarnation of the data set that had the entry.
    pub incarnation: std::sync::Arc<str>,
    /// When that data set was last asked and was still this one, on this machine's boot-time clock: the start of the call that
    /// gave the entry.
    pub asked_ms: u64,
}

impl PartialEq for Origin {
    /// Two readings of one entry are of one origin, whenever they were made.
    fn eq(&self, other: &Self) -> bool {
        self.incarnation == other.incarnation
    }
}

impl Eq for Origin {}

/// A journal entry that a script wrote to the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEntry {
    /// Entry id in the outbox stream: makes the message id of its publish.
    pub id: String,
    /// `<queue>` or `<queue>.ended`.
    pub suffix: String,
    /// JSON array of events.
    pub body: String,
    /// Ids of the jobs that end in it, separated by commas.
    pub ended: String,
    /// Commit counter of the data set.
    pub commit: u64,
    /// Why it cannot be read, where it cannot: then nothing else of it is known, and it cannot be published.
    pub problem: Option<String>,
    /// Receipts of the outcomes in it whose requesters wait: published with it, and confirmed before it is.
    pub receipts: Vec<OutboxReceipt>,
    pub origin: Origin,
}

/// A receipt on its way to a requester.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxReceipt {
    pub job: JobId,
    pub generation: u32,
    /// Who is to be told ([`crate::domain::Requester`] as JSON).
    pub notify: String,
    /// `traceparent`, or empty.
    pub trace: String,
    /// The receipt, byte for byte as the `finished` event has it.
    pub body: String,
}

/// What all events of an entry share.
struct Head<'a> {
    /// Store's clock, RFC 3339.
    at: String,
    queue: &'a str,
    /// Stands for `=` in an event.
    session: &'a str,
}

/// A text of a moment that many events share, made once.
#[derive(Default)]
struct Moment {
    ms: u64,
    text: Option<String>,
}

impl Moment {
    fn at(&mut self, ms: u64) -> Option<&str> {
        if self.ms != ms {
            *self = Self { ms, text: iso_millis(ms) };
        }
        self.text.as_deref()
    }
}

impl OutboxEntry {
    /// Reads a packed entry. One that cannot be read says so, names the field, and is counted: the others go on without it.
    pub(super) fn decode(id: String, packed: &[u8], origin: &Origin) -> Self {
        Self::read(&id, packed, origin).unwrap_or_else(|e| Self::unreadable(id, e.to_string(), origin))
    }

    /// An entry of which nothing is known but why.
    pub(super) fn unreadable(id: String, problem: String, origin: &Origin) -> Self {
        shared().decode_errors.with_label_values(&["entry"]).inc();
        let (suffix, body, ended) = (String::new(), String::new(), String::new());
        let (problem, origin) = (Some(problem), origin.clone());
        Self { id, suffix, body, ended, commit: 0, problem, receipts: Vec::new(), origin }
    }

    fn read(id: &str, packed: &[u8], origin: &Origin) -> Result<Self, Unreadable> {
        let mut u = Unpacker::new(packed);
        if u.byte("version")? != 2 {
            return Err(Unreadable { field: "version", problem: "this release does not know it" });
        }
        let (commit, at_ms, suffix) = (u.u48("commit")?, u.u48("at")?, u.text("suffix")?);
        let head = Head {
            at: iso_millis(at_ms).unwrap_or_default(),
            queue: suffix.strip_suffix(".ended").unwrap_or(suffix),
            session: u.text("session")?,
        };
        // Packed events have about a quarter of their JSON.
        let mut body = String::with_capacity(packed.len() * 5 + 2);
        let (mut ended, mut started_at) = (String::new(), Moment::default());
        let mut receipts = Vec::new();
        body.push('[');
        while !u.is_empty() {
            if body.len() > 1 {
                body.push(',');
            }
            receipts.extend(event(&mut u, &head, &mut body, &mut ended, &mut started_at)?);
        }
        body.push(']');
        Ok(Self {
            id: id.to_owned(),
            suffix: suffix.to_owned(),
            body,
            ended,
            commit,
            problem: None,
            receipts,
            origin: origin.clone(),
        })
    }
}

/// One event as JSON. Texts need no escaping: names have their alphabets, the key is a JSON string already, the trace context
/// was checked by its form. Gives the receipt of an outcome that somebody waits for.
fn event(
    u: &mut Unpacker<'_>,
    head: &Head<'_>,
    out: &mut String,
    ended: &mut String,
    started_at: &mut Moment,
) -> Result<Option<OutboxReceipt>, Unreadable> {
    let unknown = |field| Unreadable { field, problem: "this release does not know it" };
    let status = Status::from_code(u.byte("status")?).ok_or(unknown("status"))?;
    let contract = Contract::from_code(u.byte("contract")?).ok_or(unknown("contract"))?;
    let (generation, rev, attempt) = (u.u32("gen")?, u.u48("rev")?, u.u32("attempt")?);
    let (epoch, started_ms) = (u.u48("epoch")?, u.u48("started")?);
    let (kind, job, job_type, key) = (u.text("kind")?, u.text("job")?, u.text("type")?, u.text("key")?);
    let (session, carrier, trace) = (u.text("session")?, u.text("carrier")?, u.text("trace")?);
    let (data, notify) = (u.text("data")?, u.text("notify")?);

    let mut number = itoa::Buffer::new();
    for part in [r#"{"v":1,"job":""#, job, r#"","gen":"#, number.format(generation)] {
        out.push_str(part);
    }
    out.push_str(r#","rev":"#);
    out.push_str(number.format(rev));
    for part in [r#","kind":""#, kind, r#"","at":""#, &head.at, r#"","queue":""#, head.queue] {
        out.push_str(part);
    }
    out.push_str(r#"","type":""#);
    out.push_str(job_type);
    if !key.is_empty() {
        out.push_str(r#"","key":"#);
        out.push_str(key);
        out.push_str(r#","status":""#);
    } else {
        out.push_str(r#"","status":""#);
    }
    for part in
        [status.name(), r#"","contract":""#, contract.name(), r#"","attempt":"#, number.format(attempt)]
    {
        out.push_str(part);
    }
    out.push_str(r#","epoch":"#);
    out.push_str(number.format(epoch));
    let session = if session == "=" { head.session } else { session };
    for (name, text) in [(r#","session":""#, session), (r#","carrier":""#, carrier), (r#","trace":""#, trace)]
    {
        if !text.is_empty() {
            out.push_str(name);
            out.push_str(text);
            out.push('"');
        }
    }
    if kind == "finished" {
        if !ended.is_empty() {
            ended.push(',');
        }
        ended.push_str(job);
        out.push_str(r#","data":{"receipt":"#);
        let begin = out.len();
        if data.is_empty() {
            plain_receipt(out, job, generation, job_type, status, started_at.at(started_ms), trace)?;
        } else {
            out.push_str(data);
        }
        for part in [r#","finished_at":""#, &head.at, r#""}"#] {
            out.push_str(part);
        }
        let body = out.get(begin..).filter(|_| !notify.is_empty()).map(str::to_owned);
        if body.is_some() {
            out.push_str(r#","notify":"#);
            out.push_str(notify);
        }
        out.push_str("}}");
        let invalid = |_| Unreadable { field: "job", problem: "it is out of its range" };
        return body
            .map(|body| {
                let job = JobId::new(job).map_err(invalid)?;
                Ok(OutboxReceipt {
                    job,
                    generation,
                    notify: notify.to_owned(),
                    trace: trace.to_owned(),
                    body,
                })
            })
            .transpose();
    }
    if !data.is_empty() {
        out.push_str(r#","data":"#);
        out.push_str(data);
    }
    out.push('}');
    Ok(None)
}

/// A receipt that says only what its event says, without its last brace.
fn plain_receipt(
    out: &mut String,
    job: &str,
    generation: u32,
    job_type: &str,
    status: Status,
    started_at: Option<&str>,
    trace: &str,
) -> Result<(), Unreadable> {
    let invalid = |field| Unreadable { field, problem: "it is out of its range" };
    let id = JobId::new(job).map_err(|_| invalid("job"))?;
    let kind = TypeName::new(job_type).map_err(|_| invalid("type"))?;
    let mut draft = Draft::new(&id, generation, &kind, status.name());
    if status == Status::Cancelled {
        draft.error_code = Some(ErrorCode::Cancelled);
    }
    draft.started_at = started_at;
    draft.trace = (!trace.is_empty()).then_some(trace);
    out.push_str(&draft.open_json());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::packed::Packer, *};
    use crate::wire::event::read_message;

    fn origin() -> Origin {
        Origin { incarnation: "01".into(), asked_ms: 0 }
    }

    fn entry(suffix: &str) -> Packer {
        let mut p = Packer::default();
        p.byte(2).u48(9).u48(1_795_261_790_120).text(suffix).text("s1");
        p
    }

    fn add(p: &mut Packer, status: u8, kind: &str, job: &str, session: &str, data: &str) {
        p.byte(status).byte(2).u32(1).u48(3).u32(2).u48(5).u48(1_795_261_790_000);
        p.text(kind)
            .text(job)
            .text("noop")
            .text(r#""k\"1""#)
            .text(session)
            .text("JOBS:7")
            .text("")
            .text(data)
            .text("");
    }

    #[test]
    fn events_become_the_json_of_the_protocol() {
        let mut p = entry("default");
        add(&mut p, 4, "started", "a", "=", "");
        add(&mut p, 6, "lost", "b", "s2", r#"{"x":1}"#);
        let e = OutboxEntry::decode("1-0".into(), &p.into_bytes(), &origin());
        let (events, bad) = read_message(e.body.as_bytes());
        assert!(bad.is_empty(), "{bad:?} in {}", e.body);
        assert_eq!((e.commit, e.suffix.as_str(), e.ended.as_str()), (9, "default", ""));
        let [a, b] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((a.job.as_str(), a.rev, a.epoch, a.attempt), ("a", 3, 5, 2));
        assert_eq!((a.at.as_str(), a.key.as_deref()), ("2026-11-21T11:49:50.120Z", Some("k\"1")));
        assert_eq!((a.session.as_deref(), b.session.as_deref()), (Some("s1"), Some("s2")));
        assert_eq!((&a.data, &b.data["x"]), (&serde_json::Value::Null, &1.into()));
    }

    // Shows: C-10
    #[test]
    fn a_plain_outcome_gets_a_receipt_of_the_same_bytes_each_time() {
        let mut p = entry("default.ended");
        add(&mut p, 7, "finished", "a", "=", "");
        add(&mut p, 8, "finished", "b", "=", r#"{"v":1,"job":"b","error_code":"oom""#);
        let bytes = p.into_bytes();
        let e = OutboxEntry::decode("1-0".into(), &bytes, &origin());
        assert_eq!(e, OutboxEntry::decode("1-0".into(), &bytes, &origin()));
        assert_eq!(e.ended, "a,b");
        let (events, bad) = read_message(e.body.as_bytes());
        assert!(bad.is_empty(), "{bad:?} in {}", e.body);
        let receipt = &events[0].data["receipt"];
        assert_eq!((&receipt["outcome"], &receipt["job"]), (&"done".into(), &"a".into()));
        assert_eq!(receipt["started_at"], "2026-11-21T11:49:50.000Z");
        assert_eq!(receipt["finished_at"], "2026-11-21T11:49:50.120Z");
        assert_eq!(events[1].data["receipt"]["error_code"], "oom");
    }

    #[test]
    fn what_is_cut_off_names_its_field_and_is_empty() {
        let mut p = entry("q");
        add(&mut p, 4, "started", "a", "=", "");
        let mut bytes = p.into_bytes();
        bytes.truncate(bytes.len() - 1);
        let e = OutboxEntry::decode("1-0".into(), &bytes, &origin());
        assert_eq!((e.problem.as_deref(), e.body.as_str()), (Some("notify: it is cut off"), ""));
    }
}
