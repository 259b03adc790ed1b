//! Reading locks, for people: who holds each, since when, and who waits.

use redis::AsyncCommands;

use super::{
    guards::{OFFER, Scope},
    script::{Store, StoreError},
};
use crate::domain::{JobId, guard::GuardKind, ids::SessionId};

/// Scopes that are read at once.
const PAGE: usize = 500;

/// Who has a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// `<job id>/<generation>`.
    pub member: String,
    /// Frees it. Of a lock that came free and is kept for this one it begins with [`OFFER`].
    pub token: String,
    /// It ends then unless renewed (ms of the store's clock).
    pub until_ms: u64,
}

impl Holder {
    /// The lock is kept for it, and it does not have it yet.
    pub fn is_offer(&self) -> bool {
        self.token.starts_with(OFFER)
    }

    /// The job and its generation.
    pub fn job(&self) -> Option<(JobId, u32)> {
        let (id, generation) = self.member.rsplit_once('/')?;
        Some((JobId::new(id).ok()?, generation.parse().ok()?))
    }

    /// The session of its worker.
    pub fn session(&self) -> Option<SessionId> {
        self.token.rsplit_once(' ').and_then(|(_, session)| SessionId::new(session).ok())
    }

    /// Six bytes of time, then the token.
    fn decode(member: String, value: &[u8]) -> Option<Self> {
        let (time, token) = value.split_first_chunk::<6>()?;
        let [a, b, c, d, e, f] = *time;
        let until_ms = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        Some(Self { member, token: String::from_utf8_lossy(token).into_owned(), until_ms })
    }
}

/// A lock as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLock {
    pub partition: u32,
    /// Its label is the name of the lock.
    pub scope: Scope,
    /// The last fencing token that it gave; 0: none since its keys are there.
    pub fence: u64,
    /// When its holder got it (ms); 0: not known.
    pub since_ms: u64,
    pub holder: Option<Holder>,
    /// Jobs in line.
    pub waiting: u64,
}

const FIELDS: [&str; 4] = ["params", "label", "fence", "since"];
/// The values of [`FIELDS`].
type State = (Option<String>, Option<String>, Option<u64>, Option<u64>);
type Holds = Vec<(String, Vec<u8>)>;

impl Store {
    /// Every lock that is in use, or was a moment ago.
    pub async fn locks(&self) -> Result<Vec<StoredLock>, StoreError> {
        let mut all = Vec::new();
        for p in 0..self.keys().partitions() {
            let mut known: Vec<String> = self.connection().zrange(self.keys().guards(p), 0, -1).await?;
            known.sort();
            for page in known.chunks(PAGE) {
                let mut read = redis::pipe();
                for hash in page {
                    let [state, ..] = self.keys().guard(p, hash);
                    read.cmd("HMGET").arg(state).arg(&FIELDS);
                }
                let states: Vec<State> = read.query_async(&mut self.connection()).await?;
                let locks = page.iter().zip(states).filter_map(|(hash, state)| lock_of(p, hash, state));
                all.extend(self.with_holders(p, locks.collect()).await?);
            }
        }
        all.sort_by(|a, b| a.scope.label.cmp(&b.scope.label));
        Ok(all)
    }

    /// One lock; `None` where nobody has used it for a while.
    pub async fn lock(&self, name: &str) -> Result<Option<StoredLock>, StoreError> {
        let scope = Scope::of_lock(name);
        let p = scope.partition(self.keys().partitions());
        let [state, ..] = self.keys().guard(p, &scope.hash);
        let mut read = redis::cmd("HMGET");
        let state: State = read.arg(state).arg(&FIELDS).query_async(&mut self.connection()).await?;
        let found = lock_of(p, &scope.hash, state).into_iter().collect();
        Ok(self.with_holders(p, found).await?.pop())
    }

    async fn with_holders(&self, p: u32, mut locks: Vec<StoredLock>) -> Result<Vec<StoredLock>, StoreError> {
        if locks.is_empty() {
            return Ok(locks);
        }
        let mut read = redis::pipe();
        for lock in &locks {
            let [_, hold, wait, _] = self.keys().guard(p, &lock.scope.hash);
            read.hgetall(hold).zcard(wait);
        }
        let found: Vec<redis::Value> = read.query_async(&mut self.connection()).await?;
        for (lock, pair) in locks.iter_mut().zip(found.chunks(2)) {
            let [holds, waiting] = pair else { continue };
            let holds: Holds = redis::from_redis_value_ref(holds).map_err(undecoded)?;
            lock.waiting = redis::from_redis_value_ref(waiting).map_err(undecoded)?;
            lock.holder = holds.into_iter().find_map(|(member, value)| Holder::decode(member, &value));
        }
        Ok(locks)
    }
}

fn undecoded(e: impl std::fmt::Display) -> StoreError {
    StoreError::Decode(e.to_string())
}

fn lock_of(partition: u32, hash: &str, (params, label, fence, since): State) -> Option<StoredLock> {
    let (kind, params) = super::guards::read_params(&params?)?;
    (kind == GuardKind::Lock).then(|| StoredLock {
        partition,
        scope: Scope { kind, params, label: label.unwrap_or_default(), hash: hash.to_owned() },
        fence: fence.unwrap_or(0),
        since_ms: since.unwrap_or(0),
        holder: None,
        waiting: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_read_with_its_session_and_an_offer_has_none() {
        let mut value = vec![1, 2, 0, 0, 0, 0];
        value.extend_from_slice(b"call-1 01SESSION");
        let holder = Holder::decode("a-1/2".into(), &value).unwrap();
        assert_eq!((holder.until_ms, holder.session().unwrap().as_str()), (513, "01SESSION"));
        assert_eq!(holder.job().unwrap(), (JobId::new("a-1").unwrap(), 2));
        assert!(!holder.is_offer());
        let offer = Holder::decode("a/1".into(), b"\0\0\0\0\0\0?1$JS.ACK").unwrap();
        assert!(offer.is_offer() && offer.session().is_none());
        assert_eq!(Holder::decode("a/1".into(), b"short"), None);
    }
}
