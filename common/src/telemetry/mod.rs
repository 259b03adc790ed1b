//! Logs. Metrics come with the operators' issue.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts logging to stderr. `filter` is a tracing filter such as `info` or `surety_worker=debug`; one that does not parse
/// falls back to `info`, and says so. A second call changes nothing.
pub fn start(format: LogFormat, filter: &str) {
    let (filter, problem) = match EnvFilter::try_new(filter) {
        Ok(f) => (f, None),
        Err(e) => (EnvFilter::new("info"), Some(e)),
    };
    let builder =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(e) = started {
        tracing::debug!(error = %e, "logging was started before");
    }
    if let Some(e) = problem {
        tracing::warn!(error = %e, "the log filter does not parse; `info` is used");
    }
}
