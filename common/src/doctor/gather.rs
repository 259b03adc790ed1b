//! Asking the servers. Everything here only reads.

use std::time::Instant;

use serde_json::json;

use super::{
    facts::{
        DataSet, Disk, Facts, FleetFacts, Known, Monitor, NatsFacts, Offset, Permissions, RedisFacts,
        RedisServer, Role, Storage,
    },
    layout::Asking,
    permissions,
};
use crate::{
    broker::{Broker, BrokerError, topology::Lane},
    clock::wall_now,
    config::Settings,
    domain::QueueName,
    pace::{Pace, retry},
    store::{Node, Store, StoreError},
};

/// How much to ask NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What it said when we connected: no request at all.
    Greeting,
    /// Streams, consumers and permissions: what a start needs.
    Short,
    /// Also what takes time: clocks, storage, stray messages.
    Full,
}

/// Asks NATS.
/// Errors: the server cannot be reached. What it refuses to tell stands in the facts.
pub async fn nats(broker: &Broker, s: &Settings, role: Role, depth: Depth) -> Result<NatsFacts, BrokerError> {
    let (version, has_jetstream) = broker.greeting();
    let mut facts = NatsFacts {
        url: s.connection.nats_url.masked(),
        version,
        has_jetstream,
        max_payload: broker.max_payload(),
        reaper_answers: Err("not asked".into()),
        layout: None,
        account: Err("not asked".into()),
        publish: Ok(None),
        needs: Vec::new(),
        monitor: Err("its API does not tell".into()),
        clock: None,
    };
    if depth == Depth::Greeting
        || !has_jetstream
        || super::servers::version(&facts.version) < super::servers::OLDEST
    {
        return Ok(facts);
    }
    facts.publish = allowed(broker).await;
    // A worker of some queues looks at those alone: it may not be allowed more.
    let own: Vec<&str> = match role {
        Role::Worker => {
            s.worker.queues.iter().map(|q| q.split_once(':').map_or(q.as_str(), |(n, _)| n)).collect()
        }
        _ => Vec::new(),
    };
    let is_own = |q: &QueueName| own.is_empty() || own.contains(&q.as_str());
    let layout = s.layout();
    let lanes: Vec<Lane> =
        layout.queues.iter().filter(|q| is_own(q)).flat_map(|q| broker.names().lanes(q)).collect();
    facts.needs = permissions::needs(role, broker.names(), &lanes, s.notify.dispatch, broker.may_lag());
    let asking = Asking { broker, publish: &facts.publish };
    facts.layout = Some(asking.layout(&layout, is_own, depth == Depth::Full).await?);
    if depth == Depth::Full {
        facts.account = storage(broker).await;
        facts.clock = offset(broker.now_ms()).await;
        facts.reaper_answers = reaper_answers(broker, &facts.publish).await;
    }
    Ok(facts)
}

/// Whether somebody answers requests about jobs.
async fn reaper_answers(broker: &Broker, publish: &Known<Option<Permissions>>) -> Known<bool> {
    let subject = broker.names().control_job_subject("doctor");
    if let Ok(Some(p)) = publish
        && !p.permit(&subject)
    {
        return Err(format!("this user may not publish to {subject:?}"));
    }
    broker.is_answered().await.map_err(|e| e.to_string())
}

/// What the user of the connection may publish; `None`: everything.
async fn allowed(broker: &Broker) -> Known<Option<Permissions>> {
    let answer = broker.user_info().await.map_err(|e| e.to_string())?;
    match answer.pointer("/data/permissions/publish") {
        None => Ok(None),
        Some(p) => serde_json::from_value(p.clone()).map(Some).map_err(|e| e.to_string()),
    }
}

async fn storage(broker: &Broker) -> Known<Storage> {
    let answer = broker.api("INFO".into(), json!({})).await.map_err(|e| e.to_string())?;
    if answer.get("tiers").is_some_and(|t| !t.is_null()) {
        return Err("the account has tiers".into());
    }
    let number = |path: &str| answer.pointer(path).and_then(serde_json::Value::as_i64);
    Ok(Storage {
        used: number("/storage").and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        limit: number("/limits/max_storage").and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
    })
}

/// Asks Redis.
pub async fn redis(store: &Store, is_full: bool) -> Result<RedisFacts, StoreError> {
    let Some(cluster) = retry(Pace::call(store.patience()), || store.cluster()).await? else {
        let server = redis_server(store, None, false, is_full).await?;
        return Ok(RedisFacts { url: store.url(), servers: vec![server], cluster: None });
    };
    let mut servers = Vec::new();
    for master in &cluster.masters {
        servers.push(redis_server(store, Some(&master.node), false, is_full).await?);
        for replica in master.replicas.iter().filter(|_| is_full) {
            servers.push(redis_server(store, Some(replica), true, true).await?);
        }
    }
    Ok(RedisFacts { url: store.url(), servers, cluster: Some(cluster) })
}

