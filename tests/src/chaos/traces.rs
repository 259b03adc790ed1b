//! What handlers wrote down of themselves, and what of them is still there.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::witness::stat;

/// The folder that handlers write to (`handlers.sh`).
#[derive(Debug, Clone)]
pub struct Traces {
    folder: PathBuf,
}

/// What is known of one job.
#[derive(Debug, Default)]
pub struct Trace {
    pub lines: Vec<String>,
    /// Epochs under which something of it ran.
    pub epochs: BTreeSet<u64>,
    /// Something of one attempt was alive when another began.
    pub overlaps: Vec<String>,
    /// Another job had a lock or a key at the same time, or a lock's token did not grow.
    pub shared: Vec<String>,
}

impl Traces {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Of one job; empty for one that no command has run.
    pub fn of(&self, job: &str) -> Trace {
        let text = std::fs::read_to_string(self.folder.join(job)).unwrap_or_default();
        let mut t = Trace::default();
        for line in text.lines() {
            let f: Vec<&str> = line.split(' ').collect();
            match f.as_slice() {
                ["start", epoch, ..] => {
                    t.epochs.insert(epoch.parse().unwrap_or(0));
                }
                ["overlap", ..] => t.overlaps.push(line.to_owned()),
                [what, ..] if what.starts_with("shared") || what.starts_with("backwards") => {
                    t.shared.push(line.to_owned());
                }
                _ => {}
            }
            t.lines.push(line.to_owned());
        }
        t
    }

    /// Processes that a handler started and that still live, whether they wrote themselves down or not: everything that
    /// has the folder in its environment or its command line. Each with what it is.
    pub fn alive(&self) -> Vec<(i32, String)> {
        let mark = self.folder.display().to_string();
        let holds = |path: String| {
            std::fs::read(path).is_ok_and(|b| b.windows(mark.len()).any(|w| w == mark.as_bytes()))
        };
        let mut found = Vec::new();
        for e in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let is_ours = holds(format!("/proc/{pid}/environ")) || holds(format!("/proc/{pid}/cmdline"));
            // A process that has ended has neither.
            if is_ours && let Some(fields) = stat(pid) {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                found.push((pid, format!("{pid} state {} parent {} {command}", fields[0], fields[1])));
            }
        }
        found
    }
}
