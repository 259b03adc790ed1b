//! Pauses: what an operator holds back, and which of them holds a job. Only starts are held; what runs goes on.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use xxhash_rust::xxh3::xxh3_128;

use super::{
    ids::{QueueName, TypeName},
    job::{Job, KEY_CAP},
};

/// Largest reason in bytes.
pub const REASON_CAP: usize = 512;
/// Largest author in bytes.
pub const AUTHOR_CAP: usize = 256;

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Every job of a queue.
    Queue(QueueName),
    /// Every job of a type, whatever its queue.
    Type(TypeName),
    /// Every job with this key, whatever its queue and type.
    Key(String),
    /// The same, where the key is not known: `#` and its hash, as its [`Slot`] has it.
    Hashed(String),
}

impl Target {
    /// A key as jobs have them.
    /// Errors: it is empty or has more than [`KEY_CAP`] bytes.
    pub fn key(key: &str) -> Result<Self, String> {
        if key.is_empty() || key.len() > KEY_CAP {
            return Err(format!("a key has 1 to {KEY_CAP} bytes, this one has {}", key.len()));
        }
        Ok(Self::Key(key.to_owned()))
    }

    /// A key that is written as `#` and 32 hex digits may be meant as that hash: as a pause is shown whose key is not known.
    pub fn as_hash(&self) -> Option<Self> {
        let Self::Key(text) = self else { return None };
        let hash = text.strip_prefix('#').filter(|h| is_hash(h))?;
        Some(Self::Hashed(format!("#{}", hash.to_ascii_lowercase())))
    }

    /// `queue`, `type` or `key`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Queue(_) => QUEUE,
            Self::Type(_) => TYPE,
            Self::Key(_) | Self::Hashed(_) => KEY,
        }
    }

    /// The queue, the type or the key itself.
    pub fn name(&self) -> &str {
        match self {
            Self::Queue(q) => q.as_str(),
            Self::Type(t) => t.as_str(),
            Self::Key(k) | Self::Hashed(k) => k,
        }
    }

    /// The place of its pause among all: what a job needs to know to be held, even where the rest cannot be read.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Key(k) => Slot { kind: KEY, name: hashed(k) },
            Self::Hashed(h) => Slot { kind: KEY, name: h.trim_start_matches('#').to_owned() },
            other => Slot { kind: other.kind(), name: other.name().to_owned() },
        }
    }
}

const QUEUE: &str = "queue";
const TYPE: &str = "type";
const KEY: &str = "key";

fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A key may be any text, and the name of a place may not.
fn hashed(key: &str) -> String {
    format!("{:032x}", xxh3_128(key.as_bytes()))
}

impl fmt::Display for Target {
    /// `queue default`, `type thumbnail`, `key "acme/site"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(k) | Self::Hashed(k) => write!(f, "key {k:?}"),
            other => write!(f, "{} {}", other.kind(), other.name()),
        }
    }
}

/// Where a pause is kept: `queue.<name>`, `type.<name>`, or `key.<32 hex digits>` (XXH3-128 of the key).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    kind: &'static str,
    name: String,
}

impl Slot {
    /// Reads the written form. `None`: it is of no kind that this release knows.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once('.')?;
        let kind = [QUEUE, TYPE, KEY].into_iter().find(|k| *k == kind)?;
        let is_name = match kind {
            QUEUE => QueueName::new(name).is_ok(),
            TYPE => TypeName::new(name).is_ok(),
            _ => is_hash(name),
        };
        is_name.then(|| Self { kind, name: name.to_owned() })
    }

    /// What stands there, where its entry does not tell: a key is known by its hash alone then.
    pub fn target(&self) -> Option<Target> {
        match self.kind {
            QUEUE => QueueName::new(&self.name).ok().map(Target::Queue),
            TYPE => TypeName::new(&self.name).ok().map(Target::Type),
            _ => Some(Target::Hashed(format!("#{}", self.name))),
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.name)
    }
}

/// One pause. Times are milliseconds of the broker's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    pub target: Target,
    pub reason: Option<String>,
    /// Who paused it.
    pub by: String,
    pub at_ms: u64,
    /// When it ends by itself; `None`: it does not.
    pub until_ms: Option<u64>,
}

impl Pause {
    /// Whether it holds anything at this time.
    pub fn holds_at(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|end| now_ms < end)
    }
}

/// Every pause that is kept, by its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses {
    queues: HashMap<String, Pause>,
    types: HashMap<String, Pause>,
    /// By the hash of the key.
    keys: HashMap<String, Pause>,
}

