//! Private NATS and Redis servers for development and tests.
//!
//! A server started here listens on 127.0.0.1 only, keeps its data in a folder of the caller's, and
//! lives no longer than its owner:
//!
//! * dropping [`NatsServer`] or [`RedisServer`] kills it (KILL) and reaps it;
//! * where util-linux's `setpriv` is available it also dies with this process, even when this process
//!   is killed by SIGKILL (`PR_SET_PDEATHSIG`).
//!
//! The kernel sends that signal when the *thread* that forked ends, not the process. A test's thread
//! and a runtime's workers end long before the process does, so every server is forked by one thread
//! kept for the whole life of the process (see `keeper`), which also reaps what `Drop` could
//! not wait for. Nothing here depends on the runtime a server was started in: it may be stopped or
//! restarted from another one.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

/// How long a server may take until it answers.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long a server may take to end after TERM before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How long a killed server may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// How long `Drop` waits for a killed server before it leaves the reaping to the keeper.
const DROP_WITHIN: Duration = Duration::from_millis(500);
/// How long `--version` may take.
const VERSION_WITHIN: Duration = Duration::from_secs(10);
/// One attempt to talk to a starting server.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// The pause between two looks at a server that starts or ends.
const POLL: Duration = Duration::from_millis(10);
/// The pause before the next attempt on a port that is still taken.
const CLASH_PAUSE: Duration = Duration::from_millis(100);
/// The most a server's greeting may be long; NATS's INFO is below 1 KiB, Redis's INFO server too.
const GREETING_BYTES: usize = 64 * 1024;
/// How much of the end of a log goes into an error, in bytes.
const LOG_TAIL_BYTES: u64 = 4 * 1024;

static NATS: Program = Program {
    name: "nats-server",
    variable: "SURETY_NATS_SERVER",
    minimum: Version(2, 14, 2),
    hint: " (Debian's package is too old)",
};
static REDIS: Program =
    Program { name: "redis-server", variable: "SURETY_REDIS_SERVER", minimum: Version(7, 0, 0), hint: "" };

/// Why a private server could not be found, started or ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// There is no server binary that is new enough; `detail` says what was found instead.
    #[error("no usable {program}: {detail}; run scripts/install-servers")]
    NotFound {
        /// `nats-server` or `redis-server`.
        program: &'static str,
        /// What was found, and why it cannot be used.
        detail: String,
    },
    /// The operating system refused something; `action` says what.
    #[error("cannot {action}: {cause}")]
    Io {
        /// What was attempted.
        action: String,
        /// The operating system's answer.
        cause: io::Error,
    },
    /// A path that cannot be handed to the server.
    #[error("the path {0:?} is not UTF-8 or has control characters")]
    Path(PathBuf),
    /// The server ended before it answered.
    #[error("{program} ended at its start ({status}); the end of its log:\n{log}")]
    Exited {
        /// `nats-server` or `redis-server`.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it logged in this run.
        log: String,
    },
    /// The server runs but did not answer in time; it has been killed.
    #[error("{program} does not answer after {within:?}; the end of its log:\n{log}")]
    NotReady {
        /// `nats-server` or `redis-server`.
        program: &'static str,
        /// The time it had.
        within: Duration,
        /// The end of what it logged in this run.
        log: String,
    },
    /// The server was killed but is still there (stuck in the kernel).
    #[error("process {pid} is still there {within:?} after KILL")]
    Undead {
        /// The server's process.
        pid: u32,
        /// The time it had.
        within: Duration,
    },
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> ServerError {
    let action = action.into();
    move |cause| ServerError::Io { action, cause }
}

// ---------------------------------------------------------------------------------------------
// Finding the binaries

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64, u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The version in `nats-server: v2.15.1` or `Redis server v=7.0.15 sha=…`.
    fn parse(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let digits = word.strip_prefix('v')?;
            let digits = digits.strip_prefix('=').unwrap_or(digits);
            let mut parts = digits
                .split('.')
                .map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default())
                .map(str::parse::<u64>);
            let major = parts.next()?.ok()?;
            let minor = parts.next()?.ok()?;
            let patch = parts.next().and_then(Result::ok).unwrap_or(0);
            Some(Self(major, minor, patch))
        })
    }
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    variable: &'static str,
    minimum: Version,
    hint: &'static str,
}

