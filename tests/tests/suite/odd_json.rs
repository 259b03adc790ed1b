//! Texts that are JSON by their syntax and that many readers cannot read: they harm nobody but their author.

use serde_json::{Value, json};
use surety_common::domain::Status;
use surety_tests::{
    witness::{dead_letters, settled},
    world::World,
};

fn nested(n: usize) -> String {
    "[".repeat(n) + &"]".repeat(n)
}

/// Name, what is printed or sent, and what becomes of it where it is repaired.
fn odd() -> Vec<(&'static str, String, Value)> {
    let deep = nested(200);
    vec![
        ("surrogate", r#"{"title":"Party \ud83d"}"#.into(), json!({"title": "Party \u{fffd}"})),
        ("name", r#"{"\udc00":1}"#.into(), json!({"\u{fffd}": 1})),
        ("number", r#"{"d":1e999}"#.into(), json!({"d": null})),
        ("digits", format!("[{}]", "9".repeat(400)), json!([null])),
        // Nothing repairs it: as a result of a command it is a text.
        ("deep", deep.clone(), json!(deep)),
    ]
}

// Shows: P2, P8, E-05
#[tokio::test]
async fn an_odd_result_is_repaired_and_hides_no_neighbour() {
    let mut config = String::new();
    for (name, text, _) in odd() {
        let say = r#"printf "%s\n" "$1" >&3"#;
        config += &format!("[handlers.out-{name}]\ncommand = ['printf', '%s', '{text}']\n");
        config += &format!(
            "[handlers.said-{name}]\ncommand = ['sh', '-c', '{say}', 'sh', '{{\"result\":{text}}}']\n"
        );
    }
    let world = World::with(&config).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    for (name, ..) in odd() {
        for way in ["out", "said"] {
            let kind = format!("{way}-{name}");
            let body = format!(r#"{{"type":"{kind}","retry":{{"max_retries":0}}}}"#);
            world.publish("default", &kind, &body).await;
            world.publish("default", &format!("beside-{kind}"), r#"{"type":"noop"}"#).await;
        }
    }
    for (name, _, want) in odd() {
        let (printed, said) = (format!("out-{name}"), format!("said-{name}"));
        assert_eq!(world.ended(&c, &printed).await.status, Status::Done, "{printed}");
        assert_eq!(world.ended(&c, &format!("beside-{printed}")).await.status, Status::Done);
        let end = world.ended(&c, &said).await;
        // Its neighbours of the same journal message are there as well.
        settled(&world, &c).await;
        let h = world.history(&c).await;
        let result = |job: &str| h.jobs[job].events.last().unwrap().data["receipt"]["result"].clone();
        assert_eq!(result(&printed), want, "{printed}");
        if name == "deep" {
            // What cannot be told is not left out: the attempt fails.
            assert_eq!((end.status, end.code.as_str()), (Status::Failed, "handler_error"));
        } else {
            assert_eq!((end.status, result(&said)), (Status::Done, want), "{said}");
        }
    }
    let letters = dead_letters(&world).await;
    assert!(letters.len() == 1 && letters[0].message.contains("nested deeper than 100"), "{letters:?}");
    world.history(&c).await.check().unwrap();
    assert_eq!(world.ask(&["audit"]).await["unreadable"], 0);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: P8, J-12
#[tokio::test]
async fn an_odd_document_is_refused_with_its_reason_and_no_guard_is_left_out() {
    let world = World::with("[guards.concurrency.one]\nscope = \"{payload.repo}\"\nlimit = 1\n").await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    for (name, text, _) in odd() {
        let body = format!(r#"{{"type":"noop","payload":{{"repo":"a","more":{text}}}}}"#);
        world.publish("default", name, &body).await;
        let beside = r#"{"type":"noop","payload":{"repo":"a"}}"#;
        world.publish("default", &format!("beside-{name}"), beside).await;
    }
    for (name, ..) in odd() {
        let r = world.ended(&c, name).await;
        assert_eq!((r.status, r.code.as_str()), (Status::Failed, "invalid_job"), "{name}");
        assert_eq!(world.ended(&c, &format!("beside-{name}")).await.status, Status::Done, "{name}");
    }
    for letter in dead_letters(&world).await {
        assert!(letter.message.starts_with("payload: "), "{letter:?}");
    }
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: E-05, P7
#[tokio::test]
async fn damage_of_one_event_stays_with_it_and_the_audit_is_not_clean() {
    let world = World::start().await;
    let c = world.connect().await;
    let js = async_nats::jetstream::new(world.plain().await);
    let event = |job: &str, data: &str| {
        format!(
            r#"{{"v":1,"job":"{job}","gen":1,"rev":1,"kind":"started","at":"2026-11-21T08:00:00Z","queue":"default","type":"t","status":"running","contract":"acked","attempt":1,"epoch":1,"data":{data}}}"#
        )
    };
    for (name, text, _) in odd() {
        let [before, bad, after] = ["before", "bad", "after"].map(|place| format!("{place}-{name}"));
        let body = format!("[{},{},{}]", event(&before, "{}"), event(&bad, &text), event(&after, "{}"));
        js.publish("surety.events.default", body.into()).await.unwrap().await.unwrap();
    }
    let mut jobs = Vec::new();
    let unreadable = c.broker.read_journal(None, 0, |e| jobs.push(e.job)).await.unwrap();
    let want: Vec<_> =
        odd().iter().flat_map(|(n, ..)| [format!("before-{n}"), format!("after-{n}")]).collect();
    assert_eq!((jobs, unreadable), (want, odd().len() as u64));
    let said = world.surety(&["audit", "--json"]).await.exits(1).json();
    assert_eq!((&said["is_clean"], &said["unreadable"]), (&json!(false), &json!(odd().len())));
}
