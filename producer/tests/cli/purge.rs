//! Removing dead letters.

use surety_common::broker::purge::Selection;

use super::{
    support::{Hand, World},
    terminal::Terminal,
};

/// A world with letters of `a` and `b` (exit code) and `c` (cancelled), in this order.
async fn with_letters() -> World {
    let w = World::provisioned().await;
    for id in ["a", "b", "c"] {
        w.run(&["enqueue", "thumbnail", "--id", id]).await.exits(0);
    }
    let hand = Hand::start(&w).await;
    hand.fail("a").await;
    hand.fail("b").await;
    w.run(&["cancel", "c"]).await.exits(0);
    w
}

async fn left(w: &World) -> Vec<String> {
    let listed = w.json(&["dlq", "list"]).await;
    listed["letters"].as_array().unwrap().iter().map(|l| l["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_purge_is_previewed_and_removes_what_it_selects() {
    let w = with_letters().await;
    let said = w.run(&["--json", "dlq", "purge"]).await.exits(2).complains("repeat with --yes");
    let would = &said.json()["would_purge"];
    assert_eq!(would["by_reason"], serde_json::json!({ "cancelled": 1, "exit_code": 2 }));
    assert_eq!(would["letters"], 3);
    assert!(would["oldest"].as_str().unwrap() < would["newest"].as_str().unwrap(), "{would}");
    assert!(would["bytes"].as_u64().unwrap() > 30, "{would}");
    let said = w.run(&["dlq", "purge"]).await.exits(2);
    assert!(said.out.contains("1 cancelled, 2 exit_code"), "{}", said.out);
    assert_eq!(left(&w).await, ["a", "b", "c"]);

    for none in [&["--queue", "critical"][..], &["--older-than", "30d"], &["--id", "z"]] {
        let said = w.run(&[&["dlq", "purge"], none].concat()).await.exits(0);
        assert!(said.out.contains("nothing to remove"), "{}", said.out);
    }
    w.run(&["dlq", "purge", "--older-than", "soon"]).await.exits(2).complains("30d");
    let one = w.json(&["dlq", "purge", "--id", "b", "--yes"]).await;
    assert_eq!((&one["purged"], &one["selected"]["id"]), (&1.into(), &"b".into()));
    assert_eq!(left(&w).await, ["a", "c"]);
    let rest = w.run(&["dlq", "purge", "--queue", "default", "--older-than", "1ms", "-y"]).await.exits(0);
    assert!(
        rest.out.starts_with("removed 2 dead letters (1 cancelled, 1 exit_code), buried 20"),
        "{}",
        rest.out
    );
    assert!(left(&w).await.is_empty());
    w.run(&["dlq", "replay", "a"]).await.exits(1).complains("no dead letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_asked_before_letters_are_removed() {
    let w = with_letters().await;
    for (answer, code, n) in [("n\n", 1, 3), ("y\n", 0, 0)] {
        let mut t = Terminal::start(w.command(&["dlq", "purge"]), 80);
        t.shows("3 dead letters would be removed for good. Go on? [y/N]").await;
        t.types(answer);
        let (is, text) = t.end().await;
        assert_eq!(is, code, "{text}");
        assert_eq!(left(&w).await.len(), n);
    }
}

#[tokio::test]
async fn a_purge_takes_no_letter_that_it_did_not_count() {
    let w = with_letters().await;
    let c = w.connect().await;
    let buried = w.json(&["dlq", "list"]).await["letters"][2]["buried_at"].as_str().unwrap().to_owned();
    let before_ms = buried.parse::<jiff::Timestamp>().unwrap().as_millisecond();
    // Buried before the third was: a cut between two letters.
    let of = Selection { before_ms: u64::try_from(before_ms).ok(), ..Selection::default() };
    let survey = c.broker.survey_letters(&of).await.unwrap();
    assert_eq!(survey.letters, 2);
    let all = c.broker.survey_letters(&Selection::default()).await.unwrap();
    w.run(&["enqueue", "thumbnail", "--id", "late"]).await.exits(0);
    w.run(&["cancel", "late"]).await.exits(0);
    w.run(&["dlq", "purge", "--id", "b", "--yes"]).await.exits(0);
    assert_eq!(c.broker.purge_letters(&of, &survey).await.unwrap(), 1);
    assert_eq!(left(&w).await, ["c", "late"]);
    assert_eq!(
        c.broker.purge_letters(&Selection::default(), &all).await.unwrap(),
        1,
        "c: the others are gone"
    );
    assert_eq!(left(&w).await, ["late"]);
}
