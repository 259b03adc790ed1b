//! `docs/cli.md` says what the commands really write with `--json`.

use std::{collections::BTreeSet, process::Stdio};

use serde_json::Value;
use surety_common::{
    broker::journal::Entry,
    domain::guard::GuardKind,
    store::{GuardAct, GuardItem, Scope},
};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::support::{Hand, Said, World};

/// One field of a table.
struct Field {
    path: String,
    kind: String,
    is_always: bool,
}

/// The tables of a document: command, when, fields.
fn tables() -> Vec<(String, String, Vec<Field>)> {
    let doc = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    let mut found = Vec::new();
    for section in doc.split("\n## surety ").skip(1) {
        let command = section.lines().next().unwrap();
        let mut lines = section.lines();
        while let Some(line) = lines.next() {
            let Some(when) = line.strip_suffix(":").filter(|l| l.to_lowercase().ends_with("with `--json`"))
            else {
                continue;
            };
            let when = when.strip_suffix(", with `--json`").unwrap_or_default();
            let rows = lines.by_ref().skip(3).take_while(|l| l.starts_with('|'));
            let fields = rows.map(|l| {
                let cells: Vec<&str> = l.split(" | ").map(|c| c.trim_matches(['|', ' ', '`'])).collect();
                Field { path: cells[0].into(), kind: cells[1].into(), is_always: cells[2] == "yes" }
            });
            let fields: Vec<Field> = fields.collect();
            assert!(!fields.is_empty(), "{command}: no fields");
            found.push((command.to_owned(), when.to_owned(), fields));
        }
    }
    found
}

/// The path of every value that holds no others, with the value.
fn leaves(path: &str, value: &Value, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(o) if !o.is_empty() => {
            for (name, v) in o {
                leaves(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, v, out);
            }
        }
        Value::Array(a) if !a.is_empty() => a.iter().for_each(|v| leaves(&format!("{path}[]"), v, out)),
        other => out.push((path.to_owned(), other.clone())),
    }
}

/// Whether a documented path stands for a real one.
fn covers(field: &Field, path: &str, value: &Value) -> bool {
    let pattern = field.path.as_str();
    let is_whole = match pattern.strip_suffix(".*") {
        Some(map) => path == map || path.starts_with(&format!("{map}.")),
        None => pattern == path,
    };
    let holds_anything = ["any JSON", "object"].contains(&field.kind.as_str())
        && (path.starts_with(&format!("{pattern}.")) || path.starts_with(&format!("{pattern}[]")));
    // An empty list, or a structure that is not there.
    let is_empty = (value.is_null() || *value == serde_json::json!([]) || *value == serde_json::json!({}))
        && (pattern.starts_with(&format!("{path}[]")) || pattern.starts_with(&format!("{path}.")));
    is_whole || holds_anything || is_empty
}

fn has_type(kind: &str, v: &Value) -> bool {
    match kind {
        "string" => v.is_string(),
        "number" => v.is_number(),
        "boolean" => v.is_boolean(),
        _ => true,
    }
}

/// Whether a field is there in every structure that can have it.
fn is_there(value: &Value, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else { return !value.is_null() };
    if *first == "*" {
        return value.is_object();
    }
    let (name, is_list) = first.strip_suffix("[]").map_or((*first, false), |n| (n, true));
    match value.get(name) {
        None => false,
        Some(Value::Array(a)) if is_list => a.iter().all(|v| is_there(v, rest)),
        Some(v) => rest.is_empty() || is_there(v, rest),
    }
}

fn check(what: &str, fields: &[Field], value: &Value) {
    let mut found = Vec::new();
    leaves("", value, &mut found);
    for (path, v) in found {
        let field = fields.iter().find(|f| covers(f, &path, &v));
        let field = field.unwrap_or_else(|| panic!("surety {what}: {path} is not documented: {value}"));
        let is_typed = has_type(&field.kind, &v) || (v.is_null() && !field.is_always) || field.path != path;
        assert!(is_typed, "surety {what}: {path} is no {}: {v}", field.kind);
    }
    for f in fields.iter().filter(|f| f.is_always) {
        let path: Vec<&str> = f.path.split('.').collect();
        assert!(is_there(value, &path), "surety {what}: {} is not always there: {value}", f.path);
    }
}

