//! Control lines: what a handler says while it runs (file descriptor 3, one JSON object a line).

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use surety_common::{
    domain::{
        EventKind, JobId, fingerprint,
        ids::SessionId,
        job::{EVENT_CAP, RESULT_CAP},
        outcome::Said,
        text,
    },
    reload::LiveSettings,
    store::{ProgressItem, ProgressReply},
    telemetry::metrics::worker,
    wire::strict::{self, NotStrict},
};
use tokio_util::sync::CancellationToken;

use crate::{claims::short, reports::ReportGroups};

/// Most bytes of one text in an event.
const TEXT_CAP: usize = EVENT_CAP / 2;

/// Why a line was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// Nobody could read what it says, and nothing repairs it.
    #[error(transparent)]
    NotStrict(NotStrict),
    #[error(transparent)]
    NotALine(serde_json::Error),
}

/// One line. A line may hold several fields; each is taken.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Line {
    pub(crate) progress: Option<f64>,
    pub(crate) message: Option<String>,
    pub(crate) tool: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) iteration: Option<u64>,
    pub(crate) max: Option<u64>,
    pub(crate) usage: Option<Box<RawValue>>,
    pub(crate) result: Option<Box<RawValue>>,
    pub(crate) error: Option<ErrorLine>,
    /// Reports that this one stands for, because they came too fast.
    #[serde(skip)]
    pub(crate) folded: u64,
}

/// `{"error": {"code": …, "message": …, "retry": …}}`
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ErrorLine {
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) retry: Option<bool>,
}

impl Line {
    /// Reads a line. What of it others could not read is repaired.
    /// Errors: why it cannot be used.
    pub(crate) fn read(text: &str) -> Result<Self, LineError> {
        let text = strict::repair(text).map_err(LineError::NotStrict)?;
        serde_json::from_str(&text).map_err(LineError::NotALine)
    }

    pub(crate) fn progress(fraction: f64, message: &str) -> Self {
        Self { progress: Some(fraction), message: Some(message.to_owned()), ..Self::default() }
    }

    /// Whether the journal gets less than what the line says.
    pub(crate) fn is_cut(&self) -> bool {
        [&self.message, &self.tool, &self.state].into_iter().flatten().any(|s| s.len() > TEXT_CAP)
    }

    /// The kind of its event; `None`: it is no report.
    pub(super) fn kind(&self) -> Option<EventKind> {
        let is_progress = self.progress.is_some()
            || self.iteration.is_some()
            || self.message.is_some()
            || self.usage.is_some();
        if self.tool.is_some() { Some(EventKind::Tool) } else { is_progress.then_some(EventKind::Progress) }
    }

    /// The event of this line, if it is one that the journal keeps: kind and data (a JSON object within the event cap).
    pub(crate) fn event(&self) -> Option<(EventKind, String)> {
        let mut data = serde_json::Map::new();
        let mut put = |k: &str, v: Option<Value>| {
            if let Some(v) = v {
                data.insert(k.to_owned(), v);
            }
        };
        let kind = self.kind()?;
        let short = |s: &String| Value::from(text::cut(s, TEXT_CAP).into_owned());
        put("progress", self.progress.map(Value::from));
        put("message", self.message.as_ref().map(short));
        put("tool", self.tool.as_ref().map(short));
        put("state", self.state.as_ref().map(short));
        put("iteration", self.iteration.map(Value::from));
        put("max", self.max.map(Value::from));
        put("folded", (self.folded > 0).then(|| self.folded.into()));
        let usage = self.usage.as_ref().filter(|u| u.get().len() <= 1024);
        put("usage", usage.and_then(|u| serde_json::from_str(u.get()).ok()));
        Some((kind, Value::Object(data).to_string()))
    }
}

/// What the lines of one attempt add up to.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) said: Said,
    pub(crate) result: Option<Box<RawValue>>,
    pub(crate) usage: Option<Box<RawValue>>,
    pub(crate) error_message: Option<String>,
}

impl Heard {
    /// The attempt fails for good, for this reason.
    pub(crate) fn refuse(&mut self, why: &str) {
        (self.said.is_error, self.said.error_retry) = (true, Some(false));
        self.error_message = Some(why.to_owned());
    }

