//! The NATS server itself.

use super::{
    Finding,
    checks::{CLOCKS, DISK, JETSTREAM_OFF, MAX_PAYLOAD, NATS_VERSION, STORAGE},
    facts::{Disk, NatsFacts, Offset},
};

/// Oldest nats-server that keeps the promises.
pub(super) const OLDEST: (u32, u32, u32) = (2, 14, 2);
/// From this one on nothing is left to wish for.
const RECOMMENDED: (u32, u32, u32) = (2, 15, 0);

/// Smallest `max_payload` with which every outcome can be told: a result of 256 KiB, output tails of 64 KiB, and what else an event
/// and a receipt have, in one message.
const LEAST_PAYLOAD: usize = 512 * 1024;

/// What servers do that are older than a version. The issues are those of nats-io/nats-server.
const KNOWN_LOSSES: &[((u32, u32, u32), &str)] = &[
    ((2, 10, 0), "ignores all filters of a consumer but one, in silence"),
    ((2, 12, 0), "ignores schedules and limits of time per message, in silence"),
    ((2, 12, 5), "loses messages of a replicated work queue at their last delivery (#7817)"),
    ((2, 12, 7), "has consumers that stop to deliver after a restart (#7984)"),
    ((2, 14, 2), "is not what this release was tested with"),
];

