//! Gates: circuit breaker and crash loop. The script against its model, and end to end with real workers and servers.

mod crashes;
mod model;

use std::collections::BTreeSet;

use surety_common::{
    connect::Connected,
    domain::{
        Status,
        guard::{Gate, GuardKind, gate::Trip},
    },
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, Store},
};
use surety_tests::{
    scrape::{Scrape, address},
    witness::{Witness, id, kinds, settled},
    world::{World, wait},
};

use super::scripts::World as Scripts;

const HOUR_MS: u64 = 3_600_000;

/// One call with one item on one scope, for the session `s1`.
async fn call(w: &Scripts, scope: &Scope, member: &str, act: GuardAct<'_>) -> Guarded {
    let item = GuardItem { act, member: member.to_owned().into(), scopes: vec![0].into() };
    w.store.guard(0, Some(&w.session), HOUR_MS, std::slice::from_ref(scope), &[item]).await.unwrap()
}

fn ask(arrival_ms: u64) -> GuardAct<'static> {
    GuardAct::Ask {
        arrival_ms,
        ack_subject: format!("ack.{arrival_ms}").into(),
        work: "".into(),
        keeps: false,
    }
}

fn tend() -> GuardAct<'static> {
    GuardAct::Tend { session: "".into() }
}

fn release(token: &str, outcome: GuardOutcome) -> GuardAct<'static> {
    GuardAct::Release { token: token.to_owned().into(), until_ms: None, outcome }
}

/// Scopes that a reaper would look at now.
async fn due(store: &Store) -> usize {
    let now = store.now_ms().await.unwrap();
    store.guard_scopes(0, now, 0, 100).await.unwrap().len()
}

fn breaker(sample: u64, window_ms: u64, first_ms: u64) -> Scope {
    let trip = Trip::Failures { per_mille: 500, sample };
    let gate = Gate { trip, window_ms, first_ms, longest_ms: 4 * first_ms, probes: 1, offer_s: 2000 };
    Scope::new(GuardKind::Breaker, "host", "h1", gate.params())
}

#[tokio::test]
async fn a_thousand_that_wait_cost_nothing_while_a_gate_is_open_and_are_woken_once_each_in_batches() {
    let w = Scripts::start().await;
    let scope = breaker(1, HOUR_MS, 2000);
    let first = call(&w, &scope, "bad/1", ask(0)).await;
    call(&w, &scope, "bad/1", release(&first.token, GuardOutcome::WentWrong)).await;
    let opened = w.store.now_ms().await.unwrap();
    for from in (0..1000u64).step_by(200) {
        let item = |n| GuardItem { act: ask(n), member: format!("j{n:04}/1").into(), scopes: vec![0].into() };
        let items: Vec<_> = (from..from + 200).map(item).collect();
        let one = std::slice::from_ref(&scope);
        let answer = w.store.guard(0, Some(&w.session), HOUR_MS, one, &items).await.unwrap();
        assert!(answer.replies.iter().all(|r| matches!(r, GuardReply::WaitsInLine { .. })));
        assert!(answer.woken.is_empty());
    }
    if w.store.now_ms().await.unwrap() < opened + 1500 {
        assert_eq!(due(&w.store).await, 0, "nobody looks at it before its time");
    }
    wait("the time of probes", async || due(&w.store).await == 1).await;
    let probe = call(&w, &scope, "", tend()).await;
    assert_eq!(probe.woken.len(), 1, "one probe: {:?}", probe.woken.len());
    assert_eq!(probe.woken[0].member, "j0000/1");
    let other = call(&w, &scope, "new/1", ask(5000)).await;
    assert_eq!(other.replies, [GuardReply::WaitsInLine { scope: 0, before: 999 }]);
    let began = call(&w, &scope, "j0000/1", ask(0)).await;
    assert_eq!(began.replies, [GuardReply::Passes(vec![1])]);
    let mut woken = call(&w, &scope, "j0000/1", release(&began.token, GuardOutcome::WentWell)).await.woken;
    let mut calls = 1;
    while due(&w.store).await == 1 {
        let more = call(&w, &scope, "", tend()).await.woken;
        assert!(more.len() <= 200, "{}", more.len());
        woken.extend(more);
        calls += 1;
    }
    let members: BTreeSet<&str> = woken.iter().map(|x| x.member.as_str()).collect();
    assert_eq!((woken.len(), members.len(), calls), (1000, 1000, 5));
}

