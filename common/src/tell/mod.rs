//! Telling whoever asked for a job: notices before its end, the receipt of its outcome.
//!
//! A [`Sink`] takes a message to a requester and says whether somebody *saw* it; that it was handed over is nothing. What
//! follows is committed by the `told` script, in one step with the contract. [`notice`] makes and tells notices, for workers
//! and reapers alike; receipts are delivered by the dispatcher of the worker.

pub mod notice;
mod subject;

use std::{future::Future, pin::Pin};

use bytes::Bytes;

use crate::{
    connect::Connected,
    domain::{JobId, Requester, notice::Kind},
    pace::Pace,
    recover::RecoverError,
    store::{StoreError, Telling, ToldItem, ToldReply},
    wire::headers::clean,
};

pub use subject::SubjectSink;

/// One message to a requester.
#[derive(Debug, Clone)]
pub struct Message {
    pub kind: Kind,
    /// The same for every sending of it: the requester's idempotency key.
    pub id: String,
    pub job: JobId,
    pub generation: u32,
    /// `traceparent`, or empty.
    pub trace: String,
    pub body: Bytes,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Somebody saw it.
    Surfaced,
    /// Nobody saw it: why, in one line. Another try may do better.
    NotSurfaced(String),
    /// Nobody ever will: why.
    Never(String),
    /// It could not be tried, for a reason of our own, and counts as no try.
    NotTried(String),
}

impl Told {
    /// The label of metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Surfaced => "surfaced",
            Self::NotSurfaced(_) => "not_surfaced",
            Self::Never(_) => "refused",
            Self::NotTried(_) => "not_tried",
        }
    }
}

/// The future of one message.
pub type Surfacing<'a> = Pin<Box<dyn Future<Output = Told> + Send + 'a>>;

/// A way to requesters.
pub trait Sink: Send + Sync {
    /// Tells a requester; returns within a bound of its own.
    fn surface<'a>(&'a self, to: &'a Requester, message: &'a Message) -> Surfacing<'a>;
}

/// Commits what surfaced or did not, and journals it. What is not journaled within the patience is left to the relay of the
/// reaper: the error says so, and the commit stands.
pub async fn commit(
    c: &Connected,
    job: &JobId,
    generation: u32,
    what: Telling,
    note: &str,
    data: &impl serde::Serialize,
    patience: Pace,
) -> Result<ToldReply, RecoverError> {
    let p = c.store.keys().partition(job);
    let data =
        serde_json::to_string(data).map_err(|e| StoreError::Decode(format!("data of an event: {e}")))?;
    let item = ToldItem { id: job.clone(), generation, what, note: clean(note), data };
    let answer = c.store.told(p, &[item]).await?;
    crate::fault::point("told_committed");
    c.relay.publish(p, &answer.entries, patience).await?;
    crate::fault::point("told_journaled");
    let reply = answer.results.into_iter().next();
    reply.ok_or_else(|| StoreError::Decode("told gave no result".into()).into())
}