/// Major, minor, patch; what is not a number counts as 0.
pub(super) fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.trim_start_matches('v').split(['.', '-', '+']).map(|p| p.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

pub(super) fn nats(n: &NatsFacts, out: &mut Vec<Finding>) {
    let place = format!("nats-server {} at {}", n.version, n.url);
    let have = version(&n.version);
    if have < OLDEST {
        let (a, b, c) = OLDEST;
        let known = KNOWN_LOSSES.iter().find(|(fixed, _)| have < *fixed);
        let does = known.map_or("is not what this release was tested with", |(_, does)| does);
        out.push(NATS_VERSION.refuse(
            &place,
            format!("it is too old and {does}"),
            format!(
                "{a}.{b}.{c} or newer is needed (2.15 recommended; Debian's package is too old, \
                 `scripts/install-servers` gets a new one)"
            ),
        ));
    } else if have < RECOMMENDED {
        out.push(NATS_VERSION.note(
            &place,
            "it is new enough; 2.15 is recommended",
            "upgrade it when convenient",
        ));
    }
    if !n.has_jetstream {
        let fix = "start it with `-js` or a `jetstream {}` block";
        out.push(JETSTREAM_OFF.refuse(&place, "it runs without JetStream", fix));
    }
    if n.max_payload < LEAST_PAYLOAD {
        let what = format!(
            "it takes messages of {} bytes at most, and the outcome of a job may have {LEAST_PAYLOAD}: it would never be told",
            n.max_payload
        );
        out.push(MAX_PAYLOAD.refuse(&place, what, "raise `max_payload` to 1MB, its default"));
    }
    if let Ok(s) = n.account
        && let Some(limit) = s.limit.filter(|l| *l > 0)
    {
        let percent = s.used.saturating_mul(100) / limit;
        let what = format!("{percent} % of the account's file storage is used ({} of {limit} bytes)", s.used);
        let fix = "raise the account's `max_file`, shorten `layout.events_age` or `layout.dlq_age`, or `surety dlq purge`";
        match percent {
            95.. => {
                out.push(STORAGE.must_fix(&place, what + "; when it is full, publishes are refused", fix))
            }
            80..95 => out.push(STORAGE.warn(&place, what, fix)),
            _ => {}
        }
    }
    if let Ok(m) = &n.monitor
        && let Some(d) = &m.disk
    {
        disk(d, out);
    }
}

/// Free space that is enough on any file system: a tenth of a large one is a lot.
const ENOUGH_FREE: u64 = 20 << 30;

/// A file system that fills up.
pub(super) fn disk(d: &Disk, out: &mut Vec<Finding>) {
    let used = 100 - d.free.saturating_mul(100) / d.total.max(1);
    let place = format!("file system of {}", d.path);
    let what =
        format!("it is full by {used} % ({} MiB are left) and has the data of {}", d.free >> 20, d.owner);
    let fix = "make room, or move the data";
    match used {
        _ if d.free >= ENOUGH_FREE => {}
        97.. => out.push(DISK.must_fix(&place, what, fix)),
        90..97 => out.push(DISK.warn(&place, what, fix)),
        _ => {}
    }
}

/// Most that two clocks may differ.
const SKEW_MS: i64 = 2000;

/// Compares three clocks by their offsets from this host's.
pub(super) fn clocks(nats: Option<Offset>, redis: Option<Offset>, out: &mut Vec<Finding>) {
    let fix = "run a time service (chrony, systemd-timesyncd) on both hosts";
    let mut compare = |place: &str, a: Offset, b: Offset, follows: &str| {
        let (apart, within) = ((a.ms - b.ms).abs(), a.within_ms + b.within_ms);
        if apart - within > SKEW_MS {
            out.push(CLOCKS.warn(
                place,
                format!("their clocks differ by {apart} ms (±{within}): {follows}"),
                fix,
            ));
        }
    };
    let here = Offset { ms: 0, within_ms: 0 };
    if let (Some(n), Some(r)) = (nats, redis) {
        compare("NATS and Redis", n, r, "deadlines that begin with a publish are off by as much");
    }
    if let Some(r) = redis {
        compare(
            "this host and Redis",
            here,
            r,
            "times in logs, and `expires_at` written here, are off by as much",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Severity, *};

    fn server(version: &str) -> NatsFacts {
        NatsFacts {
            max_payload: 1 << 20,
            reaper_answers: Ok(true),
            url: "nats://a".into(),
            version: version.into(),
            has_jetstream: true,
            layout: None,
            account: Err("not asked".into()),
            publish: Ok(None),
            needs: vec![],
            monitor: Err("not asked".into()),
            clock: None,
        }
    }

    fn judged(n: &NatsFacts) -> Vec<Finding> {
        let mut out = Vec::new();
        nats(n, &mut out);
        out
    }

    #[test]
    fn versions_that_lose_messages_are_refused_with_what_they_do() {
        for (v, part) in [
            ("2.9.10", "filters"),
            ("2.12.4", "#7817"),
            ("2.12.6", "#7984"),
            ("2.14.1", "not what this release was tested with"),
            ("2.14.0-preview.1", "tested"),
            ("garbage", "filters"),
        ] {
            let found = judged(&server(v));
            assert!(found[0].refuses_start && found[0].what.contains(part), "{v}: {found:?}");
            assert!(found[0].fix.contains("2.14.2 or newer") && found[0].place.contains(v), "{found:?}");
        }
        for v in ["2.14.2", "2.14.5"] {
            let found = judged(&server(v));
            assert_eq!((found.len(), found[0].severity, found[0].refuses_start), (1, Severity::Note, false));
        }
        for v in ["2.15.0", "2.15.1-beta.1", "3.0.0", "v2.16.0"] {
            assert_eq!(judged(&server(v)), [], "{v}");
        }
        let off = NatsFacts { has_jetstream: false, ..server("2.15.1") };
        assert!(judged(&off)[0].refuses_start && judged(&off)[0].fix.contains("`-js`"));
    }

    #[test]
    fn storage_and_disks_are_told_before_they_are_full() {
        let with = |used, limit| {
            let account = Ok(super::super::facts::Storage { used, limit });
            judged(&NatsFacts { account, ..server("2.15.1") }).first().map(|f| f.severity)
        };
        assert_eq!(with(79, Some(100)), None);
        assert_eq!(with(80, Some(100)), Some(Severity::Warning));
        assert_eq!(with(95, Some(100)), Some(Severity::MustFix));
        assert_eq!(with(95, None), None);
        let on = |free| {
            let mut out = Vec::new();
            disk(&Disk { path: "/data".into(), owner: "Redis", free, total: 100 }, &mut out);
            out.first().map(|f| f.severity)
        };
        assert_eq!((on(11), on(10), on(3)), (None, Some(Severity::Warning), Some(Severity::MustFix)));
        let mut out = Vec::new();
        let large = Disk { path: "/data".into(), owner: "Redis", free: 20 << 30, total: 1 << 50 };
        disk(&large, &mut out);
        assert_eq!(out, []);
    }

    // Shows: X-01
    #[test]
    fn clocks_that_differ_by_more_than_the_answers_took_are_told() {
        let judged = |n: Option<(i64, i64)>, r: Option<(i64, i64)>| {
            let offset = |o: Option<(i64, i64)>| o.map(|(ms, within_ms)| Offset { ms, within_ms });
            let mut out = Vec::new();
            clocks(offset(n), offset(r), &mut out);
            out.iter().map(|f| f.place.clone()).collect::<Vec<_>>()
        };
        assert_eq!(judged(Some((1500, 0)), Some((-400, 0))), [""; 0]);
        assert_eq!(judged(Some((1500, 0)), Some((-600, 0))), ["NATS and Redis"]);
        assert_eq!(judged(Some((1500, 80)), Some((-600, 80))), [""; 0], "within what cannot be told");
        assert_eq!(judged(Some((60_000, 5)), Some((60_000, 5))), ["this host and Redis"]);
        assert_eq!(judged(Some((60_000, 5)), None), [""; 0]);
    }
}
