//! `surety audit`: clean where every promise was kept, and otherwise it says which job shows that it was not.

use serde_json::{Value, json};
use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    command::is_documented,
    process::Process,
    witness::{Witness, settled},
    world::{PATIENCE, World, bin, wait},
};

const OPERATING: &str = include_str!("../../../docs/operating.md");
const HANDLERS: &str = r#"
[handlers.bad]
command = ["sh", "-c", "exit 65"]
[handlers.twice]
command = ["sh", "-c", "[ $SURETY_ATTEMPT -gt 1 ]"]
"#;

/// Publishes one journal message, as a broken writer would.
async fn forge(w: &World, events: &[Value]) {
    let js = async_nats::jetstream::new(w.plain().await);
    let body = serde_json::to_vec(events).unwrap();
    js.publish("surety.events.default", body.into()).await.unwrap().await.unwrap();
}

fn event(job: &str, rev: u64, kind: &str, status: &str, epoch: u64) -> Value {
    json!({
        "v": 1, "job": job, "gen": 1, "rev": rev, "kind": kind, "at": "2026-11-21T08:00:00.123Z", "queue": "default",
        "type": "t", "status": status, "contract": "acked", "attempt": 1, "epoch": epoch,
        "data": {"receipt": {"outcome": status}}
    })
}

async fn events(w: &World, c: &Connected, job: &str) -> Vec<Value> {
    let h = w.history(c).await;
    h.jobs[job].events.iter().map(|e| serde_json::to_value(e).unwrap()).collect()
}

