//! `surety guards` and `surety guards reset`.

use surety_common::{
    domain::guard::GuardKind,
    store::{GuardAct, GuardItem, GuardReply, Scope},
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
    assert!(said.err.contains("no guard holds anything back"), "{}", said.err);
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
    w.run(&["guards", "reset", "repo: acme"]).await.exits(1).complains("is held by attempts (1 held)");
    w.run(&["guards", "reset", "api: acme", "--kind", "rates"]).await.exits(2).complains("rate, concurrency");
    let said = w.run(&["guards", "reset", "api: acme"]).await.exits(0);
    assert!(said.out.contains("rate api: acme starts over"), "{}", said.out);
    let answer = store.guard(0, None, 60_000, &rate, &[ask("d/1")]).await.unwrap();
    assert!(matches!(answer.replies[..], [GuardReply::Passes(_)]));
}