/// The `nats-server` to use (2.14.2 or newer), as an absolute path where one can be had.
///
/// Looked for in this order: `SURETY_NATS_SERVER`; `.servers/bin` of the current folder or of any
/// parent of it; `.servers/bin` of any folder above the running executable; `PATH`. The variable, when
/// set, must be usable; elsewhere a binary that is too old is passed over. Runs `--version` and so
/// blocks for some milliseconds.
///
/// # Errors
/// [`ServerError::NotFound`], saying what was found and why it cannot be used.
pub fn find_nats_server() -> Result<PathBuf, ServerError> {
    NATS.find()
}

/// The `redis-server` to use (7.0.0 or newer); looked for like [`find_nats_server`] does, with
/// `SURETY_REDIS_SERVER`.
///
/// # Errors
/// [`ServerError::NotFound`], saying what was found and why it cannot be used.
pub fn find_redis_server() -> Result<PathBuf, ServerError> {
    REDIS.find()
}

impl Program {
    fn find(&self) -> Result<PathBuf, ServerError> {
        self.find_in(env::var_os(self.variable).filter(|value| !value.is_empty()), &self.candidates())
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let here = env::current_dir().ok();
        let executable = env::current_exe().ok();
        let above = [here.as_deref(), executable.as_deref().and_then(Path::parent)]
            .into_iter()
            .flatten()
            .flat_map(Path::ancestors)
            .map(|folder| folder.join(".servers/bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let mut seen = BTreeSet::new();
        above
            .chain(env::split_paths(&path).filter(|folder| folder.is_absolute()))
            .map(|folder| folder.join(self.name))
            .filter(|candidate| seen.insert(candidate.clone()))
            .collect()
    }

    fn find_in(&self, set: Option<OsString>, candidates: &[PathBuf]) -> Result<PathBuf, ServerError> {
        let not_found = |detail| ServerError::NotFound { program: self.name, detail };
        if let Some(set) = set {
            // Absolute, for the server is started in another folder.
            let path = std::path::absolute(&set).unwrap_or_else(|_| PathBuf::from(set));
            return match self.check(&path) {
                Ok(()) => Ok(path),
                Err(reason) => Err(not_found(format!("{} is set, but {reason}", self.variable))),
            };
        }
        let mut reasons = Vec::new();
        for candidate in candidates.iter().filter(|path| is_executable(path)) {
            match self.check(candidate) {
                Ok(()) => return Ok(candidate.clone()),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(not_found(if reasons.is_empty() {
            format!("found none in .servers/bin or PATH, need >= {}", self.minimum)
        } else {
            reasons.join("; ")
        }))
    }

    fn check(&self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        if !is_executable(path) {
            return Err(format!("{shown} is not an executable file"));
        }
        let text = version_text(path).map_err(|error| format!("{shown} cannot be run: {error}"))?;
        match Version::parse(&text) {
            Some(version) if version >= self.minimum => Ok(()),
            Some(version) => {
                Err(format!("found {shown} is version {version}, need >= {}{}", self.minimum, self.hint))
            }
            None => Err(format!("found {shown} does not tell its version")),
        }
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What `path --version` prints, in bounded time.
fn version_text(path: &Path) -> io::Result<String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Process::new(command.spawn()?);
    // The few bytes of a version fit into the pipe, so the program ends without a reader.
    let deadline = std::time::Instant::now() + VERSION_WITHIN;
    while process.exited()?.is_none() {
        if std::time::Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "--version does not end"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    let mut text = String::new();
    if let Some(output) = process.child.as_mut().and_then(|child| child.stdout.take()) {
        output.take(4096).read_to_string(&mut text)?;
    }
    Ok(text)
}

// ---------------------------------------------------------------------------------------------
// Processes

/// A child that is killed and reaped when dropped.
#[derive(Debug)]
struct Process {
    child: Option<Child>,
    pid: u32,
}

impl Process {
    fn new(child: Child) -> Self {
        Self { pid: child.id(), child: Some(child) }
    }

    fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.as_mut().map_or(Ok(None), Child::try_wait)
    }

    /// Whether the process has ended, and was reaped, within `limit`.
    async fn ends_within(&mut self, limit: Duration) -> Result<bool, ServerError> {
        let deadline = Instant::now() + limit;
        loop {
            if self.exited().map_err(io_error(format!("wait for process {}", self.pid)))?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }

    fn terminate(&mut self) -> Result<(), ServerError> {
        // An unreaped child keeps its number, so this cannot reach a stranger.
        if let Some(child) = self.child.as_ref() {
            let pid = rustix::process::Pid::from_child(child);
            match rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(io_error(format!("end process {}", self.pid))(error.into())),
            }
        }
        Ok(())
    }

    /// TERM, at most [`STOP_WITHIN`] of patience, then KILL.
    async fn stop(mut self) -> Result<(), ServerError> {
        if self.exited().map_err(io_error(format!("wait for process {}", self.pid)))?.is_some() {
            return Ok(());
        }
        self.terminate()?;
        if self.ends_within(STOP_WITHIN).await? {
            return Ok(());
        }
        warn!(pid = self.pid, within = ?STOP_WITHIN, "a private server does not end by TERM: killing it");
        self.kill().await
    }

    async fn kill(mut self) -> Result<(), ServerError> {
        if let Some(child) = self.child.as_mut() {
            child.kill().map_err(io_error(format!("kill process {}", self.pid)))?;
        }
        if self.ends_within(KILLED_WITHIN).await? {
            Ok(())
        } else {
            Err(ServerError::Undead { pid: self.pid, within: KILLED_WITHIN })
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = child.kill() {
            warn!(pid = self.pid, %error, "cannot kill a private server");
        }
        // Mostly gone in a few milliseconds; waiting for it lets the caller remove its data next.
        let deadline = std::time::Instant::now() + DROP_WITHIN;
        while std::time::Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        keeper::reap(child);
    }
}

/// util-linux's setpriv, when it can do what is asked of it here (busybox's cannot).
pub(crate) fn find_setpriv() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/bin".into(), "/bin".into()])
        .map(|folder| folder.join("setpriv"))
        .find(|candidate| {
            is_executable(candidate)
                && Command::new(candidate)
                    .args(["--pdeathsig", "KILL", "--", "true"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success())
        });
    if found.is_none() {
        debug!("no setpriv: private servers outlive a SIGKILL of this process");
    }
    found
}

/// The thread that forks every server, and reaps those whose owner could not wait.
mod keeper {
    use super::*;

    enum Job {
        Spawn(Launch, oneshot::Sender<io::Result<Process>>),
        Reap(Child),
    }

    static JOBS: OnceLock<Result<mpsc::Sender<Job>, String>> = OnceLock::new();

    fn jobs() -> io::Result<&'static mpsc::Sender<Job>> {
        JOBS.get_or_init(|| {
            let (sender, receiver) = mpsc::channel();
            thread::Builder::new()
                .name("private-servers".into())
                .spawn(move || run(&receiver))
                .map(|_never_joined| sender)
                .map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| io::Error::other(format!("no thread to start servers from: {error}")))
    }

    /// Never returns: its sender is static, so only the end of the process ends this thread.
    fn run(jobs: &mpsc::Receiver<Job>) {
        let setpriv = find_setpriv();
        let mut dying: Vec<Child> = Vec::new();
        loop {
            let job = if dying.is_empty() {
                jobs.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            } else {
                jobs.recv_timeout(Duration::from_millis(50))
            };
            match job {
                Ok(Job::Spawn(launch, answer)) => {
                    let process = spawn(launch, setpriv.as_deref());
                    // Nobody waits any more: the process is in the returned value, whose drop kills it.
                    if let Err(unwanted) = answer.send(process) {
                        drop(unwanted);
                    }
                }
                Ok(Job::Reap(child)) => dying.push(child),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            dying.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        }
    }

    /// Starts a server so that it dies with this process where that can be had.
    fn spawn(launch: Launch, setpriv: Option<&Path>) -> io::Result<Process> {
        let mut command = if let Some(setpriv) = setpriv {
            // setpriv executes the server in its own place, so the pid is the server's. A parent that
            // is killed before setpriv has asked for the signal is missed: some milliseconds, at most.
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(launch.binary);
            // A group of its own, so that Ctrl-C in a terminal is for the owner to act on. Not without
            // setpriv: there the terminal's signal is what ends a server whose owner cannot.
            command.process_group(0);
            command
        } else {
            Command::new(launch.binary)
        };
        let errors = launch.output.try_clone()?;
        command
            .args(launch.arguments)
            .current_dir(launch.folder)
            .stdin(Stdio::null())
            .stdout(launch.output)
            .stderr(errors)
            .spawn()
            .map(Process::new)
    }

    /// Forks a server from the keeper's thread.
    pub(super) async fn start(launch: Launch) -> io::Result<Process> {
        let (answer, started) = oneshot::channel();
        jobs()?
            .send(Job::Spawn(launch, answer))
            .map_err(|_| io::Error::other("the thread that starts servers has ended"))?;
        started.await.map_err(|_| io::Error::other("the thread that starts servers has ended"))?
    }

    /// Takes over a killed child that has not ended yet.
    pub(super) fn reap(child: Child) {
        let pid = child.id();
        if jobs().is_ok_and(|jobs| jobs.send(Job::Reap(child)).is_ok()) {
            return;
        }
        warn!(pid, "nobody left to reap a killed private server");
    }
}

/// What the keeper needs to start a server.
struct Launch {
    binary: PathBuf,
    arguments: Vec<OsString>,
    folder: PathBuf,
    output: File,
}

/// One run of a server, from its start to its end.
#[derive(Debug)]
struct Run {
    program: &'static Program,
    process: Process,
    log: PathBuf,
    /// Where this run's part of the log begins.
    log_from: u64,
    deadline: Instant,
}

impl Run {
    async fn start(
        program: &'static Program,
        files: &Files,
        arguments: Vec<OsString>,
    ) -> Result<Self, ServerError> {
        let log = files.log.clone();
        let action = || io_error(format!("write {}", log.display()));
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(action())?;
        let log_from = output.metadata().map_err(action())?.len();
        let launch = Launch { binary: files.binary.clone(), arguments, folder: files.data.clone(), output };
        let process =
            keeper::start(launch).await.map_err(io_error(format!("start {}", files.binary.display())))?;
        Ok(Self { program, process, log, log_from, deadline: Instant::now() + READY_WITHIN })
    }

    /// A pause between two attempts to reach the server; an error when there is nothing to wait for.
    async fn pause(&mut self) -> Result<(), ServerError> {
        let program = self.program.name;
        let pid = self.process.pid;
        if let Some(status) = self.process.exited().map_err(io_error(format!("wait for process {pid}")))? {
            return Err(ServerError::Exited { program, status, log: self.log_tail() });
        }
        if Instant::now() >= self.deadline {
            return Err(ServerError::NotReady { program, within: READY_WITHIN, log: self.log_tail() });
        }
        sleep(POLL).await;
        Ok(())
    }

    fn log_tail(&self) -> String {
        let tail = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES).max(self.log_from);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        };
        match tail() {
            Ok(text) if text.is_empty() => format!("(nothing in {})", self.log.display()),
            Ok(text) => text,
            Err(error) => format!("(cannot read {}: {error})", self.log.display()),
        }
    }
}

fn is_port_clash(error: &ServerError) -> bool {
    matches!(error, ServerError::Exited { log, .. }
        if log.to_ascii_lowercase().contains("address already in use"))
}

/// Where a server's things are; all absolute.
#[derive(Debug)]
struct Files {
    binary: PathBuf,
    data: PathBuf,
    log: PathBuf,
}

impl Files {
    async fn prepare(
        program: &'static Program,
        data: PathBuf,
        log: Option<PathBuf>,
    ) -> Result<Self, ServerError> {
        let prepare = move || {
            let binary = program.find()?;
            let create = |folder: &Path| {
                fs::create_dir_all(folder).map_err(io_error(format!("create {}", folder.display())))
            };
            let absolute = |path: PathBuf| {
                std::path::absolute(&path).map_err(io_error(format!("find {}", path.display())))
            };
            let data = absolute(data)?;
            create(&data)?;
            let log = absolute(log.unwrap_or_else(|| data.join(program.name).with_extension("log")))?;
            log.parent().map_or(Ok(()), create)?;
            Ok(Self { binary, data, log })
        };
        tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|error| io_error(format!("look for {}", program.name))(error.into()))?
    }
}

// ---------------------------------------------------------------------------------------------
// NATS

/// How to start a [`NatsServer`].
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The port on 127.0.0.1; none (or 0): a free one, which the server itself picks.
    pub port: Option<u16>,
    /// The folder of the configuration, the ports file and the JetStream store (in `jetstream/`);
    /// created where missing, never removed.
    pub data: PathBuf,
    /// NATS configuration, appended to the server's own. A key that is set there already is replaced:
    /// a `jetstream` block has to bring its `store_dir`, and `listen`, `port` and `server_name` must
    /// not be set.
    pub extra_config: String,
    /// The file its log is appended to; none: `nats-server.log` in `data`.
    pub log: Option<PathBuf>,
}

/// A private `nats-server` with JetStream; killed when dropped (which may block for half a second).
#[derive(Debug)]
pub struct NatsServer {
    files: Files,
    extra_config: String,
    name: String,
    port: u16,
    run: Option<Run>,
}

impl NatsServer {
    /// Starts a server and returns once it answers and JetStream is on.
    ///
    /// # Errors
    /// No usable binary, a folder that cannot be written, a server that ends at its start (the port
    /// is taken, the configuration is wrong) or one that does not answer within 10 s.
    pub async fn start(options: NatsOptions) -> Result<Self, ServerError> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let name = format!("surety-dev-{}-{}", process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let files = Files::prepare(&NATS, options.data, options.log).await?;
        let port = options.port.unwrap_or(0);
        let mut server = Self { files, extra_config: options.extra_config, name, port, run: None };
        server.launch().await?;
        Ok(server)
    }

    /// `nats://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port, the same for the server's whole life.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process, from its start until [`kill9`](Self::kill9) or [`stop`](Self::stop).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.run.as_ref().map(|run| run.process.pid)
    }

    /// Kills the server with KILL and returns when it is gone; nothing when there is none.
    ///
    /// # Errors
    /// The operating system refused, or the process is still there after 5 s.
    pub async fn kill9(&mut self) -> Result<(), ServerError> {
        end(&mut self.run, End::Kill).await
    }

    /// Ends the server with TERM, or after 5 s with KILL, and returns when it is gone.
    ///
    /// # Errors
    /// The operating system refused, or the process is still there 5 s after KILL.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        end(&mut self.run, End::Stop).await
    }

    /// Stops the server where it still runs, and starts it again on the same port and data.
    ///
    /// # Errors
    /// As for [`stop`](Self::stop) and [`start`](Self::start); a port that is taken is tried again
    /// for 10 s, since a client's own outgoing connection may hold it for a moment.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.launch().await {
                Err(error) if is_port_clash(&error) && Instant::now() < deadline => {
                    debug!(port = self.port, "the port of a private nats-server is taken: trying again");
                    sleep(CLASH_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let config = self.write_config()?;
        let mut run = Run::start(&NATS, &self.files, vec!["--config".into(), config.into()]).await?;
        loop {
            let port = if self.port == 0 { self.reported_port(run.process.pid) } else { Some(self.port) };
            if let Some(port) = port
                && nats_answers(port, &self.name).await
            {
                self.port = port;
                self.run = Some(run);
                return Ok(());
            }
            run.pause().await?;
        }
    }

    fn write_config(&self) -> Result<PathBuf, ServerError> {
        let Self { name, port, extra_config, .. } = self;
        let store = quoted(&self.files.data)?;
        let listen = if *port == 0 {
            let ports = self.ports_folder();
            let action = || io_error(format!("prepare {}", ports.display()));
            match fs::remove_dir_all(&ports) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(action()(error)),
                _ => fs::create_dir_all(&ports).map_err(action())?,
            }
            // The server binds a free port itself and tells which: nobody can take it in between.
            format!("listen: \"127.0.0.1:-1\"\nports_file_dir: {}", quoted(&ports)?)
        } else {
            format!("listen: \"127.0.0.1:{port}\"")
        };
        let text = format!(
            "# Written by Surety at every start of this private server; changes are lost.\n\
             {listen}\n\
             server_name: \"{name}\"\n\
             jetstream {{\n  store_dir: {store}\n  max_mem: 4GB\n  max_file: 256GB\n}}\n\
             {extra_config}\n"
        );
        let path = self.files.data.join("nats-server.conf");
        write_private(&path, &text).map_err(io_error(format!("write {}", path.display())))?;
        Ok(path)
    }

    fn ports_folder(&self) -> PathBuf {
        self.files.data.join("ports")
    }

    /// The port from the ports file, `{"nats":["nats://127.0.0.1:PORT"]}`, once it is there as a whole.
    fn reported_port(&self, pid: u32) -> Option<u16> {
        let ending = format!("_{pid}.ports");
        let file = fs::read_dir(self.ports_folder())
            .ok()?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().ends_with(&ending))?;
        let text = fs::read_to_string(file.path()).ok()?;
        let (_, from_port) = text.trim_end().strip_suffix('}')?.split_once("127.0.0.1:")?;
        from_port.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }
}