// Shows: P2, P7
#[tokio::test]
async fn a_journal_of_kept_promises_is_clean() {
    let witness = Witness::default();
    let until_told = witness.handler("long", "until [ -e $W.go ]; do sleep 0.05; done");
    let world = World::with(&format!("{until_told}{HANDLERS}")).await;
    let c = world.connect().await;
    let empty = world.ask(&["audit", "--running"]).await;
    assert_eq!((&empty["is_clean"], &empty["jobs"]), (&true.into(), &0.into()));

    let _reaper = world.reaper(&[]);
    let mut worker = world.worker(&[], &[]);
    for (id, kind) in [("a", "noop"), ("b", "bad"), ("c", "twice"), ("d", "long")] {
        let backoff = r#""retry":{"backoff":["10ms"]}"#;
        world.publish("default", id, &format!(r#"{{"type":"{kind}",{backoff}}}"#)).await;
    }
    for id in ["a", "b", "c"] {
        world.ended(&c, id).await;
    }
    witness.started("d", 1).await;
    let answer = world.ask(&["audit", "--running"]).await;
    let counts =
        ["jobs", "done", "failed", "open", "broken", "compared"].map(|f| answer[f].as_u64().unwrap());
    assert_eq!(counts, [4, 2, 1, 1, 0, 4], "{answer}");
    is_documented(&answer, OPERATING, &[]);
    let text = world.surety(&["audit"]).await.exits(0).out;
    assert!(text.starts_with("clean:") && text.contains("4 jobs") && text.contains("1 open"), "{text}");

    // The oldest messages are dropped by age: what is left may begin anywhere.
    let js = async_nats::jetstream::new(world.plain().await);
    js.get_stream("SURETY_EVENTS").await.unwrap().purge().sequence(3).await.unwrap();
    let answer = world.ask(&["audit"]).await;
    assert_eq!(answer["is_clean"], true, "{answer}");
    assert!(answer["cut"].as_u64().unwrap() > 0, "{answer}");
    witness.touch("go");
    assert_eq!(world.ended(&c, "d").await.status, Status::Done);
    let recent = world.ask(&["audit", "--since", "1h", "--running"]).await;
    assert_eq!((&recent["is_clean"], &recent["open"]), (&true.into(), &0.into()), "{recent}");
    worker.stop().await;
}

// Shows: P2, P7
#[tokio::test]
async fn the_first_broken_promise_is_told_with_its_events() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    for id in ["a", "b"] {
        world.publish("default", id, r#"{"type":"noop"}"#).await;
        world.ended(&c, id).await;
    }
    settled(&world, &c).await;
    worker.stop().await;

    // The same once more is a copy.
    forge(&world, &events(&world, &c, "a").await).await;
    let answer = world.ask(&["audit"]).await;
    assert_eq!((&answer["copies"], &answer["is_clean"]), (&2.into(), &true.into()));

    // A second outcome, of the next revision and of the same one.
    forge(&world, &[event("b", 3, "finished", "failed", 1)]).await;
    let mut other = events(&world, &c, "a").await[1].clone();
    other["data"]["receipt"]["result"] = "another".into();
    forge(&world, &[other]).await;
    let said = world.surety(&["audit", "--json"]).await.exits(1);
    let answer = said.json();
    assert_eq!((&answer["is_clean"], &answer["broken"]), (&false.into(), &2.into()), "{answer}");
    is_documented(&answer, OPERATING, &["events"]);
    let first = &answer["first"];
    assert_eq!((&first["job"], &first["what"]), (&"b".into(), &"finished after the outcome".into()));
    let kinds: Vec<_> = first["events"].as_array().unwrap().iter().map(|e| e["kind"].clone()).collect();
    assert_eq!(kinds, ["started", "finished", "finished"]);
    assert_eq!(answer["others"][0]["what"], "two different events of revision 2");
    assert!(said.err.contains("2 of 2 jobs break a promise"), "{}", said.err);
    let said = world.surety(&["audit"]).await.exits(1);
    for part in ["NOT clean", "job b: finished after the outcome", "REV", "also job a"] {
        assert!(said.out.contains(part), "{part:?} is not in\n{}", said.out);
    }
}

// Shows: P7
#[tokio::test]
async fn a_gap_is_waited_for_and_then_told() {
    let world = World::start().await;
    let _c = world.connect().await;
    forge(&world, &[event("late", 2, "finished", "done", 1)]).await;
    let (config, nats) = (world.config_file().display().to_string(), world.nats.url());
    let args = ["--config", &config, "--nats", &nats, "audit"].map(str::to_owned);
    let mut audit = Process::start(&bin("t-surety"), &args, &[], world.dir.path().join("audit.log"));
    audit.logged("came early").await;
    forge(&world, &[event("late", 1, "started", "running", 1)]).await;
    assert_eq!(audit.ended(PATIENCE).await, Some(0), "{}", audit.log());

    // A new life of the same id, journaled before the end of the one before it.
    let next = |second: u8, e: Value| {
        let mut e = e;
        e["at"] = format!("2026-11-21T09:00:{second:02}.000Z").into();
        e
    };
    forge(&world, &[next(2, event("late", 1, "started", "running", 1))]).await;
    let mut audit = Process::start(&bin("t-surety"), &args, &[], world.dir.path().join("reborn.log"));
    audit.logged("came early").await;
    forge(&world, &[next(1, event("late", 3, "deleted", "done", 1))]).await;
    assert_eq!(audit.ended(PATIENCE).await, Some(0), "{}", audit.log());

    forge(&world, &[event("gone", 2, "finished", "done", 1)]).await;
    let said = world.surety(&["audit"]).await.exits(1);
    assert!(said.out.contains("job gone: revision 1 is missing, 2 follows"), "{}", said.out);
    assert!(said.err.contains("came early"), "{}", said.err);
}

// Shows: P2, P7
#[tokio::test]
async fn running_means_live_and_every_record_is_journaled() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("long", "until [ -e $W.go ]; do sleep 0.05; done")).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    for id in ["a", "b"] {
        world.publish("default", id, r#"{"type":"long"}"#).await;
        witness.started(id, 1).await;
    }
    world.ask(&["audit", "--running"]).await;
    // Nobody takes back what a dead worker ran: there is no reaper.
    worker.kill9().await;
    wait("the lease to end", async || world.ask(&["workers"]).await["workers"][0]["is_expired"] == true)
        .await;
    let said = world.surety(&["audit", "--running", "--json"]).await.exits(1);
    let answer = said.json();
    assert_eq!(answer["broken"], 2, "{answer}");
    assert!(answer["first"]["what"].as_str().unwrap().contains("is dead"), "{answer}");
    assert_eq!(world.ask(&["audit"]).await["is_clean"], true, "the journal alone has no fault");

    let reaper = world.reaper(&[]);
    wait("both to be taken back", async || {
        let said = world.surety(&["audit", "--running", "--json"]).await;
        said.code == Some(0) && said.json()["open"] == 2
    })
    .await;
    drop(reaper);
    // An event of a revision that no record has: the store has forgotten something.
    let next = events(&world, &c, "a").await.len() as u64 + 1;
    let epoch = c.store.record(&"a".parse().unwrap()).await.unwrap().unwrap().epoch;
    forge(&world, &[event("a", next, "cancel_requested", "retry_wait", epoch)]).await;
    let answer = world.surety(&["audit", "--running", "--json"]).await.exits(1).json();
    let what = answer["first"]["what"].as_str().unwrap();
    assert!(what.contains(&format!("the journal has revision {next}")), "{answer}");
}
