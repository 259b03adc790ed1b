//! Private servers, a reaper and workers, in a folder of their own. Everything that is started here, and everything that it
//! starts, carries a mark in its environment, by which it is found in `/proc` even when its parents are dead.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use surety_common::{
    config::{Settings, load_text, private_servers},
    connect::{Connected, provision},
};
use tokio::process::{Child, Command};

use super::{
    handlers::{Kind, configuration},
    run::{DemoError, io},
};
use crate::dev::{
    processes::{Processes, Programs},
    servers::{NatsOptions, NatsServer, RedisOptions, RedisServer, find_setpriv},
};

/// The environment variable with the mark. Not named as a setting is.
pub(super) const MARK: &str = "DEMO_OF_SURETY";
/// How long a process may take to end after TERM.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what a killed process leaves may take to be gone: longer, and its lease would be given to others.
pub(super) const GONE_WITHIN: Duration = Duration::from_secs(3);

/// A process found by its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pid: i32,
    /// Id and type of its job; `None` for what is no handler.
    pub(super) job: Option<(String, String)>,
}

struct Running {
    name: String,
    mark: String,
    log: PathBuf,
    child: Child,
}

enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(d) => d.path(),
            Self::Kept(p) => p,
        }
    }
}

/// Servers and processes. Dropping it kills them; [`Bed::end`] also waits for what they started.
pub(super) struct Bed {
    // Fields are dropped in this order: processes before servers before their folder.
    workers: Vec<Running>,
    reaper: Option<Running>,
    pub(super) c: Connected,
    pub(super) settings: Settings,
    programs: Programs,
    setpriv: Option<PathBuf>,
    mark: String,
    nats: NatsServer,
    redis: RedisServer,
    folder: Folder,
}

impl Bed {
    /// Starts and provisions the servers. `keep` is a folder that is not there or empty, and stays.
    pub(super) async fn make(keep: Option<PathBuf>) -> Result<Self, DemoError> {
        // Looked for first: without them nothing else is worth starting.
        let programs = Processes::find()?;
        let folder = match keep {
            None => Folder::Temporary(tempfile::tempdir().map_err(io("make a folder"))?),
            Some(path) => Folder::Kept(kept(&path)?),
        };
        let (text, script) = configuration(folder.path());
        if let Some((path, text)) = script {
            fs::write(path, text).map_err(io("write the script"))?;
        }
        fs::write(folder.path().join("surety.toml"), &text).map_err(io("write the configuration"))?;
        let nats = NatsServer::start(NatsOptions {
            port: None,
            data: folder.path().join("nats"),
            extra_config: String::new(),
            log: None,
        });
        let redis = RedisServer::start(RedisOptions {
            port: None,
            data: folder.path().join("redis"),
            extra_args: vec![],
            log: None,
        });
        let (nats, redis) = (nats.await?, redis.await?);
        let flags = private_servers(nats.url(), redis.url(), "demo");
        let settings = load_text(Some((&text, "demo")), &|_| None, &flags)?;
        let (c, _) = provision(&settings, "surety-demo").await?;
        let mark = ulid::Ulid::generate().to_string();
        let setpriv = find_setpriv();
        Ok(Self { workers: vec![], reaper: None, c, settings, programs, setpriv, mark, nats, redis, folder })
    }