/// Whether the server named `name`, and not a stranger, greets on `port` with JetStream on.
async fn nats_answers(port: u16, name: &str) -> bool {
    let name = format!("\"server_name\":\"{name}\"");
    let greeting = converse(port, &[], |text| text.contains("\r\n")).await;
    greeting.is_some_and(|text| {
        text.starts_with("INFO ") && text.contains(&name) && text.contains("\"jetstream\":true")
    })
}

/// A path as a string of NATS's configuration language.
fn quoted(path: &Path) -> Result<String, ServerError> {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => {
            Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
        }
        _ => Err(ServerError::Path(path.to_owned())),
    }
}

/// Writes a file that only its owner can read: the configuration may hold credentials.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

// ---------------------------------------------------------------------------------------------
// Redis

/// How to start a [`RedisServer`].
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// The port on 127.0.0.1; none (or 0): a free one.
    pub port: Option<u16>,
    /// The folder of its append-only files; created where missing, never removed.
    pub data: PathBuf,
    /// Further arguments, for instance `["--maxmemory", "64mb"]`; they win over the defaults
    /// (`--save "" --appendonly yes --appendfsync everysec --maxmemory-policy noeviction
    /// --bind 127.0.0.1`), but not over the port, the folder and `--daemonize no`. 127.0.0.1 must
    /// remain bound. A `--requirepass` is respected here; [`RedisServer::url`] does not carry it.
    pub extra_args: Vec<String>,
    /// The file its log is appended to; none: `redis-server.log` in `data`.
    pub log: Option<PathBuf>,
}

