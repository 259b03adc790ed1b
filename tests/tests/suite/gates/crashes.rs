//! What opens and what closes the guard of a crash loop, by the script: one worker alone, several that die at once, a probe that runs.

use std::sync::atomic::{AtomicU64, Ordering};

use surety_common::{
    domain::{
        guard::{Gate, GuardKind, gate::Trip},
        ids::SessionId,
    },
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope},
};
use surety_tests::world::wait;

use super::{
    super::scripts::{HOUR, session},
    HOUR_MS, Scripts, ask, call, due, release, tend,
};

fn crash_loop(threshold: u64, window_ms: u64, first_ms: u64) -> Scope {
    crash_loop_of("t", threshold, window_ms, first_ms)
}

fn crash_loop_of(job_type: &str, threshold: u64, window_ms: u64, first_ms: u64) -> Scope {
    let trip = Trip::Crashes { threshold, is_shared: true };
    let gate = Gate { trip, window_ms, first_ms, longest_ms: first_ms, probes: 1, offer_s: 2000 };
    Scope::new(GuardKind::CrashLoop, "", job_type, gate.params())
}

/// How long others have to start one after they were told, where a tenth of the window is not less.
const MOMENT_MS: u64 = 3000;

/// Of attempts that crash: each is another one.
static EPOCH: AtomicU64 = AtomicU64::new(1);

/// Crashes of these sessions, all in one call. A session that starts with `@` died.
async fn crash(w: &Scripts, scope: &Scope, hold_ms: u64, names: &[&str]) -> Guarded {
    crash_told_by(w, Some(&w.session), scope, hold_ms, names).await
}

/// The same, told by this session, or by who has none.
async fn crash_told_by(
    w: &Scripts,
    by: Option<&SessionId>,
    scope: &Scope,
    hold_ms: u64,
    names: &[&str],
) -> Guarded {
    let epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
    let mark =
        |n: usize, s: &str| if s.starts_with('@') { s.to_owned() } else { format!("j{n}/1/{epoch} {s}") };
    let item = |(n, s): (usize, &&str)| GuardItem {
        act: GuardAct::Report { mark: mark(n, s).into(), outcome: GuardOutcome::Crashed },
        member: "-".into(),
        scopes: vec![0].into(),
    };
    let items: Vec<_> = names.iter().enumerate().map(item).collect();
    w.store.guard(0, by, hold_ms, std::slice::from_ref(scope), &items).await.unwrap()
}

async fn is_open(w: &Scripts, scope: &Scope) -> bool {
    let answer = call(w, scope, "look/1", ask(1)).await;
    if answer.replies == [GuardReply::Passes(vec![1])] {
        call(w, scope, "look/1", release(&answer.token, GuardOutcome::Undone)).await;
        return false;
    }
    call(w, scope, "look/1", release("?", GuardOutcome::Neutral)).await;
    true
}

/// Waits until so much time has passed by the clock of the store.
async fn passed(w: &Scripts, since_ms: u64, ms: u64) {
    wait("some time to pass", async || w.store.now_ms().await.unwrap() >= since_ms + ms).await;
}

// Shows: S-08
#[tokio::test]
async fn one_worker_whose_starts_fail_suppresses_a_type_only_if_no_other_one_can_run_it() {
    let w = Scripts::start().await;
    let scope = crash_loop(5, HOUR_MS, 60_000);
    let told = crash(&w, &scope, HOUR_MS, &["bad"; 8]).await;
    assert_eq!(told.watched.len(), 1, "everybody is told");
    assert!(!is_open(&w, &scope).await, "eight crashes of one worker before anybody was told");
    // Another worker starts one; the time to do so passes.
    let good = call(&w, &scope, "good/1", ask(2)).await;
    passed(&w, told.now_ms, MOMENT_MS).await;
    crash(&w, &scope, HOUR_MS, &["bad"; 8]).await;
    assert!(!is_open(&w, &scope).await, "another worker runs one");
    let calm = call(&w, &scope, "good/1", release(&good.token, GuardOutcome::WentWell)).await;
    assert_eq!(calm.watched.iter().map(|x| x.until_ms).collect::<Vec<_>>(), [0]);
    // Nobody else runs any: it is what the type does.
    let told = crash(&w, &scope, HOUR_MS, &["bad"; 8]).await;
    passed(&w, told.now_ms, MOMENT_MS / 2).await;
    let early = crash(&w, &scope, HOUR_MS, &["bad"]).await;
    assert!(
        early.now_ms >= told.now_ms + MOMENT_MS || !is_open(&w, &scope).await,
        "others had no time to start one"
    );
    passed(&w, told.now_ms, MOMENT_MS).await;
    crash(&w, &scope, HOUR_MS, &["bad"]).await;
    assert!(is_open(&w, &scope).await, "it crashed after everybody was told");
}

// Shows: S-08
#[tokio::test]
async fn a_worker_that_is_alone_is_believed_at_once() {
    let w = Scripts::start().await;
    let bad = session("bad");
    w.store.open_session(0, &bad, HOUR, "{}").await.unwrap();
    let scope = |job_type| crash_loop_of(job_type, 5, HOUR_MS, 60_000);
    crash(&w, &scope("beside"), HOUR_MS, &["bad"; 8]).await;
    crash_told_by(&w, None, &scope("of nobody"), HOUR_MS, &[""; 8]).await;
    for job_type in ["beside", "of nobody"] {
        assert!(!is_open(&w, &scope(job_type)).await, "{job_type}: another worker may do better");
    }
    // The other one dies: it stands in the index until somebody has taken back what it ran.
    w.store.expire_session(0, &w.session).await.unwrap();
    crash(&w, &scope("alone"), HOUR_MS, &["bad"; 4]).await;
    assert!(!is_open(&w, &scope("alone")).await, "four of five");
    crash(&w, &scope("alone"), HOUR_MS, &["bad"]).await;
    assert!(is_open(&w, &scope("alone")).await, "there is nobody else to be told and waited for");
    crash_told_by(&w, None, &scope("beside"), HOUR_MS, &["bad"]).await;
    assert!(is_open(&w, &scope("beside")).await, "it is alone by now, whoever tells it");
    crash_told_by(&w, None, &scope("of nobody"), HOUR_MS, &[""]).await;
    assert!(!is_open(&w, &scope("of nobody")).await, "a crash of no session is none of who is alive");
    // Nobody at all.
    w.store.close_session(0, &bad).await.unwrap();
    crash_told_by(&w, None, &scope("of nobody"), HOUR_MS, &[""]).await;
    assert!(is_open(&w, &scope("of nobody")).await);
}

