//! What differs between two configurations, and which of it a running process takes.

use std::{collections::BTreeMap, fmt};

use super::{guards::GuardRule, handlers::Handler};

type Handlers = BTreeMap<String, Handler>;

/// What a process that runs does about a changed setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// It takes the new value: whatever is begun after the change goes by it.
    Live,
    /// It keeps the value of its start.
    Restart,
}

impl Reload {
    /// As the documents say it: `live` or `restart`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Restart => "restart",
        }
    }

    /// Which value holds after a change.
    pub(super) fn choose<'a, T>(self, was: &'a T, is: &'a T) -> &'a T {
        match self {
            Self::Live => is,
            Self::Restart => was,
        }
    }
}

/// One setting, command handler or guard rule that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `section.key`, `handlers.type`, or `guards.kind.name`.
    pub name: String,
    pub reload: Reload,
    /// Both values, secrets masked; of a handler the keys that differ, without values: its environment may hold secrets.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

/// A handler that both have is taken as it is now. Types that are new or gone wait for a restart: the worker asks for its handlers
/// once, and a keeper may be missing.
pub(super) fn of_handlers(was: &Handlers, is: &Handlers, out: &mut Vec<Change>) {
    let mut push = |kind: &str, reload, what: String| {
        out.push(Change { name: format!("handlers.{kind}"), reload, what });
    };
    for (kind, old) in was {
        match is.get(kind) {
            None => push(kind, Reload::Restart, "removed".to_owned()),
            Some(new) if new != old => push(kind, Reload::Live, differing(old, new).join(", ")),
            Some(_) => {}
        }
    }
    for kind in is.keys().filter(|kind| !was.contains_key(*kind)) {
        push(kind, Reload::Restart, "added".to_owned());
    }
}

/// Rules of guards are live, all of them: a job is asked for by those in force when it is admitted.
pub(super) fn of_rules(was: &[GuardRule], is: &[GuardRule], out: &mut Vec<Change>) {
    let same = |a: &GuardRule, b: &GuardRule| a.kind() == b.kind() && a.name == b.name;
    let mut push = |rule: &GuardRule, what: &str| {
        let name = format!("guards.{}.{}", rule.kind().name(), rule.name);
        out.push(Change { name, reload: Reload::Live, what: what.to_owned() });
    };
    for old in was {
        match is.iter().find(|new| same(old, new)) {
            None => push(old, "removed"),
            Some(new) if new != old => push(new, "changed"),
            Some(_) => {}
        }
    }
    for new in is.iter().filter(|new| !was.iter().any(|old| same(old, new))) {
        push(new, "added");
    }
}

/// The handlers of `was`, each as `is` has it where it does.
pub(super) fn adopted_handlers(was: &Handlers, is: &Handlers) -> Handlers {
    was.iter().map(|(kind, old)| (kind.clone(), is.get(kind).unwrap_or(old).clone())).collect()
}

