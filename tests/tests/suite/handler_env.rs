//! The environment of a handler: a base, what its table lets through, and what the protocol says.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt};

use surety_common::domain::Status;
use surety_tests::{witness::Witness, world::World};

/// What a handler found in its environment.
fn found(witness: &Witness, name: &str) -> BTreeMap<String, String> {
    let text = witness.written(name);
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[tokio::test]
async fn a_handler_gets_no_login_of_its_worker_and_nothing_that_nobody_let_through() {
    let witness = Witness::default();
    let env = |name: &str, more: &str| {
        // As it was when the handler began, before a shell added its own.
        witness.handler(name, &format!("cat /proc/$$/environ > $W.{name}")) + more
    };
    let config = env("plain", "")
        + &env(
            "open",
            "inherit = [\"AWS_*\", \"NATS_CREDS_NOTE\"]\nenv = { OWN = \"own\", AWS_B = \"own\" }\n",
        )
        + "[worker]\ncgroups = false\n";
    let world = World::with(&config).await;
    let c = world.connect().await;
    // A server without users takes any login.
    let nats = world.nats.url().replace("nats://", "nats://ann:s3cret@");
    let secret = [
        ("SURETY_WORKER_SLOTS", "3"),
        ("DATABASE_PASSWORD", "s3cret"),
        ("NATS_CREDS_NOTE", "s3cret"),
        ("AWS_A", "worker's"),
        ("AWS_B", "worker's"),
        ("LC_TIME", "C"),
    ];
    let mut worker = world.worker(&["--nats", &nats], &secret);
    for job in ["plain", "open"] {
        world.publish("default", job, &format!(r#"{{"type":"{job}"}}"#)).await;
        assert_eq!(world.ended(&c, job).await.status, Status::Done, "{}", worker.log());
    }
    let plain = found(&witness, "plain");
    let allowed = |name: &str| {
        surety_common::config::handed::is_base(name)
            || ["NATS_URL", "REDIS_URL", "SURETY_CONNECTION_NAMESPACE", "TRACEPARENT"].contains(&name)
            || name.starts_with("SURETY_")
                && !["SURETY_CONNECTION", "SURETY_WORKER"].iter().any(|p| name.starts_with(p))
    };
    let odd: Vec<_> = plain.keys().filter(|k| !allowed(k)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    assert!(!plain.values().any(|v| v.contains("s3cret") || v.contains("ann:")), "{plain:?}");
    assert_eq!(plain["NATS_URL"], world.nats.url(), "the address, without the login");
    assert_eq!((plain["LC_TIME"].as_str(), plain["SURETY_JOB_ID"].as_str()), ("C", "plain"));
    assert!(plain.contains_key("PATH") && plain.contains_key("SURETY_KEEPER_TOKEN"));
    let open = found(&witness, "open");
    let of = |name: &str| open.get(name).map(String::as_str);
    assert_eq!((of("AWS_A"), of("AWS_B"), of("OWN")), (Some("worker's"), Some("own"), Some("own")));
    assert_eq!((of("NATS_CREDS_NOTE"), of("DATABASE_PASSWORD")), (Some("s3cret"), None));
    assert_eq!(worker.stop().await, Some(0));
}

#[tokio::test]
async fn a_handler_is_found_beside_its_configuration_file_wherever_the_worker_is_started() {
    let config = "[handlers.beside]\ncommand = [\"./run.sh\", \"data\"]\n[handlers.below]\ncommand = [\"sh\", \"say.sh\"]\ncwd = \"below\"\n";
    let world = World::with(config).await;
    let c = world.connect().await;
    let write = |name: &str, text: &str| {
        std::fs::write(world.path(name), text).unwrap();
        std::fs::set_permissions(world.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    std::fs::create_dir(world.path("below")).unwrap();
    write("data", "there");
    write("run.sh", "#!/bin/sh\ngrep -q there \"$1\"\n");
    write("below/say.sh", "exit 0\n");
    // The working folder of the worker is the one of the tests.
    let mut worker = world.worker(&[], &[]);
    for job in ["beside", "below"] {
        let doc = format!(r#"{{"type":"{job}","retry":{{"max_retries":0}}}}"#);
        world.publish("default", job, &doc).await;
        assert_eq!(world.ended(&c, job).await.status, Status::Done, "{}", worker.log());
    }
    assert_eq!(worker.stop().await, Some(0));
}
