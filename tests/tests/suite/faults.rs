//! The crash matrix: a process dies at each point of the write order, once; a fresh worker and the reaper bring every job to
//! exactly one outcome.

use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    witness::{QUICK, Witness, dead_letters, settled},
    world::{PATIENCE, World},
};

/// Handlers that succeed, fail once, fail for good and fail always.
fn handlers(w: &Witness) -> String {
    w.handler("ok", "sleep 0.05")
        + &w.handler("flaky", "if ! [ -e $W.$SURETY_JOB_ID ]; then touch $W.$SURETY_JOB_ID; exit 1; fi")
        + &w.handler("final", "exit 64")
        + &w.handler("always", "exit 1")
        + &w.handler("stay", "[ $SURETY_ATTEMPT -gt 1 ] || exec sleep 60")
}

struct Case {
    world: World,
    c: Connected,
    witness: Witness,
}

impl Case {
    async fn new() -> Self {
        let witness = Witness::default();
        let world = World::with(&(handlers(&witness) + QUICK)).await;
        let c = world.connect().await;
        Self { world, c, witness }
    }

    /// Two of each kind: id and body.
    async fn publish(&self) -> Vec<(String, Status)> {
        let retry = r#""retry":{"max_retries":5,"backoff":["50ms"]}"#;
        let once = r#""retry":{"max_retries":4,"backoff":["20ms"]}"#;
        let mut jobs = Vec::new();
        for i in 0..2 {
            for (name, body, outcome) in [
                ("noop", r#"{"type":"noop"}"#.to_owned(), Status::Done),
                ("ok", format!(r#"{{"type":"ok",{retry}}}"#), Status::Done),
                ("flaky", format!(r#"{{"type":"flaky",{retry}}}"#), Status::Done),
                ("final", format!(r#"{{"type":"final",{retry}}}"#), Status::Failed),
                ("always", format!(r#"{{"type":"always",{once}}}"#), Status::Failed),
                ("bad", r#"{"type":"ok","payload":"#.to_owned(), Status::Failed),
            ] {
                let id = format!("{name}-{i}");
                self.world.publish("default", &id, &body).await;
                jobs.push((id, outcome));
            }
        }
        jobs
    }

    async fn all_as_promised(&self, jobs: &[(String, Status)]) {
        for (id, outcome) in jobs {
            assert_eq!(self.world.ended(&self.c, id).await.status, *outcome, "{id}\n{}", self.world.logs());
        }
        settled(&self.world, &self.c).await;
        let h = self.world.history(&self.c).await;
        h.check().unwrap();
        let letters = dead_letters(&self.world).await;
        for (id, outcome) in jobs {
            assert_eq!(h.count(id, "finished"), 1, "{id}");
            let copies = letters.iter().filter(|l| l.job == *id).count();
            assert_eq!(copies, usize::from(*outcome == Status::Failed), "dead letters of {id}");
        }
        self.witness.no_overlap();
    }
}

/// A worker dies at the `n`-th pass; its successor has the same state folder or another.
async fn worker_dies_at(point: &str, n: u32, same_state: bool) {
    let case = Case::new().await;
    let jobs = case.publish().await;
    let mut reaper = case.world.reaper(&[]);
    let mut doomed = case.world.worker(&["--slots", "4"], &[("SURETY_FAULT", &format!("{point}:{n}"))]);
    assert_eq!(doomed.ended(PATIENCE).await, None, "killed by the fault point\n{}", doomed.log());
    let other = case.world.path("other-state");
    let more: &[&str] = if same_state { &[] } else { &["--state-dir", &other] };
    let mut fresh = case.world.worker(more, &[]);
    case.all_as_promised(&jobs).await;
    assert_eq!(fresh.stop().await, Some(0), "{}", fresh.log());
    assert_eq!(reaper.stop().await, Some(0), "{}", reaper.log());
}

/// A worker dies while it runs two jobs, and the reaper that takes them back dies at a point of its own.
async fn reaper_dies_at(point: &str) {
    let case = Case::new().await;
    // The only attempt of this one is lost: the reaper has to end the job.
    case.world.publish("default", "spent", r#"{"type":"stay","retry":{"max_retries":0}}"#).await;
    case.world.publish("default", "again", r#"{"type":"stay"}"#).await;
    let mut doomed = case.world.worker(&[], &[]);
    case.witness.started("spent", 1).await;
    case.witness.started("again", 1).await;
    doomed.kill9().await;
    let jobs = case.publish().await;
    let mut reaper = case.world.reaper(&[("SURETY_FAULT", &format!("{point}:1"))]);
    assert_eq!(reaper.ended(PATIENCE).await, None, "{}", reaper.log());
    let mut second = case.world.reaper(&[]);
    let other = case.world.path("other-state");
    let mut fresh = case.world.worker(&["--state-dir", &other], &[]);
    let spent = case.world.ended(&case.c, "spent").await;
    assert_eq!((spent.status, spent.code.as_str()), (Status::Failed, "attempts_exhausted"));
    assert_eq!(case.world.ended(&case.c, "again").await.charged, 1);
    let all = [("spent".into(), Status::Failed), ("again".into(), Status::Done)];
    case.all_as_promised(&[&jobs[..], &all].concat()).await;
    assert_eq!((case.witness.executions("spent"), case.witness.executions("again")), (1, 2));
    assert_eq!((fresh.stop().await, second.stop().await), (Some(0), Some(0)));
}

/// Workers die with a job until the broker gives it up; then the reaper dies while it buries it.
async fn max_deliver(point: Option<&str>) {
    let config = QUICK.replace("[layout]", "[layout]\nmax_deliver = 2") + "[worker]\nhand_on_limit = 1";
    let world = World::with(&config).await;
    let c = world.connect().await;
    world.publish("default", "poison", r#"{"type":"noop"}"#).await;
    for _ in 0..2 {
        let mut w = world.worker(&["--slots", "1"], &[("SURETY_FAULT", "pulled:1")]);
        assert_eq!(w.ended(PATIENCE).await, None, "{}", w.log());
    }
    // The broker says that it gave up when somebody asks for work (measured: not before).
    let mut later = world.worker(&[], &[]);
    if let Some(point) = point {
        let mut reaper = world.reaper(&[("SURETY_FAULT", &format!("{point}:1"))]);
        assert_eq!(reaper.ended(PATIENCE).await, None, "{}", reaper.log());
        // Not to wait for a minute until the broker offers its advisory again: another reader gets all of them.
        let js = async_nats::jetstream::new(world.plain().await);
        js.delete_consumer_from_stream("reaper", "SURETY_ADVISORIES").await.unwrap();
    }
    let _reaper = world.reaper(&[]);
    let ended = world.ended(&c, "poison").await;
    assert_eq!((ended.status, ended.code.as_str()), (Status::Failed, "max_deliver"));
    settled(&world, &c).await;
    assert_eq!(dead_letters(&world).await.len(), 1);
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("poison", "buried"), h.count("poison", "finished")), (1, 1));
    assert_eq!(later.stop().await, Some(0));
}

macro_rules! worker_dies {
    ($($point:ident)+) => { $(
        // Shows: X-13, J-03, J-06, J-12, D-06, X-04
        #[tokio::test]
        async fn $point() {
            tokio::join!(
                super::worker_dies_at(stringify!($point), 1, true),
                super::worker_dies_at(stringify!($point), 3, false),
            );
        }
    )+ };
}

mod worker_dies_when {
    worker_dies!(pulled claim_committed claimed started finish_committed finish_journaled buried settled);

    // Passed by burials only, of which there are two.
    // Shows: X-13, J-12
    #[tokio::test]
    async fn settle_committed() {
        tokio::join!(
            super::worker_dies_at("settle_committed", 1, true),
            super::worker_dies_at("settle_committed", 2, false),
        );
    }

    // Shows: X-13, J-12
    #[tokio::test]
    async fn settle_journaled() {
        tokio::join!(
            super::worker_dies_at("settle_journaled", 1, true),
            super::worker_dies_at("settle_journaled", 2, false),
        );
    }
}

// Shows: D-06, D-08, X-13
#[tokio::test]
async fn the_reaper_dies_while_it_takes_attempts_back() {
    tokio::join!(reaper_dies_at("lost_committed"), reaper_dies_at("buried"));
}

/// The reaper that ends an overdue job, or sets a record aside, dies right after; the next one goes on.
async fn reaper_dies_after(point: &str) {
    let case = Case::new().await;
    let mut worker = case.world.worker(&[], &[]);
    let terms = r#""retry":{"backoff":["4s"]},"contract":{"finish":"1500ms"}"#;
    case.world.publish("default", "late", &format!(r#"{{"type":"always",{terms}}}"#)).await;
    case.world.publish("default", "broken", r#"{"type":"flaky","retry":{"backoff":["1s"]}}"#).await;
    for job in ["late", "broken"] {
        case.world.status(&case.c, job, Status::RetryWait).await;
    }
    let client = redis::Client::open(case.world.redis.url()).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    let key = case.c.store.keys().job(&surety_tests::witness::id("broken"));
    () = redis::AsyncCommands::set(&mut plain, key, "rubbish").await.unwrap();
    let mut reaper = case.world.reaper(&[("SURETY_FAULT", &format!("{point}:1"))]);
    assert_eq!(reaper.ended(PATIENCE).await, None, "{}", reaper.log());
    let mut second = case.world.reaper(&[]);
    let late = case.world.ended(&case.c, "late").await;
    assert_eq!((late.status, late.code.as_str()), (Status::TimedOut, "finish_deadline"));
    assert_eq!(case.world.ended(&case.c, "broken").await.status, Status::Done);
    settled(&case.world, &case.c).await;
    let h = case.world.history(&case.c).await;
    h.check().unwrap();
    assert_eq!((h.count("late", "finished"), h.count("broken", "finished")), (1, 1));
    let letters = dead_letters(&case.world).await;
    assert_eq!(letters.iter().map(|l| l.job.as_str()).collect::<Vec<_>>(), ["late"]);
    case.witness.no_overlap();
    assert_eq!((worker.stop().await, second.stop().await), (Some(0), Some(0)));
}

// Shows: D-06, D-08, X-04, X-13
#[tokio::test]
async fn the_reaper_dies_while_it_acts_on_deadlines_and_mends() {
    tokio::join!(
        reaper_dies_after("due_committed"),
        reaper_dies_after("due_journaled"),
        reaper_dies_after("record_set_aside")
    );
}

// Shows: A-06, A-13, P8, D-06
#[tokio::test]
async fn a_job_that_kills_its_workers_is_buried_though_the_reaper_dies_too() {
    tokio::join!(
        max_deliver(None),
        max_deliver(Some("settle_committed")),
        max_deliver(Some("settle_journaled")),
        max_deliver(Some("buried"))
    );
}

/// The outcome is committed and the ack is not sent: a redelivery only acks.
async fn one_execution_though_it_dies_at(point: &str) {
    let case = Case::new().await;
    case.world.publish("default", "a", r#"{"type":"ok"}"#).await;
    case.world.publish("default", "b", r#"{"type":"final"}"#).await;
    let mut doomed = case.world.worker(&["--slots", "1"], &[("SURETY_FAULT", &format!("{point}:1"))]);
    assert_eq!(doomed.ended(PATIENCE).await, None);
    let _reaper = case.world.reaper(&[]);
    let _fresh = case.world.worker(&[], &[]);
    case.all_as_promised(&[("a".into(), Status::Done), ("b".into(), Status::Failed)]).await;
    assert_eq!(
        (case.witness.executions("a"), case.witness.executions("b")),
        (1, 1),
        "{}",
        case.witness.text()
    );
}

// Shows: X-13, T-03
#[tokio::test]
async fn a_committed_outcome_is_never_executed_again() {
    tokio::join!(
        one_execution_though_it_dies_at("finish_committed"),
        one_execution_though_it_dies_at("finish_journaled"),
        one_execution_though_it_dies_at("settled"),
        one_execution_though_it_dies_at("buried"),
    );
}
