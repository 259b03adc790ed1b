//! Merging the layers and reporting every problem.

use std::{collections::BTreeMap, path::Path};

use super::{
    beside, context,
    guards::{self, GuardRule},
    handlers::{self, Handler},
    options::PRIVATE,
    secrets::FILE,
    settings::{Row, Settings, table},
    value::Setting,
};
use crate::domain::text;

/// Settings given on the command line: (`section.key`, value, the flag's name).
pub type Flags = Vec<(&'static str, String, &'static str)>;

/// What is wrong with a configuration: every problem, each with the place it came from.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the configuration has {} problem{}:\n  {}", problems.len(), if problems.len() == 1 { "" } else { "s" }, problems.join("\n  "))]
pub struct ConfigError {
    pub problems: Vec<String>,
}

/// Values by `section.key`, each with where it came from.
pub(super) struct Layers {
    values: BTreeMap<String, (toml::Value, String)>,
    handlers: Vec<(String, toml::Value)>,
    /// Kind, name, table.
    guards: Vec<(String, String, toml::Value)>,
    problems: Vec<String>,
}

impl Layers {
    /// Reads a setting, or its default. A value of 0 for a duration takes the default too.
    pub(super) fn take<T: Setting>(&mut self, section: &str, key: &str, default: &str) -> Option<T> {
        let built_in = |problems: &mut Vec<String>| match T::read(&toml::Value::String(default.into())) {
            Ok(v) => v,
            Err(e) => {
                problems.push(format!("{section}.{key}: built-in default: {e}"));
                None
            }
        };
        match self.values.remove(&format!("{section}.{key}")) {
            None => built_in(&mut self.problems),
            Some((value, source)) => match T::read(&value) {
                Ok(Some(v)) => Some(v),
                Ok(None) => built_in(&mut self.problems),
                Err(e) => {
                    self.problems.push(format!("{section}.{key} ({source}): {e}"));
                    // Keep going with the default, so that later settings are checked too.
                    built_in(&mut Vec::new())
                }
            },
        }
    }

    pub(super) fn take_handlers(&mut self) -> BTreeMap<String, Handler> {
        let mut out = BTreeMap::new();
        for (name, value) in std::mem::take(&mut self.handlers) {
            if let Some(h) = handlers::read(&name, &value, &mut self.problems) {
                out.insert(name, h);
            }
        }
        out
    }

    /// The rules in the order of kinds and names, which is that of the file's table.
    pub(super) fn take_guards(&mut self) -> Vec<GuardRule> {
        let rules = std::mem::take(&mut self.guards);
        rules.iter().filter_map(|(kind, name, v)| guards::read(kind, name, v, &mut self.problems)).collect()
    }

    /// What was found to be wrong so far, to add to.
    pub(super) fn problems(&mut self) -> &mut Vec<String> {
        &mut self.problems
    }

    fn file(&mut self, text_: &str, source: &str) {
        let parsed: toml::Table = match text_.parse() {
            Ok(t) => t,
            Err(e) => {
                // Never the line itself: a password may stand in it.
                let place = e.span().map(|s| place(text_, s.start));
                let place = place
                    .map_or_else(String::new, |(line, column)| format!("line {line}, column {column}: "));
                self.problems.push(format!(
                    "{source}: {place}not valid TOML: {}",
                    e.message().trim().replace('\n', " ")
                ));
                return;
            }
        };
        let mut sections: Vec<&str> = table().iter().map(|r| r.section).collect();
        sections.dedup();
        for (section, value) in parsed {
            if section == "handlers" {
                match value {
                    toml::Value::Table(t) => self.handlers.extend(t),
                    other => self.problems.push(format!("{source}: handlers: {other} is not a table")),
                }
                continue;
            }
            if !sections.contains(&section.as_str()) {
                let known = sections.iter().copied().chain(["handlers"]);
                self.unknown(
                    source,
                    &section,
                    text::nearest(&section, known.clone()),
                    &known.collect::<Vec<_>>(),
                );
                continue;
            }
            self.section(source, &section, value);
        }
    }

