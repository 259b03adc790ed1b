//! Redis loses its data in the middle of a run: emptied, restarted with an empty folder, restarted with an older copy.
//! NATS is made anew while Redis was kept.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use surety_common::{
    broker::{
        BrokerError,
        follow::{From, News, Part},
    },
    connect::{Connected, look, provision},
    domain::{Contract, ErrorCode, Status, ids::SessionId},
    pace::Pace,
    store::{ClaimItem, ClaimReply, FinishItem, Gate, Verdict},
};
use surety_tests::{
    process::Process,
    requester::Requester,
    witness::{Witness, id, settled, wait_logged},
    world::{World, messages},
};

use super::scripts::{BASE, count_epochs};

/// Handlers that last, come back, cannot be started, succeed and fail.
fn handlers(w: &Witness) -> String {
    let go = "until [ -e $W.go ]; do sleep 0.02; done";
    w.handler("slow", go)
        + &w.handler("tree", &format!("child '{go}'; {go}"))
        + &w.handler("flaky", "if ! [ -e $W.$SURETY_JOB_ID ]; then touch $W.$SURETY_JOB_ID; exit 1; fi")
        + &w.handler("final", "exit 64")
        + &w.handler("ok", "true")
        + "[handlers.later]\ncommand = [\"/nonexistent/program\"]\n"
}

/// A run with jobs in every state.
struct Case {
    world: World,
    c: Connected,
    witness: Witness,
    worker: Process,
    reapers: Vec<Process>,
    jobs: Vec<(String, Status)>,
}

const SLOTS: &[&str] = &["--slots", "4"];

