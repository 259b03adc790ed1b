//! Cron expressions as nats-server reads them: six fields, the seconds first. A preview that followed other rules, and every
//! cron library has rules of its own for day fields and for days on which clocks change, would show times at which nothing
//! happens.

use std::fmt;

use jiff::{Timestamp, ToSpan, Unit, Zoned, tz::TimeZone};

/// Why an expression is no use. One line for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CronError(String);

/// What a field may hold.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    /// Names of the values from `min` on.
    names: &'static [&'static str],
}

const fn field(name: &'static str, min: u32, max: u32, names: &'static [&'static str]) -> Field {
    Field { name, min, max, names }
}

const FIELDS: [Field; 6] = [
    field("second", 0, 59, &[]),
    field("minute", 0, 59, &[]),
    field("hour", 0, 23, &[]),
    field("day of month", 1, 31, &[]),
    field(
        "month",
        1,
        12,
        &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    ),
    field("day of week", 0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// Names that stand for an expression.
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 0 1 1 *"),
    ("@annually", "0 0 0 1 1 *"),
    ("@monthly", "0 0 0 1 * *"),
    ("@weekly", "0 0 0 * * 0"),
    ("@daily", "0 0 0 * * *"),
    ("@midnight", "0 0 0 * * *"),
    ("@hourly", "0 0 * * * *"),
];

/// Years after which the server gives up looking for a match.
const YEARS: i16 = 5;

/// The values of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Values {
    bits: u64,
    /// `*` stood in it: as a day field it restricts nothing.
    is_any: bool,
}

impl Values {
    fn has(self, n: i8) -> bool {
        u32::try_from(n).is_ok_and(|n| self.bits & (1 << n) != 0)
    }
}

/// A checked expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    second: Values,
    minute: Values,
    hour: Values,
    day: Values,
    month: Values,
    weekday: Values,
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Cron {
    /// Reads an expression or a nickname such as `@daily`. The error names the field, its range and what was given.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let text = text.trim();
        let full = NICKNAMES.iter().find(|(name, _)| *name == text).map_or(text, |(_, full)| full);
        let given: Vec<&str> = full.split_ascii_whitespace().collect();
        let [second, minute, hour, day, month, weekday] = given[..] else {
            return Err(CronError(match given.len() {
                5 => format!("{text:?} has five fields; put the seconds first: \"0 {}\"", given.join(" ")),
                n => format!(
                    "{text:?} has {n} fields and needs six: second, minute, hour, day of month, month, day of week"
                ),
            }));
        };
        let [s, m, h, d, mo, w] = &FIELDS;
        Ok(Self {
            second: values(second, s)?,
            minute: values(minute, m)?,
            hour: values(hour, h)?,
            day: values(day, d)?,
            month: values(month, mo)?,
            weekday: values(weekday, w)?,
            text: text.to_owned(),
        })
    }

    /// The first firing after a time, as the server computes it. `None`: none within five years.
    ///
    /// An hour that the zone leaves out has no firing; one that it repeats has two.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = after.round(Unit::Second).ok()?.checked_add(1.second()).ok()?;
        let mut t = start.to_zoned(zone.clone());
        let last_year = t.year().saturating_add(YEARS);
        while t.year() <= last_year {
            let later = if !self.month.has(t.month()) {
                midnight(&t.first_of_month().ok()?.checked_add(1.month()).ok()?)?
            } else if !self.is_day(&t) {
                midnight(&t.tomorrow().ok()?)?
            } else if !self.hour.has(t.hour()) {
                let into = i64::from(t.minute()) * 60 + i64::from(t.second());
                t.checked_add((3600 - into).seconds()).ok()?
            } else if !self.minute.has(t.minute()) {
                t.checked_add((60 - i64::from(t.second())).seconds()).ok()?
            } else if !self.second.has(t.second()) {
                t.checked_add(1.second()).ok()?
            } else {
                return Some(t.timestamp());
            };
            t = later;
        }
        None
    }

    /// Where both day fields restrict, either may match.
    fn is_day(&self, t: &Zoned) -> bool {
        let (day, weekday) = (self.day.has(t.day()), self.weekday.has(t.weekday().to_sunday_zero_offset()));
        if self.day.is_any || self.weekday.is_any { day && weekday } else { day || weekday }
    }
}

fn midnight(t: &Zoned) -> Option<Zoned> {
    t.start_of_day().ok()
}

/// The values of a field: a list of `*`, `n`, `n-m`, each with or without `/step`.
fn values(text: &str, f: &Field) -> Result<Values, CronError> {
    let mut all = Values::default();
    for item in text.split(',') {
        let one = range(item, f).map_err(|why| CronError(format!("{}: {why}", f.name)))?;
        all.bits |= one.bits;
        all.is_any |= one.is_any;
    }
    Ok(all)
}

