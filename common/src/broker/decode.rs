//! From a delivery to a job, or to the reason why not.

use std::sync::Arc;

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

/// Reads a delivery from `queue`. `stream_created` makes the id of last resort.
pub fn decode(
    broker: &Broker,
    queue: &QueueName,
    d: &Delivery,
    stream_created: &str,
) -> Result<Decoded, Box<Undecoded>> {
    let carrier = broker.names().carrier(d.sequence);
    let generation = d.header(headers::GENERATION).and_then(|g| g.parse().ok()).unwrap_or(1);
    let fallback = JobId::of_sequence(stream_created, d.sequence);
    let sources = IdSources {
        subject: broker.names().parse_job_subject(&d.subject).and_then(|(_, id)| id),
        header: d.header(headers::JOB).or_else(|| d.header(headers::MSG_ID)),
        fallback: fallback.as_str(),
    };
    let read = parse(&d.payload).and_then(|doc| {
        let id = identify(doc.id.as_deref(), sources)?;
        check(doc, id, queue.clone())
    });
    match read {
        Ok(job) => Ok(Decoded { job: Arc::new(job), generation, trace: trace(d), carrier }),
        Err(refused) => {
            let peek: Peek = serde_json::from_slice(&d.payload).unwrap_or_default();
            Err(Box::new(Undecoded {
                id: identify(peek.id.as_deref(), sources).unwrap_or(fallback),
                kind: peek.kind.and_then(|k| TypeName::new(&k).ok()).unwrap_or_else(TypeName::unknown),
                generation,
                carrier,
                refused,
            }))
        }
    }
}

/// The trace context, if it is one: 55 characters of hex and dashes, so that it may stand in JSON as it is.
fn trace(d: &Delivery) -> String {
    d.header(headers::TRACEPARENT)
        .filter(|t| t.len() == 55 && t.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
        .unwrap_or_default()
        .to_owned()
}
