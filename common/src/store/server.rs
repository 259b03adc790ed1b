//! What the Redis server says of itself.

use std::{collections::HashMap, time::Duration};

use redis::{Cmd, FromRedisValue, InfoDict, RedisError};

use super::{
    cluster::Node,
    script::{Store, StoreError},
};
use crate::pace::{Pace, retry};

/// From `INFO`, and from `CONFIG GET` where that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    pub version: String,
    /// `maxmemory-policy`.
    pub policy: String,
    pub has_aof: bool,
    pub is_replica: bool,
    /// Names of the writes to its disk that failed last.
    pub failed_writes: Vec<&'static str>,
    /// Bytes of memory in use.
    pub used: u64,
    /// `maxmemory` in bytes; 0: none.
    pub limit: u64,
    /// Bytes of memory of its host; 0 when not known.
    pub memory: u64,
    /// Keys evicted since it started.
    pub evicted: u64,
    /// `Err`: why it may not be asked.
    pub config: Result<ServerConfig, String>,
}

/// Some settings of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerConfig {
    pub appendfsync: String,
    /// Snapshots, as the server writes them: `3600 1 300 100`.
    pub save: String,
    /// Where it stores.
    pub dir: String,
    /// How long a node of a cluster may be silent before it counts as failed; `None`: an old server, which does not tell.
    pub node_timeout: Option<Duration>,
}

impl Store {
    /// The server's address, or those that were given of a cluster, without passwords.
    pub fn url(&self) -> String {
        self.inner.options.url.masked()
    }

    /// The address of a node of the cluster.
    pub fn url_of(&self, node: &Node) -> String {
        let url = self.url();
        let scheme = url.split_once("://").map_or("redis", |(scheme, _)| scheme);
        format!("{scheme}://{node}")
    }

    /// Asks the server about itself: two calls. A server that loads its data is waited for, as long as calls are tried: until
    /// then it says that it has no append-only file. On a cluster this is the node of the first partition.
    pub async fn server(&self) -> Result<ServerState, StoreError> {
        self.server_at(None).await
    }

    /// The same of this node of the cluster.
    pub async fn server_at(&self, node: Option<&Node>) -> Result<ServerState, StoreError> {
        let info = retry(Pace::call(self.inner.options.retry_limit), || self.loaded(node)).await?;
        let text = |k: &str| info.get::<String>(k).unwrap_or_default();
        let number = |k: &str| info.get::<u64>(k).unwrap_or(0);
        let failed = |k: &str| info.get::<String>(k).is_some_and(|v| v != "ok");
        let config = self.server_config(node).await;
        let mut failed_writes = Vec::new();
        let snapshots = config.as_ref().is_ok_and(|c| !c.save.is_empty());
        for (key, name, is_used) in [
            ("aof_last_write_status", "the last write to its append-only file", true),
            ("aof_last_bgrewrite_status", "the last rewrite of its append-only file", true),
            ("rdb_last_bgsave_status", "its last snapshot", snapshots),
        ] {
            if is_used && failed(key) {
                failed_writes.push(name);
            }
        }
        Ok(ServerState {
            version: text("redis_version"),
            policy: text("maxmemory_policy"),
            has_aof: text("aof_enabled") == "1",
            is_replica: text("role") == "slave",
            failed_writes,
            used: number("used_memory"),
            limit: number("maxmemory"),
            memory: number("total_system_memory"),
            evicted: number("evicted_keys"),
            config,
        })
    }

    async fn loaded(&self, node: Option<&Node>) -> Result<InfoDict, StoreError> {
        let info: InfoDict = self.ask(&redis::cmd("INFO"), node).await?;
        match info.get::<u64>("loading") {
            Some(1) => Err(StoreError::Unreachable("redis is loading its data".into())),
            _ => Ok(info),
        }
    }

    async fn ask<T: FromRedisValue>(&self, cmd: &Cmd, node: Option<&Node>) -> Result<T, StoreError> {
        let mut home = self.home_of(0);
        Ok(match node {
            None => cmd.query_async(&mut home).await?,
            Some(node) => redis::from_redis_value(home.ask(cmd, node).await?).map_err(RedisError::from)?,
        })
    }

    async fn server_config(&self, node: Option<&Node>) -> Result<ServerConfig, String> {
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg(&["appendfsync", "save", "dir", "cluster-node-timeout"]);
        let mut all: HashMap<String, String> = self.ask(&ask, node).await.map_err(|e| e.to_string())?;
        let mut take = |k: &str| all.remove(k).unwrap_or_default();
        Ok(ServerConfig {
            node_timeout: take("cluster-node-timeout").parse().ok().map(Duration::from_millis),
            appendfsync: take("appendfsync"),
            save: take("save"),
            dir: take("dir"),
        })
    }

    /// A node's clock in milliseconds; the server's, where there is one only.
    pub async fn now_ms_at(&self, node: Option<&Node>) -> Result<u64, StoreError> {
        let (s, us): (u64, u64) = self.ask(&redis::cmd("TIME"), node).await?;
        Ok(s * 1000 + us / 1000)
    }

    /// CPU time that the server has used since its start, in seconds.
    pub async fn cpu_seconds(&self) -> Result<f64, StoreError> {
        let info: InfoDict = self.ask(redis::cmd("INFO").arg("cpu"), None).await?;
        let get = |k: &str| info.get::<f64>(k).unwrap_or_default();
        Ok(get("used_cpu_user") + get("used_cpu_sys"))
    }

    /// Creation time of the `JOBS` stream that a partition's data set belongs to; `None` when there is no data set.
    pub async fn belongs_to(&self, p: u32) -> Result<Option<String>, StoreError> {
        let answer: Option<String> = redis::cmd("HGET")
            .arg(self.keys().store(p))
            .arg("jobs")
            .query_async(&mut self.connection())
            .await?;
        Ok(answer)
    }
}
