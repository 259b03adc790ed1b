//! The compose stack, read: its file, its images and its configuration files against what the programs and servers make of
//! them. `stack.rs` runs it without an engine, and `make compose-test` in containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use surety_common::{
    clock::parse_span,
    config::{Settings, load_text},
};
use surety_producer::dev::servers::find_nats_server;
use surety_tests::world::bin;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(super) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What `${NAME:-default}` in the file stands for.
fn interpolated(text: &str, set: &[(&str, &str)]) -> String {
    let mut parts = text.split("${");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').unwrap();
        let (name, default) = name.split_once(":-").expect("a default");
        out += set.iter().find(|(n, _)| *n == name).map_or(default, |(_, v)| v);
        out += rest;
    }
    out
}

pub(super) fn compose_with(set: &[(&str, &str)]) -> BTreeMap<String, Service> {
    let doc: Value = serde_saphyr::from_str(&interpolated(&read("docker-compose.yml"), set)).unwrap();
    let services = doc["services"].as_object().unwrap();
    services.iter().map(|(name, v)| (name.clone(), Service { name: name.clone(), doc: v.clone() })).collect()
}

fn compose() -> BTreeMap<String, Service> {
    compose_with(&[])
}

pub(super) fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().map(|s| s.as_str().expect("a string").to_owned()).collect()
}

pub(super) struct Service {
    pub(super) name: String,
    pub(super) doc: Value,
}

impl Service {
    fn list(&self, key: &str) -> Vec<String> {
        strings(&self.doc[key])
    }

    /// The stage of the Dockerfile that it is built from; none for an image from elsewhere.
    fn target(&self) -> Option<&str> {
        self.doc["build"]["target"].as_str()
    }

    /// Source and target of each mounted file or folder of the repository.
    fn mounts(&self) -> Vec<(PathBuf, String)> {
        let all = self.list("volumes").into_iter().filter(|v| v.starts_with("./"));
        let both = all.map(|v| {
            let parts: Vec<_> = v.split(':').collect();
            assert_eq!(parts.get(2), Some(&"ro"), "{}: {v} can be written to", self.name);
            (root().join(parts[0]), parts[1].to_owned())
        });
        both.collect()
    }

    /// A text with paths in the container replaced by those of the repository.
    pub(super) fn here(&self, text: &str) -> String {
        self.mounts().iter().fold(text.to_owned(), |t, (from, to)| t.replace(to, from.to_str().unwrap()))
    }

    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let all = self.doc["environment"].as_object().into_iter().flatten();
        all.map(|(k, v)| (k.clone(), v.as_str().expect("quoted").to_owned())).collect()
    }

    /// The program and its arguments, as the container runs them.
    pub(super) fn argv(&self) -> Vec<String> {
        let own = self.list("entrypoint");
        let entrypoint = match (own.is_empty(), self.target()) {
            (false, _) => own,
            (true, Some(t)) => strings(&stages()[t].entrypoint),
            (true, None) => vec![],
        };
        entrypoint.into_iter().chain(self.list("command")).map(|a| self.here(&a)).collect()
    }

    /// The settings that a process in it has.
    fn settings(&self) -> Settings {
        let env = self.environment();
        let get = |name: &str| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        let file = self.here(&get("SURETY_CONFIG").unwrap());
        load_text(Some((&std::fs::read_to_string(&file).unwrap(), &file)), &get, &vec![]).unwrap()
    }

    fn is_one_of_ours(&self) -> bool {
        self.target().is_some()
    }

    /// Runs until it is stopped.
    fn is_lasting(&self) -> bool {
        !self.doc["restart"].is_null()
    }
}

struct Stage {
    user: String,
    entrypoint: Value,
    copies: String,
}

