//! The messages between worker and keeper, and their framing.
//!
//! A frame is a `u32` in little endian, the length of what follows, and one MessagePack value.
//! Both ends are the same binary, so there is no versioning and structs travel as arrays.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Environment variable of a handler that holds the token of its attempt.
pub const TOKEN_VARIABLE: &str = "SURETY_KEEPER_TOKEN";

/// Largest frame in bytes. What a peer sends beyond is an error, never an allocation.
pub(super) const MAX_FRAME: usize = 64 << 20;
/// Upper bounds of what a spec may ask for, so that every [`Exit`] fits into a frame even when the
/// replacement of invalid UTF-8 triples the tails.
pub(super) const MAX_RESULT: usize = 32 << 20;
pub(super) const MAX_TAIL_LINES: usize = 1000;
/// A control line is cut after so many bytes.
pub(super) const MAX_LINE: usize = 64 << 10;
/// So many control lines per attempt may be on their way to a worker that has not read them.
pub(super) const LINE_WINDOW: u32 = 32;

/// One attempt to run: what to start, with what, and for how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttemptSpec {
    /// Unique token of the attempt; identifies its processes, also after a crash.
    pub token: String,
    /// Program (searched in `PATH` when without a slash) and arguments.
    pub argv: Vec<String>,
    /// Its environment, beside the base of the keeper's (`surety_common::config::handed::BASE`).
    pub env: Vec<(String, String)>,
    /// Working directory; the keeper's when absent.
    pub cwd: Option<PathBuf>,
    /// Bytes given on stdin, followed by its end.
    #[serde(with = "serde_bytes")]
    pub stdin: Vec<u8>,
    /// Time limit from the start of the process.
    pub timeout: Duration,
    /// Time between TERM and KILL.
    pub grace: Duration,
    /// Bytes of stdout and stderr together after which the result takes no more.
    pub output_limit: u64,
    /// Bytes of stdout kept as the result; at most 32 MiB.
    pub result_cap: usize,
    /// Last lines kept of stdout and of stderr, each cut at 4 KiB; at most 1000.
    pub tail_lines: usize,
}

/// Why an attempt is stopped from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The job was cancelled: TERM, grace, KILL.
    Cancelled,
    /// The worker shuts down: TERM, grace, KILL.
    Shutdown,
    /// The attempt lost its right to run: KILL at once.
    Fenced,
}

/// How the main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatusKind {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal; also reported when its end was not seen (9).
    Signal(i32),
}

/// Why an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// By itself.
    Exited,
    /// By its time limit.
    TimedOut,
    /// By [`super::Stopper::stop`], a dropped [`super::RunningAttempt`] (as `Fenced`) or the end of
    /// the worker (as `Shutdown`).
    Stopped(StopReason),
    /// By the trust deadline.
    TrustLost,
    /// The keeper died and its processes were killed by the worker.
    KeeperLost,
}

/// The end of an attempt. Nothing of its process tree runs any more, unless `strays_left` says so.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exit {
    /// How the main process ended.
    pub status: ExitStatusKind,
    /// Why it ended.
    pub cause: Cause,
    /// The first bytes of stdout, up to `result_cap` and `output_limit`.
    #[serde(with = "serde_bytes")]
    pub stdout: Vec<u8>,
    /// Bytes written to stdout. More than `stdout.len()` when the result was cut.
    pub stdout_total: u64,
    /// Bytes written to stderr.
    pub stderr_total: u64,
    /// stdout and stderr together went over `output_limit`.
    pub output_truncated: bool,
    /// Last lines of stdout, each at most 4 KiB; they follow the end also past `output_limit`.
    pub stdout_tail: Vec<String>,
    /// Last lines of stderr, likewise.
    pub stderr_tail: Vec<String>,
    /// The kernel killed something of the attempt for want of memory. Known only where the
    /// attempt's cgroup has the memory controller, else `false`.
    pub oom: bool,
    /// Time from the start of the main process until its tree was dead.
    pub wall: Duration,
    /// Processes other than the main one that had to be killed.
    pub strays_killed: u32,
    /// Processes that survived KILL for ten seconds (uninterruptible sleep, other privileges).
    pub strays_left: u32,
}

