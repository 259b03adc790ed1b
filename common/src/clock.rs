//! The two clocks of a process. Times that are compared across machines never come from here: due times, leases and
//! deadlines use the `TIME` of Redis inside scripts, queue age uses the stream's timestamps.

use std::time::Duration;

/// Milliseconds since boot, counting suspended time, unlike `Instant`: a worker that slept with its machine must
/// notice that its lease is over.
pub fn boot_ms() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Boot time is never negative.
    u64::try_from(t.tv_sec).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Wall-clock time of this machine, for humans and logs only.
pub fn wall_now() -> jiff::Timestamp {
    skewed(jiff::Timestamp::now())
}

/// The clock of a machine that is wrong by `SURETY_CLOCK_SKEW` (`10m`, `-10m`), in builds with fault points. There is no such
/// switch for [`boot_ms`]: boot-time clocks of two machines have nothing in common anyway, and worker and keeper share one.
#[cfg(feature = "faults")]
fn skewed(now: jiff::Timestamp) -> jiff::Timestamp {
    use std::sync::OnceLock;
    static SKEW: OnceLock<jiff::SignedDuration> = OnceLock::new();
    let skew = SKEW.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "a test's switch, never part of the configuration")]
        let text = std::env::var("SURETY_CLOCK_SKEW").unwrap_or_default();
        text.parse().unwrap_or_default()
    });
    now.checked_add(*skew).unwrap_or(now)
}

#[cfg(not(feature = "faults"))]
#[inline(always)]
fn skewed(now: jiff::Timestamp) -> jiff::Timestamp {
    now
}

/// Milliseconds of the store's or the stream's clock as RFC 3339; `None` for 0, which means "not set".
pub fn iso(ms: u64) -> Option<String> {
    if ms == 0 {
        return None;
    }
    jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok().map(|t| t.to_string())
}

/// As [`iso`], always with three digits after the second.
pub fn iso_millis(ms: u64) -> Option<String> {
    if ms == 0 {
        return None;
    }
    jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok().map(|t| format!("{t:.3}"))
}

/// Milliseconds of a time as events and documents have it (RFC 3339). `None`: it is none, or before 1970.
pub fn read_millis(at: &str) -> Option<u64> {
    at.parse::<jiff::Timestamp>().ok().and_then(|t| u64::try_from(t.as_millisecond()).ok())
}

/// The longest span that anybody may ask for: a hundred years. What is longer is a mistake, and would leave the calendar when
/// it is added to a time.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A span as people write it in configuration and documents: `90s`, `5m`, `1h 30m`, `250ms`; a hundred years at most.
pub fn parse_span(s: &str) -> Result<Duration, String> {
    let trimmed = s.trim();
    if trimmed == "0" {
        return Ok(Duration::ZERO);
    }
    let d: jiff::SignedDuration = trimmed.parse().map_err(|_| {
        format!("{s:?} is not a duration; write a number with a unit, like 250ms, 30s, 5m, 24h")
    })?;
    let d = Duration::try_from(d).map_err(|_| format!("{s:?} is negative; a duration is 0 or more"))?;
    if d > LONGEST {
        return Err(format!("{s:?} is longer than a hundred years ({}h)", LONGEST.as_secs() / 3600));
    }
    Ok(d)
}

/// A point in time as people write it in arguments: RFC 3339, with its offset from UTC.
pub fn parse_time(s: &str) -> Result<jiff::Timestamp, String> {
    s.trim().parse().map_err(|_| {
        format!(
            "{s:?} is not a point in time; write it like 2027-01-01T09:30:00Z or 2027-01-01T09:30:00+01:00"
        )
    })
}

/// The shortest form that [`parse_span`] reads back.
pub fn format_span(d: Duration) -> String {
    let ms = d.as_millis();
    match ms {
        0 => "0s".into(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

/// A span of microseconds as people read it: three digits behind the point below a minute, then the two largest units.
pub fn short_span(us: u64) -> String {
    let of = |unit: u64, name: &str| {
        let text = format!("{}.{:03}", us / unit, us % unit * 1000 / unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    let (s, m, h) = (us / 1_000_000, us / 60_000_000, us / 3_600_000_000);
    let two = |n: u64, large: &str, rest: u64, small: &str| match rest {
        0 => format!("{n}{large}"),
        _ => format!("{n}{large} {rest}{small}"),
    };
    match us {
        0 => "0s".into(),
        1..1000 => format!("{us}us"),
        1000..1_000_000 => of(1000, "ms"),
        1_000_000..60_000_000 => of(1_000_000, "s"),
        _ if m < 60 => two(m, "m", s % 60, "s"),
        _ if h < 24 => two(h, "h", m % 60, "m"),
        _ => two(h / 24, "d", h % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_span_has_the_unit_that_fits_it_and_is_never_nothing() {
        for (us, text) in [
            (0, "0s"),
            (1, "1us"),
            (16_667, "16.667ms"),
            (600_000, "600ms"),
            (1_000_000, "1s"),
            (38_749_000, "38.749s"),
            (60_000_000, "1m"),
            (61_000_000, "1m 1s"),
            (3_600_000_000, "1h"),
            ((1 << 46) - 1, "814d 10h"),
        ] {
            assert_eq!(short_span(us), text);
        }
    }

    #[test]
    fn spans_read_as_people_write_them() {
        for (text, ms) in
            [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h 30m", 5_400_000), ("0", 0), ("0s", 0)]
        {
            assert_eq!(parse_span(text).unwrap().as_millis(), ms, "{text}");
            assert_eq!(parse_span(&format_span(Duration::from_millis(ms as u64))).unwrap().as_millis(), ms);
        }
        assert_eq!(parse_span("876000h"), Ok(LONGEST));
        for bad in ["", "5", "5 parsecs", "-3s", "1d", "876000h 1ms", "2562047788015h"] {
            let e = parse_span(bad);
            assert!(e.is_err(), "{bad:?} gave {e:?}");
        }
    }
}
