//! From a delivery to a job, or to the reason why not.

use std::sync::Arc;

use async_nats::{HeaderMap, header::TOO_MANY_LINES};

use super::{Broker, pull::Delivery};
use crate::{
    domain::{Job, JobId, QueueName, TypeName},
    wire::{
        headers,
        job::{IdSources, Refused, check, identify, parse},
    },
};

/// A message that holds a job.
#[derive(Debug)]
pub struct Decoded {
    pub job: Arc<Job>,
    pub generation: u32,
    pub trace: String,
    /// `STREAM:sequence`.
    pub carrier: String,
}

/// A message that does not.
#[derive(Debug)]
pub struct Undecoded {
    /// The job's id as far as it could be told, else one made of the sequence.
    pub id: JobId,
    /// `unknown` when it could not be told.
    pub kind: TypeName,
    pub generation: u32,
    pub carrier: String,
    pub refused: Refused,
}

/// What can be told of a document that was refused.
#[derive(serde::Deserialize, Default)]
struct Peek {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// What of a delivery names its job, besides the body.
struct Naming<'a> {
    subject: Option<&'a str>,
    header: Option<&'a str>,
    /// The schedule that made it, if it fires again: each of its jobs has an id of its own, and the body must not name one.
    schedule: Option<&'a str>,
    stream_created: &'a str,
    sequence: u64,
}

impl<'a> Naming<'a> {
    fn of(broker: &Broker, d: &'a Delivery, stream_created: &'a str) -> Self {
        let (names, sequence) = (broker.names(), d.sequence);
        if let Some(schedule) = recurring(broker, d) {
            return Self { subject: None, header: None, schedule: Some(schedule), stream_created, sequence };
        }
        let parsed = names.parse_job_subject(&d.subject).or_else(|| names.parse_due_subject(&d.subject));
        Self {
            subject: parsed.and_then(|(_, id)| id),
            header: d.header(headers::JOB).or_else(|| d.header(headers::MSG_ID)),
            schedule: None,
            stream_created,
            sequence,
        }
    }

    fn id(&self, in_body: Option<&str>) -> Result<JobId, Refused> {
        if self.schedule.is_some() && in_body.is_some() {
            let text = "id: a schedule that fires again names each of its jobs itself; leave it out";
            return Err(Refused::invalid(text.into()));
        }
        let sources = IdSources { subject: self.subject, header: self.header };
        identify(in_body, sources).unwrap_or_else(|| Ok(self.fallback()))
    }

    /// The id of a message that names none.
    fn fallback(&self) -> JobId {
        self.schedule
            .and_then(|s| JobId::new(&format!("{s}-{}", self.sequence)).ok())
            .unwrap_or_else(|| JobId::of_sequence(self.stream_created, self.sequence))
    }
}

/// The schedule that made this message, if it fires again. One that fired for its only time named the job in its target.
fn recurring<'a>(broker: &Broker, d: &'a Delivery) -> Option<&'a str> {
    d.header(headers::SCHEDULE_NEXT).filter(|next| *next != headers::SCHEDULE_ENDS)?;
    let (_, schedule) = broker.names().parse_sched_subject(d.header(headers::SCHEDULER)?)?;
    Some(schedule)
}

/// Reads a delivery from `queue`. `stream_created` makes the id of last resort.
pub fn decode(
    broker: &Broker,
    queue: &QueueName,
    d: &Delivery,
    stream_created: &str,
) -> Result<Decoded, Box<Undecoded>> {
    let carrier = d.carrier().to_string();
    let named = headers::read_generation(d.header(headers::GENERATION));
    let generation = *named.as_ref().unwrap_or(&1);
    let naming = Naming::of(broker, d, stream_created);
    let read = readable(d)
        .and_then(|()| named.map_err(Refused::invalid))
        .and_then(|_| parse(&d.payload))
        .and_then(|doc| {
            let id = naming.id(doc.id.as_deref())?;
            let mut job = check(doc, id, queue.clone())?;
            if naming.schedule.is_some() {
                job.lineage = job.lineage.map(|l| l.of_firing(&job.id));
            }
            Ok(job)
        });
    match read {
        Ok(job) => Ok(Decoded { job: Arc::new(job), generation, trace: trace(d), carrier }),
        Err(refused) => {
            let peek: Peek = serde_json::from_slice(&d.payload).unwrap_or_default();
            Err(Box::new(Undecoded {
                id: naming.id(peek.id.as_deref()).unwrap_or_else(|_| naming.fallback()),
                kind: peek.kind.and_then(|k| TypeName::new(&k).ok()).unwrap_or_else(TypeName::unknown),
                generation,
                carrier,
                refused,
            }))
        }
    }
}

/// A header that nobody reads may be damaged, and the job runs. One that the job's fate hangs on may not: it would be taken for
/// absent.
fn readable(d: &Delivery) -> Result<(), Refused> {
    let flaws = d.headers.as_ref().map(HeaderMap::flaws).unwrap_or_default();
    match flaws.iter().find(|f| f.what == TOO_MANY_LINES || !headers::may_copy(&f.name)) {
        None => Ok(()),
        Some(f) if f.name.is_empty() => Err(Refused::invalid(format!("headers: {}", f.what))),
        Some(f) => Err(Refused::invalid(format!("header {:?}: {}", f.name, f.what))),
    }
}

/// Whether a message that came due is this job.
pub(super) fn is_job(broker: &Broker, m: &Delivery, id: &JobId) -> bool {
    // The id of last resort is not looked for: nobody was told it.
    let naming = Naming::of(broker, m, "");
    let in_body = serde_json::from_slice::<Peek>(&m.payload).ok().and_then(|p| p.id);
    naming.id(in_body.as_deref()).is_ok_and(|found| found == *id)
}

/// The trace context, if it is one: 55 characters of hex and dashes, so that it may stand in JSON as it is.
fn trace(d: &Delivery) -> String {
    d.header(headers::TRACEPARENT)
        .filter(|t| t.len() == 55 && t.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
        .unwrap_or_default()
        .to_owned()
}
