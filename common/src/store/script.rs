//! Loading, calling and decoding of the scripts; the connection.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Script, cluster_routing::Slot};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use tokio::sync::watch;

use super::{
    entry::{Origin, OutboxEntry},
    gate::{Gate, Head, Seen},
    keys::Keys,
    link::Link,
    login::{self, Connection, Login},
    trouble::{self, Trouble},
    unreadable::named_in,
};
use crate::{
    config::Address,
    domain::ids::{Namespace, SessionId},
    pace::{Pace, Transient, retry},
    telemetry::metrics::shared,
};

/// Why a call to the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Network, timeout, restart or full memory: may go away by itself.
    #[error("redis is not reachable or not ready: {0}")]
    Unreachable(String),
    /// The server refused the call: repeating it will not help.
    #[error("redis refused the call: {0}")]
    Refused(String),
    /// The server does not let us in, or does not let us do this. Names who we are to it.
    #[error("{0}")]
    Denied(String),
    /// The data set is gone, or is another one than this process opened. Nothing was written.
    #[error("the data in redis is not the data set this process opened ({0}); nothing was written")]
    OtherStore(&'static str),
    /// The data set has lost something and is being made whole: nothing was written. What waits may wait until it is.
    #[error("redis has lost data; it is being rebuilt from the journal")]
    Rebuilding,
    /// The session of the call expired: every attempt it owned may be running elsewhere.
    #[error("the session expired")]
    SessionLost,
    /// Too many journal entries wait for the broker; nothing new starts.
    #[error("the outbox is full: the journal cannot be published")]
    OutboxFull,
    /// Records that this release cannot read. Nothing was written.
    #[error("{why}")]
    Unreadable { ids: Vec<String>, why: String },
    /// A reply that this release cannot read.
    #[error("reply from redis does not decode: {0}")]
    Decode(String),
}

impl StoreError {
    /// The record of this job cannot be read.
    pub fn unreadable(id: &str) -> Self {
        Self::Unreadable { ids: vec![id.to_owned()], why: format!("the record of job {id} does not decode") }
    }
}

impl Transient for StoreError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Rebuilding)
    }
}

impl From<redis::RedisError> for StoreError {
    fn from(e: redis::RedisError) -> Self {
        if login::is_denied(&e) {
            return Self::Denied(login::reason(&e).to_owned());
        }
        let text = e.to_string();
        match trouble::of(&e) {
            Trouble::Passing | Trouble::Elsewhere => Self::Unreachable(text),
            Trouble::Lasting => Self::Refused(text),
        }
    }
}

/// How to reach the store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `redis://host:port/db`, `rediss://…`; of a cluster one node, or several separated by commas.
    pub url: Address,
    /// Login and TLS.
    pub login: Login,
    pub namespace: Namespace,
    /// Number of partitions, from the metadata of `JOBS`.
    pub partitions: u32,
    /// How long one call may take before it is repeated.
    pub call_timeout: Duration,
    /// How long a call is repeated before its error is given to the caller.
    pub retry_limit: Duration,
    /// How long what is kept beside the record of a failed attempt is kept.
    pub keep: Duration,
    /// What could be claimed and was not within this time is looked at.
    pub look_after: Duration,
    /// So many attempts of a job may be lost.
    pub lost_limit: u32,
}

/// What a script answered.
#[derive(Debug, Clone)]
pub struct Answer<R> {
    /// The store's clock at the call.
    pub now_ms: u64,
    pub results: R,
    /// Entries to publish: those that this call wrote, and those of outcomes that are not journaled yet.
    pub entries: Vec<OutboxEntry>,
}

/// The scripts, each with the prelude in front.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) claim: Script,
    pub(super) finish: Script,
    pub(super) lost: Script,
    pub(super) progress: Script,
    pub(super) settle: Script,
    pub(super) replay: Script,
    pub(super) renew: Script,
    pub(super) session: Script,
    pub(super) forget: Script,
    pub(super) due: Script,
    pub(super) told: Script,
    pub(super) stop: Script,
    pub(super) note: Script,
    pub(super) quarantine: Script,
    pub(super) register: Script,
    pub(super) carrier: Script,
    pub(super) gate: Script,
    pub(super) restore: Script,
    pub(super) defer: Script,
    pub(super) guard: Script,
    pub(super) watch: Script,
}

