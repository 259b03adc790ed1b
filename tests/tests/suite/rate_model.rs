//! Random calls of a rate limit: what the script lets start, and when, is judged by the pure model of the domain and by a library that
//! is not ours (`governor`, on a clock of its own), start by start: each conforms at the moment at which it was let in.

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
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, Store},
};

use super::{
    guard_slots::{ask, item, plain, release, store},
    scripts::redis,
};

const HOUR: u64 = 3_600_000;
const JOBS: usize = 12;

pub(super) fn scope(value: &str, rate: Rate) -> Scope {
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
pub(super) fn conforms(rate: Rate, starts: &[u64]) -> bool {
    let mut oracle = Oracle::new(rate, starts.first().copied().unwrap_or(0));
    starts.iter().all(|s| oracle.starts_at(*s))
}

struct Case {
    store: Store,
    plain: redis::aio::MultiplexedConnection,
    rate: Rate,
    scope: Scope,
    /// What has started and was not given back, in order (us).
    starts: Vec<(String, u64)>,
    /// The token by which each job that runs was counted.
    tokens: BTreeMap<String, String>,
    /// Who started last, and may give its token back.
    last: Option<String>,
}

/// What is kept of the limit, and of one member (us; below zero: it has started).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stored {
    tat: u64,
    book: u64,
    slot: Option<i64>,
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
        is_repeated: bool,
    },
    End {
        job: usize,
    },
    Tend,
}

fn any_op() -> impl Strategy<Value = Op> {
    let job = 0..JOBS;
    let is_repeated = prop::bool::weighted(0.2);
    prop_oneof![
        8 => (job.clone(), is_repeated).prop_map(|(job, is_repeated)| Op::Ask { job, is_repeated }),
        2 => job.clone().prop_map(|job| Op::Insist { job }),
        2 => (job.clone(), is_repeated).prop_map(|(job, is_repeated)| Op::Undo { job, is_repeated }),
        3 => job.prop_map(|job| Op::End { job }),
        1 => Just(Op::Tend),
    ]
}

