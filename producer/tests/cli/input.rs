//! Bad input is answered with what, where and what to do, and changes nothing.

use super::support::{World, feed, finish, surety};

// Shows: J-11
#[tokio::test]
async fn bad_jobs_are_refused_with_field_rule_and_exit_code_2() {
    let w = World::provisioned().await;
    for (args, part) in [
        (&["enqueue", "--doc", r#"{"type":"a","paylod":1}"#][..], "did you mean \"payload\"?"),
        (&["enqueue", "--doc", r#"{"type":"a","contract":{"timout":"1m"}}"#], "\"contract.timout\""),
        (&["enqueue", "--doc", "[1]"], "not a JSON object"),
        (&["enqueue", "--doc", r#"{"v":9,"type":"a"}"#], "version 9"),
        (&["enqueue", "a", "--timeout", "1 parsec"], "contract.timeout: \"1 parsec\" is not a duration"),
        (&["enqueue", "a", "--backoff", "1m,soon"], "retry.backoff"),
        (&["enqueue", "a", "--max-retries", "5000"], "0 to 1000"),
        (&["enqueue", "Not A Type"], "type \"Not A Type\""),
        (&["enqueue", &"x".repeat(65)], "1 to 64"),
        (&["enqueue", "a", "--queue", "Default"], "queue \"Default\""),
        (&["enqueue", "a", "--id", "has space"], "id: job id"),
        (&["enqueue", "a", "--meta", "novalue"], "NAME=VALUE"),
        (&["enqueue", "a", "--expires-at", "tomorrow"], "expires_at"),
        (&["enqueue", "a", "--notify", "a.*"], "notify.subject: \"a.*\" is not a subject"),
        (&["enqueue", "a", "--notify", "surety.jobs.default.x"], "a message would be a command"),
        (&["enqueue", "a", "--no-notices"], "--notify SUBJECT"),
        (&["enqueue", "a", "{\"x\":"], "not valid JSON"),
        (&["enqueue", "a", "--wait-for", "5"], "not a duration"),
        (&["enqueue"], "<TYPE|--doc"),
        (&["enqueue", "a", "--queue", "defalt"], "did you mean \"default\"?"),
        (&["status", "no spaces please"], "job id"),
        (&["batch", "no-such-file.ndjson"], "cannot read no-such-file.ndjson"),
        (&["dlq", "replay"], "required"),
        (&["frobnicate"], "unrecognized"),
    ] {
        let said = w.run(args).await;
        assert_eq!(said.code, 2, "{args:?}: {}{}", said.out, said.err);
        assert!(
            said.err.contains(part) || part == "<TYPE|--doc",
            "{args:?}: {part:?} is not in:\n{}",
            said.err
        );
        assert!(said.out.is_empty(), "{args:?} wrote {:?}", said.out);
    }
    assert_eq!(w.waiting("default").await, 0);
}

#[tokio::test]
async fn a_payload_may_have_512_kib_and_not_one_byte_more() {
    let w = World::provisioned().await;
    let payload = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2)).into_bytes();
    let enqueue = || w.command(&["enqueue", "a", "-"]);
    feed(enqueue(), &payload(512 * 1024)).await.exits(0);
    feed(enqueue(), &payload(512 * 1024 + 1)).await.exits(2).complains("payload: 524289 bytes");
    feed(enqueue(), &payload(3 << 20)).await.exits(2).complains("the payload cap is 524288");
    assert_eq!(w.waiting("default").await, 1);
}

#[tokio::test]
async fn bad_configuration_is_exit_code_78_with_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |args: &[&str]| {
        let mut c = surety(folder.path());
        c.args(args);
        finish(c).await
    };
    run(&["--config", "absent.toml", "queues"]).await.exits(78).complains("absent.toml");
    run(&["--nats", "nats://bad host:x", "queues"]).await.exits(78).complains("is not a NATS URL");
    run(&["--namespace", "Über", "queues"]).await.exits(78).complains("connection.namespace");
    std::fs::write(folder.path().join("surety.toml"), "[worker]\nslot = 3\n[lease]\nttl = 20\n").unwrap();
    run(&["queues"]).await.exits(78).complains("did you mean \"slots\"?").complains("lease.ttl");
}

#[tokio::test]
async fn config_shows_what_is_in_effect_without_passwords() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("surety.toml"), "[worker]\nslots = 3\n").unwrap();
    let mut c = surety(folder.path());
    c.args(["config", "--nats", "nats://user:hush@a:1,nats://user:hush@b:2"]);
    let said = finish(c).await.exits(0);
    assert!(said.out.contains("worker.slots = 3"), "{}", said.out);
    assert!(said.out.contains("nats://***@a:1,nats://***@b:2"), "{}", said.out);
    assert!(!said.out.contains("hush"));
}

#[tokio::test]
async fn help_has_examples_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["enqueue", "--help"], &["dlq", "replay", "--help"]] {
        let mut c = surety(folder.path());
        c.args(args);
        let said = finish(c).await.exits(0);
        assert!(said.out.contains("Example:"), "{}", said.out);
    }
}
