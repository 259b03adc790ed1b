//! The loop guard end to end: handlers that enqueue jobs that enqueue jobs, and what stops them.

use std::collections::BTreeMap;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use surety_common::{
    connect::Connected,
    domain::{
        Status,
        guard::{
            GuardKind,
            loops::{Counted, LoopLimits, Over},
        },
    },
    store::{GuardAct, GuardItem, GuardReply, Record, Scope, Store},
};
use surety_tests::{
    process::Process,
    scrape::{self, Scrape},
    witness::{Witness, dead_letters, kinds, settled},
    world::{World, bin, wait},
};

/// A handler that runs the command of this test as `surety`.
fn handler(witness: &Witness, name: &str, body: &str) -> String {
    let surety = bin("t-surety");
    witness.handler(name, &format!("surety() {{ {surety} \"$@\" >> $W.out 2>&1 || say failed $?; }}\n{body}"))
        + "inherit = [\"SURETY_CONFIG\"]\n"
}

/// Enqueues its own type again, under an id that tells the depth.
const CHAIN: &str =
    r#"surety enqueue $SURETY_JOB_TYPE "{\"n\":$SURETY_DEPTH}" --id $SURETY_ROOT-$((SURETY_DEPTH + 1))"#;

/// Starts a worker whose handlers find the servers.
fn worker(world: &World, more: &[&str]) -> Process {
    let (config, nats, redis) =
        (world.config_file().display().to_string(), world.nats.url(), world.redis.url());
    world.worker(more, &[("SURETY_CONFIG", &config), ("NATS_URL", &nats), ("REDIS_URL", &redis)])
}

async fn start(config: &str) -> (World, Connected) {
    let world = World::with(config).await;
    let c = world.connect().await;
    (world, c)
}

fn is_stopped(r: &Record) -> bool {
    (r.status, r.code.as_str(), r.attempt) == (Status::Failed, "loop_guard", 0)
}

/// How each job of the journal has ended.
async fn ends(world: &World, c: &Connected) -> BTreeMap<String, String> {
    let h = world.history(c).await;
    h.check().unwrap();
    h.jobs
        .iter()
        .map(|(id, job)| {
            let last = job.events.iter().rfind(|e| e.kind == "finished").expect("an outcome");
            (id.clone(), last.data["receipt"]["error_code"].as_str().unwrap_or("done").to_owned())
        })
        .collect()
}

