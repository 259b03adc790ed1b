//! The job document: what a producer in any language publishes (`docs/protocol.md`, `schema/job.json`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{lineage, strict};
use crate::{
    clock::{format_span, parse_span},
    domain::{
        ErrorCode, Job, JobId, QueueName, Requester, RetryPolicy, Terms, TypeName,
        job::{KEY_CAP, LOCK_CAP, LOCKS, META_CAP, META_ENTRIES, PAYLOAD_CAP, SUMMARY_CAP},
        text,
    },
};

/// Newest document version that this release reads and the one it writes.
pub const VERSION: u32 = 1;

/// The JSON body of a job message. Only `type` is required.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobDocument {
    /// Version of this document; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<u32>,
    /// Names the handler: 1 to 64 of `a-z 0-9 _ -`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Anything; at most 512 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub payload: Option<Box<RawValue>>,
    /// 1 to 128 of `A-Z a-z 0-9 _ -`; names this enqueue for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What limits and filters group by; at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Public one-line description; at most 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Free labels: at most 16 names and values of at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<BTreeMap<String, String>>,
    /// Names of locks, all of which an attempt holds while it runs, and nobody else: at most 16, each once, of 1 to 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locks: Option<Vec<String>>,
    /// Id of the job whose handler enqueued this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Id of the first job of the line; the parent when absent. Goes with `parent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Steps from the root, 1 to 1000000: 1 for its children, 2 for theirs. Goes with `parent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryDocument>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<ContractDocument>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<NotifyDocument>,
    /// RFC 3339; a job that was not started by then fails with `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// When a failed attempt is tried again.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryDocument {
    /// Retries after the first attempt, 0 to 1000; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// Delays such as `"1m"`; the last repeats; 1m, 5m, 30m when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Vec<String>>,
    /// Spread of each delay, 0 to 1; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
}

/// The times of the contract, such as `"45s"`. `"0"` and absence both mean the default.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContractDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Ended by, after being enqueued, over all attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// Time limit of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// Who is told how the job goes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotifyDocument {
    /// A NATS subject without wildcards, 1 to 256 bytes: gets each notice and the receipt as a request; the reply says that
    /// it was seen.
    pub subject: String,
    /// Whether the start, and silence, are told besides the outcome; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notices: Option<bool>,
}

/// Known fields by the object they stand in, for messages that name the nearest one.
const FIELDS: [(&str, &[&str]); 4] = [
    (
        "",
        &[
            "v",
            "type",
            "payload",
            "id",
            "key",
            "summary",
            "meta",
            "locks",
            "parent",
            "root",
            "depth",
            "retry",
            "contract",
            "notify",
            "expires_at",
        ],
    ),
    ("retry", &["max_retries", "backoff", "jitter"]),
    ("contract", &["ack", "progress", "finish", "timeout"]),
    ("notify", &["subject", "notices"]),
];

/// Why a document was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct Refused {
    /// `InvalidJob`: no release can run it. `UnknownVersion`: a newer worker may; it is handed on.
    pub code: ErrorCode,
    /// Every problem found: field, rule, what was given. Never empty.
    pub problems: Vec<String>,
}

/// Most problems that one refusal names, and most bytes of one of them: what a stranger sends does not decide how much is logged,
/// journaled and kept.
const PROBLEMS: usize = 20;
const PROBLEM_CAP: usize = 300;

/// Gathers problems within these bounds.
#[derive(Default)]
struct Problems {
    named: Vec<String>,
    more: usize,
}

