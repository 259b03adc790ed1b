//! Rate limits, script by script: what the script lets start, and when, is judged by the pure model of the domain and by a
//! library that is not ours (`governor`, on a clock of its own), start by start: each conforms at its slot, and would not have
//! conformed a millisecond before.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, FakeRelativeClock},
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner},
};
use redis::AsyncCommands;
use surety_common::{
    domain::guard::{GuardKind, Rate},
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, Store, group::GROUP_CAP},
};

use surety_tests::world::wait;

use super::{
    guard_slots::{ask, item, nothing_left, plain, release, store},
    scripts::{Redis, redis},
};

const HOUR: u64 = 3_600_000;
const JOBS: usize = 12;

fn scope(value: &str, rate: Rate) -> Scope {
    Scope::new(GuardKind::Rate, "api", value, [rate.interval_us, rate.tolerance_us, 0, 0])
}

/// What the library says of a row of starts (us), one after the other.
struct Oracle {
    limiter: RateLimiter<
        NotKeyed,
        InMemoryState,
        FakeRelativeClock,
        NoOpMiddleware<<FakeRelativeClock as Clock>::Instant>,
    >,
    clock: FakeRelativeClock,
    at_us: u64,
}

impl Oracle {
    fn new(rate: Rate, from_us: u64) -> Self {
        let burst = u32::try_from(rate.tolerance_us / rate.interval_us + 1).unwrap();
        let quota = Quota::with_period(Duration::from_micros(rate.interval_us)).unwrap();
        let quota = quota.allow_burst(NonZeroU32::new(burst).unwrap());
        let clock = FakeRelativeClock::default();
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, at_us: from_us }
    }

    fn go_to(&mut self, us: u64) {
        assert!(us >= self.at_us, "starts are given in order");
        self.clock.advance(Duration::from_micros(us - self.at_us));
        self.at_us = us;
    }

    /// Counts it if it conforms.
    fn starts_at(&mut self, us: u64) -> bool {
        self.go_to(us);
        self.limiter.check().is_ok()
    }
}

/// Every start conforms, in this order.
fn conforms(rate: Rate, starts: &[u64]) -> bool {
    let mut oracle = Oracle::new(rate, starts.first().copied().unwrap_or(0));
    starts.iter().all(|s| oracle.starts_at(*s))
}

struct Case {
    store: Store,
    plain: redis::aio::MultiplexedConnection,
    rate: Rate,
    scope: Scope,
    /// Of what is counted, in order.
    counted: Vec<u64>,
    /// Slots that members have, and the mark of a start that may be given back.
    slots: BTreeMap<String, (u64, Option<u64>)>,
}

#[derive(Debug, Clone)]
enum Op {
    Ask {
        job: usize,
        is_repeated: bool,
    },
    /// Asks until it may start.
    Insist {
        job: usize,
    },
    Undo {
        job: usize,
    },
    End {
        job: usize,
    },
    Tend,
}

fn any_op() -> impl Strategy<Value = Op> {
    let job = 0..JOBS;
    prop_oneof![
        8 => (job.clone(), prop::bool::weighted(0.2)).prop_map(|(job, is_repeated)| Op::Ask { job, is_repeated }),
        2 => job.clone().prop_map(|job| Op::Insist { job }),
        2 => job.clone().prop_map(|job| Op::Undo { job }),
        3 => job.prop_map(|job| Op::End { job }),
        1 => Just(Op::Tend),
    ]
}

