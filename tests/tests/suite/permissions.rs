//! The users of `deploy/`: each role can do its work, and none of the others'.

use std::time::Duration;

use futures::StreamExt;
use surety_common::{
    clock::wall_now,
    domain::{Contract, Status},
};
use surety_producer::dev::servers::find_nats_server;
use surety_tests::{
    guarded::{Guarded, ROLES, password, repository},
    process::Process,
    scrape,
    world::{PATIENCE, messages_of, wait},
};

use super::{guard_slots::ask, tending::locks};

const HANDLERS: &str = r#"
[handlers.bad]
command = ["sh", "-c", "exit 65"]
[handlers.stuck]
command = ["sh", "-c", "[ $SURETY_ATTEMPT -gt 1 ] || exec sleep 60"]
[handlers.doomed]
command = ["sleep", "60"]
"#;

/// Times so long that whatever waits for one of them fails the test.
const PATIENT: &str = r#"
[connection]
call_timeout = "200s"
retry_limit = "250s"
[layout]
ack_wait = "400s"
[lease]
renewal = "5s"
ttl = "300s"
margin = "10s"
"#;

async fn ready(mut p: Process) -> Process {
    p.logged("ready").await;
    p
}

/// What a process was refused.
fn refused(p: &Process) -> Vec<String> {
    p.log().lines().filter(|l| l.contains("does not let")).map(str::to_owned).collect()
}