// Shows: S-08
#[tokio::test]
async fn a_handler_that_enqueues_itself_is_stopped_at_the_depth_and_the_stop_names_the_line() {
    let witness = Witness::default();
    let config = handler(&witness, "chain", CHAIN)
        + &handler(&witness, "free", &format!("[ $SURETY_DEPTH -ge 7 ] || {CHAIN}"))
        + "[guards.loop]\ndepth = 3\nexempt = [\"free\"]\n";
    let (world, c) = start(&config).await;
    let mut one = worker(&world, &["--listen", "127.0.0.1:0"]);
    let mut reaper = world.reaper(&[]);
    let metrics = scrape::address(&mut one).await;
    world.publish("default", "a", r#"{"type":"chain"}"#).await;
    world.publish("default", "b", r#"{"type":"free"}"#).await;
    let stopped = world.ended(&c, "a-4").await;
    assert!(is_stopped(&stopped), "{stopped:?}");
    // An exempt type goes on, as deep as it likes.
    assert_eq!(world.ended(&c, "b-7").await.status, Status::Done);
    settled(&world, &c).await;
    assert_eq!(witness.text().matches("failed").count(), 0, "{}", witness.text());
    for done in ["a", "a-1", "a-3", "b-4"] {
        assert_eq!(world.ended(&c, done).await.status, Status::Done, "{done}");
    }

    // Receipt, event, dead letter, log, metric and `why` all say which limit, and where it comes from.
    let why = "loop guard: it is 4 deep, the limit is 3; parent a-3, root a, depth 4";
    let h = world.history(&c).await;
    h.check().unwrap();
    let [buried, finished] = &h.jobs["a-4"].events[..] else {
        panic!("{:?}", kinds(&world, &c, "a-4").await)
    };
    assert_eq!((buried.kind.as_str(), finished.kind.as_str()), ("buried", "finished"));
    assert_eq!(buried.data["message"], why);
    let receipt = &finished.data["receipt"];
    assert_eq!((&receipt["error_code"], &receipt["message"]), (&"loop_guard".into(), &why.into()));
    let letters = dead_letters(&world).await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].job.as_str(), letters[0].reason.as_str()), ("a-4", "loop_guard"));
    assert_eq!(letters[0].message, why);
    let log = one.log();
    let line = log.lines().find(|l| l.contains("alert=\"buried\"")).expect("an alert in the log");
    assert!(line.contains("ERROR") && line.contains(why), "{line}");
    let said = world.ask(&["why", "a-4"]).await;
    assert!(said["gate"]["what"].as_str().unwrap().contains(why), "{said}");
    let counted = Scrape::of(metrics).await.sum("surety_jobs_ended_total", &[("error_code", "loop_guard")]);
    assert_eq!(counted, Some(1.0));

    // A replay keeps its line, and is stopped again as long as the limit is what it is.
    world.surety(&["dlq", "replay", "a-4"]).await.exits(0);
    let again = world.until(&c, "a-4", |r| r.generation == 2 && r.status.is_terminal()).await;
    assert!(is_stopped(&again), "{again:?}");
    settled(&world, &c).await;
    assert_eq!(one.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-02, S-08
#[tokio::test]
async fn repeats_are_counted_once_for_each_job_also_when_everything_restarts_in_the_middle() {
    let witness = Witness::default();
    // Each job is delivered twice: its first attempt fails. Then it asks for the same work again.
    let body = r#"if ! [ -e $W.$SURETY_JOB_ID ]; then touch $W.$SURETY_JOB_ID; exit 1; fi
        until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done
        surety enqueue same '{ "x": 1 }' --id r$((SURETY_DEPTH + 1)) --max-retries 2 --backoff 50ms"#;
    let config = handler(&witness, "same", body) + "[guards.loop]\nrepeats = 4\n";
    let (mut world, c) = start(&config).await;
    let mut first = worker(&world, &[]);
    let root = r#"{"type":"same","payload":{"x":1},"retry":{"backoff":["50ms"]}}"#;
    world.publish("default", "r0", root).await;
    ["go-r0", "go-r1"].iter().for_each(|n| witness.touch(n));
    wait("the second repeat", async || witness.executions("r2") == 2).await;
    first.kill9().await;
    world.redis.kill9().await.unwrap();
    world.nats.kill9().await.unwrap();
    world.nats.restart().await.unwrap();
    world.redis.restart().await.unwrap();
    let mut reaper = world.reaper(&[]);
    let mut second = worker(&world, &["--state-dir", &world.path("s2")]);
    ["go-r2", "go-r3", "go-r4"].iter().for_each(|n| witness.touch(n));
    let stopped = world.ended(&c, "r5").await;
    assert!(is_stopped(&stopped), "{stopped:?}");
    settled(&world, &c).await;
    for n in ["r0", "r1", "r2", "r3", "r4"] {
        assert_eq!(world.ended(&c, n).await.status, Status::Done, "{n}");
    }
    let letters = dead_letters(&world).await;
    let letter = letters.iter().find(|l| l.job == "r5").unwrap();
    let why = "4 jobs of root r0 asked for the same work (type same, same payload and key) within 1h, the limit is 4; \
               parent r4, root r0, depth 5";
    assert!(letter.message.contains(why), "{}", letter.message);
    world.history(&c).await.check().unwrap();
    assert_eq!(second.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-02
#[tokio::test]
async fn a_root_has_so_many_jobs_and_no_more_however_many_workers_there_are() {
    let witness = Witness::default();
    let many = r#"for i in $(seq 20); do echo "{\"type\":\"leaf\",\"payload\":$i}"; done | surety batch -"#;
    let config = handler(&witness, "many", many)
        + &handler(&witness, "leaf", "")
        + "[guards.loop]\nfan_out = 12\n[layout]\npartitions = 3\n";
    let (world, c) = start(&config).await;
    let mut reaper = world.reaper(&[]);
    let mut workers = [worker(&world, &[]), worker(&world, &["--state-dir", &world.path("s2")])];
    world.publish("default", "root", r#"{"type":"many"}"#).await;
    // Leaves without a parent are nobody's, and are not counted.
    for n in 0..20 {
        world.publish("default", &format!("leaf{n}"), r#"{"type":"leaf"}"#).await;
    }
    wait("all outcomes", async || {
        let h = world.history(&c).await;
        h.jobs.len() == 41 && h.jobs.values().all(|j| j.events.iter().any(|e| e.kind == "finished"))
    })
    .await;
    let ends = ends(&world, &c).await;
    let count = |what: &str| ends.values().filter(|e| *e == what).count();
    assert_eq!((count("loop_guard"), count("done")), (8, 33), "{ends:?}");
    let letters = dead_letters(&world).await;
    assert!(letters[0].message.contains("root root has 12 jobs within 1h, the limit is 12"), "{letters:?}");
    for w in &mut workers {
        assert_eq!(w.stop().await, Some(0));
    }
    assert_eq!(reaper.stop().await, Some(0));
}

/// Asks the store as a worker does; what it decided, at which of its times.
async fn ask(store: &Store, limits: &LoopLimits, asks: &[(u8, u8)]) -> Vec<(u64, Result<(), Over>)> {
    let window_ms = limits.window.as_millis() as u64;
    let scope = Scope::new(GuardKind::Loop, "", "root", [limits.repeats, window_ms, limits.fan_out, 0]);
    let items: Vec<GuardItem<'static>> = asks
        .iter()
        .map(|(member, work)| GuardItem {
            act: GuardAct::Ask {
                arrival_ms: 1,
                ack_subject: "".into(),
                work: format!("work{work}").into(),
                keeps: false,
            },
            member: format!("m{member}/1").into(),
            scopes: vec![0].into(),
        })
        .collect();
    let answer = store.guard(0, None, 1000, &[scope], &items).await.unwrap();
    let decided = answer.replies.into_iter().map(|r| match r {
        GuardReply::Passes(_) => Ok(()),
        GuardReply::Stopped { count, limit, .. } => Err(Over::from_code(limit, count).unwrap()),
        other => panic!("{other:?}"),
    });
    decided.map(|d| (answer.now_ms, d)).collect()
}

// Shows: S-02, J-02
#[test]
fn the_script_counts_as_the_model_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::start());
    let c = runtime.block_on(world.connect());
    let calls = prop::collection::vec(prop::collection::vec((0..24u8, 0..6u8), 1..8), 1..40);
    // Windows that end in the middle of a case, and such that do not.
    let case = (1..6u64, 1..14u64, prop::sample::select(vec![3u64, 40, 60_000]), calls, 0..10u8);
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&case, |(repeats, fan_out, window, calls, tend)| {
            let window = std::time::Duration::from_millis(window);
            let limits = LoopLimits { depth: 20, repeats, fan_out, window };
            let mut model = Counted::default();
            runtime.block_on(async {
                forget(&c).await;
                for (i, asks) in calls.iter().enumerate() {
                    let decided = ask(&c.store, &limits, asks).await;
                    for ((member, work), (now, got)) in asks.iter().zip(decided) {
                        let want = model.ask(&limits, now, &format!("m{member}/1"), &format!("work{work}"));
                        prop_assert_eq!(got, want, "member {} work {}", member, work);
                    }
                    // A reaper that looks after it in between changes nothing.
                    if i % 10 == usize::from(tend) {
                        look_after(&c.store).await;
                    }
                }
                Ok(())
            })
        })
        .unwrap();
}

async fn look_after(store: &Store) {
    for found in store.guard_scopes(0, u64::MAX / 4096, 0, 100).await.unwrap() {
        let act = GuardAct::Tend { session: "".into() };
        let item = GuardItem { act, member: "".into(), scopes: vec![0].into() };
        store.guard(0, None, 1000, &[found.scope], &[item]).await.unwrap();
    }
}

/// Nothing is counted any more.
async fn forget(c: &Connected) {
    let scope = Scope::new(GuardKind::Loop, "", "root", [1, 1, 1, 0]);
    let item = GuardItem { act: GuardAct::Reset, member: "".into(), scopes: vec![0].into() };
    c.store.guard(0, None, 1000, &[scope], &[item]).await.unwrap();
    assert!(c.store.guard_scopes(0, u64::MAX / 4096, 0, 100).await.unwrap().is_empty());
}
