//! The processes: started by one thread of the whole life of this process, killed and reaped when dropped.

use std::{
    env, io,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{ServerError, find::is_executable, io_error, run::POLL};

/// How long a server may take to end after TERM before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How long a killed server may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// How long `Drop` waits for a killed server before it leaves the reaping to the keeper.
const DROP_WITHIN: Duration = Duration::from_millis(500);

/// A child that is killed and reaped when dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Option<Child>,
    pub(super) pid: u32,
}

impl Process {
    pub(super) fn new(child: Child) -> Self {
        Self { pid: child.id(), child: Some(child) }
    }

    pub(super) fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
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
    pub(super) async fn stop(mut self) -> Result<(), ServerError> {
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

    pub(super) async fn kill(mut self) -> Result<(), ServerError> {
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
pub(super) mod keeper {
    use std::{
        io,
        os::unix::process::CommandExt,
        path::Path,
        process::{Child, Command},
        sync::{OnceLock, mpsc},
        thread,
        time::Duration,
    };

    use tokio::sync::oneshot;
    use tracing::warn;

    use super::{super::run::Launch, Process, find_setpriv};

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
            .stdin(launch.lock)
            .stdout(launch.output)
            .stderr(errors)
            .spawn()
            .map(Process::new)
    }

    /// Forks a server from the keeper's thread.
    pub(in super::super) async fn start(launch: Launch) -> io::Result<Process> {
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
