//! The log, to stderr.

use std::{io::IsTerminal, str::FromStr, sync::OnceLock};

use tracing::{Event, Subscriber, field::Visit};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt,
    layer::{Context, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

use super::{
    labels::OTHER,
    metrics::{ALERTS, shared},
};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// As a setting has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(format!("{s:?} is neither \"human\" nor \"json\"")),
        }
    }
}

/// The format in use, once there is one.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The filter in use, once there is one.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// A filter as `telemetry.log_level` has it. The error says what of it does not parse.
pub fn read_filter(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|e| format!("{filter:?} is no log filter: {e}"))
}

/// Goes by another filter from now on. Does nothing in a program that logs in a way of its own.
pub fn set_filter(filter: EnvFilter) {
    if let Some(handle) = FILTER.get()
        && let Err(e) = handle.reload(filter)
    {
        tracing::error!(error = %e, "the log filter stays as it was");
    }
}

/// Says why this process ends, as the last line on stderr: in the log where that is JSON, else as plain text.
pub fn last_words(program: &str, text: &str) {
    match FORMAT.get() {
        Some(LogFormat::Json) if tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!(program, "{text}");
        }
        _ => eprintln!("{program}: {text}"),
    }
}

/// Starts logging to stderr. `filter` is a tracing filter such as `info` or `surety_worker=debug`; one that does not parse
/// falls back to `info`, and says so. A second call changes nothing.
pub fn start(format: LogFormat, filter: &str) {
    let (filter, problem) = match read_filter(filter) {
        Ok(f) => (f, None),
        Err(e) => (EnvFilter::new("info"), Some(e)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let is_coloured = std::io::stderr().is_terminal() && !anstyle_query::no_color();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(is_coloured);
    let lines = match format {
        LogFormat::Human => lines.with_target(false).boxed(),
        // The span list would repeat the one span there is.
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let started = tracing_subscriber::registry().with(filter).with(lines).with(Alerts).try_init();
    match started {
        Ok(()) => {
            FORMAT.get_or_init(|| format);
            FILTER.get_or_init(|| handle);
            if format == LogFormat::Json {
                std::panic::set_hook(Box::new(panicked));
            }
        }
        Err(e) => tracing::debug!(error = %e, "logging was started before"),
    }
    if let Some(e) = problem {
        tracing::warn!(error = e, "the log filter does not parse; `info` is used");
    }
}

/// The standard hook writes plain text, which is no JSON.
fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(ToString::to_string);
    // Empty unless RUST_BACKTRACE asks for it.
    let trace = std::backtrace::Backtrace::capture();
    let trace = (trace.status() == std::backtrace::BacktraceStatus::Captured).then(|| trace.to_string());
    tracing::error!(place, backtrace = trace, "panicked: {message}");
}

/// Counts lines that say that a person is needed, by the value of their field `alert`.
struct Alerts;

impl<S: Subscriber> Layer<S> for Alerts {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().fields().field("alert").is_some() {
            event.record(&mut Alert);
        }
    }
}

struct Alert;

impl Visit for Alert {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "alert" {
            let known = ALERTS.iter().find(|a| **a == value);
            shared().alerts.with_label_values(&[known.copied().unwrap_or(OTHER)]).inc();
        }
    }

    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
}
