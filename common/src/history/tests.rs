//! What the checker finds, and what it does not mind.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::{JobId, ids::receipt_id};

fn event(rev: u64, kind: &str, status: &str, epoch: u64) -> Event {
    of("a", rev, kind, status, epoch)
}

fn of(job: &str, rev: u64, kind: &str, status: &str, epoch: u64) -> Event {
    serde_json::from_value(json!({
        "v": 1, "job": job, "gen": 1, "rev": rev, "kind": kind, "at": "", "queue": "q", "type": "t", "status": status,
        "contract": "acked", "attempt": 1, "epoch": epoch, "data": {"receipt": {"outcome": status}}
    }))
    .unwrap()
}

fn in_generation(generation: u32, mut e: Event) -> Event {
    e.generation = generation;
    e
}

fn check(events: Vec<Event>) -> Result<(), Violation> {
    History::fold(events).and_then(|h| h.check())
}

/// What the audit says of a journal whose oldest messages are gone.
fn cut(events: &[Event]) -> Vec<String> {
    let mut a = Audit::new(true);
    events.iter().for_each(|e| a.take(e));
    a.end();
    a.findings().iter().map(|f| f.what.clone()).collect()
}

/// A job with a lost attempt, reports and a replay.
fn long_life() -> Vec<Event> {
    let mut e = vec![
        event(1, "started", "running", 1),
        event(2, "acked", "running", 1),
        event(3, "progress", "running", 1),
        event(4, "sla_missed", "running", 1),
        event(5, "nudged", "running", 1),
        event(6, "lost", "retry_wait", 1),
        event(7, "cancel_requested", "retry_wait", 1),
        event(8, "started", "running", 2),
        event(9, "deferred", "deferred", 2),
        event(10, "deferred", "deferred", 2),
        event(11, "started", "running", 7),
        event(12, "waiting_input", "waiting_input", 7),
        event(13, "answered", "running", 7),
        event(14, "attempt_failed", "retry_wait", 7),
        event(15, "buried", "failed", 7),
        event(16, "finished", "failed", 7),
        event(17, "receipt_delivered", "failed", 7),
    ];
    let second = [
        event(18, "replayed", "queued", 7),
        event(19, "started", "running", 8),
        event(20, "released", "queued", 8),
        event(21, "started", "running", 9),
        event(22, "finished", "done", 9),
        event(23, "receipt_failed", "done", 9),
        event(24, "deleted", "done", 9),
    ];
    e.extend(second.map(|e| in_generation(2, e)));
    e
}

// Shows: P2, P7
#[test]
fn the_checker_finds_each_violation() {
    let start = event(1, "started", "running", 1);
    let done = event(2, "finished", "done", 1);
    let deleted = event(3, "deleted", "done", 1);
    let told = event(3, "receipt_delivered", "done", 1);
    check(vec![start.clone(), done.clone()]).unwrap();
    check(vec![start.clone(), start.clone(), done.clone()]).unwrap();
    check(vec![start.clone(), done.clone(), deleted.clone()]).unwrap();
    check(long_life()).unwrap();
    let with = |more: &[Event]| {
        let mut all = vec![start.clone(), done.clone()];
        all.extend_from_slice(more);
        all
    };
    let mut lying = done.clone();
    lying.data["receipt"]["outcome"] = "failed".into();
    let mut of_another = done.clone();
    of_another.data["receipt"]["job"] = "b".into();
    let mut other_id = done.clone();
    other_id.data["receipt"]["receipt"] = "rct_1".into();
    for (bad, why) in [
        (vec![], "empty"),
        (vec![start.clone(), event(3, "finished", "done", 1)], "revision 2 is missing"),
        (vec![event(0, "started", "running", 1)], "revision 0"),
        (with(&[event(3, "finished", "failed", 1)]), "finished after the outcome"),
        (with(&[event(3, "progress", "running", 1)]), "progress after the outcome"),
        (vec![start.clone(), event(2, "started", "running", 2)], "inside another"),
        (vec![start.clone(), event(1, "started", "running", 2)], "two different events"),
        (vec![event(1, "finished", "done", 1)], "done without an attempt"),
        (
            vec![start.clone(), event(2, "lost", "retry_wait", 1), event(3, "started", "running", 1)],
            "epoch 1 was used before",
        ),
        (vec![start.clone(), event(2, "lost", "retry_wait", 0)], "epoch fell"),
        (vec![start.clone(), event(2, "progress", "running", 2)], "outside its attempt"),
        (vec![event(1, "progress", "running", 1)], "does not run"),
        (vec![start.clone(), event(2, "finished", "running", 1)], "finished as running"),
        (vec![start.clone(), event(2, "finished", "vanished", 1)], "finished as an unknown status"),
        (vec![start.clone(), event(2, "lost", "queued", 1)], "lost as queued"),
        (vec![start.clone(), event(2, "deleted", "running", 1)], "deleted before the outcome"),
        (vec![start.clone(), event(2, "buried", "failed", 1)], "buried while an attempt runs"),
        (vec![start.clone(), event(2, "receipt_delivered", "running", 1)], "before the outcome"),
        (vec![start.clone(), event(2, "answered", "running", 1)], "does not fit"),
        (vec![start.clone(), lying], "receipt says something else"),
        (vec![start.clone(), of_another], "receipt says something else"),
        (vec![start.clone(), other_id], "receipt says something else"),
        (with(&[told.clone(), event(4, "receipt_failed", "done", 1)]), "settled before"),
        (with(&[event(3, "receipt_delivered", "failed", 1)]), "receipt_delivered as failed"),
        (with(&[event(3, "deleted", "failed", 1)]), "deleted as failed"),
        (with(&[deleted.clone(), event(4, "deleted", "done", 1)]), "after the record was deleted"),
        (with(&[deleted, event(4, "receipt_delivered", "done", 1)]), "after the record was deleted"),
        (with(&[in_generation(3, event(3, "replayed", "queued", 1))]), "replayed to generation 3"),
        (vec![start.clone(), in_generation(2, event(2, "replayed", "queued", 1))], "from an open one"),
        (vec![start.clone(), in_generation(2, event(2, "lost", "retry_wait", 1))], "generation 2 inside 1"),
    ] {
        let found = check(bad.clone()).expect_err(&format!("{why}: {bad:#?}"));
        assert!(found.to_string().contains(why), "{found} instead of {why}");
    }
}

