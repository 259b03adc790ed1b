//! One test's world: its own NATS and Redis on free ports, its own folder, short times.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use surety_common::{
    config::{Settings, load_text},
    connect::{Connected, provision},
    domain::{JobId, Status},
    store::Record,
};
use surety_producer::dev::servers::{NatsOptions, NatsServer};

use crate::{
    history::History,
    process::Process,
    redis::{Kind, Redis},
};

/// Times that make a lost worker a matter of two seconds. The rules between them are those of the defaults. Tests break things
/// more often than the limits for that allow.
pub const SHORT: &str = r#"
[connection]
call_timeout = "1s"
retry_limit = "5s"
[layout]
queues = ["critical", "default"]
ack_wait = "8s"
[lease]
renewal = "200ms"
ttl = "2s"
margin = "500ms"
extend = "2s"
[guards]
crash_except = ["*"]
lost_limit = 100
[attempt]
kill_grace = "300ms"
start_retry = "100ms"
[worker]
drain = "3s"
hand_on_delay = "100ms"
hand_on_limit = 5
[reaper]
tick = "100ms"
relay_age = "300ms"
"#;

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Real servers and a folder.
pub struct World {
    pub nats: NatsServer,
    pub redis: Redis,
    pub dir: tempfile::TempDir,
    pub config: String,
    n: AtomicU32,
}

impl World {
    /// Servers with the short times and nothing else.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// Servers with the short times and more configuration.
    pub async fn with(config: &str) -> Self {
        Self::on(config, "", &[]).await
    }

    /// The same, with NATS configuration and arguments of Redis besides.
    pub async fn on(config: &str, nats: &str, redis: &[&str]) -> Self {
        Self::try_on(config, nats, redis).await.unwrap()
    }

    /// Servers of which Redis is a cluster of three masters with that many replicas each, and with six partitions.
    pub async fn on_cluster(config: &str, replicas: usize) -> Self {
        Self::try_of(Kind::Cluster { replicas }, config, "", &[]).await.unwrap()
    }

    /// As [`World::on`], or why a server did not start.
    pub async fn try_on(config: &str, nats: &str, redis: &[&str]) -> Result<Self, String> {
        Self::try_of(Kind::wanted(), config, nats, redis).await
    }

