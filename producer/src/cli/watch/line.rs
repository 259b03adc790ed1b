//! An event as a line: aligned and coloured on a terminal, plain elsewhere, itself as JSON.

use surety_common::wire::event::Event;

use crate::{
    cli::failure::Failure,
    render::{Screen, Tone, cut, printable},
};

/// Below this many columns an event takes several lines.
const NARROW: usize = 80;
/// The longest kind that is written has this many letters.
const KIND: usize = 14;

/// Writes events to the screen.
pub(super) struct Lines {
    screen: Screen,
    /// Widest job id and widest `queue/type` so far, so that columns seldom move.
    job: usize,
    place: usize,
}

impl Lines {
    pub(super) fn new(screen: Screen) -> Self {
        Self { screen, job: 26, place: 0 }
    }

    /// Writes the events in one go.
    pub(super) fn write<'a>(&mut self, events: impl Iterator<Item = &'a Event>) -> Result<(), Failure> {
        let screen = self.screen;
        let mut out = String::new();
        for e in events {
            match (screen.is_json, screen.width()) {
                (true, _) => out.push_str(&crate::render::json(e)?),
                (false, None) => out.push_str(&plain(e)),
                (false, Some(w)) if w < NARROW => out.push_str(&self.narrow(e, w)),
                (false, Some(w)) => out.push_str(&self.aligned(e, w)),
            }
            out.push('\n');
        }
        screen.line(&out)
    }

    fn kind(&self, e: &Event) -> String {
        self.screen.paint(tone(e), &format!("{:KIND$}", e.kind))
    }

    fn aligned(&mut self, e: &Event, width: usize) -> String {
        let place = format!("{}/{}", e.queue, e.job_type);
        self.job = self.job.max(e.job.len());
        self.place = self.place.max(place.len());
        let (job, at) = (self.job, self.place);
        let before = 12 + 2 + KIND + 2 + job + 2 + at + 2;
        let note = note(e);
        // A line that leaves no room for words goes on below.
        let note = match width.checked_sub(before) {
            Some(room) if room >= 10 || note.is_empty() => cut(&note, room),
            _ => format!("\n{:14}{}", "", cut(&note, width.saturating_sub(14))),
        };
        let text = format!("{}  {}  {:job$}  {place:at$}  {note}", clock(&e.at), self.kind(e), e.job);
        text.trim_end().to_owned()
    }

    fn narrow(&self, e: &Event, width: usize) -> String {
        let mut text = format!("{}  {}\n  {}", clock(&e.at), self.kind(e), e.job);
        let note = note(e);
        if !note.is_empty() {
            text.push_str(&format!("\n  {}", cut(&note, width.saturating_sub(2))));
        }
        text
    }
}

/// Fixed fields, separated by spaces, then words.
fn plain(e: &Event) -> String {
    let text = format!("{} {} {} {} {} {} {}", e.at, e.kind, e.job, e.rev, e.queue, e.job_type, note(e));
    text.trim_end().to_owned()
}

/// The time of day.
fn clock(at: &str) -> &str {
    at.get(11..23).unwrap_or(at)
}

fn tone(e: &Event) -> Option<Tone> {
    match e.kind.as_str() {
        "finished" => Tone::of_status(&e.status),
        "attempt_failed" | "lost" | "buried" => Some(Tone::Bad),
        "deferred" | "released" | "replayed" => Some(Tone::Warn),
        "started" => Some(Tone::Live),
        _ => None,
    }
}

/// What the event says beyond its kind, in words.
fn note(e: &Event) -> String {
    let data = e.data.get("receipt").unwrap_or(&e.data);
    let text = |name: &str| data.get(name).and_then(serde_json::Value::as_str);
    let mut parts = Vec::new();
    match e.kind.as_str() {
        "finished" => parts.push(e.status.clone()),
        "started" => parts.push(format!("attempt {}", e.attempt)),
        _ => {}
    }
    if let Some(p) = data.get("progress").and_then(serde_json::Value::as_f64) {
        parts.push(format!("{:.0} %", 100.0 * p));
    }
    parts.extend(["tool", "state", "error_code", "reason"].into_iter().filter_map(text).map(str::to_owned));
    let mut note = parts.join(" ");
    if let Some(m) = text("message") {
        note = if note.is_empty() { m.to_owned() } else { format!("{note}: {m}") };
    }
    if let Some(at) = text("retry_at").or(text("until")) {
        note.push_str(&format!("; again at {}", clock(at)));
    }
    printable(&note)
}

#[cfg(test)]
mod tests {
    use clap::ColorChoice;
    use unicode_width::UnicodeWidthStr;

    use super::*;

    fn event(kind: &str, status: &str, data: serde_json::Value) -> Event {
        serde_json::from_value(serde_json::json!({
            "v": 1, "job": "01JD0000000000000000000000", "gen": 1, "rev": 4, "kind": kind, "at": "2026-11-21T08:00:00.123Z",
            "queue": "default", "type": "thumbnail", "status": status, "contract": "acked", "attempt": 2, "epoch": 1,
            "data": data,
        }))
        .unwrap()
    }

    fn failed() -> Event {
        event(
            "attempt_failed",
            "retry_wait",
            serde_json::json!({"error_code": "exit_code", "message": "no such\nhost", "retry_at": "2026-11-21T08:01:00.123Z"}),
        )
    }

    #[test]
    fn notes_say_what_happened() {
        assert_eq!(note(&failed()), "exit_code: no such host; again at 08:01:00.123");
        assert_eq!(note(&event("started", "running", serde_json::Value::Null)), "attempt 2");
        let progress = event("progress", "running", serde_json::json!({"progress": 0.45, "message": "half"}));
        assert_eq!(note(&progress), "45 %: half");
        let receipt = serde_json::json!({"receipt": {"error_code": "timeout", "message": "10m"}});
        assert_eq!(note(&event("finished", "failed", receipt)), "failed timeout: 10m");
        assert_eq!(note(&event("of_tomorrow", "running", serde_json::json!({"x": 1}))), "");
    }

    #[test]
    fn lines_fit_every_terminal_and_keep_the_id() {
        let lines = || Lines::new(Screen::of_stdout(false, ColorChoice::Never));
        for width in 40..200 {
            let e = failed();
            let text = if width < NARROW { lines().narrow(&e, width) } else { lines().aligned(&e, width) };
            assert!(text.contains(&e.job) && text.contains("exit_code"), "{text}");
            assert!(text.lines().all(|l| l.width() <= width), "{width}: {text}");
        }
        assert_eq!(
            plain(&failed()),
            "2026-11-21T08:00:00.123Z attempt_failed 01JD0000000000000000000000 4 default thumbnail \
             exit_code: no such host; again at 08:01:00.123"
        );
    }
}
