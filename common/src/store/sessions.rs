//! The fleet: live sessions, what each says of itself, and what it runs.

use std::collections::BTreeMap;

use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use super::{
    ops::parse_member,
    record::Record,
    script::{Store, StoreError},
    unreadable::Read,
};
use crate::domain::{JobId, ids::SessionId, text};

/// Jobs by queue and type.
pub type PassedOn = BTreeMap<String, BTreeMap<String, u64>>;

/// What a worker says of itself when it opens a session. Fields are only ever added; one that an older release did not
/// write is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub host: Option<String>,
    pub pid: Option<u32>,
    /// RFC 3339, by the worker's own clock: for people only.
    pub started_at: Option<String>,
    /// Release of the worker.
    pub version: Option<String>,
    /// Jobs that it runs at once.
    pub slots: Option<u64>,
    /// Queues that it pulls from, in rank order.
    pub queues: Option<Vec<String>>,
    /// Types that it has handlers for; the first 200.
    pub types: Option<Vec<String>>,
    /// Why it cannot take jobs, part by part; empty: it can.
    pub not_ready: Option<Vec<String>>,
    /// Jobs that it passed on lately because it has no handler for them.
    pub passed_on: Option<PassedOn>,
    /// Its `lease.ttl` in milliseconds: with the expiry it tells the age of the last renewal.
    pub ttl_ms: Option<u64>,
}

impl SessionInfo {
    /// Whether the session pulls from this queue; `None` when it did not say.
    pub fn serves(&self, queue: &str) -> Option<bool> {
        self.queues.as_ref().map(|all| all.iter().any(|q| q == queue))
    }

    /// Whether it has a handler for this type; `None` when it did not say.
    pub fn handles(&self, kind: &str) -> Option<bool> {
        let types = self.types.as_ref()?;
        let is_cut = types.len() >= TYPES_SAID;
        types.iter().any(|t| t == kind).then_some(true).or((!is_cut).then_some(false))
    }
}

/// An attempt that a session holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub job: JobId,
    pub epoch: u64,
    /// `None` when the record is gone, or is of another attempt by now.
    pub record: Option<Record>,
}

/// One session, over all partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetSession {
    pub id: String,
    /// `None` when what it says of itself is missing or does not decode.
    pub info: Option<SessionInfo>,
    /// When it expires unless renewed (milliseconds of the store's clock): the earliest of all partitions.
    pub expires_ms: u64,
    pub held: Vec<Held>,
}

impl FleetSession {
    /// Whether its lease is over: the reaper takes its attempts back.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms <= now_ms
    }

    /// Milliseconds since its last renewal; `None` when it did not say its TTL.
    pub fn renewed_ago_ms(&self, now_ms: u64) -> Option<u64> {
        let ttl = self.info.as_ref()?.ttl_ms?;
        Some((now_ms + ttl).saturating_sub(self.expires_ms))
    }
}

/// Every session that was neither closed nor taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    /// The store's clock when it was read.
    pub now_ms: u64,
    /// Oldest session id first.
    pub sessions: Vec<FleetSession>,
}

impl Fleet {
    /// Sessions whose lease is not over.
    pub fn alive(&self) -> impl Iterator<Item = &FleetSession> + Clone {
        self.sessions.iter().filter(|s| !s.is_expired(self.now_ms))
    }
}

/// A session with how much it runs, but not what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mate {
    /// `None` when what it says of itself is missing or does not decode.
    pub info: Option<SessionInfo>,
    /// When it expires unless renewed (milliseconds of the store's clock): the earliest of all partitions.
    pub expires_ms: u64,
    pub n_held: u64,
}

/// Types that a worker names at most.
pub const TYPES_SAID: usize = 200;

/// Jobs of one type that no live worker of their queue has a handler for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhandled {
    pub kind: String,
    pub jobs: u64,
    /// The type that was meant, if a known one is near enough.
    pub nearest: Option<String>,
}

impl std::fmt::Display for Unhandled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} jobs of type {:?} go from worker to worker: none has a handler for it",
            self.jobs, self.kind
        )?;
        match &self.nearest {
            Some(nearest) => write!(f, " (the nearest known type is {nearest:?})"),
            None => Ok(()),
        }
    }
}