/// A private `redis-server`; killed when dropped (which may block for half a second).
#[derive(Debug)]
pub struct RedisServer {
    files: Files,
    extra_args: Vec<String>,
    port: u16,
    run: Option<Run>,
}

impl RedisServer {
    /// Starts a server and returns once it answers and has loaded its data.
    ///
    /// # Errors
    /// No usable binary, a folder that cannot be written, a server that ends at its start (the port
    /// is taken, an argument is wrong) or one that does not answer within 10 s.
    pub async fn start(options: RedisOptions) -> Result<Self, ServerError> {
        let files = Files::prepare(&REDIS, options.data, options.log).await?;
        let wanted = options.port.filter(|port| *port != 0);
        let mut server = Self { files, extra_args: options.extra_args, port: wanted.unwrap_or(0), run: None };
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if wanted.is_none() {
                server.port = free_port()?;
            }
            match server.launch().await {
                // Redis cannot pick a port itself, so another process may have been faster.
                Err(error) if wanted.is_none() && is_port_clash(&error) && Instant::now() < deadline => {
                    debug!(port = server.port, "a free port was taken meanwhile: trying another one");
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    /// `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port, the same for the server's whole life.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process, from its start until [`kill9`](Self::kill9) or [`stop`](Self::stop).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.run.as_ref().map(|run| run.process.pid)
    }

    /// Kills the server with KILL and returns when it is gone; nothing when there is none.
    ///
    /// # Errors
    /// The operating system refused, or the process is still there after 5 s.
    pub async fn kill9(&mut self) -> Result<(), ServerError> {
        end(&mut self.run, End::Kill).await
    }

    /// Ends the server with TERM, or after 5 s with KILL, and returns when it is gone.
    ///
    /// # Errors
    /// The operating system refused, or the process is still there 5 s after KILL.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        end(&mut self.run, End::Stop).await
    }

    /// Stops the server where it still runs, and starts it again on the same port and data.
    ///
    /// # Errors
    /// As for [`stop`](Self::stop) and [`start`](Self::start); a port that is taken is tried again
    /// for 10 s, since a client's own outgoing connection may hold it for a moment.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.launch().await {
                Err(error) if is_port_clash(&error) && Instant::now() < deadline => {
                    debug!(port = self.port, "the port of a private redis-server is taken: trying again");
                    sleep(CLASH_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let defaults = [
            ["--save", ""],
            ["--appendonly", "yes"],
            ["--appendfsync", "everysec"],
            ["--maxmemory-policy", "noeviction"],
            ["--bind", "127.0.0.1"],
        ];
        let mut arguments: Vec<OsString> = defaults.concat().into_iter().map(OsString::from).collect();
        arguments.extend(self.extra_args.iter().map(OsString::from));
        // The folder is the working one: so its name needs no quoting.
        let port = self.port.to_string();
        let fixed = ["--port", &port, "--dir", ".", "--daemonize", "no"];
        arguments.extend(fixed.into_iter().map(OsString::from));
        let mut run = Run::start(&REDIS, &self.files, arguments).await?;
        while !redis_answers(self.port, run.process.pid, self.password()).await {
            run.pause().await?;
        }
        self.run = Some(run);
        Ok(())
    }

    fn password(&self) -> Option<&str> {
        let mut arguments = self.extra_args.iter().rev().peekable();
        while let Some(value) = arguments.next() {
            if arguments.peek().is_some_and(|name| *name == "--requirepass") {
                return Some(value);
            }
        }
        None
    }
}

/// Whether the server with this pid, and not a stranger, answers PING on `port`.
async fn redis_answers(port: u16, pid: u32, password: Option<&str>) -> bool {
    let mut question = String::new();
    if let Some(password) = password {
        question.push_str(&format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len()));
    }
    question.push_str("PING\r\nINFO server\r\n");
    let pid = format!("\r\nprocess_id:{pid}\r\n");
    // An error (-LOADING, -NOAUTH) ends the wait as well; INFO alone answers while data is loaded.
    let enough = |text: &str| text.contains(&pid) || text.starts_with('-') || text.contains("\n-");
    let answer = converse(port, question.as_bytes(), enough).await;
    answer.is_some_and(|text| text.contains("+PONG\r\n") && text.contains(&pid))
}

/// A port on 127.0.0.1 that was free a moment ago.
fn free_port() -> Result<u16, ServerError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(io_error("find a free port"))
}

// ---------------------------------------------------------------------------------------------
// Common to both

enum End {
    Stop,
    Kill,
}

/// Ends a run, if there is one; whatever happens, it is not kept.
async fn end(run: &mut Option<Run>, how: End) -> Result<(), ServerError> {
    match (run.take(), how) {
        (None, _) => Ok(()),
        (Some(run), End::Stop) => run.process.stop().await,
        (Some(run), End::Kill) => run.process.kill().await,
    }
}

/// Sends `question` and returns the answer as soon as `enough` holds for it (bounded in time and
/// size); none when it does not come to that.
async fn converse(port: u16, question: &[u8], enough: impl Fn(&str) -> bool) -> Option<String> {
    let talk = async {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        stream.write_all(question).await?;
        let mut answer = Vec::with_capacity(4096);
        loop {
            let text = String::from_utf8_lossy(&answer);
            if enough(&text) {
                return Ok(Some(text.into_owned()));
            }
            if answer.len() >= GREETING_BYTES || stream.read_buf(&mut answer).await? == 0 {
                return io::Result::Ok(None);
            }
        }
    };
    match timeout(PROBE_WITHIN, talk).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => None,
    }
}