async fn redis_server(
    store: &Store,
    node: Option<&Node>,
    is_standby: bool,
    is_full: bool,
) -> Result<RedisServer, StoreError> {
    let state = match store.server_at(node).await {
        // A start needs every master; the doctor names the one that is away.
        Err(e) if node.is_none() || !is_full => return Err(e),
        state => state.map_err(|e| e.to_string()),
    };
    let url = node.map_or_else(|| store.url(), |n| store.url_of(n));
    let folder = state.as_ref().ok().and_then(|s| s.config.as_ref().ok()).map_or("", |c| c.dir.as_str());
    Ok(RedisServer {
        disk: if is_full && is_local(&url) { disk(folder, "Redis") } else { None },
        clock: if is_full && !is_standby && state.is_ok() {
            offset(store.now_ms_at(node)).await
        } else {
            None
        },
        url,
        is_standby,
        state,
    })
}

/// Asks Redis what runs. `jobs_created`: identity of the broker's data, if it has any.
pub async fn fleet(
    store: &Store,
    s: &Settings,
    jobs_created: Option<&str>,
) -> Result<FleetFacts, StoreError> {
    let fleet = store.fleet().await?;
    let (mut outbox, mut data_sets) = (Vec::new(), Vec::new());
    for p in 0..store.keys().partitions() {
        let first = store.outbox(p, "", u64::MAX, 1).await?.into_iter().next();
        let written_ms = first.and_then(|e| e.id.split('-').next()?.parse().ok()).unwrap_or(fleet.now_ms);
        outbox.push((store.outbox_len(p).await?, fleet.now_ms.saturating_sub(written_ms)));
        data_sets.push(match store.belongs_to(p).await? {
            None => DataSet::Missing,
            Some(jobs) if jobs_created.is_some_and(|j| j != jobs) => DataSet::OfAnotherBroker,
            Some(_) => DataSet::Ours,
        });
    }
    let (mistyped, set_back_ms) = (store.mistyped().await?, store.set_back_ms().await?);
    Ok(FleetFacts {
        fleet,
        outbox,
        data_sets,
        mistyped,
        set_back_ms,
        state_disk: disk(&s.worker.state_dir, "this host's workers"),
    })
}

/// Everything, for `surety doctor`: each server by itself, so that one that is away does not hide the other. `monitor` is
/// the answer of the monitoring port, where it was asked.
pub async fn all(s: &Settings, role: Role, monitor: Option<Known<Monitor>>) -> Facts {
    let mut facts = Facts {
        role,
        settings: Box::new(s.clone()),
        nats: Err("not asked".into()),
        redis: None,
        fleet: None,
    };
    let mut found = None;
    facts.nats = match crate::connect::greet(s, "surety-doctor").await {
        Ok(broker) => {
            found = broker.found().await.ok();
            nats(&broker, s, role, Depth::Full).await.map_err(|e| e.to_string())
        }
        Err(e) => Err(e.to_string()),
    };
    if let (Ok(n), Some(m)) = (&mut facts.nats, monitor) {
        n.monitor = m;
    }
    let partitions = found.as_ref().map_or(1, |f| f.partitions);
    match crate::connect::store(s, partitions).await {
        Ok(store) => {
            facts.redis = Some(redis(&store, true).await.map_err(|e| e.to_string()));
            let jobs = found.as_ref().map(|f| f.jobs_created.as_str());
            match fleet(&store, s, jobs).await {
                Ok(f) => facts.fleet = Some(f),
                // What is wrong with a cluster is told by its own facts.
                Err(_) if matches!(&facts.redis, Some(Ok(r)) if r.cluster.is_some()) => {}
                Err(e) => facts.redis = Some(Err(e.to_string())),
            }
        }
        Err(e) => facts.redis = Some(Err(e.to_string())),
    }
    facts
}

/// A remote clock minus ours, both in milliseconds.
async fn offset<E>(ask: impl Future<Output = Result<u64, E>>) -> Option<Offset> {
    let (began, timer) = (wall_now().as_millisecond(), Instant::now());
    let remote = i64::try_from(ask.await.ok()?).ok()?;
    let half = i64::try_from(timer.elapsed().as_millis() / 2).ok()?;
    Some(Offset { ms: remote - (began + half), within_ms: half + 1 })
}

/// Whether a URL names this host.
pub fn is_local(url: &str) -> bool {
    let host = url.split("://").last().unwrap_or(url);
    let host = host.rsplit('@').next().unwrap_or(host);
    ["127.", "localhost", "[::1]", "/"].iter().any(|l| host.starts_with(l))
}

/// The file system of a folder, if that is there.
pub(super) fn disk(folder: &str, owner: &'static str) -> Option<Disk> {
    let f = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(f.f_frsize);
    // As `df` counts: what is kept for root belongs to nobody.
    let total = bytes(f.f_blocks.saturating_sub(f.f_bfree).saturating_add(f.f_bavail));
    Some(Disk { path: folder.to_owned(), owner, free: bytes(f.f_bavail), total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_this_host_are_known() {
        for url in
            ["redis://127.0.0.1:6379", "rediss://user:p@localhost/0", "redis://***@[::1]:1", "unix:///run/r"]
        {
            assert!(is_local(url), "{url}");
        }
        for url in ["redis://10.0.0.1", "redis://redis:6379", "nats://localhost.example.org@far:1"] {
            assert!(!is_local(url), "{url}");
        }
    }
}