#[test]
fn the_receipt_of_the_generation_is_the_only_true_one() {
    let mut done = event(2, "finished", "done", 1);
    let id = receipt_id(&JobId::new("a").unwrap(), 1, "finished");
    done.data = json!({"receipt": {"outcome": "done", "job": "a", "gen": 1, "receipt": id}});
    check(vec![event(1, "started", "running", 1), done]).unwrap();
}

#[test]
fn kinds_of_a_newer_release_have_their_place_and_nothing_else() {
    let all = vec![
        event(1, "started", "running", 1),
        event(2, "sparkled", "shiny", 1),
        event(3, "finished", "done", 1),
        event(4, "framed", "done", 1),
    ];
    check(all.clone()).unwrap();
    let mut gap = all;
    gap.remove(1);
    assert!(check(gap).is_err());
}

#[test]
fn a_receipt_may_be_settled_after_a_replay_and_once() {
    let base = vec![
        event(1, "started", "running", 1),
        event(2, "finished", "failed", 1),
        in_generation(2, event(3, "replayed", "queued", 1)),
        event(4, "receipt_delivered", "failed", 1),
        in_generation(2, event(5, "started", "running", 2)),
    ];
    check(base.clone()).unwrap();
    let mut twice = base;
    twice.push(event(6, "receipt_failed", "failed", 1));
    assert!(check(twice).is_err());
}

#[test]
fn a_deleted_jobs_id_may_begin_a_new_life() {
    let mut all = vec![
        event(1, "started", "running", 1),
        event(2, "finished", "done", 1),
        event(3, "deleted", "done", 1),
    ];
    let mut again = of("a", 1, "started", "running", 1);
    again.at = "later".into();
    // A copy of the old life is no new one.
    all.push(all[0].clone());
    all.push(again);
    all.push(in_generation(1, event(2, "finished", "failed", 1)));
    let mut a = Audit::new(false);
    all.iter().for_each(|e| a.take(e));
    a.end();
    assert_eq!(a.findings(), []);
    assert_eq!((a.tally().failed, a.tally().copies, a.tally().deleted), (1, 1, 0));
}

/// An event at a second of some hour, by the clock of the store.
fn at(second: u32, e: Event) -> Event {
    Event { at: format!("2026-11-21T08:00:{second:02}.000Z"), ..e }
}

/// What the audit makes of a journal that begins with its first message: what is wrong, and the numbers.
fn audited(events: &[Event]) -> (Vec<Finding>, Tally) {
    let mut a = Audit::new(false);
    events.iter().for_each(|e| a.take(e));
    a.end();
    (a.findings().to_vec(), a.tally())
}

