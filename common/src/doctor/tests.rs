//! Every check on facts that are good but for one thing.

use std::{collections::BTreeSet, time::Duration};

use super::{
    facts::{
        DataSet, Disk, DispatcherFacts, FleetFacts, LaneFacts, LayoutFacts, NatsFacts, Offset, Permissions,
        RedisFacts, RedisServer, Storage, StreamFacts,
    },
    *,
};
use crate::{
    broker::{
        drift::Difference,
        place::CarrierStream,
        queues::LaneState,
        topology::{Lane, Names},
    },
    config::load_text,
    domain::{
        QueueName,
        ids::Namespace,
        pause::{Pause, Pauses, Target},
    },
    store::{ClusterState, Fleet, FleetSession, Master, Node, ServerConfig, ServerState, SessionInfo},
};

fn queue() -> QueueName {
    QueueName::new("default").unwrap()
}

fn stream(name: &str, carries: Option<CarrierStream>) -> StreamFacts {
    StreamFacts {
        name: name.into(),
        carries,
        unknown: None,
        is_missing: false,
        drops_oldest: false,
        duplicate_window: Duration::from_secs(600),
        replicas: 3,
        offline: vec![],
        differences: vec![],
    }
}

fn lane(lane: &Lane) -> LaneFacts {
    let state = LaneState { is_missing: false, max_held: 1000, ..LaneState::missing(lane) };
    LaneFacts {
        queue: lane.queue.clone(),
        of: lane.of,
        is_declared: true,
        unknown: None,
        state,
        ack_wait: Duration::from_secs(60),
        max_deliver: 100,
        differences: vec![],
    }
}

fn session(id: &str, expires_ms: u64) -> FleetSession {
    let info = SessionInfo {
        slots: Some(8),
        queues: Some(vec!["default".into()]),
        version: Some(env!("CARGO_PKG_VERSION").into()),
        ..SessionInfo::default()
    };
    FleetSession { id: id.into(), info: Some(info), expires_ms, held: vec![] }
}

fn redis_server(is_standby: bool) -> RedisServer {
    RedisServer {
        url: "redis://a".into(),
        is_standby,
        state: Ok(ServerState {
            version: "7.0.15".into(),
            policy: "noeviction".into(),
            has_aof: true,
            is_replica: is_standby,
            failed_writes: vec![],
            used: 1 << 20,
            limit: 1 << 30,
            memory: 1 << 32,
            evicted: 0,
            config: Ok(ServerConfig { appendfsync: "always".into(), ..ServerConfig::default() }),
        }),
        disk: None,
        clock: Some(Offset { ms: 0, within_ms: 1 }),
    }
}

/// A cluster of two masters with a replica each, and a partition on each.
fn cluster(f: &mut Facts) -> &mut ClusterState {
    let node = |host: &str| Node { host: host.into(), port: 1 };
    let master = |host: &str, p| Master {
        node: node(host),
        replicas: vec![node(&format!("{host}2"))],
        partitions: vec![p],
    };
    let r = f.redis.as_mut().unwrap().as_mut().unwrap();
    r.servers = [false, true, false, true].map(redis_server).into();
    r.cluster.insert(ClusterState {
        masters: vec![master("a", 0), master("b", 1)],
        unserved: vec![],
        is_ok: true,
        slots_ok: 16384,
        least_partitions: Some(2),
    })
}

/// A system at which there is nothing to find.
fn good() -> Facts {
    let names = Names::new(Namespace::new("surety").unwrap());
    let carriers = CarrierStream::ALL.map(|c| stream(&names.stream(c), Some(c)));
    Facts {
        role: Role::Worker,
        settings: Box::new(load_text(None, &|_| None, &vec![]).unwrap()),
        nats: Ok(NatsFacts {
            url: "nats://a".into(),
            version: "2.15.1".into(),
            has_jetstream: true,
            max_payload: 1 << 20,
            reaper_answers: Ok(true),
            layout: Some(LayoutFacts {
                streams: carriers.into_iter().chain([stream(&names.events(), None)]).collect(),
                queues: vec![queue()],
                lanes: names.lanes(&queue()).iter().map(lane).collect(),
                stray: Some(0),
                ..LayoutFacts::default()
            }),
            account: Ok(Storage { used: 1, limit: Some(100) }),
            publish: Ok(None),
            needs: vec!["surety.events.>".into()],
            monitor: Err("not asked".into()),
            clock: Some(Offset { ms: 0, within_ms: 1 }),
        }),
        redis: Some(Ok(RedisFacts {
            url: "redis://a".into(),
            servers: vec![redis_server(false)],
            cluster: None,
        })),
        fleet: Some(FleetFacts {
            fleet: Fleet { now_ms: 1_000_000, sessions: vec![session("s", 1_010_000)] },
            outbox: vec![(0, 0)],
            data_sets: vec![DataSet::Ours],
            mistyped: vec![],
            set_back_ms: 0,
            state_disk: None,
        }),
    }
}