/// Fails as long as its host is bad and `$W.mended` is not there.
const FLAKY: &str = "if grep -q '\"host\":\"bad\"' && [ ! -e $W.mended ]; then exit 1; fi";

fn call_of(host: &str) -> String {
    format!(r#"{{"type":"fetch","payload":{{"host":"{host}"}},"retry":{{"max_retries":0}}}}"#)
}

async fn nothing_held(c: &Connected) {
    wait("every guard to be idle", async || c.store.scopes().await.is_ok_and(|s| s.is_empty())).await;
}

// Shows: S-06, S-08
#[tokio::test]
async fn a_bad_target_is_paused_a_good_one_goes_on_and_a_probe_that_succeeds_ends_it() {
    let witness = Witness::default();
    let rule =
        "[guards.breaker.host]\nscope = \"{payload.host}\"\nsample = 4\nwindow = \"3s\"\nopen = \"400ms\"\n";
    let world = World::with(&(witness.handler("fetch", FLAKY) + rule)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[("SURETY_TELEMETRY_LISTEN", "127.0.0.1:0")]);
    let at = address(&mut worker).await;
    let mut reaper = world.reaper(&[]);
    for n in 0..4 {
        world.publish("default", &format!("bad{n}"), &call_of("bad")).await;
        assert_eq!(world.ended(&c, &format!("bad{n}")).await.status, Status::Failed);
    }
    for n in 4..10 {
        world.publish("default", &format!("bad{n}"), &call_of("bad")).await;
    }
    let refused = world.status(&c, "bad9", Status::Deferred).await;
    assert_eq!((refused.code.as_str(), refused.attempt, refused.charged), ("circuit_open", 0, 0));
    wait("the deferrals to be counted", async || {
        Scrape::of(at).await.sum("surety_deferrals_total", &[("reason", "circuit_open")]) >= Some(1.0)
    })
    .await;
    world.publish("default", "good", &call_of("good")).await;
    assert_eq!(world.ended(&c, "good").await.status, Status::Done);
    let has_failed = async |n: u32| {
        let record = c.store.record(&id(&format!("bad{n}"))).await.ok().flatten();
        record.is_some_and(|r| r.status == Status::Failed)
    };
    wait("a probe that fails", async || {
        for n in 4..10 {
            if has_failed(n).await {
                return true;
            }
        }
        false
    })
    .await;
    witness.touch("mended");
    for n in 0..10 {
        world.ended(&c, &format!("bad{n}")).await;
    }
    let mut failed = 0;
    for n in 0..10 {
        let r = world.ended(&c, &format!("bad{n}")).await;
        failed += usize::from(r.status == Status::Failed);
    }
    assert!((5..9).contains(&failed), "{failed}: probes one at a time, then all of them");
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(kinds(&world, &c, "bad9").await, ["deferred", "started", "finished"]);
    let said = &h.jobs["bad9"].events[0].data;
    assert_eq!((said["reason"].as_str(), said["guard"].as_str()), (Some("circuit_open"), Some("host: bad")));
    nothing_held(&c).await;
    // Whoever watches the fleet hears of it: each opening once, wherever the bad end was counted.
    let opened = worker.log().matches("guard_opened").count() + reaper.log().matches("guard_opened").count();
    let alerts = Scrape::of(at).await.sum("surety_alerts_total", &[("alert", "guard_opened")]);
    assert!(opened >= 2 && alerts >= Some(1.0), "{opened} openings, {alerts:?} counted\n{}", world.logs());
    assert!(
        worker.log().contains("jobs start again guard=\"breaker\" scope=\"host: bad\""),
        "{}",
        worker.log()
    );
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}
