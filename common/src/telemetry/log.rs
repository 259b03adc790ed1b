//! The log, to stderr.

use std::{io::IsTerminal, str::FromStr};

use tracing::{Event, Subscriber, field::Visit};
use tracing_subscriber::{
    EnvFilter, Layer, fmt,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use super::{labels::Labels, metrics::shared};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
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

/// Starts logging to stderr. `filter` is a tracing filter such as `info` or `surety_worker=debug`; one that does not parse
/// falls back to `info`, and says so. A second call changes nothing.
pub fn start(format: LogFormat, filter: &str) {
    let (filter, problem) = match EnvFilter::try_new(filter) {
        Ok(f) => (f, None),
        Err(e) => (EnvFilter::new("info"), Some(e)),
    };
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Human => lines.with_target(false).boxed(),
        // The span list would repeat the one span there is.
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let started = tracing_subscriber::registry().with(filter).with(lines).with(Alerts::new()).try_init();
    if let Err(e) = started {
        tracing::debug!(error = %e, "logging was started before");
    }
    if let Some(e) = problem {
        tracing::warn!(error = %e, "the log filter does not parse; `info` is used");
    }
}

/// Counts lines that say that a person is needed, by the value of their field `alert`.
struct Alerts {
    seen: Labels,
}

impl Alerts {
    fn new() -> Self {
        // The values are constants in the code, so this bound is never met.
        Self { seen: Labels::new(100) }
    }
}

impl<S: Subscriber> Layer<S> for Alerts {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().fields().field("alert").is_some() {
            event.record(&mut Alert { seen: &self.seen });
        }
    }
}

struct Alert<'a> {
    seen: &'a Labels,
}

impl Visit for Alert<'_> {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "alert" {
            shared().alerts.with_label_values(&[self.seen.of(value)]).inc();
        }
    }

    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
}