macro_rules! script {
    ($($name:literal),+) => {
        Script::new(concat!(
            include_str!("scripts/prelude.lua"),
            $("\n", include_str!(concat!("scripts/", $name, ".lua"))),+
        ))
    };
}

impl Scripts {
    fn new() -> Self {
        Self {
            claim: script!("claim"),
            finish: script!("finish"),
            lost: script!("lost"),
            progress: script!("progress"),
            settle: script!("settle"),
            replay: script!("replay"),
            renew: script!("renew"),
            session: script!("session"),
            forget: script!("forget"),
            due: script!("due"),
            told: script!("told"),
            stop: script!("stop"),
            note: script!("note"),
            quarantine: script!("quarantine"),
            register: script!("register"),
            carrier: script!("carrier"),
            gate: script!("gate"),
            restore: script!("restore"),
            defer: script!("defer"),
            guard: script!(
                "guards/frame",
                "guards/rate",
                "guards/slots",
                "guards/pause",
                "guards/gates",
                "guards/loops",
                "guard"
            ),
            watch: script!("watch"),
        }
    }
}

/// One self-healing connection to Redis, and the operations on it. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    connection: Connection,
    /// Of each partition's keys.
    slots: Vec<Slot>,
    pub(super) scripts: Scripts,
    pub(super) keys: Keys,
    pub(super) options: StoreOptions,
    /// What this process knows of each partition's data set.
    pub(super) seen: Vec<Seen>,
    /// Creation time of the `JOBS` stream that this process opened the data set for.
    pub(super) jobs: Mutex<String>,
    /// Whether jobs may start, for who waits.
    pub(super) is_open: watch::Sender<bool>,
    /// Why the server is not fit, if it is not.
    pub(super) unfit: Mutex<Option<String>>,
    /// Why the server refused the last write, if it did.
    pub(super) refused: Mutex<Option<String>>,
    /// Outbox entries that JetStream confirmed: trimmed by the next call, per partition.
    confirmed: Vec<Mutex<Vec<String>>>,
    calls: AtomicU64,
    /// Unique prefix of this process's call ids.
    process: String,
}

/// Most confirmed entries that one call trims: bounds the script.
const TRIM_CAP: usize = 500;

impl Store {
    /// Connects, waiting for the server as long as `retry_limit` says. Where the server is a node of a cluster, the whole
    /// cluster is connected to.
    /// Errors: `Unreachable` with the last cause; `Denied` for a wrong login; `Refused` for a wrong URL, file or certificate.
    pub async fn connect(options: StoreOptions) -> Result<Self, StoreError> {
        let link = retry(Pace::call(options.retry_limit), || Link::connect(&options)).await?;
        let keys = Keys::new(options.namespace.clone(), options.partitions);
        let n = keys.partitions() as usize;
        Ok(Self {
            inner: Arc::new(Inner {
                connection: Connection::new(link, &options),
                slots: (0..keys.partitions()).map(|p| Slot::for_key(keys.store(p))).collect(),
                scripts: Scripts::new(),
                keys,
                options,
                seen: (0..n).map(|_| Seen::default()).collect(),
                jobs: Mutex::new(String::new()),
                is_open: watch::Sender::new(true),
                unfit: Mutex::default(),
                refused: Mutex::default(),
                confirmed: (0..n).map(|_| Mutex::new(Vec::new())).collect(),
                calls: AtomicU64::new(0),
                process: process_id(),
            }),
        })
    }

    /// Connects anew to where the address leads now, where there is one server: it may have another role by now.
    pub(crate) async fn connect_anew(&self) {
        self.inner.connection.connect_anew().await;
    }

    /// How long a call is repeated.
    pub(crate) fn patience(&self) -> Duration {
        self.inner.options.retry_limit
    }

    /// So many attempts of a job may be lost.
    pub fn lost_limit(&self) -> u32 {
        self.inner.options.lost_limit
    }

    /// The keys of this store.
    pub fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// A multiplexed handle of the one connection. What names no key goes to any node of a cluster: see [`Store::home_of`].
    pub(super) fn connection(&self) -> Connection {
        self.inner.connection.clone()
    }

    /// The same, to the node that has the keys of a partition.
    pub(super) fn home_of(&self, p: u32) -> Connection {
        self.connection().at(self.slot(p))
    }

    /// Slot of the keys of a partition.
    pub(super) fn slot(&self, p: u32) -> Slot {
        self.inner.slots.get(p as usize).copied().unwrap_or_else(|| Slot::for_key(self.keys().store(p)))
    }

