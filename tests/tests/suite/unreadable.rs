//! Records, outbox entries and indexes that something damaged: the others go on, nothing is made up, and what stays damaged is
//! set aside with what the journal knows in its place.

use std::time::Duration;

use redis::AsyncCommands;
use surety_common::{
    connect::Connected,
    domain::{JobId, Status, ids::SessionId},
    store::{
        ClaimReply, DueAct, DueItem, DueReply, FinishReply, LostItem, LostReply, ProgressReply, Read,
        ReplayReply, SettleReply, StopItem, StopReply, StoreError, Telling, ToldItem, ToldReply, Verdict,
    },
};
use surety_tests::{
    scrape::{Scrape, address},
    witness::{QUICK, Witness, settled, wait_logged},
    world::World as Servers,
};

use super::{
    metrics::LISTEN,
    scripts::{
        CAP, FIRST, HOUR, World, bury, claim, count_epochs, epoch, finish, id, progress, receipt, replay,
        session,
    },
};

/// Length of the numbers in front of the texts, and where each begins.
const NUMBERS: [(&str, usize); 19] = [
    ("version", 0),
    ("status", 1),
    ("contract", 2),
    ("generation", 3),
    ("rev", 7),
    ("epoch", 13),
    ("attempt", 19),
    ("charged", 23),
    ("max_retries", 27),
    ("start_failures", 31),
    ("due", 35),
    ("started", 41),
    ("deadline", 47),
    ("created", 53),
    ("finish_by", 59),
    ("ended", 65),
    ("promise", 71),
    ("told", 77),
    ("cancel", 81),
];
const TEXTS: usize = 82;
const NAMES: [&str; 14] = [
    "queue",
    "type",
    "key",
    "trace",
    "carrier",
    "reply",
    "session",
    "code",
    "call",
    "entry",
    "notify",
    "summary",
    "print",
    "tell_error",
];

/// A record with each of its fields damaged in turn: cut off there, or with a value that no release wrote.
fn damaged(raw: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![("version", Vec::new()), ("version", b"\xc1rubbish".to_vec())];
    for (field, at) in NUMBERS {
        all.push((field, raw[..at].to_vec()));
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = raw.to_vec();
        bytes[at] = byte;
        bytes
    };
    for (field, at, bytes) in
        [("version", 0, &[0u8, 1, 200][..]), ("status", 1, &[0, 11, 255]), ("contract", 2, &[0, 8, 255])]
    {
        all.extend(bytes.iter().map(|b| (field, with(at, *b))));
    }
    let mut no_generation = raw.to_vec();
    no_generation[3..7].fill(0);
    all.push(("generation", no_generation));
    let mut at = TEXTS;
    for name in NAMES {
        let end = at + raw[at..].iter().position(|b| *b == 0).unwrap();
        // Its end is missing, and all that comes after it.
        all.push((name, raw[..end].to_vec()));
        if matches!(name, "queue" | "type") {
            all.push((name, [&raw[..at], &raw[end..]].concat()));
        }
        at = end + 1;
    }
    all
}