impl Case {
    async fn call(&self, items: &[GuardItem<'_>]) -> Result<Guarded, TestCaseError> {
        let scopes = std::slice::from_ref(&self.scope);
        self.store.guard(0, None, HOUR, scopes, items).await.map_err(|e| TestCaseError::fail(e.to_string()))
    }

    /// The stored TAT, and the slot of a member (us).
    async fn stored(&self, member: &str) -> (u64, Option<u64>) {
        let mut c = self.plain.clone();
        let [state, _, wait, _] = self.store.keys().guard(0, &self.scope.hash);
        let tat: Option<u64> = c.hget(state, "tat").await.unwrap();
        let slot: Option<f64> = c.zscore(wait, member).await.unwrap();
        (tat.unwrap_or(0), slot.map(|s| s as u64))
    }

    async fn ask(&mut self, job: usize, is_repeated: bool) -> Result<bool, TestCaseError> {
        let member = format!("job-{job}/1");
        let (tat, _) = self.stored(&member).await;
        let had = self.slots.get(&member).copied();
        let asked = [ask(&member, 1, &[0])];
        let answer = self.call(&asked).await?;
        let (tat_now, slot) = self.stored(&member).await;
        let Some(slot) = slot else { return Err(TestCaseError::fail("it was counted, and nothing says so")) };
        if let Some((old, _)) = had {
            // Known already: nothing is counted again, and it starts at its slot, not before.
            prop_assert_eq!((slot, tat_now), (old, tat));
        } else {
            let (want, next) = self.rate.slot(tat, slot.min(answer.now_ms * 1000 + 999));
            prop_assert_eq!((slot, tat_now), (want, next), "the model of the domain");
            self.is_first_that_conforms(slot, &answer)?;
            self.counted.push(slot);
        }
        let passes = match answer.replies.as_slice() {
            [GuardReply::Passes(numbers)] => {
                prop_assert!(slot / 1000 <= answer.now_ms, "it started before its slot");
                prop_assert_eq!(numbers[0], if had.is_some() { 1 } else { tat_now });
                true
            }
            [GuardReply::WaitsUntil { scope: 0, at_ms }] => {
                prop_assert_eq!(*at_ms, slot.div_ceil(1000));
                prop_assert!(slot / 1000 >= answer.now_ms, "its slot has come");
                false
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        let mark = had.map_or(passes.then_some(tat_now), |(_, mark)| mark);
        self.slots.insert(member.clone(), (slot, mark));
        if is_repeated {
            self.store.repeat_last_call();
            let again = self.call(&asked).await?;
            prop_assert_eq!(self.stored(&member).await, (tat_now, Some(slot)), "a repeated call counted");
            if passes {
                prop_assert!(
                    matches!(again.replies.as_slice(), [GuardReply::Passes(_)]),
                    "{:?}",
                    again.replies
                );
            }
        }
        Ok(passes)
    }

    /// After everything that was counted before, it conforms at its slot; and if it had to wait, not a millisecond earlier.
    fn is_first_that_conforms(&self, slot: u64, answer: &Guarded) -> Result<(), TestCaseError> {
        let from = self.counted.first().copied().unwrap_or(slot).min(slot - 1000);
        let mut oracle = Oracle::new(self.rate, from);
        for s in &self.counted {
            prop_assert!(oracle.starts_at(*s), "what was counted before does not conform");
        }
        let is_booked = slot / 1000 > answer.now_ms;
        if is_booked && slot - 1000 > oracle.at_us {
            prop_assert!(
                !oracle.starts_at(slot - 1000),
                "it could have started a millisecond before its slot"
            );
        }
        prop_assert!(oracle.starts_at(slot), "the library would not let it start at its slot");
        Ok(())
    }

    async fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match op {
            Op::Ask { job, is_repeated } => self.ask(*job, *is_repeated).await.map(drop),
            Op::Insist { job } => {
                while !self.ask(*job, false).await? {}
                Ok(())
            }
            Op::Undo { job } => {
                let member = format!("job-{job}/1");
                let Some((slot, mark)) = self.slots.get(&member).copied() else { return Ok(()) };
                let (tat, _) = self.stored(&member).await;
                self.call(&[release(&member, "t", mark, GuardOutcome::Undone, &[0])]).await?;
                let now = self.stored(&member).await;
                if mark == Some(tat) {
                    prop_assert_eq!(now, (tat - self.rate.interval_us, None));
                    let at = self.counted.iter().rposition(|s| *s == slot).unwrap();
                    self.counted.remove(at);
                    self.slots.remove(&member);
                } else {
                    prop_assert_eq!(
                        now,
                        (tat, Some(slot)),
                        "it is counted, so it may come again with its slot"
                    );
                }
                Ok(())
            }
            Op::End { job } => {
                let member = format!("job-{job}/1");
                let (tat, slot) = self.stored(&member).await;
                // An attempt ends that began; what waits does not end.
                let now = self.store.now_ms().await.unwrap();
                if slot.is_none_or(|s| s / 1000 >= now) {
                    return Ok(());
                }
                self.call(&[release(&member, "t", None, GuardOutcome::WentWell, &[0])]).await?;
                prop_assert_eq!(self.stored(&member).await, (tat, None), "an end gives no token back");
                self.slots.remove(&member);
                Ok(())
            }
            Op::Tend => {
                let before = self.stored("").await;
                self.call(&[item(GuardAct::Tend { session: "".into() }, "", &[0])]).await?;
                let after = self.stored("").await;
                prop_assert!(after == before || self.slots.is_empty(), "{before:?} {after:?}");
                if after.0 == 0 {
                    // Nothing of the past matters any more, and nothing of it is kept.
                    self.counted.clear();
                }
                Ok(())
            }
        }
    }
}

// Shows: S-05, J-02
#[test]
fn starts_come_as_an_independent_library_would_let_them() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = rt.block_on(redis());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/guard_rates.txt");
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..Config::default()
    };
    // Between two starts some milliseconds, so that what is booked comes to pass while the test runs.
    let rates = (1..12u64, 1..5u64, 1..6u64)
        .prop_map(|(limit, ms, burst)| Rate::new(limit, Duration::from_millis(limit * ms), burst));
    let all = (rates, prop::collection::vec(any_op(), 1..60));
    let result = TestRunner::new(config).run(&all, |(rate, ops)| {
        rt.block_on(async {
            let mut case = Case {
                store: store(&server.url(), 1).await,
                plain: plain(&server).await,
                rate,
                scope: scope("a", rate),
                counted: Vec::new(),
                slots: BTreeMap::new(),
            };
            for op in &ops {
                case.step(op).await?;
            }
            prop_assert!(conforms(rate, &case.counted), "{:?}", case.counted);
            Ok(())
        })
    });
    if let Err(e) = result {
        panic!("{e}");
    }
}

