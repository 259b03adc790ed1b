//! What was found out, as plain data.

use std::time::Duration;

use crate::{
    broker::{drift::Difference, place::CarrierStream, queues::LaneState},
    config::Settings,
    domain::{QueueName, pause::Pauses},
    store::{ClusterState, Fleet, ServerState},
};

/// A fact, or why it could not be found out.
pub type Known<T> = Result<T, String>;

/// Who asks: it decides what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A command: nothing more than the servers.
    Operator,
    Worker,
    Reaper,
}

/// Everything that [`super::judge`] looks at.
#[derive(Debug, Clone)]
pub struct Facts {
    pub role: Role,
    pub settings: Box<Settings>,
    pub nats: Known<NatsFacts>,
    /// `None`: not looked at.
    pub redis: Option<Known<RedisFacts>>,
    /// `None`: not looked at.
    pub fleet: Option<FleetFacts>,
}

/// The broker.
#[derive(Debug, Clone)]
pub struct NatsFacts {
    /// Address without its password.
    pub url: String,
    pub version: String,
    pub has_jetstream: bool,
    /// Largest message that it takes, in bytes.
    pub max_payload: usize,
    /// Whether a reaper answers; not known where it may not be asked.
    pub reaper_answers: Known<bool>,
    /// `None`: not looked at, because the server cannot be used anyway or only it was asked for.
    pub layout: Option<LayoutFacts>,
    /// `Err` as well where the server does not tell.
    pub account: Known<Storage>,
    /// What the connection's user may publish; `None`: everything.
    pub publish: Known<Option<Permissions>>,
    /// What this process must be able to publish to.
    pub needs: Vec<String>,
    /// What only the monitoring port tells.
    pub monitor: Known<Monitor>,
    /// Its clock minus this host's.
    pub clock: Option<Offset>,
}

/// Streams and consumers.
#[derive(Debug, Clone)]
pub struct LayoutFacts {
    /// Why what is there cannot be used.
    pub unusable: Option<String>,
    pub streams: Vec<StreamFacts>,
    /// Queues that the broker has, declared in the settings or not.
    pub queues: Vec<QueueName>,
    pub lanes: Vec<LaneFacts>,
    /// The consumer of the receipts, where it was asked about.
    pub dispatcher: Option<DispatcherFacts>,
    /// Subjects of the job stream that no consumer covers.
    pub uncovered: Vec<String>,
    /// Messages of the job stream that are neither waiting nor held, where it could be counted.
    pub stray: Option<u64>,
    /// What is paused, and the broker's clock; not known where it may not be asked for.
    pub pauses: Known<(Pauses, u64)>,
    /// Messages of the journal.
    pub journaled: u64,
}

impl Default for LayoutFacts {
    /// Nothing is there.
    fn default() -> Self {
        Self {
            unusable: None,
            streams: Vec::new(),
            queues: Vec::new(),
            lanes: Vec::new(),
            dispatcher: None,
            uncovered: Vec::new(),
            stray: None,
            pauses: Ok((Pauses::default(), 0)),
            journaled: 0,
        }
    }
}

/// One stream.
#[derive(Debug, Clone)]
pub struct StreamFacts {
    pub name: String,
    /// Which of those that carry jobs it is, if any.
    pub carries: Option<CarrierStream>,
    /// Why it could not be looked at.
    pub unknown: Option<String>,
    pub is_missing: bool,
    /// Has a limit by count or size, at which it drops the oldest.
    pub drops_oldest: bool,
    pub duplicate_window: Duration,
    pub replicas: usize,
    pub offline: Vec<String>,
    pub differences: Vec<Difference>,
}

/// One consumer.
#[derive(Debug, Clone)]
pub struct LaneFacts {
    pub queue: QueueName,
    pub of: CarrierStream,
    /// The settings declare the queue.
    pub is_declared: bool,
    /// Why it could not be looked at; `state` says nothing then.
    pub unknown: Option<String>,
    pub state: LaneState,
    pub ack_wait: Duration,
    /// -1: no limit.
    pub max_deliver: i64,
    pub differences: Vec<Difference>,
}

/// The consumer that all dispatchers of receipts share.
#[derive(Debug, Clone, Default)]
pub struct DispatcherFacts {
    pub stream: String,
    /// Why it could not be looked at; the rest says nothing then.
    pub unknown: Option<String>,
    pub is_missing: bool,
    /// For so long it is paused.
    pub paused_for: Option<Duration>,
    pub differences: Vec<Difference>,
    /// Pulls of dispatchers that wait for a receipt, and receipts that are not settled.
    pub pulls: u64,
    pub waiting: u64,
}

/// File storage of the account, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    pub used: u64,
    /// `None`: the account has no limit of its own.
    pub limit: Option<u64>,
}

/// Subjects with wildcards; an empty `allow` allows everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
pub struct Permissions {
    #[serde(default)]
    pub allow: Vec<String>,
    #[serde(default)]
    pub deny: Vec<String>,
}

/// What `/varz` of the monitoring port tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    pub is_synced_always: bool,
    pub sync_interval: Duration,
    /// Where it stores, if that is on this host.
    pub disk: Option<Disk>,
}

/// A clock compared with this host's, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    pub ms: i64,
    /// Half of the time that the answer took: it may be off by that much.
    pub within_ms: i64,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// A folder on it.
    pub path: String,
    /// Whose data are there.
    pub owner: &'static str,
    pub free: u64,
    pub total: u64,
}

/// The store.
#[derive(Debug, Clone)]
pub struct RedisFacts {
    /// Addresses that were given, without passwords.
    pub url: String,
    /// The server; of a cluster every master, and where everything was asked for, every replica.
    pub servers: Vec<RedisServer>,
    /// `None`: one server alone.
    pub cluster: Option<ClusterState>,
}

impl RedisFacts {
    /// Version of the first server that told it.
    pub fn version(&self) -> Option<&str> {
        self.servers.iter().find_map(|s| s.state.as_ref().ok()).map(|s| s.version.as_str())
    }
}

/// One Redis.
#[derive(Debug, Clone)]
pub struct RedisServer {
    /// Address without its password.
    pub url: String,
    /// A node that may take the place of another.
    pub is_standby: bool,
    /// `Err` only of a node of a cluster.
    pub state: Known<ServerState>,
    /// Where it stores, if that is on this host.
    pub disk: Option<Disk>,
    /// Its clock minus this host's.
    pub clock: Option<Offset>,
}

/// What runs.
#[derive(Debug, Clone)]
pub struct FleetFacts {
    pub fleet: Fleet,
    /// Entries of each partition's outbox, and the age of the oldest in milliseconds.
    pub outbox: Vec<(u64, u64)>,
    /// Of each partition: whether there is a data set, and whether it belongs to this broker.
    pub data_sets: Vec<DataSet>,
    /// The clock of the store was set back: it was ahead by so many milliseconds once.
    pub set_back_ms: u64,
    /// Keys of the store that are of a wrong type, with what they should be.
    pub mistyped: Vec<String>,
    /// State folder of a worker with these settings, if it is on this host.
    pub state_disk: Option<Disk>,
}

/// Identity of a partition's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataSet {
    Missing,
    Ours,
    OfAnotherBroker,
}
