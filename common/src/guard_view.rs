//! What a guard's scope is told as, to people and to programs: pure.

use serde::Serialize;

use crate::{
    clock::{iso_millis, short_span as span},
    domain::{
        guard::{
            Gate, GuardKind,
            gate::{Phase, Trip},
        },
        pause::Pauses,
    },
    store::ScopeState,
};

/// One scope as `surety guards` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct GuardView {
    /// `rate`, `concurrency`, …
    pub kind: &'static str,
    /// Rule and value.
    pub scope: String,
    /// What it allows.
    pub limit: String,
    /// What it holds now, in words.
    pub now: String,
    /// Whether a job that asked now would have to wait.
    pub is_full: bool,
    /// Jobs that wait for it.
    pub waiting: u64,
    /// When it lets the next one start, where only time decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clears_at: Option<String>,
    /// Names the scope, for `surety guards reset`, where two are called the same.
    pub hash: String,
}

/// What a guard of this kind with these parameters allows, in words.
pub fn limit(kind: GuardKind, params: [u64; 4]) -> String {
    let [a, b, c, _] = params;
    match kind {
        GuardKind::Rate => format!("one every {}, {} at once", span(a), b / a.max(1) + 1),
        GuardKind::Concurrency => format!("{a} at once"),
        GuardKind::Lock => "one holder".into(),
        GuardKind::Loop => {
            format!("{c} jobs within {}, {a} for the same work", span(b.saturating_mul(1000)))
        }
        GuardKind::Pause => "nobody".into(),
        GuardKind::CrashLoop | GuardKind::Breaker => {
            let gate = Gate::from_params(params);
            let window = span(gate.window_ms.saturating_mul(1000));
            match gate.trip {
                Trip::Crashes { threshold, .. } => format!("{threshold} crashes in {window}"),
                Trip::Failures { per_mille, sample } => {
                    format!("{}% of {sample} or more fail in {window}", per_mille as f64 / 10.0)
                }
            }
        }
    }
}

/// [`view`], with what the broker knows of a pause: what is paused by its own name, and when that ends.
pub fn view_with(s: &ScopeState, pauses: &Pauses) -> GuardView {
    let pause = s.scope.pause().and_then(|slot| pauses.at(&slot));
    let mut v = view(s);
    if let Some(p) = pause.filter(|p| p.holds_at(s.now_ms)) {
        v.scope = p.target.to_string();
        v.clears_at = p.until_ms.and_then(iso_millis);
    }
    v
}

/// A scope in words.
pub fn view(s: &ScopeState) -> GuardView {
    let [a, b, c, _] = s.scope.params;
    let (limit, now, is_full, clears_ms) = match s.scope.kind {
        GuardKind::Rate => {
            // Behind all that started, and all that was promised a moment.
            let tats = ["tat", "late", "book"].into_iter();
            let tat = tats.filter_map(|t| s.fields.get(t)?.parse::<u64>().ok()).max().unwrap_or(0);
            let now_us = s.now_ms.saturating_mul(1000);
            let ahead = tat.saturating_sub(now_us);
            let burst = b / a.max(1) + 1;
            let free = if ahead > b { 0 } else { (b - ahead) / a.max(1) + 1 };
            let now = if free > 0 {
                format!("{} of {burst} may start at once", free.min(burst))
            } else {
                format!("the next free slot is in {}", span(ms_up(ahead - b) * 1000))
            };
            let clears = (free == 0).then(|| s.now_ms + ms_up(ahead - b));
            (limit(s.scope.kind, s.scope.params), now, free == 0, clears)
        }
        GuardKind::Concurrency | GuardKind::Lock => {
            (limit(s.scope.kind, s.scope.params), format!("{} held", s.held), s.held >= a, None)
        }
        GuardKind::CrashLoop | GuardKind::Breaker => gate(s),
        GuardKind::Loop => {
            let since = s.fields.get("since").and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
            let ends_ms = since.saturating_add(b);
            let is_on = ends_ms > s.now_ms;
            let (n, same) = if is_on { (s.waiting, s.repeats) } else { (0, 0) };
            let mut now = format!("{n} jobs counted");
            if same >= a {
                now = format!("{now}, {same} of them for the same work");
            }
            (limit(s.scope.kind, s.scope.params), now, n >= c || same >= a, (n > 0).then_some(ends_ms))
        }
        // It is no rule with a limit: what is in line here is let go when the pause is over.
        GuardKind::Pause => (limit(s.scope.kind, s.scope.params), "paused".into(), s.waiting > 0, None),
    };
    GuardView {
        kind: s.scope.kind.name(),
        scope: s.scope.label.clone(),
        limit,
        now,
        is_full,
        // Who a loop guard has counted waits for nothing.
        waiting: if s.scope.kind == GuardKind::Loop { 0 } else { s.waiting },
        clears_at: clears_ms.and_then(iso_millis),
        hash: s.scope.hash.clone(),
    }
}

/// A crash-loop guard or breaker.
fn gate(s: &ScopeState) -> (String, String, bool, Option<u64>) {
    let gate = Gate::from_params(s.scope.params);
    let number = |key: &str| s.fields.get(key).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    let level = u32::try_from(number("level")).unwrap_or(u32::MAX);
    let until_ms = number("until");
    let (now, is_full, clears) = match Phase::at(until_ms, level, s.now_ms) {
        Phase::Closed => ("closed: everybody starts".to_owned(), false, None),
        Phase::Open => (format!("open: nobody starts (time {level} in a row)"), true, Some(until_ms)),
        Phase::HalfOpen => {
            let n = number("probing");
            (format!("half-open: {n} of {} probes under way", gate.probes), n >= gate.probes, None)
        }
    };
    (limit(s.scope.kind, s.scope.params), now, is_full, clears)
}