/// The stages of deploy/Dockerfile, each with what it has from the stage that it is built on.
fn stages() -> BTreeMap<String, Stage> {
    let mut all: BTreeMap<String, Stage> = BTreeMap::new();
    let mut name = String::new();
    for line in read("deploy/Dockerfile").lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["FROM", base, "AS", stage] => {
                name = (*stage).to_owned();
                let user = all.get(*base).map(|s| s.user.clone()).unwrap_or_default();
                let new = Stage { user, entrypoint: Value::Null, copies: String::new() };
                all.insert(name.clone(), new);
            }
            ["USER", user] => all.get_mut(&name).unwrap().user = (*user).to_owned(),
            ["COPY", "--from=build", from, "/usr/local/bin/"] => {
                all.get_mut(&name).unwrap().copies = (*from).to_owned();
            }
            ["ENTRYPOINT", json @ ..] => {
                all.get_mut(&name).unwrap().entrypoint = serde_json::from_str(&json.join(" ")).unwrap();
            }
            _ => {}
        }
    }
    all
}

/// Names a version down to its last part: `nats:2.15.0-alpine`, `debian:bookworm-20260824-slim`.
fn is_pinned(image: &str) -> bool {
    let tag = image.split_once(':').map_or("", |(_, t)| t);
    let is_exact = tag.trim_start_matches('v').split('-').any(|part| {
        let numbers = part.split('.').filter(|n| n.parse::<u64>().is_ok()).count();
        numbers == 3 || (numbers == 1 && part.len() == 8)
    });
    is_exact && !image.contains("latest")
}

// Shows: B-05
#[test]
fn the_stack_has_every_part_and_workers_can_be_many() {
    let all = compose();
    for name in
        ["nats", "redis", "provision", "worker", "reaper", "prometheus", "grafana", "sample", "surety"]
    {
        assert!(all.contains_key(name), "{name}");
    }
    assert_eq!(all["sample"].list("profiles"), ["sample"]);
    let worker = &all["worker"].doc;
    assert!(worker["container_name"].is_null() && worker["ports"].is_null(), "they would collide");
    // State of running commands belongs to one worker alone: no volume that several would share.
    let settings = all["worker"].settings();
    let is_in_memory = |dir: &str| {
        all["worker"]
            .list("tmpfs")
            .iter()
            .any(|t| dir.starts_with(&format!("{}/", t.split(':').next().unwrap())))
    };
    assert!(is_in_memory(&settings.worker.state_dir), "{}", settings.worker.state_dir);
}

#[test]
fn the_file_says_nothing_that_docker_compose_1_29_does_not_know() {
    let known: BTreeSet<&str> = [
        "image",
        "build",
        "command",
        "entrypoint",
        "environment",
        "volumes",
        "ports",
        "healthcheck",
        "depends_on",
        "stop_grace_period",
        "init",
        "restart",
        "read_only",
        "tmpfs",
        "cap_drop",
        "security_opt",
        "profiles",
    ]
    .into();
    let all = compose();
    for (name, s) in &all {
        let unknown: Vec<_> =
            s.doc.as_object().unwrap().keys().filter(|k| !known.contains(k.as_str())).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}: does version 1.29 know it?");
        for (on, how) in s.doc["depends_on"].as_object().into_iter().flatten() {
            assert_eq!(how.as_object().unwrap().len(), 1, "{name}: {on}");
            let expected =
                if all[on].is_lasting() { "service_healthy" } else { "service_completed_successfully" };
            assert_eq!(how["condition"], expected, "{name} waits for {on}");
            let is_checked = !all[on].doc["healthcheck"].is_null();
            assert_eq!(all[on].is_lasting(), is_checked, "{on}: what others wait for has a health check");
        }
        for (key, _) in s.doc["healthcheck"].as_object().into_iter().flatten() {
            assert!(
                ["test", "interval", "timeout", "retries", "start_period"].contains(&key.as_str()),
                "{key}"
            );
        }
    }
}

