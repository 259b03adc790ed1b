//! A Redis Cluster of three masters with several partitions: every way a job can end, masters that die, replicas that are
//! behind, and what `surety doctor` says of it.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use surety_common::{
    connect::Connected,
    domain::{JobId, Status},
};
use surety_tests::{
    guarded::Guarded,
    process::Process,
    redis::{Kind, MASTERS, Redis},
    witness::{Witness, settled, wait_logged},
    world::{World, wait},
};

/// Leases that outlive a failover, and calls that are repeated for as long as one takes.
pub(super) const PATIENT: &str = r#"
[connection]
retry_limit = "15s"
[lease]
renewal = "500ms"
ttl = "7s"
margin = "1s"
extend = "2s"
[layout]
ack_wait = "10s"
"#;

/// A job whose keys a node has: of partition 0 and of the others the node of `{p00}` is the first.
pub(super) fn of_partition(c: &Connected, p: u32, stem: &str) -> JobId {
    (0..)
        .map(|i| JobId::new(&format!("{stem}-{i}")).unwrap())
        .find(|id| c.store.keys().partition(id) == p)
        .unwrap()
}

/// Which node has the keys of each partition.
pub(super) async fn masters(world: &World, c: &Connected) -> Vec<usize> {
    let state = c.store.cluster().await.unwrap().unwrap();
    let port = |p: u32| state.masters.iter().find(|m| m.partitions.contains(&p)).unwrap().node.port;
    let node = |p: u32| world.redis.nodes.iter().position(|n| n.port() == port(p)).unwrap();
    (0..c.store.keys().partitions()).map(node).collect()
}

/// Everything ended once, nothing is left of anything, and the journal shows no broken promise.
pub(super) async fn kept(world: &World, c: &Connected, jobs: &[(String, Status)]) {
    for (id, outcome) in jobs {
        assert_eq!(world.ended(c, id).await.status, *outcome, "{id}\n{}", world.logs());
    }
    settled(world, c).await;
    let h = world.history(c).await;
    h.check().unwrap();
    for (id, _) in jobs {
        assert_eq!(h.count(id, "finished"), 1, "{id}");
    }
    let audit = world.ask(&["audit", "--running"]).await;
    assert_eq!((&audit["is_clean"], &audit["open"]), (&true.into(), &0.into()), "{audit:#}");
}