/// A handler was not started.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum StartError {
    /// There is no such program.
    #[error("program not found: {0}")]
    NotFound(String),
    /// It is there, but can not be executed.
    #[error("program can not be executed: {0}")]
    NotExecutable(String),
    /// The working directory is not a directory.
    #[error("bad working directory: {0}")]
    Directory(String),
    /// The handler could not be put into its cgroup.
    #[error("cgroup: {0}")]
    Cgroup(String),
    /// The spec can not be used: empty argv, a NUL byte, larger than a frame.
    #[error("bad attempt: {0}")]
    Invalid(String),
    /// The trust deadline has passed.
    #[error("the trust deadline has passed")]
    TrustLost,
    /// The keeper died or was shut down before the handler was known to run.
    #[error("keeper lost: {0}")]
    KeeperLost(String),
    /// The system refused: no more processes, descriptors, memory.
    #[error("system: {0}")]
    System(String),
}

/// The keeper process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The calling process could not become a subreaper.
    #[error("can not become a subreaper: {0}")]
    Subreaper(#[source] std::io::Error),
    /// The program of the keeper could not be started.
    #[error("can not start the keeper: {0}")]
    Start(#[source] std::io::Error),
    /// It was started, but did not answer as a keeper within ten seconds.
    #[error("the keeper does not answer: {0}")]
    NoAnswer(String),
}

/// Worker to keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToKeeper {
    /// The first message.
    Setup {
        cgroup: bool,
        trust: u64,
    },
    Run {
        id: u64,
        spec: AttemptSpec,
    },
    Stop {
        id: u64,
        reason: StopReason,
    },
    /// The worker took so many lines from its queue.
    Credit {
        id: u64,
        lines: u32,
    },
    Trust {
        until: u64,
    },
    /// To be answered by [`FromKeeper::Here`].
    AreYouThere,
}

/// Keeper to worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// Answer to `Setup`: the directory of its cgroups, or why there is none.
    Hello {
        cgroups: Result<PathBuf, String>,
    },
    Started {
        id: u64,
        pid: u32,
        start_time: u64,
    },
    Refused {
        id: u64,
        error: StartError,
    },
    Line {
        id: u64,
        #[serde(with = "serde_bytes")]
        line: Vec<u8>,
    },
    /// The last message of an attempt. `lines` are the control lines the worker had no room for.
    Ended {
        id: u64,
        exit: Box<Exit>,
        lines: Vec<serde_bytes::ByteBuf>,
    },
    /// Its main loop goes round.
    Here,
}

/// One frame, ready to be written.
pub(super) fn frame<T: Serialize>(message: &T) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; 4];
    rmp_serde::encode::write(&mut bytes, message).map_err(std::io::Error::other)?;
    let length = bytes.len().saturating_sub(4);
    if length > MAX_FRAME {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("a message of {length} bytes is larger than a frame"),
        ));
    }
    let length = u32::try_from(length).map_err(std::io::Error::other)?;
    if let Some(head) = bytes.first_chunk_mut::<4>() {
        *head = length.to_le_bytes();
    }
    Ok(bytes)
}

/// Reads frames; [`Frames::next`] is cancel safe.
pub(super) struct Frames<R> {
    input: R,
    buffer: Vec<u8>,
    /// Start of what is not decoded yet.
    at: usize,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: Vec::with_capacity(16 << 10), at: 0 }
    }

    /// The next message; `None` at the end of the stream between two frames.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        loop {
            if let Some(message) = self.decode()? {
                return Ok(Some(message));
            }
            if self.at > 0 {
                self.buffer.drain(..self.at);
                self.at = 0;
                // A single large message must not pin its memory for good.
                if self.buffer.capacity() > 1 << 20 && self.buffer.len() < 16 << 10 {
                    self.buffer.shrink_to(16 << 10);
                }
            }
            self.buffer.reserve(16 << 10);
            if self.input.read_buf(&mut self.buffer).await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn decode<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let Some((head, body)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*head)).map_err(std::io::Error::other)?;
        if length > MAX_FRAME {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("a frame of {length} bytes"),
            ));
        }
        let Some(body) = body.get(..length) else {
            return Ok(None);
        };
        let message = rmp_serde::from_slice(body)
            .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))?;
        self.at += 4 + length;
        Ok(Some(message))
    }
}
