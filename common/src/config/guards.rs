//! `[guards.<kind>.<name>]`: rules that may defer a start.

use std::time::Duration;

use super::value::{Count, Setting, Share};
use crate::{
    clock::short_span,
    domain::{
        Job, QueueName, TypeName,
        guard::{Gate, GuardKind, Rate, Template, gate::Trip},
        text,
    },
    guard_view,
};

/// Most starts, or slots, of one rule.
type Limit = Count<1_000_000>;

/// What a rule limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    Rate(Rate),
    /// Attempts at once.
    Concurrency(u64),
    /// Suppression of what crashes or fails. How long an offer stands is said by `guards.offer`.
    Gate(Gate),
}

/// One guard rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardRule {
    pub name: String,
    pub limits: Limits,
    /// For what it is kept: each value of this has limits of its own.
    pub scope: Template,
    /// The types that it is for; empty: all.
    pub types: Vec<TypeName>,
    /// The queues that it is for; empty: all.
    pub queues: Vec<QueueName>,
}

impl GuardRule {
    /// Whether it is for a job, as far as its type and queue tell.
    pub fn is_for(&self, job: &Job) -> bool {
        (self.types.is_empty() || self.types.contains(&job.kind))
            && (self.queues.is_empty() || self.queues.contains(&job.queue))
    }

    /// What kind of guard it is.
    pub fn kind(&self) -> GuardKind {
        match self.limits {
            Limits::Rate(_) => GuardKind::Rate,
            Limits::Concurrency(_) => GuardKind::Concurrency,
            Limits::Gate(Gate { trip: Trip::Crashes { .. }, .. }) => GuardKind::CrashLoop,
            Limits::Gate(Gate { trip: Trip::Failures { .. }, .. }) => GuardKind::Breaker,
        }
    }

    /// What it allows, in the words of `surety guards`.
    pub fn text(&self) -> String {
        match self.limits {
            Limits::Rate(r) => guard_view::limit(GuardKind::Rate, [r.interval_us, r.tolerance_us, 0, 0]),
            Limits::Concurrency(n) => guard_view::limit(GuardKind::Concurrency, [n, 0, 0, 0]),
            Limits::Gate(g) => {
                let opens = [g.first_ms, g.longest_ms].map(|ms| short_span(ms.saturating_mul(1000)));
                let [first, longest] = opens;
                format!("{}; open for {first} to {longest}", guard_view::limit(self.kind(), g.params()))
            }
        }
    }
}

/// One key of a rule's table, for the reader and for the documentation.
pub(super) struct RuleRow {
    pub(super) kinds: &'static [&'static str],
    pub(super) key: &'static str,
    pub(super) kind: &'static str,
    /// What holds when the key is absent.
    pub(super) absent: &'static str,
    pub(super) meaning: &'static str,
}

/// The kinds of rules, as they stand in `[guards.<kind>.<name>]`.
pub(super) const KINDS: &[&str] = &["rate", "concurrency", "breaker", "crash_loop"];
const ALL: &[&str] = KINDS;

/// Every key. What is not in it is refused.
pub(super) const ROWS: &[RuleRow] = &[
    RuleRow {
        kinds: ALL,
        key: "scope",
        kind: "template",
        absent: "refused: it is required",
        meaning: "For what it is kept: each value has limits of its own. Text with `{queue}`, `{type}`, `{key}`, `{meta.NAME}` and `{payload.NAME}` in it; a job that lacks what it names is not guarded by it.",
    },
    RuleRow {
        kinds: ALL,
        key: "types",
        kind: "list",
        absent: "all types",
        meaning: "The types of jobs that it is for.",
    },
    RuleRow {
        kinds: ALL,
        key: "queues",
        kind: "list",
        absent: "all queues",
        meaning: "The queues that it is for.",
    },
    RuleRow {
        kinds: &["rate", "concurrency"],
        key: "limit",
        kind: "number",
        absent: "refused: it is required",
        meaning: "Starts per `per`; of a concurrency rule: attempts at once.",
    },
    RuleRow {
        kinds: &["rate"],
        key: "per",
        kind: "duration",
        absent: "`1s`",
        meaning: "The time that `limit` is for.",
    },
    RuleRow {
        kinds: &["rate"],
        key: "burst",
        kind: "number",
        absent: "`limit`",
        meaning: "Starts that may come at once after a pause; 1 spaces all of them evenly.",
    },
    RuleRow {
        kinds: &["breaker"],
        key: "failures",
        kind: "share",
        absent: "`\"50%\"`",
        meaning: "The share of attempts in the window that failed or crashed from which on nobody starts.",
    },
    RuleRow {
        kinds: &["breaker"],
        key: "sample",
        kind: "number",
        absent: "`20`",
        meaning: "Attempts that must have ended in the window before their share of failures says anything.",
    },
    RuleRow {
        kinds: &["crash_loop"],
        key: "threshold",
        kind: "number",
        absent: "`5`",
        meaning: "Abnormal ends (crash, out of memory, lost, start failure) in the window, with no other end among them, from which on nobody starts.",
    },
    RuleRow {
        kinds: GATES,
        key: "window",
        kind: "duration",
        absent: "`1m`; of a crash loop `5m`",
        meaning: "The time that is counted, in ten steps.",
    },
    RuleRow {
        kinds: GATES,
        key: "open",
        kind: "duration",
        absent: "`30s`; of a crash loop `10s`",
        meaning: "How long nobody starts the first time, before probes do; twice as long after each probe that fails.",
    },
    RuleRow {
        kinds: GATES,
        key: "longest",
        kind: "duration",
        absent: "`10m`",
        meaning: "How long that may become at most.",
    },
    RuleRow {
        kinds: &["breaker"],
        key: "probes",
        kind: "number",
        absent: "`1`",
        meaning: "Probes at once; the first that ends decides. A crash loop has one.",
    },
];