#[test]
fn images_are_pinned_ports_are_local_and_nobody_has_rights() {
    for (name, s) in compose() {
        match s.target() {
            None => assert!(is_pinned(s.doc["image"].as_str().unwrap()), "{name}: {}", s.doc["image"]),
            Some(target) => {
                assert_eq!(s.doc["build"]["dockerfile"], "deploy/Dockerfile");
                let stage = &stages()[target];
                let (user, _) = stage.user.split_once(':').unwrap();
                assert!(user.parse::<u32>().is_ok_and(|id| id > 0), "{target} runs as {:?}", stage.user);
                assert_eq!(stage.entrypoint[0], target);
                assert_eq!(stage.copies, format!("/src/target/release/{target}"));
                assert!(
                    Path::new(&bin(&target.replace("surety-", "t-").replace("surety", "t-surety"))).exists()
                );
                assert_eq!(s.doc["read_only"], true, "{name}");
                assert_eq!(s.list("cap_drop"), ["ALL"], "{name}");
                assert_eq!(s.list("security_opt"), ["no-new-privileges:true"], "{name}");
                if s.is_lasting() {
                    assert_eq!(strings(&s.doc["healthcheck"]["test"]), ["CMD", target, "health"]);
                }
                for tmpfs in s.list("tmpfs").iter().filter(|t| t.contains("uid=")) {
                    assert!(tmpfs.contains(&format!("uid={user},")), "{name}: {tmpfs} is not for {user}");
                }
            }
        }
        assert_eq!(s.doc["init"], true, "{name}");
        for port in s.list("ports") {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port} is open to the network");
        }
        for (from, _) in s.mounts() {
            assert!(from.exists(), "{name}: {}", from.display());
        }
    }
    for line in read("deploy/Dockerfile").lines().filter_map(|l| l.strip_prefix("ARG ")) {
        assert!(is_pinned(line.split_once('=').unwrap().1), "{line}");
    }
    assert!(!is_pinned("nats:2.15-alpine") && !is_pinned("redis") && !is_pinned("debian:bookworm-slim"));
}

// Shows: B-05
#[test]
fn a_stop_leaves_the_time_for_drain_and_kill() {
    for (name, s) in compose().iter().filter(|(_, s)| s.is_one_of_ours() && s.is_lasting()) {
        let settings = s.settings();
        let graces = settings.handlers.values().map(|h| h.kill_grace.unwrap_or(settings.attempt.kill_grace));
        let kill = graces.chain([settings.attempt.kill_grace]).max().unwrap();
        let needed = settings.worker.drain + kill;
        let given = parse_span(s.doc["stop_grace_period"].as_str().unwrap()).unwrap();
        assert!(given >= needed + Duration::from_secs(10), "{name}: {given:?} for {needed:?}");
    }
}

/// A build in a container sees only what is copied there, and all of the workspace's manifests are read.
#[test]
fn the_images_are_built_from_every_package() {
    let (dockerfile, context) = (read("deploy/Dockerfile"), read(".dockerignore"));
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    for m in members.iter().map(|m| m.as_str().unwrap()) {
        let is_tests = m == "tests";
        assert!(dockerfile.contains(&format!("\nCOPY {m}/Cargo.toml {m}/\n")), "{m} is not copied");
        assert!(dockerfile.contains(&format!("\nCOPY {m} {m}\n")) != is_tests, "the sources of {m}");
        let wanted = if is_tests { "!tests/Cargo.toml".to_owned() } else { format!("!{m}") };
        assert!(context.lines().any(|l| l == wanted), "{m} is not in the context of the build");
    }
}

