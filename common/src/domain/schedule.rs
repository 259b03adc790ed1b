//! When a schedule fires: what its headers say, and the times that follow.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Unit, tz::TimeZone};

use super::{
    cron::{Cron, CronError},
    text,
};

/// Shortest interval that the server takes.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Last moment that the server can tell, in seconds of Unix time (2262-04-11T23:47:16Z): it counts nanoseconds in 64 bits. A schedule
/// for later fires at once.
const LAST_SECOND: i64 = i64::MAX / 1_000_000_000;

/// Checks that the server can wait for a moment.
pub fn reachable(at: Timestamp) -> Result<Timestamp, WhenError> {
    if at.as_second() < LAST_SECOND {
        return Ok(at);
    }
    let last = Timestamp::from_second(LAST_SECOND).map(|t| t.to_string()).unwrap_or_default();
    Err(WhenError::Other(format!(
        "{at} is too far away: NATS counts time until {last}, and would fire at once"
    )))
}

/// When a schedule fires.
#[derive(Debug, Clone, PartialEq)]
pub enum When {
    /// Once.
    At(Timestamp),
    /// Again and again with this pause, at least [`SHORTEST`].
    Every(Duration),
    /// Whenever the clock of this zone matches. `zone` is `None` for UTC.
    Cron { cron: Cron, zone: Option<TimeZone> },
}

/// Why a schedule is no use. One line for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    #[error("cron {0}")]
    Cron(#[from] CronError),
    #[error("{0}")]
    Other(String),
}

impl When {
    /// An interval.
    pub fn every(pause: Duration) -> Result<Self, WhenError> {
        if pause < SHORTEST {
            return Err(WhenError::Other(format!("every {pause:?} is too often; the shortest is 1s")));
        }
        Ok(Self::Every(pause))
    }

    /// A cron expression in a zone, an IANA name.
    pub fn cron(text: &str, zone: Option<&str>) -> Result<Self, WhenError> {
        Ok(Self::Cron { cron: Cron::parse(text)?, zone: zone.map(time_zone).transpose()? })
    }

    /// Reads the headers of a schedule.
    pub fn read(pattern: &str, zone: Option<&str>) -> Result<Self, WhenError> {
        let other = |e: &dyn std::fmt::Display| WhenError::Other(format!("{pattern:?}: {e}"));
        if let Some(t) = pattern.strip_prefix("@at ") {
            return reachable(t.parse().map_err(|e| other(&e))?).map(Self::At);
        }
        if let Some(d) = pattern.strip_prefix("@every ") {
            let pause: SignedDuration = d.parse().map_err(|e| other(&e))?;
            return Self::every(Duration::try_from(pause).map_err(|e| other(&e))?);
        }
        Self::cron(pattern, zone)
    }

    /// What its header says.
    pub fn pattern(&self) -> String {
        match self {
            Self::At(t) => format!("@at {t}"),
            Self::Every(d) if d.subsec_nanos() == 0 => format!("@every {}s", d.as_secs()),
            Self::Every(d) => format!("@every {}ms", d.as_millis()),
            Self::Cron { cron, .. } => cron.to_string(),
        }
    }

    /// The name of its zone, where it has one.
    pub fn zone(&self) -> Option<&str> {
        match self {
            Self::Cron { zone: Some(z), .. } => z.iana_name(),
            _ => None,
        }
    }

    /// Whether it fires again and again.
    pub fn is_recurring(&self) -> bool {
        !matches!(self, Self::At(_))
    }

