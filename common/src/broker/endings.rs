//! Outcomes of certain jobs, looked up in the journal. By direct reads: whoever looks needs no right to make consumers.

use std::collections::{HashMap, HashSet};

use super::{Broker, BrokerError, pull::Delivery};
use crate::wire::{event, headers};

/// Messages of one read.
const PAGE: usize = 200;

impl Broker {
    /// The newest `finished` event of each of these jobs that has one since a time (milliseconds of the stream's clock). Reads
    /// the messages with outcomes from there to the end, once for all of them.
    pub async fn find_endings(
        &self,
        jobs: &HashSet<String>,
        from_ms: u64,
    ) -> Result<HashMap<String, event::Event>, BrokerError> {
        let mut found = HashMap::new();
        if jobs.is_empty() {
            return Ok(found);
        }
        let subject = self.names().event_subject("*.ended");
        let mut barriers = self.read_barriers().await?;
        let mut from = Start::Time(from_ms);
        loop {
            let (page, is_more) = self.messages_at(&self.names().events(), from, &subject, PAGE).await?;
            for m in page.iter().filter(|m| may_have(m, jobs)) {
                if !barriers.admit(m.sequence, m.headers.as_ref()) {
                    continue;
                }
                let (events, _) = event::read_message(&m.payload);
                let wanted = events.into_iter().filter(|e| e.kind == "finished" && jobs.contains(&e.job));
                for e in wanted {
                    let is_newer = found.get(&e.job).is_none_or(|f: &event::Event| f.rev < e.rev);
                    if is_newer {
                        found.insert(e.job.clone(), e);
                    }
                }
            }
            match page.last() {
                Some(last) if is_more => from = Start::Sequence(last.sequence + 1),
                _ => return Ok(found),
            }
        }
    }
}

/// Where a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Sequence(u64),
    /// Milliseconds of the stream's clock.
    Time(u64),
}

/// Whether a message has the outcome of one of these jobs. A list that was too long for its header is missing.
fn may_have(m: &Delivery, jobs: &HashSet<String>) -> bool {
    m.header(headers::ENDED).is_none_or(|ids| ids.split(',').any(|id| jobs.contains(id)))
}
