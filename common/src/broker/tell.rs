//! One message to a requester's subject: a request, whose answer says that somebody saw it.

use std::time::Duration;

use async_nats::{HeaderMap, Request, client::RequestErrorKind};
use bytes::Bytes;

use super::{Broker, BrokerError};
use crate::clock::format_span;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Answered,
    /// Nobody answered, or nobody may be asked: why.
    None(String),
}

impl Broker {
    /// Asks a subject and waits for its answer.
    /// Errors: `Unreachable` when the connection to the server was not there all the time, so that nothing is known.
    pub async fn tell(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, BrokerError> {
        let connections = *self.reconnects.borrow();
        let request = Request::new().headers(headers).payload(body).timeout(Some(within));
        let call = self.client.send_request(subject.to_owned(), request);
        let why = match self.denials.guard(|s| s == subject, call).await {
            Ok(Ok(_)) => return Ok(Answer::Answered),
            Ok(Err(e)) => match e.kind() {
                RequestErrorKind::NoResponders => "nobody listens there (no responders)".to_owned(),
                RequestErrorKind::TimedOut => format!("no answer within {}", format_span(within)),
                RequestErrorKind::InvalidSubject
                | RequestErrorKind::MaxPayloadExceeded
                | RequestErrorKind::Other => e.to_string(),
            },
            Err(denied) => denied.to_string(),
        };
        if !self.is_connected() || *self.reconnects.borrow() != connections {
            return Err(BrokerError::Unreachable(format!("the connection was lost meanwhile ({why})")));
        }
        Ok(Answer::None(why))
    }
}
