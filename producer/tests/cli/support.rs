//! Private servers, running the command, and playing the worker.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use surety_common::{
    broker::pull::Delivery,
    config::{self, Settings},
    connect::{self, Connected},
    doctor::Role,
    domain::{ErrorCode, JobId, TypeName, ids::SessionId},
    pace::Pace,
    store::{Answer, ClaimItem, ClaimReply, FinishItem, FinishReply, Verdict, ops::Grant},
    wire::receipt::Draft,
};
use surety_producer::dev::servers::{NatsOptions, NatsServer, RedisOptions, RedisServer};
use tokio::{io::AsyncWriteExt, process::Command};

/// Longest that one command may take: far above what any needs.
const WITHIN: Duration = Duration::from_secs(60);

/// What a command said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// The exit code must be this one.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// A part that stderr must have.
    #[track_caller]
    pub(crate) fn complains(self, part: &str) -> Self {
        assert!(self.err.contains(part), "{part:?} is not in:\n{}", self.err);
        self
    }

    /// Stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|e| panic!("{e} in {:?}; stderr {:?}", self.out, self.err))
    }

    fn of(o: Output) -> Self {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Self { code: o.status.code().unwrap_or(-1), out: text(o.stdout), err: text(o.stderr) }
    }
}

/// The command with a clean environment, in a folder without a configuration.
pub(crate) fn surety(folder: &std::path::Path) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_surety"));
    c.env_clear().current_dir(folder).kill_on_drop(true);
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

/// Runs a command to its end.
pub(crate) async fn finish(mut c: Command) -> Said {
    let output = tokio::time::timeout(WITHIN, c.output()).await.expect("the command hangs").unwrap();
    Said::of(output)
}

/// Runs a command with a text on stdin.
pub(crate) async fn feed(mut c: Command, input: &[u8]) -> Said {
    let mut child = c.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let write = async move {
        // A command that refuses early closes its end.
        stdin.write_all(input).await.ok();
        drop(stdin);
    };
    let both = async { tokio::join!(write, child.wait_with_output()).1 };
    Said::of(tokio::time::timeout(WITHIN, both).await.expect("the command hangs").unwrap())
}

/// Both servers.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) nats: NatsServer,
    pub(crate) redis: RedisServer,
}

impl World {
    /// Servers with nothing on them.
    pub(crate) async fn bare() -> Self {
        Self::with_redis(&[]).await
    }

    pub(crate) async fn with_redis(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats = nats(folder.path(), None).await;
        let redis = RedisServer::start(RedisOptions {
            port: None,
            data: folder.path().join("redis"),
            extra_args: arguments.iter().map(|a| (*a).to_owned()).collect(),
            log: None,
        })
        .await
        .unwrap();
        Self { folder, nats, redis }
    }

    /// Servers with the queues `default` and `critical`.
    pub(crate) async fn provisioned() -> Self {
        let w = Self::bare().await;
        w.run(&["provision"]).await.exits(0);
        w
    }

    /// The command with this world's servers.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut c = surety(self.folder.path());
        c.args(args)
            .env("NATS_URL", self.nats.url())
            .env("REDIS_URL", self.redis.url())
            .env("SURETY_LAYOUT_QUEUES", "default,critical")
            .env("SURETY_CONNECTION_RETRY_LIMIT", "2s");
        c
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Said {
        finish(self.command(args)).await
    }

    /// Runs with `--json` and gives the answer.
    pub(crate) async fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(args);
        self.run(&all).await.exits(0).json()
    }

    pub(crate) fn settings(&self) -> Settings {
        let flags = vec![
            ("connection.nats_url", self.nats.url(), "test"),
            ("connection.redis_url", self.redis.url(), "test"),
            ("connection.retry_limit", "5s".to_owned(), "test"),
        ];
        config::load_text(None, &|_| None, &flags).unwrap()
    }

    pub(crate) async fn connect(&self) -> Connected {
        connect::connect(&self.settings(), "test", Role::Operator).await.unwrap()
    }

    /// Messages in `JOBS` that wait, by `surety queues`.
    pub(crate) async fn waiting(&self, queue: &str) -> u64 {
        let answer = self.json(&["queues"]).await;
        let rows = answer["queues"].as_array().unwrap();
        rows.iter().find(|r| r["queue"] == queue).unwrap()["waiting"].as_u64().unwrap()
    }
}

