//! Barriers of the journal: where one data set of Redis ends and the next begins (`docs/redis-loss.md`).
//!
//! A process that was frozen while Redis lost its data may publish an entry of the old data set long after the new one was
//! rebuilt without it. JetStream cannot refuse it, so readers do: a message without events, on a subject of its own, says from
//! where on only entries of one incarnation count in a partition.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{
    Broker, BrokerError,
    publish::{Publisher, Stored},
    scan::{Scan, Since},
};
use crate::{pace::Pace, wire::headers};

/// Barriers of one read.
const PAGE: usize = 200;

/// The barriers of a journal, as far as it was read. Small: one for each loss and partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Barriers(Vec<Barrier>);

/// Where one data set of a partition ends and the next begins.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Barrier {
    /// Its place in the journal.
    pub sequence: u64,
    pub partition: u32,
    /// From here on only entries of this data set count.
    pub incarnation: String,
}

/// Partition and incarnation of an entry, from its message id `<incarnation>-<partition>-<entry>`.
pub(super) fn origin(id: &str) -> Option<(&str, u32)> {
    let mut parts = id.split('-');
    let (incarnation, partition) = (parts.next()?, parts.next()?);
    parts.next()?;
    Some((incarnation, partition.parse().ok()?))
}

impl Barriers {
    /// Takes a message in, in any order; says whether what it holds counts.
    pub(crate) fn admit(&mut self, sequence: u64, headers: Option<&HeaderMap>) -> bool {
        let Some(headers) = headers else { return true };
        if let Some(text) = headers.get(headers::FENCE) {
            self.note(sequence, text.as_str());
            return true;
        }
        if self.0.is_empty() {
            return true;
        }
        let Some((incarnation, partition)) = headers.get(headers::MSG_ID).and_then(|id| origin(id.as_str()))
        else {
            return true;
        };
        let before = self.0.iter().filter(|b| b.partition == partition && b.sequence < sequence);
        before.max_by_key(|b| b.sequence).is_none_or(|b| b.incarnation == incarnation)
    }

    /// A barrier reads `<partition> <incarnation>`.
    fn note(&mut self, sequence: u64, text: &str) {
        let parsed = text.split_once(' ').and_then(|(p, i)| Some((p.parse().ok()?, i.to_owned())));
        let Some((partition, incarnation)) = parsed else { return };
        let barrier = Barrier { sequence, partition, incarnation };
        if !self.0.contains(&barrier) {
            self.0.push(barrier);
        }
    }
}

impl Broker {
    /// Every barrier so far: for who begins to read in the middle.
    pub(crate) async fn barriers(&self) -> Result<Barriers, BrokerError> {
        let mut all = Barriers::default();
        let scan = Scan {
            stream: self.names().events(),
            filters: vec![self.names().barrier_subject("*")],
            since: Since::Start,
            headers_only: true,
        };
        self.scan(scan, |place, m| {
            all.admit(place.sequence, m.headers.as_ref());
        })
        .await?;
        Ok(all)
    }

    /// The same by direct reads, for who may not make a consumer.
    pub(super) async fn read_barriers(&self) -> Result<Barriers, BrokerError> {
        let (stream, subject) = (self.names().events(), self.names().barrier_subject("*"));
        let (mut all, mut from) = (Barriers::default(), 1);
        loop {
            let (page, is_more) = self.messages(&stream, from, &subject, PAGE).await?;
            for m in &page {
                all.admit(m.sequence, m.headers.as_ref());
                from = m.sequence + 1;
            }
            if page.is_empty() || !is_more {
                return Ok(all);
            }
        }
    }

    /// The barrier in force of each partition that has one.
    pub async fn barriers_in_force(&self) -> Result<Vec<Barrier>, BrokerError> {
        let mut newest = BTreeMap::new();
        let mut all = self.read_barriers().await?.0;
        all.sort_by_key(|b| b.sequence);
        for b in all {
            newest.insert(b.partition, b);
        }
        Ok(newest.into_values().collect())
    }

    /// Ends the former data sets of a partition in the journal. A repeat within the stream's window is the first one.
    pub async fn put_barrier(
        &self,
        publisher: &Publisher,
        p: u32,
        incarnation: &str,
        commit: u64,
        patience: Pace,
    ) -> Result<Stored, BrokerError> {
        let mut h = HeaderMap::new();
        h.insert(headers::MSG_ID, format!("{incarnation}-{p}-fence").as_str());
        h.insert(headers::FENCE, format!("{p} {incarnation}").as_str());
        h.insert(headers::COMMIT, commit.to_string().as_str());
        let subject = self.names().barrier_subject(&p.to_string());
        publisher.publish(&subject, &h, &Bytes::from_static(b"[]"), patience).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert(headers::MSG_ID, id);
        h
    }

    fn fence(text: &str) -> HeaderMap {
        let mut h = entry("B-0-fence");
        h.insert(headers::FENCE, text);
        h
    }

    // Shows: P7
    #[test]
    fn after_a_barrier_only_entries_of_its_data_set_count_in_its_partition() {
        let mut b = Barriers::default();
        assert!(b.admit(1, Some(&entry("A-0-1-0"))));
        assert!(b.admit(5, Some(&fence("0 B"))));
        assert!(!b.admit(6, Some(&entry("A-0-2-0"))), "late");
        assert!(b.admit(7, Some(&entry("B-0-3-0"))));
        assert!(b.admit(8, Some(&entry("A-1-2-0"))), "another partition");
        assert!(b.admit(4, Some(&entry("A-0-2-0"))), "read late, stored in time");
        assert!(b.admit(9, Some(&entry("by hand"))) && b.admit(9, None));
        assert!(b.admit(20, Some(&fence("0 C"))));
        assert!(!b.admit(21, Some(&entry("B-0-4-0"))) && b.admit(19, Some(&entry("B-0-4-0"))));
    }
}
