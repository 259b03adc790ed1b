//! The start of one handler. The only place with unsafe code.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use surety_common::config::handed::is_base;
use tokio::net::unix::pipe;

use super::cgroup::Group;
use super::protocol::{AttemptSpec, StartError, TOKEN_VARIABLE};
use super::tree::read_process;

/// Descriptor of the control pipe in a handler.
const CONTROL_FD: i32 = 3;

/// A started handler and the keeper's ends of its pipes.
pub(super) struct Handler {
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    pub(super) control: pipe::Receiver,
    /// The input that did not fit into the pipe at once.
    pub(super) stdin: Option<(pipe::Sender, Vec<u8>)>,
}

/// Starts the handler in a session of its own and, when given, in its cgroup.
pub(super) fn spawn(spec: AttemptSpec, group: Option<&Group>) -> Result<Handler, StartError> {
    let system = |e: io::Error| StartError::System(e.to_string());
    let Some((program, arguments)) = spec.argv.split_first() else {
        return Err(StartError::Invalid("argv is empty".to_owned()));
    };
    if spec.token.is_empty() {
        return Err(StartError::Invalid("the token is empty".to_owned()));
    }
    if let Some(cwd) = &spec.cwd
        && !cwd.is_dir()
    {
        return Err(StartError::Directory(cwd.display().to_string()));
    }
    let procs = match group.map(|g| g.procs().try_clone()).transpose() {
        Ok(procs) => procs,
        Err(e) => return Err(StartError::Cgroup(e.to_string())),
    };
    // std reports a failed exec through a pipe of its own. Were descriptor 3 free, that pipe could
    // get it and be overwritten by the dup2 below, so it is held by something until after the fork.
    let null = std::fs::File::open("/dev/null").map_err(system)?;
    let _held = rustix::io::fcntl_dupfd_cloexec(&null, CONTROL_FD).map_err(|e| system(e.into()))?;

    let (stdout, stdout_end) = output_pipe().map_err(system)?;
    let (stderr, stderr_end) = output_pipe().map_err(system)?;
    let (control, control_end) = output_pipe().map_err(system)?;
    let (stdin_end, stdin) = input(spec.stdin).map_err(system)?;

    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(base())
        .envs(spec.env)
        .env(TOKEN_VARIABLE, &spec.token)
        .stdin(stdin_end.map_or_else(|| Stdio::from(null), Stdio::from))
        .stdout(Stdio::from(stdout_end))
        .stderr(Stdio::from(stderr_end));
    if let Some(cwd) = &spec.cwd {
        command.current_dir(cwd);
    }
    let keeper = rustix::process::getpid();
    let prepare = move || -> io::Result<()> {
        if let Some(procs) = &procs {
            // Only an errno comes back to the parent: one that exec can not give marks the cgroup.
            (&*procs).write_all(b"0").map_err(|_| io::Error::from(Errno::BADE))?;
        }
        // Whoever hangs in its exec has no token yet by which it could be found when the keeper is killed.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if rustix::process::getppid() != Some(keeper) {
            return Err(io::Error::from(Errno::SRCH));
        }
        rustix::process::setsid()?;
        if control_end.as_raw_fd() == CONTROL_FD {
            rustix::io::fcntl_setfd(&control_end, rustix::io::FdFlags::empty())?;
        } else {
            #[expect(unsafe_code, reason = "dup2 to a fixed number, between fork and exec")]
            // SAFETY: descriptor 3 of this forked process is replaced whatever it was: nothing of
            // the parent runs here any more, and the handler must find the control pipe there.
            // `forget` keeps it open for the exec.
            let mut target = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
            let result = rustix::io::dup2(&control_end, &mut target);
            std::mem::forget(target);
            result?;
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "cgroup, session and control pipe must be set before exec")]
    // SAFETY: the closure runs in the forked child and makes plain system calls only (write,
    // prctl, getppid, setsid, dup2 or fcntl), all async-signal-safe: it allocates nothing and takes no locks (an
    // `io::Error` of an errno is a plain number), and what it captures was made before the fork.
    let command = unsafe { command.pre_exec(prepare) };

    let child = command.spawn().map_err(|e| refused(program, &e))?;
    // Never waited for through `Child`: the keeper reaps by pid, and dropping it does nothing.
    let pid = i32::try_from(child.id()).map_err(|e| StartError::System(e.to_string()))?;
    Ok(Handler {
        pid,
        // It exists, be it as a zombie, until the keeper reaps it.
        start_time: read_process(pid).map_or(0, |p| p.start_time),
        stdout,
        stderr,
        control,
        stdin,
    })
}

/// What every handler gets of the environment of this process, which is its worker's.
fn base() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_base))
}

fn refused(program: &str, error: &io::Error) -> StartError {
    let text = format!("{program}: {error}");
    if error.raw_os_error() == Some(Errno::BADE.raw_os_error()) {
        return StartError::Cgroup(format!("{program}: can not be moved into its cgroup"));
    }
    match error.kind() {
        ErrorKind::NotFound => StartError::NotFound(text),
        ErrorKind::InvalidInput => StartError::Invalid(text),
        ErrorKind::PermissionDenied
        | ErrorKind::IsADirectory
        | ErrorKind::NotADirectory
        | ErrorKind::ArgumentListTooLong
        | ErrorKind::ExecutableFileBusy => StartError::NotExecutable(text),
        _ if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => StartError::NotExecutable(text),
        _ => StartError::System(text),
    }
}

/// The keeper's non-blocking read end and the handler's blocking write end.
fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// What the handler gets as stdin and what is left to be written. Most inputs fit into the pipe
/// and need neither a task nor a place in the reactor.
type Input = (Option<OwnedFd>, Option<(pipe::Sender, Vec<u8>)>);

fn input(mut bytes: Vec<u8>) -> io::Result<Input> {
    if bytes.is_empty() {
        return Ok((None, None));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let flags = rustix::fs::fcntl_getfl(&write)?;
    rustix::fs::fcntl_setfl(&write, flags | OFlags::NONBLOCK)?;
    let written = match rustix::io::write(&write, &bytes) {
        Ok(count) => count,
        Err(Errno::AGAIN) => 0,
        Err(e) => return Err(e.into()),
    };
    bytes.drain(..written.min(bytes.len()));
    if bytes.is_empty() {
        return Ok((Some(read), None));
    }
    Ok((Some(read), Some((pipe::Sender::from_owned_fd(write)?, bytes))))
}