    /// Takes one line in.
    pub(crate) fn take(&mut self, line: &Line) {
        if let Some(n) = line.iteration {
            let max = line.max.or(self.said.iteration.map(|(_, m)| m)).unwrap_or(0);
            self.said.iteration = Some((n, max));
        }
        if let Some(r) = &line.result {
            match r.get().len() {
                0..=RESULT_CAP => self.result = Some(r.clone()),
                n => self.refuse(&format!("the result has {n} bytes; the cap is {RESULT_CAP}")),
            }
        }
        if let Some(u) = line.usage.as_ref().filter(|u| u.get().len() <= EVENT_CAP) {
            self.usage = Some(u.clone());
        }
        if let Some(e) = &line.error {
            self.said.is_error = true;
            self.said.error_retry = e.retry;
            let parts: Vec<&str> = [&e.code, &e.message].into_iter().filter_map(|p| p.as_deref()).collect();
            self.error_message = Some(parts.join(": "));
        }
    }
}

/// Where an attempt's reports go: the journal, under the attempt's epoch.
#[derive(Clone)]
pub(crate) struct Reports {
    pub(crate) groups: ReportGroups,
    pub(crate) partition: u32,
    pub(crate) session: Arc<SessionId>,
    pub(crate) id: JobId,
    pub(crate) epoch: u64,
    /// Within this time of a report the next one is promised; `None`: within what the settings say at the time of the report.
    pub(crate) progress: Option<Duration>,
    pub(crate) live: LiveSettings,
    /// Cancelled when the store says that the attempt does not own the job any more.
    pub(crate) fence: CancellationToken,
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reports").field("id", &self.id).field("epoch", &self.epoch).finish()
    }
}

impl Reports {
    /// Journals a line; `false` when it was fenced. A line that is no event is `true` at once. A failure of the store is
    /// logged and costs the report, not the attempt (H-03).
    pub(crate) async fn send(&self, line: &Line) -> bool {
        let Some((kind, data)) = line.event() else { return true };
        if line.is_cut() {
            worker().truncations.with_label_values(&["report"]).inc();
            tracing::warn!(job_id = %self.id, "a report over the limit was cut");
        }
        let print = fingerprint(kind.name(), &data);
        let (id, epoch) = (self.id.to_string(), self.epoch);
        let progress_ms = short(self.progress.unwrap_or_else(|| self.live.now().contract.progress));
        let item = ProgressItem { id, epoch, kind: kind.name(), data, progress_ms, print };
        match self.groups.report(self.partition, self.session.clone(), item).await {
            Ok(ProgressReply::Journaled { .. }) => true,
            Ok(ProgressReply::Fenced) => {
                tracing::warn!(job_id = %self.id, epoch = self.epoch, "fenced: another attempt, or none, owns the job");
                self.fence.cancel();
                false
            }
            Ok(ProgressReply::Unreadable) => {
                tracing::warn!(job_id = %self.id, "report not journaled: the record of the job does not decode");
                true
            }
            Err(e) => {
                tracing::warn!(job_id = %self.id, error = %e, "report not journaled");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_events_or_stay_private() {
        let line = |s: &str| serde_json::from_str::<Line>(s).unwrap();
        let (kind, data) = line(r#"{"progress":0.4,"message":"half"}"#).event().unwrap();
        assert_eq!((kind, data.as_str()), (EventKind::Progress, r#"{"message":"half","progress":0.4}"#));
        assert_eq!(line(r#"{"tool":"git","state":"started"}"#).event().unwrap().0, EventKind::Tool);
        assert!(line(r#"{"result":{"x":1}}"#).event().is_none());
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(10_000));
        let (_, data) = line(&long).event().unwrap();
        assert!(data.len() < EVENT_CAP && data.contains("10000 bytes total"));
    }

    // Shows: A-04
    #[test]
    fn the_last_iteration_is_remembered() {
        let mut h = Heard::default();
        for n in 1..=3 {
            h.take(&serde_json::from_str(&format!(r#"{{"iteration":{n},"max":3}}"#)).unwrap());
        }
        assert_eq!(h.said.iteration, Some((3, 3)));
    }
}