/// The kinds that are gates.
const GATES: &[&str] = &["breaker", "crash_loop"];

/// Reads one rule; every problem is added to `problems`.
pub(super) fn read(
    kind: &str,
    name: &str,
    value: &toml::Value,
    problems: &mut Vec<String>,
) -> Option<GuardRule> {
    let at = format!("guards.{kind}.{name}");
    let before = problems.len();
    if let Err(e) = TypeName::new(name) {
        problems.push(format!("{at}: {}", e.to_string().replacen("type", "the name of a rule", 1)));
    }
    let Some(table) = value.as_table() else {
        problems.push(format!("{at}: must be a table with a `scope`"));
        return None;
    };
    let keys = || ROWS.iter().filter(|r| r.kinds.contains(&kind)).map(|r| r.key);
    for key in table.keys() {
        if !keys().any(|k| k == key) {
            let hint = text::nearest(key, keys()).map_or_else(
                || format!("known: {}", keys().collect::<Vec<_>>().join(", ")),
                |n| format!("did you mean {n:?}?"),
            );
            problems.push(format!("{at}.{key}: unknown setting; {hint}"));
        }
    }
    let mut reader = Reader { at, table, problems };
    let scope = reader.scope();
    let types = reader.names("types", |s| TypeName::new(s).map_err(|e| e.to_string()));
    let queues = reader.names("queues", |s| QueueName::new(s).map_err(|e| e.to_string()));
    let limits = match kind {
        "rate" => {
            let limit = reader.required::<Limit>("limit", "100");
            let per = reader.value::<Duration>("per").unwrap_or(Duration::from_secs(1));
            let burst = reader.value::<Limit>("burst");
            let rate = limit.map(|l| Rate::new(l.0, per, burst.map_or(l.0, |b| b.0)));
            if let Some(rate) = rate {
                reader.fits(rate);
            }
            rate.map(Limits::Rate)
        }
        "breaker" => Some(Limits::Gate(reader.breaker())),
        "crash_loop" => Some(Limits::Gate(reader.crash_loop())),
        _ => reader.required::<Limit>("limit", "4").map(|l| Limits::Concurrency(l.0)),
    };
    if reader.problems.len() > before {
        return None;
    }
    Some(GuardRule { name: name.to_owned(), limits: limits?, scope: scope?, types, queues })
}

struct Reader<'a> {
    at: String,
    table: &'a toml::Table,
    problems: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn note(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.problems.push(format!("{}.{key}: {problem}", self.at));
    }

    fn value<T: Setting>(&mut self, key: &str) -> Option<T> {
        match T::read(self.table.get(key)?) {
            Ok(v) => v,
            Err(e) => {
                self.note(key, e);
                None
            }
        }
    }

    fn required<T: Setting>(&mut self, key: &str, example: &str) -> Option<T> {
        if !self.table.contains_key(key) {
            self.note(key, format_args!("it is required, such as `{key} = {example}`"));
        }
        self.value(key)
    }

    /// What the store can count with.
    fn fits(&mut self, rate: Rate) {
        let longest = short_span(Rate::LONGEST_US);
        if rate.interval_us > Rate::LONGEST_US {
            let is = short_span(rate.interval_us);
            self.note("per", format_args!("that is one start every {is}; the longest interval is {longest}"));
        } else if rate.tolerance_us > Rate::LONGEST_US {
            let is = short_span(rate.tolerance_us);
            self.note("burst", format_args!("that many take {is} at the rate; the longest is {longest}"));
        }
    }

    fn scope(&mut self) -> Option<Template> {
        let written = self.required::<String>("scope", "\"{key}\"")?;
        Template::new(&written).map_err(|e| self.note("scope", e)).ok()
    }

    fn breaker(&mut self) -> Gate {
        let per_mille = self.value::<Share>("failures").map_or(500, |s| s.0);
        let sample = self.value::<Count<100_000>>("sample").map_or(20, |n| n.0);
        let probes = self.value::<Count<100>>("probes").map_or(1, |n| n.0);
        self.gate(
            Trip::Failures { per_mille, sample },
            probes,
            Duration::from_secs(60),
            Duration::from_secs(30),
        )
    }

    fn crash_loop(&mut self) -> Gate {
        let threshold = self.value::<Count<100_000>>("threshold").map_or(5, |n| n.0);
        let trip = Trip::Crashes { threshold, is_shared: false };
        self.gate(trip, 1, Duration::from_secs(300), Duration::from_secs(10))
    }

    /// `window` and `open`: where the rule says nothing.
    fn gate(&mut self, trip: Trip, probes: u64, window: Duration, open: Duration) -> Gate {
        let window = self.value("window").unwrap_or(window);
        let open = self.value("open").unwrap_or(open);
        let longest = self.value("longest").unwrap_or(Duration::from_secs(600));
        if self.table.contains_key("longest") && longest < open {
            self.note("longest", "it is shorter than `open`");
        }
        Gate::new(trip, window, open, longest, probes)
    }

    fn names<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let all: Vec<String> = self.value(key).unwrap_or_default();
        let mut out = Vec::with_capacity(all.len());
        for name in &all {
            match read(name) {
                Ok(n) => out.push(n),
                Err(e) => self.note(key, e),
            }
        }
        out
    }
}