fn differing(a: &Handler, b: &Handler) -> Vec<&'static str> {
    let Handler { command, cwd, inherit, env, timeout, kill_grace, output_limit, exit_codes } = a;
    [
        ("command", *command != b.command),
        ("cwd", *cwd != b.cwd),
        ("inherit", *inherit != b.inherit),
        ("env", *env != b.env),
        ("timeout", *timeout != b.timeout),
        ("kill_grace", *kill_grace != b.kill_grace),
        ("output_limit", *output_limit != b.output_limit),
        ("exit_codes", *exit_codes != b.exit_codes),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Settings, document, load_text, table};

    fn settings(text: &str) -> Settings {
        load_text(Some((text, "surety.toml")), &|_| None, &vec![]).unwrap()
    }

    fn names(changes: &[Change], reload: Reload) -> Vec<&str> {
        changes.iter().filter(|c| c.reload == reload).map(|c| c.name.as_str()).collect()
    }

    /// A value other than the default, of every kind that there is.
    fn another(section: &str, key: &str, kind: &str, default: &str) -> String {
        match (kind, section, key) {
            // Within the rules between settings.
            ("duration", "lease", "ttl") => "\"25s\"".into(),
            ("duration", "lease" | "connection", _) => "\"4s\"".into(),
            ("duration", "layout", "ack_wait") => "\"70s\"".into(),
            ("duration", "layout", "events_age") => "\"800h\"".into(),
            ("duration", "layout", "receipt_wait") => "\"40s\"".into(),
            ("duration", "reaper", "overstay") => "\"40s\"".into(),
            ("duration", "guards", "crash_longest") => "\"20m\"".into(),
            ("duration", ..) => "\"7s\"".into(),
            ("number", "worker", "hand_on_limit") => "7".into(),
            ("number", "layout", "max_deliver") => "200".into(),
            ("number", ..) => if default == "3" { "2" } else { "3" }.into(),
            ("size", ..) => "\"77MiB\"".into(),
            ("true or false", ..) => (default != "true").to_string(),
            ("list", ..) => "[\"q\"]".into(),
            ("list of durations", ..) => "[\"7s\"]".into(),
            ("address", ..) => "\"redis://elsewhere\"".into(),
            ("strict or weighted", ..) => "\"weighted\"".into(),
            ("human or json", ..) => "\"json\"".into(),
            ("address with port, or off", ..) => "\"127.0.0.1:9\"".into(),
            ("text", "telemetry", _) => "\"debug\"".into(),
            _ => "\"other\"".into(),
        }
    }

    // Shows: G-02
    #[test]
    fn each_setting_is_taken_or_waits_for_a_restart_as_its_row_says() {
        let was = settings("");
        let (mut n_live, mut n_restart) = (0, 0);
        for r in table() {
            let value = another(r.section, r.key, r.kind, r.default);
            let name = format!("{}.{}", r.section, r.key);
            let file = format!("[{}]\n{} = {value}", r.section, r.key);
            // Logins go in pairs, or with TLS: they are not what this is about.
            let Ok(is) = load_text(Some((&file, "f")), &|_| None, &vec![]) else {
                assert_eq!(r.section, "connection", "{file}");
                assert_eq!(r.reload, Reload::Restart, "{name}");
                continue;
            };
            let changes = was.changes(&is);
            assert_eq!(names(&changes, r.reload), [name.as_str()], "{file}: {changes:?}");
            assert_eq!(changes.len(), 1, "{changes:?}");
            let now = was.adopted(&is).unwrap();
            match r.reload {
                Reload::Live => {
                    n_live += 1;
                    assert!(now.changes(&is).is_empty(), "{name} was not taken");
                }
                Reload::Restart => {
                    n_restart += 1;
                    assert!(was.changes(&now).is_empty(), "{name} was taken");
                }
            }
        }
        assert!(n_live > 15 && n_restart > 25, "{n_live} live, {n_restart} restart");
    }

    // Shows: G-02, G-06
    #[test]
    fn the_documents_mark_each_setting_as_the_code_treats_it() {
        let (doc, sample) = (document::markdown(), document::sample());
        for r in table() {
            let mark = r.reload.name();
            let row = format!("| `{}` | {} |", r.key, r.kind);
            assert!(
                doc.lines().any(|l| l.starts_with(&row)
                    && l.contains(&format!("| {mark} |"))
                    && l.contains(r.meaning.trim())),
                "{}.{} is not marked {mark}",
                r.section,
                r.key
            );
            let line = format!("# {} ({}; {mark})", r.meaning.trim(), r.kind);
            assert!(sample.contains(&line), "{line}");
        }
    }

    #[test]
    fn several_changes_are_named_with_both_values_and_without_secrets() {
        let was = settings("[connection]\nnats_user = \"u\"\nnats_password = \"old\"");
        let is = settings(
            "[connection]\nnats_user = \"u\"\nnats_password = \"new\"\n[contract]\nprogress = \"7s\"\n[worker]\nslots = 3",
        );
        let texts: Vec<_> = was.changes(&is).iter().map(ToString::to_string).collect();
        let expected = [
            "connection.nats_password: \"***\" -> \"***\"",
            "contract.progress: \"45s\" -> \"7s\"",
            "worker.slots: 8 -> 3",
        ];
        assert_eq!(texts, expected);
        let now = was.adopted(&is).unwrap();
        assert_eq!((now.contract.progress, now.worker.slots.0), (Duration::from_secs(7), 8));
        // What waits for a restart is named again, as long as it waits.
        assert_eq!(names(&now.changes(&is), Reload::Restart), ["connection.nats_password", "worker.slots"]);
    }

    #[test]
    fn a_handler_that_stays_is_taken_and_types_that_come_or_go_wait() {
        let was = settings("[handlers.a]\ncommand = [\"x\"]\n[handlers.b]\ncommand = [\"y\"]");
        let is = settings(
            "[handlers.a]\ncommand = [\"x\"]\ntimeout = \"3s\"\nenv = { KEY = \"secret\" }\n[handlers.c]\ncommand = [\"z\"]",
        );
        let changes = was.changes(&is);
        let texts: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["handlers.a: env, timeout", "handlers.b: removed", "handlers.c: added"]);
        assert_eq!(names(&changes, Reload::Live), ["handlers.a"]);
        let now = was.adopted(&is).unwrap();
        assert_eq!(now.handlers.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(now.handlers["a"].timeout, Some(Duration::from_secs(3)));
    }

    // Shows: G-02
    #[test]
    fn rules_of_guards_come_change_and_go_without_a_restart() {
        let rate = |limit: u32| format!("[guards.rate.a]\nscope = \"{{key}}\"\nlimit = {limit}\n");
        let was = settings(&(rate(1) + "[guards.rate.b]\nscope = \"x\"\nlimit = 1"));
        let is = settings(&(rate(2) + "[guards.concurrency.b]\nscope = \"x\"\nlimit = 1"));
        let texts: Vec<_> = was.changes(&is).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["guards.rate.a: changed", "guards.rate.b: removed", "guards.concurrency.b: added"]
        );
        assert_eq!(names(&was.changes(&is), Reload::Live).len(), 3);
        assert_eq!(was.adopted(&is).unwrap().guard_rules, is.guard_rules);
    }

    // Each of the two files is right; the mixture that would run is not.
    #[test]
    fn what_does_not_fit_the_settings_that_stay_is_refused() {
        let was = settings("");
        let is = settings("[layout]\nevents_age = \"2000h\"\n[attempt]\nfinish = \"1000h\"");
        let e = was.adopted(&is).unwrap_err().to_string();
        assert!(e.contains("layout.events_age > attempt.finish"), "{e}");
    }
}