impl Pauses {
    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.types.is_empty() && self.keys.is_empty()
    }

    /// Takes a pause in, instead of one that was in its place.
    pub fn put(&mut self, slot: Slot, pause: Pause) {
        self.of_kind(slot.kind).insert(slot.name, pause);
    }

    /// Takes a pause out.
    pub fn remove(&mut self, slot: &Slot) {
        self.of_kind(slot.kind).remove(&slot.name);
    }

    /// What is kept in a place, whether it holds or is over.
    pub fn at(&self, slot: &Slot) -> Option<&Pause> {
        match slot.kind {
            QUEUE => self.queues.get(&slot.name),
            TYPE => self.types.get(&slot.name),
            _ => self.keys.get(&slot.name),
        }
    }

    fn of_kind(&mut self, kind: &str) -> &mut HashMap<String, Pause> {
        match kind {
            QUEUE => &mut self.queues,
            TYPE => &mut self.types,
            _ => &mut self.keys,
        }
    }

    /// The pause of a queue, if it holds at this time.
    pub fn of_queue(&self, queue: &str, now_ms: u64) -> Option<&Pause> {
        self.queues.get(queue).filter(|p| p.holds_at(now_ms))
    }

    /// The first pause that holds a job: that of its queue, its type, its key.
    pub fn holding(&self, job: &Job, now_ms: u64) -> Option<&Pause> {
        self.all_of(job.queue.as_str(), Some(job.kind.as_str()), job.key.as_deref(), now_ms).next()
    }

    /// Every pause that holds a job of this queue, type and key; in this order.
    pub fn all_of<'a>(
        &'a self,
        queue: &str,
        kind: Option<&str>,
        key: Option<&str>,
        now_ms: u64,
    ) -> impl Iterator<Item = &'a Pause> {
        let found = [
            self.queues.get(queue),
            kind.and_then(|k| self.types.get(k)),
            // A job's key is hashed only where one is paused.
            key.filter(|_| !self.keys.is_empty()).and_then(|k| self.keys.get(&hashed(k))),
        ];
        found.into_iter().flatten().filter(move |p| p.holds_at(now_ms))
    }

    /// The places of every pause that holds at this time.
    pub fn places(&self, now_ms: u64) -> BTreeSet<Slot> {
        let kinds = [(QUEUE, &self.queues), (TYPE, &self.types), (KEY, &self.keys)];
        let holding = |(kind, all): (&'static str, &HashMap<String, Pause>)| -> Vec<Slot> {
            let names = all.iter().filter(|(_, p)| p.holds_at(now_ms)).map(|(name, _)| name.clone());
            names.map(|name| Slot { kind, name }).collect()
        };
        kinds.into_iter().flat_map(holding).collect()
    }

    /// When the next of those that hold at this time ends by itself.
    pub fn next_end(&self, now_ms: u64) -> Option<u64> {
        let all = self.queues.values().chain(self.types.values()).chain(self.keys.values());
        all.filter(|p| p.holds_at(now_ms)).filter_map(|p| p.until_ms).min()
    }

    /// Every pause that holds at this time: queues, types, keys, each by name.
    pub fn list(&self, now_ms: u64) -> Vec<&Pause> {
        let all = self.queues.values().chain(self.types.values()).chain(self.keys.values());
        let mut out: Vec<_> = all.filter(|p| p.holds_at(now_ms)).collect();
        out.sort_by(|a, b| a.target.cmp(&b.target));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(target: Target, until_ms: Option<u64>) -> Pause {
        Pause { target, reason: None, by: "ann@host".into(), at_ms: 1, until_ms }
    }

    fn put(all: &mut Pauses, target: Target, until_ms: Option<u64>) {
        all.put(target.slot(), pause(target, until_ms));
    }

    fn targets() -> [Target; 3] {
        [
            Target::Queue(QueueName::new("default").unwrap()),
            Target::Type(TypeName::new("t").unwrap()),
            Target::key("acme/site €").unwrap(),
        ]
    }

    fn held(all: &Pauses, now_ms: u64) -> Vec<&'static str> {
        let found = all.all_of("default", Some("t"), Some("acme/site €"), now_ms);
        found.map(|p| p.target.kind()).collect()
    }

    #[test]
    fn a_job_is_held_by_its_queue_its_type_and_its_key_and_by_no_other() {
        let mut all = Pauses::default();
        assert!(all.is_empty() && held(&all, 5).is_empty());
        targets().into_iter().for_each(|t| put(&mut all, t, None));
        assert_eq!(held(&all, 5), ["queue", "type", "key"]);
        assert_eq!(all.all_of("other", Some("u"), Some("acme/site"), 5).count(), 0);
        assert_eq!(all.all_of("other", None, None, 5).count(), 0);
        assert_eq!(all.list(5).len(), 3);
        for t in targets() {
            all.remove(&t.slot());
        }
        assert!(all.is_empty());
    }

    #[test]
    fn a_pause_ends_at_its_end_and_not_before() {
        let mut all = Pauses::default();
        targets().into_iter().for_each(|t| put(&mut all, t, Some(100)));
        assert_eq!((held(&all, 99).len(), all.places(99).len(), all.next_end(99)), (3, 3, Some(100)));
        assert_eq!((all.places(100).len(), all.next_end(100)), (0, None));
        assert!(held(&all, 100).is_empty() && all.list(100).is_empty());
        assert!(all.of_queue("default", 99).is_some() && all.of_queue("default", 100).is_none());
        // A later one takes its place.
        targets().into_iter().for_each(|t| put(&mut all, t, None));
        assert_eq!(held(&all, u64::MAX).len(), 3);
    }

    #[test]
    fn places_are_written_and_read_back() {
        for t in targets() {
            let slot = t.slot();
            assert_eq!(Slot::parse(&slot.to_string()), Some(slot.clone()));
            assert_eq!(slot.target().unwrap().slot(), slot, "also where only its hash is known");
        }
        // Fixed for ever: another release must find it.
        let key = Target::key("workspace-42").unwrap().slot().to_string();
        assert_eq!(key, "key.9068a889d7939c917731f0977861ee3a");
        for bad in ["", "queue", "queue.", "queue.A", "meta.x", "key.xyz", "type.a.b"] {
            assert_eq!(Slot::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn keys_are_those_that_jobs_may_have() {
        assert!(Target::key("").is_err() && Target::key(&"x".repeat(257)).is_err());
        assert_eq!(Target::key("a b").unwrap().to_string(), "key \"a b\"");
        assert_eq!(targets()[0].to_string(), "queue default");
    }
}