    /// The next firings after a time, at most `n`. `stored`: when the schedule was stored, from where intervals count; after
    /// an outage of the server longer than an interval they count from its return, which nobody can tell.
    pub fn next(&self, stored: Timestamp, after: Timestamp, n: usize) -> Vec<Timestamp> {
        let mut out = Vec::new();
        match self {
            Self::At(t) => out.extend(Some(*t).filter(|t| *t > after && n > 0)),
            Self::Every(pause) => {
                let mut next = first_of(stored, after, *pause);
                while let Some(t) = next.filter(|_| out.len() < n) {
                    out.push(t);
                    next = t.checked_add(*pause).ok();
                }
            }
            Self::Cron { cron, zone } => {
                let zone = zone.clone().unwrap_or(TimeZone::UTC);
                let mut t = after;
                while let Some(next) = Some(t).filter(|_| out.len() < n).and_then(|t| cron.next(t, &zone)) {
                    out.push(next);
                    t = next;
                }
            }
        }
        out
    }
}

/// The first firing of an interval after a time.
fn first_of(stored: Timestamp, after: Timestamp, pause: Duration) -> Option<Timestamp> {
    let stored = stored.round(Unit::Second).ok()?;
    let passed = u128::try_from(after.duration_since(stored).as_nanos()).unwrap_or(0);
    let n = passed.checked_div(pause.as_nanos())? + 1;
    let nanos = i128::try_from(n.checked_mul(pause.as_nanos())?).ok()?;
    stored.checked_add(SignedDuration::try_from_nanos_i128(nanos)?).ok()
}

/// A zone by its IANA name. The error names the nearest.
fn time_zone(name: &str) -> Result<TimeZone, WhenError> {
    TimeZone::get(name).map_err(|_| {
        let known: Vec<String> = jiff::tz::db().available().map(|n| n.to_string()).collect();
        let hint = text::nearest(name, known.iter().map(String::as_str))
            .map(|n| format!("; did you mean {n:?}?"))
            .unwrap_or_else(|| "; use a name like Europe/Vienna".into());
        WhenError::Other(format!("time zone {name:?} is not known{hint}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn headers_are_read_back_as_they_were_written() {
        for (pattern, zone) in [
            ("@at 2027-01-01T00:00:00.25Z", None),
            ("@every 90s", None),
            ("@every 1500ms", None),
            ("0 30 9 * * *", Some("Europe/Vienna")),
            ("@daily", None),
        ] {
            let when = When::read(pattern, zone).unwrap();
            assert_eq!((when.pattern().as_str(), when.zone()), (pattern, zone));
        }
        // As other clients write them.
        assert_eq!(When::read("@every 1h30m0s", None).unwrap(), When::Every(Duration::from_secs(5400)));
        assert_eq!(
            When::read("@at 2027-01-01T02:00:00+02:00", None).unwrap(),
            When::At(t("2027-01-01T00:00:00Z"))
        );
    }

    #[test]
    fn intervals_count_from_when_the_schedule_was_stored() {
        let every = When::every(Duration::from_secs(300)).unwrap();
        let next = every.next(t("2026-11-20T10:00:00.4Z"), t("2026-11-20T10:07:00Z"), 2);
        assert_eq!(next, [t("2026-11-20T10:10:00Z"), t("2026-11-20T10:15:00Z")]);
        let next = every.next(t("2026-11-20T10:00:00Z"), t("2026-11-20T09:00:00Z"), 1);
        assert_eq!(next, [t("2026-11-20T10:05:00Z")]);
        let once = When::At(t("2026-11-20T10:00:00Z"));
        assert!(once.next(t("2026-11-20T09:00:00Z"), t("2026-11-20T10:00:00Z"), 5).is_empty());
    }

    #[test]
    fn what_cannot_be_is_told_with_the_nearest_name() {
        let said = |e: Result<When, WhenError>| e.unwrap_err().to_string();
        assert!(said(When::every(Duration::from_millis(999))).contains("the shortest is 1s"));
        let text = said(When::cron("0 0 0 * * *", Some("Europe/Viena")));
        assert!(text.contains("did you mean \"Europe/Vienna\""), "{text}");
        let text = said(When::cron("0 0 0 * * *", Some("+02:00")));
        assert!(text.contains("\"+02:00\" is not known"), "{text}");
        assert!(said(When::read("@at tomorrow", None)).contains("@at tomorrow"));
    }
}
