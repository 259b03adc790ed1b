//! The Redis server.

use super::{
    Finding,
    checks::{
        REDIS_AOF, REDIS_EVICTED, REDIS_EVICTION, REDIS_FSYNC, REDIS_MEMORY, REDIS_REPLICA, REDIS_VERSION,
        REDIS_WRITES,
    },
    facts::RedisFacts,
    servers::{disk, version},
};
use crate::store::ServerState;

pub(super) fn judge(facts: &RedisFacts, out: &mut Vec<Finding>) {
    let r = &facts.server;
    let place = format!("redis {} at {}", r.version, facts.url);
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
    if r.is_replica {
        let fix = "set `connection.redis_url` to the master";
        out.push(REDIS_REPLICA.refuse(&place, "it is a replica: it takes no writes that last", fix));
    }
    persistence(r, &place, out);
    memory(r, &place, out);
    if let Some(d) = &facts.disk {
        disk(d, out);
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
