//! The local record of running commands: one small file an attempt, in a folder per session. A worker that starts after a
//! crash finds there what may still be alive (J-06).
//!
//! Whoever may write here can have processes killed by the next start. So the folder is this user's alone, nothing in it is
//! followed elsewhere, and a record that is not what this program writes is set aside and kept.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use surety_common::domain::{JobId, ids::SessionId};

/// One running command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalAttempt {
    pub(crate) job: String,
    pub(crate) epoch: u64,
    /// The keeper's token of the attempt; its process tree carries it.
    pub(crate) token: String,
    /// 0 until the process was started.
    pub(crate) pid: u32,
    /// Start time of the process (field 22 of `/proc/<pid>/stat`), so that a reused id is never mistaken for it.
    pub(crate) start_time: u64,
    /// The boot of this machine in which it ran. Empty in records of earlier releases.
    #[serde(default)]
    pub(crate) boot: String,
}

impl LocalAttempt {
    /// The process that it names, if it can be alive in this boot: its id, or 0.
    pub(crate) fn pid_now(&self) -> u32 {
        if self.boot.is_empty() || self.boot == boot_id() { self.pid } else { 0 }
    }
}

/// Records are about this large; no more is read of one.
const MOST: u64 = 64 << 10;
/// Folder for what is no record.
const ASIDE: &str = "set-aside";

/// The id of this boot of the machine; empty where the kernel does not say.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The folder with the records of this worker's sessions.
#[derive(Debug, Clone)]
pub(crate) struct LocalState {
    root: PathBuf,
    boot: String,
}

/// A session of an earlier incarnation, with what it was running.
#[derive(Debug)]
pub(crate) struct LeftOver {
    pub(crate) session: SessionId,
    pub(crate) attempts: Vec<LocalAttempt>,
    folder: PathBuf,
    // Held while the left-over is dealt with, so that two workers do not do it at once.
    _lock: fs::File,
}

impl LeftOver {
    /// Removes the records: nothing of them is alive and the store knows.
    pub(crate) fn clear(self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }
}

/// Keeps a session's folder locked while its process lives.
#[derive(Debug)]
pub(crate) struct SessionFolder {
    folder: PathBuf,
    _lock: fs::File,
}

impl SessionFolder {
    /// Removes the folder of a session that ended in order.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }
}

