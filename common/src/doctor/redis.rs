//! The Redis server.

use super::{
    Finding,
    checks::{
        REDIS_AOF, REDIS_CLUSTER, REDIS_CLUSTER_NODES, REDIS_CLUSTER_SPREAD, REDIS_CLUSTER_STATE,
        REDIS_CLUSTER_TIMEOUT, REDIS_EVICTED, REDIS_EVICTION, REDIS_FSYNC, REDIS_MEMORY, REDIS_REPLICA,
        REDIS_VERSION, REDIS_WRITES,
    },
    facts::{RedisFacts, RedisServer},
    servers::{disk, version},
};
use crate::{
    clock::format_span,
    config::Settings,
    store::{ClusterState, ServerState},
};

pub(super) fn judge(settings: &Settings, facts: &RedisFacts, out: &mut Vec<Finding>) {
    for server in &facts.servers {
        match &server.state {
            Ok(state) => judge_server(server, state, out),
            Err(why) if !server.is_standby => out.push(REDIS_CLUSTER_STATE.must_fix(
                &format!("redis at {}", server.url),
                format!(
                    "a master that does not answer ({why}): the jobs of its partitions neither start nor end"
                ),
                "look whether it runs, and whether it is reachable from here under this name",
            )),
            Err(why) => out.push(REDIS_CLUSTER_NODES.warn(
                &format!("redis at {}", server.url),
                format!("a replica that does not answer ({why}): it cannot take the place of its master"),
                "look whether it runs, and whether it is reachable from here under this name",
            )),
        }
    }
    if let Some(cluster) = &facts.cluster {
        judge_cluster(settings, facts, cluster, out);
    }
}

fn judge_server(server: &RedisServer, r: &ServerState, out: &mut Vec<Finding>) {
    let place = format!("redis {} at {}", r.version, server.url);
    if version(&r.version) < (7, 0, 0) {
        out.push(REDIS_VERSION.refuse(&place, "it is too old", "7.0 or newer is needed"));
    }
    if r.policy != "noeviction" {
        out.push(REDIS_EVICTION.refuse(
            &place,
            format!("it evicts keys (maxmemory-policy {}): records of open jobs vanish when memory is full", r.policy),
            "set `maxmemory-policy noeviction` in its configuration (now: `redis-cli CONFIG SET maxmemory-policy noeviction`)",
        ));
    }
    if r.evicted > 0 {
        out.push(REDIS_EVICTED.warn(
            &place,
            format!("it evicted {} keys since its start: records of jobs may be among them", r.evicted),
            "set `noeviction`, restart workers and reapers, then `redis-cli CONFIG RESETSTAT`",
        ));
    }
    if r.is_replica && !server.is_standby {
        let fix = "set `connection.redis_url` to the master";
        out.push(REDIS_REPLICA.refuse(&place, "it is a replica: it takes no writes that last", fix));
    }
    persistence(r, &place, out);
    memory(r, &place, out);
    if let Some(d) = &server.disk {
        disk(d, out);
    }
}

