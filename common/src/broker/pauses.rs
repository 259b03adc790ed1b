//! What is paused: a bucket with one entry for each pause, and the broker's own pause of the consumers of a paused queue.
//!
//! Whoever needs to know reads all of it ([`Broker::pauses`]), asks now and then whether it is still the same
//! ([`Broker::pauses_since`]), and hears at once where it changed ([`Broker::pause_notices`]). Nobody but the operator writes,
//! and no reader needs the right to make a consumer. The entries are the truth: [`Broker::provision`] pauses a consumer again
//! that was made anew.

use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde_json::json;

use super::{
    Broker, BrokerError,
    publish::{Publisher, Stored},
    pull::Delivery,
    topology::Lane,
};
use crate::{
    clock::iso_millis,
    domain::pause::{Pause, Pauses, Slot, Target},
    pace::Pace,
    wire::{headers, pause},
};

/// Entries of one read.
const PAGE: usize = 500;
/// Entries that are over and that one change clears away.
const CLEARED: usize = 100;
/// How far away the end of a consumer's pause is that has none: the server cannot do without.
const FAR: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
/// A remaining pause of at least this length stands for one without an end.
const ENDLESS: Duration = Duration::from_secs(50 * 366 * 24 * 3600);

/// Which state of the bucket something was read from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// When the bucket was made: one that is made anew counts from the start again.
    created: String,
    sequence: u64,
}

/// What is paused, as the broker has it.
#[derive(Debug, Clone)]
pub struct Known {
    pub pauses: Pauses,
    pub version: Version,
    /// The broker's clock (milliseconds) at some time during the read.
    pub now_ms: u64,
}

/// What a look at the bucket found.
#[derive(Debug, Clone)]
pub enum News {
    /// The version that was asked about. The broker's clock.
    Same {
        now_ms: u64,
    },
    Changed(Known),
}

/// What a resume found.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// The pause that was there and held.
    pub pause: Option<Pause>,
    /// Consumers of the queue that were paused at the broker.
    pub consumers: usize,
}

/// Hints that the pauses are others now.
pub struct Notices {
    messages: Option<Subscriber>,
}

impl Notices {
    /// Returns when a hint came, and takes all that are there. Never, once the connection was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was taken is one hint, and it is told.
    pub async fn came(&mut self) {
        let Some(messages) = &mut self.messages else { return std::future::pending().await };
        if messages.next().await.is_none() {
            self.messages = None;
            return std::future::pending().await;
        }
        while let Some(Some(_)) = messages.next().now_or_never() {}
    }
}

/// Whether the remaining pause of a consumer stands for one without an end.
pub fn is_endless(paused_ms: u64) -> bool {
    Duration::from_millis(paused_ms) >= ENDLESS
}

impl Broker {
    /// Reads everything that is paused.
    /// Errors: `Unfit` where there is no bucket.
    pub async fn pauses(&self) -> Result<Known, BrokerError> {
        let (version, now_ms, n) = self.pauses_version().await?;
        let mut known = Known { pauses: Pauses::default(), version, now_ms };
        if n > 0 {
            let newest = self.each_entry(|e| entry(&mut known.pauses, e)).await?;
            self.must_be_current(newest, known.version.sequence).await?;
            // What came while it was read is in it, at least in part: a version that is newer than asked does no harm.
        }
        Ok(known)
    }

    /// One request where nothing has changed since that version; else everything is read.
    pub async fn pauses_since(&self, version: &Version) -> Result<News, BrokerError> {
        let (found, now_ms, _) = self.pauses_version().await?;
        if found == *version { Ok(News::Same { now_ms }) } else { Ok(News::Changed(self.pauses().await?)) }
    }

    /// Listens to hints that something changed. Where the server does not allow it, none comes: a later look tells the same.
    pub async fn pause_notices(&self) -> Notices {
        let messages = self.client.subscribe(self.names().control_pauses_subject()).await;
        if let Err(error) = &messages {
            tracing::warn!(%error, "no hints about pauses: they are noticed at the next look");
        }
        Notices { messages: messages.ok() }
    }