    /// Makes the paths that a file set begin at its folder. To be called while there is no other layer.
    fn beside(&mut self, source: &str) {
        let Some(folder) = beside::folder(source) else { return };
        for (_, handler) in &mut self.handlers {
            beside::resolve_handler(&folder, handler);
        }
        let is_path = |r: &&Row| r.kind == FILE || (r.section, r.key) == ("worker", "state_dir");
        for r in table().iter().filter(is_path) {
            if let Some((value, _)) = self.values.get_mut(&format!("{}.{}", r.section, r.key)) {
                beside::resolve(&folder, value);
            }
        }
    }

    fn section(&mut self, source: &str, section: &str, value: toml::Value) {
        let toml::Value::Table(keys) = value else {
            self.problems.push(format!("{source}: {section} must be a table [{section}]"));
            return;
        };
        let sections = table().iter().map(|r| r.section);
        let inner = |key: &str| format!("{section}.{key}");
        let mut known: Vec<&str> = table().iter().filter(|r| r.section == section).map(|r| r.key).collect();
        known.extend(sections.clone().filter_map(|s| s.strip_prefix(section)?.strip_prefix('.')));
        known.dedup();
        if section == "guards" {
            known.extend(guards::KINDS);
        }
        for (key, value) in keys {
            if section == "guards" && guards::KINDS.contains(&key.as_str()) {
                match value {
                    toml::Value::Table(rules) => {
                        self.guards.extend(rules.into_iter().map(|(name, v)| (key.clone(), name, v)));
                    }
                    other => self.problems.push(format!(
                        "{source}: guards.{key}: {other} is no table; write [guards.{key}.NAME]"
                    )),
                }
            } else if sections.clone().any(|s| s == inner(&key)) {
                self.section(source, &inner(&key), value);
            } else if known.contains(&key.as_str()) {
                self.values.insert(inner(&key), (value, source.to_owned()));
            } else {
                let near = text::nearest(&key, known.iter().copied());
                self.unknown(source, &inner(&key), near, &known);
            }
        }
    }

    fn unknown(&mut self, source: &str, path: &str, near: Option<&str>, known: &[&str]) {
        let hint =
            near.map_or(format!("known here: {}", known.join(", ")), |n| format!("did you mean {n:?}?"));
        self.problems.push(format!("{path} ({source}): unknown setting; {hint}"));
    }

    fn environment(&mut self, env: Env<'_>) {
        let mut found: Vec<(String, String, String)> = Vec::new();
        let mut set = |path: String, name: &str, kind: &str| {
            let is_set = |name: &str| env(name).filter(|v| !v.is_empty());
            let file_name = format!("{name}_FILE");
            let value = match (is_set(name), is_set(&file_name)) {
                (Some(v), _) => (v, name.to_owned()),
                // Where the value is a path already, the longer name means the same.
                (None, Some(path)) if kind == FILE => (path, file_name),
                (None, Some(path)) => match std::fs::read_to_string(&path) {
                    Ok(s) if !s.trim().is_empty() => (s.trim().to_owned(), file_name),
                    Ok(_) => return,
                    Err(e) => {
                        self.problems.push(format!("{file_name}: cannot read {path:?}: {e}"));
                        return;
                    }
                },
                (None, None) => return,
            };
            found.push((path, value.0, value.1));
        };
        set("connection.nats_url".into(), "NATS_URL", "");
        set("connection.nats_context".into(), "NATS_CONTEXT", "");
        set("connection.redis_url".into(), "REDIS_URL", "");
        for r in table() {
            let name = format!("SURETY_{}_{}", r.section.replace('.', "_"), r.key).to_uppercase();
            set(format!("{}.{}", r.section, r.key), &name, r.kind);
        }
        self.layer(found, env);
    }

    /// Adds a layer above the earlier ones. A context that it names replaces what those say about NATS, as a whole: logins
    /// of different places must not mix. What stands beside the context in the same layer wins over it.
    fn layer(&mut self, layer: Vec<(String, String, String)>, env: Env<'_>) {
        let context = layer.iter().rev().find(|(path, ..)| path == CONTEXT).cloned();
        if let Some((_, name, source)) = context {
            for key in context::KEYS {
                self.values.remove(&format!("connection.{key}"));
            }
            self.context(&name, &source, env);
        }
        for (path, value, source) in layer {
            self.values.insert(path, (toml::Value::String(value), source));
        }
    }