async fn jobs_left(g: &Guarded) -> u64 {
    messages_of(&g.nats("operator").await.0, "SURETY_JOBS").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_does_its_work() {
    let g = Guarded::with(&format!("{HANDLERS}[telemetry]\nlisten = \"127.0.0.1:0\"")).await;
    let c = g.operator().await;
    let mut worker = ready(g.worker("worker", "a")).await;
    let mut reaper = ready(g.reaper()).await;
    for (kind, id) in [("noop", "fine"), ("bad", "broken")] {
        g.surety("producer", &["enqueue", kind, "--id", id]).await.exits(0);
    }
    g.surety("producer", &["enqueue", "noop", "--id", "soon", "--in", "1s"]).await.exits(0);
    let lines = g.world.path("jobs");
    std::fs::write(&lines, "{\"type\":\"noop\",\"id\":\"of-a-batch\"}\n").unwrap();
    g.surety("producer", &["batch", &lines]).await.exits(0);
    let add = &["schedule", "add", "nightly", "noop", "--cron", "0 0 3 * * *"];
    g.surety("operator", add).await.exits(0);
    // A producer in any language gets its acknowledgement.
    let (plain, _) = g.nats("producer").await;
    let js = async_nats::jetstream::new(plain);
    js.publish("surety.jobs.default.plain", r#"{"type":"noop"}"#.into()).await.unwrap().await.unwrap();
    let mut later = async_nats::HeaderMap::new();
    let at = wall_now() + Duration::from_secs(1);
    later.insert("Nats-Schedule", format!("@at {at}").as_str());
    later.insert("Nats-Schedule-Target", "surety.due.default.later");
    let body = r#"{"type":"noop"}"#;
    js.publish_with_headers("surety.sched.default.later", later, body.into()).await.unwrap().await.unwrap();
    for (id, status) in [
        ("fine", Status::Done),
        ("plain", Status::Done),
        ("later", Status::Done),
        ("soon", Status::Done),
        ("of-a-batch", Status::Done),
        ("broken", Status::Failed),
    ] {
        g.world.status(&c, id, status).await;
    }
    wait("every carrier to be settled", async || jobs_left(&g).await == 0).await;
    // Somebody holds a lock: what guards hold is read with other commands than jobs are.
    let lock = locks(1);
    let p = lock[0].partition(c.store.keys().partitions());
    c.store.guard(p, None, 600_000, &lock, &[ask("other/1", 1, &[0])]).await.unwrap();
    for args in [
        &["status", "fine"][..],
        &["guards"],
        &["locks"],
        &["events", "fine"],
        &["why", "fine"],
        &["queues"],
        &["workers"],
        &["dlq", "list"],
        &["dlq", "show", "broken"],
        &["doctor"],
        &["schedule", "list"],
        &["schedule", "next", "nightly"],
    ] {
        let said = g.surety("reader", args).await.exits(0);
        assert!(!said.out.is_empty(), "{args:?}");
    }
    // A producer asks the reaper, and cancels, over NATS alone.
    let (plain, _) = g.nats("producer").await;
    let asked = async |id: &str, body: &'static str| {
        let reply = plain.request(format!("surety.control.job.{id}"), body.into()).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&reply.payload).unwrap()
    };
    assert_eq!(asked("fine", r#"{"op":"status"}"#).await["answer"]["status"], "done");
    assert_eq!(asked("fine", r#"{"op":"why"}"#).await["answer"]["gate"]["code"], "ended");
    assert_eq!(asked("fine", r#"{"op":"cancel"}"#).await["answer"]["result"], "already_ended");
    assert_eq!(asked("nobody", r#"{"op":"status"}"#).await["error"]["code"], "unknown_job");
    // The operator takes the dead letter up again, cancels what waits, and clears up.
    g.surety("operator", &["dlq", "replay", "broken"]).await.exits(0);
    wait("the replay to fail too", async || {
        let r = c.store.record(&"broken".parse().unwrap()).await.unwrap().unwrap();
        r.generation == 2 && r.status == Status::Failed
    })
    .await;
    g.surety("operator", &["dlq", "purge", "--yes"]).await.exits(0);
    g.surety("operator", &["schedule", "rm", "nightly", "--yes"]).await.exits(0);
    // It holds and lets go; everybody else sees it.
    for what in [&["default"][..], &["--type", "noop"]] {
        g.surety("operator", &[&["pause"], what].concat()).await.exits(0);
        assert!(g.surety("reader", &["pause", "--list"]).await.exits(0).out.contains(what[what.len() - 1]));
        g.surety("producer", &["enqueue", "noop", "--id", what[what.len() - 1]]).await.exits(0);
        g.surety("operator", &[&["resume"], what].concat()).await.exits(0);
        g.world.status(&c, what[what.len() - 1], Status::Done).await;
    }
    for role in ["producer", "reader", "worker", "reaper"] {
        g.surety(role, &["pause", "--type", "noop"]).await.exits(78);
    }
    // Both look at the servers when they are asked how it goes.
    for p in [&mut worker, &mut reaper] {
        let at = scrape::address(p).await;
        let (is_ready, parts) = scrape::ready(at).await;
        assert!(is_ready, "{parts}");
        assert!(scrape::Scrape::of(at).await.sum("surety_build_info", &[]).is_some());
    }
    // The reaper may look at all that it measures.
    let seen = scrape::Scrape::of(scrape::address(&mut reaper).await).await;
    assert_eq!(seen.sum("surety_sessions", &[]), Some(1.0));
    assert_eq!(seen.sum("surety_observations_total", &[("result", "failed")]), Some(0.0));
    assert_eq!(refused(&worker), [""; 0]);
    assert_eq!(refused(&reaper), [""; 0]);
}

// Shows: X-07
#[tokio::test(flavor = "multi_thread")]
async fn requesters_are_told_and_records_are_mended_with_the_rights_of_the_roles() {
    let g = Guarded::with(&format!(
        "{HANDLERS}[handlers.later]\ncommand = [\"sh\", \"-c\", \"[ $SURETY_ATTEMPT -gt 1 ]\"]"
    ))
    .await;
    let c = g.operator().await;
    // A producer listens below its own subject, and answers what it gets.
    let (producer, _) = g.nats("producer").await;
    let mut told = producer.subscribe("surety.notify.>").await.unwrap();
    let answer = producer.clone();
    let (tx, mut kinds) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(m) = told.next().await {
            let kind = m.headers.as_ref().and_then(|h| h.get("Surety-Kind")).unwrap().to_string();
            answer.publish(m.reply.unwrap(), "seen".into()).await.unwrap();
            tx.send((m.subject.to_string(), kind)).unwrap();
        }
    });
    let worker = ready(g.worker("worker", "a")).await;
    let reaper = ready(g.reaper()).await;
    let js = async_nats::jetstream::new(producer.clone());
    let body = r#"{"type":"later","retry":{"backoff":["1500ms"]},"notify":{"subject":"surety.notify.mine"}}"#;
    js.publish("surety.jobs.default.a", body.into()).await.unwrap().await.unwrap();
    let id = "a".parse().unwrap();
    g.world.status(&c, "a", Status::RetryWait).await;
    // The reaper makes the record anew, from the journal and from the message of the job.
    let mut plain = g.redis("operator").await;
    let () =
        redis::cmd("SET").arg(c.store.keys().job(&id)).arg("rubbish").query_async(&mut plain).await.unwrap();
    let r =
        g.world.until(&c, "a", |r| r.status == Status::Done && r.contract == Contract::TerminalAcked).await;
    assert_eq!((r.charged, r.attempt), (1, 2), "{}", g.world.logs());
    wait("the record to be set aside", async || reaper.log().contains("record_set_aside")).await;
    for kind in ["started", "receipt"] {
        let got = tokio::time::timeout(PATIENCE, kinds.recv()).await.unwrap().unwrap();
        assert_eq!(got, ("surety.notify.mine".to_owned(), kind.to_owned()));
    }
    let (operator, _) = g.nats("operator").await;
    wait("the receipt to be settled", async || messages_of(&operator, "SURETY_RECEIPTS").await == 0).await;
    assert_eq!([refused(&worker), refused(&reaper)], [[""; 0]; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_the_batch_of_a_producer() {
    let g = Guarded::with("").await;
    let _c = g.operator().await;
    let file = g.world.path("jobs.ndjson");
    std::fs::write(&file, "{\"type\":\"noop\"}\n{\"type\":\"noop\",\"id\":\"named\"}\n").unwrap();
    let said = g.surety("producer", &["batch", &file, "--batch-id", "b"]).await.exits(0);
    assert!(said.err.contains("surety watch --batch b"), "{}", said.err);
    let worker = ready(g.worker("worker", "a")).await;
    let said = g.surety("reader", &["watch", "--batch", "b"]).await.exits(0);
    assert!(said.out.contains("2 jobs: 2 done"), "{}", said.out);
    assert_eq!(refused(&worker), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaper_rescues_with_its_own_rights() {
    let g = Guarded::with(HANDLERS).await;
    let c = g.operator().await;
    let mut first = ready(g.worker("worker", "a")).await;
    g.surety("producer", &["enqueue", "stuck", "--id", "stuck"]).await.exits(0);
    g.surety("producer", &["enqueue", "doomed", "--id", "doomed", "--max-retries", "0"]).await.exits(0);
    for id in ["stuck", "doomed"] {
        g.world.status(&c, id, Status::Running).await;
    }
    first.kill9().await;
    let reaper = ready(g.reaper()).await;
    let second = ready(g.worker("worker", "b")).await;
    g.world.status(&c, "stuck", Status::Done).await;
    g.world.status(&c, "doomed", Status::Failed).await;
    wait("the carriers to be settled", async || jobs_left(&g).await == 0).await;
    let (operator, _) = g.nats("operator").await;
    assert_eq!(messages_of(&operator, "SURETY_DLQ").await, 1);
    assert_eq!(refused(&reaper), [""; 0]);
    assert_eq!(refused(&second), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_worker_settles_its_own_losses() {
    let g = Guarded::with(HANDLERS).await;
    let c = g.operator().await;
    let mut first = ready(g.worker("worker", "a")).await;
    g.surety("producer", &["enqueue", "doomed", "--id", "doomed", "--max-retries", "0"]).await.exits(0);
    g.world.status(&c, "doomed", Status::Running).await;
    first.kill9().await;
    // No reaper runs: the same state folder tells the next worker what its predecessor ran.
    let second = ready(g.worker("worker", "a")).await;
    g.world.status(&c, "doomed", Status::Failed).await;
    wait("the carrier to be settled", async || jobs_left(&g).await == 0).await;
    assert_eq!(refused(&second), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaper_may_remove_what_the_broker_gave_up() {
    let g = Guarded::with("[layout]\nmax_deliver = 2\n[worker]\nhand_on_limit = 1").await;
    let c = g.operator().await;
    g.surety("producer", &["enqueue", "noop", "--id", "given-up"]).await.exits(0);
    // A worker that is delivered the job and lets it go, until the broker gives up. It gives a verdict to a waiting pull only.
    let (worker, _) = g.nats("worker").await;
    let inbox = worker.new_inbox();
    let mut replies = worker.subscribe(inbox.clone()).await.unwrap();
    let pull = || {
        let body = r#"{"batch":1,"expires":40000000000}"#;
        let next = "$JS.API.CONSUMER.MSG.NEXT.SURETY_JOBS.default";
        worker.publish_with_reply(next, inbox.clone(), body.into())
    };
    for _ in 0..2 {
        pull().await.unwrap();
        let m = tokio::time::timeout(PATIENCE, replies.next()).await.unwrap().unwrap();
        worker.publish(m.reply.unwrap(), "-NAK".into()).await.unwrap();
    }
    pull().await.unwrap();
    // A copy may take its place, once: its deliveries came back sooner than those of dying workers.
    let inbox = inbox.clone();
    let again = worker.clone();
    let giving_back = tokio::spawn(async move {
        while let Some(m) = replies.next().await {
            if let Some(ack) = m.reply {
                again.publish(ack, "-NAK".into()).await.unwrap();
            }
            let (next, body) =
                ("$JS.API.CONSUMER.MSG.NEXT.SURETY_JOBS.default", r#"{"batch":1,"expires":40000000000}"#);
            again.publish_with_reply(next, inbox.clone(), body.into()).await.unwrap();
        }
    });
    let reaper = ready(g.reaper()).await;
    g.world.status(&c, "given-up", Status::Failed).await;
    giving_back.abort();
    wait("the message to be removed", async || jobs_left(&g).await == 0).await;
    assert_eq!(refused(&reaper), [""; 0]);
}

/// What may be published, and by whom: initials of the roles, `o` for the operator and `s` for the reader (it only sees).
const MAY_PUBLISH: &[(&str, &str)] = &[
    ("surety.jobs.default.x", "pro"),
    ("surety.sched.default.x", "pwo"),
    ("surety.batches.x", "po"),
    ("surety.due.default.x", "o"),
    ("surety.events.default", "wro"),
    ("surety.dlq.default.x", "wro"),
    ("surety.receipts.default", "wro"),
    ("surety.notify.me", "wro"),
    ("surety.control.job.x", "po"),
    ("surety.control.session.x", "ro"),
    ("$JS.ACK.SURETY_JOBS.default.1.1.1.1.0", "wro"),
    ("$JS.ACK.SURETY_SCHED.default.1.1.1.1.0", "wro"),
    ("$JS.ACK.SURETY_ADVISORIES.reaper.1.1.1.1.0", "r"),
    ("$JS.ACK.SURETY_RECEIPTS.dispatcher.1.1.1.1.0", "w"),
    ("$JS.ACK.OTHER.default.1.1.1.1.0", ""),
    ("$JS.API.CONSUMER.MSG.NEXT.SURETY_RECEIPTS.dispatcher", "w"),
    ("$JS.API.CONSUMER.MSG.NEXT.SURETY_JOBS.default", "w"),
    ("$JS.API.CONSUMER.MSG.NEXT.SURETY_SCHED.default", "w"),
    ("$JS.API.CONSUMER.MSG.NEXT.SURETY_EVENTS.x", "rso"),
    ("$JS.API.CONSUMER.MSG.NEXT.SURETY_ADVISORIES.reaper", "r"),
    ("$JS.API.CONSUMER.CREATE.SURETY_EVENTS.x.surety.events.>", "rso"),
    ("$JS.API.CONSUMER.CREATE.SURETY_JOBS.x", "o"),
    ("$JS.API.CONSUMER.DELETE.SURETY_JOBS.x", "o"),
    ("$JS.API.CONSUMER.PAUSE.SURETY_JOBS.x", "o"),
    ("$JS.API.CONSUMER.INFO.SURETY_JOBS.default", "wrso"),
    ("$JS.API.STREAM.INFO.SURETY_DLQ", "wrso"),
    ("$SYS.REQ.USER.INFO", "wrso"),
    ("$JS.API.DIRECT.GET.SURETY_BATCHES", "so"),
    ("$JS.API.DIRECT.GET.KV_SURETY_PAUSES", "wrso"),
    ("$JS.API.STREAM.INFO.KV_SURETY_PAUSES", "wrso"),
    ("$JS.API.STREAM.PURGE.KV_SURETY_PAUSES", "o"),
    ("$KV.SURETY_PAUSES.type.x", "o"),
    ("surety.control.pauses", "o"),
    ("$JS.API.STREAM.INFO.SURETY_JOBS", "wrso"),
    ("$JS.API.STREAM.INFO.OTHER", ""),
    ("$JS.API.STREAM.CREATE.SURETY_JOBS", "o"),
    ("$JS.API.STREAM.UPDATE.SURETY_JOBS", "o"),
    ("$JS.API.STREAM.PURGE.SURETY_JOBS", "o"),
    ("$JS.API.STREAM.PURGE.SURETY_SCHED", "o"),
    ("$JS.API.STREAM.DELETE.SURETY_JOBS", ""),
    ("$JS.API.STREAM.MSG.DELETE.SURETY_JOBS", "ro"),
    ("$JS.API.STREAM.MSG.DELETE.SURETY_EVENTS", ""),
    ("$JS.API.STREAM.MSG.DELETE.SURETY_DLQ", "o"),
    ("$JS.API.DIRECT.GET.SURETY_JOBS", "wrso"),
    ("$JS.API.DIRECT.GET.SURETY_DLQ", "so"),
    ("$JS.API.DIRECT.GET.SURETY_RECEIPTS", "ro"),
    ("$JS.API.DIRECT.GET.SURETY_EVENTS", "wrso"),
    ("$JS.API.DIRECT.GET.SURETY_ADVISORIES", "ro"),
    ("_INBOX_producer.x", ""),
];

/// What may be subscribed to.
const MAY_SUBSCRIBE: &[(&str, &str)] = &[
    (">", ""),
    ("surety.>", ""),
    ("surety.jobs.>", ""),
    ("surety.events.>", ""),
    ("$JS.>", ""),
    ("_INBOX.>", ""),
    ("_INBOX_producer.>", "p"),
    ("_INBOX_worker.>", "w"),
    ("_INBOX_reaper.>", "r"),
    ("_INBOX_reader.>", "s"),
    ("_INBOX_operator.>", "o"),
    ("surety.control.session.*", "w"),
    ("surety.control.pauses", "wr"),
    ("surety.control.job.*", "r"),
    ("surety.notify.>", "p"),
];

fn initial(role: &str) -> char {
    if role == "reader" { 's' } else { role.chars().next().unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_does_the_work_of_another_at_nats() {
    let g = Guarded::with("").await;
    for role in ROLES {
        // The initial of the reaper, like those of the others, stands for it alone.
        assert_eq!(ROLES.iter().filter(|r| initial(r) == initial(role)).count(), 1);
        let (client, mut refused) = g.nats(role).await;
        let mut open = Vec::new();
        for (subject, _) in MAY_SUBSCRIBE {
            open.push(client.subscribe(*subject).await.unwrap());
        }
        for (subject, _) in MAY_PUBLISH {
            client.publish(*subject, "".into()).await.unwrap();
        }
        // The server answers in order: once it refused this, it refused all that it will.
        client.publish("the.end", "".into()).await.unwrap();
        let mut seen = Vec::new();
        loop {
            let e = tokio::time::timeout(PATIENCE, refused.recv()).await.unwrap().unwrap();
            assert!(e.contains("Permissions Violation"), "{e}");
            let subject = e.split('"').nth(1).unwrap().to_owned();
            if subject == "the.end" {
                break;
            }
            seen.push((e.contains("Publish"), subject));
        }
        for (is_publish, list) in [(true, MAY_PUBLISH), (false, MAY_SUBSCRIBE)] {
            for (subject, may) in list {
                let is_refused = seen.contains(&(is_publish, (*subject).to_owned()));
                assert_eq!(is_refused, !may.contains(initial(role)), "{role}: {subject} ({is_publish})");
            }
        }
        drop(open);
    }
}

/// Commands, and who may run them; as above. `{}` stands for a key of ours.
const MAY_RUN: &[(&str, &str)] = &[
    ("GET {}", "wrso"),
    ("SET {} x", "wro"),
    ("DEL {}", "r"),
    ("HGET {}h f", "wrso"),
    ("HSET {}h f v", "wro"),
    ("ZADD {}z 1 a", "wro"),
    ("ZSCAN {}z 0", "wrso"),
    ("ZCOUNT {}z 0 1", "wrso"),
    ("HLEN {}h", "wrso"),
    ("ZRANK {}z a", "wrso"),
    ("XADD {}s * a b", "wro"),
    ("XLEN {}s", "wrso"),
    ("GET other:{p00}:store", ""),
    ("SET other:{p00}:store x", ""),
    ("SCRIPT LOAD return", "wro"),
    ("SCRIPT FLUSH", ""),
    ("EVAL return 0", ""),
    ("FUNCTION LIST", ""),
    ("KEYS *", ""),
    ("SCAN 0", ""),
    ("FLUSHALL", ""),
    ("FLUSHDB", ""),
    ("CONFIG GET requirepass", ""),
    ("ACL LIST", ""),
    ("CLIENT LIST", ""),
    ("MONITOR", ""),
    ("SHUTDOWN", ""),
    ("SUBSCRIBE x", ""),
    ("PUBLISH x y", ""),
    ("INFO server", "wrso"),
];

#[tokio::test(flavor = "multi_thread")]
async fn nobody_does_the_work_of_another_at_redis() {
    let g = Guarded::with("").await;
    for role in ROLES.into_iter().filter(|r| *r != "producer") {
        let mut c = g.redis(role).await;
        for (command, may) in MAY_RUN {
            let words: Vec<String> =
                command.split(' ').map(|w| w.replace("{}", &format!("surety:{{p00}}:{role}"))).collect();
            let answer: Result<redis::Value, _> =
                redis::cmd(&words[0]).arg(&words[1..]).query_async(&mut c).await;
            let is_refused = answer.is_err_and(|e| {
                assert_eq!(e.code(), Some("NOPERM"), "{role}: {command}: {e}");
                true
            });
            assert_eq!(is_refused, !may.contains(initial(role)), "{role}: {command}");
        }
        // A script has no more rights than who runs it.
        if role != "reader" {
            for script in ["return redis.call('RENAME', KEYS[1], KEYS[1])", "return redis.call('KEYS', '*')"]
            {
                let ran: Result<redis::Value, _> =
                    redis::Script::new(script).key("surety:{p00}:x").invoke_async(&mut c).await;
                assert!(ran.is_err(), "{role}: {script}");
            }
        }
    }
    // There is no producer, and nobody without a name.
    let info = redis::Client::open(g.world.redis.url()).unwrap();
    let mut nobody = info.get_multiplexed_async_connection().await.unwrap();
    let answer: Result<redis::Value, _> = redis::cmd("PING").query_async(&mut nobody).await;
    assert_eq!(answer.unwrap_err().code(), Some("NOAUTH"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_a_command_says_at_once_what_it_may_not() {
    let g = Guarded::with(PATIENT).await;
    for (role, args, subject) in [
        ("reader", &["enqueue", "noop", "--id", "x"][..], "publish to \"surety.jobs.default.x\""),
        ("reader", &["dlq", "purge", "--yes"], "publish to \"$JS.API.STREAM.PURGE.SURETY_DLQ\""),
        ("producer", &["queues"], "publish to \"$JS.API.STREAM.INFO.SURETY_JOBS\""),
        ("producer", &["watch"], "publish to \"$JS.API.STREAM.INFO.SURETY_JOBS\""),
        (
            "reader",
            &["schedule", "add", "x", "noop", "--cron", "0 0 3 * * *"],
            "publish to \"surety.sched.default.x\"",
        ),
        ("producer", &["events", "x"], "publish to \"$JS.API.STREAM.INFO.SURETY_JOBS\""),
        ("worker", &["provision"], "publish to \"$JS.API.CONSUMER.INFO.SURETY_ADVISORIES.reaper\""),
        ("worker", &["dlq", "list"], "publish to \"$JS.API.DIRECT.GET.SURETY_DLQ\""),
    ] {
        if args[0] == "dlq" {
            // Something to purge.
            let (operator, _) = g.nats("operator").await;
            let js = async_nats::jetstream::new(operator);
            js.publish("surety.dlq.default.x", "".into()).await.unwrap().await.unwrap();
        }
        let said = g.surety(role, args).await.exits(78);
        let want = format!("nats does not let user {role:?} {subject}");
        assert!(said.err.contains(&want), "{args:?}: {}", said.err);
    }
    let said = g.surety("reader", &["cancel", "x"]).await.exits(78);
    let want = "redis does not let user \"reader\" run EVALSHA on \"surety:{p00}:store\"";
    assert!(said.err.contains(want), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_login_or_inbox_is_told_at_once() {
    let g = Guarded::with(PATIENT).await;
    let with = async |name: &str, value: &str, args: &[&str]| {
        let env = g.environment("operator");
        let env: Vec<_> =
            env.iter().map(|(k, v)| (*k, if *k == name { value } else { v.as_str() })).collect();
        let said = g.world.surety_with(&env, args).await.exits(78);
        assert!(!said.err.contains(&password("operator")), "{}", said.err);
        said.err
    };
    let e = with("SURETY_CONNECTION_NATS_PASSWORD", "wrong", &["queues"]).await;
    assert!(e.contains("does not let user \"operator\" in") && e.contains("nats at nats://"), "{e}");
    let e = with("SURETY_CONNECTION_REDIS_PASSWORD", "wrong", &["status", "x"]).await;
    assert!(e.contains("does not let user \"operator\" in") && e.contains("redis at redis://"), "{e}");
    for args in [&["queues"][..], &["enqueue", "noop"], &["enqueue", "noop", "--wait"]] {
        let e = with("SURETY_CONNECTION_NATS_INBOX_PREFIX", "_INBOX_mine", args).await;
        assert!(e.contains("subscribe to \"_INBOX_mine.") && e.contains("nats_inbox_prefix"), "{e}");
    }
    let no_login = g.world.surety_with(&[], &["queues"]).await.exits(78);
    assert!(no_login.err.contains("does not let a client without login in"), "{}", no_login.err);
}

/// A worker with the rights of a reader at NATS.
fn reading_worker(g: &Guarded) -> Process {
    let mut env = g.environment("reader");
    for (k, v) in env.iter_mut().filter(|(k, _)| k.contains("REDIS")) {
        assert!(k.starts_with("SURETY_"));
        *v = v.replace("reader", "worker");
    }
    let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    g.world.worker(&[], &env)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_its_rights_does_not_begin() {
    let g = Guarded::with("").await;
    for (mut worker, why) in [
        (reading_worker(&g), "$JS.API.CONSUMER.MSG.NEXT.SURETY_JOBS.default"),
        (g.worker("reader", "b"), "it may not publish to"),
    ] {
        assert_eq!(worker.ended(Duration::from_secs(60)).await, Some(78));
        assert!(worker.log().contains(why), "{}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_pull_says_so_in_its_log() {
    // A server that does not tell a user its rights: then they show when they are missing.
    let g = Guarded::edited("", |users| users.replace("\"$SYS.REQ.USER.INFO\"", "\"nothing\"")).await;
    let mut worker = reading_worker(&g);
    worker.logged("user \"reader\" publish to \"$JS.API.CONSUMER.MSG.NEXT.SURETY_JOBS.critical\"").await;
    let mut other = g.worker("reader", "b");
    assert_eq!(other.ended(Duration::from_secs(60)).await, Some(78));
    assert!(other.log().contains("redis does not let user \"reader\" run EVALSHA"), "{}", other.log());
}

/// A command that a script lacks would stop it midway, after it wrote something.
#[test]
fn whoever_runs_scripts_may_run_every_command_in_them() {
    let acl = std::fs::read_to_string(repository("deploy/redis/users.acl")).unwrap();
    let mut n = 0;
    let scripts = ["common/src/store/scripts", "common/src/store/scripts/guards"].map(repository);
    for e in scripts.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap()) {
        let path = e.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // Records are deleted by the reaper alone.
        let is_reapers = ["forget.lua", "quarantine.lua", "restore.lua"].iter().any(|f| path.ends_with(f));
        let roles = if is_reapers { &["reaper"][..] } else { &["worker", "reaper", "operator"] };
        for call in text.split("redis.call('").skip(1) {
            let command = call.split('\'').next().unwrap().to_lowercase();
            for role in roles {
                let line = acl.lines().find(|l| l.starts_with(&format!("user {role} "))).unwrap();
                let may = line.split(' ').any(|w| w == format!("+{command}"));
                assert!(may, "deploy/redis/users.acl: {role} lacks +{command}");
                n += 1;
            }
        }
    }
    assert!(n > 30, "only {n} calls found");
}

#[tokio::test]
async fn the_configuration_of_nats_is_valid() {
    let mut c = tokio::process::Command::new(find_nats_server().unwrap());
    c.args(["-t", "-c"]).arg(repository("deploy/nats/nats-server.conf"));
    for role in ROLES {
        c.env(format!("SURETY_{}_PASSWORD", role.to_uppercase()), "s3cret");
    }
    let out = c.output().await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The server does not compare where a consumer delivers with what its maker may publish. It delivers to clients that
/// listen, not into streams or the API.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_cannot_write_through_a_consumer() {
    let g = Guarded::with("").await;
    let (operator, _) = g.nats("operator").await;
    let js = async_nats::jetstream::new(operator.clone());
    for subject in ["surety.jobs.default.x", "surety.events.default"] {
        js.publish(subject, "".into()).await.unwrap().await.unwrap();
    }
    let (reader, _) = g.nats("reader").await;
    let inbox = reader.new_inbox();
    let mut received = reader.subscribe(inbox.clone()).await.unwrap();
    for to in ["surety.jobs.default.evil", "$JS.API.STREAM.PURGE.SURETY_JOBS", &inbox] {
        let config =
            serde_json::json!({ "deliver_subject": to, "deliver_policy": "all", "ack_policy": "none" });
        let ask = serde_json::json!({ "stream_name": "SURETY_EVENTS", "config": config });
        let subject = "$JS.API.CONSUMER.CREATE.SURETY_EVENTS";
        let answer = reader.request(subject, ask.to_string().into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer.payload).contains("error"), "{answer:?}");
    }
    // The last consumer has delivered; the earlier ones had their turn.
    tokio::time::timeout(PATIENCE, received.next()).await.unwrap().unwrap();
    assert_eq!(messages_of(&operator, "SURETY_JOBS").await, 1);
}