/// A store with two rate limits (hourly, so that nothing comes back while the test runs) and one with slots.
async fn three_scopes(r: &Redis, limits: [u64; 3]) -> (Store, redis::aio::MultiplexedConnection, [Scope; 3]) {
    let hourly = |burst| Rate::new(1, Duration::from_secs(3600), burst);
    let slots = Scope::new(GuardKind::Concurrency, "c", "c", [limits[2], HOUR, 0, 0]);
    let scopes = [scope("a", hourly(limits[0])), scope("b", hourly(limits[1])), slots];
    (store(&r.url(), 1).await, plain(r).await, scopes)
}

/// Everything that is kept of a scope.
async fn dump(store: &Store, plain: &redis::aio::MultiplexedConnection, scope: &Scope) -> Vec<Vec<u8>> {
    let mut c = plain.clone();
    let mut out = Vec::new();
    let [state, rest @ ..] = store.keys().guard(0, &scope.hash);
    let tat: Option<Vec<u8>> = c.hget(state, "tat").await.unwrap();
    out.push(tat.unwrap_or_default());
    for key in rest {
        let raw: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(&mut c).await.unwrap();
        out.push(raw.unwrap_or_default());
    }
    out
}

// Shows: S-05
#[tokio::test]
async fn a_job_gets_all_of_its_guards_or_none_is_counted() {
    let r = redis().await;
    for refusing in 0..3usize {
        let mut limits = [5, 5, 5];
        limits[refusing] = 1;
        let (store, plain, scopes) = three_scopes(&r, limits).await;
        let first = store.guard(0, None, HOUR, &scopes, &[ask("first/1", 1, &[0, 1, 2])]).await.unwrap();
        assert!(matches!(first.replies[..], [GuardReply::Passes(_)]));
        let mut before = Vec::new();
        for s in &scopes {
            before.push(dump(&store, &plain, s).await);
        }
        let second = store.guard(0, None, HOUR, &scopes, &[ask("second/1", 2, &[0, 1, 2])]).await.unwrap();
        match second.replies[..] {
            [GuardReply::WaitsUntil { scope, .. } | GuardReply::WaitsInLine { scope, .. }] => {
                assert_eq!(scope, refusing);
            }
            ref other => panic!("{other:?}"),
        }
        for (n, s) in scopes.iter().enumerate().filter(|(n, _)| *n != refusing) {
            assert_eq!(dump(&store, &plain, s).await, before[n], "{n} counted what {refusing} refused");
        }
    }
}