    /// Fills in what a context says and the values do not.
    fn context(&mut self, name: &str, source: &str, env: Env<'_>) {
        if name.is_empty() {
            return;
        }
        match context::read(name, env) {
            Ok(found) => {
                for (key, value) in found {
                    let of = (toml::Value::String(value), format!("NATS context {name}"));
                    self.values.entry(format!("connection.{key}")).or_insert(of);
                }
            }
            Err(e) => self.problems.push(format!("{CONTEXT} ({source}): {e}")),
        }
    }

    /// Forgets what the layers so far say about reaching and logging in to servers.
    fn forget_servers(&mut self) {
        let is_kept = |path: &str| {
            path.strip_prefix("connection.")
                .is_none_or(|key| !key.starts_with("nats_") && !key.starts_with("redis_"))
        };
        self.values.retain(|path, _| is_kept(path));
    }
}

const CONTEXT: &str = "connection.nats_context";

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Loads the settings: `file` if given (a missing file is a problem), the process's environment, the flags.
pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Settings, ConfigError> {
    load_read(file.map(read).transpose()?.as_ref(), flags)
}

/// Text of a file, and what it is called.
pub(crate) type FileText = (String, String);

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<FileText, ConfigError> {
    std::fs::read_to_string(path).map(|text| (text, path.display().to_string())).map_err(|e| {
        let problem = format!("cannot read the configuration file {}: {e}", path.display());
        ConfigError { problems: vec![problem] }
    })
}

/// [`load`] of a file that was read.
pub(crate) fn load_read(file: Option<&FileText>, flags: &Flags) -> Result<Settings, ConfigError> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    let env = |name: &str| std::env::var(name).ok();
    load_text(file.map(|(t, s)| (t.as_str(), s.as_str())), &env, flags)
}

/// [`load`] from text and a given environment.
pub fn load_text(file: Option<(&str, &str)>, env: Env<'_>, flags: &Flags) -> Result<Settings, ConfigError> {
    let mut layers =
        Layers { values: BTreeMap::new(), handlers: Vec::new(), guards: Vec::new(), problems: Vec::new() };
    let is_private = flags.iter().any(|(path, ..)| *path == PRIVATE);
    if let Some((text_, source)) = file {
        layers.file(text_, source);
        layers.beside(source);
        let named = layers.values.get(CONTEXT).and_then(|(v, _)| v.as_str()).map(str::to_owned);
        if let Some(name) = named.filter(|_| !is_private) {
            layers.context(&name, source, env);
        }
    }
    if is_private {
        let is_other = |name: &str| {
            let name = name.strip_prefix("SURETY_CONNECTION_").unwrap_or(name);
            !name.starts_with("NATS_") && !name.starts_with("REDIS_")
        };
        let other = |name: &str| env(name).filter(|_| is_other(name));
        layers.environment(&other);
        layers.forget_servers();
    } else {
        layers.environment(env);
    }
    let given = flags.iter().filter(|(path, ..)| *path != PRIVATE);
    layers.layer(given.map(|(p, v, f)| ((*p).to_owned(), v.clone(), (*f).to_owned())).collect(), env);
    let settings = Settings::take(&mut layers);
    match settings {
        Some(s) if layers.problems.is_empty() => Ok(s),
        _ => Err(ConfigError { problems: layers.problems }),
    }
}

