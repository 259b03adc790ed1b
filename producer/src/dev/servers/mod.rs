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

mod find;
mod nats;
mod process;
mod redis;
mod run;

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use thiserror::Error;

pub use find::{find_nats_server, find_redis_server};
pub use nats::{NatsOptions, NatsServer};
pub(crate) use process::find_setpriv;
pub use redis::{RedisOptions, RedisServer};

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
    /// Another server has the folder of its data.
    #[error(
        "a {program} runs on the data in {} already ({by}): stop it, or take another folder", folder.display()
    )]
    InUse {
        /// `nats-server` or `redis-server`.
        program: &'static str,
        /// The folder.
        folder: PathBuf,
        /// Who started it.
        by: String,
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