impl Case {
    async fn start() -> Self {
        let witness = Witness::default();
        let world = World::with(&handlers(&witness)).await;
        let c = world.connect().await;
        let reapers = vec![world.reaper(&[])];
        let mut case =
            Self { worker: world.worker(SLOTS, &[]), world, c, witness, reapers, jobs: Vec::new() };
        case.worker.logged("worker ready").await;
        // Ended ones, acked and not.
        case.add("done", r#"{"type":"ok"}"#, Status::Done).await;
        case.add("failed", r#"{"type":"final"}"#, Status::Failed).await;
        for id in ["done", "failed"] {
            case.world.ended(&case.c, id).await;
        }
        case.die_after_journal().await;
        // Backed off for longer than the rebuild takes, and for less; deferred.
        let retry =
            |ms: u64| format!(r#"{{"type":"flaky","retry":{{"max_retries":3,"backoff":["{ms}ms"]}}}}"#);
        case.add("backoff-long", &retry(9000), Status::Done).await;
        case.add("backoff-short", &retry(1500), Status::Done).await;
        for id in ["backoff-long", "backoff-short"] {
            case.world.until(&case.c, id, |r| r.charged == 1).await;
        }
        case.add("deferred", r#"{"type":"later","contract":{"finish":"20s"}}"#, Status::TimedOut).await;
        case.world.status(&case.c, "deferred", Status::Deferred).await;
        // Running, for longer than the rebuild takes; waiting behind them.
        for id in ["slow-1", "slow-2", "slow-3"] {
            case.add(id, r#"{"type":"slow"}"#, Status::Done).await;
            case.witness.started(id, 1).await;
        }
        case.add("tree", r#"{"type":"tree"}"#, Status::Done).await;
        case.witness.started("tree", 2).await;
        for i in 0..20 {
            case.add(&format!("waiting-{i}"), r#"{"type":"ok"}"#, Status::Done).await;
        }
        case
    }

    async fn add(&mut self, id: &str, body: &str, outcome: Status) {
        self.world.publish("default", id, body).await;
        self.jobs.push((id.to_owned(), outcome));
    }

    /// Jobs that the journal knows as finished, and whose carriers are still there, because their workers died.
    async fn die_after_journal(&mut self) {
        self.worker.freeze();
        let mut dying = self.world.worker(
            &["--state-dir", &self.world.path("dying"), "--slots", "1"],
            &[("SURETY_FAULT", "finish_journaled:1")],
        );
        dying.logged("worker ready").await;
        self.add("unacked", r#"{"type":"ok"}"#, Status::Done).await;
        dying.ended(Duration::from_secs(30)).await;
        self.worker.thaw();
        assert_eq!(self.world.ended(&self.c, "unacked").await.status, Status::Done);
        assert!(messages(&self.world, &self.c.broker.names().jobs()).await >= 1, "its carrier is there");
    }

    /// Waits until a reaper has made the store whole.
    async fn rebuilt(&self) {
        wait_logged(&self.world, "the store to be whole again", async || {
            self.reapers.iter().any(|r| r.log().contains("redis is whole again"))
        })
        .await;
    }

    async fn all_as_promised(&mut self) {
        for (id, outcome) in &self.jobs {
            let ended = self.world.ended(&self.c, id).await;
            assert_eq!(ended.status, *outcome, "{id}\n{}", self.world.logs());
        }
        settled(&self.world, &self.c).await;
        self.witness.no_overlap();
        let h = self.world.history(&self.c).await;
        h.check().unwrap();
        for (id, _) in &self.jobs {
            assert_eq!(h.count(id, "finished"), 1, "{id}");
        }
        // The journal knew these as finished: they did not run again.
        for id in ["done", "failed", "unacked"] {
            assert_eq!(self.witness.executions(id), 1, "{id}\n{}", self.world.logs());
        }
        // And these as running: their attempts went on.
        for id in ["slow-1", "slow-2", "slow-3", "tree"] {
            assert_eq!(self.witness.executions(id), 1, "{id}\n{}", self.world.logs());
        }
        assert_eq!(self.worker.stop().await, Some(0));
    }

    async fn receipts(&self) -> Vec<(String, serde_json::Value)> {
        let h = self.world.history(&self.c).await;
        let of = |j: &surety_tests::history::JobHistory| {
            let e = j.events.iter().find(|e| e.kind == "finished")?;
            Some((e.job.clone(), e.data["receipt"].clone()))
        };
        h.jobs.values().filter_map(of).collect()
    }
}

/// Empties a node of Redis.
pub(super) async fn flush(w: &World, node: usize) {
    () = redis::cmd("FLUSHALL").query_async(&mut w.redis.plain(node).await).await.unwrap();
}

/// A copy of what Redis has on disk now.
pub(super) fn keep_copy(w: &World) -> PathBuf {
    let kept = w.dir.path().join("copy");
    copy(&folder(w), &kept);
    kept
}

/// Redis dies, and is started again with that copy.
pub(super) async fn go_back(w: &mut World, kept: &Path) {
    let dir = folder(w);
    w.redis.kill9().await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    copy(kept, &dir);
    w.redis.restart().await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            copy(&e.path(), &to);
        } else if !e.file_name().to_string_lossy().ends_with(".log") {
            std::fs::copy(e.path(), to).unwrap();
        }
    }
}

fn folder(w: &World) -> PathBuf {
    w.dir.path().join("redis")
}

// Shows: P1, P2, P5, P7, X-04
#[tokio::test]
async fn an_emptied_redis_is_rebuilt_in_the_middle_of_a_run() {
    let mut case = Case::start().await;
    let before = case.receipts().await;
    flush(&case.world, 0).await;
    case.rebuilt().await;
    case.witness.touch("go");
    case.all_as_promised().await;
    let after = case.receipts().await;
    for r in before {
        assert!(after.contains(&r), "a receipt changed: {r:?}");
    }
}

// Shows: P1, P2, P5, P7
#[tokio::test]
async fn a_redis_with_an_empty_folder_is_rebuilt() {
    let mut case = Case::start().await;
    case.world.redis.kill9().await.unwrap();
    std::fs::remove_dir_all(folder(&case.world)).unwrap();
    std::fs::create_dir_all(folder(&case.world)).unwrap();
    for r in &mut case.reapers {
        r.kill9().await;
    }
    case.world.redis.restart().await.unwrap();
    // Nobody rebuilds it yet: the worker goes on in a data set that knows nothing of what it runs.
    case.worker.logged("session opened again").await;
    let expires = async || {
        let all = case.c.store.sessions(0, u64::MAX / 4, 100).await.unwrap_or_default();
        all.iter().map(|(_, at)| *at).max().unwrap_or(0)
    };
    let first = expires().await;
    wait_logged(&case.world, "two more renewals", async || expires().await > first + 400).await;
    for id in ["slow-1", "slow-2", "slow-3", "tree"] {
        assert!(case.witness.lives(id), "{id}\n{}", case.world.logs());
    }
    // They end while nothing can be committed: the results wait.
    case.witness.touch("go");
    for id in ["slow-1", "slow-2", "slow-3", "tree"] {
        case.witness.dead(id, 1).await;
    }
    case.reapers = vec![case.world.reaper(&[])];
    case.rebuilt().await;
    case.all_as_promised().await;
}

// Shows: P1, P2, P5, P7
#[tokio::test]
async fn an_older_copy_of_redis_is_brought_up_to_the_journal() {
    let mut case = Case::start().await;
    let kept = keep_copy(&case.world);
    // What comes after the copy is known to the journal alone.
    case.add("after", r#"{"type":"slow"}"#, Status::Done).await;
    case.witness.touch("go");
    for id in ["slow-1", "waiting-3", "waiting-19", "after"] {
        case.world.ended(&case.c, id).await;
    }
    go_back(&mut case.world, &kept).await;
    case.rebuilt().await;
    case.all_as_promised().await;
    for (id, _) in case.jobs.iter().filter(|(id, _)| id.starts_with("waiting")) {
        assert_eq!(case.witness.executions(id), 1, "{id}");
    }
}

// Shows: D-08
#[tokio::test]
async fn a_reaper_that_dies_while_it_rebuilds_is_replaced_by_another() {
    for point in ["rebuild_scanned", "rebuild_fenced", "rebuild_restored"] {
        let mut case = Case::start().await;
        for r in &mut case.reapers {
            r.kill9().await;
        }
        let fault = format!("{point}:1");
        let mut dying = case.world.reaper(&[("SURETY_FAULT", &fault)]);
        dying.logged("reaper ready").await;
        flush(&case.world, 0).await;
        let died = dying.ended(Duration::from_secs(60)).await;
        assert_eq!(died, None, "{point}");
        case.reapers = vec![case.world.reaper(&[]), case.world.reaper(&[])];
        case.rebuilt().await;
        case.witness.touch("go");
        case.all_as_promised().await;
    }
}

/// Deletes every message of the journal that holds this job, as if it had never been stored.
async fn unjournal(w: &World, job: &str) {
    let js = async_nats::jetstream::new(w.plain().await);
    let stream = js.get_stream("SURETY_EVENTS").await.unwrap();
    let last = stream.get_info().await.unwrap().state.last_sequence;
    for n in 1..=last {
        let Ok(m) = stream.get_raw_message(n).await else { continue };
        if String::from_utf8_lossy(&m.payload).contains(&format!("\"{job}\"")) {
            stream.delete_message(n).await.unwrap();
        }
    }
}

// Shows: P1
#[tokio::test]
async fn a_command_that_meets_the_empty_data_set_first_says_whose_it_is() {
    let world = World::with("").await;
    drop(world.connect().await);
    let looker = look(&world.settings(), "test").await.unwrap();
    flush(&world, 0).await;
    let closed = looker.store.watch_gate(0).await.unwrap();
    assert_eq!((closed.gate, &closed.jobs_created), (Gate::Closed, &looker.found.jobs_created));
    // So a reaper makes it whole, and who starts then takes it for its own.
    let mut reaper = world.reaper(&[]);
    reaper.logged("redis is whole again").await;
    world.connect().await.store.check().await.unwrap();
}

// Shows: P4, P5
#[tokio::test]
async fn an_attempt_that_the_journal_does_not_know_is_dead_before_the_next_one() {
    let witness = Witness::default();
    // Only the first attempt lasts.
    let body = "if mkdir $W.first; then child 'exec sleep 60'; exec sleep 60; fi";
    let world = World::with(&witness.handler("tree", body)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut worker = world.worker(&[], &[]);
    worker.logged("worker ready").await;
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 2).await;
    let journaled = async || world.history(&c).await.count("a", "started") == 1;
    wait_logged(&world, "the start to be journaled", journaled).await;
    unjournal(&world, "a").await;
    flush(&world, 0).await;
    reaper.logged("redis is whole again").await;
    let ended = world.ended(&c, "a").await;
    // Above every epoch that may have been given.
    assert!(ended.status == Status::Done && ended.epoch > 1_000_000_000_000, "{ended:?}");
    witness.no_overlap();
    assert!(!witness.lives("a") && witness.executions("a") == 2, "{}", witness.text());
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: P2, P7
#[tokio::test]
async fn what_is_journaled_after_the_end_of_its_data_set_counts_for_nobody() {
    let world = World::start().await;
    let c = world.connect().await;
    let session = SessionId::new("late").unwrap();
    let ttl = Duration::from_secs(3600);
    c.store.open_session(0, &session, ttl, "{}").await.unwrap();
    let claimed = c.store.claim(0, &session, 1000, &[claim("a")]).await.unwrap();
    let item = FinishItem {
        id: id("a"),
        epoch: match &claimed.results[0] {
            ClaimReply::Granted(g) => g.epoch,
            other => panic!("not granted: {other:?}"),
        },
        verdict: Verdict::Done,
        receipt: String::new(),
        data: "{".into(),
        detail: String::new(),
    };
    let finished = c.store.finish(0, &session, &[item]).await.unwrap();
    assert_eq!((claimed.entries.len(), finished.entries.len()), (1, 1));
    // Its process was frozen with both entries in hand; of another job the journal knows.
    let known = c.store.claim(0, &session, 1000, &[claim("known")]).await.unwrap();
    c.relay.publish(0, &known.entries, Pace::call(Duration::from_secs(5))).await.unwrap();
    flush(&world, 0).await;
    let mut reaper = world.reaper(&[]);
    reaper.logged("redis is whole again").await;
    let patience = Pace::call(Duration::from_secs(5));
    for entries in [&claimed.entries, &finished.entries] {
        let e = c.relay.publish(0, entries, patience).await.unwrap_err();
        assert!(matches!(e, BrokerError::Outlived), "{e}");
    }
    assert!(messages(&world, "SURETY_EVENTS").await >= 4, "the broker took them");
    assert!(!world.history(&c).await.jobs.contains_key("a"));
    let mut all = c.broker.follow(&[], Part::All, From::Start).await.unwrap();
    // The job is run by somebody else, with the same revisions.
    let other = SessionId::new("other").unwrap();
    // The first call finds out that the data set is another one.
    c.store.open_session(0, &other, ttl, "{}").await.unwrap_err();
    c.store.open_session(0, &other, ttl, "{}").await.unwrap();
    let again = c.store.claim(0, &other, 1000, &[claim("a")]).await.unwrap();
    c.relay.publish(0, &again.entries, patience).await.unwrap();
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.jobs["a"].events.len(), 1);
    let first = loop {
        if let News::Events(e) = all.news().await
            && e.iter().any(|e| e.job == "a")
        {
            break e;
        }
    };
    assert_eq!(first, h.jobs["a"].events, "who follows is told nothing else");
}

/// An attempt that failed and may be tried again at once.
fn failed(job: &str, epoch: u64) -> FinishItem {
    FinishItem {
        id: id(job),
        epoch: BASE + epoch,
        verdict: Verdict::Retry { code: ErrorCode::Signal, delay: Duration::ZERO },
        receipt: String::new(),
        data: "{\"error_code\":\"signal\"".into(),
        detail: String::new(),
    }
}

// Shows: P7
#[tokio::test]
async fn a_transition_that_was_lost_before_a_later_one_keeps_its_place() {
    let world = World::start().await;
    let c = world.connect().await;
    let session = SessionId::new("s").unwrap();
    c.store.open_session(0, &session, Duration::from_secs(3600), "{}").await.unwrap();
    count_epochs(&world.redis.url()).await;
    let first = c.store.claim(0, &session, 1000, &[claim("a")]).await.unwrap();
    c.store.finish(0, &session, &[failed("a", 1)]).await.unwrap();
    let second = c.store.claim(0, &session, 1000, &[claim("a")]).await.unwrap();
    // What is between the two stays in the outbox, and goes with it.
    for entries in [&first.entries, &second.entries] {
        c.relay.publish(0, entries, Pace::call(Duration::from_secs(5))).await.unwrap();
    }
    flush(&world, 0).await;
    let mut reaper = world.reaper(&[]);
    reaper.logged("redis is whole again").await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let kinds: Vec<_> = h.jobs["a"].events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds[..3], ["started", "missing", "started"]);
    // Its session is dead: its attempt is lost, as any other.
    let lost = world.status(&c, "a", Status::RetryWait).await;
    assert_eq!((lost.rev, lost.epoch, lost.charged), (4, BASE + 2, 1));
}

// Shows: P2, R-14
#[tokio::test]
async fn a_receipt_that_was_under_way_is_delivered_with_the_same_bytes() {
    let world = World::with("[notify]\ntimeout = \"400ms\"\nbackoff = [\"100ms\"]\ntries = 1000\n").await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut worker = world.worker(&[], &[]);
    worker.logged("worker ready").await;
    let body = r#"{"type":"noop","notify":{"subject":"replies.me","notices":false}}"#;
    world.publish("default", "a", body).await;
    assert_eq!(world.ended(&c, "a").await.contract, Contract::TerminalPending);
    let journaled = async || world.history(&c).await.count("a", "finished") == 1;
    wait_logged(&world, "the outcome to be journaled", journaled).await;
    let receipt = world.history(&c).await.jobs["a"].events.last().unwrap().data["receipt"].clone();
    flush(&world, 0).await;
    reaper.logged("redis is whole again").await;
    let requester = Requester::start(&world, "replies.me").await;
    world.until(&c, "a", |r| r.contract == Contract::TerminalAcked).await;
    let heard = requester.hears("a", "", 1).await;
    assert_eq!(heard[0].json(), receipt);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "finished"), h.count("a", "receipt_delivered")), (1, 1));
}

// Shows: P3
#[tokio::test]
async fn a_new_nats_beside_the_old_redis_is_noticed() {
    let mut world = World::with("[reaper]\ncarrier_check = \"300ms\"\n").await;
    let c = world.connect().await;
    let session = SessionId::new("s").unwrap();
    c.store.open_session(0, &session, Duration::from_secs(3600), "{}").await.unwrap();
    count_epochs(&world.redis.url()).await;
    let a = c.store.claim(0, &session, 1000, &[claim("a")]).await.unwrap();
    let f = c.store.finish(0, &session, &[failed("a", 1)]).await.unwrap();
    c.relay.publish(0, &a.entries, Pace::call(Duration::from_secs(5))).await.unwrap();
    c.relay.publish(0, &f.entries, Pace::call(Duration::from_secs(5))).await.unwrap();
    let mut reaper = world.reaper(&[]);
    reaper.logged("reaper ready").await;
    let before: String = {
        let mut plain = plain(&world).await;
        redis::cmd("HGET").arg("surety:{p00}:store").arg("jobs").query_async(&mut plain).await.unwrap()
    };
    world.nats.kill9().await.unwrap();
    let dir = world.dir.path().join("nats");
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    world.nats.restart().await.unwrap();
    // Who provisions is told that the store is another one's, until the reaper has seen to it.
    drop(provision(&world.settings(), "test").await.map(drop));
    reaper.logged("nats_recreated").await;
    reaper.logged("redis is whole again").await;
    let mut redis = plain(&world).await;
    let after: String =
        redis::cmd("HGET").arg("surety:{p00}:store").arg("jobs").query_async(&mut redis).await.unwrap();
    assert!(after > before, "{after} {before}");
    let (c, _) = provision(&world.settings(), "test").await.unwrap();
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.code.as_str()), (Status::Failed, "message_lost"));
}

async fn plain(w: &World) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(w.redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

pub(super) fn claim(job: &str) -> ClaimItem<'static> {
    ClaimItem {
        id: job.to_owned().into(),
        queue: "default".into(),
        job_type: "t".into(),
        key: "".into(),
        trace: "".into(),
        carrier: "JOBS:1".into(),
        ack_subject: "".into(),
        created_ms: 1_800_000_000_000,
        finish_ms: 86_400_000,
        max_retries: 3,
        timeout_ms: 600_000,
        generation: 1,
        adopt: "".into(),
        expires_ms: 0,
        has_asked: false,
        ack_ms: 60_000,
        progress_ms: 60_000,
        requester: &surety_common::domain::Requester::Nobody,
        summary: "".into(),
    }
}
