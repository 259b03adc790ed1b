//! The dashboard and the alert rules, against what the programs expose.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::Value;
use surety_common::{
    domain::Status,
    telemetry::metrics::{ALERTS, table},
};
use surety_tests::{
    scrape::{Scrape, address},
    witness::wait_logged,
    world::World,
};

use super::metrics::{LISTEN, RUN, publish_all};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/surety.json")).unwrap()
}

/// An expression, where it stands, and the labels that a text beside it names.
#[derive(Debug)]
struct Expression {
    place: String,
    text: String,
    named: BTreeSet<String>,
}

/// What stands between two marks, each time.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| rest.split_once(close).map(|(inside, _)| inside)).collect()
}

fn panels() -> Vec<Expression> {
    let doc = dashboard();
    let mut out = Vec::new();
    for p in doc["panels"].as_array().unwrap() {
        for t in p["targets"].as_array().into_iter().flatten() {
            let legend = t["legendFormat"].as_str().unwrap_or("");
            out.push(Expression {
                place: format!("panel {}", p["title"]),
                text: t["expr"].as_str().unwrap().to_owned(),
                named: between(legend, "{{", "}}").into_iter().map(|l| l.trim().to_owned()).collect(),
            });
        }
    }
    assert!(out.len() > 30, "{} expressions", out.len());
    out
}

fn rules() -> Vec<Value> {
    let doc = yaml("deploy/prometheus/alerts.yml");
    let groups = doc["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|g| g["rules"].as_array().unwrap().clone()).collect()
}

fn alerts() -> Vec<Expression> {
    let of = |r: Value| {
        let texts = r["annotations"].to_string();
        let named = between(&texts, "$labels.", "}}");
        Expression {
            place: format!("alert {}", r["alert"]),
            text: r["expr"].as_str().unwrap().to_owned(),
            named: named.into_iter().map(|l| l.trim().to_owned()).collect(),
        }
    };
    rules().into_iter().map(of).collect()
}

/// A metric that an expression selects: its name, and label, operator and value of each matcher.
#[derive(Debug, PartialEq)]
struct Selector {
    name: String,
    matchers: Vec<(String, String, String)>,
}

/// Every selector of an expression: words that no bracket follows, outside of quotes and of lists of labels.
fn selectors(expr: &str) -> Vec<Selector> {
    const WORDS: [&str; 8] = ["by", "on", "or", "and", "unless", "group_left", "without", "ignoring"];
    let mut out = Vec::new();
    let mut rest = expr;
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '[') {
        rest = &rest[at..];
        if rest.starts_with('[') {
            rest = rest.split_once(']').expect("a range ends").1;
            continue;
        }
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let tail = tail.trim_start();
        if word == "offset" {
            rest = tail.trim_start_matches(is_word);
            continue;
        }
        if WORDS.contains(&word) {
            // A list of labels is none of ours.
            rest = if tail.starts_with('(') { tail.split_once(')').expect("a list ends").1 } else { tail };
            continue;
        }
        if tail.starts_with('(') || ["sum", "max", "min", "count"].contains(&word) {
            rest = tail;
            continue;
        }
        let mut matchers = Vec::new();
        rest = tail;
        if let Some(inside) = tail.strip_prefix('{') {
            let (inside, after) = inside.split_once('}').expect("matchers end");
            rest = after;
            for m in inside.split("\",") {
                let (left, value) = m.split_once('"').expect("a value in quotes");
                let at = left.find(['=', '!']).expect("an operator");
                let (label, op) = left.split_at(at);
                matchers.push((label.trim().into(), op.trim().into(), value.trim_end_matches('"').into()));
            }
        }
        out.push(Selector { name: word.to_owned(), matchers });
    }
    out
}

/// The labels of every list in an expression.
fn grouped(expr: &str) -> BTreeSet<String> {
    ["by (", "on (", "group_left ("]
        .iter()
        .flat_map(|open| between(expr, open, ")"))
        .flat_map(|list| list.split(','))
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect()
}

