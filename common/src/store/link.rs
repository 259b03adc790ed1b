//! The line to Redis: to one server, or to a cluster of them. Which of the two it is the server says.
//!
//! Owner of the routing: a command that names a key goes to the master that has its slot; one that names none goes where its
//! caller says ([`Link::send`]), because every node of a cluster has a clock, scripts and memory of its own.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use redis::{
    Cmd, ConnectionAddr, InfoDict, Pipeline, RedisError, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr},
};

use tokio::{sync::Mutex, time::Instant};

use super::{
    cluster::{Node, Ranges},
    login,
    script::{StoreError, StoreOptions},
    trouble::{are_elsewhere, is_elsewhere},
};
use crate::pace::Transient;

/// How often the client itself follows a moved slot, or waits for one that is not served, before its error is ours to repeat.
const FOLLOWED: u32 = 5;

/// Cheap to clone.
#[derive(Clone)]
pub(super) enum Link {
    One(Server),
    Cluster(ClusterConnection),
}

/// The connection to one server. It heals itself when it is lost, and is made anew, from the name of the server on, when it
/// leads to a server that takes no writes: a failover moves the name and leaves the old connections open, to what is a replica now.
#[derive(Clone)]
pub(super) struct Server(Arc<Inner>);

struct Inner {
    options: StoreOptions,
    address: String,
    current: ArcSwap<ConnectionManager>,
    /// When it was last made anew, for whoever does it: one at a time.
    renewed: Mutex<Option<Instant>>,
}

/// The least time between two connections that are made anew.
const RENEW_AFTER: Duration = Duration::from_millis(250);

impl Server {
    fn new(options: &StoreOptions, address: &str, manager: ConnectionManager) -> Self {
        Self(Arc::new(Inner {
            options: options.clone(),
            address: address.to_owned(),
            current: ArcSwap::from_pointee(manager),
            renewed: Mutex::default(),
        }))
    }

    fn current(&self) -> Arc<ConnectionManager> {
        self.0.current.load_full()
    }

    async fn send(&self, cmd: &Cmd) -> RedisResult<Value> {
        let used = self.current();
        let answer = (*used).clone().req_packed_command(cmd).await;
        if is_elsewhere(&answer) {
            self.renew(&used).await;
        }
        answer
    }

    async fn send_all(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let used = self.current();
        let answers = (*used).clone().req_packed_commands(pipeline, offset, count).await;
        if are_elsewhere(&answers) {
            self.renew(&used).await;
        }
        answers
    }

    /// Connects anew, if that was not done just now.
    pub(super) async fn connect_anew(&self) {
        self.renew(&self.current()).await;
    }

    /// Connects anew, in the place of `used`. Whoever finds it replaced already has nothing to do.
    async fn renew(&self, used: &Arc<ConnectionManager>) {
        let Inner { options, address, current, renewed } = &*self.0;
        let mut last = renewed.lock().await;
        let is_early = last.is_some_and(|t| t.elapsed() < RENEW_AFTER);
        if is_early || !Arc::ptr_eq(used, &current.load_full()) {
            return;
        }
        *last = Some(Instant::now());
        match manager(options, address).await {
            Ok(fresh) => {
                current.store(Arc::new(fresh));
                tracing::warn!(
                    address = login::masked(address),
                    "redis takes no writes there: connected anew"
                );
            }
            Err(error) => {
                tracing::warn!(%error, "redis takes no writes there, and cannot be connected to anew")
            }
        }
    }
}

/// Connects to one server.
async fn manager(options: &StoreOptions, address: &str) -> Result<ConnectionManager, StoreError> {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(options.call_timeout))
        .set_connection_timeout(Some(options.call_timeout))
        .set_number_of_retries(3)
        .set_max_delay(Duration::from_millis(250));
    let client = login::client(options, address)?;
    let made = ConnectionManager::new_with_config(client, config).await;
    made.map_err(|e| login::explain(options, address, e))
}

impl Link {
    /// Connects to the first of the addresses that answers, and to its whole cluster where it is of one.
    /// Errors: as [`super::Store::connect`].
    pub(super) async fn connect(options: &StoreOptions) -> Result<Self, StoreError> {
        let addresses = options.url.each();
        let mut last = StoreError::Refused("connection.redis_url is empty".into());
        for address in &addresses {
            match Self::connect_to(options, address, addresses.len()).await {
                Err(e) if e.is_transient() => last = e,
                done => return done,
            }
        }
        Err(last)
    }

    async fn connect_to(options: &StoreOptions, address: &str, n: usize) -> Result<Self, StoreError> {
        let host = host(login::client(options, address)?.get_connection_info().addr());
        let explain = |e: RedisError| login::explain(options, address, e);
        let mut one = manager(options, address).await?;
        if !is_of_cluster(&mut one).await.map_err(explain)? {
            return match n {
                1 => Ok(Self::One(Server::new(options, address, one))),
                _ => Err(StoreError::Refused(format!(
                    "{} is not a node of a cluster: connection.redis_url has to name one server, or nodes of a cluster",
                    login::masked(address)
                ))),
            };
        }
        let ranges: Value =
            redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut one).await.map_err(explain)?;
        let nodes = Ranges::read(&ranges, &host).nodes();
        let client = login::cluster(options, address, &nodes)?
            .connection_timeout(options.call_timeout)
            .response_timeout(options.call_timeout)
            .retries(FOLLOWED)
            .min_retry_wait(20)
            .max_retry_wait(250)
            .build()
            .map_err(explain)?;
        // Large, and once in the life of a process.
        Box::pin(client.get_async_connection()).await.map(Self::Cluster).map_err(explain)
    }

    /// Sends a command that may name a key; `slot` says where one goes that does not.
    pub(super) async fn send(&mut self, cmd: &Cmd, slot: Option<Slot>) -> RedisResult<Value> {
        match self {
            Self::One(one) => one.send(cmd).await,
            // Boxed: what only a cluster needs does not make the calls to one server larger.
            Self::Cluster(cluster) => match slot {
                Some(slot) => Box::pin(cluster.route_command(cmd.clone(), to(slot))).await,
                None => cluster.req_packed_command(cmd).await,
            },
        }
    }

    /// Sends commands whose keys have one slot.
    pub(super) fn send_all<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(one) => Box::pin(one.send_all(pipeline, offset, count)),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    /// Sends a command to one node of a cluster; to the server, where there is one only.
    pub(super) async fn send_to(&mut self, cmd: &Cmd, node: &Node) -> RedisResult<Value> {
        match self {
            Self::One(one) => one.send(cmd).await,
            Self::Cluster(cluster) => {
                let node = SingleNodeRoutingInfo::ByAddress { host: node.host.clone(), port: node.port };
                cluster.route_command(cmd.clone(), RoutingInfo::SingleNode(node)).await
            }
        }
    }

    pub(super) fn db(&self) -> i64 {
        match self {
            Self::One(one) => one.current().get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}

fn host(address: &ConnectionAddr) -> String {
    match address {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => "127.0.0.1".to_owned(),
    }
}

fn to(slot: Slot) -> RoutingInfo {
    RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(Route::with_slot(slot, SlotAddr::Master)))
}

/// Whether a server is a node of a cluster. One that does not say is none: whoever asks it for more is told why.
async fn is_of_cluster(server: &mut ConnectionManager) -> RedisResult<bool> {
    let info: RedisResult<InfoDict> = redis::cmd("INFO").arg("cluster").query_async(server).await;
    match info {
        Ok(info) => Ok(info.get::<u8>("cluster_enabled") == Some(1)),
        Err(e) if e.is_io_error() => Err(e),
        Err(_) => Ok(false),
    }
}
