//! How a command fails: one clear line and an exit code.

use std::{fmt, io, process::ExitCode};

use surety_common::{
    broker::BrokerError, config::ConfigError, connect::ConnectError, lookup::LookupError, pace::Transient,
    store::StoreError, wire::job::Refused,
};

use crate::{
    client::ClientError,
    dev::{processes::ProcessError, servers::ServerError},
};

/// Exit codes, the same for every command (`surety --help` lists them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Fine.
    Fine = 0,
    /// Something unexpected, or the answer is "no" (not cancelled, unknown job, job failed).
    No = 1,
    /// Bad arguments or bad input.
    Input = 2,
    /// The job did not run and will not: its id belongs to another one.
    NotRun = 3,
    /// NATS or Redis cannot be reached.
    Unreachable = 69,
    /// A bug in Surety.
    Bug = 70,
    /// What was asked for is under way, and not over.
    Pending = 75,
    /// Bad configuration, a login or permission that is missing, or servers that are not fit for use.
    Config = 78,
    /// Ctrl-C ended a command that would have gone on.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(e: Exit) -> Self {
        Self::from(e as u8)
    }
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What, where, what to do; empty for a quiet end.
    pub(crate) text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Failure {
    /// The job did not run and will not.
    pub(crate) fn not_run(text: impl Into<String>) -> Self {
        Self::new(Exit::NotRun, text)
    }

    fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// The answer is "no".
    pub(crate) fn no(text: impl Into<String>) -> Self {
        Self::new(Exit::No, text)
    }

    /// The caller gave something that cannot be used.
    pub(crate) fn input(text: impl Into<String>) -> Self {
        Self::new(Exit::Input, text)
    }

    pub(crate) fn unreachable(text: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, text)
    }

    /// Asked for, and not over yet.
    pub(crate) fn pending(text: impl Into<String>) -> Self {
        Self::new(Exit::Pending, text)
    }

    pub(crate) fn bug(text: impl Into<String>) -> Self {
        Self::new(Exit::Bug, text)
    }

    pub(crate) fn config(text: impl Into<String>) -> Self {
        Self::new(Exit::Config, text)
    }

    /// Ended by Ctrl-C, which needs no words.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "")
    }

    /// Writing to stdout failed. A reader that went away is not a failure.
    pub(crate) fn stdout(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Fine, ""),
            _ => Self::no(format!("cannot write to stdout: {e}")),
        }
    }
}

const CHECK_NATS: &str = "check --nats (NATS_URL) and that the server runs";
const SET_ASIDE: &str = "try again: a reaper sets it aside after some tries";
const CHECK_REDIS: &str = "check --redis (REDIS_URL) and that the server runs";

impl From<BrokerError> for Failure {
    fn from(e: BrokerError) -> Self {
        let text = e.to_string();
        match e {
            BrokerError::Unreachable(_) => Self::unreachable(format!("{text}; {CHECK_NATS}")),
            BrokerError::Outlived => Self::unreachable(text),
            BrokerError::NoStream { .. } => Self::input(text),
            BrokerError::Refused { .. } => Self::no(text),
            BrokerError::Unfit(_) | BrokerError::Denied(_) => Self::config(text),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        let text = e.to_string();
        match e {
            StoreError::Unreachable(_) => Self::unreachable(format!("{text}; {CHECK_REDIS}")),
            StoreError::Rebuilding => Self::unreachable(format!("{text}; try again in a minute")),
            StoreError::OutboxFull => {
                Self::unreachable(format!("{text}; see `surety queues` and the reaper's log"))
            }
            StoreError::Refused(_) | StoreError::Denied(_) | StoreError::OtherStore(_) => Self::config(text),
            StoreError::Unreadable { .. } => Self::unreachable(format!("{text}; {SET_ASIDE}")),
            StoreError::SessionLost | StoreError::Decode(_) => Self::bug(text),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Self {
        match e {
            ConnectError::Broker(e) => e.into(),
            ConnectError::Store(e) => e.into(),
            ConnectError::Unfit(_) => Self::config(e.to_string()),
        }
    }
}

impl From<LookupError> for Failure {
    fn from(e: LookupError) -> Self {
        match e {
            LookupError::Broker(e) => e.into(),
            LookupError::Store(e) => e.into(),
            LookupError::NewerRelease { .. } => Self::no(e.to_string()),
        }
    }
}

impl From<Refused> for Failure {
    fn from(e: Refused) -> Self {
        Self::input(format!("the job was refused: {e}"))
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        match e {
            ClientError::Refused(r) => r.into(),
            ClientError::Broker(b) if b.is_transient() => Self::unreachable(format!(
                "{b}; the job may be stored or not: repeat it under the same id ({CHECK_NATS})"
            )),
            ClientError::Broker(b) => b.into(),
            ClientError::Connect(c) => c.into(),
            ClientError::Caller(c) => Self::input(c.to_string()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Self {
        Self::config(e.to_string())
    }
}

impl From<ServerError> for Failure {
    fn from(e: ServerError) -> Self {
        match e {
            ServerError::NotFound { .. } => Self::config(e.to_string()),
            _ => Self::no(e.to_string()),
        }
    }
}

impl From<ProcessError> for Failure {
    fn from(e: ProcessError) -> Self {
        match e {
            ProcessError::Missing { .. } => Self::config(e.to_string()),
            ProcessError::Io { .. } => Self::no(e.to_string()),
        }
    }
}
