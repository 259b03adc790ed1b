//! What handlers did, as they wrote it down themselves, and what the broker kept of failed jobs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use surety_common::{connect::Connected, domain::JobId};

use crate::world::{World, messages, wait};

/// A file that handlers append to: `start <job> <epoch> <pid>`, `end …`, and `overlap …` when a handler found a process of an
/// earlier attempt of its job alive.
#[derive(Debug, Clone)]
pub struct Witness {
    path: PathBuf,
    _dir: Arc<tempfile::TempDir>,
}

impl Default for Witness {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("witness"), _dir: Arc::new(dir) }
    }
}

/// One `start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub job: String,
    pub epoch: u64,
    pub pid: i32,
}

impl Witness {
    /// `[handlers.<name>]` with a shell script between the lines that the witness needs. `child` may be called in it with
    /// shell code: it runs in a session of its own, ignores TERM, and is written down too.
    pub fn handler(&self, name: &str, body: &str) -> String {
        let w = self.path.display();
        format!(
            r#"
[handlers.{name}]
command = ["sh", "-c", '''
W={w}
say() {{ echo "$1 $SURETY_JOB_ID $SURETY_EPOCH $2" >> $W; }}
for p in $(sed -n "s/^start $SURETY_JOB_ID [0-9]* //p" $W 2>/dev/null); do
  if grep -qs "^State:[[:space:]]*[RSDTtI]" /proc/$p/status; then say overlap $p; fi
done
say start $$
child() {{ W=$W setsid sh -c 'trap "" TERM; echo "start $SURETY_JOB_ID $SURETY_EPOCH $$" >> $W; '"$1" & }}
{body}
say end $$
''']
"#
        )
    }

    /// Makes the file `$W.<name>` that a handler waits for.
    pub fn touch(&self, name: &str) {
        std::fs::write(format!("{}.{name}", self.path.display()), "").unwrap();
    }

    /// Whether the file `$W.<name>` is there.
    pub fn exists(&self, name: &str) -> bool {
        std::fs::exists(format!("{}.{name}", self.path.display())).unwrap()
    }

    /// What handlers wrote into the file `$W.<name>`.
    pub fn written(&self, name: &str) -> String {
        std::fs::read_to_string(format!("{}.{name}", self.path.display())).unwrap_or_default()
    }

    /// All lines so far.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }

    /// Every process that started, of all jobs.
    pub fn starts(&self) -> Vec<Start> {
        let mut out = Vec::new();
        for line in self.text().lines() {
            let f: Vec<_> = line.split(' ').collect();
            if let ["start", job, epoch, pid] = f[..] {
                out.push(Start {
                    job: job.to_owned(),
                    epoch: epoch.parse().unwrap(),
                    pid: pid.parse().unwrap(),
                });
            }
        }
        out
    }

    /// Every process of a job.
    pub fn of(&self, job: &str) -> Vec<Start> {
        self.starts().into_iter().filter(|s| s.job == job).collect()
    }

    /// Number of different epochs under which a job was executed.
    pub fn executions(&self, job: &str) -> usize {
        let epochs: std::collections::BTreeSet<u64> = self.of(job).iter().map(|s| s.epoch).collect();
        epochs.len()
    }

    /// Waits until a job has started this many processes.
    pub async fn started(&self, job: &str, n: usize) -> Vec<Start> {
        wait(&format!("{n} processes of {job}"), async || self.of(job).len() >= n).await;
        self.of(job)
    }

    /// Panics if a process of an attempt was alive when a later one of the same job began.
    pub fn no_overlap(&self) {
        assert!(!self.text().contains("overlap"), "two attempts were alive at once:\n{}", self.text());
    }

    /// Whether something of a job is alive.
    pub fn lives(&self, job: &str) -> bool {
        self.of(job).iter().any(|s| alive(s.pid))
    }

    /// The epoch of the n-th execution of a job, from 1.
    fn epoch_of(&self, job: &str, n: usize) -> Option<u64> {
        let epochs: std::collections::BTreeSet<u64> = self.of(job).iter().map(|s| s.epoch).collect();
        epochs.into_iter().nth(n - 1)
    }