    /// A call id that no other call of any process has.
    pub(super) fn call_id(&self) -> String {
        format!("{}.{:x}", self.inner.process, self.inner.calls.fetch_add(1, Ordering::Relaxed))
    }

    /// Gives the next call the id of the last one, as a repeat after a lost reply has it.
    #[cfg(feature = "faults")]
    pub fn repeat_last_call(&self) {
        self.inner.calls.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes entries that JetStream confirmed; the next call of the partition trims them.
    pub fn confirm(&self, p: u32, ids: impl IntoIterator<Item = String>) {
        if let Some(c) = self.inner.confirmed.get(p as usize) {
            c.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
        }
    }

    /// Forgets what is to be trimmed: those entries are of another data set.
    pub(super) fn drop_confirmed(&self, p: u32) {
        if let Some(c) = self.inner.confirmed.get(p as usize) {
            c.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    pub(super) fn take_confirmed(&self, p: u32) -> Vec<String> {
        let Some(c) = self.inner.confirmed.get(p as usize) else { return Vec::new() };
        let mut c = c.lock().unwrap_or_else(PoisonError::into_inner);
        let from = c.len().saturating_sub(TRIM_CAP);
        c.split_off(from)
    }

    /// Calls a script on one partition. `jobs` are the job keys in the order of the items, then what else it names.
    /// Transient errors are repeated under the same call id until `retry_limit`. A data set that is not the one that this
    /// process knows is looked at, and its gate closed if it has lost something; the call then gives `Rebuilding`.
    pub(super) async fn call<F, R>(
        &self,
        script: &Script,
        p: u32,
        session: Option<&SessionId>,
        jobs: &[String],
        frame: &F,
        items: Vec<u8>,
    ) -> Result<Answer<Vec<R>>, StoreError>
    where
        F: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        self.call_or(script, p, session, jobs, frame, items, None).await.map(|(answer, _)| answer)
    }

    /// As [`Store::call`]. A result that does not decode is replaced by what `garbled` makes, where it is given; its place among
    /// the results is told.
    #[expect(clippy::too_many_arguments, reason = "those of `call`, and one")]
    pub(super) async fn call_or<F, R>(
        &self,
        script: &Script,
        p: u32,
        session: Option<&SessionId>,
        jobs: &[String],
        frame: &F,
        items: Vec<u8>,
        garbled: Option<fn() -> R>,
    ) -> Result<(Answer<Vec<R>>, Vec<usize>), StoreError>
    where
        F: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        match self.call_here(script, p, session, jobs, frame, items, garbled).await {
            Err(StoreError::OtherStore(why)) => {
                self.reconcile(p, why).await?;
                Err(StoreError::Rebuilding)
            }
            other => other,
        }
    }

    /// [`Store::call_or`] that gives `OtherStore` where the data set is another one.
    #[expect(clippy::too_many_arguments, reason = "those of `call`, and one")]
    pub(super) async fn call_here<F, R>(
        &self,
        script: &Script,
        p: u32,
        session: Option<&SessionId>,
        jobs: &[String],
        frame: &F,
        items: Vec<u8>,
        garbled: Option<fn() -> R>,
    ) -> Result<(Answer<Vec<R>>, Vec<usize>), StoreError>
    where
        F: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let confirmed = self.take_confirmed(p);
        let keys = &self.inner.keys;
        let mut call = script.prepare_invoke();
        call.key(keys.store(p)).key(keys.due(p)).key(keys.outbox(p)).key(keys.sessions(p));
        call.key(session.map_or_else(|| keys.key_without_session(p), |s| keys.run(p, s)));
        call.key(keys.ended(p));
        for k in jobs {
            call.key(k);
        }
        call.arg(pack(frame)?).arg(pack(&confirmed)?).arg(items).arg(self.seen_commit(p));
        let (field, mark) = self.own_mark(p);
        call.arg(field).arg(mark);
        let mut tries = 0;
        let answer = retry(Pace::call(self.inner.options.retry_limit), || {
            tries += 1;
            // A node that does not have the script is told it: that node, and no other.
            let mut connection = self.home_of(p);
            let call = &call;
            async move {
                let origin = self.origin(p);
                let answer: Result<Vec<Vec<u8>>, _> = call.invoke_async(&mut connection).await;
                if let Err(e) = &answer
                    && trouble::refuses_writes(e)
                {
                    self.note_refusal(Some(e.to_string()));
                }
                Ok::<_, StoreError>((origin, answer?))
            }
        })
        .await;
        if tries > 1 {
            shared().redis_retries.inc_by(tries - 1);
        }
        let (origin, parts) = match answer {
            Ok(answered) => answered,
            Err(e) => {
                self.confirm(p, confirmed);
                return Err(match e {
                    // The scripts say so of records; the call wrote nothing.
                    StoreError::Refused(why) => match named_in(&why) {
                        ids if ids.is_empty() => StoreError::Refused(why),
                        ids => StoreError::Unreadable {
                            why: format!("records do not decode: {}", ids.join(", ")),
                            ids,
                        },
                    },
                    e => e,
                });
            }
        };
        let decoded = head(&parts).and_then(|head| {
            self.hear(p, &head);
            decode(parts, &head, &origin, garbled)
        });
        decoded.inspect_err(|e| {
            if matches!(e, StoreError::Decode(_)) {
                unreadable();
            }
            self.confirm(p, confirmed);
        })
    }
}