    /// Pauses. What was paused already is from now on paused by this one; gives the one before.
    pub async fn pause(&self, publisher: &Publisher, p: &Pause) -> Result<Option<Pause>, BrokerError> {
        let before = self.pauses().await?;
        let body = serde_json::to_vec(&pause::PauseDocument::from(p))
            .map_err(|e| BrokerError::Unfit(format!("the pause does not encode: {e}")))?;
        let slot = p.target.slot();
        // Ordering: the entry first. It holds by itself, at the workers; a consumer that is paused without one says nothing of
        // who, why, and until when.
        self.put(publisher, &slot, HeaderMap::new(), body.into()).await?;
        if let Target::Queue(queue) = &p.target {
            for lane in self.names().lanes(queue) {
                self.pause_consumer(&lane, p.until_ms, before.now_ms).await?;
            }
        }
        self.tidy_up(&slot, before.now_ms).await;
        let mut held = before.pauses.list(before.now_ms).into_iter();
        Ok(held.find(|b| b.target == p.target).cloned())
    }

    /// Ends a pause. A queue's consumers are resumed also where there is no entry. A key that is not paused and reads as a hash is
    /// taken for one: by that a pause is named whose entry cannot be read.
    pub async fn resume(&self, publisher: &Publisher, target: &Target) -> Result<Resumed, BrokerError> {
        let before = self.pauses().await?;
        let hash = target.as_hash().filter(|_| before.pauses.at(&target.slot()).is_none());
        let slot = hash.as_ref().unwrap_or(target).slot();
        let pause = before.pauses.at(&slot).cloned();
        if pause.is_some() {
            // Ordering: before the consumers, so that what they deliver then is not held any more.
            let mut h = HeaderMap::new();
            h.insert(headers::KV_OPERATION, headers::KV_DELETE);
            self.put(publisher, &slot, h, Bytes::new()).await?;
        }
        let mut consumers = 0;
        if let Target::Queue(queue) = target {
            for lane in self.names().lanes(queue) {
                let info = self.consumer_info(&lane.stream, &lane.consumer).await?;
                if info.is_some_and(|i| i.paused) {
                    self.api(format!("CONSUMER.PAUSE.{}.{}", lane.stream, lane.consumer), json!({})).await?;
                    consumers += 1;
                }
            }
        }
        self.tidy_up(&slot, before.now_ms).await;
        Ok(Resumed { pause: pause.filter(|p| p.holds_at(before.now_ms)), consumers })
    }

    /// Pauses consumers of paused queues that are not paused: those that were made anew. Gives a line for each.
    pub(super) async fn keep_paused(&self, lanes: &[Lane]) -> Result<Vec<String>, BrokerError> {
        let known = self.pauses().await?;
        let mut out = Vec::new();
        for lane in lanes {
            let Some(p) = known.pauses.of_queue(lane.queue.as_str(), known.now_ms) else { continue };
            let info = self.consumer_info(&lane.stream, &lane.consumer).await?;
            if info.is_some_and(|i| !i.paused) {
                self.pause_consumer(lane, p.until_ms, known.now_ms).await?;
                out.push(format!("{} paused, as its queue is", lane.title()));
            }
        }
        Ok(out)
    }

