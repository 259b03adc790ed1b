//! Rules that change while jobs hold what they gave, and wait for it: whoever asks brings the new one, and nobody the old one back.

use redis::AsyncCommands;
use surety_common::{
    connect::Connected,
    domain::{
        Status,
        guard::{Gate, GuardKind, gate::Trip},
    },
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope},
};
use surety_tests::{
    scrape::{Scrape, address},
    witness::Witness,
    world::{World, wait},
};

use super::{
    guard_slots::{ask, item, release},
    reload::{LISTEN, changed},
    scripts::World as Scripts,
};

const HOUR: u64 = 3_600_000;

fn slots(limit: u64) -> Scope {
    Scope::new(GuardKind::Concurrency, "one", "k", [limit, HOUR, 0, 0])
}

fn breaker(sample: u64) -> Scope {
    let trip = Trip::Failures { per_mille: 500, sample };
    let gate = Gate { trip, window_ms: HOUR, first_ms: HOUR, longest_ms: HOUR, probes: 1, offer_s: 2 };
    Scope::new(GuardKind::Breaker, "host", "h", gate.params())
}

/// One call of somebody who has the rule of this scope.
async fn call(w: &Scripts, scope: &Scope, items: &[GuardItem<'_>]) -> Guarded {
    w.store.guard(0, Some(&w.session), HOUR, std::slice::from_ref(scope), items).await.unwrap()
}

/// The rule that is in force.
async fn in_force(w: &Scripts, scope: &Scope) -> Option<String> {
    let [state, ..] = w.store.keys().guard(0, &scope.hash);
    w.plain.clone().hget(state, "params").await.unwrap()
}

fn params(scope: &Scope) -> Option<String> {
    let [a, b, c, d] = scope.params;
    Some(format!("{} {a} {b} {c} {d}", scope.kind as u8))
}

fn give_back(member: &str, token: &str) -> GuardItem<'static> {
    release(member, token, None, GuardOutcome::WentWrong, &[0])
}

fn woken(answer: &Guarded) -> Vec<&str> {
    answer.woken.iter().map(|w| w.member.as_str()).collect()
}

fn in_line(before: u64) -> Vec<GuardReply> {
    vec![GuardReply::WaitsInLine { scope: 0, before }]
}

fn renew(token: &str) -> GuardAct<'static> {
    GuardAct::Renew { token: token.to_owned().into(), may_restore: true, number: 0 }
}

// Shows: G-02, S-05
#[tokio::test]
async fn only_who_asks_changes_a_rule_and_what_is_held_again_after_a_loss_brings_its_own() {
    let w = Scripts::start().await;
    let (three, one) = (slots(3), slots(1));
    let held = call(&w, &three, &["a/1", "b/1"].map(|m| ask(m, 1, &[0]))).await.token;
    assert_eq!(in_force(&w, &three).await, params(&three));
    call(&w, &one, &[ask("c/1", 2, &[0])]).await;
    assert_eq!(in_force(&w, &three).await, params(&one));
    let others = [
        item(renew(&held), "a/1", &[0]),
        item(GuardAct::Adopt, "a/1", &[0]),
        item(GuardAct::Check, "c/1", &[0]),
        item(GuardAct::Tend { session: "".into() }, "", &[0]),
        give_back("nobody/1", "nobody's"),
        give_back("b/1", &held),
    ];
    for other in &others {
        let answer = call(&w, &three, std::slice::from_ref(other)).await;
        assert!(answer.woken.is_empty(), "{other:?} let somebody in: {answer:?}");
        assert_eq!(in_force(&w, &three).await, params(&one), "{other:?}");
    }
    // Beside one that asks, the rule of that one.
    call(&w, &three, &[give_back("nobody/1", "nobody's"), ask("d/1", 3, &[0])]).await;
    assert_eq!(in_force(&w, &three).await, params(&three));
    // Nothing is stored any more: what is held again says what it is.
    for key in w.store.keys().guard(0, &three.hash) {
        let _: u64 = w.plain.clone().del(key).await.unwrap();
    }
    let again = call(&w, &one, &[item(renew(&held), "a/1", &[0])]).await;
    assert_eq!(again.replies, [GuardReply::Renewed(vec![2])]);
    assert_eq!(in_force(&w, &three).await, params(&one));
}

