//! `[handlers.<type>]`: commands that perform a type.

use std::{path::PathBuf, time::Duration};

use super::value::{Setting, Size};
use crate::domain::{ErrorCode, TypeName, text};

/// A command handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Working folder; the worker's own when absent, where the settings come from no file.
    pub cwd: Option<PathBuf>,
    /// Variables of the worker that it gets beside the base, as names or beginnings of names with a `*`.
    pub inherit: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Time limit of one attempt, for jobs that set none.
    pub timeout: Option<Duration>,
    pub kill_grace: Option<Duration>,
    pub output_limit: Option<u64>,
    /// What exit codes mean, where the handler differs from the protocol.
    pub exit_codes: Vec<(i32, ErrorCode)>,
}

/// One key of a handler's table, for the reader and for the documentation.
pub(super) struct HandlerRow {
    pub(super) key: &'static str,
    pub(super) kind: &'static str,
    /// What holds when the key is absent.
    pub(super) absent: &'static str,
    pub(super) meaning: &'static str,
}

const fn row(
    key: &'static str,
    kind: &'static str,
    absent: &'static str,
    meaning: &'static str,
) -> HandlerRow {
    HandlerRow { key, kind, absent, meaning }
}

/// Every key. What is not in it is refused.
pub(super) const ROWS: &[HandlerRow] = &[
    row(
        "command",
        "list",
        "refused: it is required",
        "Program and arguments. A program with a slash in it counts from the folder of this file. No shell is involved; write `[\"sh\", \"-c\", \"…\"]` for one.",
    ),
    row(
        "cwd",
        "text",
        "the folder of this file",
        "Working folder of the command; a relative one counts from the folder of this file. Arguments that are paths count from the working folder.",
    ),
    row(
        "inherit",
        "list",
        "nothing beside the base",
        "Variables of the worker's environment that the command gets beside a base (`PATH`, `HOME`, `LANG` and the like; `docs/protocol.md` has the list). `AWS_*` stands for every name that begins so; names that Surety reads itself (`SURETY_…`, `NATS_…`, `REDIS_…`) are given only where they are written out or their beginning is.",
    ),
    row(
        "env",
        "table of texts",
        "nothing is added",
        "Added to the environment; wins over what is inherited.",
    ),
    row("timeout", "duration", "`attempt.timeout`", "Time limit of one attempt, for jobs that set none."),
    row("kill_grace", "duration", "`attempt.kill_grace`", "Between TERM and KILL."),
    row("output_limit", "size", "`attempt.output_limit`", "Output beyond this is cut; the command goes on."),
    row(
        "exit_codes",
        "table of exit code to error code",
        "the meanings in the protocol",
        "What exit codes 1 to 255 mean for this handler, such as `2 = \"limit_reached\"`; the error codes are in `docs/errors.md`.",
    ),
];

/// A value to show in the sample file.
pub(super) fn example(key: &str) -> &'static str {
    match key {
        "command" => r#"["python3", "handlers/thumbnail.py"]"#,
        "cwd" => r#""/srv/thumbnail""#,
        "inherit" => r#"["AWS_*", "HTTPS_PROXY"]"#,
        "env" => r#"{ LANG = "C.UTF-8" }"#,
        "timeout" => r#""2m""#,
        "kill_grace" => r#""5s""#,
        "output_limit" => r#""1MiB""#,
        _ => r#"{ 2 = "limit_reached" }"#,
    }
}

fn is_pattern(name: &str) -> bool {
    let fixed = name.strip_suffix('*').unwrap_or(name);
    !name.is_empty() && !fixed.contains(['*', '=', '\0']) && !fixed.contains(char::is_whitespace)
}

fn keys() -> impl Iterator<Item = &'static str> + Clone {
    ROWS.iter().map(|r| r.key)
}