#[test]
fn selectors_are_found_in_an_expression() {
    let all = selectors(
        r#"max by (queue) (a{x="1",y=~"b|c"}) > on () group_left () sum(rate(b_total[5m])) or absent(c) unless d / 2"#,
    );
    let names: Vec<_> = all.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["a", "b_total", "c", "d"]);
    let is = |l: &str, op: &str, v: &str| (l.to_owned(), op.to_owned(), v.to_owned());
    assert_eq!(all[0].matchers, [is("x", "=", "1"), is("y", "=~", "b|c")]);
    assert_eq!(
        grouped("sum by (le, queue) (a) / on (job) b"),
        ["job", "le", "queue"].map(str::to_owned).into()
    );
}

/// What Prometheus adds to each series of ours.
const ADDED: [&str; 2] = ["job", "instance"];

/// What all programs together exposed.
struct Exposed {
    scrapes: Vec<Scrape>,
    jobs: BTreeSet<String>,
}

impl Exposed {
    /// Labels of a metric, and their values.
    fn labels(&self, name: &str) -> Option<BTreeMap<String, BTreeSet<String>>> {
        let mut out: Option<BTreeMap<String, BTreeSet<String>>> = None;
        for s in self.scrapes.iter().flat_map(|s| s.find(name, &[])) {
            let labels = out.get_or_insert_default();
            for (k, v) in &s.labels {
                labels.entry(k.clone()).or_default().insert(v.clone());
            }
        }
        out
    }

    /// What is wrong with an expression.
    fn problems(&self, e: &Expression) -> Vec<String> {
        let mut out = Vec::new();
        let mut all: BTreeSet<String> = ADDED.iter().map(|l| (*l).to_owned()).collect();
        let found = selectors(&e.text);
        if found.is_empty() {
            out.push(format!("{}: no metric", e.place));
        }
        for s in &found {
            let Some(labels) = self.labels(&s.name) else {
                out.push(format!("{}: {} is not exposed", e.place, s.name));
                continue;
            };
            all.extend(labels.keys().cloned());
            for (label, _, value) in &s.matchers {
                let known = if label == "job" { Some(&self.jobs) } else { labels.get(label) };
                let Some(known) = known else {
                    out.push(format!("{}: {} has no label {label}", e.place, s.name));
                    continue;
                };
                for v in value.split('|').filter(|v| !v.contains(['$', '*'])) {
                    if !known.contains(v) {
                        out.push(format!("{}: {}{{{label}}} is never {v:?}: {known:?}", e.place, s.name));
                    }
                }
            }
        }
        let lists = grouped(&e.text);
        let is_known = |l: &&String| !all.contains(*l);
        out.extend(lists.iter().filter(is_known).map(|l| format!("{}: grouped by {l}", e.place)));
        // What a text names is there after the grouping.
        let left = if lists.is_empty() { &all } else { &lists };
        out.extend(e.named.iter().filter(|l| !left.contains(*l)).map(|l| format!("{}: names {l}", e.place)));
        out
    }
}

