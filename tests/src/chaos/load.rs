//! What is enqueued: jobs of several kinds, each with what must become of it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use surety_common::domain::Status;
use tokio::{
    process::Command,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

use super::schedule::Dice;
use crate::{raw_nats::RawNats, world::bin};

/// Who is told the outcomes of every other job.
pub const REQUESTER: &str = "replies.chaos";

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The built-in Rust handler.
    Noop,
    Quick,
    /// Takes a while, with a process of its own that ignores TERM.
    Tree,
    /// The same for longer than a lease lasts.
    Long,
    /// Says how far it is.
    Reports,
    /// Its first two attempts fail.
    Flaky,
    /// Fails for good.
    Hopeless,
    /// Fails until its retries are spent.
    Spent,
    /// Stays beyond its time limit.
    Stuck,
    /// Never gets anywhere, until somebody cancels it.
    Unwanted,
    /// Stays until somebody cancels it.
    Endless,
    /// Has one or two locks, that nobody else may have meanwhile.
    Locked,
    /// One of its key at once.
    Keyed,
    /// Its message has headers that no client would send.
    Dirty,
    /// What its handler says is no JSON that everybody reads.
    Odd,
    /// Its payload is no JSON that everybody reads: it is refused.
    Unfit,
}

impl Kind {
    fn of(dice: &mut Dice) -> Self {
        *dice.pick(&[
            (5, Self::Noop),
            (5, Self::Quick),
            (5, Self::Tree),
            (4, Self::Long),
            (2, Self::Reports),
            (3, Self::Flaky),
            (1, Self::Hopeless),
            (2, Self::Spent),
            (2, Self::Stuck),
            (1, Self::Unwanted),
            (1, Self::Endless),
            (5, Self::Locked),
            (5, Self::Keyed),
            (3, Self::Dirty),
            (3, Self::Odd),
            (1, Self::Unfit),
        ])
    }

