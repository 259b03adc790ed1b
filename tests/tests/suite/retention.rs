//! Records of ended jobs are deleted when they are old enough, and never before their outcome is journaled.

use std::time::Duration;

use redis::AsyncCommands;
use surety_common::{
    domain::{ErrorCode, Requester, Status},
    store::{ClaimItem, FinishReply, Forgotten, Telling, ToldItem, ToldReply, Verdict},
};
use surety_tests::world::{World as Servers, wait};

use super::scripts::{World, claim, epoch, finish, id, replay};

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

impl World {
    async fn run(&self, jobs: &[&str]) {
        let items: Vec<ClaimItem<'_>> = jobs.iter().map(|j| claim(j)).collect();
        let grants = self.claim(&items).await;
        let done: Vec<_> =
            jobs.iter().zip(&grants).map(|(j, g)| finish(j, epoch(g), Verdict::Done)).collect();
        self.finish(&done).await;
    }

    /// As if the journal had everything.
    async fn journaled(&self) {
        let ids: Vec<_> = self.outbox().await.into_iter().map(|e| e.id).collect();
        self.store.trim(0, &ids).await.unwrap();
    }

    async fn forget(&self, keep: Duration, n: isize) -> Option<Forgotten> {
        let head = self.store.ended(0, n).await.unwrap();
        self.store.forget(0, keep, &head).await.unwrap().results[0]
    }

    async fn has(&self, job: &str) -> bool {
        self.plain.clone().exists(self.store.keys().job(&id(job))).await.unwrap()
    }
}