    /// As [`World::try_on`], on this kind of Redis.
    pub async fn try_of(kind: Kind, config: &str, nats: &str, redis: &[&str]) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let nats = NatsServer::start(NatsOptions {
            port: None,
            data: dir.path().join("nats"),
            extra_config: nats.to_owned(),
            log: None,
        });
        let redis = Redis::start(kind, dir.path().join("redis"), redis);
        let (nats, redis) = tokio::join!(nats, redis);
        let (nats, redis) = (nats.map_err(|e| e.to_string())?, redis.map_err(|e| e.to_string())?);
        let w = Self {
            nats,
            redis,
            dir,
            config: merge(&merge(SHORT, kind.config()), config),
            n: AtomicU32::new(0),
        };
        std::fs::write(w.config_file(), &w.config).unwrap();
        Ok(w)
    }

    /// The configuration file of this world.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("surety.toml")
    }

    /// Adds settings to the configuration file, in place of those of the last call; as an editor does that replaces the file.
    pub fn reconfigure(&self, more: &str) {
        let new = self.dir.path().join("surety.toml.new");
        std::fs::write(&new, merge(&self.config, more)).unwrap();
        std::fs::rename(new, self.config_file()).unwrap();
    }

    /// The settings of this world.
    pub fn settings(&self) -> Settings {
        self.settings_for(&self.nats.url(), &self.redis.url())
    }

    /// The settings with other addresses (a proxy's).
    pub fn settings_for(&self, nats: &str, redis: &str) -> Settings {
        let flags = vec![
            ("connection.nats_url", nats.to_owned(), "test"),
            ("connection.redis_url", redis.to_owned(), "test"),
            ("worker.state_dir", self.dir.path().join("state").display().to_string(), "test"),
        ];
        load_text(Some((&self.config, "test")), &|_| None, &flags).unwrap()
    }

    /// Provisions and connects.
    pub async fn connect(&self) -> Connected {
        provision(&self.settings(), "test").await.unwrap().0
    }

    /// Starts a worker process.
    pub fn worker(&self, more: &[&str], env: &[(&str, &str)]) -> Process {
        self.start_process(bin("t-worker"), "worker", &["--state-dir", &self.path("state")], more, env)
    }

    /// Starts a reaper process.
    pub fn reaper(&self, env: &[(&str, &str)]) -> Process {
        self.reaper_with(&[], env)
    }

    /// Starts a reaper process with flags.
    pub fn reaper_with(&self, more: &[&str], env: &[(&str, &str)]) -> Process {
        self.start_process(bin("t-reaper"), "reaper", &[], more, env)
    }

    fn start_process(
        &self,
        bin: String,
        name: &str,
        own: &[&str],
        more: &[&str],
        env: &[(&str, &str)],
    ) -> Process {
        let n = self.n.fetch_add(1, Ordering::Relaxed);
        let config = self.config_file().display().to_string();
        let (nats, redis) = (self.nats.url(), self.redis.url());
        let args =
            ["--config", &config, "--nats", &nats, "--redis", &redis].into_iter().chain(own.iter().copied());
        // A later flag would clash with an earlier one, so a test's own addresses replace ours.
        let mut all: Vec<String> = Vec::new();
        for pair in args.collect::<Vec<_>>().chunks(2) {
            if !more.contains(&pair[0]) {
                all.extend(pair.iter().map(|s| (*s).to_owned()));
            }
        }
        all.extend(more.iter().map(|s| (*s).to_owned()));
        Process::start(&bin, &all, env, self.dir.path().join(format!("{name}-{n}.log")))
    }

    /// A path in the world's folder.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The journal, folded.
    pub async fn history(&self, c: &Connected) -> History {
        let mut events = Vec::new();
        let unreadable = c.broker.read_journal(None, 0, |e| events.push(e)).await.unwrap();
        assert_eq!(unreadable, 0, "unreadable journal events");
        History::fold(events).unwrap()
    }

    /// Waits until a job has an outcome.
    pub async fn ended(&self, c: &Connected, id: &str) -> Record {
        self.until(c, id, |r| r.status.is_terminal()).await
    }

    /// Waits until a job has this status.
    pub async fn status(&self, c: &Connected, id: &str, status: Status) -> Record {
        self.until(c, id, |r| r.status == status).await
    }

    /// Waits until the record of a job is as wanted.
    pub async fn until(&self, c: &Connected, id: &str, want: impl Fn(&Record) -> bool) -> Record {
        let id = JobId::new(id).unwrap();
        let mut last = None;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            last = c.store.record(&id).await.unwrap_or(last);
            if let Some(r) = last.as_ref().filter(|r| want(r)) {
                return r.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{id} did not get there: {last:#?}\n{}", self.logs());
    }

    /// Waits until `JOBS` is empty: every carrier was settled.
    pub async fn drained(&self, c: &Connected) {
        wait("JOBS to be empty", async || messages(self, &c.broker.names().jobs()).await == 0).await;
        // Confirmed entries are trimmed by their publisher's next call (a renewal), or by a reaper.
        wait("the outbox to be empty", async || c.store.depths().await.is_ok_and(|d| d.outbox == 0)).await;
    }

    /// The logs of all processes of this world.
    pub fn logs(&self) -> String {
        let mut out = String::new();
        for e in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
            if e.path().extension().is_some_and(|x| x == "log") {
                out += &format!("--- {}\n{}\n", e.path().display(), tail(&e.path()));
            }
        }
        out
    }

    /// A plain NATS client, as any producer has.
    pub async fn plain(&self) -> async_nats::Client {
        async_nats::connect(self.nats.url()).await.unwrap()
    }

    /// Publishes a job document the way a stranger would; gives the stream sequence.
    pub async fn publish(&self, queue: &str, id: &str, body: &str) -> u64 {
        let js = async_nats::jetstream::new(self.plain().await);
        let mut h = async_nats::HeaderMap::new();
        h.insert("Nats-Msg-Id", id);
        let ack = js
            .publish_with_headers(format!("surety.jobs.{queue}.{id}"), h, body.to_owned().into())
            .await
            .unwrap();
        ack.await.unwrap().sequence
    }
}

/// Number of messages in a stream.
pub async fn messages(w: &World, stream: &str) -> u64 {
    messages_of(&w.plain().await, stream).await
}

/// The same, seen by a client that may look.
pub async fn messages_of(client: &async_nats::Client, stream: &str) -> u64 {
    let js = async_nats::jetstream::new(client.clone());
    js.get_stream(stream).await.unwrap().get_info().await.unwrap().state.messages
}

/// Waits for a condition; panics with its name when it does not come true.
pub async fn wait(what: &str, condition: impl AsyncFn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Adds settings to a configuration: a section that stands in both is merged, the later value wins.
fn merge(base: &str, more: &str) -> String {
    fn join(a: &mut toml::Table, b: toml::Table) {
        for (k, v) in b {
            match (a.get_mut(&k), v) {
                (Some(toml::Value::Table(x)), toml::Value::Table(y)) => join(x, y),
                (_, v) => {
                    a.insert(k, v);
                }
            }
        }
    }
    let mut a: toml::Table = base.parse().unwrap();
    join(&mut a, more.parse().unwrap());
    a.to_string()
}

fn tail(path: &Path) -> String {
    let all = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = all.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A binary of this package, next to the test's own.
pub fn bin(name: &str) -> String {
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.pop();
    }
    dir.join(name).display().to_string()
}
