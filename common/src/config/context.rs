//! Contexts of the `nats` command: where a server is and how to log in, one JSON file each.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::text::nearest;

/// Stands for the context that `nats context select` chose. Never taken unasked: a job must not go to the production
/// system because somebody looked at it with another program.
pub(super) const SELECTED: &str = "selected";

/// What we understand of a context. Other keys (colours, descriptions) do not matter to us.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    url: String,
    user: String,
    password: String,
    token: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    inbox_prefix: String,
    tls_first: bool,
    // What changes how a server is reached and is not supported: refused, rather than ignored.
    nsc: String,
    socks_proxy: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    user_jwt: String,
    user_seed: String,
}

/// Settings of `[connection]` that a context may hold.
pub(super) const KEYS: [&str; 11] = [
    "nats_url",
    "nats_user",
    "nats_password",
    "nats_token",
    "nats_creds",
    "nats_nkey",
    "nats_cert",
    "nats_key",
    "nats_ca",
    "nats_inbox_prefix",
    "nats_tls_first",
];

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The settings of a context that sets them: key of `[connection]` and value. `name`: of the context, [`SELECTED`], or a
/// path to its file. The error says what is wrong and which contexts there are.
pub(super) fn read(name: &str, env: Env<'_>) -> Result<Vec<(&'static str, String)>, String> {
    let path = if name.contains('/') || name.ends_with(".json") {
        home(name, env)
    } else {
        let folder = folder(env).ok_or("there is no HOME to look for NATS contexts in")?;
        let name = if name == SELECTED { selected(&folder)? } else { name.to_owned() };
        let path = folder.join("context").join(format!("{name}.json"));
        if !path.is_file() {
            return Err(missing(&name, &folder.join("context")));
        }
        path
    };
    let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    // Not the parser's own message: it may quote a password.
    let file: File = serde_json::from_str(&text).map_err(|e| {
        format!("{} is not a NATS context: line {}, column {}", path.display(), e.line(), e.column())
    })?;
    let unsupported = [
        ("nsc", &file.nsc),
        ("socks_proxy", &file.socks_proxy),
        ("jetstream_domain", &file.jetstream_domain),
        ("jetstream_api_prefix", &file.jetstream_api_prefix),
        ("user_jwt", &file.user_jwt),
        ("user_seed", &file.user_seed),
    ];
    if let Some((key, _)) = unsupported.iter().find(|(_, v)| !v.is_empty()) {
        return Err(format!("{} sets {key}, which Surety cannot use", path.display()));
    }
    let tls_first = if file.tls_first { "true".to_owned() } else { String::new() };
    let paths = [file.creds, file.nkey, file.cert, file.key, file.ca];
    let [creds, nkey, cert, key, ca] = paths.map(|p| match p.as_str() {
        "" => p,
        relative => home(relative, env).display().to_string(),
    });
    let values = [
        file.url,
        file.user,
        file.password,
        file.token,
        creds,
        nkey,
        cert,
        key,
        ca,
        file.inbox_prefix,
        tls_first,
    ];
    Ok(KEYS.into_iter().zip(values).filter(|(_, v)| !v.is_empty()).collect())
}

/// Where the `nats` command keeps its contexts.
fn folder(env: Env<'_>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|v| !v.is_empty());
    let config = set("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| {
        let home = set("HOME")?;
        Some(Path::new(&home).join(".config"))
    });
    Some(config?.join("nats"))
}

/// A path with `~/` in front resolved.
fn home(path: &str, env: Env<'_>) -> PathBuf {
    match (path.strip_prefix("~/"), env("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

fn selected(folder: &Path) -> Result<String, String> {
    let name = std::fs::read_to_string(folder.join("context.txt")).unwrap_or_default();
    match name.trim() {
        "" => Err("no NATS context is selected: name one, or run `nats context select`".to_owned()),
        name => Ok(name.to_owned()),
    }
}

fn missing(name: &str, folder: &Path) -> String {
    let mut known: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    known.sort();
    let hint = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near:?}?"),
        None if known.is_empty() => "there is none at all".to_owned(),
        None => format!("there are: {}", known.join(", ")),
    };
    format!("there is no NATS context {name:?} in {}; {hint}", folder.display())
}
