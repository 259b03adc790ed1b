//! A receipt is one, however many make it; and one that got lost on its way comes from the journal again.

use std::{collections::BTreeSet, time::Duration};

use redis::AsyncCommands;
use surety_common::{
    connect::Connected,
    domain::{Contract, Requester as Asker, Status, ids::SessionId},
    pace::Pace,
    store::{ClaimItem, FinishReply, Telling, ToldItem, ToldReply, Verdict},
};
use surety_tests::{
    process::Process,
    requester::Requester,
    witness::id,
    world::{World, messages, wait},
};

use super::scripts::{self, claim, epoch, finish};

const HASTY: &str = r#"
[layout]
receipt_wait = "2s"
[notify]
timeout = "400ms"
tries = 2
backoff = ["100ms"]
"#;
const TO_ME: &str = r#"{"type":"noop","notify":{"subject":"replies.me","notices":false}}"#;
const HOUR: Duration = Duration::from_secs(3600);

/// Where the record has by when something is promised: behind version, status, contract, generation, revision, epoch, four
/// numbers and six times.
const PROMISE: usize = 3 + 4 + 6 + 6 + 4 * 4 + 6 * 6;

struct Late {
    world: World,
    c: Connected,
    redis: redis::aio::MultiplexedConnection,
    _worker: Process,
}

impl Late {
    /// Jobs that are done, and whose receipts nobody delivers.
    async fn new(jobs: &[&str]) -> Self {
        let world = World::with(HASTY).await;
        let c = world.connect().await;
        let worker = world.worker(&[], &[("SURETY_NOTIFY_DISPATCH", "false")]);
        for job in jobs {
            world.publish("default", job, TO_ME).await;
            world.until(&c, job, |r| r.contract == Contract::TerminalPending).await;
        }
        wait("the receipts", async || messages(&world, "SURETY_RECEIPTS").await == jobs.len() as u64).await;
        // Their entries are left to nobody: trimmed with the renewals of the worker.
        wait("an empty outbox", async || c.store.outbox_len(0).await.is_ok_and(|n| n == 0)).await;
        let client = redis::Client::open(world.redis.url()).unwrap();
        let redis = client.get_multiplexed_async_connection().await.unwrap();
        Self { world, c, redis, _worker: worker }
    }

    /// As if the time had passed within which the receipt is to be delivered. `raw`: the record, where it is another than now.
    async fn promise_passes(&self, job: &str, raw: Option<Vec<u8>>) {
        let (mut redis, keys) = (self.redis.clone(), self.c.store.keys());
        let key = keys.job(&id(job));
        let mut record: Vec<u8> = match raw {
            Some(raw) => raw,
            None => redis.get(&key).await.unwrap(),
        };
        let now = self.c.store.now_ms().await.unwrap() - 1;
        record[PROMISE..PROMISE + 6].copy_from_slice(&now.to_le_bytes()[..6]);
        let _: () = redis.set(&key, record).await.unwrap();
        let _: () = redis.zadd(keys.due(0), job, now).await.unwrap();
        assert_eq!(self.c.store.record(&id(job)).await.unwrap().unwrap().promise_ms, now);
    }

    async fn purge(&self, stream: &str) {
        let js = async_nats::jetstream::new(self.world.plain().await);
        js.get_stream(stream).await.unwrap().purge().await.unwrap();
    }

    fn dispatcher(&self) -> Process {
        self.world.worker(&["--state-dir", &self.world.path("other")], &[])
    }
}

// Shows: R-09, R-16, R-12, D-08
#[tokio::test]
async fn a_lost_receipt_is_sent_again_from_the_journal_and_one_that_waits_is_not() {
    let late = Late::new(&["a"]).await;
    let mut reaper = late.world.reaper_with(&["--log", "debug"], &[]);
    late.promise_passes("a", None).await;
    reaper.logged("still on its way").await;
    assert_eq!(messages(&late.world, "SURETY_RECEIPTS").await, 1);
    late.purge("SURETY_RECEIPTS").await;
    late.promise_passes("a", None).await;
    wait("the receipt to be sent again", async || messages(&late.world, "SURETY_RECEIPTS").await == 1).await;
    assert_eq!(late.world.until(&late.c, "a", |_| true).await.told, 0, "looking for it is no try");
    let requester = Requester::start(&late.world, "replies.me").await;
    let _dispatcher = late.dispatcher();
    late.world.until(&late.c, "a", |r| r.contract == Contract::TerminalAcked).await;
    let heard = requester.hears("a", "receipt", 1).await;
    let journal = late.world.history(&late.c).await;
    let finished = journal.jobs["a"].events.iter().find(|e| e.kind == "finished").unwrap();
    assert_eq!(heard[0].json(), finished.data["receipt"]);
    assert_eq!(heard[0].json()["receipt"], heard[0].id.as_str());
}

// Shows: C-13, C-14
#[tokio::test]
async fn a_lost_receipt_that_the_journal_has_no_more_is_given_up() {
    let late = Late::new(&["a"]).await;
    for stream in ["SURETY_RECEIPTS", "SURETY_EVENTS"] {
        late.purge(stream).await;
    }
    let reaper = late.world.reaper(&[]);
    late.promise_passes("a", None).await;
    let r = late.world.until(&late.c, "a", |r| r.contract == Contract::TerminalFailed).await;
    assert_eq!(r.status, Status::Done);
    assert!(r.tell_error.contains("the journal does not have it"), "{}", r.tell_error);
    assert!(reaper.log().contains("receipt_failed"), "{}", reaper.log());
}

