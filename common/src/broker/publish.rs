//! Publishing with counted acks: one shared inbox, one token per message, so that thousands of publishes may be under way
//! at the cost of one subscription. (About 1.4 times the rate of one future with its own inbox each.)

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{HeaderMap, client::PublishErrorKind};
use bytes::Bytes;
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

use xxhash_rust::xxh3::xxh3_64;

use super::{
    Broker, BrokerError,
    denial::{Denials, Listener},
};
use crate::pace::{Pace, retry};

/// The broker's acknowledgement of one publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Sequence in the stream; of the original where `is_duplicate`.
    pub sequence: u64,
    /// The stream already had this message id within its window.
    pub is_duplicate: bool,
}

/// Most publishes without acknowledgement. Beyond it `publish` waits: the buffer of the client stays bounded.
pub const IN_FLIGHT: usize = 8192;
/// A message takes one more of the [`IN_FLIGHT`] places for each such number of bytes, so that at most 64 MiB are buffered.
const BYTES_PER_PLACE: usize = 8 * 1024;

/// Who waits for an acknowledgement, with the places that its message takes.
struct Waiter {
    reply: oneshot::Sender<Result<Stored, BrokerError>>,
    _places: OwnedSemaphorePermit,
    /// Hash of the subject: a refusal names that, and no token.
    subject: u64,
}

/// Waiters by token. Tokens are given in order and mostly answered in order, so a window over them needs no hashing.
#[derive(Default)]
struct Window {
    first: u64,
    waiters: VecDeque<Option<Waiter>>,
}

impl Window {
    /// Adds a waiter; gives its token.
    fn add(&mut self, waiter: Waiter) -> u64 {
        self.waiters.push_back(Some(waiter));
        self.first + self.waiters.len() as u64 - 1
    }

    /// Takes a waiter out, if it is still there.
    fn take(&mut self, token: u64) -> Option<Waiter> {
        let at = usize::try_from(token.checked_sub(self.first)?).ok()?;
        let waiter = self.waiters.get_mut(at)?.take();
        while let Some(None) = self.waiters.front() {
            self.waiters.pop_front();
            self.first += 1;
        }
        waiter
    }

    /// Takes out all whose subject is as wanted.
    fn take_of(&mut self, is_wanted: impl Fn(u64) -> bool) -> Vec<Waiter> {
        self.waiters.iter_mut().filter_map(|w| w.take_if(|w| is_wanted(w.subject))).collect()
    }
}

type Waiting = Arc<Mutex<Window>>;

/// Why the server stores nothing, and when it said so last.
type Refusal = Arc<Mutex<Option<(String, Instant)>>>;
/// A refusal that was not repeated for so long says nothing any more: nothing was tried meanwhile.
const REFUSAL_AGE: Duration = Duration::from_secs(60);

/// Publishes to JetStream and matches the acknowledgements. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    client: async_nats::Client,
    inbox: Arc<str>,
    waiting: Waiting,
    permits: Arc<Semaphore>,
    timeout: Duration,
    denials: Denials,
    /// Why the server does not store, as its last answer said.
    refusal: Refusal,
    _tasks: Arc<(AbortOnDrop, AbortOnDrop)>,
}

impl Waiter {
    fn answer(self, answer: Result<Stored, BrokerError>) {
        if self.reply.send(answer).is_err() {
            tracing::trace!("nobody waits for this acknowledgement any more");
        }
    }
}