// Shows: X-05, X-06
#[tokio::test]
async fn each_damaged_field_is_named_and_the_others_of_every_call_go_on() {
    let w = World::start().await;
    let (st, me) = (&w.store, &w.session);
    let key = st.keys().job(&id("bad"));
    let other = session("other");
    st.open_session(0, &other, HOUR, "{}").await.unwrap();
    assert_eq!(epoch(&w.claim(&[claim("bad")]).await[0]), 1);
    let good = w.raw("bad").await;
    let cases = damaged(&good);
    assert!(cases.len() > 45);
    for (n, (field, bytes)) in cases.into_iter().enumerate() {
        () = w.plain.clone().set(&key, &bytes).await.unwrap();
        let name = |what: &str| format!("{what}-{n}");
        let (a, b) = (name("a"), name("b"));
        let why = |call: &str| format!("{call} with {field} damaged ({bytes:?})");

        let r = w.claim(&[claim(&a), claim("bad"), claim(&b)]).await;
        assert!(
            matches!(r[..], [ClaimReply::Granted(_), ClaimReply::Unreadable, ClaimReply::Granted(_)]),
            "{}: {r:?}",
            why("claim")
        );
        let r = st.progress(0, me, &[progress("bad", 1, 1), progress(&a, 1, 1)]).await.unwrap().results;
        assert!(
            matches!(r[..], [ProgressReply::Unreadable, ProgressReply::Journaled { .. }]),
            "{}",
            why("progress")
        );
        let stop = |job: &str| StopItem { id: job.into(), epoch: FIRST, data: "{}".into() };
        let r = st.ask_to_stop(0, me, &[stop("bad"), stop(&b)]).await.unwrap().results;
        assert!(matches!(r[..], [StopReply::Unreadable, StopReply::Asked { .. }]), "{}", why("stop"));
        let told = |job: &str| ToldItem {
            id: id(job),
            generation: 1,
            what: Telling::Nudge,
            note: String::new(),
            data: "{}".into(),
        };
        let r = st.told(0, &[told("bad"), told(&a)]).await.unwrap().results;
        assert!(matches!(r[..], [ToldReply::Unreadable, ToldReply::NotApplied { .. }]), "{}", why("told"));
        let record = st.record(&id(&a)).await.unwrap().unwrap();
        let due = |job: &str| DueItem {
            id: id(job),
            rev: record.rev,
            promise_ms: record.promise_ms,
            act: DueAct::LookAgain(HOUR),
            receipt: "{".into(),
            data: "{".into(),
            session: Some(me.clone()),
        };
        let r = st.act_on_due(0, HOUR, &[due("bad"), due(&a)]).await.unwrap().results;
        assert!(matches!(r[..], [DueReply::Unreadable, DueReply::Applied(_)]), "{}", why("due"));
        let r = w.finish(&[finish(&a, 1, Verdict::Done), finish("bad", 1, Verdict::Done)]).await;
        assert!(matches!(r[..], [FinishReply::Applied { .. }, FinishReply::Unreadable]), "{}", why("finish"));
        let r = st.replay(0, &[replay("bad", 2), replay(&a, 2)]).await.unwrap().results;
        assert!(matches!(r[..], [ReplayReply::Unreadable, ReplayReply::Queued { .. }]), "{}", why("replay"));
        let r = st.settle(0, &[bury("bad"), bury(&name("c"))]).await.unwrap().results;
        assert!(matches!(r[..], [SettleReply::Unreadable, SettleReply::Applied(_)]), "{}", why("settle"));

        let d = name("d");
        st.open_session(0, &other, HOUR, "{}").await.unwrap();
        st.claim(0, &other, CAP, &[claim(&d)]).await.unwrap();
        st.expire_session(0, &other).await.unwrap();
        let lost = |job: &str| LostItem {
            id: job.into(),
            epoch: FIRST,
            receipt: receipt(job, Status::Failed),
            data: "{".into(),
        };
        let r = st.lost(0, &other, &[lost("bad"), lost(&d)]).await.unwrap().results;
        assert!(matches!(r[..], [LostReply::Unreadable, LostReply::Applied(_)]), "{}", why("lost"));

        assert_eq!(w.raw("bad").await, bytes, "{field}: what cannot be read is not written");
        let e = st.record(&id("bad")).await.unwrap_err();
        assert!(
            matches!(&e, StoreError::Unreadable { ids, why } if ids[0] == "bad" && why.contains(field)),
            "{e}"
        );
        let keys = [st.keys().job(&id("bad")), st.keys().job(&id(&d)), st.keys().job(&id("nobody"))];
        let read = st.records(&keys).await.unwrap();
        assert!(matches!(read[..], [Read::Unreadable, Read::Record(_), Read::Missing]), "{}", why("records"));
        assert!(st.fleet().await.unwrap().sessions.iter().any(|s| s.held.len() > 1), "{}", why("fleet"));
        let head = st.ended(0, 1000).await.unwrap();
        st.forget(0, Duration::ZERO, &head).await.unwrap();
        assert_eq!(w.raw("bad").await, bytes);
    }
    // Whole again, it is what it was: its attempt is still its session's, and ends.
    () = w.plain.clone().set(&key, &good).await.unwrap();
    assert!(matches!(w.finish(&[finish("bad", 1, Verdict::Done)]).await[0], FinishReply::Applied { .. }));
    let keys: Vec<String> = w.plain.clone().keys("*").await.unwrap();
    assert!(keys.iter().all(|k| !k.ends_with(':')), "a key without an id: {keys:?}");
    let noted = st.noted_unreadable(0).await.unwrap();
    assert!(noted.len() == 1 && noted[0].1 > 100, "every meeting was noted: {noted:?}");
    w.events().await;
}