// Shows: S-08
#[tokio::test]
async fn what_crashes_at_two_workers_is_suppressed_at_once() {
    let w = Scripts::start().await;
    let scope = crash_loop(5, 10_000, 60_000);
    crash(&w, &scope, HOUR_MS, &["one", "two", "one", "two"]).await;
    assert!(!is_open(&w, &scope).await);
    crash(&w, &scope, HOUR_MS, &["one"]).await;
    assert!(is_open(&w, &scope).await);
}

// Shows: S-08
#[tokio::test]
async fn workers_that_die_within_one_lease_of_each_other_are_one_crash() {
    let w = Scripts::start().await;
    let (scope, lease_ms) = (crash_loop(2, 60_000, 60_000), 300);
    let all = crash(&w, &scope, lease_ms, &["@a", "@b", "@c", "@d", "@e"]).await;
    assert!(!is_open(&w, &scope).await, "redis was away, or a rack lost its power");
    passed(&w, all.now_ms, lease_ms).await;
    crash(&w, &scope, lease_ms, &["@a"]).await;
    assert!(!is_open(&w, &scope).await, "that one was counted with the others");
    crash(&w, &scope, lease_ms, &["@f"]).await;
    assert!(is_open(&w, &scope).await, "it happened again");
}

/// Renews as its worker does.
async fn renew(w: &Scripts, scope: &Scope, member: &str, token: &str) -> Guarded {
    let act = GuardAct::Renew { token: token.to_owned().into(), may_restore: false, number: 0 };
    call(w, scope, member, act).await
}

/// A probe of a gate that just opened, and one that waits; when it began (ms).
async fn probe(w: &Scripts, scope: &Scope) -> (String, u64) {
    let probe = call(w, scope, "probe/1", ask(1)).await;
    assert_eq!(probe.replies, [GuardReply::Passes(vec![1])]);
    let waits = call(w, scope, "waits/1", ask(2)).await;
    assert_eq!(waits.replies, [GuardReply::WaitsInLine { scope: 0, before: 0 }]);
    (probe.token, probe.now_ms)
}

#[tokio::test]
async fn a_probe_that_runs_for_longer_than_crashes_are_counted_ends_a_crash_loop() {
    let w = Scripts::start().await;
    let scope = crash_loop(2, 1000, 10);
    let opened = crash(&w, &scope, HOUR_MS, &["one", "two"]).await;
    passed(&w, opened.now_ms, 10).await;
    let (token, began_ms) = probe(&w, &scope).await;
    let early = renew(&w, &scope, "probe/1", &token).await;
    assert_eq!((early.replies, early.woken.len()), (vec![GuardReply::Renewed(vec![1])], 0));
    passed(&w, began_ms, 1000).await;
    let late = renew(&w, &scope, "probe/1", &token).await;
    assert_eq!(late.woken.iter().map(|x| x.member.as_str()).collect::<Vec<_>>(), ["waits/1"]);
    assert!(!is_open(&w, &scope).await);
}

#[tokio::test]
async fn a_probe_of_a_breaker_says_nothing_before_its_end() {
    let w = Scripts::start().await;
    let scope = super::breaker(1, 100, 10);
    let first = call(&w, &scope, "bad/1", ask(0)).await;
    let opened = call(&w, &scope, "bad/1", release(&first.token, GuardOutcome::WentWrong)).await;
    passed(&w, opened.now_ms, 10).await;
    let (token, began_ms) = probe(&w, &scope).await;
    passed(&w, began_ms, 100).await;
    assert_eq!(renew(&w, &scope, "probe/1", &token).await.woken.len(), 0, "it may hang");
}

// Shows: S-08
#[tokio::test]
async fn that_a_type_is_watched_is_said_again_and_again_while_it_is_suppressed() {
    let w = Scripts::start().await;
    let scope = crash_loop(2, 20_000, 3_600_000);
    let opened = crash(&w, &scope, HOUR_MS, &["one", "two"]).await;
    assert_eq!(opened.watched.len(), 1);
    // Whoever was told may have died of it; after that, a quarter of the window later.
    for _ in 0..2 {
        wait("a look at it", async || due(&w.store).await == 1).await;
        let again = call(&w, &scope, "", tend()).await;
        assert_eq!(again.watched.len(), 1, "a partition that was away hears it now");
    }
}

// Shows: S-08
#[tokio::test]
async fn whose_attempt_it_was_is_part_of_a_hold() {
    let w = Scripts::start().await;
    let scope = crash_loop(2, 10_000, 60_000);
    crash(&w, &scope, HOUR_MS, &["one"]).await;
    let held = call(&w, &scope, "a/1", ask(1)).await;
    let session: &SessionId = &w.session;
    assert!(held.token.ends_with(session.as_str()));
    call(&w, &scope, "a/1", release(&held.token, GuardOutcome::Crashed)).await;
    assert!(is_open(&w, &scope).await, "the second one was of another session");
}
