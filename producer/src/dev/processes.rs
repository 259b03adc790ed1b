//! Reaper and workers as processes of `surety dev`: started, watched, stopped in order. Nothing is restarted: a process
//! that dies is reported.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout_at},
};
use tracing::{error, info, warn};

use crate::dev::servers::find_setpriv;

/// Why the processes could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A program is not where it is looked for.
    #[error("{name} is not beside this program ({}): build it with `cargo build --release`", folder.display())]
    Missing { name: &'static str, folder: PathBuf },
    #[error("cannot {action}: {cause}")]
    Io { action: String, cause: io::Error },
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> ProcessError {
    let action = action.into();
    move |cause| ProcessError::Io { action, cause }
}

/// The two programs.
#[derive(Debug, Clone)]
pub struct Programs {
    reaper: PathBuf,
    worker: PathBuf,
}

impl Programs {
    /// `surety-reaper`.
    pub fn reaper(&self) -> &Path {
        &self.reaper
    }

    /// `surety-worker`.
    pub fn worker(&self) -> &Path {
        &self.worker
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// By Ctrl-C or TERM.
    Stopped,
    /// All processes are gone though nobody asked for it; what happened to the last one.
    Died(String),
}

/// Processes under way. Dropping it kills them.
pub struct Processes {
    programs: Programs,
    patience: Duration,
    setpriv: Option<PathBuf>,
    running: Vec<(String, Child)>,
    has_failed: Option<String>,
}

/// The pause between two looks at the processes.
const POLL: Duration = Duration::from_millis(50);

impl Processes {
    /// The programs beside the running one.
    /// Errors: `Missing`, with what to do.
    pub fn find() -> Result<Programs, ProcessError> {
        let here = std::env::current_exe().map_err(io_error("find this program"))?;
        let folder = here.parent().unwrap_or(Path::new("/")).to_owned();
        let find = |name: &'static str| {
            let path = folder.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(ProcessError::Missing { name, folder: folder.clone() })
            }
        };
        Ok(Programs { reaper: find("surety-reaper")?, worker: find("surety-worker")? })
    }

    /// No processes yet; `patience` is how long they may take to end after TERM.
    pub fn new(programs: Programs, patience: Duration) -> Self {
        Self { programs, patience, setpriv: find_setpriv(), running: Vec::new(), has_failed: None }
    }

    /// Starts the reaper.
    pub fn start_reaper(&mut self, arguments: &[OsString]) -> Result<(), ProcessError> {
        let program = self.programs.reaper.clone();
        self.start("surety-reaper".into(), &program, arguments, None)
    }

    /// Starts worker number `n` with a state folder of its own.
    pub fn start_worker(&mut self, n: u32, arguments: &[OsString], state: &Path) -> Result<(), ProcessError> {
        let program = self.programs.worker.clone();
        self.start(format!("surety-worker {n}"), &program, arguments, Some(state))
    }

    fn start(
        &mut self,
        name: String,
        program: &Path,
        arguments: &[OsString],
        state: Option<&Path>,
    ) -> Result<(), ProcessError> {
        // A process that outlives a killed `surety dev` would wait for servers that are gone: it is asked to end. The
        // signal comes when the forking thread ends; that is the main one, which runs this future to its end.
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut c = Command::new(setpriv);
                c.args(["--pdeathsig", "TERM", "--"]).arg(program);
                c
            }
            None => Command::new(program),
        };
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        // A group of its own, so that Ctrl-C in a terminal is for us to act on.
        command.process_group(0);
        if let Some(state) = state {
            // Two workers must not share the record of their running commands.
            command.env("SURETY_WORKER_STATE_DIR", state);
        }
        let child = command.spawn().map_err(io_error(format!("start {}", program.display())))?;
        info!(process = name, pid = child.id(), "started");
        self.running.push((name, child));
        Ok(())
    }

    /// Watches the processes until Ctrl-C, TERM or the end of the last one; then stops what is left, killing it when it
    /// takes longer than the patience or at a second Ctrl-C.
    pub async fn run(&mut self) -> Result<Outcome, ProcessError> {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("listen for Ctrl-C"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(io_error("listen for TERM"))?;
        // A terminal that is closed says so once.
        let mut hangup = signal(SignalKind::hangup()).map_err(io_error("listen for SIGHUP"))?;
        let is_asked = loop {
            tokio::select! {
                _ = hangup.recv() => break true,
                _ = interrupt.recv() => break true,
                _ = terminate.recv() => break true,
                () = tokio::time::sleep(POLL) => {}
            }
            self.reap(false)?;
            if self.running.is_empty() {
                break false;
            }
        };
        if is_asked {
            info!("stopping; Ctrl-C again kills");
        }
        for (name, child) in &self.running {
            terminate_process(name, child)?;
        }
        let deadline = Instant::now() + self.patience;
        while !self.running.is_empty() {
            let wait = async {
                tokio::select! {
                    _ = interrupt.recv() => true,
                    _ = terminate.recv() => true,
                    () = tokio::time::sleep(POLL) => false,
                }
            };
            let is_over = timeout_at(deadline, wait).await.unwrap_or(true);
            self.reap(true)?;
            if is_over {
                self.kill().await?;
            }
        }
        Ok(match self.has_failed.take() {
            Some(what) if !is_asked => Outcome::Died(what),
            _ => Outcome::Stopped,
        })
    }

    /// Takes out what has ended.
    fn reap(&mut self, is_stopping: bool) -> Result<(), ProcessError> {
        let mut still = Vec::with_capacity(self.running.len());
        for (name, mut child) in std::mem::take(&mut self.running) {
            match child.try_wait().map_err(io_error(format!("wait for {name}")))? {
                None => still.push((name, child)),
                Some(status) => self.ended(&name, status, is_stopping),
            }
        }
        self.running = still;
        Ok(())
    }

    fn ended(&mut self, name: &str, status: ExitStatus, is_stopping: bool) {
        if is_stopping && status.success() {
            info!(process = name, "stopped");
        } else {
            error!(process = name, %status, "a process ended by itself; it is not restarted");
            self.has_failed = Some(format!("{name} ended by itself ({status}); its log is above"));
        }
    }

    async fn kill(&mut self) -> Result<(), ProcessError> {
        for (name, mut child) in std::mem::take(&mut self.running) {
            warn!(process = name, "killed");
            child.kill().await.map_err(io_error(format!("kill {name}")))?;
        }
        Ok(())
    }
}

fn terminate_process(name: &str, child: &Child) -> Result<(), ProcessError> {
    // An unreaped child keeps its number, so this cannot reach a stranger.
    let Some(pid) = child.id().and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw) else {
        return Ok(());
    };
    match kill_process(pid, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(io_error(format!("stop {name}"))(e.into())),
    }
}
