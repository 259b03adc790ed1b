//! The crash-loop guard that every type has, and the limit of lost attempts, with real workers and servers.

use surety_common::{
    connect::Connected,
    domain::Status,
    store::{ClaimItem, ClaimReply, WatchItem},
};
use surety_tests::{
    scrape::{Scrape, address},
    witness::{Witness, dead_letters, id, kinds, settled, wait_logged},
    world::{World, wait},
};

use super::scripts::{World as Scripts, claim};

/// Dies by a signal until `$W.mended` is there.
const CRASHES: &str = "[ -e $W.mended ] || kill -SEGV $$";
/// A worker that gets little of the machine is not taken for dead: that would be one more crash.
const PATIENT: &str = "[lease]\nttl = \"6s\"\n";
/// Nothing is wrong with it.
const FINE: &str = ":";

fn job(kind: &str) -> String {
    format!(r#"{{"type":"{kind}","retry":{{"max_retries":0}}}}"#)
}

fn guard(threshold: u32, open: &str) -> String {
    let longest = if open == "10s" { open } else { "4s" };
    format!(
        "[guards]\ncrash_except = []\ncrash_threshold = {threshold}\ncrash_window = \"30s\"\ncrash_open = \"{open}\"\ncrash_longest = \"{longest}\"\n"
    )
}

async fn scopes(c: &Connected) -> Vec<String> {
    c.store.scopes().await.unwrap().into_iter().map(|s| s.scope.label).collect()
}

/// Publishes jobs that crash, `boom<n>` with n from `from` on, until one is suppressed: its number.
async fn until_suppressed(world: &World, c: &Connected, from: usize) -> usize {
    for n in from..1000 {
        let name = format!("boom{n}");
        world.publish("default", &name, &job("boom")).await;
        let r = world.until(c, &name, |r| r.status.is_terminal() || r.status == Status::Deferred).await;
        if r.status == Status::Deferred {
            return n;
        }
    }
    panic!("nothing suppresses it");
}

/// A number that the only scope keeps.
async fn kept(c: &Connected, field: &str) -> Option<u64> {
    c.store.scopes().await.unwrap().first()?.fields.get(field)?.parse().ok()
}

#[tokio::test]
async fn a_claim_of_a_type_that_is_watched_asks_first_and_an_older_word_counts_for_nothing() {
    let w = Scripts::start().await;
    let now = w.store.now_ms().await.unwrap();
    let word = |kind: &str, until_ms, said_ms| WatchItem { job_type: kind.into(), until_ms, said_ms };
    w.store.watch(0, &[word("t", now + 60_000, now), word("u", now + 60_000, now)]).await.unwrap();
    let ask_first =
        |r: &ClaimReply| matches!(r, ClaimReply::AskFirst { for_ms } if (1..=60_000).contains(for_ms));
    assert!(ask_first(&w.claim(&[claim("a")]).await[0]));
    let other = ClaimItem { job_type: "fine".into(), ..claim("b") };
    assert!(matches!(w.claim(&[other]).await[0], ClaimReply::Granted(_)));
    let asked = ClaimItem { has_asked: true, ..claim("a") };
    assert!(matches!(w.claim(&[asked]).await[0], ClaimReply::Granted(_)));
    w.store.watch(0, &[word("t", 0, now - 1)]).await.unwrap();
    assert!(ask_first(&w.claim(&[claim("c")]).await[0]), "that was said before");
    w.store.watch(0, &[word("t", 0, now + 1)]).await.unwrap();
    assert!(matches!(w.claim(&[claim("c")]).await[0], ClaimReply::Granted(_)));
    w.store.watch(0, &[word("t", now + 60_000, now)]).await.unwrap();
    assert!(matches!(w.claim(&[claim("d")]).await[0], ClaimReply::Granted(_)), "that was said before, too");
    let u = ClaimItem { job_type: "u".into(), ..claim("e") };
    assert!(ask_first(&w.claim(&[u]).await[0]), "the other one is not touched");
}

// Shows: S-08
#[tokio::test]
async fn a_type_that_crashes_is_suppressed_and_probed_and_no_other_type_ever_asks() {
    let witness = Witness::default();
    let handlers = witness.handler("boom", CRASHES) + &witness.handler("fine", FINE);
    let world = World::with(&(handlers + &guard(4, "2s"))).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[("SURETY_TELEMETRY_LISTEN", "127.0.0.1:0")]);
    let at = address(&mut worker).await;
    let mut reaper = world.reaper(&[]);
    world.publish("default", "fine1", &job("fine")).await;
    assert_eq!(world.ended(&c, "fine1").await.status, Status::Done);
    for n in 0..4 {
        assert_eq!(scopes(&c).await.is_empty(), n == 0, "nothing is asked before something crashes");
        world.publish("default", &format!("boom{n}"), &job("boom")).await;
        assert_eq!(world.ended(&c, &format!("boom{n}")).await.code, "signal");
        wait("the crash to be counted", async || !scopes(&c).await.is_empty()).await;
    }
    assert!(kept(&c, "told").await > Some(0), "it is watched");
    // A worker that is alone is believed at once; its last crash may not be told yet.
    let next = until_suppressed(&world, &c, 4).await;
    let boom = |n: usize| format!("boom{}", next + n);
    for n in 1..4 {
        world.publish("default", &boom(n), &job("boom")).await;
    }
    let refused = world.status(&c, &boom(3), Status::Deferred).await;
    assert_eq!((refused.code.as_str(), refused.attempt, refused.charged), ("crash_loop", 0, 0));
    wait("the deferrals to be counted", async || {
        Scrape::of(at).await.sum("surety_deferrals_total", &[("reason", "crash_loop")]) >= Some(1.0)
    })
    .await;
    world.publish("default", "fine2", &job("fine")).await;
    assert_eq!(world.ended(&c, "fine2").await.status, Status::Done);
    wait_logged(&world, "a probe that crashes", async || !witness.of(&boom(0)).is_empty()).await;
    assert_eq!(world.ended(&c, &boom(0)).await.code, "signal");
    witness.touch("mended");
    for n in 1..4 {
        assert_eq!(world.ended(&c, &boom(n)).await.status, Status::Done, "{}", boom(n));
    }
    settled(&world, &c).await;
    assert!(!scopes(&c).await.contains(&"fine".to_owned()));
    wait("nothing to be left", async || scopes(&c).await.is_empty()).await;
    world.publish("default", "calm", &job("boom")).await;
    assert_eq!(world.ended(&c, "calm").await.status, Status::Done);
    assert!(scopes(&c).await.is_empty(), "a type that is calm does not ask");
    let h = world.history(&c).await;
    h.check().unwrap();
    let said = &h.jobs[boom(3).as_str()].events[0].data;
    assert_eq!((said["reason"].as_str(), said["guard"].as_str()), (Some("crash_loop"), Some("boom")));
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-03
#[tokio::test]
async fn what_has_crashed_is_known_after_everything_was_restarted_in_the_window_and_so_is_a_suppression() {
    let witness = Witness::default();
    let mut world = World::with(&(witness.handler("boom", CRASHES) + &guard(4, "10s"))).await;
    let c = world.connect().await;
    for round in 0..2 {
        let mut worker = world.worker(&[], &[]);
        let mut reaper = world.reaper(&[]);
        for n in 0..2 {
            let name = format!("boom{round}{n}");
            world.publish("default", &name, &job("boom")).await;
            assert_eq!(world.ended(&c, &name).await.code, "signal");
        }
        settled(&world, &c).await;
        // A worker that is stopped has told the guard what crashed.
        assert_eq!(worker.stop().await, Some(0));
        assert_eq!(reaper.stop().await, Some(0));
        world.redis.kill9().await.unwrap();
        world.redis.restart().await.unwrap();
        wait("redis", async || c.store.now_ms().await.is_ok()).await;
    }
    witness.touch("mended");
    world.publish("default", "after", &job("boom")).await;
    let mut worker = world.worker(&[], &[]);
    let r = world.until(&c, "after", |r| r.status == Status::Deferred || r.started_ms > 0).await;
    assert_eq!((r.status, r.code.as_str()), (Status::Deferred, "crash_loop"), "it is four of both times");
    let mut reaper = world.reaper(&[]);
    assert_eq!(world.ended(&c, "after").await.status, Status::Done);
    settled(&world, &c).await;
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: J-08
#[tokio::test]
async fn a_start_that_fails_for_ever_is_tried_a_few_times_and_then_suppressed_without_a_charge() {
    let missing = "[handlers.missing]\ncommand = [\"/no/such/program\"]\n";
    let world = World::with(&(guard(4, "4s") + missing)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    world.publish("default", "a", &job("missing")).await;
    let r = world.until(&c, "a", |r| r.code == "crash_loop").await;
    assert_eq!((r.status, r.attempt, r.charged), (Status::Deferred, 0, 0));
    let tries = |kinds: &[String]| kinds.iter().filter(|k| *k == "started").count();
    // There is no other worker that could do better. One more may begin before the fourth is told.
    let first = tries(&kinds(&world, &c, "a").await);
    assert!((4..6).contains(&first), "{first}");
    // The probe fails, too: it is suppressed again, for as long as it may be.
    wait_logged(&world, "a probe", async || tries(&kinds(&world, &c, "a").await) == first + 1).await;
    let suppressed = async || {
        let now = kinds(&world, &c, "a").await;
        tries(&now) == first + 1 && world.until(&c, "a", |_| true).await.code == "crash_loop"
    };
    wait_logged(&world, "the suppression after it", suppressed).await;
    assert_eq!(c.store.record(&id("a")).await.unwrap().unwrap().charged, 0);
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

#[tokio::test]
async fn a_job_that_was_lost_too_often_is_buried_whatever_its_budget() {
    let witness = Witness::default();
    let config =
        witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done") + "[guards]\nlost_limit = 2\n";
    let world = World::with(&config).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    world.publish("default", "a", r#"{"type":"work","retry":{"max_retries":20,"backoff":["50ms"]}}"#).await;
    for n in 1..=2 {
        let mut worker = world.worker(&["--state-dir", &world.path(&format!("s{n}"))], &[]);
        wait_logged(&world, "an attempt", async || witness.executions("a") == n).await;
        worker.kill9().await;
        world.until(&c, "a", |r| r.lost == u32::try_from(n).unwrap()).await;
    }
    let r = world.ended(&c, "a").await;
    assert_eq!((r.status, r.code.as_str(), r.charged), (Status::Failed, "lost", 2));
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "a").await, ["started", "lost", "started", "finished"]);
    let h = world.history(&c).await;
    h.check().unwrap();
    let receipt = &h.jobs["a"].events[3].data["receipt"];
    assert_eq!(receipt["error_code"], "lost");
    let message = receipt["message"].as_str().unwrap();
    assert!(message.contains("2 attempts were lost") && message.contains("guards.lost_limit"), "{message}");
    wait("the dead letter", async || dead_letters(&world).await.len() == 1).await;
    assert_eq!(reaper.stop().await, Some(0));
}

#[tokio::test]
async fn the_death_of_a_worker_counts_once_whatever_it_ran_and_two_deaths_suppress_the_type() {
    let witness = Witness::default();
    let handler = witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done");
    let world = World::with(&(handler + &guard(2, "3s"))).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    for name in ["a", "b"] {
        let body = r#"{"type":"work","retry":{"max_retries":20,"backoff":["50ms"]}}"#;
        world.publish("default", name, body).await;
    }
    let mut died = 0;
    for n in 1..=2 {
        let mut worker = world.worker(&["--state-dir", &world.path(&format!("s{n}"))], &[]);
        for name in ["a", "b"] {
            wait_logged(&world, "an attempt", async || witness.executions(name) == n).await;
        }
        // Deaths within one lease are one.
        wait("the lease of the one before", async || {
            c.store.now_ms().await.is_ok_and(|now| now > died + 2000)
        })
        .await;
        worker.kill9().await;
        for name in ["a", "b"] {
            world.until(&c, name, |r| r.lost == u32::try_from(n).unwrap()).await;
        }
        // The first is an attempt that nobody had asked for, and is told by who takes it back; the second held a place.
        let openings = async || kept(&c, "level").await;
        wait_logged(&world, "the death to be counted", async || openings().await == Some(n as u64 - 1)).await;
        died = kept(&c, "died").await.unwrap();
    }
    let mut worker = world.worker(&["--state-dir", &world.path("s3")], &[]);
    for name in ["a", "b"] {
        world.until(&c, name, |r| r.code == "crash_loop").await;
    }
    witness.touch("go");
    for name in ["a", "b"] {
        assert_eq!(world.ended(&c, name).await.status, Status::Done);
        assert_eq!(witness.executions(name), 3);
    }
    settled(&world, &c).await;
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-06
#[tokio::test]
async fn a_probe_whose_worker_dies_opens_the_gate_again_and_the_next_one_is_tried() {
    let witness = Witness::default();
    let handler = witness.handler(
        "fetch",
        "if [ $SURETY_JOB_ID = first ]; then exit 1; fi; until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done",
    );
    let rule = "[guards.breaker.all]\nscope = \"{type}\"\nsample = 1\nopen = \"300ms\"\n";
    let world = World::with(&(handler + rule)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut one = world.worker(&[], &[]);
    world.publish("default", "first", &job("fetch")).await;
    assert_eq!(world.ended(&c, "first").await.status, Status::Failed);
    for name in ["probe", "next"] {
        world.publish("default", name, &job("fetch")).await;
        let was_refused = |r: &surety_common::store::Record| r.code == "circuit_open" || r.started_ms > 0;
        world.until(&c, name, was_refused).await;
    }
    witness.started("probe", 1).await;
    assert!(witness.of("next").is_empty(), "one probe");
    one.kill9().await;
    let mut two = world.worker(&["--state-dir", &world.path("s2")], &[]);
    assert_eq!(world.ended(&c, "probe").await.code, "attempts_exhausted");
    // Its death is a failure.
    wait("the gate to be open again", async || kept(&c, "level").await == Some(2)).await;
    witness.started("next", 1).await;
    witness.touch("go-next");
    assert_eq!(world.ended(&c, "next").await.status, Status::Done);
    settled(&world, &c).await;
    assert_eq!(two.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-08
#[tokio::test]
async fn a_worker_that_cannot_start_a_type_does_not_stop_it_for_those_that_can() {
    let witness = Witness::default();
    let world = World::with(&format!("[guards]\ncrash_except = []\n[worker]\nslots = 8\n{PATIENT}")).await;
    let c = world.connect().await;
    let bad = world.path("bad.toml");
    let missing = "[handlers.t]\ncommand = [\"/no/such/program\"]\n";
    std::fs::write(&bad, format!("{}\n{missing}", world.config)).unwrap();
    world.reconfigure(&witness.handler("t", "until [ -e $W.go ]; do sleep 0.02; done"));
    let mut reaper = world.reaper(&[]);
    let mut good = world.worker(&["--slots", "2"], &[]);
    let mut bad = world.worker(&["--config", &bad, "--state-dir", &world.path("s2")], &[]);
    good.logged("worker ready").await;
    bad.logged("worker ready").await;
    let names: Vec<String> = (0..32).map(|n| format!("j{n}")).collect();
    for name in &names {
        world.publish("default", name, r#"{"type":"t"}"#).await;
    }
    // While the good one's two slots are taken all others fail, more than the five that would stop a type. Its jobs run on well
    // within the three seconds after which one worker of several that fails alone is believed.
    let count = async |kind| {
        let h = world.history(&c).await;
        h.jobs.values().flat_map(|j| &j.events).filter(|e| e.kind == kind).count()
    };
    wait("the bad one to have failed often enough", async || count("deferred").await >= 6).await;
    witness.touch("go");
    wait("half of them to be done beside it", async || count("finished").await >= names.len() / 2).await;
    // It would get most of the rest again and again, each time with a longer delay.
    assert_eq!(bad.stop().await, Some(0));
    for name in &names {
        assert_eq!(world.ended(&c, name).await.status, Status::Done, "{name}");
    }
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let reasons: Vec<&str> =
        h.jobs.values().flat_map(|j| &j.events).filter_map(|e| e.data["reason"].as_str()).collect();
    assert!(!reasons.contains(&"crash_loop"), "{reasons:?}");
    assert_eq!(good.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

/// How many crashes the only scope counts.
async fn counted(c: &Connected) -> u64 {
    let scopes = c.store.scopes().await.unwrap();
    let ends = scopes.first().and_then(|s| s.fields.get("ends").cloned()).unwrap_or_default();
    ends.split(' ').skip(2).step_by(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

// Shows: S-08
#[tokio::test]
async fn an_attempt_of_a_watched_type_that_is_taken_from_its_worker_counts_once() {
    let witness = Witness::default();
    let body = "case $SURETY_JOB_ID in boom*) kill -SEGV $$;; esac; trap '' TERM; sleep 60";
    let handler = witness.handler("t", body) + "kill_grace = \"60s\"\n[reaper]\noverstay = \"500ms\"\n";
    let world = World::with(&(handler + &guard(4, "10s") + PATIENT)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut worker = world.worker(&[], &[]);
    for name in ["boom1", "boom2"] {
        world.publish("default", name, &job("t")).await;
        assert_eq!(world.ended(&c, name).await.code, "signal");
    }
    wait("it to be watched", async || kept(&c, "told").await > Some(0)).await;
    let late = r#"{"type":"t","retry":{"max_retries":0},"contract":{"timeout":"700ms"}}"#;
    world.publish("default", "late", late).await;
    let r = world.ended(&c, "late").await;
    assert_eq!((r.status, r.lost), (Status::Failed, 1));
    // The worker is fenced, kills it, and says nothing that was not said.
    worker.logged("fenced").await;
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(counted(&c).await, 3, "{}", world.logs());
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-08
#[tokio::test]
async fn by_default_five_crashes_suppress_a_type_for_ten_seconds() {
    let witness = Witness::default();
    // Everything about it is as it is without any setting.
    let world =
        World::with(&(witness.handler("boom", CRASHES) + "[guards]\ncrash_except = []\n" + PATIENT)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let n = until_suppressed(&world, &c, 0).await;
    assert!(n >= 5, "{n}");
    let scope = c.store.scopes().await.unwrap().remove(0);
    let view = surety_common::guard_view::view(&scope);
    assert_eq!((view.limit.as_str(), view.scope.as_str()), ("5 crashes in 5m", "boom"));
    let until: u64 = scope.fields["until"].parse().unwrap();
    assert!(until > scope.now_ms && until <= scope.now_ms + 10_000, "{until}");
    assert_eq!(worker.stop().await, Some(0));
}