/// Reads one handler's table; every problem is added to `problems`.
pub(super) fn read(name: &str, value: &toml::Value, problems: &mut Vec<String>) -> Option<Handler> {
    let at = format!("handlers.{name}");
    if let Err(e) = TypeName::new(name) {
        problems.push(format!("{at}: {e}"));
    }
    let Some(table) = value.as_table() else {
        problems.push(format!("{at}: must be a table with `command = [\"program\", \"argument\"]`"));
        return None;
    };
    for key in table.keys() {
        if !keys().any(|k| k == key) {
            let hint = text::nearest(key, keys()).map_or_else(
                || format!("known: {}", keys().collect::<Vec<_>>().join(", ")),
                |n| format!("did you mean {n:?}?"),
            );
            problems.push(format!("{at}.{key}: unknown setting; {hint}"));
        }
    }
    let get = |key: &str| table.get(key).map(|v| (format!("{at}.{key}"), v));
    let mut note = |place: &str, e: String| problems.push(format!("{place}: {e}"));

    let command = match get("command") {
        Some((place, v)) => match Vec::<String>::read(v) {
            Ok(Some(c)) if v.is_array() && !c.is_empty() => c,
            Ok(_) => {
                note(&place, "must be a list like [\"program\", \"argument\"]".into());
                vec![]
            }
            Err(e) => {
                note(&place, e);
                vec![]
            }
        },
        None => {
            note(&at, "has no command; write `command = [\"program\", \"argument\"]`".into());
            vec![]
        }
    };
    let span = |v: Option<(String, &toml::Value)>, note: &mut dyn FnMut(&str, String)| {
        let (place, v) = v?;
        Duration::read(v).unwrap_or_else(|e| {
            note(&place, e);
            None
        })
    };
    let timeout = span(get("timeout"), &mut note);
    let kill_grace = span(get("kill_grace"), &mut note);
    let output_limit = get("output_limit").and_then(|(place, v)| match Size::read(v) {
        Ok(s) => s.map(|s| s.0),
        Err(e) => {
            note(&place, e);
            None
        }
    });
    let cwd = get("cwd").and_then(|(place, v)| match v.as_str() {
        Some(s) => Some(PathBuf::from(s)),
        None => {
            note(&place, format!("{v} is not a path in quotes"));
            None
        }
    });
    let mut inherit = Vec::new();
    if let Some((place, v)) = get("inherit") {
        match Vec::<String>::read(v) {
            Ok(names) if v.is_array() => inherit = names.unwrap_or_default(),
            Ok(_) => note(&place, "must be a list like [\"AWS_*\", \"HTTPS_PROXY\"]".into()),
            Err(e) => note(&place, e),
        }
        for name in inherit.iter().filter(|n| !is_pattern(n)) {
            note(
                &place,
                format!("{name:?} is no name of a variable, nor the beginning of one with a * at its end"),
            );
        }
    }
    let mut env = Vec::new();
    if let Some((place, v)) = get("env") {
        match v.as_table() {
            Some(t) => {
                for (k, v) in t {
                    match v.as_str() {
                        Some(s) => env.push((k.clone(), s.to_owned())),
                        None => note(&format!("{place}.{k}"), format!("{v} is not a text in quotes")),
                    }
                }
            }
            None => note(&place, "must be a table of texts".into()),
        }
    }
    let mut exit_codes = Vec::new();
    if let Some((place, v)) = get("exit_codes") {
        match v.as_table() {
            Some(t) => {
                for (k, v) in t {
                    let code = k.parse::<u8>().ok().filter(|c| *c > 0);
                    match (code, v.as_str().and_then(ErrorCode::from_name)) {
                        (Some(c), Some(e)) => exit_codes.push((i32::from(c), e)),
                        (None, _) => note(&place, format!("{k:?} is not an exit code from 1 to 255")),
                        (_, None) => {
                            let known: Vec<_> = ErrorCode::ALL.iter().map(|c| c.name()).collect();
                            let given = v.as_str().unwrap_or_default();
                            let hint = text::nearest(given, known.iter().copied()).unwrap_or("stuck");
                            note(
                                &format!("{place}.{k}"),
                                format!("{v} is not an error code; did you mean {hint:?}?"),
                            );
                        }
                    }
                }
            }
            None => note(&place, "must be a table like { 1 = \"stuck\" }".into()),
        }
    }
    Some(Handler { command, cwd, inherit, env, timeout, kill_grace, output_limit, exit_codes })
}
