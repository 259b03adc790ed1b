//! Redis loses its data while jobs stand in the lines of guards and their messages sleep at the broker. The lines are gone and
//! wake nobody, and the sleep is much longer than any of these tests.

use std::time::{Duration, Instant};

use surety_common::{
    connect::Connected,
    domain::{
        Status,
        guard::GuardKind::{self, Concurrency, Lock, Pause},
    },
    store::Scope,
};
use surety_tests::{
    process::Process,
    witness::{Witness, settled, wait_logged},
    world::World,
};

use super::{cluster::masters, redis_loss};

const GUARDS: &str = r#"
[lease]
ttl = "4s"
[guards]
fallback = "10m"
[guards.concurrency.two]
scope = "{key}"
limit = 2
[guards.breaker.host]
scope = "{payload.host}"
sample = 1
open = "10m"
"#;

/// Within this time everybody is back in line, long before anybody comes by itself.
const SOON: Duration = Duration::from_secs(30);

const WORK: &str = r#"{"type":"work","key":"k"}"#;
const LOCKED: &str = r#"{"type":"work","locks":["one"]}"#;
const HELD: &str = r#"{"type":"held"}"#;
const CALLS: &str = r#"{"type":"calls","payload":{"host":"h"},"retry":{"max_retries":0}}"#;

/// Jobs in lines of several kinds.
struct Case {
    world: World,
    c: Connected,
    witness: Witness,
    worker: Process,
    jobs: Vec<(String, Status)>,
}

impl Case {
    async fn start(world: impl AsyncFnOnce(&str) -> World) -> Self {
        let witness = Witness::default();
        let config = witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done")
            + &witness.handler("held", "true")
            + &witness.handler("calls", "[ $SURETY_JOB_ID != bad ] || exit 1")
            + GUARDS;
        let world = world(&config).await;
        let c = world.connect().await;
        let mut worker = world.worker(&["--slots", "8"], &[]);
        worker.logged("worker ready").await;
        let mut case = Self { world, c, witness, worker, jobs: Vec::new() };
        for id in ["run-1", "run-2"] {
            case.add(id, WORK, Status::Done).await;
            case.witness.started(id, 1).await;
        }
        case.add("owner", LOCKED, Status::Done).await;
        case.witness.started("owner", 1).await;
        case
    }

    async fn add(&mut self, id: &str, body: &str, outcome: Status) {
        self.world.publish("default", id, body).await;
        self.jobs.push((id.to_owned(), outcome));
    }

    /// Adds so many jobs, and waits until all are deferred and the journal says so.
    async fn defer(&mut self, stem: &str, n: usize, body: &str) {
        for i in 0..n {
            self.add(&format!("{stem}-{i:02}"), body, Status::Done).await;
        }
        for i in 0..n {
            self.world.status(&self.c, &format!("{stem}-{i:02}"), Status::Deferred).await;
        }
        wait_logged(&self.world, "all of it to be journaled", async || {
            self.c.store.depths().await.is_ok_and(|d| d.outbox == 0)
        })
        .await;
    }

    /// How many stand in the lines of a kind.
    async fn waiting(&self, kind: GuardKind) -> u64 {
        let scopes = self.c.store.scopes().await.unwrap_or_default();
        scopes.iter().filter(|s| s.scope.kind == kind).map(|s| s.waiting).sum()
    }

    /// Waits until a reaper has made the store whole, and so many are in line again for each kind.
    async fn in_line_again(&self, reaper: &mut Process, lines: &[(GuardKind, u64)]) {
        reaper.logged("redis is whole again").await;
        let whole = Instant::now();
        for (kind, n) in lines {
            wait_logged(&self.world, &format!("{n} in line for {}", kind.name()), async || {
                self.waiting(*kind).await == *n
            })
            .await;
        }
        assert!(whole.elapsed() < SOON, "{:?}", whole.elapsed());
    }