impl Problems {
    /// `text` is made only where there is room for it.
    fn add(&mut self, text: impl FnOnce() -> String) {
        if self.named.len() < PROBLEMS {
            self.named.push(text::cut(&text(), PROBLEM_CAP).into_owned());
        } else {
            self.more += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    fn into_list(mut self) -> Vec<String> {
        if self.more > 0 {
            self.named.push(format!("and {} more", self.more));
        }
        self.named
    }
}

impl Refused {
    pub(crate) fn invalid(problem: String) -> Self {
        let mut problems = Problems::default();
        problems.add(|| problem);
        Self { code: ErrorCode::InvalidJob, problems: problems.into_list() }
    }
}

/// Reads a document's text. The error names each field that is unknown (with the nearest known name) or of the wrong
/// kind.
pub fn parse(body: &[u8]) -> Result<JobDocument, Refused> {
    match serde_json::from_slice::<JobDocument>(body) {
        // The payload is the one part that was not read. Everybody after us would stumble over it, the guards among them.
        Ok(d) if d.v.unwrap_or(VERSION) <= VERSION => {
            match d.payload.as_ref().map(|p| strict::check(p.get())) {
                Some(Err(why)) => Err(Refused::invalid(format!("payload: {why}"))),
                _ => Ok(d),
            }
        }
        Ok(d) => Err(newer(d.v.unwrap_or(0))),
        // The strict reader stops at the first problem; this path is slow and explains.
        Err(e) => Err(explain(body, &e)),
    }
}

fn newer(v: u32) -> Refused {
    Refused {
        code: ErrorCode::UnknownVersion,
        problems: vec![format!(
            "document version {v} is newer than {VERSION}, the newest this release reads"
        )],
    }
}

fn explain(body: &[u8], error: &serde_json::Error) -> Refused {
    let value: serde_json::Value = match serde_json::from_slice(body) {
        Ok(v) => v,
        Err(e) => return Refused::invalid(format!("not valid JSON: {e}")),
    };
    let Some(top) = value.as_object() else {
        return Refused::invalid(
            "not a JSON object: a job looks like {\"type\":\"thumbnail\",\"payload\":{}}".into(),
        );
    };
    if let Some(v) = top.get("v").and_then(serde_json::Value::as_u64)
        && v > u64::from(VERSION)
    {
        return newer(u32::try_from(v).unwrap_or(u32::MAX));
    }
    let mut unknown = Problems::default();
    for (place, known) in FIELDS {
        let object = if place.is_empty() { Some(top) } else { top.get(place).and_then(|v| v.as_object()) };
        for name in object.into_iter().flat_map(|o| o.keys()) {
            if known.contains(&name.as_str()) {
                continue;
            }
            unknown.add(|| {
                let short = text::cut(name, 64);
                let path = if place.is_empty() { short.into_owned() } else { format!("{place}.{short}") };
                let hint = match text::nearest(name, known.iter().copied()) {
                    Some(n) => format!("did you mean {n:?}?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                format!("unknown field {path:?}; {hint}")
            });
        }
    }
    if unknown.is_empty() {
        return Refused::invalid(format!("{error}"));
    }
    Refused { code: ErrorCode::UnknownVersion, problems: unknown.into_list() }
}

/// Checks a document and gives the job. All problems are reported at once.
pub fn check(doc: JobDocument, id: JobId, queue: QueueName) -> Result<Job, Refused> {
    let mut problems = Problems::default();
    let mut note = |field: &str, e: &dyn std::fmt::Display| problems.add(|| format!("{field}: {e}"));

    let kind = TypeName::new(&doc.kind).map_err(|e| note("type", &e)).ok();
    let lineage = lineage::read(&doc).unwrap_or_else(|found| {
        found.iter().for_each(|(field, e)| note(field, e));
        None
    });
    if let Some(p) = &doc.payload
        && p.get().len() > PAYLOAD_CAP
    {
        note("payload", &format!("{} bytes; the cap is {PAYLOAD_CAP}", p.get().len()));
    }
    if doc.key.as_ref().is_some_and(|k| k.is_empty() || k.len() > KEY_CAP) {
        note("key", &format!("must have 1 to {KEY_CAP} bytes"));
    }
    if doc.summary.as_ref().is_some_and(|s| s.len() > SUMMARY_CAP) {
        note("summary", &format!("must have at most {SUMMARY_CAP} bytes"));
    }
    if let Some(m) = &doc.meta {
        if m.len() > META_ENTRIES {
            note("meta", &format!("{} entries; the cap is {META_ENTRIES}", m.len()));
        }
        for (k, v) in m {
            if k.len() > META_CAP || v.len() > META_CAP {
                note(
                    &format!("meta.{}", text::cut(k, 40)),
                    &format!("name and value have at most {META_CAP} bytes"),
                );
            }
        }
    }
    let locks = locks(doc.locks, &mut note);
    let mut span = |field: &str, given: Option<&String>| -> Option<Duration> {
        match parse_span(given?) {
            Ok(d) => (!d.is_zero()).then_some(d),
            Err(e) => {
                note(field, &e);
                None
            }
        }
    };
    let c = doc.contract.unwrap_or_default();
    let terms = Terms {
        ack: span("contract.ack", c.ack.as_ref()),
        progress: span("contract.progress", c.progress.as_ref()),
        finish: span("contract.finish", c.finish.as_ref()),
        timeout: span("contract.timeout", c.timeout.as_ref()),
    };
    let mut retry = RetryPolicy::default();
    if let Some(r) = doc.retry {
        if let Some(b) = &r.backoff {
            retry.backoff = b.iter().filter_map(|d| span("retry.backoff", Some(d))).collect();
        }
        if let Some(n) = r.max_retries {
            retry.max_retries = n;
            if n > 1000 {
                note("retry.max_retries", &format!("{n} is out of range 0 to 1000"));
            }
        }
        if let Some(j) = r.jitter {
            retry.jitter = j;
            if !(0.0..=1.0).contains(&j) {
                note("retry.jitter", &format!("{j} is out of range 0 to 1"));
            }
        }
        if r.backoff.is_some() && retry.backoff.is_empty() {
            note("retry.backoff", &"needs at least one delay above 0");
        }
    }
    let requester =
        match doc.notify.map(|n| Requester::new(&n.subject, n.notices.unwrap_or(true))).transpose() {
            Ok(r) => r.unwrap_or_default(),
            Err(e) => {
                note("notify.subject", &e);
                Requester::Nobody
            }
        };
    let expires_at = match doc.expires_at.as_deref().map(expiry).transpose() {
        Ok(t) => t,
        Err(e) => {
            note("expires_at", &format!("not an RFC 3339 time: {e}"));
            None
        }
    };
    match kind {
        Some(kind) if problems.is_empty() => Ok(Job {
            id,
            queue,
            kind,
            payload: doc.payload.unwrap_or_else(|| RawValue::NULL.to_owned()),
            key: doc.key,
            summary: doc.summary,
            meta: doc.meta.unwrap_or_default(),
            locks,
            lineage,
            retry,
            terms,
            requester,
            expires_at,
        }),
        _ => Err(Refused { code: ErrorCode::InvalidJob, problems: problems.into_list() }),
    }
}

/// The locks of a document; what is wrong with them is noted.
fn locks(
    given: Option<Vec<String>>,
    note: &mut impl FnMut(&str, &dyn std::fmt::Display),
) -> BTreeSet<String> {
    let given = given.unwrap_or_default();
    if given.len() > LOCKS {
        note("locks", &format!("{} names; the cap is {LOCKS}", given.len()));
    }
    let mut all = BTreeSet::new();
    for name in given {
        if name.is_empty() || name.len() > LOCK_CAP || name.contains('\0') {
            note("locks", &format!("a name must have 1 to {LOCK_CAP} bytes, and no zero among them"));
        } else if let Some(twice) = all.replace(name) {
            note("locks", &format!("{:?} is there twice", text::cut(&twice, 80)));
        }
    }
    all
}

/// The document of a job, as the client publishes it: only what differs from the defaults.
pub fn document(job: &Job) -> JobDocument {
    let default = RetryPolicy::default();
    let t = &job.terms;
    let contract = (*t != Terms::default()).then(|| ContractDocument {
        ack: t.ack.map(format_span),
        progress: t.progress.map(format_span),
        finish: t.finish.map(format_span),
        timeout: t.timeout.map(format_span),
    });
    let retry = (job.retry != default).then(|| RetryDocument {
        max_retries: Some(job.retry.max_retries),
        backoff: Some(job.retry.backoff.iter().copied().map(format_span).collect()),
        jitter: Some(job.retry.jitter),
    });
    let mut doc = JobDocument {
        v: Some(VERSION),
        kind: job.kind.to_string(),
        payload: Some(job.payload.clone()),
        id: Some(job.id.to_string()),
        key: job.key.clone(),
        summary: job.summary.clone(),
        meta: (!job.meta.is_empty()).then(|| job.meta.clone()),
        locks: (!job.locks.is_empty()).then(|| job.locks.iter().cloned().collect()),
        parent: None,
        root: None,
        depth: None,
        retry,
        contract,
        notify: match &job.requester {
            Requester::Nobody => None,
            Requester::Subject { subject, notices } => {
                Some(NotifyDocument { subject: subject.clone(), notices: (!notices).then_some(false) })
            }
        },
        expires_at: job.expires_at.map(|t| t.to_string()),
    };
    if let Some(l) = &job.lineage {
        doc.set_lineage(l);
    }
    doc
}

/// The places that can name a job, in order of precedence, and the name of last resort.
#[derive(Debug, Clone, Copy)]
pub struct IdSources<'a> {
    /// Last token of `<ns>.jobs.<queue>.<id>`.
    pub subject: Option<&'a str>,
    /// `Surety-Job` of a republished carrier, else `Nats-Msg-Id`.
    pub header: Option<&'a str>,
}

/// The id of a carrier: body, subject, header; `None` where all are silent. Two that differ, or one that is not an id, are an
/// error.
pub fn identify(doc_id: Option<&str>, from: IdSources<'_>) -> Option<Result<JobId, Refused>> {
    let given = [("body", doc_id), ("subject", from.subject), ("message id", from.header)];
    let mut found: Option<(&str, &str)> = None;
    for (place, id) in given {
        let Some(id) = id else { continue };
        match found {
            Some((first, other)) if other != id => {
                return Some(Err(Refused::invalid(format!(
                    "the id in the {first} is {other:?}, in the {place} {id:?}"
                ))));
            }
            _ => found = found.or(Some((place, id))),
        }
    }
    let (place, id) = found?;
    Some(JobId::new(id).map_err(|e| Refused::invalid(format!("id in the {place}: {e}"))))
}

/// A time of expiry. The last moments of the year 9999, which other languages write for "never", are behind what can be told here,
/// and mean the last one.
fn expiry(text: &str) -> Result<Timestamp, jiff::Error> {
    text.parse().or_else(|e| {
        let sooner = text.replacen("9999-12-3", "9999-12-2", 1);
        if sooner != text && sooner.parse::<Timestamp>().is_ok() { Ok(Timestamp::MAX) } else { Err(e) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_year_9999_means_never() {
        for never in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999999+00:00", "9999-12-30T23:00:00Z"] {
            assert_eq!(expiry(never).unwrap(), Timestamp::MAX, "{never}");
        }
        for bad in ["9999-12-3", "10000-01-01T00:00:00Z", "9999-13-31T00:00:00Z", "never"] {
            assert!(expiry(bad).is_err(), "{bad}");
        }
        assert_eq!(expiry("9999-12-29T00:00:00Z").unwrap().to_string(), "9999-12-29T00:00:00Z");
    }

    fn read(body: &str) -> Result<Job, Refused> {
        let doc = parse(body.as_bytes())?;
        check(doc, JobId::new("a").unwrap(), QueueName::new("default").unwrap())
    }

    #[test]
    fn only_the_type_is_required() {
        let job = read(r#"{"type":"thumbnail"}"#).unwrap();
        assert_eq!((job.payload.get(), job.retry.max_retries), ("null", 3));
    }

    #[test]
    fn every_problem_is_named_at_once_with_field_and_rule() {
        let e = read(
            r#"{"type":"Bad Type","retry":{"max_retries":5000,"backoff":["1 parsec"],"jitter":7},
                "contract":{"timeout":"ten"},"expires_at":"tomorrow","key":"","depth":2}"#,
        )
        .unwrap_err();
        assert_eq!(e.code, ErrorCode::InvalidJob);
        for field in [
            "type",
            "retry.max_retries",
            "retry.backoff",
            "retry.jitter",
            "contract.timeout",
            "expires_at",
            "key",
            "depth",
        ] {
            assert!(e.problems.iter().any(|p| p.starts_with(field)), "{field} in {e}");
        }
    }

    #[test]
    fn an_unknown_field_names_the_nearest_and_is_handed_on() {
        let e = read(r#"{"type":"a","paylod":1,"retry":{"max_retry":2}}"#).unwrap_err();
        assert_eq!(e.code, ErrorCode::UnknownVersion);
        let text = e.to_string();
        assert!(text.contains("\"payload\"") && text.contains("\"retry.max_retry\""), "{text}");
    }

    // Shows: B-03
    #[test]
    fn a_newer_version_is_handed_on_and_an_old_document_still_reads() {
        let e = read(r#"{"v":2,"type":"a","new_thing":{"x":1}}"#).unwrap_err();
        assert_eq!(e.code, ErrorCode::UnknownVersion);
        // The first document ever published, kept as a fixture: it must decode for ever.
        assert!(read(r#"{"v":1,"type":"thumbnail","payload":{"url":"https://example.org"},"id":"01JD","retry":{"max_retries":3,"backoff":["1m","5m","30m"],"jitter":0.1},"contract":{"ack":"5s","progress":"45s","finish":"24h","timeout":"10m"}}"#).is_ok());
    }

    #[test]
    fn broken_json_says_where() {
        let e = read("{\"type\":").unwrap_err();
        assert!(e.to_string().contains("line 1"), "{e}");
        assert!(read("[1]").unwrap_err().to_string().contains("not a JSON object"));
    }

    #[test]
    fn zero_means_the_default() {
        let job = read(r#"{"type":"a","contract":{"timeout":"0"}}"#).unwrap();
        assert_eq!(job.terms.timeout, None);
    }

    // Shows: P8
    #[test]
    fn a_span_beyond_the_calendar_is_refused() {
        for field in ["timeout", "finish", "ack", "progress"] {
            let e =
                read(&format!(r#"{{"type":"a","contract":{{"{field}":"2562047788015h"}}}}"#)).unwrap_err();
            assert!(e.code == ErrorCode::InvalidJob && e.to_string().contains("a hundred years"), "{e}");
        }
    }

    #[test]
    fn ids_agree_or_the_job_is_refused() {
        let from = |s, h| IdSources { subject: s, header: h };
        assert_eq!(identify(Some("a"), from(Some("a"), Some("a"))).unwrap().unwrap().as_str(), "a");
        assert!(identify(None, from(None, None)).is_none());
        assert!(identify(Some("a"), from(Some("b"), None)).unwrap().is_err());
        assert!(identify(None, from(None, Some("has space"))).unwrap().is_err());
    }

    #[test]
    fn locks_are_each_named_once_and_not_too_long() {
        let job = read(r#"{"type":"a","locks":["b","repo:acme/site","ü"]}"#).unwrap();
        assert_eq!(job.locks.iter().collect::<Vec<_>>(), ["b", "repo:acme/site", "ü"]);
        let long = "x".repeat(257);
        let body = format!(r#"{{"type":"a","locks":["a","a","","{long}","\u0000"]}}"#);
        let e = read(&body).unwrap_err();
        assert_eq!(e.code, ErrorCode::InvalidJob);
        assert_eq!(e.problems.len(), 4, "{e}");
        assert!(e.problems[0].contains("\"a\" is there twice"), "{e}");
        let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
        let e = read(&serde_json::json!({"type": "a", "locks": many}).to_string()).unwrap_err();
        assert_eq!(e.to_string(), "locks: 17 names; the cap is 16");
        assert!(read(&serde_json::json!({"type": "a", "locks": many[..16]}).to_string()).is_ok());
    }

    #[test]
    fn what_the_client_writes_the_worker_reads() {
        let job = read(r#"{"type":"a","payload":[1,2],"key":"k","meta":{"x":"y"},"locks":["l"],"parent":"p","root":"r","depth":4,"retry":{"max_retries":1},"contract":{"finish":"90m"}}"#).unwrap();
        let body = serde_json::to_vec(&document(&job)).unwrap();
        let again = check(parse(&body).unwrap(), job.id.clone(), job.queue.clone()).unwrap();
        assert_eq!((again.root().as_str(), again.depth()), ("r", 4));
        assert_eq!(
            serde_json::to_string(&document(&again)).unwrap(),
            serde_json::to_string(&document(&job)).unwrap()
        );
    }
}
