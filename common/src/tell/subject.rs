//! The sink of NATS subjects: each message is a request, and its reply says that it was seen.

use std::time::Duration;

use async_nats::HeaderMap;

use super::{Message, Sink, Surfacing, Told};
use crate::{
    broker::{Broker, tell::Answer},
    domain::Requester,
    wire::headers,
};

/// Tells requesters through the broker of the jobs.
#[derive(Clone)]
pub struct SubjectSink {
    broker: Broker,
    /// How long an answer may take.
    within: Duration,
}

impl SubjectSink {
    /// A sink on a connection that stands.
    pub fn new(broker: Broker, within: Duration) -> Self {
        Self { broker, within }
    }

    async fn ask(&self, subject: &str, m: &Message) -> Told {
        if self.broker.names().is_reserved(subject) {
            let ns = self.broker.names().namespace();
            return Told::Never(format!(
                "{subject:?} is a subject of {ns} itself, where a message would be a command; use {ns}.notify.… or another"
            ));
        }
        let mut h = HeaderMap::new();
        h.insert(headers::MSG_ID, m.id.as_str());
        h.insert(headers::KIND, m.kind.name());
        h.insert(headers::JOB, m.job.as_str());
        h.insert(headers::GENERATION, m.generation.to_string().as_str());
        if !m.trace.is_empty() {
            h.insert(headers::TRACEPARENT, m.trace.as_str());
        }
        match self.broker.tell(subject, h, m.body.clone(), self.within).await {
            Ok(Answer::Answered) => Told::Surfaced,
            Ok(Answer::None(why)) => Told::NotSurfaced(why),
            Err(e) => Told::NotTried(e.to_string()),
        }
    }
}

impl Sink for SubjectSink {
    fn surface<'a>(&'a self, to: &'a Requester, message: &'a Message) -> Surfacing<'a> {
        Box::pin(async move {
            match to {
                Requester::Subject { subject, .. } => self.ask(subject, message).await,
                Requester::Nobody => Told::Never("there is nobody to tell".to_owned()),
            }
        })
    }
}
