//! What the rules look at, of one event.

use std::fmt;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    clock::read_millis,
    domain::{EventKind, JobId, Status, ids::receipt_id},
    wire::event::Event,
};

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Known(EventKind),
    /// Of a newer release.
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Known(k) => k.name(),
            Self::Unknown => "an event of an unknown kind",
        })
    }
}

/// An event without its texts. A finished one may have 256 KiB of them; this has the size of a few numbers.
#[derive(Debug, Clone)]
pub(super) struct Fact {
    pub(super) rev: u64,
    /// Of everything that the event says: two events of one revision must agree in it.
    pub(super) hash: u64,
    pub(super) kind: Kind,
    pub(super) generation: u32,
    pub(super) epoch: u64,
    /// When it happened, in milliseconds by the clock of its store; 0 where that cannot be read.
    pub(super) at_ms: u64,
    /// `None`: one that this release does not know.
    pub(super) status: Option<Status>,
    /// Of `finished`: its receipt is this job's, this generation's, and says the same outcome.
    pub(super) is_receipt_true: bool,
    /// Read among the first of a journal that has lost its oldest messages.
    pub(super) is_at_head: bool,
}

impl Fact {
    pub(super) fn of(e: &Event, is_at_head: bool) -> Self {
        // What was read from JSON can be written as JSON.
        let text = serde_json::to_vec(e).unwrap_or_default();
        let kind = EventKind::ALL.iter().find(|k| k.name() == e.kind);
        Self {
            rev: e.rev,
            hash: xxh3_64(&text),
            kind: kind.map_or(Kind::Unknown, |k| Kind::Known(*k)),
            generation: e.generation,
            epoch: e.epoch,
            at_ms: read_millis(&e.at).unwrap_or(0),
            status: Status::ALL.into_iter().find(|s| s.name() == e.status),
            is_receipt_true: is_receipt_true(e),
            is_at_head,
        }
    }
}

/// Whether the receipt in the event is the one that belongs there. What a receipt leaves out is not compared.
fn is_receipt_true(e: &Event) -> bool {
    let Some(receipt) = e.data.get("receipt") else { return false };
    let says = |field: &str, value: Value| receipt.get(field).is_none_or(|v| *v == value);
    let id = JobId::new(&e.job).map(|id| receipt_id(&id, e.generation, "finished"));
    receipt.get("outcome").and_then(Value::as_str) == Some(&e.status)
        && says("job", e.job.as_str().into())
        && says("gen", e.generation.into())
        && id.map_or(true, |id| says("receipt", id.into()))
}