#[test]
fn the_servers_take_their_files_and_listen_where_the_stack_looks() {
    let nats = read("deploy/compose/nats.conf");
    let check = std::process::Command::new(find_nats_server().unwrap())
        .args(["-t", "-c"])
        .arg(root().join("deploy/compose/nats.conf"))
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let all = compose();
    let port_of = |key: &str| {
        let line = nats.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        line.trim().trim_matches('"').rsplit(':').next().unwrap().to_owned()
    };
    let health = all["nats"].doc["healthcheck"]["test"].to_string();
    assert!(health.contains(&format!("127.0.0.1:{}/healthz", port_of("http:"))), "{health}");
    let url = all["worker"].settings().connection.nats_url;
    assert_eq!(url, format!("nats://nats:{}", port_of("listen:")));
    let port = all["redis"].list("ports").remove(0).rsplit(':').next().unwrap().to_owned();
    assert_eq!(all["worker"].settings().connection.redis_url, format!("redis://redis:{port}"));
    // Each keeps its data on its volume, and finds its file.
    for (name, key) in [("nats", "  store_dir: "), ("redis", "dir ")] {
        let s = &all[name];
        let (file, target) = s.mounts().remove(0);
        let text = std::fs::read_to_string(file).unwrap();
        let dir = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        assert!(s.list("volumes").contains(&format!("{name}-data:{dir}")), "{name} keeps its data in {dir}");
        assert!(s.list("command").contains(&target), "{name} does not read {target}");
    }
}

/// A port of a service in its own network.
fn ports_of(s: &Service) -> Vec<u64> {
    let listens = s.environment().into_iter().find(|(k, _)| k == "SURETY_TELEMETRY_LISTEN").map(|(_, v)| v);
    let published = s.list("ports").into_iter();
    published.chain(listens).map(|p| p.rsplit(':').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn prometheus_and_grafana_look_where_the_services_are() {
    let all = compose();
    for name in ["worker", "reaper"] {
        let listens =
            all[name].environment().into_iter().find(|(k, _)| k == "SURETY_TELEMETRY_LISTEN").unwrap();
        assert!(listens.1.starts_with("0.0.0.0:"), "{name} is not reached from another container");
    }
    let (dir, target) = all["prometheus"].mounts().remove(0);
    let file = all["prometheus"].list("command").remove(0).replace(&format!("--config.file={target}"), "");
    let config: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(format!("{}{file}", dir.display())).unwrap())
            .unwrap();
    let mut scraped = BTreeSet::new();
    for job in config["scrape_configs"].as_array().unwrap() {
        for found in job["dns_sd_configs"].as_array().unwrap() {
            for name in strings(&found["names"]) {
                assert_eq!(found["type"], "A", "every container of {name}");
                let port = found["port"].as_u64().unwrap();
                assert!(ports_of(&all[&name]).contains(&port), "{name} does not listen on {port}");
                scraped.insert(name);
            }
        }
    }
    let lasting: BTreeSet<_> = all
        .iter()
        .filter(|(_, s)| s.is_one_of_ours() && s.is_lasting())
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(scraped, lasting, "whoever runs is scraped");
    for file in strings(&config["rule_files"]) {
        assert!(Path::new(&all["prometheus"].here(&file)).exists(), "{file}");
    }

    let grafana = &all["grafana"];
    let provisioned = |kind: &str| {
        let path = grafana.here(&format!("/etc/grafana/provisioning/{kind}"));
        let file = std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
        serde_saphyr::from_str::<Value>(&std::fs::read_to_string(file).unwrap()).unwrap()
    };
    let url = provisioned("datasources")["datasources"][0]["url"].as_str().unwrap().to_owned();
    let (service, port) = url.strip_prefix("http://").unwrap().split_once(':').unwrap();
    assert!(ports_of(&all[service]).contains(&port.parse().unwrap()), "{url}");
    let folder = provisioned("dashboards")["providers"][0]["options"]["path"].as_str().unwrap().to_owned();
    let home = grafana.environment().into_iter().find(|(k, _)| k.ends_with("HOME_DASHBOARD_PATH")).unwrap().1;
    assert!(home.starts_with(&folder) && Path::new(&grafana.here(&home)).exists(), "{home} in {folder}");
}