fn judge_cluster(settings: &Settings, facts: &RedisFacts, c: &ClusterState, out: &mut Vec<Finding>) {
    let place = format!("redis cluster at {}", facts.url);
    let n_replicas: usize = c.masters.iter().map(|m| m.replicas.len()).sum();
    let n_partitions: usize = c.masters.iter().map(|m| m.partitions.len()).sum();
    let shares: Vec<String> =
        c.masters.iter().map(|m| format!("{} has {}", m.node, m.partitions.len())).collect();
    out.push(REDIS_CLUSTER.note(
        &place,
        format!(
            "a cluster of {} masters and {n_replicas} replicas; of {} partitions {}",
            c.masters.len(),
            n_partitions + c.unserved.len(),
            shares.join(", ")
        ),
        "nothing; docs/cluster.md says what it keeps and what it may lose",
    ));
    if !c.is_ok || !c.unserved.is_empty() {
        let what = match c.unserved.as_slice() {
            [] => format!("its state is not ok: {} of 16384 slots are served", c.slots_ok),
            lost => format!(
                "nobody serves the slots of {} partitions: their jobs neither start nor end",
                lost.len()
            ),
        };
        out.push(REDIS_CLUSTER_STATE.must_fix(
            &place,
            what,
            "`redis-cli --cluster check`, then start its nodes, or `redis-cli --cluster fix`",
        ));
    }
    let idle: Vec<String> =
        c.masters.iter().filter(|m| m.partitions.is_empty()).map(|m| m.node.to_string()).collect();
    if !idle.is_empty() {
        let enough = c.least_partitions.unwrap_or(99);
        out.push(REDIS_CLUSTER_SPREAD.warn(
            &place,
            format!("no partition lies on {}: it takes none of the load", idle.join(", ")),
            format!(
                "`layout.partitions = {enough}` or more before the streams are made; for streams that are there, move slots \
                 (`redis-cli --cluster reshard`)"
            ),
        ));
    }
    for m in c.masters.iter().filter(|m| m.replicas.is_empty() && !m.partitions.is_empty()) {
        out.push(REDIS_CLUSTER_NODES.warn(
            &format!("redis at {}", m.node),
            format!(
                "a master without a replica: while it is away, {} partitions stand still",
                m.partitions.len()
            ),
            "`redis-cli --cluster add-node … --cluster-slave`",
        ));
    }
    // A failover takes the timeout, about a second for the vote, and the clients' time to find the new master.
    let trust = settings.lease.ttl.saturating_sub(settings.lease.margin + settings.lease.renewal);
    let timeouts =
        facts.servers.iter().filter_map(|s| s.state.as_ref().ok()?.config.as_ref().ok()?.node_timeout);
    if let Some(timeout) = timeouts.max().filter(|t| t.saturating_mul(2) > trust) {
        out.push(REDIS_CLUSTER_TIMEOUT.warn(
            &place,
            format!(
                "cluster-node-timeout is {}: workers trust their leases for {} without a renewal, so a failover may end \
                 every attempt of the partitions concerned",
                format_span(timeout),
                format_span(trust)
            ),
            format!(
                "`CONFIG SET cluster-node-timeout {}` on every node, or a longer `lease.ttl`",
                (trust / 3).as_millis()
            ),
        ));
    }
}

fn persistence(r: &ServerState, place: &str, out: &mut Vec<Finding>) {
    if !r.has_aof {
        let save = r.config.as_ref().map_or("", |c| c.save.as_str());
        let keeps = if save.is_empty() { String::new() } else { format!(" (snapshots only: `save {save}`)") };
        out.push(REDIS_AOF.refuse(
            place,
            format!("it keeps no append-only file{keeps}: a restart would lose what runs"),
            "set `appendonly yes` in its configuration (now: `redis-cli CONFIG SET appendonly yes`)",
        ));
    }
    for what in &r.failed_writes {
        out.push(REDIS_WRITES.must_fix(
            place,
            format!("{what} failed: writes are refused, or lost at a restart"),
            "look into its log (often a full disk), then `redis-cli BGREWRITEAOF`",
        ));
    }
    match r.config.as_ref().map(|c| c.appendfsync.as_str()) {
        Ok("no") => out.push(REDIS_FSYNC.warn(
            place,
            "appendfsync is no: a power cut loses what the system had not written yet, some 30 seconds",
            "set `appendfsync everysec`, or `always`",
        )),
        Ok("everysec") => out.push(REDIS_FSYNC.note(
            place,
            "appendfsync is everysec: a power cut (not a crash) loses the last second of what ran and ended",
            "`appendfsync always` costs about a fifth of its rate",
        )),
        Ok(_) => {}
        Err(why) => out.push(REDIS_FSYNC.unknown(
            place,
            format!("appendfsync is not known ({why})"),
            "allow `CONFIG GET` to this user, or look into its configuration",
        )),
    }
}

fn memory(r: &ServerState, place: &str, out: &mut Vec<Finding>) {
    let (limit, whose, follows) = match r.limit {
        0 => (r.memory, "the host's memory", "then the system kills it"),
        n => (n, "maxmemory", "then every write is refused, and nothing starts or ends"),
    };
    if limit == 0 {
        return;
    }
    let percent = r.used.saturating_mul(100) / limit;
    let what = format!("{percent} % of {whose} is used ({} of {} MiB): {follows}", r.used >> 20, limit >> 20);
    let fix = "raise `maxmemory` (and the host's memory), or shorten the time that ended jobs are kept";
    match percent {
        90.. => out.push(REDIS_MEMORY.must_fix(place, what, fix)),
        75..90 => out.push(REDIS_MEMORY.warn(place, what, fix)),
        _ => {}
    }
}
