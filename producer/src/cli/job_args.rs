//! The arguments that describe a job, the same wherever one is made.

use std::io::Read;

use clap::Args;
use serde_json::value::RawValue;
use surety_common::{
    domain::job::PAYLOAD_CAP,
    wire::job::{ContractDocument, JobDocument, NotifyDocument, RetryDocument, parse},
};

use super::failure::Failure;
use crate::client::{JobBuilder, builder::is_traceparent};

/// What to run, and how.
#[derive(Debug, Args)]
pub(super) struct JobArgs {
    /// Names the handler: 1 to 64 of a-z 0-9 _ -
    #[arg(value_name = "TYPE", required_unless_present = "doc")]
    kind: Option<String>,
    /// The payload, any JSON up to 512 KiB; `-` reads it from stdin
    #[arg(value_name = "JSON|-")]
    payload: Option<String>,
    /// A whole job document instead of TYPE and payload; `-` reads it from stdin
    #[arg(long, value_name = "JSON|-", conflicts_with_all = ["kind", "payload"])]
    doc: Option<String>,
    /// What limits and filters group by
    #[arg(long)]
    key: Option<String>,
    /// Public one-line description
    #[arg(long, value_name = "TEXT")]
    summary: Option<String>,
    /// A free label; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    meta: Vec<String>,
    /// A lock that it holds while it runs, and nobody else; may be repeated: it starts when it has all of them
    #[arg(long = "lock", value_name = "NAME")]
    locks: Vec<String>,
    /// Retries after the first attempt, 0 to 1000 [default: 3]
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
    /// Delays before the retries; the last repeats [default: 1m,5m,30m]
    #[arg(long, value_name = "DURATIONS", value_delimiter = ',')]
    backoff: Vec<String>,
    /// Time limit of one attempt [default: the worker's attempt.timeout, 10m]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Ended by then, over all attempts [default: the worker's attempt.finish, 24h]
    #[arg(long, value_name = "DURATION")]
    finish: Option<String>,
    /// Tell this NATS subject the start, silence and the outcome; each message wants a reply
    #[arg(long, value_name = "SUBJECT")]
    notify: Option<String>,
    /// Tell it the outcome and nothing before it
    #[arg(long)]
    no_notices: bool,
    /// Tell the start within this time [default: contract.ack of the worker, 5s]
    #[arg(long, value_name = "DURATION")]
    ack: Option<String>,
    /// Promise progress at least this often [default: contract.progress of the worker, 45s]
    #[arg(long, value_name = "DURATION")]
    progress: Option<String>,
    /// Fail the job if it was not started by then
    #[arg(long, value_name = "RFC3339")]
    expires_at: Option<String>,
}

impl JobArgs {
    /// Whether the job may have been given an id with its document.
    pub(super) fn is_document(&self) -> bool {
        self.doc.is_some()
    }

    /// The document that the arguments describe.
    pub(super) fn document(&self) -> Result<JobDocument, Failure> {
        let mut doc = match &self.doc {
            Some(text) => parse(read_or_stdin(text, "document")?.as_bytes())?,
            None => JobDocument { kind: self.kind.clone().unwrap_or_default(), ..JobDocument::default() },
        };
        if let Some(given) = &self.payload {
            let text = read_or_stdin(given, "payload")?;
            let raw: Box<RawValue> = serde_json::from_str(text.trim())
                .map_err(|e| Failure::input(format!("the payload is not valid JSON: {e}")))?;
            doc.payload = Some(raw);
        }
        let fields = [
            (&mut doc.key, &self.key),
            (&mut doc.summary, &self.summary),
            (&mut doc.expires_at, &self.expires_at),
        ];
        for (field, given) in fields {
            if given.is_some() {
                field.clone_from(given);
            }
        }
        for pair in &self.meta {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| Failure::input(format!("--meta {pair:?} is not NAME=VALUE")))?;
            doc.meta.get_or_insert_default().insert(name.to_owned(), value.to_owned());
        }
        if !self.locks.is_empty() {
            doc.locks.get_or_insert_default().extend(self.locks.iter().cloned());
        }
        if self.max_retries.is_some() || !self.backoff.is_empty() {
            let r: &mut RetryDocument = doc.retry.get_or_insert_default();
            r.max_retries = self.max_retries.or(r.max_retries);
            if !self.backoff.is_empty() {
                r.backoff = Some(self.backoff.clone());
            }
        }
        let times = [&self.timeout, &self.finish, &self.ack, &self.progress];
        if times.iter().any(|t| t.is_some()) {
            let c: &mut ContractDocument = doc.contract.get_or_insert_default();
            let fields = [&mut c.timeout, &mut c.finish, &mut c.ack, &mut c.progress];
            for (field, given) in fields.into_iter().zip(times).filter(|(_, given)| given.is_some()) {
                field.clone_from(given);
            }
        }
        if let Some(subject) = &self.notify {
            let n: &mut NotifyDocument = doc.notify.get_or_insert_default();
            n.subject.clone_from(subject);
        }
        if self.no_notices {
            let n = doc.notify.as_mut().ok_or_else(|| {
                Failure::input("--no-notices needs somebody to tell: --notify SUBJECT".to_owned())
            })?;
            n.notices = Some(false);
        }
        Ok(doc)
    }
}

/// The job with a trace context from outside.
pub(super) fn traced(job: JobBuilder, context: Option<&str>) -> JobBuilder {
    match context {
        Some(t) if is_traceparent(t) => job.traceparent(t),
        Some(_) => {
            // As the standard asks: a context that does not parse is dropped, the work goes on.
            tracing::warn!("the trace context does not parse and is left out");
            job
        }
        None => job,
    }
}

/// The text itself, or stdin where it is `-`.
fn read_or_stdin(given: &str, what: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    // Twice the cap: enough for a document around the largest payload, and the check still says how large it was.
    let limit = 2 * PAYLOAD_CAP as u64;
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(limit + 1)
        .read_to_string(&mut text)
        .map_err(|e| Failure::input(format!("cannot read the {what} from stdin: {e}")))?;
    if text.len() as u64 > limit {
        return Err(Failure::input(format!(
            "the {what} on stdin is larger than {limit} bytes; the payload cap is {PAYLOAD_CAP}"
        )));
    }
    Ok(text)
}