/// What the live workers passed on lately of a queue, and none of them has a handler for.
pub fn unhandled<'a>(infos: impl Iterator<Item = &'a SessionInfo> + Clone, queue: &str) -> Vec<Unhandled> {
    let mut out: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, n) in infos.clone().filter_map(|i| i.passed_on.as_ref()?.get(queue)).flatten() {
        *out.entry(kind).or_default() += n;
    }
    let is_handled =
        |kind: &str| infos.clone().any(|i| i.serves(queue) != Some(false) && i.handles(kind) != Some(false));
    let nearest = |kind: &str| {
        let known = infos.clone().filter_map(|i| i.types.as_ref()).flatten().map(String::as_str);
        text::nearest(kind, known).map(str::to_owned)
    };
    out.into_iter()
        .filter(|(kind, _)| !is_handled(kind))
        .map(|(kind, jobs)| Unhandled { kind: kind.to_owned(), jobs, nearest: nearest(kind) })
        .collect()
}

/// Records of one read.
const SLICE: usize = 500;

impl Store {
    /// Reads all sessions with what they run: one call for each, and one for each 500 running attempts. What
    /// changes meanwhile is seen before or after.
    pub async fn fleet(&self) -> Result<Fleet, StoreError> {
        let mut all: BTreeMap<String, FleetSession> = BTreeMap::new();
        for p in 0..self.keys().partitions() {
            self.sessions_of(p, &mut all).await?;
        }
        Ok(Fleet { now_ms: self.now_ms().await?, sessions: all.into_values().collect() })
    }

    /// All sessions, without what they run: one call for each, whatever their number of attempts.
    pub async fn crew(&self) -> Result<Vec<Mate>, StoreError> {
        let mut all: BTreeMap<String, Mate> = BTreeMap::new();
        let keys = self.keys();
        let mut connection = self.connection();
        for p in 0..keys.partitions() {
            let scores: Vec<(String, f64)> = connection.zrange_withscores(keys.sessions(p), 0, -1).await?;
            for (id, expires) in scores {
                let session = SessionId::new(&id).map_err(|e| StoreError::Decode(e.to_string()))?;
                let (info, n_held): (Option<String>, u64) = redis::pipe()
                    .hget(keys.session_info(p), &id)
                    .scard(keys.run(p, &session))
                    .query_async(&mut connection)
                    .await?;
                let expires_ms = expires as u64;
                let mate = all.entry(id).or_insert_with(|| Mate {
                    info: info.as_deref().and_then(|i| serde_json::from_str(i).ok()),
                    expires_ms,
                    n_held: 0,
                });
                mate.expires_ms = mate.expires_ms.min(expires_ms);
                mate.n_held += n_held;
            }
        }
        Ok(all.into_values().collect())
    }

    async fn sessions_of(&self, p: u32, all: &mut BTreeMap<String, FleetSession>) -> Result<(), StoreError> {
        let keys = self.keys();
        let mut connection = self.connection();
        let scores: Vec<(String, f64)> = connection.zrange_withscores(keys.sessions(p), 0, -1).await?;
        for (id, expires) in scores {
            // What is no name is left to the rule that takes sessions apart.
            let Ok(session) = SessionId::new(&id) else { continue };
            let (info, members): (Option<String>, Vec<String>) = redis::pipe()
                .hget(keys.session_info(p), &id)
                .smembers(keys.run(p, &session))
                .query_async(&mut connection)
                .await?;
            let held = self.held(p, &id, &members).await?;
            let expires_ms = expires as u64;
            let session = all.entry(id.clone()).or_insert_with(|| FleetSession {
                id,
                info: info.as_deref().and_then(|i| serde_json::from_str(i).ok()),
                expires_ms,
                held: Vec::new(),
            });
            session.expires_ms = session.expires_ms.min(expires_ms);
            session.held.extend(held);
        }
        Ok(())
    }

