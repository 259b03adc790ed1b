//! Where the configuration comes from, and whether its file is another one by now.
//!
//! The file is looked at and not watched: a look is one call every second, and finds what a watch misses or reports wrongly:
//! editors that replace the file, a symbolic link on the way to it that is turned (Kubernetes), file systems of other hosts.

use std::{os::unix::fs::MetadataExt, path::PathBuf};

use crate::config::{ConfigError, ConnectionOptions, Flags, Settings, load_read, read};

/// File, environment and flags of this process.
#[derive(Debug, Clone)]
pub struct Source {
    file: PathBuf,
    /// It was asked for, or was there once: from then on its absence is a problem and not the defaults.
    must_exist: bool,
    flags: Flags,
    seen: Seen,
    /// Once it was read, something that is no file (a pipe: `--config <(…)`) has nothing more to say.
    was_read: bool,
    /// What was read last, and was good, says something.
    has_text: bool,
}

/// What tells one state of the file from the next; of the file itself, behind every link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// States of the file (`None`: there is none).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    /// When it was read last.
    read: Option<Stamp>,
    /// At the last look.
    last: Option<Stamp>,
}

impl Seen {
    /// Whether it is time to read: the file is not what was read, and did not change since the last look, so that nobody is in
    /// the middle of writing it.
    fn look(&mut self, now: Option<Stamp>) -> bool {
        let is_settled = self.last == now;
        self.last = now;
        is_settled && self.read != now
    }
}

impl Source {
    /// The file that these options name, or the default one; and these flags, which hold those of the options too.
    pub fn new(options: &ConnectionOptions, flags: Flags) -> Self {
        let (file, must_exist) = options.source();
        Self { file, must_exist, flags, seen: Seen::default(), was_read: false, has_text: false }
    }

    /// Reads everything anew and checks it, as a start does. But a file that says nothing any more is refused: somebody is about to
    /// write it, or its disk is full, and to take every setting back to its default is not what was meant.
    pub fn load(&mut self) -> Result<Settings, ConfigError> {
        // Before the text: if it changes in between, the next look finds that.
        let stamp = self.stamp();
        self.seen.read = stamp;
        self.must_exist |= stamp.is_some();
        if std::mem::replace(&mut self.was_read, true) && self.must_exist && stamp.is_none() {
            let file = self.file();
            let problem =
                format!("cannot read the configuration file {file}: it is gone, or no regular file");
            return Err(ConfigError { problems: vec![problem] });
        }
        let text = self.must_exist.then(|| read(&self.file)).transpose()?;
        let has_text = text.as_ref().is_some_and(|(text, _)| !text.trim().is_empty());
        if self.has_text && !has_text {
            let problem = format!(
                "the configuration file {} is empty, and was not: where every setting is to be the default, leave a comment in it",
                self.file()
            );
            return Err(ConfigError { problems: vec![problem] });
        }
        let settings = load_read(text.as_ref(), &self.flags)?;
        self.has_text = has_text;
        Ok(settings)
    }

    /// For people: which file this is about.
    pub fn file(&self) -> String {
        self.file.display().to_string()
    }

    /// Whether the file changed since it was read. Asked again and again: a change is told when two looks saw the same of it.
    pub(super) fn is_changed(&mut self) -> bool {
        let now = self.stamp();
        self.seen.look(now)
    }

    fn stamp(&self) -> Option<Stamp> {
        let m = std::fs::metadata(&self.file).ok().filter(std::fs::Metadata::is_file)?;
        Some(Stamp {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: PathBuf) -> Source {
        Source {
            file,
            must_exist: false,
            flags: vec![],
            seen: Seen::default(),
            was_read: false,
            has_text: false,
        }
    }

    fn stamp(inode: u64) -> Option<Stamp> {
        Some(Stamp { device: 1, inode, size: 10, modified: (0, 0), changed: (0, 0) })
    }

    #[test]
    fn a_change_is_read_once_and_when_it_has_settled() {
        let mut seen = Seen { read: stamp(1), last: None };
        for (now, is_read) in [
            (stamp(1), false),
            (stamp(1), false),
            // Being written: each look sees another state.
            (stamp(2), false),
            (stamp(3), false),
            (stamp(3), true),
            // Gone for the blink of a rename, then for good.
            (None, false),
            (stamp(4), false),
            (stamp(4), true),
            (None, false),
            (None, true),
            (None, false),
        ] {
            assert_eq!(seen.look(now), is_read, "{now:?} after {seen:?}");
            if is_read {
                seen.read = now;
            }
        }
    }

    #[test]
    fn a_link_that_is_turned_is_a_change_of_the_file() {
        // As Kubernetes does it: surety.toml -> ..data/surety.toml, ..data -> one folder or the next.
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (folder, drain) in [("one", "11s"), ("two", "12s")] {
            std::fs::create_dir(at(folder)).unwrap();
            let text = format!("[worker]\ndrain = \"{drain}\"");
            std::fs::write(at(folder).join("surety.toml"), text).unwrap();
        }
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).unwrap();
        link("one", "..data");
        link("..data/surety.toml", "surety.toml");
        let mut source = of(at("surety.toml"));
        let drain = |source: &mut Source| source.load().unwrap().worker.drain.as_secs();
        assert_eq!(drain(&mut source), 11);
        assert!(!source.is_changed() && !source.is_changed());
        link("two", "..data.new");
        std::fs::rename(at("..data.new"), at("..data")).unwrap();
        assert!(!source.is_changed() && source.is_changed());
        assert_eq!(drain(&mut source), 12);
        assert!(!source.is_changed() && !source.is_changed());
    }

    // Shows: G-08
    #[test]
    fn a_file_that_became_empty_is_a_problem_and_not_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("surety.toml");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        // At a start it is as good as none.
        write("");
        let mut source = of(file.clone());
        assert_eq!(source.load().unwrap().worker.slots.0, 8);
        write("[worker]\nslots = 3");
        assert_eq!(source.load().unwrap().worker.slots.0, 3);
        for empty in ["", " \n\t\n"] {
            write(empty);
            let e = source.load().unwrap_err().to_string();
            assert!(e.contains("surety.toml is empty, and was not"), "{e}");
        }
        write("# nothing, on purpose");
        assert_eq!(source.load().unwrap().worker.slots.0, 8);
    }

    // Shows: G-08
    #[test]
    fn a_file_that_is_gone_is_a_problem_and_not_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("surety.toml");
        let mut source = of(file.clone());
        assert_eq!(source.load().unwrap().worker.slots.0, 8);
        std::fs::write(&file, "[worker]\nslots = 3").unwrap();
        assert!(!source.is_changed() && source.is_changed());
        assert_eq!(source.load().unwrap().worker.slots.0, 3);
        std::fs::remove_file(&file).unwrap();
        assert!(!source.is_changed() && source.is_changed());
        assert!(source.load().unwrap_err().to_string().contains("cannot read"));
    }
}
