//! `surety guards` and `surety guards reset`.

use std::time::Duration;

use surety_common::{
    domain::guard::{Gate, GuardKind, gate::Trip},
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Scope},
};

use super::support::{Hand, World};

fn ask(member: &str) -> GuardItem<'static> {
    GuardItem {
        act: GuardAct::Ask { arrival_ms: 1, ack_subject: "".into(), work: "".into(), keeps: false },
        member: member.to_owned().into(),
        scopes: vec![0].into(),
    }
}

#[tokio::test]
async fn guards_tell_what_they_hold_and_a_rate_limit_can_start_over() {
    let w = World::provisioned().await;
    let said = w.run(&["guards"]).await.exits(0);
    assert!(said.err.contains("no guard is in use"), "{}", said.err);
    let hand = Hand::start(&w).await;
    // One start in ten minutes, two at once; and one slot.
    let rate = [Scope::new(GuardKind::Rate, "api", "acme", [600_000_000, 600_000_000, 0, 0])];
    let slot = [Scope::new(GuardKind::Concurrency, "repo", "acme", [1, 5000, 0, 0])];
    let store = &hand.c.store;
    let answer = store.guard(0, None, 60_000, &rate, &[ask("a/1"), ask("b/1"), ask("c/1")]).await.unwrap();
    assert!(matches!(
        answer.replies[..],
        [GuardReply::Passes(_), GuardReply::Passes(_), GuardReply::WaitsUntil { .. }]
    ));
    store.guard(0, None, 60_000, &slot, &[ask("a/1"), ask("b/1")]).await.unwrap();

    let listed = w.run(&["--json", "guards", "--full"]).await.exits(0).json();
    let shown = |i: usize, key: &str| listed["guards"][i][key].clone();
    assert_eq!((shown(0, "kind"), shown(0, "scope")), ("rate".into(), "api: acme".into()));
    assert_eq!((shown(0, "limit"), shown(0, "waiting")), ("one every 10m, 2 at once".into(), 1.into()));
    assert!(shown(0, "clears_at").is_string());
    assert_eq!(
        (shown(1, "kind"), shown(1, "now"), shown(1, "waiting")),
        ("concurrency".into(), "1 held".into(), 1.into())
    );

    w.run(&["guards", "reset", "api: acm"]).await.exits(1).complains("did you mean \"api: acme\"?");
    let said = w.run(&["guards", "reset", "repo: acme"]).await.exits(0);
    assert!(
        said.out.contains("1 jobs were woken and ask again; what is held stays (1 held)"),
        "{}",
        said.out
    );
    w.run(&["guards", "reset", "api: acme", "--kind", "rates"]).await.exits(2).complains("rate, concurrency");
    let said = w.run(&["guards", "reset", "api: acme"]).await.exits(0);
    assert!(said.out.contains("rate api: acme starts over"), "{}", said.out);
    let answer = store.guard(0, None, 60_000, &rate, &[ask("d/1")]).await.unwrap();
    assert!(matches!(answer.replies[..], [GuardReply::Passes(_)]));
}

#[tokio::test]
async fn a_breaker_a_crash_loop_and_a_root_start_over_and_who_waits_is_woken() {
    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    let store = &hand.c.store;
    let (first, longest) = (Duration::from_secs(600), Duration::from_secs(600));
    let gate = |trip| Gate::new(trip, Duration::from_secs(60), first, longest, 1).params();
    let crashes = Trip::Crashes { threshold: 1, is_shared: false };
    let failures = Trip::Failures { per_mille: 500, sample: 1 };
    let gates = [
        (Scope::new(GuardKind::Breaker, "host", "h", gate(failures)), "breaker host: h"),
        (Scope::new(GuardKind::CrashLoop, "repo", "r", gate(crashes)), "crash_loop repo: r"),
    ];
    for (scope, name) in gates {
        let p = scope.partition(store.keys().partitions());
        let scope = [scope];
        let begun = store.guard(p, None, 60_000, &scope, &[ask("a/1")]).await.unwrap();
        let end = GuardItem {
            act: GuardAct::Release {
                token: begun.token.clone().into(),
                until_ms: None,
                outcome: GuardOutcome::Crashed,
            },
            ..ask("a/1")
        };
        let answer = store.guard(p, None, 60_000, &scope, &[end, ask("b/1")]).await.unwrap();
        assert_eq!(answer.replies, [GuardReply::WaitsInLine { scope: 0, before: 0 }], "{name}");
        let label = name.split_once(' ').unwrap().1;
        let said = w.run(&["guards", "reset", label]).await.exits(0);
        assert!(said.out.contains(&format!("{name} starts over; 1 jobs were woken")), "{}", said.out);
        let answer = store.guard(p, None, 60_000, &scope, &[ask("c/1")]).await.unwrap();
        assert!(matches!(answer.replies[..], [GuardReply::Passes(_)]), "{name}");
    }
    // Two jobs of one root may ask for the same work.
    let root = [Scope::new(GuardKind::Loop, "", "r1", [2, 60_000, 100, 0])];
    let p = root[0].partition(store.keys().partitions());
    let same = |member: &str| GuardItem {
        act: GuardAct::Ask { arrival_ms: 1, ack_subject: "".into(), work: "w".into(), keeps: false },
        ..ask(member)
    };
    let asked = [same("a/1"), same("b/1"), same("c/1")];
    let answer = store.guard(p, None, 60_000, &root, &asked).await.unwrap();
    assert!(matches!(answer.replies[2], GuardReply::Stopped { .. }), "{:?}", answer.replies);
    w.run(&["guards", "reset", "r1"]).await.exits(0);
    let answer = store.guard(p, None, 60_000, &root, &[same("d/1")]).await.unwrap();
    assert!(matches!(answer.replies[..], [GuardReply::Passes(_)]));
}