/// Answers those whose publish the server refused; all of them, when no acknowledgement can reach us.
async fn refuse(mut listener: Listener, denials: Denials, waiting: Waiting) {
    loop {
        let (new, deaf) = listener.take();
        let refused: Vec<_> = new
            .iter()
            .filter(|d| d.is_publish)
            .map(|d| (xxh3_64(d.subject.as_bytes()), denials.error(&d.subject, true)))
            .collect();
        let why = |hash: u64| match &deaf {
            Some(e) => Some(e),
            None => refused.iter().find(|(h, _)| *h == hash).map(|(_, e)| e),
        };
        let taken =
            waiting.lock().unwrap_or_else(PoisonError::into_inner).take_of(|hash| why(hash).is_some());
        for waiter in taken {
            if let Some(e) = why(waiter.subject).cloned() {
                waiter.answer(Err(e));
            }
        }
        listener.changed().await;
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The acknowledgement of one publish, still to come.
pub struct Pending {
    reply: oneshot::Receiver<Result<Stored, BrokerError>>,
    token: u64,
    waiting: Waiting,
    deadline: Instant,
}

impl Pending {
    /// Waits for the acknowledgement.
    /// Errors: `Unreachable` when it did not come within the call timeout of the send (so that of thousands under way that
    /// were lost together only the first costs a wait): the message may or may not be stored; repeat it under the same id.
    pub async fn stored(mut self) -> Result<Stored, BrokerError> {
        match tokio::time::timeout_at(self.deadline, &mut self.reply).await {
            Ok(Ok(r)) => r,
            Ok(Err(_)) => Err(BrokerError::Unreachable("the connection was closed".into())),
            Err(_) => Err(BrokerError::Unreachable("no acknowledgement in time".into())),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        drop(self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take(self.token));
    }
}

impl Publisher {
    /// Subscribes to the inbox and starts the reader.
    pub async fn start(broker: &Broker) -> Result<Self, BrokerError> {
        let client = broker.client.clone();
        let inbox: Arc<str> = client.new_inbox().into();
        let mut replies = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|e| BrokerError::Unreachable(e.to_string()))?;
        let waiting: Waiting = Arc::default();
        let map = waiting.clone();
        let refusal: Refusal = Arc::default();
        let refused_why = refusal.clone();
        let reader = tokio::spawn(async move {
            while let Some(m) = replies.next().await {
                let Some(token) =
                    m.subject.rsplit_once('.').and_then(|(_, t)| u64::from_str_radix(t, 36).ok())
                else {
                    continue;
                };
                let entry = map.lock().unwrap_or_else(PoisonError::into_inner).take(token);
                if let Some(waiter) = entry {
                    let answer = read_ack(&m);
                    note_refusal(&refused_why, &answer);
                    waiter.answer(answer);
                }
            }
        });
        let refused = tokio::spawn(refuse(broker.denials.listen(), broker.denials.clone(), waiting.clone()));
        Ok(Self {
            client,
            inbox,
            waiting,
            permits: Arc::new(Semaphore::new(IN_FLIGHT)),
            timeout: broker.call_timeout(),
            denials: broker.denials.clone(),
            refusal,
            _tasks: Arc::new((AbortOnDrop(reader), AbortOnDrop(refused))),
        })
    }

    /// Why the server stores nothing: its disk, its memory or a limit of its account is used up, as its last answer said. What was to
    /// be told is kept and tried again meanwhile.
    pub fn refusal(&self) -> Option<String> {
        let known = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(_, at)| at.elapsed() < REFUSAL_AGE).map(|(why, _)| why.clone())
    }

    /// Sends one message; waits only while [`IN_FLIGHT`] are unacknowledged. The result tells when it is stored.
    pub async fn send(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Pending, BrokerError> {
        if let Some(deaf) = self.denials.is_deaf() {
            return Err(deaf);
        }
        let places = 1 + payload.len() / BYTES_PER_PLACE;
        let permit = self
            .permits
            .clone()
            .acquire_many_owned(u32::try_from(places.min(IN_FLIGHT)).unwrap_or(1))
            .await
            .map_err(|_| BrokerError::Unreachable("the connection was closed".into()))?;
        let (tx, reply) = oneshot::channel();
        let waiter = Waiter { reply: tx, _places: permit, subject: xxh3_64(subject.as_bytes()) };
        let token = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).add(waiter);
        let deadline = Instant::now() + self.timeout;
        let pending = Pending { reply, token, waiting: self.waiting.clone(), deadline };
        self.client
            .publish_with_reply_and_headers(
                subject,
                format!("{}.{}", self.inbox, base36(token)),
                headers,
                payload,
            )
            .await
            .map_err(|e| match e.kind() {
                // No try would find it smaller.
                PublishErrorKind::MaxPayloadExceeded => BrokerError::Refused { code: 0, text: e.to_string() },
                _ => BrokerError::Unreachable(e.to_string()),
            })?;
        Ok(pending)
    }

    /// Publishes until it is stored: transient failures are repeated with the same headers, so with the same message id.
    /// `NoStream` is repeated too while `patience` lasts, because elections look the same.
    pub async fn publish(
        &self,
        subject: &str,
        headers: &HeaderMap,
        payload: &Bytes,
        patience: Pace,
    ) -> Result<Stored, BrokerError> {
        let mut missing = 0;
        retry(patience, || {
            let attempt = self.send(subject.to_owned(), headers.clone(), payload.clone());
            missing += 1;
            let tries = missing;
            async move {
                match attempt.await?.stored().await {
                    Err(BrokerError::NoStream { .. }) if tries <= 3 => {
                        Err(BrokerError::Unreachable(format!("no stream answers on {subject:?}")))
                    }
                    Err(BrokerError::NoStream { .. }) => {
                        Err(BrokerError::NoStream { subject: subject.to_owned() })
                    }
                    other => other,
                }
            }
        })
        .await
    }
}

/// The server's codes for "I cannot store this now, whatever it is": limits of the account (10002), insufficient resources (10023,
/// seen on a full disk), memory (10028) or storage (10047), and a store that failed (10077).
const OUT_OF_ROOM: [u64; 5] = [10002, 10023, 10028, 10047, 10077];
/// What a stream of ours says that is full by its own limits, with the code of a store that failed.
const OWN_LIMITS: [&str; 3] = ["maximum messages", "maximum bytes", "message size exceeds"];

/// Notes whether the server stores what it is sent; says it once in the log, and its end.
fn note_refusal(known: &Refusal, answer: &Result<Stored, BrokerError>) {
    let why = match answer {
        Ok(stored) if stored.is_duplicate => return,
        Ok(_) => None,
        Err(BrokerError::Refused { code, text }) if is_out_of_room(*code, text) => Some(text.clone()),
        // The server as a whole: it says 503 then, as one that is about to elect a leader does.
        Err(BrokerError::Unreachable(text)) if text.starts_with("insufficient") => Some(text.clone()),
        Err(_) => return,
    };
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    match (&why, known.is_some()) {
        (Some(why), false) => tracing::error!(
            why,
            alert = "nats_refuses_writes",
            "nats stores nothing: its disk, its memory or the storage of its account is used up; what is to be told waits"
        ),
        (None, true) => tracing::info!("nats stores again"),
        _ => {}
    }
    *known = why.map(|why| (why, Instant::now()));
}

/// Whether the server as a whole has no room. A stream that is full by limits of its own refuses newcomers, as it should.
fn is_out_of_room(code: u64, text: &str) -> bool {
    OUT_OF_ROOM.contains(&code) && !OWN_LIMITS.iter().any(|own| text.contains(own))
}

fn base36(mut n: u64) -> String {
    let mut out = Vec::with_capacity(8);
    loop {
        out.push(char::from_digit((n % 36) as u32, 36).unwrap_or('0'));
        n /= 36;
        if n == 0 {
            return out.iter().rev().collect();
        }
    }
}

#[derive(serde::Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<AckError>,
}