// Shows: P1, P2, P7
#[tokio::test]
async fn jobs_of_every_ending_run_through_on_a_cluster() {
    let witness = Witness::default();
    let handlers = witness.handler("slow", "until [ -e $W.go ]; do sleep 0.02; done")
        + &witness.handler("flaky", "[ $SURETY_ATTEMPT -gt 1 ]")
        + &witness.handler("final", "exit 64")
        + "[handlers.later]\ncommand = [\"/nonexistent/program\"]\n";
    let world = World::on_cluster(&handlers, 0).await;
    let c = world.connect().await;
    let at = masters(&world, &c).await;
    assert_eq!(at.iter().collect::<BTreeSet<_>>().len(), MASTERS, "every master has partitions: {at:?}");
    let _reaper = world.reaper(&[]);
    // Lost with their worker, whose session stands in every partition.
    let mut lost = world.worker(&["--state-dir", &world.path("lost"), "--slots", "2"], &[]);
    let mut jobs = Vec::new();
    for p in [1, 3] {
        let id = of_partition(&c, p, "lost").to_string();
        world.publish("default", &id, r#"{"type":"slow"}"#).await;
        witness.started(&id, 1).await;
        jobs.push((id, Status::Done));
    }
    lost.kill9().await;
    let mut worker = world.worker(&["--slots", "8"], &[]);
    worker.logged("worker ready").await;
    // Of each kind one in every partition.
    let mut ended = Vec::new();
    let mut add = async |kind: &str, body: &str, outcome: Status| {
        for p in 0..6 {
            let id = of_partition(&c, p, kind).to_string();
            world.publish("default", &id, body).await;
            ended.push((id, outcome));
        }
    };
    add("done", r#"{"type":"noop"}"#, Status::Done).await;
    add("retried", r#"{"type":"flaky","retry":{"backoff":["10ms"]}}"#, Status::Done).await;
    add("failed", r#"{"type":"final"}"#, Status::Failed).await;
    add("unknown", r#"{"type":"nobody-knows"}"#, Status::Failed).await;
    add("deferred", r#"{"type":"later","contract":{"finish":"2s"}}"#, Status::TimedOut).await;
    add(
        "overdue",
        r#"{"type":"slow","contract":{"timeout":"300ms"},"retry":{"max_retries":0}}"#,
        Status::TimedOut,
    )
    .await;
    add("expired", r#"{"type":"slow","expires_at":"2020-01-01T00:00:00Z"}"#, Status::Failed).await;
    // Cancelled while they run: the reaper and the command find the record, whatever the node.
    for p in [0, 2, 3] {
        let id = of_partition(&c, p, "cancelled").to_string();
        world.publish("default", &id, r#"{"type":"slow"}"#).await;
        witness.started(&id, 1).await;
        world.surety(&["cancel", &id, "--wait", "20s"]).await.exits(0);
        assert!(world.surety(&["why", &id]).await.exits(0).out.contains("cancelled"));
        jobs.push((id, Status::Cancelled));
    }
    for (id, outcome) in &ended {
        assert_eq!(world.ended(&c, id).await.status, *outcome, "{id}");
    }
    witness.touch("go");
    jobs.append(&mut ended);
    kept(&world, &c, &jobs).await;
    witness.no_overlap();
    // An ended one runs again.
    let again = &jobs.iter().find(|(_, outcome)| *outcome == Status::Failed).unwrap().0;
    world.surety(&["dlq", "replay", again]).await.exits(0);
    world.until(&c, again, |r| r.generation == 2 && r.status.is_terminal()).await;
    let queues = world.ask(&["queues"]).await;
    assert!(queues.to_string().contains("default"), "{queues}");
    assert_eq!(worker.stop().await, Some(0), "{}", worker.log());
}

/// A run with jobs of every partition under way, on a cluster with replicas.
struct Case {
    world: World,
    c: Connected,
    witness: Witness,
    processes: Vec<Process>,
    jobs: Vec<(String, Status)>,
}

const N: usize = 100;

impl Case {
    async fn start(config: &str) -> Self {
        let witness = Witness::default();
        let handlers = witness.handler("work", "sleep 0.2")
            + &witness.handler("slow", "until [ -e $W.go ]; do sleep 0.02; done");
        let world = World::on_cluster(&(handlers + config), 1).await;
        let c = world.connect().await;
        let mut processes = vec![world.reaper(&[])];
        for name in ["one", "two"] {
            processes.push(world.worker(&["--state-dir", &world.path(name), "--slots", "6"], &[]));
        }
        for (p, ready) in processes.iter_mut().zip(["reaper ready", "worker ready", "worker ready"]) {
            p.logged(ready).await;
        }
        Self { world, c, witness, processes, jobs: Vec::new() }
    }

    async fn add(&mut self, id: &str, kind: &str) {
        let body = format!(r#"{{"type":"{kind}","retry":{{"max_retries":20,"backoff":["50ms"]}}}}"#);
        self.world.publish("default", id, &body).await;
        self.jobs.push((id.to_owned(), Status::Done));
    }

    /// Many at once, every other one a command.
    async fn add_many(&mut self, stem: &str, n: usize) {
        let js = async_nats::jetstream::new(self.world.plain().await);
        let mut acks = Vec::new();
        for i in 0..n {
            let (id, kind) = (format!("{stem}{i}"), ["noop", "work"][i % 2]);
            let body = format!(r#"{{"type":"{kind}","retry":{{"max_retries":20,"backoff":["50ms"]}}}}"#);
            acks.push(js.publish(format!("surety.jobs.default.{id}"), body.into()).await.unwrap());
            self.jobs.push((id, Status::Done));
        }
        for ack in acks {
            ack.await.unwrap();
        }
    }

    /// Kills a master, and waits until its replica has its place and every node knows.
    async fn fail_over(&mut self, master: usize) -> usize {
        let replica = self.world.redis.replicas_of(master).start;
        self.world.redis.nodes[master].kill9().await.unwrap();
        wait("the replica to take over", async || self.world.redis.is_master(replica).await).await;
        replica
    }

    async fn all_kept(mut self) {
        kept(&self.world, &self.c, &self.jobs).await;
        self.witness.no_overlap();
        for p in &mut self.processes {
            assert_eq!(p.stop().await, Some(0), "{}", p.log());
        }
    }
}

// Shows: P1, P2, P5, P7, X-08
#[tokio::test]
async fn a_master_is_killed_amid_jobs_and_its_replica_takes_over() {
    let mut case = Case::start(PATIENT).await;
    let at = masters(&case.world, &case.c).await;
    // Running through it, in a partition of the master that dies.
    let p = u32::try_from(at.iter().position(|m| *m == 1).unwrap()).unwrap();
    let slow = of_partition(&case.c, p, "slow").to_string();
    case.add(&slow, "slow").await;
    case.witness.started(&slow, 1).await;
    case.add_many("before-", N).await;
    let before = case.witness.starts().len();
    assert!(before < N / 3, "the failover comes too late to show anything: {before}");
    let replica = case.fail_over(1).await;
    case.add_many("after-", N).await;
    // The others went on, and the partitions that moved go on at their new node.
    wait_logged(&case.world, "the client to find the new master", async || {
        case.c.store.cluster().await.is_ok_and(|s| {
            let port = case.world.redis.nodes[replica].port();
            s.unwrap().masters.iter().any(|m| m.node.port == port && m.partitions.contains(&p))
        })
    })
    .await;
    case.witness.touch("go");
    // A process that starts now is told the address of a node that is gone, and of one that is there.
    let urls = format!("{},{}", case.world.redis.nodes[1].url(), case.world.redis.nodes[2].url());
    let mut late = case.world.worker(&["--state-dir", &case.world.path("late"), "--redis", &urls], &[]);
    late.logged("worker ready").await;
    case.processes.push(late);
    case.all_kept().await;
}

// Shows: P1, P2, P5
#[tokio::test]
async fn a_replica_that_is_behind_takes_over_and_what_it_lacks_is_made_again() {
    let mut case = Case::start(PATIENT).await;
    let at = masters(&case.world, &case.c).await;
    let p = u32::try_from(at.iter().position(|m| *m == 2).unwrap()).unwrap();
    let of = |stem: &str| of_partition(&case.c, p, stem).to_string();
    let (known, slow, lost) = (of("known"), of("slow"), of("lost"));
    case.add(&known, "work").await;
    case.world.ended(&case.c, &known).await;
    // From here on the replica hears nothing: its link is cut, and it has no password for a new one.
    let mut master = case.world.redis.plain(2).await;
    let _: () = redis::cmd("CONFIG")
        .arg("SET")
        .arg("requirepass")
        .arg("secret")
        .query_async(&mut master)
        .await
        .unwrap();
    let _: u64 =
        redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("replica").query_async(&mut master).await.unwrap();
    let replica = case.world.redis.replicas_of(2).start;
    wait("the replica to be cut off", async || {
        let mut c = case.world.redis.plain(replica).await;
        let info: redis::InfoDict = redis::cmd("INFO").arg("replication").query_async(&mut c).await.unwrap();
        info.get::<String>("master_link_status").as_deref() == Some("down")
    })
    .await;
    case.add(&slow, "slow").await;
    case.witness.started(&slow, 1).await;
    case.add(&lost, "work").await;
    case.world.ended(&case.c, &lost).await;
    wait_logged(&case.world, "its outcome to be journaled", async || {
        case.world.history(&case.c).await.count(&lost, "finished") == 1
    })
    .await;
    case.fail_over(2).await;
    wait_logged(&case.world, "the partitions to be whole again", async || {
        case.processes[0].log().contains("redis is whole again")
    })
    .await;
    case.witness.touch("go");
    for i in 0..12 {
        case.add(&format!("after-{i}"), "noop").await;
    }
    // What the journal knew as ended did not run again, and what ran goes on where it runs.
    for id in [&known, &lost, &slow] {
        case.world.ended(&case.c, id).await;
        assert_eq!(case.witness.executions(id), 1, "{id}\n{}", case.world.logs());
    }
    case.all_kept().await;
}

pub(super) async fn config(world: &World, node: usize, name: &str, value: &str) {
    let mut c = world.redis.plain(node).await;
    let _: () = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async(&mut c).await.unwrap();
}

#[tokio::test]
async fn the_doctor_looks_at_every_node_of_a_cluster() {
    let world = World::on_cluster(PATIENT, 1).await;
    world.connect().await;
    let findings = async |code: i32| -> Vec<Value> {
        let report = world.surety(&["--json", "doctor", "--skip", "disk"]).await.exits(code).json();
        report["findings"].as_array().unwrap().clone()
    };
    let of = |all: &[Value], check: &str| -> Vec<Value> {
        all.iter().filter(|f| f["check"] == check).cloned().collect()
    };
    let all = findings(0).await;
    let told = &of(&all, "redis_cluster")[0];
    assert!(
        told["what"].as_str().unwrap().starts_with("a cluster of 3 masters and 3 replicas; of 6 partitions"),
        "{told}"
    );
    for check in
        ["redis_cluster_state", "redis_cluster_spread", "redis_cluster_nodes", "redis_cluster_timeout"]
    {
        assert_eq!(of(&all, check), Vec::<Value>::new(), "{check}");
    }
    // A node that is no master, and one that is.
    let place = |n: usize| format!("127.0.0.1:{}", world.redis.nodes[n].port());
    config(&world, 5, "maxmemory-policy", "allkeys-lru").await;
    config(&world, 1, "appendonly", "no").await;
    config(&world, 2, "cluster-node-timeout", "15000").await;
    let all = findings(78).await;
    let where_of = |check: &str| of(&all, check)[0]["where"].as_str().unwrap().to_owned();
    assert!(where_of("redis_eviction").contains(&place(5)), "{all:#?}");
    assert!(where_of("redis_aof").contains(&place(1)), "{all:#?}");
    assert_eq!(of(&all, "redis_cluster_timeout").len(), 1, "{all:#?}");
    let mut worker = world.worker(&[], &[]);
    assert_eq!(worker.ended(Duration::from_secs(45)).await, Some(78), "{}", worker.log());
    assert!(worker.log().contains("append-only") && worker.log().contains(&place(1)), "{}", worker.log());
}

#[tokio::test]
async fn the_doctor_names_a_master_that_is_away() {
    let mut world = World::on_cluster("", 0).await;
    world.connect().await;
    let report = world.surety(&["--json", "doctor", "--skip", "disk"]).await.exits(1).json();
    assert_eq!(report.to_string().matches("a master without a replica").count(), MASTERS, "{report:#}");
    world.redis.nodes[1].kill9().await.unwrap();
    wait("the cluster to notice", async || {
        world.redis.info(0).await.get::<String>("cluster_state").as_deref() == Some("fail")
    })
    .await;
    let report = world.surety(&["--json", "doctor", "--skip", "disk"]).await.exits(78).json();
    let all = report["findings"].as_array().unwrap();
    let found: Vec<_> =
        all.iter().filter(|f| f["check"] == "redis_cluster_state").map(Value::to_string).collect();
    let port = world.redis.nodes[1].port().to_string();
    assert!(
        found.iter().any(|f| f.contains(&port)) && found.iter().any(|f| f.contains("not ok")),
        "{report:#}"
    );
}

// Shows: G-07
#[tokio::test]
async fn addresses_that_are_no_cluster_are_refused_and_one_of_a_replica_will_do() {
    let world = World::on_cluster("", 1).await;
    let c = world.connect().await;
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    let mut worker = world.worker(&["--redis", &world.redis.nodes[4].url()], &[]);
    worker.logged("worker ready").await;
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    assert_eq!(worker.stop().await, Some(0));
    let dir = tempfile::tempdir().unwrap();
    let alone = Redis::start(Kind::One, dir.path().join("redis"), &[]).await.unwrap();
    let urls = format!("{0},{0}", alone.url());
    let said = world.surety_bare(&["--nats", &world.nats.url(), "--redis", &urls, "workers"]).await.exits(78);
    assert!(said.err.contains("is not a node of a cluster"), "{}", said.err);
    let urls = format!("{}/3", world.redis.url());
    let said = world.surety_bare(&["--nats", &world.nats.url(), "--redis", &urls, "workers"]).await.exits(78);
    assert!(said.err.contains("the database 0 only"), "{}", said.err);
}

#[tokio::test]
async fn each_role_has_the_rights_that_a_cluster_needs() {
    let g = Guarded::on_cluster("").await;
    let mut worker = g.worker("worker", "state");
    let mut reaper = g.reaper();
    worker.logged("worker ready").await;
    reaper.logged("reaper ready").await;
    let operator = g.operator().await;
    for p in 0..6 {
        let id = of_partition(&operator, p, "a").to_string();
        g.surety("operator", &["enqueue", "--id", &id, "noop"]).await.exits(0);
        assert_eq!(g.world.ended(&operator, &id).await.status, Status::Done);
        g.surety("reader", &["status", &id]).await.exits(0);
    }
    g.surety("reader", &["workers"]).await.exits(0);
    for p in [&mut worker, &mut reaper] {
        assert_eq!(p.stop().await, Some(0), "{}", p.log());
        assert!(!p.log().contains("does not let"), "{}", p.log());
    }
}