// Shows: X-05
#[tokio::test]
async fn a_text_that_is_no_text_costs_only_its_own_job_the_answer() {
    let w = World::start().await;
    w.claim(&[claim("bad")]).await;
    w.finish(&[finish("bad", 1, Verdict::Release)]).await;
    let mut raw = w.raw("bad").await;
    let at = raw.windows(9).position(|x| x == b"JOBS:bad\0").unwrap();
    raw[at + 4] = 0xff;
    () = w.plain.clone().set(w.store.keys().job(&id("bad")), &raw).await.unwrap();
    // The script compares the carriers and passes the recorded one on. What it granted to the others is not lost with it.
    let r = w.claim(&[claim("a"), claim("bad"), claim("b")]).await;
    assert_eq!((epoch(&r[0]), &r[1], epoch(&r[2])), (1, &ClaimReply::Unreadable, 1));
    assert_eq!(w.store.noted_unreadable(0).await.unwrap(), [(id("bad"), 1)]);
}

// Shows: X-07
#[tokio::test]
async fn only_what_does_not_decode_is_moved_and_a_newer_release_is_left_alone() {
    let w = World::start().await;
    w.claim(&[claim("a")]).await;
    let raw = w.raw("a").await;
    let key = w.store.keys().job(&id("a"));
    assert_eq!(w.store.raw_if_unreadable(0, &id("a")).await.unwrap(), None, "a good one");
    let record = w.store.record(&id("a")).await.unwrap().unwrap();
    assert!(
        !w.store.set_aside(0, &id("a"), b"rubbish", Some(&record)).await.unwrap(),
        "other bytes stand there"
    );
    assert_eq!(w.raw("a").await, raw);

    let mut newer = raw.clone();
    newer[0] += 1;
    () = w.plain.clone().set(&key, &newer).await.unwrap();
    assert_eq!(w.claim(&[claim("a")]).await, [ClaimReply::Unreadable]);
    assert_eq!(w.store.raw_if_unreadable(0, &id("a")).await.unwrap(), None);
    assert_eq!(w.store.noted_unreadable(0).await.unwrap(), []);

    () = w.plain.clone().set(&key, "rubbish").await.unwrap();
    assert_eq!(w.claim(&[claim("a")]).await, [ClaimReply::Unreadable]);
    assert!(w.store.set_aside(0, &id("a"), b"rubbish", Some(&record)).await.unwrap());
    assert!(!w.store.set_aside(0, &id("a"), b"rubbish", Some(&record)).await.unwrap(), "once");
    let kept: Vec<u8> = w.plain.clone().get(w.store.keys().set_aside(0, "job", "a")).await.unwrap();
    assert_eq!(kept, b"rubbish");
    assert_eq!(w.store.noted_unreadable(0).await.unwrap(), []);
    // Who read it before that, and says so only now, says nothing of the one that is there.
    let due = async || -> Option<f64> { w.plain.clone().zscore(w.store.keys().due(0), "a").await.unwrap() };
    let before = due().await;
    w.store.note_bytes(0, "a", b"rubbish".to_vec()).await.unwrap();
    assert_eq!((w.store.noted_unreadable(0).await.unwrap(), due().await), (vec![], before));
    // What is in its place is as good as what was: the attempt ends.
    assert!(matches!(w.finish(&[finish("a", 1, Verdict::Done)]).await[0], FinishReply::Applied { .. }));
}