    fn name(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Quick => "quick",
            Self::Tree => "tree",
            Self::Long => "long",
            Self::Reports => "reports",
            Self::Flaky => "flaky",
            Self::Hopeless => "hopeless",
            Self::Spent => "spent",
            Self::Stuck => "stuck",
            Self::Unwanted => "unwanted",
            Self::Endless => "endless",
            Self::Locked => "locked",
            Self::Keyed => "keyed",
            Self::Dirty => "dirty",
            Self::Odd => "odd",
            Self::Unfit => "unfit",
        }
    }

    /// The outcomes that keep the promise. A job that was cancelled in passing may be cancelled as well.
    pub fn outcomes(self) -> &'static [Status] {
        match self {
            Self::Noop | Self::Quick | Self::Tree | Self::Long => &[Status::Done],
            Self::Reports | Self::Flaky | Self::Locked | Self::Keyed => &[Status::Done],
            Self::Dirty | Self::Odd => &[Status::Done],
            Self::Hopeless | Self::Spent | Self::Unfit => &[Status::Failed],
            // With a lost attempt as its last, it is out of attempts.
            Self::Stuck => &[Status::TimedOut, Status::Failed],
            Self::Unwanted | Self::Endless => &[Status::Cancelled],
        }
    }

    fn is_to_be_cancelled(self) -> bool {
        matches!(self, Self::Unwanted | Self::Endless)
    }

    /// The document of the `n`th job.
    fn body(self, n: u32, is_told: bool) -> String {
        // Lost attempts are charged, and a run loses many.
        let (retries, backoff) = match self {
            Self::Spent => (2, "50ms"),
            Self::Stuck => (1, "50ms"),
            Self::Unwanted => (1000, "20s"),
            _ => (1000, "100ms"),
        };
        let limit = if self == Self::Stuck { "1s" } else { "1h" };
        let notify = match is_told {
            true => format!(r#","notify":{{"subject":"{REQUESTER}","notices":false}}"#),
            false => String::new(),
        };
        let guarded = match self {
            Self::Locked => {
                let locks = [r#""a""#, r#""b""#, r#""a","b""#, r#""b","c""#, r#""c","a""#];
                format!(r#","locks":[{}]"#, locks[n as usize % locks.len()])
            }
            Self::Keyed => format!(r#","key":"k{}""#, n % 2),
            Self::Unfit => r#","payload":{"much":1e999}"#.to_owned(),
            _ => String::new(),
        };
        format!(
            r#"{{"type":"{}","retry":{{"max_retries":{retries},"backoff":["{backoff}"]}},"contract":{{"timeout":"{limit}"}}{notify}{guarded}}}"#,
            self.name()
        )
    }
}

/// The handlers of all kinds, as configuration. Writes their library into the folder of traces.
pub fn handlers(traces: &Path) -> String {
    std::fs::create_dir_all(traces).unwrap();
    std::fs::write(traces.join("lib.sh"), include_str!("handlers.sh")).unwrap();
    let mut text = String::new();
    for (kind, body) in [
        (Kind::Quick, ""),
        (Kind::Tree, r#"child 3600; sleep 1.$((SURETY_EPOCH % 10))"#),
        (Kind::Long, "child 3600; sleep 8"),
        (Kind::Reports, r#"for i in 1 2 3 4 5; do echo "{\"progress\":0.$i}" >&3; sleep 0.2; done"#),
        (Kind::Flaky, "[ $starts -ge 2 ] || exit 1"),
        (Kind::Hopeless, "exit 64"),
        (Kind::Spent, "exit 1"),
        (Kind::Stuck, "child 3600; exec sleep 3600"),
        (Kind::Unwanted, "exit 1"),
        (Kind::Endless, "child 3600; exec sleep 3600"),
        (Kind::Locked, "locks; child 3600; sleep 0.$((SURETY_EPOCH % 10))3"),
        (Kind::Dirty, ""),
        (Kind::Odd, r#"printf '%s\n' '{"result":{"title":"Party \ud83d","much":1e999}}' >&3"#),
        (Kind::Keyed, "n=${SURETY_JOB_ID#j} n=${n%%-*}; alone 7 key-$((n % 2)); child 3600; sleep 0.5"),
    ] {
        let (name, t) = (kind.name(), traces.display());
        text += &format!(
            "[handlers.{name}]\ncommand = [\"sh\", \"-c\", '''T={t}; export T; . $T/lib.sh; before; say start\n{body}\nsay end''']\n"
        );
    }
    text
}

/// A job that the broker has acknowledged.
#[derive(Debug, Clone)]
pub struct Sent {
    pub kind: Kind,
    /// Its receipt goes to [`REQUESTER`].
    pub is_told: bool,
    /// Somebody asked for its end.
    pub is_cancel_tried: bool,
    /// `surety cancel` said that it is cancelled.
    pub is_cancel_promised: bool,
}

/// What was enqueued so far.
#[derive(Debug, Default)]
pub struct Book {
    pub jobs: HashMap<String, Sent>,
    /// Answers that no command may give.
    pub problems: Vec<String>,
}

/// Where commands and publishes go: the servers themselves, without a proxy.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub nats: String,
    pub redis: String,
    pub config: PathBuf,
}

/// A producer that goes on and on.
pub struct Load {
    pub book: Arc<Mutex<Book>>,
    pub addresses: Addresses,
}

/// Commands that run at once.
const COMMANDS: usize = 2;
/// Jobs without an outcome beyond which nothing new is enqueued.
const OPEN: u64 = 150;

impl Load {
    /// Enqueues about four jobs a second until told to stop; then goes on until every job that must be cancelled is, or
    /// `give_up` comes.
    pub async fn run(&self, seed: u64, stop: CancellationToken, give_up: CancellationToken) {
        let mut dice = Dice::new(seed ^ 0xa5a5_a5a5);
        let client = self.client().await;
        let js = async_nats::jetstream::new(client);
        let mut pause = tokio::time::interval(Duration::from_millis(250));
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands: JoinSet<()> = JoinSet::new();
        let mut n = 0u32;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = pause.tick() => {}
            }
            while commands.try_join_next().is_some() {}
            if self.is_full(&js).await {
                continue;
            }
            let kind = Kind::of(&mut dice);
            let id = format!("j{n}-{}", kind.name());
            // What cannot be read names nobody who is to be told.
            let is_told = n.is_multiple_of(2) && kind != Kind::Unfit;
            let body = kind.body(n, is_told);
            let sent = Sent { kind, is_told, is_cancel_tried: false, is_cancel_promised: false };
            n += 1;
            if !self.enqueue(&js, &id, body, sent, &give_up).await {
                break;
            }
            let is_passing = dice.below(20) == 0;
            if (is_passing || kind.is_to_be_cancelled()) && commands.len() < COMMANDS {
                commands.spawn(self.cancelling(id));
            }
        }
        while commands.join_next().await.is_some() {}
        // Without their cancel these would never end.
        while !give_up.is_cancelled() {
            let Some(id) = self.uncancelled() else { return };
            let cancelled = self.cancelling(id);
            tokio::select! {
                () = cancelled => {}
                () = give_up.cancelled() => {}
            }
            tokio::select! {
                _ = pause.tick() => {}
                () = give_up.cancelled() => {}
            }
        }
    }

    async fn client(&self) -> async_nats::Client {
        async_nats::ConnectOptions::new()
            .retry_on_initial_connect()
            .connect(&self.addresses.nats)
            .await
            .unwrap()
    }

    async fn is_full(&self, js: &async_nats::jetstream::Context) -> bool {
        let info = async { js.get_stream("SURETY_JOBS").await.ok().map(|s| s.cached_info().state.messages) };
        timeout(Duration::from_secs(2), info).await.ok().flatten().is_some_and(|n| n > OPEN)
    }

    /// Publishes until the broker has acknowledged it: from then on the job is promised. `false`: there is no time left.
    async fn enqueue(
        &self,
        js: &async_nats::jetstream::Context,
        id: &str,
        body: String,
        sent: Sent,
        give_up: &CancellationToken,
    ) -> bool {
        while !give_up.is_cancelled() {
            if sent.kind == Kind::Dirty {
                if self.enqueue_dirty(id, &body).await {
                    self.book.lock().unwrap().jobs.insert(id.to_owned(), sent);
                    return true;
                }
                // A server that is away answers at once.
                timeout(Duration::from_millis(200), give_up.cancelled()).await.ok();
                continue;
            }
            let mut h = async_nats::HeaderMap::new();
            h.insert("Nats-Msg-Id", id);
            let publish = async {
                let subject = format!("surety.jobs.default.{id}");
                js.publish_with_headers(subject, h, body.clone().into()).await.ok()?.await.ok()
            };
            if let Ok(Some(_)) = timeout(Duration::from_secs(2), publish).await {
                self.book.lock().unwrap().jobs.insert(id.to_owned(), sent);
                return true;
            }
        }
        false
    }

    /// Publishes with headers that no client lets through; says whether the broker has acknowledged it.
    async fn enqueue_dirty(&self, id: &str, body: &str) -> bool {
        let mut block = format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\nX-Note: one\rtwo\r\n").into_bytes();
        block.extend_from_slice(b"X-Place: caf\xe9\r\nno colon here\r\n\r\n");
        let (subject, body) = (format!("surety.jobs.default.{id}"), body.to_owned());
        let at = self.addresses.nats.trim_start_matches("nats://").parse().unwrap();
        // Of its own: it panics where the server goes away under it.
        let publish = tokio::spawn(async move {
            RawNats::connect(at).await.request(subject.as_bytes(), &block, body.as_bytes()).await
        });
        let answer = timeout(Duration::from_secs(2), publish).await;
        answer.is_ok_and(|a| a.is_ok_and(|a| String::from_utf8_lossy(&a).contains("\"seq\":")))
    }

    /// A job that must be cancelled and is not yet.
    fn uncancelled(&self) -> Option<String> {
        let book = self.book.lock().unwrap();
        let wanted = |s: &Sent| s.kind.is_to_be_cancelled() && !s.is_cancel_promised;
        book.jobs.iter().find(|(_, s)| wanted(s)).map(|(id, _)| id.clone())
    }

    /// `surety cancel`, once.
    fn cancelling(&self, id: String) -> impl Future<Output = ()> + Send + 'static {
        let (book, addresses) = (self.book.clone(), self.addresses.clone());
        async move {
            let before = Instant::now();
            let mut c = Command::new(bin("t-surety"));
            let config = addresses.config.display().to_string();
            c.env_clear()
                .args(["--config", &config, "--nats", &addresses.nats, "--redis", &addresses.redis])
                .args(["--json", "cancel", &id])
                .stdin(Stdio::null())
                .kill_on_drop(true);
            if let Some(s) = book.lock().unwrap().jobs.get_mut(&id) {
                s.is_cancel_tried = true;
            }
            let said = timeout(Duration::from_secs(60), c.output()).await;
            let mut book = book.lock().unwrap();
            let Ok(Ok(said)) = said else {
                book.problems.push(format!("surety cancel {id} hung for {:?}", before.elapsed()));
                return;
            };
            let err = String::from_utf8_lossy(&said.stderr).into_owned();
            let answer: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            let is_cancelled = answer["is_cancelled"] == true || answer["status"] == "cancelled";
            if is_cancelled && let Some(s) = book.jobs.get_mut(&id) {
                s.is_cancel_promised = true;
            }
            // 0 it is, 1 it is not, 75 it is being stopped, 69 a server is away.
            if !matches!(said.status.code(), Some(0 | 1 | 69 | 75)) {
                book.problems.push(format!("surety cancel {id}: {} {err}", said.status));
            }
        }
    }
}