    /// Waits until nothing of the processes of a job's n-th execution is alive.
    pub async fn dead(&self, job: &str, n: usize) {
        wait(&format!("the tree of {job}, execution {n}, to be dead"), async || {
            self.epoch_of(job, n)
                .is_none_or(|epoch| !self.of(job).iter().any(|s| s.epoch == epoch && alive(s.pid)))
        })
        .await;
    }
}

/// Fields of `/proc/<pid>/stat` from the third on (state, parent, group, session, …).
pub fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Shorter than the defaults of the tests, for what must wait for the broker's own redelivery.
pub const QUICK: &str = r#"
[layout]
ack_wait = "2500ms"
[lease]
extend = "1s"
"#;

/// Whether a process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|f| f[0] != "Z" && f[0] != "X")
}

/// The keeper of a worker process, if it has one now.
pub fn find_keeper(worker: u32) -> Option<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            stat(*pid).is_some_and(|f| f[1] == worker.to_string() && f[0] != "Z")
                && std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|c| c.split(|b| *b == 0).nth(1) == Some(b"keeper"))
        })
}

/// The keeper of a worker process.
pub async fn keeper_of(worker: u32) -> i32 {
    wait("the keeper", async || find_keeper(worker).is_some()).await;
    find_keeper(worker).unwrap()
}

/// One dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    pub job: String,
    pub reason: String,
    pub message: String,
    pub body: Vec<u8>,
    pub subject: String,
    pub headers: async_nats::HeaderMap,
}

/// Every dead letter.
pub async fn dead_letters(w: &World) -> Vec<Letter> {
    let js = async_nats::jetstream::new(w.plain().await);
    let stream = js.get_stream("SURETY_DLQ").await.unwrap();
    let n = stream.get_info().await.unwrap().state.messages;
    let config = async_nats::jetstream::consumer::pull::Config::default();
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut batch = consumer.fetch().max_messages(usize::try_from(n).unwrap()).messages().await.unwrap();
    let mut out = Vec::new();
    while let Some(m) = batch.next().await {
        let m = m.unwrap();
        let headers = m.headers.clone().unwrap_or_default();
        let get = |k: &str| headers.get(k).map(ToString::to_string).unwrap_or_default();
        out.push(Letter {
            job: get("Surety-Job"),
            reason: get("Surety-Reason"),
            message: get("Surety-Message"),
            body: m.payload.to_vec(),
            subject: m.subject.to_string(),
            headers,
        });
    }
    assert_eq!(out.len() as u64, n, "every letter was read");
    out
}

/// Waits until nothing is left of anything: no message in `JOBS`, no journal entry to publish, no session that runs anything.
pub async fn settled(w: &World, c: &Connected) {
    let sessions = async || {
        let mut n = 0;
        for p in 0..c.store.keys().partitions() {
            for (s, _) in &c.store.sessions(p, u64::MAX / 4, 1000).await.unwrap_or_default() {
                n += c.store.running(p, s).await.map_or(1, |r| r.len());
            }
        }
        n
    };
    wait_logged(w, "JOBS to be empty", async || messages(w, &c.broker.names().jobs()).await == 0).await;
    wait_logged(w, "the outbox to be empty", async || c.store.depths().await.is_ok_and(|d| d.outbox == 0))
        .await;
    wait_logged(w, "no session to run anything", async || sessions().await == 0).await;
}

/// As [`wait`], and with the logs of the world when it fails.
pub async fn wait_logged(w: &World, what: &str, condition: impl AsyncFn() -> bool) {
    let until = std::time::Instant::now() + crate::world::PATIENCE;
    while !condition().await {
        assert!(std::time::Instant::now() < until, "waited in vain for {what}\n{}", w.logs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Everything of one job in the journal, in order: kinds.
pub async fn kinds(w: &World, c: &Connected, job: &str) -> Vec<String> {
    let h = w.history(c).await;
    h.jobs.get(job).map(|j| j.events.iter().map(|e| e.kind.clone()).collect()).unwrap_or_default()
}

/// Milliseconds of an event's time.
pub fn ms(at: &str) -> i64 {
    at.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// An id, for calls of the store.
pub fn id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}
