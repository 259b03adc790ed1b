//! The Redis of a test: one server, or a cluster of them.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::{Deref, DerefMut},
    path::PathBuf,
    time::Instant,
};

use ::redis::{AsyncCommands, Value, aio::MultiplexedConnection};
use surety_producer::dev::servers::{RedisOptions, RedisServer, ServerError};

use crate::world::PATIENCE;

/// Masters of a cluster.
pub const MASTERS: usize = 3;

/// What a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    One,
    /// Three masters, with that many replicas each.
    Cluster {
        replicas: usize,
    },
}

impl Kind {
    /// One server, unless `SURETY_TEST_REDIS=cluster` asks for every test to run on a cluster.
    pub fn wanted() -> Self {
        match std::env::var("SURETY_TEST_REDIS").as_deref() {
            Ok("cluster") => Self::Cluster { replicas: 0 },
            _ => Self::One,
        }
    }

    /// What the configuration of a world has to say. With six partitions every master has one.
    pub fn config(self) -> &'static str {
        match self {
            Self::One => "",
            Self::Cluster { .. } => "[layout]\npartitions = 6\n",
        }
    }
}

/// Servers; stands for the first of them, which of a cluster has the keys of partition 0.
pub struct Redis {
    /// Masters, then the replicas of the first, and so on.
    pub nodes: Vec<RedisServer>,
}

impl Deref for Redis {
    type Target = RedisServer;
    fn deref(&self) -> &RedisServer {
        &self.nodes[0]
    }
}

impl DerefMut for Redis {
    fn deref_mut(&mut self) -> &mut RedisServer {
        &mut self.nodes[0]
    }
}

impl Redis {
    /// Starts it with further arguments for every server; a cluster is ready when every node says so.
    pub async fn start(kind: Kind, data: PathBuf, args: &[&str]) -> Result<Self, ServerError> {
        let Kind::Cluster { replicas } = kind else {
            let extra_args = args.iter().map(|a| (*a).to_owned()).collect();
            let server = RedisServer::start(RedisOptions { port: None, data, extra_args, log: None }).await?;
            return Ok(Self { nodes: vec![server] });
        };
        let start = |n: usize| node(data.join(n.to_string()), args);
        let nodes = futures::future::try_join_all((0..MASTERS * (1 + replicas)).map(start)).await?;
        let cluster = Self { nodes };
        cluster.form().await;
        Ok(cluster)
    }

    /// Starts the first server again; a cluster is whole again then, as every node says.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.nodes[0].restart().await?;
        if self.nodes.len() > 1 {
            self.all("to be a cluster again", async |i| {
                self.info(i).await.get::<String>("cluster_state").as_deref() == Some("ok")
            })
            .await;
        }
        Ok(())
    }

    /// What the node says that has this key.
    pub async fn hget(&self, key: &str, field: &str) -> Option<String> {
        for node in 0..self.nodes.len() {
            if let Ok(value) = self.plain(node).await.hget(key, field).await {
                return value;
            }
        }
        panic!("no node has {key}");
    }

    /// A plain connection to a node.
    pub async fn plain(&self, node: usize) -> MultiplexedConnection {
        let client = redis::Client::open(self.nodes[node].url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// What a node says of the cluster.
    pub async fn info(&self, node: usize) -> redis::InfoDict {
        redis::cmd("CLUSTER").arg("INFO").query_async(&mut self.plain(node).await).await.unwrap()
    }

    /// Whether a node is a master, as it says itself.
    pub async fn is_master(&self, node: usize) -> bool {
        let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut self.plain(node).await).await.unwrap();
        matches!(&role[0], Value::BulkString(r) if r == b"master")
    }

    /// The replicas of a master.
    pub fn replicas_of(&self, master: usize) -> std::ops::Range<usize> {
        let each = self.nodes.len() / MASTERS - 1;
        let first = MASTERS + master * each;
        first..first + each
    }

    async fn form(&self) {
        let (n, mut ids) = (self.nodes.len(), Vec::new());
        for i in 0..n {
            let mut c = self.plain(i).await;
            // Each its own, so that nobody has to settle who is right.
            cluster(&mut c, &["SET-CONFIG-EPOCH", &(i + 1).to_string()]).await;
            let id: String = redis::cmd("CLUSTER").arg("MYID").query_async(&mut c).await.unwrap();
            ids.push(id);
            if i < MASTERS {
                // The first has the last third: there is the slot of `{p00}`.
                let third = (i + MASTERS - 1) % MASTERS;
                let slot = |third: usize| third * 16384 / MASTERS;
                let (first, last) = (slot(third).to_string(), (slot(third + 1) - 1).to_string());
                cluster(&mut c, &["ADDSLOTSRANGE", &first, &last]).await;
            }
            if i > 0 {
                let bus = config(&mut self.plain(0).await, "cluster-port").await;
                let port = self.nodes[0].port().to_string();
                cluster(&mut c, &["MEET", "127.0.0.1", &port, &bus]).await;
            }
        }
        self.all("to know each other", async |i| {
            self.info(i).await.get::<usize>("cluster_known_nodes") == Some(n)
        })
        .await;
        for (master, id) in ids.iter().enumerate().take(MASTERS) {
            for replica in self.replicas_of(master) {
                let c = self.plain(replica).await;
                until("its master to be known", async || {
                    let asked: Result<(), _> =
                        redis::cmd("CLUSTER").arg("REPLICATE").arg(id).query_async(&mut c.clone()).await;
                    asked.is_ok()
                })
                .await;
                until("a replica to follow", async || {
                    let info: redis::InfoDict =
                        redis::cmd("INFO").arg("replication").query_async(&mut c.clone()).await.unwrap();
                    info.get::<String>("master_link_status").as_deref() == Some("up")
                })
                .await;
            }
        }
        self.all("to be a cluster", async |i| {
            let ok = self.info(i).await.get::<String>("cluster_state").as_deref() == Some("ok");
            let slots: Vec<Vec<Value>> =
                redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut self.plain(i).await).await.unwrap();
            // Two numbers, the master, and its replicas.
            ok && slots.len() == MASTERS && slots.iter().all(|s| s.len() == 2 + n / MASTERS)
        })
        .await;
    }

    async fn all(&self, what: &str, condition: impl AsyncFn(usize) -> bool) {
        for i in 0..self.nodes.len() {
            until(what, async || condition(i).await).await;
        }
    }
}

/// A node alone. Its second port is a free one too: the usual one, 10 000 above the first, may not exist.
async fn node(data: PathBuf, args: &[&str]) -> Result<RedisServer, ServerError> {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut tries = 0;
    loop {
        let bus = free().to_string();
        let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "1000"];
        // A replica votes for itself however old what it has is.
        let more = ["--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"];
        let all = own.iter().chain(&more).chain(args).map(|a| (*a).to_owned()).collect();
        let options = RedisOptions { port: None, data: data.clone(), extra_args: all, log: None };
        match RedisServer::start(options).await {
            Err(_) if tries < 5 => tries += 1,
            done => return done,
        }
    }
}

async fn cluster(c: &mut MultiplexedConnection, args: &[&str]) {
    let _: Value = redis::cmd("CLUSTER").arg(args).query_async(c).await.unwrap();
}

async fn config(c: &mut MultiplexedConnection, name: &str) -> String {
    let (_, value): (String, String) =
        redis::cmd("CONFIG").arg("GET").arg(name).query_async(c).await.unwrap();
    value
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "the nodes of a cluster were waited for in vain: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