/// Polls for a condition; panics with its name when it does not come true within a minute.
pub(crate) async fn wait(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// A NATS server with its data in `folder`.
pub(crate) async fn nats(folder: &std::path::Path, port: Option<u16>) -> NatsServer {
    let data = folder.join("nats");
    NatsServer::start(NatsOptions { port, data, extra_config: String::new(), log: None }).await.unwrap()
}

/// A worker as far as the servers can tell: it claims and finishes by hand.
pub(crate) struct Hand {
    pub(crate) c: Connected,
    session: SessionId,
}

impl Hand {
    pub(crate) async fn start(w: &World) -> Self {
        let c = w.connect().await;
        let session = SessionId::new("hand").unwrap();
        c.store.open_session(0, &session, Duration::from_secs(60), "{}").await.unwrap();
        Self { c, session }
    }

    /// Claims the job that waits under this id.
    pub(crate) async fn claim(&self, id: &str) -> ClaimReply {
        let id = JobId::new(id).unwrap();
        let (queue, m) = self.c.broker.find_carrier(&self.c.found.queues, &id).await.unwrap().unwrap();
        self.claim_carrier(&id, queue.as_str(), &m).await
    }

    async fn claim_carrier(&self, id: &JobId, queue: &str, m: &Delivery) -> ClaimReply {
        let body: serde_json::Value = serde_json::from_slice(&m.payload).unwrap();
        let item = ClaimItem {
            ack_ms: 60_000,
            progress_ms: 60_000,
            requester: &surety_common::domain::Requester::Nobody,
            summary: "".into(),
            id: id.to_string().into(),
            queue: queue.to_owned().into(),
            job_type: body["type"].as_str().unwrap().to_owned().into(),
            key: body.get("key").map(ToString::to_string).unwrap_or_default().into(),
            trace: String::new().into(),
            carrier: m.carrier().to_string().into(),
            ack_subject: String::new().into(),
            created_ms: m.stored_ms,
            finish_ms: 3_600_000,
            max_retries: 3,
            timeout_ms: 60_000,
            generation: m.header("Surety-Generation").map_or(1, |g| g.parse().unwrap()),
            adopt: String::new().into(),
            expires_ms: 0,
            has_asked: false,
        };
        let a = self.c.store.claim(0, &self.session, 1000, &[item]).await.unwrap();
        self.journal(&a).await;
        a.results.into_iter().next().unwrap()
    }

    pub(crate) async fn granted(&self, id: &str) -> Grant {
        match self.claim(id).await {
            ClaimReply::Granted(g) => g,
            other => panic!("{id}: {other:?}"),
        }
    }

    /// Finishes an attempt; `message` goes into the receipt.
    pub(crate) async fn finish(&self, id: &str, epoch: u64, verdict: Verdict) {
        let id = JobId::new(id).unwrap();
        let kind = TypeName::new("thumbnail").unwrap();
        let outcome = if verdict == Verdict::Done { "done" } else { "failed" };
        let mut draft = Draft::new(&id, 1, &kind, outcome);
        if let Verdict::Fail(code) = verdict {
            draft.error_code = Some(code);
            draft.message = Some("by hand");
        }
        let receipt = draft.open_json();
        let data = "{\"error_code\":\"exit_code\"".to_owned();
        let item = FinishItem { id, epoch, verdict, receipt, data, detail: String::new() };
        let a = self.c.store.finish(0, &self.session, &[item]).await.unwrap();
        assert!(matches!(a.results[..], [FinishReply::Applied { .. }]), "{:?}", a.results);
        self.journal(&a).await;
    }

    /// Fails a job for good and buries it, as a worker does.
    pub(crate) async fn fail(&self, id: &str) {
        let job = JobId::new(id).unwrap();
        let g = self.granted(id).await;
        self.finish(id, g.epoch, Verdict::Fail(ErrorCode::ExitCode)).await;
        let (queue, m) = self.c.broker.find_carrier(&self.c.found.queues, &job).await.unwrap().unwrap();
        let carrier = m.carrier().to_string();
        let obituary = surety_common::broker::dead::Obituary {
            job: &job,
            queue: queue.as_str(),
            generation: g.generation,
            epoch: g.epoch,
            reason: "exit_code",
            message: "by hand",
            carrier: &carrier,
        };
        self.c.broker.bury(&self.c.publisher, &m, &obituary, patience()).await.unwrap();
        self.c.broker.delete(&self.c.broker.names().jobs(), m.sequence).await.unwrap();
    }

    async fn journal<R>(&self, a: &Answer<R>) {
        self.c.relay.publish(0, &a.entries, patience()).await.unwrap();
    }
}

pub(crate) fn patience() -> Pace {
    Pace::call(Duration::from_secs(10))
}