/// Writes rubbish in the place of a record.
async fn damage(world: &Servers, c: &Connected, job: &str) {
    let mut r = plain(world).await;
    () = r.set(c.store.keys().job(&id(job)), "rubbish").await.unwrap();
}

async fn plain(world: &Servers) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(world.redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

// Shows: X-05, X-06, X-07, P1, P2, P7, P8, D-07
#[tokio::test]
async fn damaged_records_are_made_anew_from_the_journal_and_every_job_goes_on_where_it_was() {
    let witness = Witness::default();
    let handlers = witness.handler("hold", "until [ -e $W.go ]; do sleep 0.02; done; echo '\"kept\"'")
        + &witness.handler("again", "[ $SURETY_ATTEMPT -gt 1 ] || exit 1")
        + &witness.handler("stay", "[ $SURETY_ATTEMPT -gt 1 ] || exec sleep 60");
    let world = Servers::with(&(handlers + QUICK)).await;
    let c = world.connect().await;
    let mut doomed = world.worker(&["--state-dir", &world.path("doomed"), "--queues", "critical"], &[]);
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;

    // One whose worker dies, one that runs, one in backoff, one that has ended, and one that nobody has seen yet.
    world.publish("critical", "orphan", r#"{"type":"stay"}"#).await;
    witness.started("orphan", 1).await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "runs", r#"{"type":"hold"}"#).await;
    world.publish("default", "waits", r#"{"type":"again","retry":{"backoff":["1500ms"]}}"#).await;
    world.publish("default", "ended", r#"{"type":"noop"}"#).await;
    witness.started("runs", 1).await;
    world.status(&c, "waits", Status::RetryWait).await;
    let before = world.ended(&c, "ended").await;
    wait_logged(&world, "the journal to have it", async || {
        world.history(&c).await.count("ended", "finished") == 1
    })
    .await;
    for job in ["runs", "waits", "ended", "orphan", "fresh"] {
        damage(&world, &c, job).await;
    }
    // A message of the ended job is delivered again: its outcome must not be forgotten.
    let ended_again = format!("surety.jobs.default.{}", "ended");
    async_nats::jetstream::new(world.plain().await)
        .publish(ended_again, r#"{"type":"noop"}"#.into())
        .await
        .unwrap()
        .await
        .unwrap();
    world.publish("default", "fresh", r#"{"type":"noop"}"#).await;
    for i in 0..20 {
        world.publish("default", &format!("good-{i}"), r#"{"type":"noop"}"#).await;
    }
    doomed.kill9().await;
    for i in 0..20 {
        assert_eq!(world.ended(&c, &format!("good-{i}")).await.status, Status::Done);
    }
    witness.touch("go");
    for job in ["runs", "waits", "ended", "fresh"] {
        assert_eq!(world.ended(&c, job).await.status, Status::Done, "{job}\n{}", world.logs());
    }
    assert_eq!(world.ended(&c, "orphan").await.charged, 1);
    settled(&world, &c).await;
    witness.no_overlap();
    assert_eq!((witness.executions("runs"), witness.executions("orphan")), (1, 2), "{}", witness.text());
    let after = world.ended(&c, "ended").await;
    assert_eq!((after.rev, after.epoch, after.ended_ms), (before.rev, before.epoch, before.ended_ms));
    let h = world.history(&c).await;
    h.check().unwrap();
    for job in ["runs", "waits", "ended", "orphan", "fresh"] {
        assert_eq!(h.count(job, "finished"), 1, "{job}");
    }
    assert_eq!(h.jobs["runs"].events.last().unwrap().data["receipt"]["result"], "kept");
    let alert = ("alert", "record_set_aside");
    let s = Scrape::of(at).await;
    assert_eq!(s.sum("surety_alerts_total", &[alert]), Some(5.0), "{}", reaper.log());
    assert!(s.sum("surety_decode_errors_total", &[("what", "record")]) >= Some(5.0));
    assert_eq!(c.store.noted_unreadable(0).await.unwrap(), []);
    for job in ["runs", "waits", "ended", "orphan", "fresh"] {
        let kept: String = plain(&world).await.get(c.store.keys().set_aside(0, "job", job)).await.unwrap();
        assert_eq!(kept, "rubbish", "kept for a person");
        assert!(
            reaper.log().contains("record does not decode")
                || worker.log().contains("record does not decode")
        );
    }
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}

// Shows: X-05, X-07, E-12, P7
#[tokio::test]
async fn an_outbox_entry_that_does_not_decode_is_set_aside_and_the_others_are_published() {
    let world = Servers::start().await;
    let c = world.connect().await;
    let mut r = plain(&world).await;
    let outbox = c.store.keys().outbox(0);
    let bad: Vec<String> = vec![
        redis::cmd("XADD").arg(&outbox).arg("*").arg("e").arg("rubbish").query_async(&mut r).await.unwrap(),
        redis::cmd("XADD").arg(&outbox).arg("*").arg("x").arg("y").query_async(&mut r).await.unwrap(),
    ];
    // Its entries come behind the broken ones, and its worker publishes none of them.
    let (session, job): (SessionId, JobId) = ("s1".parse().unwrap(), id("a"));
    c.store.open_session(0, &session, HOUR, "{}").await.unwrap();
    count_epochs(&world.redis.url()).await;
    c.store.claim(0, &session, CAP, &[claim("a")]).await.unwrap();
    c.store.finish(0, &session, &[finish("a", 1, Verdict::Done)]).await.unwrap();
    assert_eq!(c.store.outbox(0, "", u64::MAX >> 1, 100).await.unwrap().len(), 4);
    // It looks at the oldest, which does not decode.
    let said = world.surety(&["doctor"]).await.exits(1);
    assert!(said.out.contains("0 to fix, 1 warning"), "only that no reaper runs: {}", said.out);

    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    wait_logged(&world, "the outbox to be empty", async || c.store.outbox_len(0).await.unwrap() == 0).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count(job.as_str(), "finished"), 1);
    let kept: String = r.get(c.store.keys().set_aside(0, "entry", &bad[0])).await.unwrap();
    assert_eq!(kept, "rubbish");
    let s = Scrape::of(at).await;
    assert_eq!(s.sum("surety_alerts_total", &[("alert", "journal_entry_unreadable")]), Some(2.0));
    assert!(s.sum("surety_decode_errors_total", &[("what", "entry")]) >= Some(2.0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: X-05, X-06
#[tokio::test]
async fn what_is_no_name_in_an_index_blocks_nothing() {
    let world = Servers::start().await;
    let c = world.connect().await;
    let (keys, mut r) = (c.store.keys(), plain(&world).await);
    let dead: SessionId = "01JDEAD".parse().unwrap();
    c.store.open_session(0, &dead, HOUR, "{}").await.unwrap();
    c.store.claim(0, &dead, CAP, &[claim("a")]).await.unwrap();
    c.store.expire_session(0, &dead).await.unwrap();
    () = r.sadd(keys.run(0, &dead), "no member").await.unwrap();
    () = r.zadd(keys.sessions(0), "no session", 1).await.unwrap();
    () = r.zadd(keys.due(0), "", 1).await.unwrap();
    () = r.zadd(keys.due(0), "no/job", 1).await.unwrap();
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    world.until(&c, "a", |r| r.status == Status::RetryWait).await;
    wait_logged(&world, "the session to be gone", async || {
        let n: usize = r.clone().zcard(keys.sessions(0)).await.unwrap();
        n == 0
    })
    .await;
    wait_logged(&world, "the index to be clean", async || {
        let due: Vec<String> = r.clone().zrange(keys.due(0), 0, -1).await.unwrap();
        due == ["a"]
    })
    .await;
    let all: Vec<String> = r.keys("*").await.unwrap();
    assert!(all.iter().all(|k| !k.ends_with(':')), "a key without an id: {all:?}");
    let s = Scrape::of(at).await;
    assert_eq!(s.sum("surety_alerts_total", &[("alert", "index_garbage")]), Some(4.0));
    assert_eq!(reaper.stop().await, Some(0));
}