    async fn held(&self, p: u32, session: &str, members: &[String]) -> Result<Vec<Held>, StoreError> {
        let mut out = Vec::with_capacity(members.len());
        for slice in members.chunks(SLICE) {
            let parsed: Vec<(JobId, u64)> = slice.iter().filter_map(|m| parse_member(m)).collect();
            let keys: Vec<String> = parsed.iter().map(|(id, _)| self.keys().job_in(p, id.as_str())).collect();
            let records = self.records(&keys).await?;
            for ((job, epoch), record) in parsed.into_iter().zip(records) {
                let record = record.record().filter(|r| r.epoch == epoch && r.session == session);
                out.push(Held { job, epoch, record });
            }
        }
        out.sort_by_key(|h| h.record.as_ref().map_or(u64::MAX, |r| r.started_ms));
        Ok(out)
    }

    /// Records by key. One that cannot be read stops nothing.
    pub async fn records(&self, keys: &[String]) -> Result<Vec<Read>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let raw: Vec<Option<Vec<u8>>> =
            redis::cmd("MGET").arg(keys).query_async(&mut self.connection()).await?;
        let decode = |(key, bytes): (&String, Option<Vec<u8>>)| match bytes.map(|b| Record::decode(&b)) {
            None => Read::Missing,
            Some(Ok(record)) => Read::Record(Box::new(record)),
            Some(Err(e)) => {
                tracing::warn!(key, field = e.field, problem = e.problem, "record does not decode");
                Read::Unreadable
            }
        };
        Ok(keys.iter().zip(raw).map(decode).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(expires_ms: u64, ttl_ms: Option<u64>) -> FleetSession {
        let info = Some(SessionInfo { ttl_ms, ..SessionInfo::default() });
        FleetSession { id: "s".into(), info, expires_ms, held: vec![] }
    }

    #[test]
    fn the_age_of_a_renewal_follows_from_expiry_and_ttl() {
        assert_eq!(session(25_000, Some(20_000)).renewed_ago_ms(8_000), Some(3_000));
        assert_eq!(session(25_000, Some(20_000)).renewed_ago_ms(30_000), Some(25_000));
        assert_eq!(session(25_000, None).renewed_ago_ms(8_000), None);
        assert!(session(8_000, None).is_expired(8_000) && !session(8_001, None).is_expired(8_000));
    }

    #[test]
    fn a_type_is_unhandled_where_every_worker_of_its_queue_says_so() {
        let types = |all: &[&str]| Some(all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let passed = |n| Some([("q".to_owned(), [("resise".to_owned(), n)].into())].into());
        let a = SessionInfo { types: types(&["resize"]), passed_on: passed(2), ..SessionInfo::default() };
        let b = SessionInfo { types: types(&["other"]), passed_on: passed(1), ..SessionInfo::default() };
        let found = unhandled([&a, &b].into_iter(), "q");
        let expected = Unhandled { kind: "resise".into(), jobs: 3, nearest: Some("resize".into()) };
        assert_eq!(found, [expected]);
        assert!(found[0].to_string().contains("\"resize\""));
        assert!(unhandled([&a, &b].into_iter(), "r").is_empty());
        // One that has it, one that did not say, and one that serves other queues.
        let has = SessionInfo { types: types(&["resise"]), ..SessionInfo::default() };
        let old = SessionInfo::default();
        for another in [&has, &old] {
            assert!(unhandled([&a, another].into_iter(), "q").is_empty());
        }
        let elsewhere = SessionInfo { queues: Some(vec!["r".into()]), ..has };
        assert_eq!(unhandled([&a, &elsewhere].into_iter(), "q").len(), 1);
    }

    // Shows: B-03
    #[test]
    fn what_an_older_or_newer_worker_says_of_itself_is_read() {
        let old: SessionInfo = serde_json::from_str(r#"{"host":"a","pid":7,"started_at":"x"}"#).unwrap();
        assert_eq!((old.pid, old.slots, old.serves("q")), (Some(7), None, None));
        let new: SessionInfo = serde_json::from_str(r#"{"queues":["q"],"colour":"red"}"#).unwrap();
        assert_eq!((new.serves("q"), new.serves("r")), (Some(true), Some(false)));
    }
}
