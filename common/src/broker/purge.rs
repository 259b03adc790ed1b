//! Removing dead letters for good: what would go ([`Broker::survey_letters`]), and exactly that ([`Broker::purge_letters`]).

use std::collections::BTreeMap;

use super::{
    Broker, BrokerError,
    scan::{Place, Scan, Since},
};
use crate::{
    domain::{JobId, QueueName},
    wire::headers,
};

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `None`: of all queues.
    pub queue: Option<QueueName>,
    /// `None`: of all jobs.
    pub id: Option<JobId>,
    /// Buried before this time (milliseconds of the stream's clock); `None`: all of them.
    pub before_ms: Option<u64>,
}

/// What a selection holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    pub letters: u64,
    /// Bytes of their messages.
    pub bytes: u64,
    /// When the oldest and the newest were buried (milliseconds of the stream's clock).
    pub oldest_ms: Option<u64>,
    pub newest_ms: Option<u64>,
    /// Number by error code.
    pub by_reason: BTreeMap<String, u64>,
    /// Sequence of the newest: a purge goes no further.
    up_to: u64,
}

impl Survey {
    fn add(&mut self, place: Place, header: impl Fn(&str) -> Option<String>) {
        let stored_ms = u64::try_from(place.stored_ns / 1_000_000).unwrap_or(0);
        self.letters += 1;
        self.bytes += header("Nats-Msg-Size").and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
        self.oldest_ms.get_or_insert(stored_ms);
        self.newest_ms = Some(stored_ms);
        self.up_to = place.sequence;
        *self.by_reason.entry(header(headers::REASON).unwrap_or_else(|| "unknown".into())).or_default() += 1;
    }
}

impl Broker {
    /// Reads the headers of all dead letters of a selection.
    pub async fn survey_letters(&self, of: &Selection) -> Result<Survey, BrokerError> {
        let scan = Scan {
            stream: self.names().dlq(),
            filters: vec![self.names().dlq_filter(of.queue.as_ref(), of.id.as_ref())],
            since: Since::Start,
            headers_only: true,
        };
        let mut survey = Survey::default();
        // Ends at the first young one, so that what is counted is all of the selection up to a sequence, also where the
        // server's clock went back in between.
        let mut is_over = false;
        self.scan(scan, |place, m| {
            is_over |= of.before_ms.is_some_and(|t| place.stored_ns >= i128::from(t) * 1_000_000);
            if !is_over {
                let header = |name: &str| Some(m.headers.as_ref()?.get(name)?.as_str().to_owned());
                survey.add(place, header);
            }
        })
        .await?;
        Ok(survey)
    }

    /// Removes what the survey counted, and nothing that was buried after it. Returns the number removed, which is smaller where somebody
    /// replayed or removed some meanwhile.
    pub async fn purge_letters(&self, of: &Selection, survey: &Survey) -> Result<u64, BrokerError> {
        if survey.letters == 0 {
            return Ok(0);
        }
        let filter = self.names().dlq_filter(of.queue.as_ref(), of.id.as_ref());
        let subject = format!("STREAM.PURGE.{}", self.names().dlq());
        // `seq` is the first that is kept.
        let answer =
            self.api(subject, serde_json::json!({ "filter": filter, "seq": survey.up_to + 1 })).await?;
        Ok(answer.get("purged").and_then(serde_json::Value::as_u64).unwrap_or(0))
    }
}