/// Scrapes of a worker and a reaper after a run in which everything happened that the rules ask for.
async fn exposed() -> Exposed {
    let world = World::with(RUN).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let seen_by = address(&mut reaper).await;
    let mut doomed = world.worker(&["--state-dir", &world.path("doomed")], &[]);
    world.publish("default", "lost", r#"{"type":"slow"}"#).await;
    world.status(&c, "lost", Status::Running).await;
    doomed.kill9().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    publish_all(&world).await;
    world.publish("default", "missing", r#"{"type":"missing"}"#).await;
    for job in ["slow", "bad", "third0", "unknown", "garbage"] {
        if job != "garbage" {
            world.ended(&c, job).await;
        }
    }
    wait_logged(&world, "a start to fail and an attempt to be lost", async || {
        let failed = Scrape::of(at).await.sum("surety_attempts_total", &[("outcome", "start_failed")]);
        let lost = Scrape::of(seen_by).await.sum("surety_attempts_lost_total", &[]);
        failed >= Some(1.0) && lost >= Some(1.0)
    })
    .await;
    wait_logged(&world, "the garbage to be buried", async || {
        Scrape::of(at).await.sum("surety_decode_errors_total", &[("what", "message")]) >= Some(1.0)
    })
    .await;
    let prometheus = yaml("deploy/prometheus/prometheus.yml");
    let jobs = prometheus["scrape_configs"].as_array().unwrap().iter();
    Exposed {
        scrapes: vec![Scrape::of(at).await, Scrape::of(seen_by).await],
        jobs: jobs.map(|j| j["job_name"].as_str().unwrap().to_owned()).collect(),
    }
}

// Shows: O-03
#[tokio::test]
async fn dashboard_and_alerts_use_what_the_programs_expose() {
    let exposed = exposed().await;
    let problems: Vec<_> = panels().iter().chain(&alerts()).flat_map(|e| exposed.problems(e)).collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    // And the document knows what is exposed, with its labels.
    for s in exposed.scrapes.iter().flat_map(|s| s.samples.iter().map(move |x| (s, x))) {
        let (scrape, sample) = s;
        let family = scrape.family(&sample.name);
        if family.starts_with("surety_") {
            let d = table().iter().find(|d| d.name == family).unwrap_or_else(|| panic!("{family}"));
            let labels: BTreeSet<&str> =
                sample.labels.keys().map(String::as_str).filter(|l| *l != "le").collect();
            assert_eq!(labels, d.labels.iter().copied().collect(), "{family}");
            assert_eq!(scrape.kinds[family], d.kind, "{family}");
        }
    }
    // A wrong name, label or value is found.
    for bad in ["surety_nothing", "surety_ready{colour=\"red\"}", "sum by (colour) (surety_ready)"] {
        let e = Expression { place: String::new(), text: bad.into(), named: BTreeSet::new() };
        assert_eq!(exposed.problems(&e).len(), 1, "{bad}");
    }
    let value = r#"surety_attempts_total{outcome="fine"}"#;
    let e = Expression { place: String::new(), text: value.into(), named: ["type".into()].into() };
    assert_eq!(exposed.problems(&e).len(), 1);
    // The choices of the dashboard are labels that exist.
    let choices = dashboard()["templating"]["list"].as_array().unwrap().clone();
    let queries: Vec<_> = choices.iter().filter_map(|v| v["query"]["query"].as_str()).collect();
    assert_eq!(queries.len(), 2);
    for q in queries {
        let inside = between(q, "label_values(", ")")[0];
        let (name, label) = inside.split_once(',').unwrap();
        assert!(exposed.labels(name).unwrap().contains_key(label.trim()), "{q}");
    }
}

#[test]
fn every_alert_says_what_is_wrong_and_what_to_do() {
    let mut names = BTreeSet::new();
    for r in rules() {
        let name = r["alert"].as_str().unwrap().to_owned();
        assert!(name.starts_with("Surety"), "{name}");
        assert!(["warning", "critical"].contains(&r["labels"]["severity"].as_str().unwrap()), "{name}");
        for text in ["summary", "description"] {
            assert!(r["annotations"][text].as_str().is_some_and(|t| t.len() > 10), "{name}: {text}");
        }
        assert!(names.insert(name.clone()), "{name} comes twice");
    }
    assert!(names.len() >= 12, "{names:?}");
}

#[test]
fn the_dashboard_has_no_two_panels_in_one_place() {
    let doc = dashboard();
    let mut taken = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for p in doc["panels"].as_array().unwrap() {
        assert!(ids.insert(p["id"].as_u64().unwrap()), "{}", p["title"]);
        let at = |k: &str| p["gridPos"][k].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", p["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                let before = taken.insert((x, y), p["title"].clone());
                assert!(before.is_none(), "{} lies on {before:?}", p["title"]);
            }
        }
    }
    let provider = yaml("deploy/grafana/provisioning/dashboards/surety.yml");
    assert!(provider["providers"][0]["options"]["path"].is_string());
    let source = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(source["datasources"][0]["type"], "prometheus");
}

// Every condition that needs a person has its series from the start: an increase from nothing would not be seen.
#[test]
fn every_alert_of_the_log_is_known_to_the_metrics() {
    fn walk(dir: &Path, out: &mut BTreeSet<String>) {
        for e in std::fs::read_dir(dir).unwrap() {
            let path = e.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|x| x == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                out.extend(between(&text, "alert = \"", "\"").into_iter().map(str::to_owned));
            }
        }
    }
    let mut used = BTreeSet::new();
    for dir in ["common/src", "worker/src", "reaper/src"] {
        walk(&root().join(dir), &mut used);
    }
    assert_eq!(used, ALERTS.iter().map(|a| (*a).to_owned()).collect());
}