/// Line and column (in characters), from 1, of a byte of a text.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_mistake_in_the_file_is_told_by_its_place_and_never_by_its_text() {
        for (text, at) in [
            ("[connection]\nredis_password = \"s3cr3t\nnats_url = 1\n", "line 2, column "),
            ("[connection]\nnats_url = \"nats://u:s3cr3t@h\" x\n", "line 2, column "),
            ("redis_password = 's3cr3t' 's3cr3t'\n", "line 1, column "),
            ("[connection]\nnats_token = s3cr3t\n", "line 2, column "),
        ] {
            let e = load_text(Some((text, "surety.toml")), &|_| None, &vec![]).unwrap_err().to_string();
            assert!(e.contains(at) && e.contains("not valid TOML"), "{e}");
            assert!(!e.contains("s3cr3t"), "{e}");
        }
        for text in [
            "redis_password = [\"s3cr3t\"]",
            "nats_token = { a = \"s3cr3t\" }",
            "nats_url = [\"nats://u:s3cr3t@h\"]",
        ] {
            let e = load_text(Some((&format!("[connection]\n{text}\n"), "f")), &|_| None, &vec![])
                .unwrap_err()
                .to_string();
            assert!(!e.contains("s3cr3t"), "{e}");
        }
    }

    fn with(file: &str, env: &[(&str, &str)], flags: &Flags) -> Result<Settings, ConfigError> {
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        load_text(Some((file, "surety.toml")), &|k| env.get(k).cloned(), flags)
    }

    #[test]
    fn defaults_are_complete_and_fit_together() {
        let s = with("", &[], &vec![]).unwrap();
        assert_eq!((s.lease.ttl, s.layout.ack_wait), (Duration::from_secs(20), Duration::from_secs(60)));
        assert_eq!(s.worker.slots.0, 8);
        assert!(!table().is_empty());
        assert!(table().iter().all(|r| !r.meaning.trim().is_empty()));
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let file =
            "[connection]\nnats_url = \"nats://file\"\nredis_url = \"redis://file\"\n[worker]\nslots = 2";
        let env =
            [("NATS_URL", "nats://env"), ("SURETY_WORKER_SLOTS", "3"), ("SURETY_WORKER_QUEUES", "a,b:2")];
        let s = with(file, &env, &vec![("worker.slots", "4".into(), "--slots")]).unwrap();
        assert_eq!(&*s.connection.nats_url, "nats://env");
        assert_eq!(&*s.connection.redis_url, "redis://file");
        assert_eq!(s.worker.slots.0, 4);
        assert_eq!(s.worker.queues, ["a", "b:2"]);
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_place() {
        let file = "[worker]\nslot = 2\n[leese]\n[lease]\nttl = 20\nrenewal = \"10s\"\n[handlers.x]\ncomand = []\n\
                    [handlers.y]\ncommand = [\"z\"]\nexit_codes = { 300 = \"stuck\", 1 = \"stuk\" }";
        let e = with(file, &[("SURETY_WORKER_DRAIN", "soon")], &vec![]).unwrap_err();
        let all = e.to_string();
        for part in [
            "worker.slot (surety.toml): unknown setting; did you mean \"slots\"?",
            "did you mean \"lease\"?",
            "lease.ttl (surety.toml)",
            "worker.drain (SURETY_WORKER_DRAIN)",
            "did you mean \"command\"?",
            "has no command",
            "300",
            "did you mean \"stuck\"?",
            "lease.renewal × 3 ≤",
        ] {
            assert!(all.contains(part), "{part} is not in:\n{all}");
        }
    }

    // Shows: G-03
    #[test]
    fn zero_of_any_duration_means_the_default() {
        let default = with("", &[], &vec![]).unwrap().values();
        let mut n = 0;
        for row in table().iter().filter(|r| r.kind == "duration") {
            for zero in ["0", "\"0\"", "\"0s\""] {
                let file = format!("[{}]\n{} = {zero}", row.section, row.key);
                assert_eq!(with(&file, &[], &vec![]).unwrap().values(), default, "{file}");
            }
            n += 1;
        }
        assert!(n > 15, "only {n} durations found");
    }

    // Shows: G-07
    #[test]
    fn settings_that_do_not_fit_are_refused() {
        for (bad, rule) in [
            ("[lease]\nttl = \"90s\"", "lease.ttl < layout.ack_wait"),
            ("[lease]\nrenewal = \"6s\"", "lease.renewal × 3 ≤ lease.ttl − lease.margin"),
            ("[lease]\nextend = \"40s\"", "lease.extend × 2 < layout.ack_wait"),
            ("[layout]\nmax_deliver = 40", "worker.hand_on_limit < layout.max_deliver"),
            ("[layout]\nevents_age = \"1h\"", "layout.events_age > attempt.finish"),
            ("[connection]\ncall_timeout = \"15s\"", "connection.call_timeout < lease.ttl − lease.margin"),
            ("[layout]\nqueues = []", "at least one queue"),
        ] {
            let e = with(bad, &[], &vec![]).unwrap_err().to_string();
            assert!(e.contains(rule), "{bad}: {e}");
        }
    }
}