impl Case {
    async fn call(&self, items: &[GuardItem<'_>]) -> Result<Guarded, TestCaseError> {
        let scopes = std::slice::from_ref(&self.scope);
        self.store.guard(0, None, HOUR, scopes, items).await.map_err(|e| TestCaseError::fail(e.to_string()))
    }

    async fn stored(&self, member: &str) -> Stored {
        let mut c = self.plain.clone();
        let [state, _, wait, _] = self.store.keys().guard(0, &self.scope.hash);
        let tats: [Option<u64>; 3] =
            redis::cmd("HMGET").arg(state).arg(&["tat", "late", "book"]).query_async(&mut c).await.unwrap();
        let slot: Option<f64> = c.zscore(wait, member).await.unwrap();
        let [tat, late, book] = tats.map(Option::unwrap_or_default);
        Stored { tat, book: tat.max(late).max(book), slot: slot.map(|s| s as i64) }
    }

    /// Whether a start at that moment would conform, after all that started before it.
    fn would_conform(&self, us: u64) -> bool {
        let mut all: Vec<u64> = self.starts.iter().map(|(_, at)| *at).collect();
        // The store's clock was read in milliseconds.
        all.push(all.last().map_or(us, |last| us.max(*last)));
        conforms(self.rate, &all)
    }

    async fn ask(&mut self, job: usize, is_repeated: bool) -> Result<bool, TestCaseError> {
        let member = format!("job-{job}/1");
        let before = self.stored(&member).await;
        let asked = [ask(&member, 1, &[0])];
        let answer = self.call(&asked).await?;
        let after = self.stored(&member).await;
        let Some(slot) = after.slot else { return Err(TestCaseError::fail("nothing says what it was told")) };
        let passes = match answer.replies.as_slice() {
            [GuardReply::Passes(numbers)] if before.slot.is_some_and(|s| s < 0) => {
                prop_assert_eq!(numbers.as_slice(), [0], "another delivery of what has started");
                prop_assert_eq!(after, before);
                true
            }
            [GuardReply::Passes(numbers)] => {
                prop_assert_eq!(numbers.as_slice(), [1]);
                prop_assert!(slot < 0, "it started, and nothing says so");
                let at = slot.unsigned_abs();
                prop_assert_eq!(at / 1000, answer.now_ms);
                prop_assert!(
                    before.slot.is_none_or(|s| s.unsigned_abs() <= at),
                    "it started before its moment"
                );
                prop_assert_eq!(Some(after.tat), self.rate.start(before.tat, at), "the model of the domain");
                self.has_started(&member, at, answer.token.clone())?;
                true
            }
            [GuardReply::WaitsUntil { scope: 0, at_ms }] => {
                prop_assert_eq!(*at_ms, slot.unsigned_abs().div_ceil(1000));
                prop_assert!(slot > 0 && *at_ms > answer.now_ms, "its moment has come");
                prop_assert_eq!(after.tat, before.tat, "what does not start counts nothing");
                self.is_told(before, after, answer.now_ms * 1000)?;
                false
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        if !is_repeated {
            return Ok(passes);
        }
        self.store.repeat_last_call();
        let again = self.call(&asked).await?;
        let now = self.stored(&member).await;
        // Its moment may have come meanwhile; where others started late it is told another one, perhaps of the same millisecond.
        let has_come = !passes && again.now_ms * 1000 + 999 >= slot.unsigned_abs();
        if again.replies == answer.replies {
            prop_assert!(now == after || has_come, "a repeated call counted: {after:?}, then {now:?}");
            return Ok(passes);
        }
        prop_assert!(has_come, "{:?}", again.replies);
        let (true, Some(at)) = (now.slot < Some(0), now.slot) else { return Ok(false) };
        self.has_started(&member, at.unsigned_abs(), again.token)?;
        Ok(true)
    }

    fn has_started(&mut self, member: &str, at: u64, token: String) -> Result<(), TestCaseError> {
        prop_assert!(self.would_conform(at), "the library would not let it start");
        self.starts.push((member.to_owned(), at));
        self.tokens.insert(member.to_owned(), token);
        self.last = Some(member.to_owned());
        Ok(())
    }

    /// A moment was told for a reason. `now_us`: not after that of the call.
    fn is_told(&self, before: Stored, after: Stored, now_us: u64) -> Result<(), TestCaseError> {
        let slot = after.slot.unwrap_or_default().unsigned_abs();
        match before.slot {
            // It came before its moment.
            Some(told) if told.unsigned_abs() >= now_us && told > 0 && before == after => {}
            // It came for its moment.
            Some(_) => {
                prop_assert!(!self.would_conform(now_us), "it came for its moment, and could have started")
            }
            None => {
                prop_assert_eq!(
                    (slot, after.book),
                    self.rate.promise(before.book),
                    "the model of the domain"
                );
                if before.book == before.tat {
                    prop_assert!(
                        !self.would_conform(slot - 1000),
                        "it could have started a millisecond before"
                    );
                    prop_assert!(self.would_conform(slot), "the library would not let it start then");
                }
            }
        }
        Ok(())
    }

    async fn undo(&mut self, job: usize, is_repeated: bool) -> Result<(), TestCaseError> {
        let member = format!("job-{job}/1");
        let Some(token) = self.tokens.remove(&member) else { return Ok(()) };
        let before = self.stored(&member).await;
        let undo = [release(&member, &token, None, GuardOutcome::Undone, &[0])];
        self.call(&undo).await?;
        let after = self.stored(&member).await;
        prop_assert!(
            after.slot.is_some_and(|s| s > 0),
            "it comes again before those who were promised nothing"
        );
        let is_last = self.last.as_ref() == Some(&member);
        prop_assert_eq!(after.tat, before.tat - if is_last { self.rate.interval_us } else { 0 });
        if is_last {
            self.starts.pop();
            self.last = None;
        }
        if is_repeated {
            self.store.repeat_last_call();
            self.call(&undo).await?;
            prop_assert_eq!(self.stored(&member).await, after, "given back twice");
        }
        Ok(())
    }

    async fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match op {
            Op::Ask { job, is_repeated } => self.ask(*job, *is_repeated).await.map(drop),
            Op::Insist { job } => {
                while !self.ask(*job, false).await? {}
                Ok(())
            }
            Op::Undo { job, is_repeated } => self.undo(*job, *is_repeated).await,
            Op::End { job } => {
                let member = format!("job-{job}/1");
                let Some(token) = self.tokens.remove(&member) else { return Ok(()) };
                let before = self.stored(&member).await;
                self.call(&[release(&member, &token, None, GuardOutcome::WentWell, &[0])]).await?;
                let want = Stored { slot: None, ..before };
                prop_assert_eq!(self.stored(&member).await, want, "an end gives no token back");
                Ok(())
            }
            Op::Tend => {
                let before = self.stored("").await;
                self.call(&[item(GuardAct::Tend { session: "".into() }, "", &[0])]).await?;
                let after = self.stored("").await;
                if after.tat == 0 {
                    // Nothing of the past matters any more, and nothing of it is kept.
                    prop_assert!(self.tokens.is_empty());
                    self.starts.clear();
                    self.last = None;
                } else {
                    prop_assert_eq!(after, before);
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
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/rate_model.txt");
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
                starts: Vec::new(),
                tokens: BTreeMap::new(),
                last: None,
            };
            for op in &ops {
                case.step(op).await?;
            }
            Ok(())
        })
    });
    if let Err(e) = result {
        panic!("{e}");
    }
}