/// A life with a delivered receipt, and the one after it, each in order.
fn two_lives() -> [Vec<Event>; 2] {
    let first = vec![
        at(1, event(1, "started", "running", 1)),
        at(2, event(2, "finished", "done", 1)),
        at(3, event(3, "receipt_delivered", "done", 1)),
        at(4, event(4, "deleted", "done", 1)),
    ];
    let second = vec![
        at(5, event(1, "started", "running", 1)),
        at(6, event(2, "lost", "retry_wait", 1)),
        at(7, event(3, "started", "running", 2)),
        at(8, event(4, "progress", "running", 2)),
        at(9, event(5, "progress", "running", 2)),
        at(10, event(6, "finished", "failed", 2)),
    ];
    [first, second]
}

// Shows: P7
#[test]
fn a_new_life_may_be_read_before_the_end_of_the_one_before() {
    let [first, second] = two_lives();
    // The last events of the old life come behind as many of the new one as you like.
    for held in 1..=2 {
        for n in 0..=second.len() {
            let (told, late) = first.split_at(first.len() - held);
            let (before, after) = second.split_at(n);
            let all = [told, before, late, after].concat();
            let (found, t) = audited(&all);
            assert_eq!(found, [], "{held} held back behind {n}");
            assert_eq!((t.events, t.failed, t.done, t.deleted, t.copies), (10, 1, 0, 0, 0));
            let h = History::fold(all).unwrap();
            assert_eq!((h.check(), h.count("a", "started"), h.copies), (Ok(()), 3, 0));
        }
    }
}

// Shows: P7
#[test]
fn the_events_of_a_life_that_is_kept_aside_may_be_out_of_order_and_there_twice() {
    let [first, second] = two_lives();
    let (told, late) = first.split_at(3);
    let [s, l, again, ..] = &second[..] else { panic!("{second:?}") };
    let mixed = [again, l, s, l, &told[0], s, &told[2]].map(Clone::clone);
    let (found, t) = audited(&[told, &mixed, late, &second[3..], &second[..1]].concat());
    assert_eq!(found, []);
    assert_eq!((t.events, t.copies, t.failed), (10, 5, 1));
    // All in one millisecond.
    let now: Vec<Event> = second.iter().cloned().map(|e| at(5, e)).collect();
    let deleted = at(5, late[0].clone());
    assert_eq!(audited(&[told, &now[..4], &[deleted], &now[4..]].concat()).0, []);
    // A third life may begin behind the end of the second.
    let mut third = second.clone();
    third.push(at(11, event(7, "deleted", "failed", 2)));
    third.push(at(12, event(1, "started", "running", 1)));
    let (found, t) = audited(&[told, &third, late].concat());
    assert_eq!((found.as_slice(), t.open, t.events), (&[][..], 1, 12));
}

// Shows: P7
#[test]
fn copies_of_a_former_life_say_nothing_of_the_next_one() {
    let [first, second] = two_lives();
    let third = [at(11, event(7, "deleted", "failed", 2)), at(12, event(1, "started", "running", 1))];
    for n in 0..=second.len() {
        let (before, after) = second.split_at(n);
        let (found, t) = audited(&[&first[..], before, &first, after].concat());
        assert_eq!(found, [], "behind {n}");
        assert_eq!((t.events, t.copies, t.failed, t.deleted), (10, 4, 1, 0), "behind {n}");
        let (found, t) = audited(&[&first[..], &second, &third, &second].concat());
        assert_eq!((found, t.copies, t.open), (vec![], 6, 1));
    }
}

// Shows: P7
#[test]
fn the_old_life_may_have_had_more_revisions_than_are_remembered() {
    let mut all = vec![at(1, event(1, "started", "running", 1))];
    all.extend((2..100).map(|rev| at(2, event(rev, "progress", "running", 1))));
    all.push(at(3, event(100, "finished", "done", 1)));
    let copy = all[0].clone();
    all.extend([at(5, event(1, "started", "running", 1)), at(6, event(2, "progress", "running", 1))]);
    all.push(copy);
    all.extend([at(4, event(101, "deleted", "done", 1)), at(7, event(3, "finished", "failed", 1))]);
    let (found, t) = audited(&all);
    assert_eq!(found, []);
    assert_eq!((t.copies, t.failed, t.events), (1, 1, 104));
}

