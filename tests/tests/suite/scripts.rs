//! Each script alone, against a real Redis: repeated calls, races, what may not be written, and what is journaled.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis::AsyncCommands;
use surety_common::{
    domain::{
        Contract, ErrorCode, EventKind, JobId, Status, TypeName,
        ids::{Namespace, SessionId},
    },
    store::{
        ClaimItem, ClaimReply, FinishItem, FinishReply, LostItem, LostReply, OutboxEntry, ProgressItem,
        ProgressReply, Renewed, ReplayItem, ReplayReply, SettleItem, SettleReply, Store, StoreError,
        StoreOptions, Verdict,
    },
    wire::{
        event::{Event, read_message},
        receipt::{Draft, Receipt},
    },
};
use surety_tests::{
    history::History,
    redis::{Kind, Redis as Server},
};

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const CAP: u64 = 1_000_000;

/// A Redis of its own, with its folder.
pub struct Redis {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Redis {
    pub fn url(&self) -> String {
        self.server.url()
    }
}

/// Starts the kind of Redis that is wanted.
pub async fn redis() -> Redis {
    redis_of(Kind::wanted()).await
}

/// Starts a Redis.
pub async fn redis_of(kind: Kind) -> Redis {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(kind, dir.path().join("redis"), &[]).await.unwrap();
    Redis { server, _dir: dir }
}

/// A store on a Redis of its own, with one session, and a plain connection beside it.
pub(super) struct World {
    pub(super) store: Store,
    pub(super) session: SessionId,
    pub(super) plain: redis::aio::MultiplexedConnection,
    redis: Redis,
}

async fn connect(url: &str) -> Store {
    let store = connect_to(url).await;
    store.open("2026-01-01", true).await.unwrap();
    store
}

async fn connect_to(url: &str) -> Store {
    Store::connect(StoreOptions {
        look_after: Duration::from_secs(3600),
        lost_limit: 5,
        url: url.into(),
        login: Default::default(),
        namespace: Namespace::new("surety").unwrap(),
        partitions: 1,
        call_timeout: Duration::from_secs(10),
        retry_limit: Duration::from_secs(10),
        keep: HOUR,
    })
    .await
    .unwrap()
}

pub(super) fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

pub(super) fn id(name: &str) -> JobId {
    JobId::new(name).unwrap()
}

impl World {
    pub(super) async fn start() -> Self {
        let redis = redis().await;
        let store = connect(&redis.url()).await;
        let session = session("s1");
        store.open_session(0, &session, HOUR, r#"{"host":"h1","pid":1}"#).await.unwrap();
        let client = redis::Client::open(redis.url()).unwrap();
        let mut plain = client.get_multiplexed_async_connection().await.unwrap();
        set_base(&mut plain).await;
        Self { store, session, plain, redis }
    }

    pub(super) async fn claim(&self, items: &[ClaimItem<'_>]) -> Vec<ClaimReply> {
        self.store.claim(0, &self.session, CAP, items).await.unwrap().results
    }

    pub(super) async fn finish(&self, items: &[FinishItem]) -> Vec<FinishReply> {
        self.store.finish(0, &self.session, items).await.unwrap().results
    }

    /// The outbox, all of it.
    pub(super) async fn outbox(&self) -> Vec<OutboxEntry> {
        self.store.outbox(0, "", u64::MAX >> 1, 100_000).await.unwrap()
    }

    /// The events in the outbox, in its order; none may be unreadable.
    pub(super) async fn events(&self) -> Vec<Event> {
        let mut all = Vec::new();
        for e in self.outbox().await {
            let (events, bad) = read_message(e.body.as_bytes());
            assert_eq!(bad, Vec::<String>::new(), "{}", e.body);
            all.extend(events);
        }
        all
    }

    /// Every key with its value (and the time to live as yes or no), but for the counter of calls.
    pub(super) async fn dump(&self) -> BTreeMap<String, Vec<u8>> {
        let mut c = self.plain.clone();
        let keys: Vec<String> = c.keys("*").await.unwrap();
        let mut out = BTreeMap::new();
        for k in keys {
            let value: Vec<u8> = if k.ends_with(":store") {
                c.hget(&k, "inc").await.unwrap()
            } else {
                redis::cmd("DUMP").arg(&k).query_async(&mut c).await.unwrap()
            };
            out.insert(k, value);
        }
        out
    }

    /// Nothing was written since that dump; names the keys that were.
    async fn unchanged(&self, before: &BTreeMap<String, Vec<u8>>, what: &str) {
        let now = self.dump().await;
        let all: BTreeSet<_> = before.keys().chain(now.keys()).collect();
        let changed: Vec<_> = all.into_iter().filter(|k| before.get(*k) != now.get(*k)).collect();
        assert!(changed.is_empty(), "{what} wrote {changed:?}");
    }

    pub(super) async fn raw(&self, job: &str) -> Vec<u8> {
        self.plain.clone().get(self.store.keys().job(&id(job))).await.unwrap()
    }
}

pub(super) fn claim(job: &str) -> ClaimItem<'static> {
    ClaimItem {
        ack_ms: 60_000,
        progress_ms: 60_000,
        requester: &surety_common::domain::Requester::Nobody,
        summary: "".into(),
        id: job.to_owned().into(),
        queue: "default".into(),
        job_type: "t".into(),
        key: String::new().into(),
        trace: String::new().into(),
        carrier: format!("JOBS:{job}").into(),
        ack_subject: format!("ack.{job}").into(),
        created_ms: 1_800_000_000_000,
        finish_ms: 86_400_000,
        max_retries: 3,
        timeout_ms: 600_000,
        generation: 1,
        adopt: String::new().into(),
        expires_ms: 0,
        has_asked: false,
    }
}

pub(super) fn receipt(job: &str, outcome: Status) -> String {
    Draft::new(&id(job), 1, &TypeName::new("t").unwrap(), outcome.name()).open_json()
}

/// Every epoch of a world is above this one, so that tests may count them. Otherwise the first is the clock's.
pub(super) const BASE: u64 = 4_000_000_000_000;
/// Makes the epochs of a data set countable from [`FIRST`] on.
pub(super) async fn count_epochs(url: &str) {
    set_base(&mut redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()).await;
}

async fn set_base(plain: &mut redis::aio::MultiplexedConnection) {
    let () = plain.hset("surety:{p00}:store", "base", BASE).await.unwrap();
}

/// The first epoch of a job there.
pub(super) const FIRST: u64 = BASE + 1;

pub(super) fn finish(job: &str, epoch: u64, verdict: Verdict) -> FinishItem {
    FinishItem {
        id: id(job),
        epoch: BASE + epoch,
        verdict,
        receipt: receipt(job, Status::Done),
        data: r#"{"message":"m""#.into(),
        detail: String::new(),
    }
}

pub(super) fn retry(job: &str, epoch: u64) -> FinishItem {
    finish(job, epoch, Verdict::Retry { code: ErrorCode::Signal, delay: Duration::ZERO })
}

pub(super) fn progress(job: &str, epoch: u64, n: usize) -> ProgressItem {
    ProgressItem {
        id: job.to_owned(),
        epoch: BASE + epoch,
        kind: "progress",
        data: format!(r#"{{"n":{n}}}"#),
        progress_ms: 60_000,
        print: format!("{n}"),
    }
}

pub(super) fn bury(job: &str) -> SettleItem {
    let c = claim(job);
    SettleItem {
        notify: String::new(),
        id: c.id.into_owned(),
        verdict: 2,
        code: ErrorCode::InvalidJob.name(),
        receipt: receipt(job, Status::Failed),
        reason: r#"{"message":"m"}"#.into(),
        queue: c.queue.into_owned(),
        job_type: c.job_type.into_owned(),
        key: c.key.into_owned(),
        trace: c.trace.into_owned(),
        carrier: c.carrier.into_owned(),
        ack_subject: c.ack_subject.into_owned(),
        created_ms: c.created_ms,
        generation: 1,
    }
}

fn cancel(job: &str) -> SettleItem {
    let receipt = receipt(job, Status::Cancelled);
    SettleItem { verdict: 1, code: ErrorCode::Cancelled.name(), receipt, ..bury(job) }
}

pub(super) fn replay(job: &str, generation: u32) -> ReplayItem {
    ReplayItem {
        id: job.to_owned(),
        generation,
        carrier: format!("JOBS:{job}-{generation}"),
        created_ms: 1_800_000_000_000,
        finish_ms: 86_400_000,
        data: "{}".into(),
    }
}

pub(super) fn epoch(reply: &ClaimReply) -> u64 {
    match reply {
        ClaimReply::Granted(g) => g.epoch - BASE,
        other => panic!("not granted: {other:?}"),
    }
}

// Shows: X-03
#[tokio::test]
async fn a_repeated_call_gives_the_same_answer_and_writes_nothing_twice() {
    let w = World::start().await;
    macro_rules! twice {
        ($call:expr) => {{
            let first = $call.await.unwrap();
            let before = w.dump().await;
            w.store.repeat_last_call();
            let second = $call.await.unwrap();
            assert_eq!(first.results, second.results);
            w.unchanged(&before, stringify!($call)).await;
            // The outcomes are handed out again: the carrier may be acked only when somebody has published them.
            assert!(second.entries.iter().all(|e| first.entries.contains(e)), "{}", stringify!($call));
            for e in first.entries.iter().filter(|e| !e.ended.is_empty()) {
                assert!(second.entries.contains(e), "{}", stringify!($call));
            }
            first.results
        }};
    }
    let (st, s) = (&w.store, &w.session);
    let claims = [claim("a"), claim("b"), claim("c"), claim("d"), claim("e"), claim("f")];
    let granted = twice!(st.claim(0, s, CAP, &claims));
    assert!(granted.iter().all(|r| epoch(r) == 1));
    twice!(st.progress(0, s, &[progress("a", 1, 1)]));
    let detail =
        FinishItem { detail: r#"{"tail":[]}"#.into(), ..finish("b", 1, Verdict::Fail(ErrorCode::Oom)) };
    let verdicts = [
        finish("a", 1, Verdict::Done),
        detail,
        retry("c", 1),
        finish("d", 1, Verdict::Release),
        finish("e", 1, Verdict::StartFailed { delay: HOUR }),
    ];
    let done = twice!(st.finish(0, s, &verdicts));
    assert!(done.iter().all(|r| matches!(r, FinishReply::Applied { .. })), "{done:?}");
    assert_eq!(st.detail(&id("b")).await.unwrap().as_deref(), Some(r#"{"tail":[]}"#));
    let settled = twice!(st.settle(0, &[bury("poison"), bury("c"), cancel("d")]));
    assert!(settled.iter().all(|r| matches!(r, SettleReply::Applied(_))), "{settled:?}");
    let again = twice!(st.replay(0, &[replay("a", 2), replay("b", 2), replay("e", 2)]));
    assert_eq!(again[2], ReplayReply::Open { status: Status::Deferred });
    let renewed = st.renew(0, s, HOUR, &[format!("f:{FIRST}")]).await.unwrap();
    st.repeat_last_call();
    assert_eq!(st.renew(0, s, HOUR, &[format!("f:{FIRST}")]).await.unwrap(), renewed);

    // The one that differs, as documented: the first call did the work, the second finds nothing to do.
    st.expire_session(0, s).await.unwrap();
    let lost =
        [LostItem { id: "f".into(), epoch: FIRST, receipt: receipt("f", Status::Failed), data: "{".into() }];
    let first = st.lost(0, s, &lost).await.unwrap();
    assert!(matches!(first.results[0], LostReply::Applied(_)));
    let before = w.dump().await;
    st.repeat_last_call();
    assert_eq!(st.lost(0, s, &lost).await.unwrap().results, [LostReply::NotApplied]);
    w.unchanged(&before, "a refusal").await;
}

/// A small generator, so that a test's order is its own and the same every time.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for i in (1..items.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(i, (seed >> 33) as usize % (i + 1));
    }
}

// Shows: J-03, V-01
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_claimers_over_two_hundred_jobs_get_each_job_once() {
    let w = World::start().await;
    let mut stores = Vec::new();
    for _ in 0..5 {
        stores.push(connect(&w.redis.url()).await);
    }
    let mut claimers = tokio::task::JoinSet::new();
    for n in 0..50u64 {
        let store = stores[n as usize % stores.len()].clone();
        claimers.spawn(async move {
            let me = session(&format!("claimer-{n}"));
            store.open_session(0, &me, HOUR, &format!(r#"{{"host":"h{n}","pid":{n}}}"#)).await.unwrap();
            let mut jobs: Vec<_> = (0..200).map(|j| format!("j{j}")).collect();
            shuffle(&mut jobs, n);
            let mut mine = Vec::new();
            for group in jobs.chunks(7) {
                let items: Vec<_> = group.iter().map(|j| claim(j)).collect();
                let a = store.claim(0, &me, CAP, &items).await.unwrap();
                for (item, reply) in items.into_iter().zip(a.results) {
                    match reply {
                        ClaimReply::Granted(g) => mine.push((item.id, g.epoch)),
                        ClaimReply::LiveOwner { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            (me, mine)
        });
    }
    let mut owners = BTreeMap::new();
    while let Some(done) = claimers.join_next().await {
        let (me, mine) = done.unwrap();
        let mut run = w.store.running(0, &me).await.unwrap();
        let mut granted: Vec<_> = mine.iter().map(|(j, e)| (id(j), *e)).collect();
        run.sort();
        granted.sort();
        assert_eq!(run, granted);
        for (job, epoch) in mine {
            assert_eq!(epoch, FIRST);
            assert_eq!(owners.insert(job, me.clone()), None, "two owners");
        }
    }
    assert_eq!(owners.len(), 200);
    for (job, owner) in owners {
        let r = w.store.record(&id(&job)).await.unwrap().unwrap();
        assert_eq!((r.session.as_str(), r.epoch, r.attempt), (owner.as_str(), FIRST, 1));
        assert!(r.started_ms > 0);
        let info = w.store.session_info(0, &owner).await.unwrap().unwrap();
        assert!(info.contains("host"), "claimed by a host: {info}");
    }
    assert_eq!(w.events().await.len(), 200);
}

// Shows: X-03
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_concurrent_updates_of_one_record_lose_none_and_an_old_epoch_gets_its_own_error() {
    let w = World::start().await;
    w.claim(&[claim("a")]).await;
    let mut updates = tokio::task::JoinSet::new();
    for n in 0..100 {
        let (store, s) = (w.store.clone(), w.session.clone());
        updates.spawn(async move {
            let old = store.progress(0, &s, &[progress("a", 0, n)]).await.unwrap().results;
            (store.progress(0, &s, &[progress("a", 1, n)]).await.unwrap().results, old)
        });
    }
    let mut revs = BTreeSet::new();
    while let Some(done) = updates.join_next().await {
        let (new, old) = done.unwrap();
        assert_eq!(old, [ProgressReply::Fenced]);
        let ProgressReply::Journaled { rev } = new[0] else { panic!("{new:?}") };
        revs.insert(rev);
    }
    assert_eq!(revs, (2..=101).collect());
    let mut told: Vec<_> = w.events().await.iter().skip(1).map(|e| e.data["n"].as_u64().unwrap()).collect();
    told.sort_unstable();
    assert_eq!(told, (0..100).collect::<Vec<_>>());
}

// Shows: A-01, E-07
#[tokio::test]
async fn what_the_state_does_not_allow_writes_neither_attempt_nor_event() {
    let w = World::start().await;
    let other = session("s2");
    w.store.open_session(0, &other, HOUR, "{}").await.unwrap();
    w.claim(&[claim("run"), claim("wait"), claim("done"), claim("later")]).await;
    let later = finish("later", 1, Verdict::Retry { code: ErrorCode::Signal, delay: HOUR });
    w.finish(&[retry("wait", 1), finish("done", 1, Verdict::Done), later]).await;
    let before = w.dump().await;

    // Claims: owned, another carrier, ended, not due, an older generation, expired.
    let second = ClaimItem { carrier: "JOBS:99".into(), ..claim("wait") };
    let old = ClaimItem { generation: 0, ..claim("wait") };
    let late = ClaimItem { expires_ms: 1, ..claim("never-seen") };
    let items = [claim("run"), second, claim("done"), claim("later"), old, late];
    let a = w.store.claim(0, &other, CAP, &items).await.unwrap();
    assert!(matches!(a.results[0], ClaimReply::LiveOwner { lease_ms } if lease_ms > 0));
    assert!(matches!(&a.results[1], ClaimReply::SecondCarrier { recorded } if recorded == "JOBS:wait"));
    assert!(matches!(&a.results[2], ClaimReply::Ended(e) if e.status == Status::Done));
    assert!(matches!(a.results[3], ClaimReply::NotDue { due_in_ms } if due_in_ms > 3_000_000));
    assert_eq!(a.results[4], ClaimReply::StaleGeneration);
    assert_eq!(a.results[5], ClaimReply::Expired);

    // Finishes and reports: a wrong epoch, a wrong session, not running, ended, never seen.
    let wrong = [retry("run", 2), retry("wait", 1), finish("done", 1, Verdict::Done), retry("never-seen", 1)];
    let fenced = w.finish(&wrong).await;
    assert_eq!(fenced[0], FinishReply::Fenced { status: Status::Running, epoch: FIRST });
    assert_eq!(fenced[1], FinishReply::Fenced { status: Status::RetryWait, epoch: FIRST });
    assert_eq!(fenced[2], FinishReply::Fenced { status: Status::Done, epoch: FIRST });
    assert_eq!(fenced[3], FinishReply::NoRecord);
    let stolen = w.store.finish(0, &other, &[finish("run", 1, Verdict::Done)]).await.unwrap();
    assert!(matches!(stolen.results[0], FinishReply::Fenced { .. }));
    let stolen = w.store.progress(0, &other, &[progress("run", 1, 1), progress("wait", 1, 1)]).await.unwrap();
    assert_eq!(stolen.results, [ProgressReply::Fenced; 2]);

    // Endings and replays: running, ended, open, never seen; and a live session is not lost.
    let second = SettleItem { carrier: "JOBS:99".into(), ..bury("wait") };
    let a = w.store.settle(0, &[bury("run"), cancel("run"), bury("done"), second]).await.unwrap();
    assert_eq!(a.results[0], SettleReply::Running { status: Status::Running });
    assert_eq!(a.results[1], SettleReply::Running { status: Status::Running });
    assert!(matches!(&a.results[2], SettleReply::Ended(e) if e.status == Status::Done));
    assert_eq!(a.results[3], SettleReply::Running { status: Status::RetryWait });
    let a = w.store.replay(0, &[replay("run", 2), replay("wait", 2), replay("never-seen", 2)]).await.unwrap();
    assert_eq!(a.results[0], ReplayReply::Open { status: Status::Running });
    assert_eq!(a.results[1], ReplayReply::Open { status: Status::RetryWait });
    assert_eq!(a.results[2], ReplayReply::NoRecord);
    let lost = [LostItem {
        id: "run".into(),
        epoch: FIRST,
        receipt: receipt("run", Status::Failed),
        data: "{".into(),
    }];
    assert!(matches!(w.store.lost(0, &w.session, &lost).await, Err(StoreError::SessionLost)));

    w.unchanged(&before, "a refusal").await;
    History::fold(w.events().await).unwrap().check().unwrap();
}

// Shows: A-03
#[tokio::test]
async fn a_retry_beyond_the_budget_writes_nothing_and_leaves_the_attempt_where_recovery_finds_it() {
    let w = World::start().await;
    w.claim(&[ClaimItem { max_retries: 0, ..claim("a") }]).await;
    let before = w.dump().await;
    assert_eq!(w.finish(&[retry("a", 1)]).await, [FinishReply::BudgetSpent]);
    w.unchanged(&before, "a refusal").await;
    assert_eq!(w.store.running(0, &w.session).await.unwrap(), [(id("a"), FIRST)]);
}

// Shows: E-08
#[tokio::test]
async fn every_scripts_events_are_readable_whatever_the_key_and_have_the_same_fields() {
    let w = World::start().await;
    let keys =
        ["plain", "\"", "\\", "a\nb\tc\u{0}\u{1f}", "ключ 鍵 🔑", "</script>\u{2028}", "{\"a\":[1,\"]\"}"];
    let literal = |k: &str| serde_json::to_string(k).unwrap();
    let mut wanted = BTreeMap::new();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (n, k) in keys.iter().enumerate() {
        let job = |what: &str| format!("{what}{n}");
        let item =
            |what: &str| ClaimItem { key: literal(k).into(), trace: trace.into(), ..claim(&job(what)) };
        for what in ["progress", "done", "retry", "release", "defer", "lost", "replay"] {
            wanted.insert(job(what), (*k).to_owned());
            assert_eq!(epoch(&w.claim(&[item(what)]).await[0]), 1);
        }
        wanted.insert(job("bury"), (*k).to_owned());
        let buried = SettleItem { key: literal(k), trace: trace.into(), ..bury(&job("bury")) };
        w.store.settle(0, &[buried]).await.unwrap();
        let said = format!(r#"{{"message":{}}}"#, literal(k));
        let report = ProgressItem { data: said, ..progress(&job("progress"), 1, 0) };
        w.store.progress(0, &w.session, &[report]).await.unwrap();
        let data = format!(r#"{{"message":{}"#, literal(k));
        let with = |f: FinishItem| FinishItem { data: data.clone(), ..f };
        let delay = Duration::from_millis(1500);
        w.finish(&[
            finish(&job("done"), 1, Verdict::Done),
            with(finish(&job("retry"), 1, Verdict::Retry { code: ErrorCode::Oom, delay })),
            with(finish(&job("release"), 1, Verdict::Release)),
            with(finish(&job("defer"), 1, Verdict::StartFailed { delay })),
            finish(&job("replay"), 1, Verdict::Done),
        ])
        .await;
        w.store.replay(0, &[replay(&job("replay"), 2)]).await.unwrap();
    }
    w.store.expire_session(0, &w.session).await.unwrap();
    let lost: Vec<_> = (0..keys.len())
        .map(|n| LostItem {
            id: format!("lost{n}"),
            epoch: FIRST,
            receipt: receipt(&format!("lost{n}"), Status::Failed),
            data: r#"{"error_code":"lost""#.into(),
        })
        .collect();
    w.store.lost(0, &w.session, &lost).await.unwrap();

    let events = w.events().await;
    let mut kinds = BTreeSet::new();
    for e in &events {
        kinds.insert(e.kind.clone());
        assert_eq!(e.key.as_deref(), Some(wanted[&e.job].as_str()));
        assert_eq!((e.v, e.queue.as_str(), e.job_type.as_str()), (1, "default", "t"));
        assert!(Status::ALL.iter().any(|s| s.name() == e.status), "{}", e.status);
        assert!(Contract::ALL.iter().any(|c| c.name() == e.contract), "{}", e.contract);
        assert!(e.carrier.is_some());
        e.at.parse::<jiff::Timestamp>().unwrap();
        match e.kind.as_str() {
            "finished" => {
                let r: Receipt = serde_json::from_value(e.data["receipt"].clone()).unwrap();
                assert_eq!((r.job.as_str(), r.outcome.as_str()), (e.job.as_str(), e.status.as_str()));
                assert_eq!(r.finished_at, e.at);
            }
            "attempt_failed" => {
                let due: jiff::Timestamp = e.data["retry_at"].as_str().unwrap().parse().unwrap();
                assert_eq!(
                    due.as_millisecond() - e.at.parse::<jiff::Timestamp>().unwrap().as_millisecond(),
                    1500
                );
                assert_eq!(e.data["message"], wanted[&e.job].as_str());
            }
            "progress" => assert_eq!(e.data["message"], wanted[&e.job].as_str()),
            "started" => assert!(e.data.is_null(), "{}", e.data),
            _ => assert!(e.data.is_object()),
        }
    }
    let written: BTreeSet<_> = [
        EventKind::Started,
        EventKind::Progress,
        EventKind::Deferred,
        EventKind::AttemptFailed,
        EventKind::Lost,
        EventKind::Released,
        EventKind::Finished,
        EventKind::Buried,
        EventKind::Replayed,
    ]
    .map(|k| k.name().to_owned())
    .into();
    assert_eq!(kinds, written, "a kind that no script writes, or one that this test does not reach");
    History::fold(events).unwrap().check().unwrap();
}

// Shows: E-02
#[tokio::test]
async fn a_hundred_events_of_one_clock_tick_have_one_order() {
    let w = World::start().await;
    w.claim(&[claim("a")]).await;
    let reports: Vec<_> = (0..100).map(|n| progress("a", 1, n)).collect();
    let a = w.store.progress(0, &w.session, &reports).await.unwrap();
    let revs: Vec<_> = (2..=101).map(|rev| ProgressReply::Journaled { rev }).collect();
    assert_eq!(a.results, revs);
    for _ in 0..3 {
        let mut events: Vec<_> = w.events().await.into_iter().filter(|e| e.kind == "progress").collect();
        assert_eq!(events.iter().map(|e| &e.at).collect::<BTreeSet<_>>().len(), 1, "one clock tick");
        // Whatever order a reader got them in, `rev` restores it.
        shuffle(&mut events, 7);
        events.sort_by_key(|e| e.rev);
        let order: Vec<_> = events.iter().map(|e| e.data["n"].as_u64().unwrap()).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}

// Shows: E-02
#[tokio::test]
async fn entries_are_cut_by_queue_and_size_and_an_outcome_comes_last() {
    let w = World::start().await;
    let in_queue = |job: &str, queue: &str| ClaimItem { queue: queue.to_owned().into(), ..claim(job) };
    let a = w
        .store
        .claim(0, &w.session, CAP, &[in_queue("a", "one"), in_queue("b", "two"), in_queue("c", "one")])
        .await
        .unwrap();
    let cut: Vec<_> =
        a.entries.iter().map(|e| (e.suffix.as_str(), e.body.matches("\"job\"").count())).collect();
    assert_eq!(cut, [("one", 2), ("two", 1)]);

    // 40 burials with receipts of 20 KB: two subjects, several entries each, none over the cap.
    let before = w.outbox().await.len();
    let big = |n: usize| SettleItem {
        notify: String::new(),
        receipt: format!(
            r#"{},"message":"{}""#,
            receipt(&format!("big{n}"), Status::Failed),
            "x".repeat(20_000)
        ),
        reason: format!(r#"{{"message":"{}"}}"#, "y".repeat(4000)),
        ..bury(&format!("big{n}"))
    };
    let mut items: Vec<_> = (0..40).map(big).collect();
    // One whose outcome has no other event comes first: the order may not follow from it.
    items.insert(0, cancel("first"));
    let a = w.store.settle(0, &items).await.unwrap();
    let outbox = w.outbox().await;
    assert_eq!(a.entries, outbox[before..]);
    assert!(a.entries.len() > 4, "{}", a.entries.len());
    assert!(a.entries.iter().all(|e| e.body.len() <= 256 * 1024), "an entry over the cap");
    let mut revs: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for e in &a.entries {
        let (events, bad) = read_message(e.body.as_bytes());
        assert_eq!(bad, Vec::<String>::new());
        for event in events {
            assert_eq!(e.suffix == "default.ended", event.kind == "finished");
            revs.entry(event.job).or_default().push(event.rev);
        }
    }
    for n in 0..40 {
        let job = format!("big{n}");
        assert_eq!(
            revs[&job],
            [1, 2],
            "the outbox has the events of {job} in another order than they happened"
        );
        // What the record points to is the entry with its outcome: only its publish makes the carrier ackable.
        let r = w.store.record(&id(&job)).await.unwrap().unwrap();
        let entry = a.entries.iter().find(|e| e.id == r.entry).unwrap();
        assert!(entry.ended.split(',').any(|j| j == job));
    }

    // One event over the cap travels alone.
    w.claim(&[claim("huge"), claim("small")]).await;
    let huge = format!(r#"{},"result":"{}""#, receipt("huge", Status::Done), "z".repeat(300_000));
    let items =
        [finish("small", 1, Verdict::Done), FinishItem { receipt: huge, ..finish("huge", 1, Verdict::Done) }];
    let a = w.store.finish(0, &w.session, &items).await.unwrap();
    let ended: Vec<_> = a.entries.iter().map(|e| e.ended.as_str()).collect();
    assert_eq!(ended, ["small", "huge"]);
}

#[tokio::test]
async fn two_items_of_one_job_in_one_call_see_each_other() {
    let w = World::start().await;
    let second = ClaimItem { carrier: "JOBS:99".into(), ..claim("a") };
    let items = [claim("a"), claim("a"), second];
    let a = w.store.claim(0, &w.session, CAP, &items).await.unwrap();
    assert_eq!(epoch(&a.results[0]), 1);
    assert!(matches!(a.results[1], ClaimReply::LiveOwner { .. }));
    assert!(matches!(a.results[2], ClaimReply::SecondCarrier { .. }));
    w.store.repeat_last_call();
    let b = w.store.claim(0, &w.session, CAP, &items).await.unwrap();
    assert_eq!(b.results[0], a.results[0]);
    assert!(matches!(b.results[1], ClaimReply::LiveOwner { .. }));
    assert_eq!(w.store.running(0, &w.session).await.unwrap().len(), 1);

    let reports = w.store.progress(0, &w.session, &[progress("a", 1, 1), progress("a", 1, 2)]).await.unwrap();
    assert_eq!(reports.results, [2, 3].map(|rev| ProgressReply::Journaled { rev }));
    // The second verdict does not overwrite the first.
    let done =
        w.finish(&[finish("a", 1, Verdict::Done), finish("a", 1, Verdict::Fail(ErrorCode::Oom))]).await;
    assert_eq!(done[0], FinishReply::Applied { status: Status::Done, rev: 4 });
    let settled = w.store.settle(0, &[bury("b"), cancel("b")]).await.unwrap().results;
    assert!(matches!(&settled[0], SettleReply::Applied(s) if s.status == Status::Failed));
    assert_eq!(w.store.record(&id("b")).await.unwrap().unwrap().status, Status::Failed);
    let again = w.store.replay(0, &[replay("b", 2), replay("b", 2)]).await.unwrap().results;
    assert_eq!(again, [ReplayReply::Queued { generation: 2, rev: 3 }; 2]);
    assert_eq!(w.store.record(&id("a")).await.unwrap().unwrap().status, Status::Done);
    History::fold(w.events().await).unwrap().check().unwrap();
}

// Shows: E-07, X-04
#[tokio::test]
async fn a_data_set_that_lost_something_is_closed_and_written_to_by_nobody() {
    for case in ["another", "empty", "older"] {
        let w = World::start().await;
        w.claim(&[claim("a")]).await;
        let store_key = w.store.keys().store(0);
        let mut plain = w.plain.clone();
        match case {
            "another" => {
                // Somebody else has found the loss, and has closed the gate.
                () = plain.hset_multiple(&store_key, &[("inc", "another"), ("gate", "1")]).await.unwrap();
            }
            "empty" => () = redis::cmd("FLUSHALL").query_async(&mut plain).await.unwrap(),
            _ => () = plain.hset(&store_key, "commit", 0).await.unwrap(),
        }
        w.store.confirm(0, ["1-1".to_owned()]);
        let (st, s) = (&w.store, &w.session);
        let is_refused = |e: Option<StoreError>| matches!(e, Some(StoreError::Rebuilding));
        // The first call finds it out, the second meets the closed gate.
        for _ in 0..2 {
            assert!(is_refused(st.claim(0, s, CAP, &[claim("a"), claim("b")]).await.err()), "{case}");
        }
        let mut before = w.dump().await;
        let gate: u8 = plain.hget(&store_key, "gate").await.unwrap();
        assert_eq!(gate, 1, "{case}");
        let commit: u64 = plain.hget(&store_key, "commit").await.unwrap();
        assert!(case == "another" || commit > 1_000_000, "{case}: {commit}");
        let lost = [LostItem { id: "a".into(), epoch: FIRST, receipt: "{".into(), data: "{".into() }];
        assert!(is_refused(st.finish(0, s, &[finish("a", 1, Verdict::Done)]).await.err()));
        assert!(is_refused(st.progress(0, s, &[progress("a", 1, 1)]).await.err()));
        assert!(is_refused(st.lost(0, s, &lost).await.err()));
        assert!(is_refused(st.settle(0, &[bury("b")]).await.err()));
        assert!(is_refused(st.replay(0, &[replay("a", 2)]).await.err()));
        w.unchanged(&before, "a refusal").await;
        // A live session goes on, and is not told that it runs what nobody knows yet.
        let renewed = st.renew(0, s, HOUR, &["a:1".to_owned()]).await.unwrap();
        assert_eq!(renewed, Renewed::default());
        st.reopen_session(0, s, HOUR, "{}").await.unwrap();
        // Nobody who knew another data set closes it once more.
        before = w.dump().await;
        let late = connect_to(&w.redis.url()).await;
        late.open("2026-01-01", false).await.unwrap();
        assert!(is_refused(late.claim(0, s, CAP, &[claim("c")]).await.err()));
        w.unchanged(&before, "another process").await;
    }
    // A store of another JOBS stream is refused.
    let w = World::start().await;
    let e = w.store.open("2027-01-01", true).await.unwrap_err();
    assert!(matches!(e, StoreError::OtherStore(_)), "{e}");
}

#[tokio::test]
async fn nothing_new_starts_while_the_outbox_is_full_and_confirmed_entries_make_room() {
    let w = World::start().await;
    for n in 0..4 {
        w.claim(&[claim(&format!("a{n}"))]).await;
    }
    let before = w.dump().await;
    let full = w.store.claim(0, &w.session, 3, &[claim("b")]).await;
    assert!(matches!(full, Err(StoreError::OutboxFull)), "{full:?}");
    w.unchanged(&before, "a refusal").await;
    // What runs may end: the bound is for starts.
    assert!(matches!(w.finish(&[finish("a0", 1, Verdict::Done)]).await[0], FinishReply::Applied { .. }));
    let entries = w.outbox().await;
    w.store.confirm(0, entries.iter().take(2).map(|e| e.id.clone()));
    let a = w.store.claim(0, &w.session, 3, &[claim("b")]).await.unwrap();
    assert_eq!(epoch(&a.results[0]), 1);
    assert_eq!(w.store.outbox_len(0).await.unwrap(), 4);
    // Opening a session trims as any other call does, and forgets nothing that was confirmed.
    w.store.confirm(0, w.outbox().await.into_iter().map(|e| e.id));
    w.store.open_session(0, &w.session, HOUR, "{}").await.unwrap();
    assert_eq!(w.store.outbox_len(0).await.unwrap(), 0);
}

// Shows: B-03
#[tokio::test]
async fn fields_of_a_newer_release_survive_a_transition_by_this_one() {
    let w = World::start().await;
    w.claim(&[claim("a")]).await;
    let mut raw = w.raw("a").await;
    raw.extend(b"future\0\x2a");
    () = w.plain.clone().set(w.store.keys().job(&id("a")), &raw).await.unwrap();
    assert_eq!(w.store.record(&id("a")).await.unwrap().unwrap().status, Status::Running);
    assert!(matches!(w.finish(&[retry("a", 1)]).await[0], FinishReply::Applied { .. }));
    assert_eq!(epoch(&w.claim(&[claim("a")]).await[0]), 2);
    let raw = w.raw("a").await;
    assert!(raw.ends_with(b"\0future\0\x2a"), "{raw:?}");
}

#[tokio::test]
async fn an_expired_session_neither_claims_nor_renews_and_its_attempts_are_taken_back_once() {
    let w = World::start().await;
    w.claim(&[claim("a"), claim("b")]).await;
    // What the worker says it runs against what the store gives it.
    let said = [format!("a:{FIRST}"), "x:7".to_owned()];
    let r = w.store.renew(0, &w.session, HOUR, &said).await.unwrap();
    assert_eq!((r.fenced, r.orphans), (vec!["x:7".to_owned()], vec![format!("b:{FIRST}")]));
    // A session that still runs something does not close.
    assert_eq!(w.store.close_session(0, &w.session).await.unwrap().owned, 2);
    w.store.renew(0, &w.session, HOUR, &said).await.unwrap();

    // It expires by the store's clock, without a call that says so.
    let short = session("short");
    w.store.open_session(0, &short, Duration::from_millis(1), "{}").await.unwrap();
    surety_tests::world::wait("the session to expire", async || {
        !w.store.sessions(0, w.store.now_ms().await.unwrap(), 10).await.unwrap().is_empty()
    })
    .await;
    let e = w.store.claim(0, &short, CAP, &[claim("c")]).await.unwrap_err();
    assert!(matches!(e, StoreError::SessionLost), "{e}");
    assert!(matches!(w.store.renew(0, &short, HOUR, &[]).await, Err(StoreError::SessionLost)));
    assert!(w.store.record(&id("c")).await.unwrap().is_none());

    let lost = |job: &str| LostItem {
        id: job.into(),
        epoch: FIRST,
        receipt: receipt(job, Status::Failed),
        data: "{".into(),
    };
    w.store.expire_session(0, &w.session).await.unwrap();
    let e = w.store.claim(0, &w.session, CAP, &[claim("c")]).await.unwrap_err();
    assert!(matches!(e, StoreError::SessionLost), "{e}");
    let first = w.store.lost(0, &w.session, &[lost("a"), lost("b")]).await.unwrap().results;
    assert!(first.iter().all(|r| matches!(r, LostReply::Applied(l) if l.status == Status::RetryWait)));
    let second = w.store.lost(0, &w.session, &[lost("a"), lost("b")]).await.unwrap().results;
    assert_eq!(second, [LostReply::NotApplied, LostReply::NotApplied]);
    // Nothing of the session is left behind.
    assert_eq!(w.store.session_info(0, &w.session).await.unwrap(), None);
    assert_eq!(w.store.lost(0, &short, &[]).await.unwrap().results, []);
    assert_eq!(w.store.sessions(0, u64::MAX >> 1, 10).await.unwrap(), []);
}

async fn n_connections(plain: &mut redis::aio::MultiplexedConnection) -> usize {
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(plain).await.unwrap();
    list.lines().count()
}

// Shows: X-09
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_operations_use_one_connection_which_heals_itself() {
    let w = World::start().await;
    let mut plain = w.plain.clone();
    let before = n_connections(&mut plain).await;
    for round in 0..5 {
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..50 {
            let (store, s) = (w.store.clone(), w.session.clone());
            callers.spawn(async move {
                for k in 0..20 {
                    let job = format!("j{round}-{n}-{k}");
                    let a = store.claim(0, &s, CAP, &[claim(&job)]).await.unwrap();
                    assert_eq!(epoch(&a.results[0]), 1);
                    let a = store.finish(0, &s, &[finish(&job, 1, Verdict::Done)]).await.unwrap();
                    assert!(matches!(a.results[0], FinishReply::Applied { .. }));
                }
            });
        }
        while let Some(done) = callers.join_next().await {
            done.unwrap();
        }
        assert_eq!(n_connections(&mut plain).await, before, "round {round}");
        if round == 2 {
            // Cut by the server: the next call repeats itself over a new one.
            let me: u64 = redis::cmd("CLIENT").arg("ID").query_async(&mut plain).await.unwrap();
            let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut plain).await.unwrap();
            for line in list.lines().filter(|l| !l.starts_with(&format!("id={me} "))) {
                let other = line.split(' ').next().unwrap().trim_start_matches("id=");
                let _: u64 = redis::cmd("CLIENT")
                    .arg("KILL")
                    .arg("ID")
                    .arg(other)
                    .query_async(&mut plain)
                    .await
                    .unwrap();
            }
            w.store.renew(0, &w.session, HOUR, &[]).await.unwrap();
        }
    }
    assert_eq!(w.store.outbox_len(0).await.unwrap(), 10_000);
}

// Shows: X-01
#[tokio::test]
async fn times_are_the_stores_and_are_written_as_everybody_writes_them() {
    let w = World::start().await;
    let before = w.store.now_ms().await.unwrap();
    // A carrier's time may be any: it only sets the finish deadline.
    let skewed = ClaimItem { created_ms: before - 3_600_000, ..claim("a") };
    let a = w.store.claim(0, &w.session, CAP, &[skewed]).await.unwrap();
    let retry = [finish("a", 1, Verdict::Retry { code: ErrorCode::Oom, delay: HOUR })];
    let f = w.store.finish(0, &w.session, &retry).await.unwrap();
    let after = w.store.now_ms().await.unwrap();
    assert!((before..=after).contains(&a.now_ms) && (before..=after).contains(&f.now_ms));
    let r = w.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((r.started_ms, r.due_ms), (a.now_ms, f.now_ms + 3_600_000));
    let iso = |ms: u64| jiff::Timestamp::from_millisecond(ms as i64).unwrap();
    for (e, now) in w.events().await.iter().zip([a.now_ms, f.now_ms]) {
        assert_eq!(e.at.parse::<jiff::Timestamp>().unwrap(), iso(now));
    }

    // The scripts' own calendar against jiff's: leap days, ends of years, of centuries.
    let prelude = include_str!("../../../common/src/store/scripts/prelude.lua");
    let from = prelude.find("local function iso(ms)").unwrap();
    let code = &prelude[from..from + prelude[from..].find("\nend\n").unwrap() + 5];
    let mut instants: Vec<i64> = vec![0, 1, 999, 1000, 951_782_399_999, 951_782_400_000, 4_107_542_399_999];
    for text in
        ["2000-02-29", "2023-03-01", "2024-02-29", "2024-12-31", "2100-02-28", "2100-03-01", "2400-02-29"]
    {
        let day: jiff::Timestamp = format!("{text}T23:59:59.987Z").parse().unwrap();
        instants.extend([day.as_millisecond(), day.as_millisecond() + 13]);
    }
    instants.extend((0..2000).map(|n| n * 8_640_000_007));
    let script = format!(
        "{code}\nlocal out = {{}}\nfor i, v in ipairs(ARGV) do out[i] = iso(tonumber(v)) end\nreturn out"
    );
    let mut call = redis::cmd("EVAL");
    call.arg(script).arg(0);
    for i in &instants {
        call.arg(*i);
    }
    let lua: Vec<String> = call.query_async(&mut w.plain.clone()).await.unwrap();
    let ours: Vec<String> = instants
        .iter()
        .map(|i| {
            jiff::Timestamp::from_millisecond(*i).unwrap().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
        })
        .collect();
    assert_eq!(lua, ours);
}

// Shows: P5, X-03
#[tokio::test]
async fn a_copy_that_lost_the_last_commit_is_older_also_when_others_have_written_since() {
    let mut w = World::start().await;
    let other = connect(&w.redis.url()).await;
    let two = session("s2");
    other.open_session(0, &two, HOUR, "{}").await.unwrap();
    let store_key = w.store.keys().store(0);
    // What a replica has that did not get the claim of "a".
    let keys: Vec<String> = w.plain.keys("*").await.unwrap();
    let mut copy = Vec::new();
    for key in &keys {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(key).query_async(&mut w.plain).await.unwrap();
        copy.push((key.clone(), dump));
    }
    let first = w.claim(&[claim("a")]).await;
    let ClaimReply::Granted(first) = first[0].clone() else { panic!("{first:?}") };
    let () = redis::cmd("FLUSHALL").query_async(&mut w.plain).await.unwrap();
    for (key, dump) in &copy {
        let () = redis::cmd("RESTORE").arg(key).arg(0).arg(dump).query_async(&mut w.plain).await.unwrap();
    }
    let () = w.plain.hdel(&store_key, "base").await.unwrap();
    // Another process, which saw nothing of that commit, gets the same message first, and writes as often.
    let again = other.claim(0, &two, CAP, &[claim("a")]).await.unwrap();
    let ClaimReply::Granted(again) = again.results[0].clone() else { panic!("{again:?}") };
    assert_ne!(again.epoch, first.epoch, "a fencing token comes once");
    // Whoever made the lost commit notices, whatever it does next.
    let e = w.store.renew(0, &w.session, HOUR, &[format!("a:{}", first.epoch)]).await.unwrap_err();
    assert!(matches!(e, StoreError::Rebuilding), "{e}");
    let gate: u8 = w.plain.hget(&store_key, "gate").await.unwrap();
    let why: String = w.plain.hget(&store_key, "why").await.unwrap();
    assert_eq!((gate, why.as_str()), (1, "older"));
}