    /// Where its data is.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn start_reaper(&mut self) -> Result<(), DemoError> {
        let program = self.programs.reaper().to_owned();
        self.reaper = Some(self.start("reaper".into(), &program)?);
        Ok(())
    }

    pub(super) fn start_worker(&mut self, n: u32) -> Result<(), DemoError> {
        let program = self.programs.worker().to_owned();
        let worker = self.start(format!("worker {n}"), &program)?;
        self.workers.push(worker);
        Ok(())
    }

    fn start(&self, name: String, program: &Path) -> Result<Running, DemoError> {
        let file = name.replace(' ', "-");
        let log = self.folder.path().join(format!("{file}.log"));
        let mark = format!("{}.{file}.", self.mark);
        // One that outlives a killed demo would wait for servers that are gone, so it is killed too, and its keeper then
        // kills the handlers. The signal comes when the forking thread ends; that is the main one, which runs this future
        // to its end.
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut c = Command::new(setpriv);
                c.args(["--pdeathsig", "KILL", "--"]).arg(program);
                c
            }
            None => Command::new(program),
        };
        for (variable, _) in std::env::vars_os() {
            // The demo's times and handlers are what it is about; the caller's settings are not.
            if variable.as_encoded_bytes().starts_with(b"SURETY_") {
                command.env_remove(variable);
            }
        }
        let state: OsString = self.folder.path().join(format!("{file}-state")).into();
        let child = command
            .arg("--config")
            .arg(self.folder.path().join("surety.toml"))
            .args(["--nats", &self.nats.url(), "--redis", &self.redis.url(), "--private-servers"])
            .args(["--log", "warn"])
            .env(MARK, &mark)
            .env("SURETY_WORKER_STATE_DIR", state)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(io("make a log"))?)
            // A group of its own, so that Ctrl-C in a terminal is for us to act on.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(io(format!("start {}", program.display())))?;
        Ok(Running { name, mark, log, child })
    }

    /// Waits until `n` workers have a session.
    pub(super) async fn until_sessions(&mut self, n: usize) -> Result<(), DemoError> {
        let deadline = Instant::now() + PATIENCE * 3;
        while self.c.store.sessions(0, u64::MAX, 100).await?.len() < n {
            self.still_runs()?;
            if Instant::now() > deadline {
                return Err(DemoError::Stuck(format!("{n} workers did not start in time")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Errors: a process ended by itself; with the end of its log.
    pub(super) fn still_runs(&mut self) -> Result<(), DemoError> {
        for r in self.workers.iter_mut().chain(&mut self.reaper) {
            if let Some(status) = r.child.try_wait().map_err(io(format!("wait for the {}", r.name)))? {
                let log = fs::read_to_string(&r.log).unwrap_or_default();
                let start = log.lines().count().saturating_sub(10);
                let tail: Vec<_> = log.lines().skip(start).collect();
                return Err(DemoError::Stuck(format!(
                    "the {} ended by itself ({status}); the end of its log:\n{}",
                    r.name,
                    tail.join("\n")
                )));
            }
        }
        Ok(())
    }

    /// The worker with most slow handlers at work, if one has at least two: its number in the list.
    pub(super) fn busiest(&self) -> Result<Option<usize>, DemoError> {
        let mut best = None;
        for (i, w) in self.workers.iter().enumerate() {
            let n = jobs(&marked(&w.mark)?, Some(Kind::Slow));
            if n >= 2 && best.is_none_or(|(m, _)| n > m) {
                best = Some((n, i));
            }
        }
        Ok(best.map(|(_, i)| i))
    }

    /// Kills a worker with KILL and waits until nothing of it is left, its keeper and handlers included.
    pub(super) async fn kill9(&mut self, worker: usize) -> Result<Killed, DemoError> {
        if worker >= self.workers.len() {
            return Err(DemoError::Stuck(format!("there is no worker at {worker}")));
        }
        let mut w = self.workers.remove(worker);
        let pid = w.child.id().unwrap_or_default();
        let handlers = jobs(&marked(&w.mark)?, None);
        w.child.kill().await.map_err(io("kill a worker"))?;
        let killed_at = Instant::now();
        let left = until_gone(&w.mark).await?;
        Ok(Killed { name: w.name, pid, handlers, left, took: killed_at.elapsed() })
    }

    /// Ends everything: in order, or with KILL when `is_hurried`. Returns the processes that are left all the same.
    pub(super) async fn end(mut self, is_hurried: bool) -> Result<Vec<i32>, DemoError> {
        self.c.broker.close().await;
        let mut first_error = None;
        // Ordering: workers before the reaper, which relays their last journal entries; servers last.
        for r in self.workers.drain(..).chain(self.reaper.take()) {
            if let Err(e) = stop(r, is_hurried).await {
                first_error.get_or_insert(e);
            }
        }
        let left = until_gone(&self.mark).await;
        self.redis.stop().await?;
        self.nats.stop().await?;
        if let Folder::Temporary(dir) = self.folder {
            dir.close().map_err(io("remove the folder"))?;
        }
        match first_error {
            Some(e) => Err(e),
            None => Ok(left?.iter().map(|f| f.pid).collect()),
        }
    }
}

/// What became of a killed worker.
#[derive(Debug)]
pub(super) struct Killed {
    pub(super) name: String,
    pub(super) pid: u32,
    /// Handlers that were alive just before.
    pub(super) handlers: usize,
    /// What was still there at the end of the wait.
    pub(super) left: Vec<Found>,
    /// Until nothing was left.
    pub(super) took: Duration,
}

fn kept(path: &Path) -> Result<PathBuf, DemoError> {
    fs::create_dir_all(path).map_err(io(format!("make {}", path.display())))?;
    let path = fs::canonicalize(path).map_err(io(format!("find {}", path.display())))?;
    let is_empty = fs::read_dir(&path).map_err(io(format!("read {}", path.display())))?.next().is_none();
    if is_empty { Ok(path) } else { Err(DemoError::Tree(format!("{} is not empty", path.display()))) }
}

async fn stop(mut r: Running, is_hurried: bool) -> Result<(), DemoError> {
    if !is_hurried && let Some(pid) = r.child.id().and_then(|p| Pid::from_raw(p.cast_signed())) {
        // An unreaped child keeps its number, so this cannot reach a stranger.
        match kill_process(pid, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(io(format!("stop the {}", r.name))(e.into())),
        }
        if let Ok(ended) = tokio::time::timeout(PATIENCE, r.child.wait()).await {
            return ended.map(drop).map_err(io(format!("wait for the {}", r.name)));
        }
        tracing::warn!(process = r.name, "does not end; killed");
    }
    r.child.kill().await.map_err(io(format!("kill the {}", r.name)))
}

/// How many jobs have a handler among these, of one type or of any.
fn jobs(found: &[Found], kind: Option<Kind>) -> usize {
    let all = found.iter().filter_map(|f| f.job.as_ref());
    let ids = all.filter(|(_, t)| kind.is_none_or(|k| k.name() == t)).map(|(id, _)| id);
    ids.collect::<HashSet<_>>().len()
}

/// Waits until no process has a mark that begins so; returns what is left after [`GONE_WITHIN`].
async fn until_gone(mark: &str) -> Result<Vec<Found>, DemoError> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let left = marked(mark)?;
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The processes whose mark begins so. Zombies have no environment any more and are not among them.
fn marked(mark: &str) -> Result<Vec<Found>, DemoError> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(io("read /proc"))? {
        // An entry that vanished meanwhile is no error.
        let Ok(entry) = entry else { continue };
        let pid = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
        let Some(pid) = pid else { continue };
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        let get = |name: &str| {
            environment.split(|b| *b == 0).find_map(|e| e.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        };
        if get(MARK).is_some_and(|m| m.starts_with(mark.as_bytes())) {
            let text = |name| get(name).map(|t| String::from_utf8_lossy(t).into_owned());
            let job = text("SURETY_JOB_ID").zip(text("SURETY_JOB_TYPE"));
            found.push(Found { pid, job });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn marked_processes_are_found_while_they_live() {
        let mark = ulid::Ulid::generate().to_string();
        let mut child = Command::new("sleep")
            .arg("60")
            .env(MARK, format!("{mark}.worker-1"))
            .envs([("SURETY_JOB_ID", "a"), ("SURETY_JOB_TYPE", "slow")])
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap().cast_signed();
        let found = marked(&mark).unwrap();
        assert_eq!(found, [Found { pid, job: Some(("a".into(), "slow".into())) }]);
        assert_eq!((jobs(&found, None), jobs(&found, Some(Kind::Lines))), (1, 0));
        child.kill().await.unwrap();
        assert!(until_gone(&mark).await.unwrap().is_empty());
    }

    #[test]
    fn a_folder_with_something_in_it_is_not_kept_in() {
        let dir = tempfile::tempdir().unwrap();
        kept(&dir.path().join("new")).unwrap();
        assert!(kept(dir.path()).is_err());
    }
}
