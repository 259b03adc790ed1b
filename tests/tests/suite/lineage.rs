//! Where jobs come from: what a handler enqueues with the command is known as its child, by itself.

use surety_common::domain::Status;
use surety_tests::{
    witness::settled,
    world::{World, bin, wait},
};

/// `[handlers.<name>]`: a shell script that writes down its own lineage, with `surety` for the command of this test.
fn handler(name: &str, log: &str, body: &str) -> String {
    let surety = bin("t-surety");
    format!(
        r#"
[handlers.{name}]
command = ["sh", "-ec", '''
L={log}
surety() {{ {surety} "$@" >> $L.err 2>&1; }}
echo "$SURETY_JOB_ID ${{SURETY_PARENT:--}} $SURETY_ROOT $SURETY_DEPTH" >> $L
{body}
''']
inherit = ["SURETY_CONFIG"]
"#
    )
}

#[tokio::test]
async fn what_a_handler_enqueues_is_its_child_however_it_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("lineage").display().to_string();
    let chain = r#"
cat >> $L.stdin
case $SURETY_DEPTH in
0) surety enqueue chain --id one ;;
1) echo '{"type":"chain","id":"two"}' | surety batch - ;;
2) surety enqueue chain --id three --in 1s ;;
3) surety schedule add beat note --every 1s
   surety enqueue note --id free --no-parent
   surety enqueue note --id adopted --parent stranger
   exit 65 ;;
esac"#;
    let world = World::with(&(handler("chain", &log, chain) + &handler("note", &log, ""))).await;
    let c = world.connect().await;
    // Its handlers are handed the addresses that it was given, whatever it inherited.
    let config = world.config_file().display().to_string();
    let env = [
        ("SURETY_CONFIG", &*config),
        ("NATS_URL", "nats://127.0.0.1:1"),
        ("SURETY_CONNECTION_REDIS_URL", "redis://127.0.0.1:1"),
    ];
    let mut worker = world.worker(&[], &env);
    let mut reaper = world.reaper(&[]);
    world.publish("default", "zero", r#"{"type":"chain"}"#).await;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let told = |line: &str| said().lines().any(|l| l == line);
    let err = || std::fs::read_to_string(format!("{log}.err")).unwrap_or_default();
    for line in [
        "zero - zero 0",
        "one zero zero 1",
        "two one zero 2",
        "three two zero 3",
        "free - free 0",
        "adopted stranger stranger 1",
    ] {
        wait(&format!("{line:?} in {:?} {}", said(), err()), async || told(line)).await;
    }
    // A firing begins a line of its own, as deep as it is.
    let is_firing = |line: &str| {
        let f: Vec<_> = line.split(' ').collect();
        f[0].starts_with("beat-") && f[1..] == ["three", f[0], "4"]
    };
    let fired = || said().lines().any(is_firing);
    wait("a firing of the schedule", async || fired()).await;
    // As the handler reads it on stdin.
    let stdin = std::fs::read_to_string(format!("{log}.stdin")).unwrap();
    let documents: Vec<serde_json::Value> = stdin.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let lineage = |i: usize| {
        let d = &documents[i];
        (d.get("parent").cloned(), d.get("root").cloned(), d.get("depth").cloned())
    };
    assert_eq!(lineage(0), (None, None, None));
    assert_eq!(lineage(1), (Some("zero".into()), Some("zero".into()), Some(1.into())));
    assert_eq!(lineage(3), (Some("two".into()), Some("zero".into()), Some(3.into())));

    // Another generation comes from where the first came from.
    assert_eq!(world.ended(&c, "three").await.status, Status::Failed);
    wait("its dead letter", async || world.surety(&["dlq", "show", "three"]).await.code == Some(0)).await;
    let before = said().matches("three two zero 3").count();
    world.surety(&["schedule", "rm", "beat", "--yes"]).await.exits(0);
    world.surety(&["dlq", "replay", "three"]).await.exits(0);
    wait("the second generation", async || said().matches("three two zero 3").count() > before).await;
    assert_eq!(world.ended(&c, "three").await.generation, 2);
    world.surety(&["schedule", "rm", "beat", "--yes"]).await.exits(0);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}
