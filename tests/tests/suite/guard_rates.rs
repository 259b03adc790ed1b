//! Rate limits beside others, script by script: all or none, tokens that come back, and what a long line costs.

use std::{collections::BTreeMap, time::Duration};

use redis::AsyncCommands;
use surety_common::{
    domain::guard::{GuardKind, Rate},
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Scope, Store, group::GROUP_CAP},
};

use super::{
    guard_slots::{ask, item, nothing_left, plain, release, store},
    rate_model::scope,
    scripts::{Redis, redis},
};

const HOUR: u64 = 3_600_000;

/// A store with two rate limits (hourly, so that nothing comes back while the test runs) and one with slots.
async fn three_scopes(r: &Redis, limits: [u64; 3]) -> (Store, redis::aio::MultiplexedConnection, [Scope; 3]) {
    let hourly = |burst| Rate::new(1, Duration::from_secs(3600), burst);
    let slots = Scope::new(GuardKind::Concurrency, "c", "c", [limits[2], 5000, 0, 0]);
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
    let mut tokens = Vec::new();
    for member in ["c/1", "d/1"] {
        let answer = guard(&[ask(member, 1, &[0])]).await;
        assert_eq!(answer.replies, [GuardReply::Passes(vec![1])]);
        tokens.push((member, answer.token));
    }
    for (member, token) in &tokens {
        guard(&[release(member, token, None, GuardOutcome::Undone, &[0])]).await;
    }
    let answer = guard(&[ask("e/1", 1, &[0]), ask("f/1", 1, &[0]), ask("g/1", 1, &[0])]).await;
    let passes = answer.replies.iter().filter(|r| matches!(r, GuardReply::Passes(_))).count();
    assert_eq!(passes, 1, "{:?}", answer.replies);
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
        assert!(made.replies.iter().all(|r| matches!(r, GuardReply::Passes(_))), "{:?}", made.replies);
        let undo = |member: &str| release(member, &made.token, None, GuardOutcome::Undone, &asked);
        let tat = async || dump(&store, &plain, &scopes[0]).await[0].clone();
        let before = tat().await;
        guard(&[undo("c/1"), undo("b/1")]).await;
        let after = tat().await;
        let given = [&before, &after].map(|t| std::str::from_utf8(t).unwrap().parse::<u64>().unwrap());
        assert_eq!(given[0] - given[1], 2 * HOUR * 1000, "{asked:?}");
        store.repeat_last_call();
        guard(&[undo("c/1"), undo("b/1")]).await;
        assert_eq!(tat().await, after, "given back twice, {asked:?}");
    }
}

// Shows: S-05
#[tokio::test]
async fn a_start_that_is_refused_gives_back_no_token_of_another() {
    let r = redis().await;
    let (store, plain, scopes) = three_scopes(&r, [5, 5, 5]).await;
    let guard = async |items: &[GuardItem<'_>]| store.guard(0, None, HOUR, &scopes, items).await.unwrap();
    let tat = async || dump(&store, &plain, &scopes[0]).await[0].clone();
    let undo = |member: &str, token: &str| release(member, token, None, GuardOutcome::Undone, &[0, 2]);
    let a = guard(&[ask("a/1", 1, &[0, 2])]).await.token;
    let b = guard(&[ask("b/1", 2, &[0, 2])]).await.token;
    let before = tat().await;
    guard(&[undo("a/1", &a)]).await;
    assert_eq!(tat().await, before, "two starts in one interval");
    guard(&[undo("b/1", &b)]).await;
    assert_ne!(tat().await, before, "what was counted last comes back");
    // Another delivery of the job was granted what this one was counted for.
    let c = guard(&[ask("c/1", 3, &[0, 2])]).await.token;
    guard(&[item(GuardAct::Adopt, "c/1", &[0, 2])]).await;
    let before = tat().await;
    guard(&[undo("c/1", &c)]).await;
    assert_eq!(tat().await, before, "it runs, and its token was given back");
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