fn ms_up(us: u64) -> u64 {
    us.div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::pause::{Pause, Target},
        store::Scope,
    };

    fn state(kind: GuardKind, params: [u64; 4], tat_us: u64, held: u64) -> ScopeState {
        ScopeState {
            scope: Scope::new(kind, "api", "acme", params),
            partition: 0,
            now_ms: 10_000,
            fields: [("tat".to_owned(), tat_us.to_string())].into(),
            held,
            waiting: 3,
            repeats: 0,
        }
    }

    #[test]
    fn a_rate_limit_tells_what_is_left_of_its_burst_or_when_the_next_slot_is() {
        let of = |tat| view(&state(GuardKind::Rate, [1_000_000, 4_000_000, 0, 0], tat, 0));
        let idle = of(0);
        assert_eq!(
            (idle.limit.as_str(), idle.now.as_str()),
            ("one every 1s, 5 at once", "5 of 5 may start at once")
        );
        assert_eq!(of(12_000_000).now, "3 of 5 may start at once");
        let mut booked = state(GuardKind::Rate, [1_000_000, 4_000_000, 0, 0], 12_000_000, 0);
        booked.fields.insert("book".into(), "16500000".into());
        assert_eq!(view(&booked), of(16_500_000), "what was promised comes first");
        let full = of(16_500_000);
        assert_eq!((full.now.as_str(), full.is_full), ("the next free slot is in 2.5s", true));
        assert_eq!(full.clears_at.as_deref(), Some("1970-01-01T00:00:12.500Z"));
    }

    #[test]
    fn a_gate_tells_whether_it_is_open_until_when_and_how_many_probes_there_are() {
        let trip = Trip::Failures { per_mille: 500, sample: 20 };
        let rule =
            Gate { trip, window_ms: 60_000, first_ms: 30_000, longest_ms: 600_000, probes: 2, offer_s: 5 };
        let of = |until: u64, level: u32, probing: u32| {
            let fields = [
                ("until", until.to_string()),
                ("level", level.to_string()),
                ("probing", probing.to_string()),
            ];
            let fields = fields.map(|(k, v)| (k.to_owned(), v)).into();
            view(&ScopeState { fields, ..state(GuardKind::Breaker, rule.params(), 0, 0) })
        };
        let open = of(12_000, 3, 0);
        assert_eq!(open.limit, "50% of 20 or more fail in 1m");
        assert_eq!((open.now.as_str(), open.is_full), ("open: nobody starts (time 3 in a row)", true));
        assert_eq!(open.clears_at.as_deref(), Some("1970-01-01T00:00:12.000Z"));
        assert_eq!(
            (of(9_000, 3, 1).now.as_str(), of(9_000, 3, 1).is_full),
            ("half-open: 1 of 2 probes under way", false)
        );
        assert_eq!((of(0, 0, 0).now.as_str(), of(0, 0, 0).is_full), ("closed: everybody starts", false));
    }

    #[test]
    fn a_root_tells_how_many_of_its_jobs_were_counted_and_until_when() {
        let mut s = state(GuardKind::Loop, [50, 60_000, 3, 0], 0, 2);
        s.fields.insert("since".into(), "5000".into());
        let v = view(&s);
        assert_eq!(
            (v.limit.as_str(), v.now.as_str(), v.is_full, v.waiting),
            ("3 jobs within 1m, 50 for the same work", "3 jobs counted", true, 0)
        );
        assert_eq!(v.clears_at.as_deref(), Some("1970-01-01T00:01:05.000Z"));
        // Full of the same work, long before there are too many.
        s.scope.params = [3, 60_000, 1000, 0];
        assert!(!view(&s).is_full);
        s.repeats = 3;
        assert_eq!(
            (view(&s).now.as_str(), view(&s).is_full),
            ("3 jobs counted, 3 of them for the same work", true)
        );
        s.now_ms = 65_000;
        assert_eq!((view(&s).now.as_str(), view(&s).is_full), ("0 jobs counted", false));
    }

    #[test]
    fn a_pause_is_told_by_what_is_paused_and_with_its_end() {
        let target = Target::key("acme/site").unwrap();
        let slot = target.slot();
        let scope = Scope::of_pause(&slot);
        let s = ScopeState { scope, ..state(GuardKind::Pause, [0; 4], 0, 0) };
        let (reason, by) = (None, "ann".to_owned());
        let mut pauses = Pauses::default();
        pauses.put(slot.clone(), Pause { target, reason, by, at_ms: 1, until_ms: Some(20_000) });
        let v = view_with(&s, &pauses);
        assert_eq!(v.scope, "key \"acme/site\"");
        assert_eq!(v.clears_at.as_deref(), Some("1970-01-01T00:00:20.000Z"));
        assert_eq!(view_with(&s, &Pauses::default()).scope, slot.to_string(), "nobody knows it any more");
    }

    #[test]
    fn slots_tell_how_many_are_held() {
        let v = view(&state(GuardKind::Concurrency, [2, 5000, 0, 0], 0, 2));
        assert_eq!(
            (v.limit.as_str(), v.now.as_str(), v.is_full, v.waiting),
            ("2 at once", "2 held", true, 3)
        );
        assert_eq!((v.kind, v.scope.as_str()), ("concurrency", "api: acme"));
    }
}