#[derive(serde::Deserialize)]
struct AckError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn read_ack(m: &async_nats::Message) -> Result<Stored, BrokerError> {
    if m.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
        return Err(BrokerError::NoStream { subject: String::new() });
    }
    match serde_json::from_slice::<Ack>(&m.payload) {
        Ok(Ack { error: None, seq, duplicate }) => Ok(Stored { sequence: seq, is_duplicate: duplicate }),
        // 503 with a limit code means "full", not "away".
        Ok(Ack { error: Some(e), .. }) if e.code == 503 && e.err_code != 10077 => {
            Err(BrokerError::Unreachable(e.description))
        }
        Ok(Ack { error: Some(e), .. }) => Err(BrokerError::Refused { code: e.err_code, text: e.description }),
        Err(e) => Err(BrokerError::Unreachable(format!("acknowledgement does not decode: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_are_found_in_any_order_and_the_window_moves_on() {
        let permits = Arc::new(Semaphore::new(10));
        let waiter = || Waiter {
            reply: oneshot::channel().0,
            _places: permits.clone().try_acquire_owned().unwrap(),
            subject: 7,
        };
        let mut w = Window::default();
        let tokens: Vec<u64> = (0..4).map(|_| w.add(waiter())).collect();
        assert_eq!(tokens, [0, 1, 2, 3]);
        assert!(w.take(2).is_some() && w.take(2).is_none());
        assert!(w.take(0).is_some() && w.take(1).is_some());
        assert_eq!((w.first, w.waiters.len()), (3, 1));
        assert!(w.take(0).is_none() && w.take(99).is_none() && w.take(3).is_some());
        assert_eq!(w.add(waiter()), 4);
        assert!(w.take_of(|s| s == 8).is_empty());
        assert_eq!(w.take_of(|s| s == 7).len(), 1);
        assert!(w.take(4).is_none());
        drop(w);
        assert_eq!(permits.available_permits(), 10);
    }

    #[test]
    fn tokens_round_trip() {
        for n in [0, 1, 35, 36, 1_000_000, u64::MAX] {
            assert_eq!(u64::from_str_radix(&base36(n), 36).unwrap(), n);
        }
    }
}