// Shows: S-07
#[tokio::test]
async fn a_refused_claim_gives_all_back_and_a_second_delivery_nothing() {
    let r = redis().await;
    let (store, plain, scopes) = three_scopes(&r, [2, 2, 2]).await;
    let guard = async |items: &[GuardItem<'_>]| store.guard(0, None, HOUR, &scopes, items).await.unwrap();
    // Two deliveries of one job in one call: the second holds nothing, and gives back nothing.
    let both = guard(&[ask("a/1", 1, &[2]), ask("a/1", 1, &[2])]).await;
    assert_eq!(both.replies, [GuardReply::Passes(vec![1]), GuardReply::Passes(vec![0])]);
    let later = guard(&[ask("a/1", 1, &[2])]).await;
    assert_eq!(later.replies, [GuardReply::Passes(vec![0])]);
    let before = dump(&store, &plain, &scopes[2]).await;
    guard(&[release("a/1", &later.token, None, GuardOutcome::Undone, &[2])]).await;
    assert_eq!(
        dump(&store, &plain, &scopes[2]).await,
        before,
        "a second delivery freed what an attempt holds"
    );
    // The reply was lost: the repeated call is told that it made it.
    let made = guard(&[ask("b/1", 1, &[2])]).await;
    store.repeat_last_call();
    let again = guard(&[ask("b/1", 1, &[2])]).await;
    assert_eq!((again.token.as_str(), &again.replies), (made.token.as_str(), &made.replies));
    for (member, token) in [("a/1", &both.token), ("b/1", &made.token)] {
        guard(&[release(member, token, None, GuardOutcome::Undone, &[2])]).await;
    }
    // A rate limit's token comes back as long as it was the last.
    let mut marks = BTreeMap::new();
    for member in ["c/1", "d/1"] {
        let answer = guard(&[ask(member, 1, &[0])]).await;
        let [GuardReply::Passes(n)] = &answer.replies[..] else { panic!("{:?}", answer.replies) };
        marks.insert(member, n[0]);
    }
    for member in ["d/1", "c/1"] {
        guard(&[release(member, "t", Some(marks[member]), GuardOutcome::Undone, &[0])]).await;
    }
    let answer = guard(&[ask("e/1", 1, &[0]), ask("f/1", 1, &[0]), ask("g/1", 1, &[0])]).await;
    let passes = answer.replies.iter().filter(|r| matches!(r, GuardReply::Passes(_))).count();
    assert_eq!(passes, 2, "{:?}", answer.replies);
    guard(&[item(GuardAct::Tend { session: "".into() }, "", &[0, 1, 2])]).await;
    nothing_left(&store, &plain, &scopes[2]).await;
}

// Shows: S-05
#[tokio::test]
async fn a_token_comes_back_once_however_often_the_call_is_repeated() {
    let r = redis().await;
    // With a slot that says what was counted, and without one.
    for asked in [vec![0, 2], vec![0]] {
        let (store, plain, scopes) = three_scopes(&r, [5, 5, 5]).await;
        let guard = async |items: &[GuardItem<'_>]| store.guard(0, None, HOUR, &scopes, items).await.unwrap();
        let made = guard(&["a/1", "b/1", "c/1"].map(|m| ask(m, 1, &asked))).await;
        let numbers: Vec<u64> = made
            .replies
            .iter()
            .map(|r| match r {
                GuardReply::Passes(numbers) => numbers[0],
                other => panic!("{other:?}"),
            })
            .collect();
        let undo = |n: usize| {
            let member = ["a/1", "b/1", "c/1"][n];
            release(member, &made.token, Some(numbers[n]), GuardOutcome::Undone, &asked)
        };
        let tat = async || dump(&store, &plain, &scopes[0]).await[0].clone();
        let before = tat().await;
        guard(&[undo(2), undo(1)]).await;
        let after = tat().await;
        let given = [&before, &after].map(|t| std::str::from_utf8(t).unwrap().parse::<u64>().unwrap());
        assert_eq!(given[0] - given[1], 2 * HOUR * 1000, "{asked:?}");
        store.repeat_last_call();
        guard(&[undo(2), undo(1)]).await;
        assert_eq!(tat().await, after, "given back twice, {asked:?}");
    }
}

// Shows: S-05
#[tokio::test]
async fn a_booked_start_that_is_refused_gives_back_no_token_of_another() {
    let r = redis().await;
    let (store, plain) = (store(&r.url(), 1).await, plain(&r).await);
    let scopes = [
        scope("a", Rate::new(1, Duration::from_millis(100), 1)),
        Scope::new(GuardKind::Concurrency, "c", "c", [5, HOUR, 0, 0]),
    ];
    let guard = async |items: &[GuardItem<'_>]| store.guard(0, None, HOUR, &scopes, items).await.unwrap();
    let first = guard(&[ask("first/1", 1, &[0, 1])]).await;
    assert!(matches!(first.replies[..], [GuardReply::Passes(_)]), "{:?}", first.replies);
    let booked = guard(&[ask("booked/1", 2, &[0, 1])]).await;
    let [GuardReply::WaitsUntil { at_ms, .. }] = booked.replies[..] else { panic!("{:?}", booked.replies) };
    // Its slot has come, and its interval is over: another one conforms in the same call.
    wait("the slot to pass", async || store.now_ms().await.unwrap() > at_ms + 110).await;
    let both = guard(&[ask("booked/1", 2, &[0, 1]), ask("other/1", 3, &[0, 1])]).await;
    assert!(both.replies.iter().all(|r| matches!(r, GuardReply::Passes(_))), "{:?}", both.replies);
    let before = dump(&store, &plain, &scopes[0]).await[0].clone();
    guard(&[release("booked/1", &both.token, None, GuardOutcome::Undone, &[0, 1])]).await;
    assert_eq!(dump(&store, &plain, &scopes[0]).await[0], before, "two starts in one interval");
    guard(&[release("other/1", &both.token, None, GuardOutcome::Undone, &[0, 1])]).await;
    assert_ne!(dump(&store, &plain, &scopes[0]).await[0], before, "what was counted last comes back");
}

// Shows: J-02
#[tokio::test]
async fn the_same_backlog_gives_the_same_admitted_set() {
    let r = redis().await;
    let backlog: Vec<(String, u64)> = (0..150u64).map(|n| (format!("j{n:03}/1"), 1000 + n / 50)).collect();
    assert!(backlog.len() <= GROUP_CAP);
    let mut admitted = Vec::new();
    for _ in 0..2 {
        let (store, _, scopes) = three_scopes(&r, [60, 60, 40]).await;
        let asks: Vec<_> = backlog.iter().map(|(m, at)| ask(m, *at, &[0, 2])).collect();
        let answer = store.guard(0, None, HOUR, &scopes, &asks).await.unwrap();
        let of = backlog.iter().zip(answer.replies);
        let passed = of.filter(|(_, r)| matches!(r, GuardReply::Passes(_))).map(|((m, _), _)| m.clone());
        admitted.push(passed.collect::<Vec<_>>());
    }
    assert_eq!(admitted[0].len(), 40);
    assert_eq!(admitted[0], admitted[1]);

    // Who stands in line goes in the order of arrival, ties by name, in whatever order they came to stand there.
    let mut orders = Vec::new();
    for seed in [1usize, 7] {
        let (store, _, scopes) = three_scopes(&r, [60, 60, 1]).await;
        let guard = async |items: &[GuardItem<'_>]| store.guard(0, None, HOUR, &scopes, items).await.unwrap();
        let holder = guard(&[ask("holder/1", 1, &[2])]).await.token;
        // A permutation: 7 and 149 have no common factor.
        for n in 0..149 {
            let (m, at) = &backlog[n * seed % 149];
            guard(&[ask(m, *at, &[2])]).await;
        }
        let mut order = Vec::new();
        let mut next = guard(&[release("holder/1", &holder, None, GuardOutcome::WentWell, &[2])]).await.woken;
        while let Some(woken) = next.pop() {
            assert!(next.is_empty());
            let taken = guard(&[ask(&woken.member, 1, &[2])]).await;
            assert_eq!(taken.replies, [GuardReply::Passes(vec![1])]);
            next = guard(&[release(&woken.member, &taken.token, None, GuardOutcome::WentWell, &[2])])
                .await
                .woken;
            order.push(woken.member);
        }
        assert_eq!(order.len(), 149);
        orders.push(order);
    }
    assert_eq!(orders[0], orders[1]);
    assert!(orders[0].is_sorted(), "arrival goes with the name here");
}

/// How often Redis was told to do what so far, by scripts and from outside.
async fn commands(plain: &redis::aio::MultiplexedConnection) -> BTreeMap<String, u64> {
    let mut c = plain.clone();
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut c).await.unwrap();
    let read = |line: &str| {
        let (name, fields) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let calls = fields.split(',').find_map(|f| f.strip_prefix("calls="))?;
        Some((name.to_owned(), calls.parse().ok()?))
    };
    stats.lines().filter_map(read).filter(|(name, _)| name != "info").collect()
}

/// What was done since.
async fn since(
    plain: &redis::aio::MultiplexedConnection,
    before: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let now = commands(plain).await;
    let more = now.into_iter().map(|(name, n)| (name.clone(), n - before.get(&name).unwrap_or(&0)));
    more.filter(|(_, n)| *n > 0).collect()
}

// Shows: S-05
#[tokio::test]
async fn ten_thousand_waiters_cost_a_freed_slot_and_other_keys_nothing() {
    let r = redis().await;
    let (store, plain) = (store(&r.url(), 1).await, plain(&r).await);
    let key = |name: &str| Scope::new(GuardKind::Concurrency, "key", name, [1, HOUR, 0, 0]);
    let guard = async |s: &Scope, items: &[GuardItem<'_>]| {
        store.guard(0, None, HOUR, std::slice::from_ref(s), items).await.unwrap()
    };
    let mut costs = Vec::new();
    for n in [100usize, 10_000] {
        let crowd = key(&format!("crowd-{n}"));
        let mut holder = ("holder/1".to_owned(), guard(&crowd, &[ask("holder/1", 1, &[0])]).await.token);
        let members: Vec<String> = (0..n).map(|m| format!("w{m:05}/1")).collect();
        for group in members.chunks(GROUP_CAP) {
            let asks: Vec<_> = group.iter().map(|m| ask(m, 2, &[0])).collect();
            let answer = guard(&crowd, &asks).await;
            assert!(answer.replies.iter().all(|r| matches!(r, GuardReply::WaitsInLine { .. })));
        }
        // Each freed slot, and the start of who was woken.
        let before = commands(&plain).await;
        for want in &members[..80] {
            let woken = guard(&crowd, &[release(&holder.0, &holder.1, None, GuardOutcome::WentWell, &[0])])
                .await
                .woken;
            assert_eq!(woken.iter().map(|w| &w.member).collect::<Vec<_>>(), [want]);
            let taken = guard(&crowd, &[ask(want, 2, &[0])]).await;
            assert_eq!(taken.replies, [GuardReply::Passes(vec![1])]);
            holder = (want.clone(), taken.token);
        }
        let freed = since(&plain, &before).await;
        let other = key(&format!("other-{n}"));
        let before = commands(&plain).await;
        for _ in 0..80 {
            let taken = guard(&other, &[ask("o/1", 1, &[0])]).await;
            guard(&other, &[release("o/1", &taken.token, None, GuardOutcome::WentWell, &[0])]).await;
        }
        costs.push((freed, since(&plain, &before).await));
    }
    // None of them looks at more than the first in line: `hgetall` would.
    assert_eq!(costs[0], costs[1], "with 100 waiters, and with 10 000");
    assert!(!costs[1].0.contains_key("hgetall"), "{:?}", costs[1]);
}