    async fn each_ended_once(mut self) {
        let begun = Instant::now();
        self.witness.touch("go");
        for (id, outcome) in &self.jobs {
            assert_eq!(self.world.ended(&self.c, id).await.status, *outcome, "{id}");
        }
        assert!(begun.elapsed() < 4 * SOON, "{:?}", begun.elapsed());
        settled(&self.world, &self.c).await;
        self.witness.no_overlap();
        let h = self.world.history(&self.c).await;
        h.check().unwrap();
        for (id, _) in &self.jobs {
            assert_eq!((self.witness.executions(id), h.count(id, "finished")), (1, 1), "{id}");
        }
        assert_eq!(self.waiting(Concurrency).await + self.waiting(Lock).await, 0);
        assert_eq!(self.worker.stop().await, Some(0));
    }

    /// The jobs of a stem in the order of their starts.
    fn started(&self, stem: &str) -> Vec<usize> {
        let of = |job: &str| job.strip_prefix(stem)?.strip_prefix('-')?.parse().ok();
        self.witness.starts().iter().filter_map(|s| of(&s.job)).collect()
    }
}

// Shows: P1, P2, S-04, S-07
#[tokio::test]
async fn whoever_stood_in_a_line_that_was_lost_is_in_line_again_soon_and_runs_once() {
    let mut case = Case::start(World::with).await;
    // It dies before anybody is woken; the next one does that.
    let mut dying = case.world.reaper(&[("SURETY_FAULT", "rebuild_restored:1")]);
    dying.logged("reaper ready").await;
    case.world.surety(&["pause", "--type", "held"]).await.exits(0);
    case.worker.logged("what is paused is not started").await;
    case.add("bad", CALLS, Status::Failed).await;
    let opened = async || {
        let scopes = case.c.store.scopes().await.unwrap();
        scopes.iter().any(|s| s.fields.get("level").is_some_and(|l| l == "1"))
    };
    wait_logged(&case.world, "the breaker to open", opened).await;
    case.defer("work", 60, WORK).await;
    case.defer("locked", 5, LOCKED).await;
    case.defer("held", 10, HELD).await;
    case.defer("calls", 5, CALLS).await;
    for node in 0..case.world.redis.nodes.len() {
        redis_loss::flush(&case.world, node).await;
    }
    assert_eq!(dying.ended(Duration::from_secs(60)).await, None);
    let mut reaper = case.world.reaper(&[]);
    case.in_line_again(&mut reaper, &[(Concurrency, 60), (Lock, 5), (Pause, 10)]).await;
    // The breaker was closed by the loss.
    for i in 0..5 {
        case.world.status(&case.c, &format!("calls-{i:02}"), Status::Done).await;
    }
    assert!([case.started("work"), case.started("locked"), case.started("held")].concat().is_empty());
    case.world.surety(&["resume", "--type", "held"]).await.exits(0);
    case.witness.touch("go");
    case.world.ended(&case.c, "work-59").await;
    let order = case.started("work");
    let late = |(at, n): (usize, &usize)| at.abs_diff(*n) > 2;
    assert!(!order.iter().enumerate().any(late), "not by their arrival: {order:?}");
    case.each_ended_once().await;
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: P1, P2, S-07
#[tokio::test]
async fn a_line_of_an_older_copy_gets_back_who_came_after_it() {
    let mut case = Case::start(World::with).await;
    let mut reaper = case.world.reaper(&[]);
    case.defer("before", 10, WORK).await;
    let kept = redis_loss::keep_copy(&case.world);
    case.defer("after", 20, WORK).await;
    redis_loss::go_back(&mut case.world, &kept).await;
    // The holds of the copy are over by then, but not those of the attempts that run.
    case.in_line_again(&mut reaper, &[(Concurrency, 30)]).await;
    assert!([case.started("before"), case.started("after")].concat().is_empty());
    case.each_ended_once().await;
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: P1, P2, S-07
#[tokio::test]
async fn a_line_that_is_lost_with_one_master_wakes_jobs_of_every_partition() {
    let mut case = Case::start(async |config| World::on_cluster(config, 0).await).await;
    let mut reaper = case.world.reaper(&[]);
    case.defer("locked", 24, LOCKED).await;
    let at = Scope::new(GuardKind::Lock, "", "one", [1, 0, 0, 0]).partition(case.c.store.keys().partitions());
    let lost = masters(&case.world, &case.c).await[usize::try_from(at).unwrap()];
    redis_loss::flush(&case.world, lost).await;
    case.in_line_again(&mut reaper, &[(Lock, 24)]).await;
    case.each_ended_once().await;
    assert_eq!(reaper.stop().await, Some(0));
}