    async fn pause_consumer(
        &self,
        lane: &Lane,
        until_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<(), BrokerError> {
        let far = now_ms.saturating_add(u64::try_from(FAR.as_millis()).unwrap_or(0));
        let until = iso_millis(until_ms.unwrap_or(far));
        let subject = format!("CONSUMER.PAUSE.{}.{}", lane.stream, lane.consumer);
        let answer = self.api(subject, json!({ "pause_until": until })).await?;
        let is_paused = answer.get("paused").and_then(serde_json::Value::as_bool).unwrap_or(false);
        let is_over = until_ms.is_some_and(|end| end <= now_ms);
        if is_paused || is_over {
            Ok(())
        } else {
            Err(BrokerError::Unfit(format!("the server did not pause {}: {answer}", lane.title())))
        }
    }

    /// Stores an entry, then says that there is news.
    async fn put(
        &self,
        publisher: &Publisher,
        slot: &Slot,
        h: HeaderMap,
        body: Bytes,
    ) -> Result<Stored, BrokerError> {
        let subject = self.names().pause_subject(&slot.to_string());
        let stored = publisher.publish(&subject, &h, &body, Pace::call(self.call_timeout() * 3)).await?;
        // A hint: who misses it looks by himself before long.
        let hint = self.client.publish(self.names().control_pauses_subject(), Bytes::new()).await;
        if let Err(error) = hint.map_err(|e| BrokerError::Unreachable(e.to_string())).and(self.flush().await)
        {
            tracing::debug!(%error, "nobody was told that the pauses have changed");
        }
        Ok(stored)
    }

    /// Version, the broker's clock, and the number of messages: one request, answered by the leader of the bucket.
    async fn pauses_version(&self) -> Result<(Version, u64, u64), BrokerError> {
        let name = self.names().pauses();
        let answer = self.api(format!("STREAM.INFO.{name}"), json!({})).await;
        let answer = answer.map_err(|e| match e {
            BrokerError::Refused { code: 10059, .. } => BrokerError::Unfit(format!(
                "there is no bucket {} of what is paused: run `surety provision`",
                self.names().pauses_bucket()
            )),
            e => e,
        })?;
        let number = |path: &str| answer.pointer(path).and_then(serde_json::Value::as_u64);
        let created = answer.get("created").and_then(serde_json::Value::as_str);
        let found = created.zip(number("/state/last_seq")).zip(super::answered_ms(&answer));
        let ((created, sequence), now_ms) = found
            .ok_or_else(|| BrokerError::Unfit(format!("what the server says of {name} does not decode")))?;
        let version = Version { created: created.to_owned(), sequence };
        Ok((version, now_ms, number("/state/messages").unwrap_or(0)))
    }

    /// Visits every message of the bucket; gives the sequence of the last.
    async fn each_entry(&self, mut visit: impl FnMut(Entry<'_>)) -> Result<u64, BrokerError> {
        let (stream, prefix) = (self.names().pauses(), self.names().pause_subject(""));
        let mut newest = 0;
        loop {
            let (page, is_more) =
                self.messages(&stream, newest + 1, &self.names().pause_subject(">"), PAGE).await?;
            for m in &page {
                newest = m.sequence;
                let key = m.subject.strip_prefix(prefix.as_str()).unwrap_or_default();
                match Slot::parse(key) {
                    Some(slot) => visit(Entry { slot, message: m }),
                    None => {
                        tracing::warn!(key, "an entry among the pauses is of no kind that this release knows")
                    }
                }
            }
            if !is_more || page.is_empty() {
                return Ok(newest);
            }
        }
    }

    /// Direct reads are answered by any replica, also by one that lags behind. `newest`: what was read; `last`: what the leader
    /// said before.
    async fn must_be_current(&self, newest: u64, last: u64) -> Result<(), BrokerError> {
        if newest >= last {
            return Ok(());
        }
        // The last message may be gone, too, if somebody purged it: the leader knows.
        let newest_of_all = json!({ "last_by_subj": self.names().pause_subject(">") });
        let there = self.leader_has(&self.names().pauses(), &newest_of_all).await?;
        if there.is_none_or(|there| newest >= there) {
            return Ok(());
        }
        Err(BrokerError::Unreachable("a replica of the bucket of pauses lags behind".to_owned()))
    }

    /// Clears away what is over, but for the place that was just written: its message is the newest of the bucket.
    async fn tidy_up(&self, but: &Slot, now_ms: u64) {
        let mut over = Vec::new();
        let read = self
            .each_entry(|e| {
                let is_over = e.pause().is_none_or(|p| !p.holds_at(now_ms));
                if is_over && e.slot != *but && over.len() < CLEARED {
                    over.push((e.slot.to_string(), e.message.sequence));
                }
            })
            .await;
        let mut done = read.map(drop);
        for (slot, sequence) in over {
            if done.is_err() {
                break;
            }
            // Up to that very message: who paused it again meanwhile is not undone.
            let body = json!({ "filter": self.names().pause_subject(&slot), "seq": sequence + 1 });
            done = self.api(format!("STREAM.PURGE.{}", self.names().pauses()), body).await.map(drop);
        }
        if let Err(error) = done {
            tracing::debug!(%error, "what is over stays among the pauses; the next change clears it away");
        }
    }
}

/// One message of the bucket.
struct Entry<'a> {
    slot: Slot,
    message: &'a Delivery,
}

impl Entry<'_> {
    /// The pause, unless the entry says that there is none any more.
    fn pause(&self) -> Option<Pause> {
        // Deleted or purged, whatever wrote it.
        let is_marker = |name| self.message.header(name).is_some();
        if is_marker(headers::KV_OPERATION) || is_marker(headers::MARKER) {
            return None;
        }
        pause::read(&self.slot, &self.message.payload, self.message.stored_ms)
    }
}

/// Takes an entry in: a later one of the same place counts.
fn entry(pauses: &mut Pauses, e: Entry<'_>) {
    match e.pause() {
        Some(p) => pauses.put(e.slot, p),
        None => pauses.remove(&e.slot),
    }
}