fn nats(f: &mut Facts) -> &mut NatsFacts {
    f.nats.as_mut().unwrap()
}

fn layout(f: &mut Facts) -> &mut LayoutFacts {
    nats(f).layout.as_mut().unwrap()
}

fn server(f: &mut Facts) -> &mut ServerState {
    f.redis.as_mut().unwrap().as_mut().unwrap().servers[0].state.as_mut().unwrap()
}

fn fleet(f: &mut Facts) -> &mut FleetFacts {
    f.fleet.as_mut().unwrap()
}

fn info(f: &mut Facts) -> &mut crate::store::SessionInfo {
    fleet(f).fleet.sessions[0].info.get_or_insert_default()
}

fn difference(field: &'static str) -> Vec<Difference> {
    vec![Difference { field, text: format!("{field} is a and not b"), is_fixable: true }]
}

type Trap = (&'static str, Severity, bool, fn(&mut Facts));

/// What must be found, how bad it is, whether it refuses a start, and how to set it.
const TRAPS: &[Trap] = {
    use Severity::{MustFix, Note, Unknown, Warning};
    &[
        ("nats_unreachable", MustFix, false, |f| f.nats = Err("refused".into())),
        ("nats_version", MustFix, true, |f| nats(f).version = "2.12.4".into()),
        ("max_payload", MustFix, true, |f| nats(f).max_payload = 65_536),
        ("reaper", Warning, false, |f| nats(f).reaper_answers = Ok(false)),
        ("dispatcher", Warning, false, |f| {
            layout(f).dispatcher = Some(DispatcherFacts { waiting: 3, ..DispatcherFacts::default() });
        }),
        ("clocks", Warning, false, |f| fleet(f).set_back_ms = 600_000),
        ("redis_key_type", MustFix, false, |f| fleet(f).mistyped = vec!["due is a string".into()]),
        ("worker_ready", Warning, false, |f| {
            info(f).not_ready = Some(vec!["nats: it refuses to store".into()]);
        }),
        ("unknown_type", Warning, false, |f| {
            let queue = queue().to_string();
            info(f).types = Some(vec!["resize".into()]);
            info(f).passed_on = Some([(queue, [("resise".into(), 2)].into())].into());
        }),
        ("nats_version", Note, false, |f| nats(f).version = "2.14.3".into()),
        ("jetstream_off", MustFix, true, |f| nats(f).has_jetstream = false),
        ("not_provisioned", MustFix, true, |f| layout(f).unusable = Some("no JOBS".into())),
        ("not_provisioned", MustFix, true, |f| layout(f).streams[2].is_missing = true),
        ("jobs_can_vanish", MustFix, true, |f| layout(f).streams[0].differences = difference("max_age")),
        ("jobs_can_vanish", MustFix, true, |f| layout(f).streams[1].drops_oldest = true),
        ("jobs_can_vanish", MustFix, true, |f| layout(f).streams[2].differences = difference("storage")),
        ("stream_drift", Warning, false, |f| layout(f).streams[2].differences = difference("max_age")),
        ("stream_drift", Unknown, false, |f| layout(f).streams[2].unknown = Some("denied".into())),
        ("duplicate_window", Warning, false, |f| {
            layout(f).streams[0].differences = difference("duplicate_window");
        }),
        ("queue_not_provisioned", Warning, false, |f| f.settings.layout.queues.push("new".into())),
        ("worker_queue", MustFix, true, |f| {
            f.settings.worker.queues = vec!["nowhere:2".into(), "default".into()]
        }),
        ("guard_queue", Warning, false, |f| {
            let rule =
                "[guards.rate.api]\nscope = \"{type}\"\nlimit = 1\nqueues = [\"default\", \"nowhere\"]";
            *f.settings = load_text(Some((rule, "test")), &|_| None, &vec![]).unwrap();
        }),
        ("power_loss", Unknown, false, |f| layout(f).streams[0].replicas = 1),
        ("replica_offline", Warning, false, |f| layout(f).streams[0].offline = vec!["n3".into()]),
        ("consumer_missing", MustFix, true, |f| layout(f).lanes[1].state.is_missing = true),
        ("consumer_broken", MustFix, true, |f| layout(f).lanes[0].differences = difference("ack_policy")),
        ("consumer_drift", Warning, false, |f| layout(f).lanes[0].differences = difference("backoff")),
        ("consumer_drift", Unknown, false, |f| layout(f).lanes[0].unknown = Some("denied".into())),
        ("ack_wait", MustFix, true, |f| layout(f).lanes[0].ack_wait = Duration::from_secs(20)),
        ("max_deliver", MustFix, true, |f| layout(f).lanes[0].max_deliver = 40),
        ("max_ack_pending", MustFix, false, |f| layout(f).lanes[0].state.held = 1000),
        ("max_ack_pending", Warning, false, |f| layout(f).lanes[0].state.held = 800),
        ("delayed", Warning, false, |f| {
            let state = &mut layout(f).lanes[0].state;
            (state.held, state.max_held) = (100_000, 1_000_000);
        }),
        ("consumer_paused", Warning, false, |f| layout(f).lanes[0].state.paused_ms = Some(5000)),
        ("paused", Warning, false, |f| {
            let target = Target::Queue(QueueName::new("default").unwrap());
            let (slot, reason) = (target.slot(), Some("disk".to_owned()));
            let pause = Pause { target, reason, by: "ann@h".into(), at_ms: 1, until_ms: Some(90_000) };
            let mut pauses = Pauses::default();
            pauses.put(slot, pause);
            layout(f).pauses = Ok((pauses, 60_000));
            // Paused because its queue is: no finding of its own.
            layout(f).lanes[0].state.paused_ms = Some(30_000);
        }),
        ("paused", Unknown, false, |f| layout(f).pauses = Err("denied".into())),
        ("uncovered_subject", MustFix, false, |f| layout(f).uncovered = vec!["surety.jobs.typo".into()]),
        ("stray_messages", MustFix, false, |f| layout(f).stray = Some(1)),
        ("permissions", MustFix, true, |f| {
            nats(f).publish =
                Ok(Some(Permissions { deny: vec!["surety.>".into()], ..Permissions::default() }));
        }),
        ("permissions", Unknown, false, |f| nats(f).publish = Err("no answer".into())),
        ("storage", Warning, false, |f| nats(f).account = Ok(Storage { used: 80, limit: Some(100) })),
        ("clocks", Warning, false, |f| nats(f).clock = Some(Offset { ms: 5000, within_ms: 1 })),
        ("redis_unreachable", MustFix, false, |f| f.redis = Some(Err("refused".into()))),
        ("redis_version", MustFix, true, |f| server(f).version = "6.2.7".into()),
        ("redis_eviction", MustFix, true, |f| server(f).policy = "allkeys-lru".into()),
        ("redis_evicted", Warning, false, |f| server(f).evicted = 1),
        ("redis_aof", MustFix, true, |f| server(f).has_aof = false),
        ("redis_fsync", Note, false, |f| server(f).config.as_mut().unwrap().appendfsync = "everysec".into()),
        ("redis_fsync", Warning, false, |f| server(f).config.as_mut().unwrap().appendfsync = "no".into()),
        ("redis_fsync", Unknown, false, |f| server(f).config = Err("NOPERM".into())),
        ("redis_writes", MustFix, false, |f| server(f).failed_writes = vec!["the last write"]),
        ("redis_memory", Warning, false, |f| server(f).used = 768 << 20),
        ("redis_memory", MustFix, false, |f| server(f).used = 1000 << 20),
        ("redis_memory", Warning, false, |f| (server(f).limit, server(f).used) = (0, 3500 << 20)),
        ("redis_replica", MustFix, true, |f| server(f).is_replica = true),
        ("redis_cluster", Note, false, |f| _ = cluster(f)),
        ("redis_cluster_state", MustFix, false, |f| cluster(f).is_ok = false),
        ("redis_cluster_state", MustFix, false, |f| cluster(f).unserved = vec![2]),
        ("redis_cluster_spread", Warning, false, |f| cluster(f).masters[1].partitions.clear()),
        ("redis_cluster_nodes", Warning, false, |f| cluster(f).masters[1].replicas.clear()),
        ("redis_cluster_nodes", Warning, false, |f| {
            cluster(f);
            f.redis.as_mut().unwrap().as_mut().unwrap().servers[3].state = Err("refused".into());
        }),
        ("redis_cluster_timeout", Warning, false, |f| {
            cluster(f);
            server(f).config.as_mut().unwrap().node_timeout = Some(Duration::from_secs(15));
        }),
        ("redis_aof", MustFix, true, |f| {
            cluster(f);
            let servers = &mut f.redis.as_mut().unwrap().as_mut().unwrap().servers;
            servers[2].state.as_mut().unwrap().has_aof = false;
        }),
        ("redis_data_set", MustFix, false, |f| fleet(f).data_sets = vec![DataSet::OfAnotherBroker]),
        ("redis_data_set", MustFix, false, |f| fleet(f).data_sets = vec![DataSet::Ours, DataSet::Missing]),
        ("disk", MustFix, false, |f| {
            fleet(f).state_disk = Some(Disk { path: "/s".into(), owner: "workers", free: 1, total: 100 });
        }),
        ("outbox", Warning, false, |f| fleet(f).outbox = vec![(1, 30_001)]),
        ("outbox", Warning, false, |f| fleet(f).outbox = vec![(5001, 10)]),
        ("outbox", MustFix, false, |f| fleet(f).outbox = vec![(10_000, 10)]),
        ("reaper", Warning, false, |f| fleet(f).fleet.sessions.push(session("dead", 980_000))),
        ("unserved_queue", Warning, false, |f| {
            layout(f).lanes[0].state.waiting = 3;
            fleet(f).fleet.sessions[0].info.as_mut().unwrap().queues = Some(vec!["other".into()]);
        }),
        ("worker_versions", Note, false, |f| {
            fleet(f).fleet.sessions[0].info.as_mut().unwrap().version = Some("0.0.1".into());
        }),
    ]
};

#[test]
fn a_good_system_has_no_finding() {
    for role in [Role::Operator, Role::Worker, Role::Reaper] {
        assert_eq!(judge(&Facts { role, ..good() }), []);
    }
}

#[test]
fn each_trap_is_found_alone_with_its_weight_and_its_repair() {
    for (n, (check, severity, refuses_start, set)) in TRAPS.iter().enumerate() {
        let mut facts = good();
        set(&mut facts);
        let mut found = judge(&facts);
        // Every cluster is told.
        if *check != "redis_cluster" {
            found.retain(|f| f.check != "redis_cluster");
        }
        assert_eq!(found.len(), 1, "trap {n}, {check}: {found:#?}");
        let f = &found[0];
        assert_eq!(
            (f.check, f.severity, f.refuses_start),
            (*check, *severity, *refuses_start),
            "trap {n}: {f:?}"
        );
        assert!(!f.fix.is_empty() && !f.place.is_empty() && f.what.len() > 5, "{f:?}");
        assert_eq!(refusals(&found).len(), usize::from(*refuses_start));
    }
}

#[test]
fn every_check_has_a_trap_at_its_worst() {
    let set: BTreeSet<_> = TRAPS.iter().map(|(check, ..)| *check).collect();
    assert_eq!(set, CHECKS.iter().map(|c| c.name).collect());
    for c in CHECKS {
        let worst = TRAPS.iter().filter(|t| t.0 == c.name).map(|t| t.1).max().unwrap();
        let refuses = TRAPS.iter().any(|t| t.0 == c.name && t.2);
        // Worse ones of these two are shown where they are judged.
        if !["storage", "power_loss"].contains(&c.name) {
            assert_eq!((worst, refuses), (c.worst, c.refuses_start), "{}", c.name);
        }
    }
}

#[test]
fn a_reaper_needs_no_queues_and_a_worker_only_its_own() {
    let mut facts = good();
    layout(&mut facts).lanes[0].state.is_missing = true;
    let refuses = |f: &Facts| judge(f).iter().any(|f| f.refuses_start);
    assert!(refuses(&facts));
    facts.role = Role::Reaper;
    assert!(!refuses(&facts));
    facts.role = Role::Worker;
    facts.settings.worker.queues = vec!["other".into()];
    layout(&mut facts).queues.push(QueueName::new("other").unwrap());
    assert!(!refuses(&facts));
}

#[test]
fn a_redis_without_its_log_says_what_it_keeps_instead() {
    let mut facts = good();
    server(&mut facts).has_aof = false;
    server(&mut facts).config.as_mut().unwrap().save = "3600 1".into();
    let found = judge(&facts);
    assert!(found[0].what.contains("snapshots only: `save 3600 1`"), "{found:?}");
}
