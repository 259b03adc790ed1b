//! The log as JSON: every line, from every way that a process and an attempt may end.

use std::time::Duration;

use serde_json::Value;
use surety_common::domain::Status;
use surety_tests::{
    process::Process,
    witness::wait_logged,
    world::{World, bin},
};

const HANDLERS: &str = r#"
[handlers.good]
command = ["true"]
[handlers.second]
command = ["sh", "-c", "test $SURETY_ATTEMPT -ge 2 || { echo 'no such bucket' >&2; exit 3; }"]
[handlers.bad]
command = ["sh", "-c", "echo 'not a picture' >&2; exit 64"]
[handlers.loud]
command = ["seq", "5000"]
output_limit = "1KiB"
[handlers.slow]
command = ["sleep", "60"]
"#;

const JSON: [&str; 4] = ["--log-format", "json", "--log", "info"];

/// Every line of a log, read; each has what every line has.
fn lines(process: &Process) -> Vec<Value> {
    let log = process.log();
    assert!(!log.is_empty());
    let read = |line: &str| -> Value {
        let v: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for key in ["timestamp", "level", "target", "message"] {
            assert!(v[key].as_str().is_some_and(|t| !t.is_empty()), "{key}: {line}");
        }
        assert!(v["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");
        assert!(v.get("job").is_none(), "a job is named by job_id: {line}");
        v
    };
    log.lines().map(read).collect()
}

/// The lines at the end of the attempts of a job.
fn ends(all: &[Value], job: &str) -> Vec<Value> {
    let of = |v: &&Value| v["message"] == "attempt ended" && v["job_id"] == job;
    all.iter().filter(of).cloned().collect()
}

async fn publish_with_trace(world: &World, id: &str, kind: &str, trace: &str) {
    let mut h = async_nats::HeaderMap::new();
    h.insert("traceparent", trace);
    h.insert("Nats-Msg-Id", id);
    let js = async_nats::jetstream::new(world.plain().await);
    let body = format!(r#"{{"type":"{kind}"}}"#);
    js.publish_with_headers(format!("surety.jobs.default.{id}"), h, body.into())
        .await
        .unwrap()
        .await
        .unwrap();
}

// Shows: O-04
#[tokio::test]
async fn every_line_is_json_and_every_attempt_says_how_it_ended() {
    let world = World::with(HANDLERS).await;
    let c = world.connect().await;
    let mut worker = world.worker(&JSON, &[]);
    let mut reaper = world.reaper_with(&JSON, &[]);
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    publish_with_trace(&world, "good", "good", &format!("00-{id}-00f067aa0ba902b7-01")).await;
    let retry = r#"{"type":"second","retry":{"max_retries":3,"backoff":["50ms"]}}"#;
    world.publish("default", "second", retry).await;
    world.publish("default", "bad", r#"{"type":"bad"}"#).await;
    world.publish("default", "noop", r#"{"type":"noop"}"#).await;
    world.publish("default", "garbage", "{").await;
    for job in ["good", "second", "bad", "noop"] {
        world.ended(&c, job).await;
    }
    world.drained(&c).await;
    world.publish("default", "slow", r#"{"type":"slow"}"#).await;
    world.status(&c, "slow", Status::Running).await;
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
    assert!(lines(&reaper).iter().any(|v| v["message"] == "reaper ready"));

    let all = lines(&worker);
    let sessions: Vec<_> = all.iter().filter(|v| v["message"] == "session opened").collect();
    let session = sessions[0]["session"].clone();
    for v in all.iter().filter(|v| v["message"] == "attempt ended") {
        for key in ["job_id", "queue", "type", "session", "outcome", "error_code"] {
            assert!(v[key].is_string(), "{key}: {v}");
        }
        for key in ["attempt", "epoch", "handler_ms"] {
            assert!(v[key].is_number(), "{key}: {v}");
        }
        assert_eq!(v["session"], session, "{v}");
    }
    let brief =
        |v: &Value| [&v["level"], &v["outcome"], &v["error_code"]].map(|t| t.as_str().unwrap().to_owned());
    let good = ends(&all, "good");
    assert_eq!(good.iter().map(brief).collect::<Vec<_>>(), [["INFO", "done", "none"]]);
    assert_eq!((&good[0]["trace"], &good[0]["attempt"]), (&id.into(), &1.into()));
    let second = ends(&all, "second");
    assert_eq!(
        second.iter().map(brief).collect::<Vec<_>>(),
        [["WARN", "retry", "exit_code"], ["INFO", "done", "none"]]
    );
    assert_eq!(second[0]["error"], "exit code 3: no such bucket", "a retry carries its error");
    let bad = ends(&all, "bad");
    assert_eq!(bad.iter().map(brief).collect::<Vec<_>>(), [["WARN", "failed", "exit_code"]]);
    assert_eq!(bad[0]["error"], "exit code 64: not a picture");
    let slow = ends(&all, "slow");
    assert_eq!(slow.iter().map(brief).collect::<Vec<_>>(), [["INFO", "released", "none"]]);
    assert!(ends(&all, "noop").is_empty(), "a Rust handler that did well is not worth a line");
    let alerts: Vec<_> = all.iter().filter_map(|v| v["alert"].as_str()).collect();
    assert_eq!(alerts.iter().filter(|a| **a == "job_failed").count(), 1, "{alerts:?}");
    assert_eq!(alerts.iter().filter(|a| **a == "buried").count(), 1, "{alerts:?}");
}

// Shows: O-04
#[tokio::test]
async fn at_debug_every_attempt_has_a_line_and_what_happens_in_it_names_it() {
    let world = World::with(HANDLERS).await;
    let c = world.connect().await;
    let debug = ["--log-format", "json", "--log", "debug"];
    let worker = world.worker(&debug, &[]);
    world.publish("default", "noop", r#"{"type":"noop"}"#).await;
    // A command that writes more than it may, so that a line is written while it runs.
    world.publish("default", "loud", r#"{"type":"loud"}"#).await;
    world.ended(&c, "noop").await;
    world.ended(&c, "loud").await;
    wait_logged(&world, "both ends to be logged", async || {
        worker.log().matches("attempt ended").count() == 2
    })
    .await;
    let all = lines(&worker);
    assert_eq!(ends(&all, "noop")[0]["level"], "DEBUG");
    assert_eq!(ends(&all, "loud").len(), 1);
    let cut =
        all.iter().find(|v| v["message"].as_str().unwrap().starts_with("output over the limit")).unwrap();
    assert_eq!((&cut["span"]["job_id"], &cut["span"]["type"]), (&"loud".into(), &"loud".into()), "{cut}");
    assert_eq!(cut["span"]["attempt"], 1);
}

// Shows: O-04
#[tokio::test]
async fn the_last_words_of_a_process_are_json_too() {
    let world = World::with("[connection]\nretry_limit = \"200ms\"").await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", nobody.local_addr().unwrap());
    drop(nobody);
    for mut process in [
        world.worker(&["--nats", &url, "--log-format", "json"], &[]),
        world.reaper_with(&["--nats", &url, "--log-format", "json"], &[]),
    ] {
        assert_eq!(process.ended(Duration::from_secs(60)).await, Some(69));
        let all = lines(&process);
        let last = all.last().unwrap();
        assert_eq!(last["level"], "ERROR");
        assert!(last["message"].as_str().unwrap().contains("nats is not reachable"), "{last}");
    }
    // The keeper is a process of its own, and writes to the log of its worker. This one was started by hand.
    let log = world.dir.path().join("keeper.log");
    let mut keeper = Process::start(&bin("t-worker"), &["keeper".into(), "json".into()], &[], log);
    assert_eq!(keeper.ended(Duration::from_secs(60)).await, Some(70));
    assert_eq!(lines(&keeper)[0]["message"], "keeper: not a pipe");
}

#[tokio::test]
async fn a_wrong_log_format_is_refused() {
    let world = World::start().await;
    let mut worker = world.worker(&["--log-format", "yaml"], &[]);
    assert_eq!(worker.ended(Duration::from_secs(60)).await, Some(78));
    assert!(worker.log().contains("\"yaml\" is neither \"human\" nor \"json\""), "{}", worker.log());
}