impl LocalState {
    /// Makes the folder, for this user alone, or takes one that nobody else could write to.
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        make(root, true)?;
        let root = fs::canonicalize(root)?;
        let found = fs::metadata(&root)?;
        let refused = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        let own = rustix::process::geteuid().as_raw();
        if found.uid() != own {
            return refused(format!(
                "it belongs to user {} and not to this one ({own}): name another folder as worker.state_dir, or give it away (chown {own})",
                found.uid()
            ));
        }
        if found.mode() & 0o022 != 0 {
            return refused(format!(
                "others may write to it (mode {:03o}), so its records cannot be trusted: look at what is in it, then `chmod 700` it",
                found.mode() & 0o777
            ));
        }
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Self { root, boot: boot_id() })
    }

    /// Makes and locks the folder of a session.
    pub(crate) fn open(&self, session: &SessionId) -> io::Result<SessionFolder> {
        let folder = self.root.join(session.as_str());
        make(&folder, false)?;
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true);
        let lock = own_file(options, &folder.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(SessionFolder { folder, _lock: lock })
    }

    /// The sessions whose process is gone: their lock is free.
    pub(crate) fn left_over(&self) -> io::Result<Vec<LeftOver>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let folder = entry.path();
            let Some(session) =
                folder.file_name().and_then(|n| n.to_str()).and_then(|n| SessionId::new(n).ok())
            else {
                continue;
            };
            let found = fs::symlink_metadata(&folder)?;
            if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
                tracing::warn!(path = %folder.display(), "no folder of this user's: it is let be");
                continue;
            }
            let Ok(lock) = own_file(fs::OpenOptions::new().read(true), &folder.join("lock")) else {
                continue;
            };
            if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let attempts = self.read_attempts(&folder, &session)?;
            out.push(LeftOver { session, attempts, folder, _lock: lock });
        }
        Ok(out)
    }

    fn read_attempts(&self, folder: &Path, session: &SessionId) -> io::Result<Vec<LocalAttempt>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read_record(&path, session) {
                Ok(a) => out.push(a),
                Err(why) => {
                    let aside = self.set_aside(&path, session)?;
                    tracing::error!(
                        file = %path.display(), why, kept = %aside.display(),
                        "no record of a running command: nothing is killed for it, and it is set aside"
                    );
                }
            }
        }
        Ok(out)
    }

    /// Moves what is no record to where it is kept; says where.
    fn set_aside(&self, path: &Path, session: &SessionId) -> io::Result<PathBuf> {
        let to = self.root.join(ASIDE);
        make(&to, false)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let aside = to.join(format!("{session}.{name}"));
        fs::rename(path, &aside)?;
        Ok(aside)
    }

    fn file(&self, session: &SessionId, job: &JobId, epoch: u64) -> PathBuf {
        self.root.join(session.as_str()).join(format!("{job}.{epoch}.json"))
    }

    /// Records that a command is about to start.
    pub(crate) fn begin(&self, session: &SessionId, job: &JobId, epoch: u64, token: &str) -> io::Result<()> {
        self.started(session, job, epoch, token, 0, 0)
    }

    /// Records the process of a command.
    pub(crate) fn started(
        &self,
        session: &SessionId,
        job: &JobId,
        epoch: u64,
        token: &str,
        pid: u32,
        start_time: u64,
    ) -> io::Result<()> {
        let (job_id, boot) = (job.to_string(), self.boot.clone());
        let record = LocalAttempt { job: job_id, epoch, token: token.to_owned(), pid, start_time, boot };
        let path = self.file(session, job, epoch);
        let temp = path.with_extension("tmp");
        fs::write(&temp, serde_json::to_vec(&record)?)?;
        // Replaced in one step: a reader sees the old record or the new one.
        fs::rename(&temp, &path)
    }

    /// Removes the record: the whole tree of the command is dead.
    pub(crate) fn end(&self, session: &SessionId, job: &JobId, epoch: u64) -> io::Result<()> {
        fs::remove_file(self.file(session, job, epoch))
    }
}

/// Makes a folder for this user alone, if it is not there.
fn make(folder: &Path, with_parents: bool) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(with_parents).mode(0o700).create(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Opens a regular file of this user's, through no link; one that is made is for this user alone.
fn own_file(options: &mut fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = options.mode(0o600).custom_flags(flags.cast_signed()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "no regular file of this user's"));
    }
    Ok(file)
}

/// Reads one record. The error says what is wrong with it.
fn read_record(path: &Path, session: &SessionId) -> Result<LocalAttempt, String> {
    let file = own_file(fs::OpenOptions::new().read(true), path).map_err(|e| e.to_string())?;
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text).map_err(|e| e.to_string())?;
    let record: LocalAttempt = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let LocalAttempt { job, epoch, token, pid, .. } = &record;
    if path.file_name().and_then(|n| n.to_str()) != Some(&format!("{job}.{epoch}.json")) {
        return Err("its name is not that of its job and epoch".to_owned());
    }
    if *token != token_of(job, *epoch, session) {
        return Err("its token is not that of its job, epoch and session".to_owned());
    }
    if *pid == 1 || i32::try_from(*pid).is_err() {
        return Err(format!("{pid} is the id of no command"));
    }
    Ok(record)
}