/// A value to show in the documentation.
pub(super) const EXAMPLE: &str = r#"# At most 100 calls a minute for each workspace, 10 of them at once.
[guards.rate.api]
scope = "{meta.workspace}"
types = ["scrape"]
limit = 100
per = "1m"
burst = 10

# At most four builds of one repository at once.
[guards.concurrency.repo]
scope = "{payload.repo}"
limit = 4

# A host of which half of the calls fail is left alone for a while.
[guards.breaker.host]
scope = "{payload.host}"
types = ["scrape"]
failures = "50%"
open = "1m"

# A repository whose builds crash again and again does not stop those of others.
[guards.crash_loop.repo]
scope = "{payload.repo}"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, Settings, load_text};

    fn load(text: &str) -> Result<Settings, ConfigError> {
        load_text(Some((text, "test")), &|_| None, &vec![])
    }

    #[test]
    fn rules_are_read_and_the_example_of_the_documentation_is_one() {
        let s = load(EXAMPLE).unwrap();
        let [breaker, repo, crash, api] = s.guard_rules.as_slice() else { panic!("{:?}", s.guard_rules) };
        assert_eq!((api.name.as_str(), api.kind()), ("api", GuardKind::Rate));
        assert_eq!(api.limits, Limits::Rate(Rate { interval_us: 600_000, tolerance_us: 5_400_000 }));
        assert_eq!(
            (repo.scope.to_string().as_str(), repo.limits),
            ("{payload.repo}", Limits::Concurrency(4))
        );
        let ms = Duration::from_millis;
        let trip = Trip::Failures { per_mille: 500, sample: 20 };
        let gate = Gate::new(trip, ms(60_000), ms(60_000), ms(600_000), 1);
        assert_eq!((breaker.kind(), breaker.limits), (GuardKind::Breaker, Limits::Gate(gate)));
        let trip = Trip::Crashes { threshold: 5, is_shared: false };
        let gate = Gate::new(trip, ms(300_000), ms(10_000), ms(600_000), 1);
        assert_eq!((crash.kind(), crash.limits), (GuardKind::CrashLoop, Limits::Gate(gate)));
    }

    #[test]
    fn what_the_store_cannot_count_with_is_refused_and_not_cut() {
        let of = |more: &str| load(&format!("[guards.rate.api]\nscope = \"a\"\n{more}"));
        let said = |more: &str| of(more).unwrap_err().to_string();
        let e = said("limit = 1\nper = \"100000h\"");
        assert!(
            e.contains(
                "guards.rate.api.per: that is one start every 4166d 16h; the longest interval is 814d 10h"
            ),
            "{e}"
        );
        let e = said("limit = 1\nper = \"24h\"\nburst = 1000000");
        assert!(e.contains("guards.rate.api.burst: that many take"), "{e}");
        assert!(of("limit = 10\nper = \"100000h\"\nburst = 1").is_ok());
        let e = load("[guards]\ncrash_open = \"1h\"\ncrash_longest = \"1s\"").unwrap_err().to_string();
        assert!(e.contains("guards.crash_open ≤ guards.crash_longest"), "{e}");
    }

    #[test]
    fn every_problem_of_a_rule_is_said_with_its_place() {
        let bad = "[guards.rate.api]\nscope = \"{kind}\"\nlimt = 3\nper = 5\n[guards.rates.x]\nlimit = 1\n\
                   [guards.concurrency.Repo]\nlimit = 0\nscope = \"a\"\n[guards.breaker.b]\nscope = \"a\"\nfailures = 3\nopen = \"1m\"\nlongest = \"1s\"";
        let text = load(bad).unwrap_err().to_string();
        for part in [
            "guards.rate.api.limt: unknown setting; did you mean \"limit\"?",
            "guards.rate.api.scope: {kind} is not known",
            "guards.rate.api.limit: it is required, such as `limit = 100`",
            "guards.rate.api.per: 5 needs a unit",
            "guards.rates",
            "guards.concurrency.Repo: ",
            "guards.concurrency.Repo.limit: ",
            "guards.breaker.b.failures: 3 is not a share",
            "guards.breaker.b.longest: it is shorter than `open`",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