/// Counts a record or a reply that could not be read.
pub(super) fn unreadable() {
    shared().decode_errors.with_label_values(&["record"]).inc();
}

/// Unique among all processes that may ever call: 60 random bits. Short, because it stands in every record.
fn process_id() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let random = ulid::Ulid::generate().random();
    (0..12)
        .filter_map(|i| ALPHABET.get(((random >> (5 * i)) & 31) as usize))
        .map(|b| char::from(*b))
        .collect()
}

pub(super) fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, StoreError> {
    rmp_serde::to_vec(value).map_err(|e| StoreError::Decode(format!("arguments do not encode: {e}")))
}

fn undecodable(e: rmp_serde::decode::Error) -> StoreError {
    StoreError::Decode(e.to_string())
}

/// The head of a reply.
fn head(parts: &[Vec<u8>]) -> Result<Head, StoreError> {
    let head = parts.first().ok_or_else(|| StoreError::Decode("the reply is empty".into()))?;
    let (code, now_ms, commit, gate, mark): (u8, u64, u64, u8, String) =
        rmp_serde::from_slice(head).map_err(undecodable)?;
    let gate = Gate::from_code(gate).ok_or_else(|| StoreError::Decode(format!("unknown gate {gate}")))?;
    Ok(Head { code, now_ms, commit, gate, mark })
}

/// A reply: head, results one after the other, then id and text of each entry.
fn decode<R: DeserializeOwned>(
    parts: Vec<Vec<u8>>,
    head: &Head,
    origin: &Origin,
    garbled: Option<fn() -> R>,
) -> Result<(Answer<Vec<R>>, Vec<usize>), StoreError> {
    let mut parts = parts.into_iter().skip(1);
    let packed = parts.next().ok_or_else(|| StoreError::Decode("the reply is cut off".into()))?;
    let error = undecodable;
    match head.code {
        0 => {}
        1 => return Err(StoreError::OtherStore("it is empty")),
        2 => return Err(StoreError::OtherStore("another incarnation")),
        3 => return Err(StoreError::SessionLost),
        4 => return Err(StoreError::OutboxFull),
        5 => return Err(StoreError::Rebuilding),
        6 => return Err(StoreError::OtherStore("an older copy")),
        other => return Err(StoreError::Decode(format!("unknown reply code {other}"))),
    }
    let (mut results, mut bad) = (Vec::new(), Vec::new());
    let mut left = packed.as_slice();
    while !left.is_empty() {
        let here = left;
        match (R::deserialize(&mut rmp_serde::Deserializer::new(&mut left)), garbled) {
            (Ok(result), _) => results.push(result),
            (Err(e), None) => return Err(error(e)),
            (Err(_), Some(make)) => {
                // The call is committed: what it did for the others must not be lost with the answer about this one.
                left = here;
                let skip = IgnoredAny::deserialize(&mut rmp_serde::Deserializer::new(&mut left));
                skip.map_err(error)?;
                bad.push(results.len());
                results.push(make());
            }
        }
    }
    let mut entries = Vec::new();
    while let Some(id) = parts.next() {
        let text = parts.next().ok_or_else(|| StoreError::Decode("an entry is cut off".into()))?;
        let id = String::from_utf8(id).map_err(|e| StoreError::Decode(e.to_string()))?;
        entries.push(OutboxEntry::decode(id, &text, origin));
    }
    Ok((Answer { now_ms: head.now_ms, results, entries }, bad))
}