// Shows: C-15
#[tokio::test]
async fn a_receipt_that_was_acked_heals_its_contract() {
    let late = Late::new(&["a"]).await;
    let older: Vec<u8> = late.redis.clone().get(late.c.store.keys().job(&id("a"))).await.unwrap();
    let requester = Requester::start(&late.world, "replies.me").await;
    let mut dispatcher = late.dispatcher();
    late.world.until(&late.c, "a", |r| r.contract == Contract::TerminalAcked).await;
    wait("no receipt to be under way", async || messages(&late.world, "SURETY_RECEIPTS").await == 0).await;
    assert_eq!(dispatcher.stop().await, Some(0));
    // A store that is older than the journal: the contract is pending, and nothing is under way.
    late.promise_passes("a", Some(older)).await;
    let reaper = late.world.reaper(&[]);
    let r = late.world.until(&late.c, "a", |r| r.contract != Contract::TerminalPending).await;
    assert_eq!(r.contract, Contract::TerminalAcked);
    assert!(reaper.log().contains("the journal says that it was delivered"), "{}", reaper.log());
    assert_eq!(requester.heard("a", "receipt").len(), 1);
    assert_eq!(messages(&late.world, "SURETY_RECEIPTS").await, 0);
}

// Shows: R-04
#[tokio::test]
async fn fifty_creators_make_one_receipt() {
    let world = World::with(HASTY).await;
    let c = world.connect().await;
    let session = SessionId::new("s1").unwrap();
    c.store.open_session(0, &session, HOUR, "{}").await.unwrap();
    let who = Asker::new("replies.me", true).unwrap();
    scripts::count_epochs(&world.redis.url()).await;
    let asked = ClaimItem { requester: &who, ..claim("a") };
    let granted = c.store.claim(0, &session, 1000, &[asked]).await.unwrap();
    let epoch = epoch(&granted.results[0]);
    let makers = (0..50).map(|_| {
        let (c, session) = (c.clone(), session.clone());
        async move {
            let done = c.store.finish(0, &session, &[finish("a", epoch, Verdict::Done)]).await.unwrap();
            // Whoever sees the outcome publishes it, those who repeat included.
            let waiting = c.store.outbox(0, "", u64::MAX >> 1, 100).await.unwrap();
            c.relay.publish(0, &waiting, Pace::call(Duration::from_secs(20))).await.unwrap();
            let ids: Vec<_> = waiting.iter().flat_map(|e| &e.receipts).map(|r| r.body.clone()).collect();
            (done.results[0].clone(), ids)
        }
    });
    let all = futures::future::join_all(makers).await;
    let applied = all.iter().filter(|(r, _)| matches!(r, FinishReply::Applied { .. })).count();
    let bodies: BTreeSet<_> = all.into_iter().flat_map(|(_, bodies)| bodies).collect();
    assert_eq!((applied, bodies.len()), (1, 1));
    assert_eq!(messages(&world, "SURETY_RECEIPTS").await, 1);
    // And as many who settle it: one does.
    let settle = (0..50).map(|_| async {
        let item = ToldItem {
            id: id("a"),
            generation: 1,
            what: Telling::Receipt,
            note: String::new(),
            data: "{}".into(),
        };
        c.store.told(0, &[item]).await.unwrap().results[0]
    });
    let all = futures::future::join_all(settle).await;
    assert_eq!(all.iter().filter(|r| matches!(r, ToldReply::Applied { .. })).count(), 1);
}

// Shows: R-05, R-08
#[tokio::test]
async fn asking_again_refreshes_who_is_told_while_the_job_is_open_and_never_the_receipt() {
    let w = scripts::World::start().await;
    let (old, new, late) = ("old", "new", "late");
    let who = [old, new, late].map(|s| Asker::new(s, false).unwrap());
    let by = |n: usize| ClaimItem { requester: &who[n], ..claim("a") };
    let first = epoch(&w.claim(&[by(0)]).await[0]);
    w.finish(&[scripts::retry("a", first)]).await;
    let second = epoch(&w.claim(&[by(1)]).await[0]);
    w.finish(&[finish("a", second, Verdict::Done)]).await;
    let receipts = async || w.outbox().await.into_iter().flat_map(|e| e.receipts).collect::<Vec<_>>();
    let made = receipts().await;
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].notify, who[1].to_json());
    let told = async |what| {
        let item = ToldItem { id: id("a"), generation: 1, what, note: "why".into(), data: "{}".into() };
        w.store.told(0, &[item]).await.unwrap().results[0]
    };
    let now = async || w.store.record(&id("a")).await.unwrap().unwrap();
    // Pending: the caller learns that it is tried again, and how often it was.
    let after = Duration::from_secs(60);
    let later = told(Telling::ReceiptLater { after }).await;
    assert!(
        matches!(later, ToldReply::Applied { contract: Contract::TerminalPending, tries: 1, .. }),
        "{later:?}"
    );
    assert_eq!(now().await.tell_error, "why");
    w.claim(&[by(2)]).await;
    assert_eq!(receipts().await, made, "an outcome is told to whom it was made for");
    // Acked, and the same for one that was given up: never reopened.
    let acked = told(Telling::Receipt).await;
    assert!(matches!(acked, ToldReply::Applied { contract: Contract::TerminalAcked, .. }), "{acked:?}");
    let settled = now().await;
    w.claim(&[by(2)]).await;
    for what in [Telling::Receipt, Telling::ReceiptGivenUp, Telling::ReceiptLater { after }] {
        assert_eq!(told(what).await, ToldReply::NotApplied { contract: Contract::TerminalAcked }, "{what:?}");
    }
    assert_eq!(now().await, settled);
    assert_eq!(receipts().await, made);
}
