//! Machines whose clocks are wrong by ten minutes, and deadlines at their very moment.

use std::time::Duration;

use surety_common::{domain::Status, store::SessionInfo};
use surety_tests::{
    process::Process,
    witness::{QUICK, Witness, ms, settled, wait_logged},
    world::World,
};

const AHEAD: (&str, &str) = ("SURETY_CLOCK_SKEW", "10m");
const BEHIND: (&str, &str) = ("SURETY_CLOCK_SKEW", "-10m");

/// Milliseconds from one event of a job to another.
fn between(events: &[surety_common::wire::event::Event], from: &str, to: &str) -> i64 {
    let at =
        |kind: &str| ms(&events.iter().find(|e| e.kind == kind).unwrap_or_else(|| panic!("no {kind}")).at);
    at(to) - at(from)
}

// Shows: X-01
#[tokio::test]
async fn with_clocks_ten_minutes_wrong_every_time_is_kept_as_with_right_ones() {
    let witness = Witness::default();
    let handlers = witness.handler("long", "sleep 3")
        + &witness.handler("flaky", "[ $SURETY_ATTEMPT -gt 1 ] || exit 1")
        + &witness.handler("late", "exec sleep 30");
    // What ended five minutes ago is forgotten: for a clock that is ahead that is everything.
    let world = World::with(&(handlers + QUICK + "[reaper]\nkeep = \"5m\"\n")).await;
    let c = world.connect().await;
    let start = |name: &str, env| world.worker(&["--state-dir", &world.path(name), "--slots", "4"], &[env]);
    let mut all: Vec<Process> = vec![start("ahead", AHEAD), start("behind", BEHIND), world.reaper(&[AHEAD])];
    for p in &mut all[..2] {
        p.logged("worker ready").await;
    }
    let now = jiff::Timestamp::now();
    let at = |minutes: i64| (now + jiff::SignedDuration::from_mins(minutes)).to_string();
    for i in 0..4 {
        world.publish("default", &format!("long-{i}"), r#"{"type":"long"}"#).await;
        world
            .publish("default", &format!("flaky-{i}"), r#"{"type":"flaky","retry":{"backoff":["700ms"]}}"#)
            .await;
        let body = |minutes| format!(r#"{{"type":"noop","expires_at":"{}"}}"#, at(minutes));
        world.publish("default", &format!("fresh-{i}"), &body(5)).await;
        world.publish("default", &format!("stale-{i}"), &body(-5)).await;
        // Long enough that each has been started by then, also where the machine is slow.
        let terms = r#""contract":{"finish":"6s","progress":"500ms"}"#;
        world.publish("default", &format!("late-{i}"), &format!(r#"{{"type":"late",{terms}}}"#)).await;
        world
            .publish("default", &format!("patient-{i}"), r#"{"type":"noop","contract":{"finish":"5m"}}"#)
            .await;
    }
    // For later, from machines whose clocks are wrong.
    let mut due = Vec::new();
    for (id, env) in [("in-ahead", AHEAD), ("in-behind", BEHIND)] {
        let said = world
            .surety_with(&[env], &["enqueue", "noop", "--id", id, "--in", "2s", "--json"])
            .await
            .exits(0);
        due.push((id, jiff::Timestamp::now().as_millisecond() + 2000, said.json()["due_at"].clone()));
    }
    for i in 0..4 {
        for (name, status, code) in [
            ("long", Status::Done, ""),
            ("flaky", Status::Done, ""),
            ("fresh", Status::Done, ""),
            ("stale", Status::Failed, "expired"),
            ("late", Status::TimedOut, "finish_deadline"),
            ("patient", Status::Done, ""),
        ] {
            let r = world.ended(&c, &format!("{name}-{i}")).await;
            assert_eq!((r.status, r.code.as_str()), (status, code), "{name}-{i}\n{}", world.logs());
        }
    }
    for (id, due_ms, said) in &due {
        let r = world.ended(&c, id).await;
        assert_eq!(r.status, Status::Done);
        let started = i64::try_from(r.started_ms).unwrap();
        assert!(
            (-1000..4000).contains(&(started - due_ms)),
            "{id} started {} ms after its time",
            started - due_ms
        );
        let told = ms(said.as_str().unwrap());
        assert!((told - due_ms).abs() < 2000, "{id}: told to be due at {said}");
    }
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let now = i64::try_from(c.store.now_ms().await.unwrap()).unwrap();
    let mut sessions = std::collections::BTreeSet::new();
    for (job, j) in &h.jobs {
        assert_eq!(h.count(job, "lost"), 0, "{job}: no false loss");
        assert_eq!(h.count(job, "deleted"), 0, "{job}: forgotten too early");
        let wait = match job.split('-').next().unwrap() {
            "flaky" => between(&j.events, "attempt_failed", "finished") - 700,
            "late" => {
                let missed = between(&j.events, "started", "sla_missed") - 500;
                assert!(
                    (0..3000).contains(&missed),
                    "{job}: progress was missed {missed} ms after its promise"
                );
                continue;
            }
            _ => 0,
        };
        assert!((0..4000).contains(&wait), "{job} was {wait} ms late");
        for e in &j.events {
            assert!((now - 120_000..=now).contains(&ms(&e.at)), "{job}: {} at {}", e.kind, e.at);
            sessions.extend(e.session.clone());
        }
    }
    assert_eq!(sessions.len(), 2, "both workers had jobs");
    for session in sessions {
        let info = c.store.session_info(0, &session.parse().unwrap()).await.unwrap().unwrap();
        let info: SessionInfo = serde_json::from_str(&info).unwrap();
        let off = now - ms(&info.started_at.unwrap());
        assert!(off.abs() > 500_000, "the clock of {session} was right");
    }
    for mut p in all {
        assert_eq!(p.stop().await, Some(0));
    }
}

// Shows: X-02
#[tokio::test]
async fn a_lease_is_renewed_until_its_very_end_and_the_worker_gives_up_a_margin_earlier() {
    use super::scripts::{CAP, World as Scripts, claim, session};
    use surety_common::store::StoreError;
    let w = Scripts::start().await;
    let me = session("edge");
    let ttl = Duration::from_millis(1500);
    let opened = w.store.now_ms().await.unwrap();
    w.store.open_session(0, &me, ttl, "{}").await.unwrap();
    let (_, expires) =
        w.store.sessions(0, u64::MAX >> 1, 10).await.unwrap().into_iter().find(|s| s.0 == me).unwrap();
    assert!(expires >= opened + 1500, "counted from a moment that is later than the start of the call");
    // At its expiry, by the clock of the store, a session is over; a millisecond before it is not.
    let mut last_alive = 0;
    loop {
        let before = w.store.now_ms().await.unwrap();
        let claimed = w.store.claim(0, &me, CAP, &[]).await;
        let after = w.store.now_ms().await.unwrap();
        match claimed {
            Ok(a) => {
                assert!(a.now_ms < expires, "alive at {} with an expiry of {expires}", a.now_ms);
                last_alive = a.now_ms;
            }
            Err(StoreError::SessionLost) => {
                assert!(after >= expires, "lost at {before} to {after} with an expiry of {expires}");
                break;
            }
            Err(e) => panic!("{e}"),
        }
    }
    assert!(expires - last_alive < 500, "it was looked at until its end");
    assert!(
        matches!(w.store.renew(0, &me, ttl, &[]).await, Err(StoreError::SessionLost)),
        "too late is too late"
    );
    // Not due is not due until the moment, and due at it.
    w.claim(&[claim("a")]).await;
    let retry = surety_common::store::Verdict::Retry {
        code: surety_common::domain::ErrorCode::Signal,
        delay: Duration::from_millis(600),
    };
    w.finish(&[super::scripts::finish("a", 1, retry)]).await;
    let due = w.store.record(&super::scripts::id("a")).await.unwrap().unwrap().due_ms;
    loop {
        let a = w.store.claim(0, &w.session, CAP, &[claim("a")]).await.unwrap();
        match &a.results[0] {
            surety_common::store::ClaimReply::NotDue { due_in_ms } => {
                assert_eq!(a.now_ms + due_in_ms, due);
                assert!(*due_in_ms > 0);
            }
            surety_common::store::ClaimReply::Granted(_) => {
                assert!(a.now_ms >= due, "granted {} ms early", due - a.now_ms);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

// Shows: H-07
#[tokio::test]
async fn a_silent_run_that_renews_misses_its_progress_and_is_not_killed() {
    let witness = Witness::default();
    let world =
        World::with(&(witness.handler("silent", "until [ -e $W.go ]; do sleep 0.02; done") + QUICK)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"silent","contract":{"progress":"300ms"}}"#).await;
    witness.started("a", 1).await;
    wait_logged(&world, "the missed progress", async || {
        world.history(&c).await.count("a", "sla_missed") == 1
    })
    .await;
    // Longer than its lease and its ack-wait: it lives by its renewals, which are no progress.
    let missed = c.store.now_ms().await.unwrap();
    wait_logged(&world, "some leases to pass", async || c.store.now_ms().await.unwrap() > missed + 4500)
        .await;
    assert!(witness.lives("a"));
    witness.touch("go");
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 1, 0));
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "sla_missed"), h.count("a", "lost")), (1, 0));
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}