fn range(item: &str, f: &Field) -> Result<Values, String> {
    let (span, step) = match item.split_once('/') {
        Some((span, step)) => (span, Some(number(step)?)),
        None => (item, None),
    };
    let is_star = matches!(span, "*" | "?");
    let (from, to) = match span.split_once('-') {
        _ if is_star => (f.min, f.max),
        Some((from, to)) => (value(from, f)?, value(to, f)?),
        None => {
            let n = value(span, f)?;
            // `n/step` goes up to the end.
            (n, if step.is_some() { f.max } else { n })
        }
    };
    if from > to {
        return Err(format!("{item:?} ends before it begins"));
    }
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(format!("the step of {item:?} must be 1 or more"));
    }
    let bits = (from..=to).step_by(step as usize).fold(0, |bits, n| bits | 1 << n);
    Ok(Values { bits, is_any: is_star && step == 1 })
}

fn value(text: &str, f: &Field) -> Result<u32, String> {
    let named = (f.min..).zip(f.names).find(|(_, name)| name.eq_ignore_ascii_case(text));
    let n = match named {
        Some((n, _)) => n,
        None => number(text)?,
    };
    if (f.min..=f.max).contains(&n) {
        return Ok(n);
    }
    let hint = if f.max == 6 { " (0 is Sunday)" } else { "" };
    Err(format!("{n} is out of range {} to {}{hint}", f.min, f.max))
}

fn number(text: &str) -> Result<u32, String> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain).ok_or_else(|| {
        format!(
            "{text:?} cannot be read; use *, numbers, ranges like 1-5, steps like */10, and lists of them"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firings(cron: &str, zone: &str, after: &str, n: usize) -> Vec<String> {
        let (cron, zone) = (Cron::parse(cron).unwrap(), TimeZone::get(zone).unwrap());
        let mut t: Timestamp = after.parse().unwrap();
        let mut out = Vec::new();
        while out.len() < n {
            t = cron.next(t, &zone).unwrap();
            out.push(t.to_zoned(zone.clone()).strftime("%m-%d %a %H:%M:%S %z").to_string());
        }
        out
    }

    #[test]
    fn firings_follow_the_fields() {
        assert_eq!(
            firings("0 30 9 * * MON-FRI", "UTC", "2026-11-20T09:30:00Z", 2),
            ["11-23 Mon 09:30:00 +0000", "11-24 Tue 09:30:00 +0000"]
        );
        assert_eq!(
            firings("*/20 5,10 */12 * * ?", "UTC", "2026-11-20T00:10:30Z", 4),
            [
                "11-20 Fri 00:10:40 +0000",
                "11-20 Fri 12:05:00 +0000",
                "11-20 Fri 12:05:20 +0000",
                "11-20 Fri 12:05:40 +0000"
            ]
        );
        assert_eq!(firings("0 0 0 29 feb *", "UTC", "2026-01-01T00:00:00Z", 1), ["02-29 Tue 00:00:00 +0000"]);
        assert_eq!(firings("@hourly", "UTC", "2026-11-20T00:59:59Z", 1), ["11-20 Fri 01:00:00 +0000"]);
        // Both days restricted: either. One of them with a star: both, and a star with a step restricts.
        assert_eq!(
            firings("0 0 0 13 * FRI", "UTC", "2026-11-10T00:00:00Z", 3),
            ["11-13 Fri 00:00:00 +0000", "11-20 Fri 00:00:00 +0000", "11-27 Fri 00:00:00 +0000"]
        );
        assert_eq!(
            firings("0 0 0 */10 * FRI", "UTC", "2026-11-10T00:00:00Z", 3),
            ["11-11 Wed 00:00:00 +0000", "11-13 Fri 00:00:00 +0000", "11-20 Fri 00:00:00 +0000"]
        );
    }

    #[test]
    fn an_hour_that_is_left_out_has_no_firing_and_one_that_comes_twice_has_two() {
        assert_eq!(
            firings("0 30 2 * * *", "Europe/Vienna", "2027-03-27T00:00:00Z", 2),
            ["03-27 Sat 02:30:00 +0100", "03-29 Mon 02:30:00 +0200"]
        );
        assert_eq!(
            firings("0 30 2 * * *", "Europe/Vienna", "2026-10-24T12:00:00Z", 3),
            ["10-25 Sun 02:30:00 +0200", "10-25 Sun 02:30:00 +0100", "10-26 Mon 02:30:00 +0100"]
        );
    }

    #[test]
    fn what_the_server_would_refuse_or_never_fire_is_told() {
        for (bad, part) in [
            ("30 9 * * *", "put the seconds first: \"0 30 9 * * *\""),
            ("", "has 0 fields"),
            ("* * * * * * *", "has 7 fields"),
            ("0 0 24 * * *", "hour: 24 is out of range 0 to 23"),
            ("0 0 0 0 * *", "day of month: 0"),
            ("0 0 0 * * 7", "0 is Sunday"),
            ("0 0 0 L * *", "day of month: \"L\""),
            ("0 0 0 * * MON#2", "day of week"),
            ("0 0 5-1 * * *", "ends before it begins"),
            ("0 */0 * * * *", "minute: the step"),
            ("0 1, * * * *", "minute: \"\""),
            ("0 +5 * * * *", "minute: \"+5\""),
            ("0 0 0 * foo *", "month: \"foo\""),
            ("@never", "has 1 fields"),
        ] {
            let e = Cron::parse(bad).unwrap_err().to_string();
            assert!(e.contains(part), "{bad:?}: {e}");
        }
        let never = Cron::parse("0 0 0 30 2 *").unwrap();
        assert_eq!(never.next("2026-01-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC), None);
    }
}