// Shows: P7
#[test]
fn a_life_without_the_end_of_the_one_before_is_a_gap_and_ambiguous_in_the_end() {
    let [first, second] = two_lives();
    let (told, late) = first.split_at(3);
    let mut a = Audit::new(false);
    told.iter().chain(&second[..1]).for_each(|e| a.take(e));
    assert_eq!((a.gaps(), a.findings().len()), (1, 0));
    // A comparison with the store has to do with the life that the store knows.
    let known = |a: &Audit| a.told("a").map(|t| (t.rev, t.is_running, t.is_ended));
    assert_eq!(known(&a), Some((1, true, false)));
    a.take(&late[0]);
    assert_eq!((a.gaps(), known(&a)), (0, Some((1, true, false))));

    let (found, t) = audited(&[told, &second[..3]].concat());
    assert_eq!((found[0].ambiguous, found.len(), t.broken, t.deleted), (Some(1), 1, 1, 0));
    let found = History::fold([told, &second[..3]].concat()).unwrap_err();
    let Violation::Ambiguous(pair) = found else { panic!("{found}") };
    assert_eq!([&pair.0, &pair.1], [&first[0], &second[0]]);
}

// Shows: P2, P7
#[test]
fn what_no_life_explains_stays_ambiguous() {
    let started = at(1, event(1, "started", "running", 1));
    let done = at(3, event(2, "finished", "done", 1));
    let deleted = at(5, event(3, "deleted", "done", 1));
    let base = [started.clone(), done.clone()];
    let other = |second, e: Event| at(second, e);
    let failed = || event(2, "finished", "failed", 2);
    let again = || event(1, "started", "running", 2);
    for (why, more) in [
        ("another outcome", vec![other(4, failed())]),
        ("another outcome, and the end", vec![other(4, failed()), deleted.clone()]),
        ("another beginning, and the end after it", vec![other(4, again()), deleted.clone()]),
        (
            "a second life before the end of the first",
            vec![other(4, again()), other(6, failed()), deleted.clone()],
        ),
        ("what is not later than the outcome", vec![other(3, again()), deleted.clone()]),
        ("a time that cannot be read", vec![again(), deleted.clone()]),
        (
            "two lives beside the old one",
            vec![other(6, again()), other(7, failed()), other(8, again()), deleted.clone()],
        ),
        (
            "a second life before the end of the first, which was read early",
            vec![
                other(9, event(4, "deleted", "done", 1)),
                other(5, again()),
                other(4, event(3, "receipt_delivered", "done", 1)),
            ],
        ),
        (
            "the same, read backwards",
            vec![other(7, failed()), other(5, again()), other(6, event(3, "deleted", "done", 1))],
        ),
        ("a new life in which nothing fits", vec![other(6, event(1, "progress", "running", 1)), deleted]),
    ] {
        let all = [&base[..], &more].concat();
        let found = History::fold(all.clone()).err();
        assert!(matches!(found, Some(Violation::Ambiguous(_))), "{why}: {found:?}");
        assert_eq!(audited(&all).1.broken, 1, "{why}");
    }
    // Nor is a job reborn that has no outcome.
    let (found, _) = audited(&[started, other(2, again()), done]);
    assert_eq!(found[0].ambiguous, Some(1));
}

#[test]
fn a_journal_that_lost_its_oldest_messages_may_begin_anywhere() {
    let all = long_life();
    for from in 1..all.len() {
        assert_eq!(cut(&all[from..]), Vec::<String>::new(), "from {from}");
        assert!(check(all[from..].to_vec()).is_err(), "only where the oldest are gone, from {from}");
    }
    // What is left is still checked.
    let mut bad = all[18..].to_vec();
    bad[2].epoch = 3;
    assert!(cut(&bad)[0].contains("epoch fell"), "{:?}", cut(&bad));
    // A job that begins with its first event has lost none.
    let gap = [all[0].clone(), all[2].clone()];
    assert_eq!(cut(&gap), ["revision 2 is missing, 3 follows"]);
    // An entry that was published late outlived one that was published in time: at the head of the journal, and nowhere else.
    let late = [all[2].clone(), all[4].clone(), all[5].clone()];
    assert_eq!(cut(&late), Vec::<String>::new());
    let mut long: Vec<Event> =
        (0..100_000).map(|i| of(&format!("j{i}"), 1, "started", "running", 1)).collect();
    long.extend(late);
    assert_eq!(cut(&long), ["revision 4 is missing, 5 follows"]);
}