/// The keeper's token of an attempt.
pub(crate) fn token_of(job: &str, epoch: u64, session: &SessionId) -> String {
    format!("{job}.{epoch}.{session}")
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: J-06
    #[test]
    fn records_of_a_dead_session_are_found_and_those_of_a_live_one_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = LocalState::new(dir.path()).unwrap();
        let (dead, live) = (SessionId::new("dead").unwrap(), SessionId::new("live").unwrap());
        let job = JobId::new("j1").unwrap();
        let a = state.open(&dead).unwrap();
        let _b = state.open(&live).unwrap();
        let token = token_of("j1", 2, &dead);
        state.begin(&dead, &job, 2, &token).unwrap();
        state.started(&dead, &job, 2, &token, 77, 99).unwrap();
        state.begin(&live, &job, 3, &token_of("j1", 3, &live)).unwrap();
        assert!(state.left_over().unwrap().is_empty(), "both are locked");
        drop(a);
        let found = state.left_over().unwrap();
        assert_eq!(found.len(), 1);
        let boot = boot_id();
        assert!(!boot.is_empty());
        let want = LocalAttempt { job: "j1".into(), epoch: 2, token, pid: 77, start_time: 99, boot };
        assert_eq!(found[0].attempts, std::slice::from_ref(&want));
        assert_eq!(want.pid_now(), 77);
        assert_eq!(LocalAttempt { boot: "another".into(), ..want }.pid_now(), 0, "nothing outlives a boot");
        for f in found {
            f.clear().unwrap();
        }
        assert!(state.left_over().unwrap().is_empty());
    }

    // Shows: J-06
    #[test]
    fn what_is_no_record_is_set_aside_kept_and_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = LocalState::new(dir.path()).unwrap();
        let dead = SessionId::new("dead").unwrap();
        drop(state.open(&dead).unwrap());
        let at = |name: &str| dir.path().join("dead").join(name);
        let record = |job: &str, token: &str, pid: &str| {
            format!(r#"{{"job":"{job}","epoch":1,"token":"{token}","pid":{pid},"start_time":5}}"#)
        };
        let planted = [
            ("broken.1.json", "{".to_owned()),
            ("large.1.json", record("large", "large.1.dead", "4294967295")),
            ("huge.1.json", record("huge", "huge.1.dead", "99999999999")),
            ("init.1.json", record("init", "init.1.dead", "1")),
            ("other.1.json", record("other", "other.1.elsewhere", "7")),
            ("named.1.json", record("another", "another.1.dead", "7")),
            ("long.1.json", " ".repeat(1 << 20) + &record("long", "long.1.dead", "7")),
        ];
        for (name, text) in &planted {
            fs::write(at(name), text).unwrap();
        }
        fs::write(dir.path().join("real"), record("link", "link.1.dead", "7")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), at("link.1.json")).unwrap();
        fs::create_dir(at("folder.1.json")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe.1.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        // One of an earlier release, which is good.
        fs::write(at("old.1.json"), record("old", "old.1.dead", "7")).unwrap();
        let found = state.left_over().unwrap();
        let jobs: Vec<_> = found[0].attempts.iter().map(|a| (a.job.as_str(), a.pid_now())).collect();
        assert_eq!(jobs, [("old", 7)]);
        for f in found {
            f.clear().unwrap();
        }
        for (name, text) in &planted {
            let kept = fs::read_to_string(dir.path().join(ASIDE).join(format!("dead.{name}"))).unwrap();
            assert_eq!(kept, *text);
        }
        assert_eq!(fs::read_dir(dir.path().join(ASIDE)).unwrap().count(), planted.len() + 3);
        assert!(state.left_over().unwrap().is_empty(), "what is set aside is no session");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_folder_is_for_its_user_alone_and_one_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/state");
        let state = LocalState::new(&root).unwrap();
        let session = SessionId::new("s").unwrap();
        let _folder = state.open(&session).unwrap();
        assert_eq!((mode(&root), mode(&root.join("s")), mode(&root.join("s/lock"))), (0o700, 0o700, 0o600));
        let set = |m| fs::set_permissions(&root, fs::Permissions::from_mode(m)).unwrap();
        // Made by an earlier release: nobody else could write.
        set(0o755);
        LocalState::new(&root).unwrap();
        assert_eq!(mode(&root), 0o700);
        for m in [0o770, 0o702, 0o1777] {
            set(m);
            let e = LocalState::new(&root).unwrap_err().to_string();
            assert!(e.contains("others may write") && e.contains("chmod 700"), "{e}");
        }
        set(0o700);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&root, Some(12345), None).unwrap();
            let e = LocalState::new(&root).unwrap_err().to_string();
            assert!(e.contains("belongs to user 12345"), "{e}");
            std::os::unix::fs::chown(&root, Some(0), None).unwrap();
            // A folder of another one in there.
            std::os::unix::fs::chown(root.join("s"), Some(12345), None).unwrap();
            drop(_folder);
            assert!(LocalState::new(&root).unwrap().left_over().unwrap().is_empty());
        }
    }
}