#[tokio::test]
async fn json_is_what_the_reference_says() {
    let tables = tables();
    let mut seen = BTreeSet::new();
    let mut compare = |command: &str, when: &str, said: &Said| {
        let is = |(c, w, _): &&(String, String, _)| c == command && w == when;
        let (_, _, fields) =
            tables.iter().find(is).unwrap_or_else(|| panic!("{command} ({when}) is not documented"));
        seen.insert((command.to_owned(), when.to_owned()));
        check(command, fields, &said.json());
    };
    let w = World::bare().await;
    let run = async |args: &[&str]| w.run(&[&["--json"], args].concat()).await;
    compare("provision", "", &run(&["provision"]).await);
    compare("config", "", &run(&["config"]).await);
    compare("workers", "", &run(&["workers"]).await);
    compare("doctor", "", &run(&["doctor"]).await);

    compare("enqueue", "", &run(&["enqueue", "thumbnail", "--id", "a", "--key", "k"]).await);
    compare("status", "", &run(&["status", "a"]).await);
    compare("why", "", &run(&["why", "a"]).await);
    compare("queues", "", &run(&["queues"]).await);
    let hand = Hand::start(&w).await;
    compare("queues", "", &run(&["queues"]).await);
    let g = hand.granted("a").await;
    compare("status", "", &run(&["status", "a"]).await);
    compare("why", "", &run(&["why", "a"]).await);
    compare("workers", "", &run(&["workers"]).await);
    hand.finish("a", g.epoch, surety_common::store::Verdict::Done).await;
    compare("status", "", &run(&["status", "a"]).await);
    compare("why", "", &run(&["why", "a"]).await);
    compare("enqueue", "", &run(&["enqueue", "thumbnail", "--id", "a", "--wait"]).await);
    compare("events", "", &run(&["events", "a"]).await);
    compare("audit", "", &run(&["audit"]).await);
    compare("audit", "", &run(&["audit", "--running"]).await);
    compare("events", "", &run(&["events", "--key", "k", "--limit", "1"]).await);

    let lines = "{\"type\":\"a\",\"id\":\"b\"}\n{\"type\":\"a\",\"id\":\"c\"}\n{\"type\":\"Bad\"}\n";
    std::fs::write(w.folder.path().join("jobs.ndjson"), lines).unwrap();
    compare("batch", "", &run(&["batch", "jobs.ndjson", "--batch-id", "x", "--ids"]).await);
    hand.fail("b").await;
    compare("cancel", "", &run(&["cancel", "c"]).await);
    compare("batch", "", &run(&["batch", "jobs.ndjson", "--watch"]).await);
    compare("watch", "With --batch, at the end", &run(&["watch", "--batch", "x"]).await);
    let mut watch = w.command(&["--json", "watch", "--since", "10m"]);
    let mut child = watch.stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..4 {
        let line = tokio::time::timeout(std::time::Duration::from_secs(60), out.next_line()).await;
        let said = Said { code: 0, out: line.unwrap().unwrap().unwrap(), err: String::new() };
        compare("watch", "One line for each event", &said);
    }

    compare("dlq list", "", &run(&["dlq", "list"]).await);
    compare("dlq list", "", &run(&["dlq", "list", "--limit", "1"]).await);
    compare("dlq show", "", &run(&["dlq", "show", "b"]).await);
    compare("dlq replay", "Where --yes is missing", &run(&["dlq", "replay", "--all"]).await.exits(2));
    compare("dlq replay", "", &run(&["dlq", "replay", "b", "nobody", "--yes"]).await);
    compare("dlq purge", "Where --yes is missing", &run(&["dlq", "purge"]).await.exits(2));
    compare("dlq purge", "", &run(&["dlq", "purge", "--yes"]).await);

    let when = ["--cron", "0 30 9 * * *", "--zone", "Europe/Vienna"];
    compare("schedule add", "", &run(&[&["schedule", "add", "daily", "a"], &when[..]].concat()).await);
    compare("schedule add", "", &run(&["schedule", "add", "beat", "a", "--every", "1h"]).await);
    compare("schedule list", "", &run(&["schedule", "list"]).await);
    compare("schedule list", "", &run(&["schedule", "list", "--limit", "1"]).await);
    compare("schedule next", "", &run(&["schedule", "next", "daily"]).await);
    compare("schedule rm", "Where --yes is missing", &run(&["schedule", "rm", "daily"]).await.exits(2));
    compare("schedule rm", "", &run(&["schedule", "rm", "daily", "--yes"]).await);
    compare("enqueue", "", &run(&["enqueue", "a", "--id", "later", "--in", "1h"]).await);
    compare("status", "", &run(&["status", "later"]).await);
    compare("why", "", &run(&["why", "later"]).await);
    let cancelled = run(&["schedule", "rm", "later", "--yes"]).await;
    compare("schedule rm", "Of a schedule that fires once", &cancelled);

    compare("completions", "", &run(&["completions", "bash"]).await);
    compare("man", "", &run(&["man"]).await);
    compare("man", "With --out", &run(&["man", "--out", "pages"]).await);

    // An outcome of a job that never started.
    let event = serde_json::json!([{
        "v": 1, "job": "forged", "gen": 1, "rev": 1, "kind": "finished", "at": "2026-11-21T08:00:00.000Z", "queue": "default",
        "type": "a", "status": "done", "contract": "acked", "attempt": 1, "epoch": 1, "data": {"receipt": {"outcome": "done"}}
    }]);
    let c = w.connect().await;
    let entry = Entry {
        message_id: "forged".into(),
        suffix: "default.ended",
        body: &event.to_string(),
        ended: "forged",
        commit: 1,
    };
    c.broker.journal(&c.publisher, &entry).await.unwrap().stored().await.unwrap();
    compare("audit", "", &run(&["audit"]).await.exits(1));

    compare("pause", "", &run(&["pause", "--type", "thumbnail", "--reason", "r", "--for", "1h"]).await);
    compare("pause", "With --list", &run(&["pause", "--list"]).await);
    compare("resume", "", &run(&["resume", "--type", "thumbnail"]).await);
    let rate = Scope::new(GuardKind::Rate, "api", "acme", [600_000_000, 0, 0, 0]);
    let lock = Scope::new(GuardKind::Lock, "", "repo", [1, 5000, 0, 0]);
    let ask = |scope: Scope| {
        let act = GuardAct::Ask { arrival_ms: 1, ack_subject: "".into(), work: "".into(), keeps: false };
        let item = GuardItem { act, member: "a/1".into(), scopes: vec![0].into() };
        let store = c.store.clone();
        async move { store.guard(0, None, 60_000, &[scope], &[item]).await.unwrap() }
    };
    ask(rate).await;
    ask(lock).await;
    compare("guards", "", &run(&["guards"]).await);
    compare("guards reset", "", &run(&["guards", "reset", "api: acme"]).await);
    compare("locks", "", &run(&["locks"]).await);
    compare("locks release", "", &run(&["locks", "release", "repo", "--force"]).await);

    // These start servers of their own, and their own tests read what they write.
    let elsewhere = ["dev", "bench", "demo"];
    for (command, when, _) in &tables {
        let is_seen = seen.contains(&(command.clone(), when.clone()));
        assert!(is_seen || elsewhere.contains(&command.as_str()), "surety {command} ({when}) was not run");
    }
}
