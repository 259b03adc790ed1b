//! Rate limits in the long run, on a clock that the test moves: it moves what the store knows of them into the past, or back. Jobs
//! come when they were told to, some milliseconds late as brokers deliver them; what starts, and when, is judged by a library that is not ours.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use redis::AsyncCommands;
use surety_common::{
    domain::guard::{GuardKind, Rate},
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Scope, Store, group::GROUP_CAP, guards::OFFER},
};

use super::{
    guard_slots::{ask, item, plain, release, store},
    rate_model::{conforms, scope},
    scripts::{Redis, redis},
};

const HOUR: u64 = 3_600_000;

/// Moves what is kept of rate limits (state, wait, ...) so many microseconds into the past, or less than none into the future.
const MOVE: &str = r"
for k = 1, #KEYS, 2 do
  for _, field in ipairs({ 'tat', 'book', 'late' }) do
    local at = redis.call('HGET', KEYS[k], field)
    if at then redis.call('HSET', KEYS[k], field, string.format('%.0f', tonumber(at) - ARGV[1])) end
  end
  local all = redis.call('ZRANGE', KEYS[k + 1], 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do
    local at = tonumber(all[i + 1])
    redis.call('ZADD', KEYS[k + 1], string.format('%.0f', at < 0 and at + ARGV[1] or at - ARGV[1]), all[i])
  end
end";

struct Flow {
    store: Store,
    plain: redis::aio::MultiplexedConnection,
    scopes: Vec<Scope>,
    /// So far the clock was moved (us).
    moved_us: u64,
    /// How late deliveries come (us).
    late_us: u64,
    /// Starts by scope, in order (us, on the clock that was moved).
    starts: Vec<Vec<u64>>,
    /// How often each job asked.
    asked: BTreeMap<String, u32>,
}

impl Flow {
    async fn new(r: &Redis, scopes: Vec<Scope>, late_us: u64) -> Self {
        Self {
            store: store(&r.url(), 1).await,
            plain: plain(r).await,
            starts: vec![Vec::new(); scopes.len()],
            scopes,
            // It may be moved back, too.
            moved_us: 24 * HOUR * 1000,
            late_us,
            asked: BTreeMap::new(),
        }
    }

    async fn now_us(&self) -> u64 {
        let mut c = self.plain.clone();
        let (s, us): (u64, u64) = redis::cmd("TIME").query_async(&mut c).await.unwrap();
        s * 1_000_000 + us + self.moved_us
    }

    /// Makes it that time, or that of the last start where that is later. What passed meanwhile, because the machine is busy with
    /// something else, did not pass: the clock is moved back by it.
    async fn go_to(&mut self, us: u64) {
        let last = self.starts.iter().filter_map(|s| s.last()).max().copied().unwrap_or(0);
        let by = us.max(last) as i64 - self.now_us().await as i64;
        self.moved_us = self.moved_us.checked_add_signed(by).unwrap();
        let script = redis::Script::new(MOVE);
        let mut call = script.prepare_invoke();
        for s in self.scopes.iter().filter(|s| s.kind == GuardKind::Rate) {
            let [state, _, wait, _] = self.store.keys().guard(0, &s.hash);
            call.key(state).key(wait);
        }
        let _: () = call.arg(by).invoke_async(&mut self.plain.clone()).await.unwrap();
    }

    /// Asks once: the moment at which it is to come again (us), or `None` where it starts. A start ends at once.
    async fn ask(&mut self, job: &str, of: &[u16]) -> Option<u64> {
        *self.asked.entry(job.to_owned()).or_default() += 1;
        let answer = self.store.guard(0, None, HOUR, &self.scopes, &[ask(job, 1, of)]).await.unwrap();
        match answer.replies.as_slice() {
            [GuardReply::WaitsUntil { at_ms, .. }] => Some(at_ms * 1000 + self.moved_us),
            [GuardReply::Passes(_)] => {
                for s in of {
                    let [_, _, wait, _] = self.store.keys().guard(0, &self.scopes[usize::from(*s)].hash);
                    let at: f64 = self.plain.zscore(wait, job).await.unwrap();
                    assert!(at < 0.0, "it started, and nothing says when");
                    self.starts[usize::from(*s)].push((-at) as u64 + self.moved_us);
                }
                let end = release(job, &answer.token, None, GuardOutcome::WentWell, of);
                self.store.guard(0, None, HOUR, &self.scopes, &[end]).await.unwrap();
                None
            }
            other => panic!("{other:?}"),
        }
    }

    /// All of them ask now, and again when they were told to, not before `away_us`, until all have started.
    async fn run(&mut self, jobs: &[(String, Vec<u16>)], away_us: u64) {
        let from = self.now_us().await;
        let mut to_come: BinaryHeap<_> = (0..jobs.len()).map(|n| Reverse((from, n))).collect();
        let mut n = 0;
        while let Some(Reverse((at, job))) = to_come.pop() {
            n += 1;
            assert!(n < 100 * jobs.len() as u64, "some never start: {}", to_come.len());
            self.go_to(at).await;
            let (member, of) = &jobs[job];
            if let Some(told) = self.ask(member, of).await {
                // The same numbers in every run.
                to_come.push(Reverse(((told + n * 7919 % (self.late_us + 1)).max(from + away_us), job)));
            }
        }
    }

    /// Does something to the one scope; who is woken by it.
    async fn woken(&self, act: GuardAct<'static>) -> Vec<String> {
        let answer = self.store.guard(0, None, HOUR, &self.scopes, &[item(act, "", &[0])]).await.unwrap();
        assert!(answer.woken.iter().all(|w| w.ack_subject.is_empty()), "{:?}", answer.woken);
        answer.woken.into_iter().map(|w| w.member).collect()
    }

    fn most_asked(&self) -> u32 {
        self.asked.values().copied().max().unwrap_or(0)
    }

    fn mean_asked(&self) -> f64 {
        f64::from(self.asked.values().sum::<u32>()) / self.asked.len() as f64
    }

    fn took(&self, s: usize) -> Duration {
        let starts = &self.starts[s];
        Duration::from_micros(starts.last().unwrap() - starts.first().unwrap())
    }
}

/// What is promised. Where there is no burst it depends on how late deliveries come.
struct Bounds {
    /// How much longer than the limit wants.
    longer: f64,
    most_asked: u32,
    mean_asked: f64,
}

impl Bounds {
    fn of(burst: u64, is_mixed: bool) -> Self {
        match (burst, is_mixed) {
            (1, _) => Self { longer: 1.35, most_asked: 50, mean_asked: 7.0 },
            (_, true) => Self { longer: 1.15, most_asked: 50, mean_asked: 5.0 },
            (_, false) => Self { longer: 1.1, most_asked: 6, mean_asked: 4.0 },
        }
    }

    fn check(&self, flow: &Flow, burst: u64) {
        let (most, mean) = (flow.most_asked(), flow.mean_asked());
        assert!(
            most <= self.most_asked && mean <= self.mean_asked,
            "burst {burst}: asked {most}, {mean} on average"
        );
    }
}

fn jobs(n: usize, of: impl Fn(usize) -> Vec<u16>) -> Vec<(String, Vec<u16>)> {
    (0..n).map(|n| (format!("j{n:04}/1"), of(n))).collect()
}

fn per_second(limit: u64, burst: u64) -> Rate {
    Rate::new(limit, Duration::from_secs(1), burst)
}

// Shows: S-05
#[tokio::test]
async fn jobs_whose_moments_passed_while_no_worker_was_there_start_at_the_limit_too() {
    let r = redis().await;
    for burst in [1, 4] {
        let rate = per_second(10, burst);
        let mut flow = Flow::new(&r, vec![scope("a", rate)], 5000).await;
        // As long as the fleet is away all moments but the last ten pass.
        flow.run(&jobs(200, |_| vec![0]), 19_000_000).await;
        let starts = &flow.starts[0];
        assert_eq!(starts.len(), 200);
        assert!(conforms(rate, starts), "burst {burst}: {starts:?}");
        // First the burst; a second less than 19 nobody; then the others.
        let want = Duration::from_millis(19_000 + 100 * (200 - 2 * burst));
        let bounds = Bounds::of(burst, false);
        assert!(flow.took(0) < want.mul_f64(bounds.longer), "burst {burst}: {:?} for {want:?}", flow.took(0));
        bounds.check(&flow, burst);
    }
}

// Shows: S-05
#[tokio::test]
async fn jobs_with_two_limits_that_are_both_taken_for_long_all_start_and_use_both() {
    let r = redis().await;
    // All jobs have both limits, or some both and some one.
    for (burst, is_mixed) in [(1, false), (2, false), (2, true), (10, true)] {
        let rates = [per_second(10, burst), per_second(8, burst)];
        let mut flow = Flow::new(&r, vec![scope("a", rates[0]), scope("b", rates[1])], 5000).await;
        let of = |n: usize| match n * 7 % 3 {
            0 if is_mixed => vec![0],
            1 if is_mixed => vec![1],
            _ => vec![0, 1],
        };
        // More than what was once forgotten: 20 s.
        flow.run(&jobs(300, of), 0).await;
        for (s, rate) in rates.into_iter().enumerate() {
            let starts = &flow.starts[s];
            assert_eq!(starts.len(), if is_mixed { 200 } else { 300 });
            assert!(conforms(rate, starts), "burst {burst}: {starts:?}");
        }
        let want = Duration::from_millis(125 * (flow.starts[1].len() as u64 - burst));
        let bounds = Bounds::of(burst, is_mixed);
        assert!(flow.took(1) < want.mul_f64(bounds.longer), "burst {burst}: {:?} for {want:?}", flow.took(1));
        bounds.check(&flow, burst);
    }
}

// Shows: S-05
#[tokio::test]
async fn a_slot_that_comes_free_wakes_one_job_of_its_line_also_where_a_rate_limit_lets_it_wait() {
    let r = redis().await;
    const N: usize = 1000;
    let rate = per_second(50, 5);
    let slots = Scope::new(GuardKind::Concurrency, "c", "k", [3, 5000, 0, 0]);
    let mut flow = Flow::new(&r, vec![scope("a", rate), slots], 0).await;
    let members: Vec<String> = (0..N).map(|n| format!("j{n:04}/1")).collect();
    let mut running = Vec::new();
    for group in members.chunks(GROUP_CAP) {
        let asks: Vec<_> = group.iter().map(|m| ask(m, 1, &[0, 1])).collect();
        let answer = flow.store.guard(0, None, HOUR, &flow.scopes, &asks).await.unwrap();
        for (m, reply) in group.iter().zip(&answer.replies) {
            match reply {
                GuardReply::Passes(_) => running.push((m.clone(), answer.token.clone())),
                other => assert!(matches!(other, GuardReply::WaitsInLine { scope: 1, .. }), "{other:?}"),
            }
        }
    }
    assert_eq!(running.len(), 3);
    let from = flow.now_us().await;
    let mut to_come: BinaryHeap<Reverse<(u64, String)>> = BinaryHeap::new();
    let (mut ended, mut asked) = (0, 0);
    while ended < N {
        for (member, token) in std::mem::take(&mut running) {
            let end = release(&member, &token, None, GuardOutcome::WentWell, &[0, 1]);
            let woken = flow.store.guard(0, None, HOUR, &flow.scopes, &[end]).await.unwrap().woken;
            ended += 1;
            assert!(woken.len() <= 1, "{} are woken for one slot", woken.len());
            for w in woken {
                to_come.push(Reverse((flow.now_us().await, w.member)));
            }
        }
        let Some(Reverse((at, member))) = to_come.pop() else { continue };
        flow.go_to(at).await;
        asked += 1;
        let asks = [ask(&member, 1, &[0, 1])];
        let answer = flow.store.guard(0, None, HOUR, &flow.scopes, &asks).await.unwrap();
        assert_eq!(answer.woken, [], "what it was offered is kept for it until its moment");
        match answer.replies.as_slice() {
            [GuardReply::Passes(_)] => running.push((member, answer.token)),
            [GuardReply::WaitsUntil { scope: 0, at_ms }] => {
                to_come.push(Reverse((at_ms * 1000 + flow.moved_us, member)));
            }
            other => panic!("{member}: {other:?}"),
        }
    }
    let took = Duration::from_micros(flow.now_us().await - from);
    let want = Duration::from_millis(20 * (N as u64 - 5));
    assert!(took < want.mul_f64(1.1), "{took:?} instead of {want:?}: starts were counted that were none");
    assert!(asked < 3 * N, "{asked} deliveries");
}

// Shows: S-05
#[tokio::test]
async fn a_slot_is_kept_for_a_near_moment_of_a_rate_limit_and_goes_to_the_next_for_a_far_one() {
    let r = redis().await;
    for (per, is_near) in [(1, true), (60, false)] {
        let rate = Rate::new(1, Duration::from_secs(per), 1);
        let slots = Scope::new(GuardKind::Concurrency, "c", "k", [1, 5000, 0, 0]);
        let flow = Flow::new(&r, vec![scope("a", rate), slots], 0).await;
        let guard = async |items: &[GuardItem<'_>]| {
            flow.store.guard(0, None, HOUR, &flow.scopes, items).await.unwrap()
        };
        let first = guard(&[ask("first/1", 1, &[0, 1])]).await;
        guard(&[ask("limited/1", 2, &[0, 1]), ask("other/1", 3, &[1])]).await;
        let end = release("first/1", &first.token, None, GuardOutcome::WentWell, &[0, 1]);
        assert_eq!(guard(&[end]).await.woken[0].member, "limited/1");
        let asked = guard(&[ask("limited/1", 2, &[0, 1])]).await;
        assert!(
            matches!(asked.replies[..], [GuardReply::WaitsUntil { scope: 0, .. }]),
            "{:?}",
            asked.replies
        );
        let woken: Vec<&str> = asked.woken.iter().map(|w| w.member.as_str()).collect();
        assert_eq!(woken, if is_near { vec![] } else { vec!["other/1"] });
    }
}

// Shows: S-05
#[tokio::test]
async fn what_another_partition_offered_is_kept_for_a_near_moment_too() {
    let r = redis().await;
    let slots = Scope::new(GuardKind::Concurrency, "c", "k", [1, 5000, 0, 0]);
    let flow = Flow::new(&r, vec![slots], 0).await;
    let guard =
        async |items: &[GuardItem<'_>]| flow.store.guard(0, None, HOUR, &flow.scopes, items).await.unwrap();
    let first = guard(&[ask("first/1", 1, &[0])]).await;
    guard(&[ask("a/1", 2, &[0]), ask("b/1", 3, &[0])]).await;
    let end = release("first/1", &first.token, None, GuardOutcome::WentWell, &[0]);
    assert_eq!(guard(&[end]).await.woken[0].member, "a/1");
    let keep = |m: &str, at_ms| release(m, OFFER, Some(at_ms), GuardOutcome::Kept, &[0]);
    assert_eq!(guard(&[keep("a/1", first.now_ms + 2000)]).await.woken, []);
    let mut c = flow.plain.clone();
    let [_, hold, wait, _] = flow.store.keys().guard(0, &flow.scopes[0].hash);
    let kept: Vec<u8> = c.hget(&hold, "a/1").await.unwrap();
    let until = u64::from_le_bytes([kept[0], kept[1], kept[2], kept[3], kept[4], kept[5], 0, 0]);
    assert_eq!(until, first.now_ms + 2000 + 5000, "a little longer than to its moment");
    // Who only stood in line waits elsewhere from now on.
    assert_eq!(guard(&[keep("b/1", first.now_ms + 2000)]).await.woken, []);
    assert!(!c.exists::<_, bool>(&wait).await.unwrap());
    assert_eq!(guard(&[ask("a/1", 2, &[0])]).await.replies, [GuardReply::Passes(vec![1])]);
}

// Shows: S-05
#[tokio::test]
async fn a_limit_that_is_started_over_wakes_whom_it_promised_a_moment_and_they_come_before_others() {
    let r = redis().await;
    let rate = Rate::new(1, Duration::from_secs(60), 2);
    let mut flow = Flow::new(&r, vec![scope("a", rate)], 0).await;
    for n in 0..4 {
        let told = flow.ask(&format!("j{n}/1"), &[0]).await;
        assert_eq!(told.is_none(), n < 2);
    }
    assert_eq!(flow.woken(GuardAct::Reset).await, ["j2/1", "j3/1"]);
    let told = flow.ask("new/1", &[0]).await.unwrap();
    assert!(told < flow.now_us().await + 61_000_000, "behind two, not behind what was counted before");
    for (job, of) in [("j3/1", None), ("j2/1", None), ("other/1", Some(true))] {
        assert_eq!(flow.ask(job, &[0]).await.map(|at| at > told), of, "{job}");
    }
    // A little later than that: those who were woken took their time.
    flow.go_to(told + 1_000_000).await;
    assert_eq!(flow.ask("new/1", &[0]).await, None);
    // Where nobody waits, the whole burst is there.
    assert_eq!(flow.woken(GuardAct::Reset).await, ["other/1"]);
    assert_eq!(flow.ask("other/1", &[0]).await, None);
    assert!(flow.woken(GuardAct::Reset).await.is_empty());
    for job in ["a/1", "b/1"] {
        assert_eq!(flow.ask(job, &[0]).await, None, "{job}");
    }
}

// Shows: S-05
#[tokio::test]
async fn many_who_sleep_for_a_moment_are_woken_in_order_each_once_and_starts_are_counted_on() {
    let r = redis().await;
    let rate = Rate::new(1, Duration::from_secs(600), 3);
    let mut flow = Flow::new(&r, vec![scope("a", rate)], 0).await;
    let jobs: Vec<String> = (0..503).map(|n| format!("j{n:03}/1")).collect();
    for (n, job) in jobs.iter().enumerate() {
        assert_eq!(flow.ask(job, &[0]).await.is_none(), n < 3);
    }
    let mut woken = flow.woken(GuardAct::Reset).await;
    assert_eq!(woken, jobs[3..203], "as many as one call wakes");
    // They come at once: three start, and the others get other moments, behind which nobody is woken again.
    let mut told: Vec<Option<u64>> = Vec::new();
    for job in &jobs[3..203] {
        told.push(flow.ask(job, &[0]).await);
    }
    assert!(told.is_sorted(), "{told:?}");
    assert_eq!(told.iter().filter(|at| at.is_none()).count(), 3);
    loop {
        let more = flow.woken(GuardAct::Tend { session: "".into() }).await;
        if more.is_empty() {
            break;
        }
        for job in &more {
            assert!(flow.ask(job, &[0]).await.is_some(), "{job} started above the limit");
        }
        woken.extend(more);
    }
    let first: Vec<&String> = woken.iter().filter(|j| j.as_str() >= "j203/1").collect();
    assert_eq!(first, jobs[203..].iter().collect::<Vec<_>>());
    let left: bool =
        flow.plain.hexists(&flow.store.keys().guard(0, &flow.scopes[0].hash)[0], "waking").await.unwrap();
    assert!(!left);
}

// Shows: S-05
#[tokio::test]
async fn what_a_stricter_rule_promised_holds_nobody_back_for_longer_than_the_rule_of_now() {
    let r = redis().await;
    let minutes = |n: u64| n * 60_000_000;
    let mut flow = Flow::new(&r, vec![scope("a", Rate::new(6, Duration::from_secs(1200), 1))], 0).await;
    for (n, job) in ["a/1", "b/1", "c/1", "d/1"].into_iter().enumerate() {
        assert_eq!(flow.ask(job, &[0]).await.is_none(), n == 0);
    }
    let last = flow.ask("d/1", &[0]).await.unwrap();
    assert!(last > flow.now_us().await + minutes(9));
    // Two in a minute, two at once.
    flow.scopes = vec![scope("a", Rate::new(2, Duration::from_secs(60), 2))];
    let told = flow.ask("new/1", &[0]).await.unwrap();
    let most = flow.now_us().await + minutes(2) + 1_000_000;
    assert!(told <= most, "{} us behind what three others and a burst want", told - most);
    // Who was promised a moment that is behind that has it no longer.
    let told_again = flow.ask("d/1", &[0]).await.unwrap();
    assert!(told < told_again && told_again < last, "{told} {told_again} {last}");
    assert_eq!(flow.ask("d/1", &[0]).await, Some(told_again), "and keeps the new one");
    // The same again changes nothing: it is about the rule, not about time.
    assert!(flow.ask("new2/1", &[0]).await.unwrap() > told_again);
}

// Shows: S-05
#[tokio::test]
async fn a_promise_that_nobody_came_for_is_forgotten_though_its_limit_is_always_busy() {
    let r = redis().await;
    let flow = Flow::new(&r, vec![scope("a", per_second(1000, 1000))], 0).await;
    let guard =
        async |items: &[GuardItem<'_>]| flow.store.guard(0, None, HOUR, &flow.scopes, items).await.unwrap();
    let now_us = guard(&[ask("busy/1", 1, &[0])]).await.now_ms * 1000;
    let mut c = flow.plain.clone();
    let [_, _, wait, _] = flow.store.keys().guard(0, &flow.scopes[0].hash);
    // Cancelled more than an hour ago and less than that; started more than an hour ago.
    for (member, at) in [
        ("old/1", now_us as f64 - 3.7e9),
        ("young/1", now_us as f64 - 3.5e9),
        ("ran/1", -(now_us as f64 - 3.7e9)),
    ] {
        let _: u64 = c.zadd(&wait, member, at).await.unwrap();
    }
    let _: u64 = c.zadd(flow.store.keys().guards(0), &flow.scopes[0].hash, 1).await.unwrap();
    guard(&[ask("busy/1", 1, &[0])]).await;
    let left: Vec<String> = c.zrange(&wait, 0, -1).await.unwrap();
    assert_eq!(left, ["busy/1", "young/1"]);
    let look: f64 = c.zscore(flow.store.keys().guards(0), &flow.scopes[0].hash).await.unwrap();
    assert!(look * 1000.0 > now_us as f64, "a reaper looks at a busy limit with every tick");
    guard(&[item(GuardAct::Tend { session: "".into() }, "", &[0])]).await;
}