// Shows: G-02, S-05
#[tokio::test]
async fn an_offer_under_a_higher_limit_lets_nobody_in_above_the_one_in_force() {
    let w = Scripts::start().await;
    let (three, one) = (slots(3), slots(1));
    let held = call(&w, &three, &["a/1", "b/1", "c/1"].map(|m| ask(m, 1, &[0]))).await.token;
    for (n, member) in (0..).zip(["d/1", "e/1", "f/1"]) {
        assert_eq!(call(&w, &three, &[ask(member, 10 + n, &[0])]).await.replies, in_line(n));
    }
    // Nobody has asked since the limit was lowered, so the old one offers.
    let freed = call(&w, &three, &[give_back("b/1", &held), give_back("c/1", &held)]).await;
    assert_eq!(woken(&freed), ["d/1", "e/1"]);
    // Each goes back to its place, whoever comes first.
    assert_eq!(call(&w, &one, &[ask("e/1", 11, &[0])]).await.replies, in_line(0));
    assert_eq!(call(&w, &one, &[item(GuardAct::Adopt, "d/1", &[0])]).await.replies, [GuardReply::NotYet]);
    assert_eq!(call(&w, &one, &[ask("d/1", 10, &[0])]).await.replies, in_line(0));
    assert_eq!(call(&w, &one, &[ask("f/1", 12, &[0])]).await.replies, in_line(2));
    let line: Vec<String> =
        w.plain.clone().zrange(&w.store.keys().guard(0, &one.hash)[2], 0, -1).await.unwrap();
    assert_eq!(line, ["d/1", "e/1", "f/1"]);
    // The last ends, and exactly one is let in.
    assert_eq!(woken(&call(&w, &three, &[give_back("a/1", &held)]).await), ["d/1"]);
    assert_eq!(call(&w, &one, &[ask("d/1", 10, &[0])]).await.replies, [GuardReply::Passes(vec![1])]);
    // Raised again: the first who asks under it, and those who wait before it have the slots.
    let raised = call(&w, &three, &[ask("g/1", 13, &[0])]).await;
    assert_eq!((woken(&raised), raised.replies.clone()), (vec!["e/1", "f/1"], in_line(0)));
    for member in ["e/1", "f/1"] {
        let answer = call(&w, &three, &[ask(member, 1, &[0])]).await;
        assert_eq!(answer.replies, [GuardReply::Passes(vec![1])], "{member}");
    }
}

// Shows: G-02, S-08
#[tokio::test]
async fn what_began_under_an_old_rule_of_a_breaker_ends_under_the_new_one() {
    let w = Scripts::start().await;
    let (two, hundred) = (breaker(2), breaker(100));
    let held = call(&w, &two, &["a/1", "b/1", "c/1"].map(|m| ask(m, 1, &[0]))).await.token;
    call(&w, &hundred, &[ask("d/1", 2, &[0])]).await;
    for member in ["a/1", "b/1", "c/1"] {
        call(&w, &two, &[give_back(member, &held)]).await;
    }
    let asked = call(&w, &hundred, &[ask("e/1", 3, &[0])]).await;
    assert_eq!(asked.replies, [GuardReply::Passes(vec![1])], "three failures opened it");
}

