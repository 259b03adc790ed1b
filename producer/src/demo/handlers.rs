//! What the demo's workers are configured with: short times, and three commands that know nothing of Surety but its protocol
//! (the job as one line of JSON on stdin, the result on stdout, reports on descriptor 3).

use std::path::{Path, PathBuf};

use super::bed::MARK;

/// The types of the demo's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A digest by `sha256sum`.
    Sha256,
    /// Digest and number of lines by a script that reports its progress.
    Lines,
    /// As `Sha256`, after a second: so that a kill finds something at work.
    Slow,
}

impl Kind {
    /// The type of job `i` of `n`.
    pub(super) fn of(i: usize, n: usize) -> Self {
        // Small runs have more slow ones, or nothing would be at work in the middle.
        let slow_every = (n / 40).clamp(4, 25);
        if i % 20 == 7 {
            Self::Lines
        } else if i.is_multiple_of(slow_every) {
            Self::Slow
        } else {
            Self::Sha256
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Lines => "lines",
            Self::Slow => "slow",
        }
    }
}

/// A lost worker is noticed within four seconds, and what nobody claimed comes back after eight. The rules between these
/// times are those of the defaults.
const TIMES: &str = r#"[layout]
ack_wait = "8s"
[lease]
renewal = "500ms"
ttl = "4s"
margin = "1s"
extend = "2s"
[worker]
slots = 8
drain = "3s"
[reaper]
tick = "500ms"
relay_age = "1s"
"#;

/// Takes the path out of the job without a JSON parser: the demo's paths have nothing that JSON escapes.
const PATH: &str = r#"read -r job; p=${job#*\"path\":\"}; p=${p%%\"*}; "#;

const PYTHON: &str = r#"import hashlib, json, os, sys

path = json.load(sys.stdin)["payload"]["path"]
control = os.fdopen(3, "w", buffering=1)
size = os.path.getsize(path)
digest, lines, done = hashlib.sha256(), 0, 0
with open(path, "rb") as file:
    while block := file.read(64 * 1024):
        digest.update(block)
        lines += block.count(b"\n")
        done += len(block)
        print(json.dumps({"progress": done / size, "message": f"{done} of {size} bytes"}), file=control)
print(json.dumps({"sha256": digest.hexdigest(), "lines": lines}))
"#;

/// The same for a machine without Python.
const SHELL: &str = r#"printf '{"progress":0.5,"message":"hashing"}\n' >&3; s=$(sha256sum "$p"); printf '{"sha256":"%s","lines":%d}\n' "${s%% *}" "$(wc -l < "$p")""#;

/// The configuration file, and the script that it names (none without Python).
pub(super) fn configuration(folder: &Path) -> (String, Option<(PathBuf, &'static str)>) {
    let script = folder.join("lines.py");
    let sh = |rest: &str| vec!["sh".to_owned(), "-c".to_owned(), format!("{PATH}{rest}")];
    let python = python();
    let lines = match &python {
        Some(python) => vec![python.display().to_string(), script.display().to_string()],
        None => sh(SHELL),
    };
    let handlers = [
        (Kind::Sha256, sh(r#"exec sha256sum "$p""#)),
        (Kind::Lines, lines),
        (Kind::Slow, sh(r#"sleep 1; exec sha256sum "$p""#)),
    ];
    let mut text = TIMES.to_owned();
    for (kind, command) in handlers {
        // A JSON list of texts is a TOML list of texts.
        let command = serde_json::Value::from(command);
        // The mark by which the demo finds every process that it caused.
        text.push_str(&format!("[handlers.{}]\ncommand = {command}\ninherit = [\"{MARK}\"]\n", kind.name()));
    }
    (text, python.map(|_| (script, PYTHON)))
}

/// The system's Python before one of the path, which may be a wrapper that takes its time.
fn python() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [PathBuf::from("/usr/bin")].into_iter().chain(std::env::split_paths(&path));
    folders.map(|f| f.join("python3")).find(|p| p.is_absolute() && p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_a_valid_one_with_a_handler_for_each_type() {
        let (text, _) = configuration(Path::new("/tmp/a b\"c"));
        let s = surety_common::config::load_text(Some((&text, "demo")), &|_| None, &vec![]).unwrap();
        for kind in [Kind::Sha256, Kind::Lines, Kind::Slow] {
            assert!(s.handlers.contains_key(kind.name()), "{kind:?}");
        }
    }

    #[test]
    fn every_size_has_jobs_of_every_type() {
        for n in [50, 60, 1000, 2500, 20_000] {
            let count = |k| (0..n).filter(|i| Kind::of(*i, n) == k).count();
            assert!(count(Kind::Slow) >= 10 && count(Kind::Lines) >= 2, "{n}");
            assert!(count(Kind::Sha256) > n / 2, "{n}");
        }
    }
}
