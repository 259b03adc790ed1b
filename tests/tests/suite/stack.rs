//! The compose stack without an engine: what the services run, with their files, flags and environment, as processes.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Output, Stdio},
};

use serde_json::Value;
use surety_producer::dev::servers::{NatsOptions, NatsServer, RedisOptions, RedisServer};
use surety_tests::{
    process::Process,
    scrape::{address, ready},
    world::{PATIENCE, bin, wait},
};

use super::compose::{Service, compose_with, read, strings};

/// The servers with the files of the stack, only at another place, and what the services run, as processes.
struct Stack {
    nats: NatsServer,
    redis: RedisServer,
    dir: tempfile::TempDir,
    services: BTreeMap<String, Service>,
}

impl Stack {
    async fn start(set: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = |name: &str| dir.path().join(name);
        let config = read("deploy/compose/nats.conf");
        let kept: Vec<_> =
            config.lines().filter(|l| !l.starts_with("listen:") && !l.starts_with("http:")).collect();
        let nats = NatsServer::start(NatsOptions {
            port: None,
            data: data("nats"),
            extra_config: kept.join("\n").replace("/data", data("nats").to_str().unwrap()),
            log: None,
        });
        let config = read("deploy/compose/redis.conf");
        let settings = config.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
        let kept = settings.filter(|l| !l.starts_with("bind ") && !l.starts_with("dir "));
        let redis = RedisServer::start(RedisOptions {
            port: None,
            data: data("redis"),
            extra_args: kept
                .flat_map(|l| format!("--{l}").split(' ').map(str::to_owned).collect::<Vec<_>>())
                .collect(),
            log: None,
        });
        let (nats, redis) = (nats.await.unwrap(), redis.await.unwrap());
        for (ours, test) in
            [("surety", "t-surety"), ("surety-worker", "t-worker"), ("surety-reaper", "t-reaper")]
        {
            std::os::unix::fs::symlink(bin(test), dir.path().join(ours)).unwrap();
        }
        Self { nats, redis, dir, services: compose_with(set) }
    }

    /// Environment of a service, with the servers' addresses of now and paths of the repository.
    fn environment(&self, s: &Service) -> Vec<(String, String)> {
        let mut env = s.environment();
        for (name, value) in &mut env {
            if name == "SURETY_TELEMETRY_LISTEN" {
                *value = "127.0.0.1:0".to_owned();
            }
            if name == "SURETY_CONFIG" {
                let file = self.dir.path().join(format!("{}.toml", s.name));
                std::fs::write(&file, s.here(&std::fs::read_to_string(s.here(value)).unwrap())).unwrap();
                *value = file.to_str().unwrap().to_owned();
            }
        }
        let state = self.dir.path().join("state").to_str().unwrap().to_owned();
        let path = format!("{}:{}", self.dir.path().display(), std::env::var("PATH").unwrap());
        let more = [
            ("NATS_URL", self.nats.url()),
            ("REDIS_URL", self.redis.url()),
            ("SURETY_WORKER_STATE_DIR", state),
            ("PATH", path),
        ];
        env.extend(more.map(|(k, v)| (k.to_owned(), v)));
        env
    }

    /// Runs what a service runs, with further arguments, to its end.
    async fn run(&self, service: &str, more: &[&str]) -> Output {
        let argv: Vec<_> =
            self.services[service].argv().into_iter().chain(more.iter().map(|m| (*m).to_owned())).collect();
        self.run_in(service, &argv, &[]).await
    }

    /// Runs a command with the environment of a service, and more.
    async fn run_in(&self, service: &str, argv: &[String], more: &[(&str, &str)]) -> Output {
        let program = self.dir.path().join(&argv[0]);
        let program = if program.exists() { program } else { PathBuf::from(&argv[0]) };
        let mut c = tokio::process::Command::new(program);
        let env = self.environment(&self.services[service]);
        c.args(&argv[1..]).envs(env).envs(more.iter().copied()).current_dir(self.dir.path());
        let output = c.stdin(Stdio::null()).kill_on_drop(true).output();
        let o = tokio::time::timeout(PATIENCE, output).await.expect("it hangs").unwrap();
        assert!(o.status.success(), "{service}: {}", String::from_utf8_lossy(&o.stderr));
        o
    }

    /// Starts what a lasting service runs.
    fn spawn(&self, service: &str) -> Process {
        let s = &self.services[service];
        let argv = s.argv();
        let env = self.environment(s);
        let env: Vec<_> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let program = self.dir.path().join(&argv[0]);
        Process::start(
            program.to_str().unwrap(),
            &argv[1..],
            &env,
            self.dir.path().join(format!("{service}.log")),
        )
    }
}

// Shows: B-05
#[tokio::test]
async fn what_the_services_run_does_the_sample_end_to_end() {
    let stack = Stack::start(&[("SAMPLE_JOBS", "3"), ("SAMPLE_RUN", "here")]).await;
    stack.run("provision", &[]).await;
    let (mut worker, mut reaper) = (stack.spawn("worker"), stack.spawn("reaper"));
    for (service, process) in [("worker", &mut worker), ("reaper", &mut reaper)] {
        // The free port that it took here.
        let at = address(process).await;
        wait("it to be ready", async || ready(at).await.0).await;
        let at = at.to_string();
        let check = strings(&stack.services[service].doc["healthcheck"]["test"]);
        stack.run_in(service, &check[1..], &[("SURETY_TELEMETRY_LISTEN", &at)]).await;
    }
    // A disk that is nearly full is this host's affair.
    stack.run("surety", &["doctor", "--skip", "disk"]).await;
    stack.run("sample", &[]).await;
    // The last job was waited for; those before it were started before it.
    let until = std::time::Instant::now() + PATIENCE;
    for id in ["sample-here-1", "sample-here-2", "sample-here-3", "sample-here-last"] {
        loop {
            let said: Value =
                serde_json::from_slice(&stack.run("surety", &["status", id, "--json"]).await.stdout).unwrap();
            if said["is_terminal"] == true {
                assert_eq!((&said["status"], &said["attempt"]), (&"done".into(), &1.into()), "{said}");
                break;
            }
            assert!(std::time::Instant::now() < until, "{said}\n{}", worker.log());
        }
    }
    assert_eq!(worker.stop().await, Some(0), "{}", worker.log());
    assert_eq!(reaper.stop().await, Some(0), "{}", reaper.log());
}