#[test]
fn a_second_life_after_a_forgotten_first_one_is_none_too_many() {
    let mut second = event(1, "started", "running", 1);
    second.at = "later".into();
    let found = cut(&[event(9, "deleted", "done", 4), second, event(2, "finished", "done", 1)]);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn gaps_are_known_until_they_close() {
    let mut a = Audit::new(false);
    a.take(&event(2, "finished", "done", 1));
    a.take(&of("b", 2, "finished", "done", 1));
    assert_eq!(a.gaps(), 2);
    a.take(&event(1, "started", "running", 1));
    assert_eq!((a.gaps(), a.findings().len()), (1, 0));
    a.end();
    assert_eq!(a.findings().len(), 1);
    assert_eq!((a.findings()[0].job.as_str(), a.tally().broken, a.tally().done), ("b", 1, 1));
}

// Shows: P7
#[test]
fn a_million_events_take_little_memory_for_each_job() {
    // One job that reports for ever, among many short ones: nothing grows with the number of its events.
    let mut a = Audit::new(false);
    a.take(&event(1, "started", "running", 1));
    for rev in 2..50_000 {
        a.take(&event(rev, "progress", "running", 1));
        if rev % 100 == 0 {
            a.take(&event(rev - 20, "progress", "running", 1));
        }
    }
    // Within the last revisions another content is found; a copy from long ago is one.
    a.take(&event(3, "progress", "running", 1));
    assert_eq!((a.findings().len(), a.tally().copies), (0, 500));
    let size = size_of::<order::Line>();
    assert!(size <= 128, "{size} bytes for each job");
    let mut other = event(49_990, "progress", "running", 1);
    other.at = "other".into();
    a.take(&other);
    assert_eq!(a.findings()[0].ambiguous, Some(49_990));
}

proptest! {
    // Shows: P7
    #[test]
    fn the_order_of_reading_and_copies_change_nothing(
        keys in prop::collection::vec(any::<u32>(), 24),
        copies in prop::collection::vec(0usize..24, 0..10),
    ) {
        let mut all = long_life();
        for c in copies {
            all.push(all[c].clone());
        }
        let mut keyed: Vec<(u32, Event)> =
            all.into_iter().enumerate().map(|(i, e)| (keys[i % 24].wrapping_add(i as u32 / 24), e)).collect();
        keyed.sort_by_key(|(k, _)| *k);
        let read: Vec<Event> = keyed.into_iter().map(|(_, e)| e).collect();
        let h = History::fold(read).unwrap();
        prop_assert_eq!(h.check(), Ok(()));
        prop_assert_eq!(h.jobs["a"].events.clone(), long_life());
    }

    // Shows: P7
    #[test]
    fn what_is_left_of_the_old_life_may_come_anywhere_in_the_new_one(
        keys in prop::collection::vec(any::<u32>(), 14),
        copies in prop::collection::vec(0usize..10, 4),
    ) {
        let [first, second] = two_lives();
        let (told, late) = first.split_at(2);
        let every = [&first[..], &second].concat();
        let mut rest = [late, &second[1..]].concat();
        rest.extend(copies.into_iter().map(|c| every[c].clone()));
        let mut keyed: Vec<(u32, Event)> = keys.into_iter().zip(rest).collect();
        keyed.sort_by_key(|(k, _)| *k);
        let rest: Vec<Event> = keyed.into_iter().map(|(_, e)| e).collect();
        let all = [told, &second[..1], &rest].concat();
        let (found, t) = audited(&all);
        prop_assert_eq!(found, []);
        prop_assert_eq!((t.events, t.failed, t.deleted), (10, 1, 0));
    }

    #[test]
    fn a_missing_event_is_always_found(missing in 0usize..23) {
        let mut all = long_life();
        all.remove(missing);
        prop_assert!(check(all).is_err());
    }

    #[test]
    fn a_place_that_is_kept_for_a_lost_event_is_no_gap(lost in 0usize..24) {
        let mut all = long_life();
        let kept = Event { kind: "missing".into(), epoch: 0, attempt: 0, data: serde_json::Value::Null, ..all[lost].clone() };
        all[lost] = kept;
        prop_assert!(check(all.clone()).is_ok(), "{:?}", check(all));
    }

    #[test]
    fn an_event_that_says_something_else_is_always_found(which in 0usize..24, at in "[a-z]{1,5}") {
        let mut all = long_life();
        let mut other = all[which].clone();
        other.at = at;
        all.push(other);
        // Behind `deleted` it is the beginning of another life, and no sound one.
        prop_assert!(check(all).is_err() || which == 0);
    }
}

#[test]
fn every_kind_has_its_place_in_the_table() {
    let told: std::collections::BTreeSet<String> = long_life().into_iter().map(|e| e.kind).collect();
    let missing: Vec<&str> = crate::domain::EventKind::ALL
        .iter()
        .map(|k| k.name())
        .filter(|k| {
            !told.contains(*k)
                && !["tool", "phase_started", "phase_completed", "checkpoint", "missing"].contains(k)
        })
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}
