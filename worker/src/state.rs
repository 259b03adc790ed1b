//! The local record of running commands: one small file an attempt, in a folder per session. A worker that starts after a
//! crash finds there what may still be alive (J-06).

use std::{
    fs, io,
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
}

/// The folder with the records of this worker's sessions.
#[derive(Debug, Clone)]
pub(crate) struct LocalState {
    root: PathBuf,
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
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: fs::canonicalize(root)? })
    }

    /// Makes and locks the folder of a session.
    pub(crate) fn open(&self, session: &SessionId) -> io::Result<SessionFolder> {
        let folder = self.root.join(session.as_str());
        fs::create_dir_all(&folder)?;
        let lock = fs::File::create(folder.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(SessionFolder { folder, _lock: lock })
    }

    /// The sessions whose process is gone: their lock is free.
    pub(crate) fn left_over(&self) -> io::Result<Vec<LeftOver>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let folder = entry?.path();
            let Some(session) =
                folder.file_name().and_then(|n| n.to_str()).and_then(|n| SessionId::new(n).ok())
            else {
                continue;
            };
            let Ok(lock) = fs::File::open(folder.join("lock")) else { continue };
            if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let attempts = read_attempts(&folder)?;
            out.push(LeftOver { session, attempts, folder, _lock: lock });
        }
        Ok(out)
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
        let record = LocalAttempt { job: job.to_string(), epoch, token: token.to_owned(), pid, start_time };
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

fn read_attempts(folder: &Path) -> io::Result<Vec<LocalAttempt>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        match serde_json::from_slice(&fs::read(&path)?) {
            Ok(a) => out.push(a),
            Err(e) => {
                let aside = path.with_extension("unreadable");
                tracing::warn!(file = %path.display(), error = %e, "unreadable local record is set aside");
                fs::rename(&path, &aside)?;
            }
        }
    }
    Ok(out)
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
        state.begin(&dead, &job, 2, "t").unwrap();
        state.started(&dead, &job, 2, "t", 77, 99).unwrap();
        state.begin(&live, &job, 3, "u").unwrap();
        fs::write(dir.path().join("dead/broken.1.json"), b"{").unwrap();
        assert!(state.left_over().unwrap().is_empty(), "both are locked");
        drop(a);
        let found = state.left_over().unwrap();
        assert_eq!(found.len(), 1);
        let want = LocalAttempt { job: "j1".into(), epoch: 2, token: "t".into(), pid: 77, start_time: 99 };
        assert_eq!(found[0].attempts, [want]);
        for f in found {
            f.clear().unwrap();
        }
        assert!(state.left_over().unwrap().is_empty());
    }
}