// Shows: G-02
#[tokio::test]
async fn the_guard_of_a_type_which_nobody_asks_while_it_is_calm_goes_by_the_last_report() {
    let w = Scripts::start().await;
    let of = |threshold| {
        let trip = Trip::Crashes { threshold, is_shared: true };
        let gate = Gate { trip, window_ms: HOUR, first_ms: HOUR, longest_ms: HOUR, probes: 1, offer_s: 2 };
        Scope::new(GuardKind::CrashLoop, "", "t", gate.params())
    };
    let crash = |name: &str| {
        let act = GuardAct::Report { mark: name.to_owned().into(), outcome: GuardOutcome::Crashed };
        item(act, "-", &[0])
    };
    call(&w, &of(100), &[crash("x/1/1 s1")]).await;
    let told = call(&w, &of(2), &[crash("x/1/2 s2")]).await;
    assert_eq!(told.watched.len(), 1, "the lower threshold is not in force");
    let [state, ..] = w.store.keys().guard(0, &of(2).hash);
    let level: u64 = w.plain.clone().hget(state, "level").await.unwrap();
    assert_eq!(level, 1, "it did not open");
}

// --- end to end

/// Runs until `$W.go-<job>` is there.
const GATED: &str = "until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done";

fn rule(limit: u64) -> String {
    format!("[guards.concurrency.one]\nscope = \"{{key}}\"\nlimit = {limit}\n")
}

/// How many have slots, or are offered one, and how many wait.
async fn counts(c: &Connected) -> (u64, u64) {
    let all = c.store.scopes().await.unwrap();
    all.iter().find(|s| s.scope.hash == slots(1).hash).map_or((0, 0), |s| (s.held, s.waiting))
}

// Shows: G-02, S-05
#[tokio::test]
async fn a_limit_that_is_lowered_holds_for_who_waits_and_one_that_is_raised_lets_them_in() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("work", GATED) + &rule(3))).await;
    let c = world.connect().await;
    let mut worker = world.worker(LISTEN, &[]);
    let at = address(&mut worker).await;
    let publish = async |job: &str| world.publish("default", job, r#"{"type":"work","key":"k"}"#).await;
    for job in ["j1", "j2", "j3"] {
        publish(job).await;
        witness.started(job, 1).await;
    }
    for job in ["j4", "j5", "j6"] {
        publish(job).await;
        world.status(&c, job, Status::Deferred).await;
    }
    let deferred = async || {
        let all = Scrape::of(at).await;
        all.sum("surety_deferrals_total", &[("reason", "concurrency")]).unwrap_or_default()
    };
    assert_eq!(deferred().await, 3.0);
    changed(&world, &rule(1), &[(&worker, at)], "applied").await;
    // Two end: who wakes for them knows only the old limit, and whoever is woken is in line again.
    for job in ["j1", "j2"] {
        witness.touch(&format!("go-{job}"));
        world.ended(&c, job).await;
    }
    wait("whoever was woken to be back in line", async || {
        counts(&c).await == (1, 3) && deferred().await >= 4.0
    })
    .await;
    let begun = |from: u64| (from..=7).filter(|n| !witness.of(&format!("j{n}")).is_empty()).count();
    assert_eq!(begun(4), 0, "started above the limit");
    // The last ends: the one that waits longest starts, and no other.
    witness.touch("go-j3");
    world.ended(&c, "j3").await;
    witness.started("j4", 1).await;
    assert_eq!((begun(5), counts(&c).await), (0, (1, 2)));
    // Raised: with the first that asks under the new limit, also while who runs began under the old one.
    changed(&world, &rule(3), &[(&worker, at)], "applied").await;
    publish("j7").await;
    witness.started("j5", 1).await;
    witness.started("j6", 1).await;
    world.status(&c, "j7", Status::Deferred).await;
    // What began under the old limit says nothing of it when it ends.
    witness.touch("go-j4");
    witness.started("j7", 1).await;
    for job in ["j5", "j6", "j7"] {
        witness.touch(&format!("go-{job}"));
        assert_eq!(world.ended(&c, job).await.status, Status::Done);
    }
    assert_eq!(worker.stop().await, Some(0));
}