#[tokio::test]
async fn a_record_is_deleted_when_it_is_old_enough_and_the_journal_says_so() {
    let w = World::start().await;
    w.run(&["a", "b", "c"]).await;
    w.journaled().await;
    assert_eq!(w.forget(HOUR, 100).await, Some(Forgotten { taken: 0, deleted: 0, kept: 0 }));
    assert!(w.has("a").await);

    // The group is cut in its middle: what is left of it keeps its time.
    assert_eq!(w.forget(NOW, 3).await, Some(Forgotten { taken: 3, deleted: 2, kept: 0 }));
    assert!(!w.has("a").await && !w.has("b").await && w.has("c").await);
    let left = w.store.ended(0, 10).await.unwrap();
    assert!(left.len() == 2 && left[0].starts_with('@') && left[1] == "c", "{left:?}");
    let events = w.events().await;
    let said: Vec<_> = events.iter().map(|e| (e.job.as_str(), e.rev, e.kind.as_str())).collect();
    assert_eq!(said, [("a", 3, "deleted"), ("b", 3, "deleted")]);

    // Another reaper that read the same elements comes too late.
    let head = w.store.ended(0, 10).await.unwrap();
    assert_eq!(w.forget(NOW, 10).await, Some(Forgotten { taken: 2, deleted: 1, kept: 0 }));
    assert_eq!(w.store.forget(0, NOW, &head).await.unwrap().results, [None]);
    assert_eq!(w.store.ended(0, 10).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_journaled_not_readable_or_open_again_stays() {
    let w = World::start().await;
    w.run(&["old"]).await;
    w.run(&["again", "broken"]).await;
    w.journaled().await;
    () = w.plain.clone().set(w.store.keys().job(&id("broken")), "rubbish").await.unwrap();
    w.store.replay(0, &[replay("again", 2)]).await.unwrap();
    w.run(&["fresh"]).await;

    let done = w.forget(NOW, 100).await.unwrap();
    assert_eq!((done.deleted, done.kept), (1, 2), "{done:?}");
    assert!(!w.has("old").await);
    for job in ["again", "broken", "fresh"] {
        assert!(w.has(job).await, "{job}");
    }
    assert_eq!(w.store.record(&id("again")).await.unwrap().unwrap().status, Status::Queued);
    let mut left = w.store.ended(0, 100).await.unwrap();
    left.retain(|e| !e.starts_with('@'));
    assert_eq!(left, ["broken", "fresh"], "looked at again later");

    // Once it has ended again and the journal has it, it goes as the others do.
    w.store.open_session(0, &w.session, HOUR, "{}").await.unwrap();
    let item = ClaimItem { generation: 2, carrier: "JOBS:again-2".into(), ..claim("again") };
    let granted = epoch(&w.claim(&[item]).await[0]);
    w.finish(&[finish("again", granted, Verdict::Done)]).await;
    w.journaled().await;
    assert_eq!(w.forget(NOW, 100).await.unwrap().deleted, 2);
    assert!(!w.has("again").await && !w.has("fresh").await && w.has("broken").await);
}

#[tokio::test]
async fn the_reaper_forgets_and_the_history_stays_whole() {
    // One job a step: the time of its group in front of it must not use that up.
    let w = Servers::with("[reaper]\nkeep = \"1ms\"\ntick = \"100ms\"\nbatch = 1\n").await;
    let c = w.connect().await;
    let _worker = w.worker(&[], &[]);
    w.publish("default", "a", r#"{"type":"noop"}"#).await;
    w.drained(&c).await;
    assert!(c.store.record(&id("a")).await.unwrap().is_some(), "nobody forgets but the reaper");
    let _reaper = w.reaper(&[]);
    wait("the record is deleted", async || c.store.record(&id("a")).await.unwrap().is_none()).await;
    wait("the journal says so", async || w.history(&c).await.count("a", "deleted") == 1).await;
    w.history(&c).await.check().unwrap();
}

// Shows: N-03
#[tokio::test]
async fn what_its_requester_was_not_told_of_stays() {
    let w = World::start().await;
    let asks = Requester::new("answers.here", false).unwrap();
    let granted = w.claim(&[ClaimItem { requester: &asks, ..claim("a") }]).await;
    w.finish(&[finish("a", epoch(&granted[0]), Verdict::Done)]).await;
    w.journaled().await;
    assert_eq!(w.forget(NOW, 100).await, Some(Forgotten { taken: 2, deleted: 0, kept: 1 }));
    let told = ToldItem {
        id: id("a"),
        generation: 1,
        what: Telling::Receipt,
        note: String::new(),
        data: "{}".into(),
    };
    w.store.told(0, std::slice::from_ref(&told)).await.unwrap();
    w.journaled().await;
    assert_eq!(w.forget(NOW, 100).await.unwrap().deleted, 1);
    // What comes late finds nothing to do.
    let late = w.store.told(0, &[told]).await.unwrap();
    assert_eq!(late.results, [ToldReply::NoRecord]);
}

// Shows: N-04
#[tokio::test]
async fn nothing_of_a_deleted_job_is_left_and_late_work_changes_nothing() {
    let w = World::start().await;
    let granted = epoch(&w.claim(&[claim("gone")]).await[0]);
    let detail = r#"{"tail":[]}"#.to_owned();
    let failed = || finish("gone", granted, Verdict::Fail(ErrorCode::Oom));
    w.finish(&[surety_common::store::FinishItem { detail, ..failed() }]).await;
    w.journaled().await;
    assert_eq!(w.forget(NOW, 100).await.unwrap().deleted, 1);
    w.journaled().await;
    let keys = async || {
        let all: Vec<String> = w.plain.clone().keys("*").await.unwrap();
        let mut found = Vec::new();
        for k in all {
            let value: Vec<u8> = redis::cmd("DUMP").arg(&k).query_async(&mut w.plain.clone()).await.unwrap();
            if k.contains("gone") || value.windows(4).any(|b| b == b"gone") {
                found.push(k);
            }
        }
        found
    };
    assert_eq!(keys().await, Vec::<String>::new());
    assert_eq!(w.finish(&[failed()]).await, [FinishReply::NoRecord]);
    assert!(w.outbox().await.is_empty());
    assert_eq!(keys().await, Vec::<String>::new());
}

// Shows: N-01, N-03
#[tokio::test]
async fn of_too_many_records_the_oldest_go_first() {
    let config = "[layout]\nduplicate_window = \"1s\"\n[reaper]\nkeep_records = 10\n";
    let w = Servers::with(config).await;
    let c = w.connect().await;
    let worker = w.worker(&["--slots", "1"], &[]);
    for n in 0..30 {
        w.publish("default", &format!("j{n}"), r#"{"type":"noop"}"#).await;
    }
    w.drained(&c).await;
    drop(worker);
    let _reaper = w.reaper(&[]);
    wait("no more than ten to be kept", async || c.store.ended_len(0).await.unwrap() <= 10).await;
    // Who deletes a record journals it after that.
    w.drained(&c).await;
    let h = w.history(&c).await;
    h.check().unwrap();
    let mut gone = Vec::new();
    for n in 0..30 {
        let job = format!("j{n}");
        let is_gone = c.store.record(&id(&job)).await.unwrap().is_none();
        assert_eq!(h.count(&job, "deleted"), usize::from(is_gone), "{job}");
        gone.push(is_gone);
    }
    let n_gone = gone.iter().filter(|g| **g).count();
    assert!((20..30).contains(&n_gone), "{n_gone} of thirty: the moments of their ends count, too");
    assert!(gone[..n_gone].iter().all(|g| *g), "the oldest: {gone:?}");
}

// Shows: N-01
#[tokio::test]
async fn records_make_room_where_redis_uses_too_much_memory() {
    let config = "[layout]\nduplicate_window = \"1s\"\n[reaper]\nkeep_bytes = \"1B\"\n";
    let w = Servers::with(config).await;
    let c = w.connect().await;
    let _worker = w.worker(&[], &[]);
    w.publish("default", "a", r#"{"type":"noop"}"#).await;
    w.publish("default", "open", r#"{"type":"noop","contract":{"ack":"1h"}}"#).await;
    w.drained(&c).await;
    let _reaper = w.reaper(&[]);
    wait("the records to be deleted", async || c.store.record(&id("a")).await.unwrap().is_none()).await;
}

// Shows: N-01
#[tokio::test]
async fn an_id_is_refused_while_its_record_is_kept_and_runs_anew_after() {
    let w = Servers::with("[layout]\nduplicate_window = \"1s\"\n[reaper]\nkeep_records = 1\n").await;
    let c = w.connect().await;
    let _worker = w.worker(&[], &[]);
    let body = r#"{"type":"noop"}"#;
    let first = w.publish("default", "a", body).await;
    // Within the window the broker itself drops it; after it the record refuses a second run.
    assert_eq!(w.publish("default", "a", body).await, first);
    w.drained(&c).await;
    wait("the window to pass", async || w.publish("default", "a", body).await != first).await;
    w.drained(&c).await;
    assert_eq!(w.history(&c).await.count("a", "started"), 1);
    // The record goes, and what comes then is a new job. The reaper may die with the end of the old one in hand: then the
    // journal has the beginning of the new one before it, or has it twice.
    let reaper = w.reaper(&[]);
    wait("the record to be deleted", async || c.store.record(&id("a")).await.unwrap().is_none()).await;
    drop(reaper);
    let started = async || {
        let mut n = 0;
        c.broker.read_journal(None, 0, |e| n += usize::from(e.kind == "started")).await.unwrap();
        n
    };
    wait("it to run anew", async || {
        w.publish("default", "a", body).await;
        started().await == 2
    })
    .await;
    // Another one publishes what was left. It keeps what has ended since.
    let _reaper = w.reaper(&[("SURETY_REAPER_KEEP_RECORDS", "1000")]);
    w.drained(&c).await;
    assert_eq!(c.store.n_open().await.unwrap(), 0);
    let h = w.history(&c).await;
    h.check().unwrap();
    let n = ["started", "finished", "deleted"].map(|kind| h.count("a", kind));
    assert_eq!(n, [2, 2, 1]);
}

// Shows: N-01
#[tokio::test]
async fn journal_and_dead_letters_have_limits_by_size_where_they_are_set() {
    let w = Servers::with("[layout]\nevents_bytes = \"64MiB\"\n").await;
    w.connect().await;
    let js = async_nats::jetstream::new(w.plain().await);
    let limit =
        async |stream: &str| js.get_stream(stream).await.unwrap().get_info().await.unwrap().config.max_bytes;
    assert_eq!((limit("SURETY_EVENTS").await, limit("SURETY_DLQ").await), (64 << 20, -1));
    // Without one of ours an operator's own stays.
    let mut own = js.get_stream("SURETY_DLQ").await.unwrap().get_info().await.unwrap().config;
    own.max_bytes = 1 << 30;
    js.update_stream(own).await.unwrap();
    w.surety(&["provision"]).await.exits(0);
    assert_eq!((limit("SURETY_EVENTS").await, limit("SURETY_DLQ").await), (64 << 20, 1 << 30));
}
