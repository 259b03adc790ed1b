//! A cgroup v2 per attempt, where the host permits.
//!
//! A process can not leave its cgroup by forking, `setsid` or a changed environment, `cgroup.kill`
//! reaches forks in flight, and `cgroup.events` or a successful `rmdir` prove that nothing is left in it.
//! One that may write to the `cgroup.procs` of another cgroup, as the user of the worker may next to its own, can move there:
//! so the tree is searched by descent and token as well (`attempt.rs`).
//! Only the membership is used, no controller, so a bare mount as on a hybrid host is enough.
//!
//! Making and removing a cgroup costs as much as half a process start, most of it in the kernel's
//! work queues, so one that was left clean serves the next attempt. Whose it is says an attribute.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{XattrFlags, getxattr, setxattr};

const BASE: &str = "surety-keeper-";
/// Attribute of an attempt's cgroup with the mark of its token.
const MARK: &str = "user.surety.attempt";
/// Clean cgroups kept for reuse.
const SPARE: usize = 64;

/// The directory below which a keeper makes the cgroups of its attempts.
pub(super) struct Base {
    dir: PathBuf,
    spare: Arc<Mutex<Vec<Group>>>,
}

impl Base {
    /// Makes the keeper's directory in its own cgroup and proves, by moving the calling process
    /// there and back, that processes can be moved. Call it before the first handler.
    ///
    /// The error says, for one note at start, why there will be no cgroups.
    pub(super) fn create(pid: u32, start_time: u64) -> Result<Self, String> {
        let own = own_dir()?;
        sweep(&own);
        let text = |what: &str, e: io::Error| format!("{what} in {}: {e}", own.display());
        let home = procs(&own).map_err(|e| text("can not write cgroup.procs", e))?;
        let base = Self { dir: own.join(format!("{BASE}{pid}-{start_time}")), spare: Arc::default() };
        fs::create_dir(&base.dir).map_err(|e| text("can not make a cgroup", e))?;
        match base.prove(home) {
            Ok(()) => Ok(base),
            Err(e) => {
                remove_all(&base.dir);
                Err(text("can not use a cgroup", e))
            }
        }
    }

    fn prove(&self, mut home: File) -> io::Result<()> {
        // Since Linux 5.14; without it a tree could not be killed without a race.
        fs::metadata(self.dir.join("cgroup.kill"))?;
        setxattr(&self.dir, MARK, b"-", XattrFlags::empty())?;
        procs(&self.dir)?.write_all(b"0")?;
        home.write_all(b"0")
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A cgroup for one attempt.
    pub(super) fn attempt(&self, id: u64, token: &str) -> io::Result<Group> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let group = match spare {
            Some(group) => group,
            None => {
                let dir = self.dir.join(format!("a{id}"));
                fs::create_dir(&dir)?;
                Group {
                    procs: procs(&dir)?,
                    events: File::open(dir.join("cgroup.events"))?,
                    counted: dir.join("memory.events").exists(),
                    dir,
                    spare: Arc::clone(&self.spare),
                }
            }
        };
        setxattr(&group.dir, MARK, mark(token).as_bytes(), XattrFlags::empty())?;
        Ok(group)
    }
}

/// The cgroup of one attempt.
pub(super) struct Group {
    dir: PathBuf,
    procs: File,
    events: File,
    /// The memory controller counts in it.
    counted: bool,
    spare: Arc<Mutex<Vec<Group>>>,
}

impl Group {
    /// `cgroup.procs`, open for writing: a `0` moves the writer.
    pub(super) fn procs(&self) -> &File {
        &self.procs
    }

    /// Proves cheaply that no process is left in it or below, and that it can be used again.
    pub(super) fn is_clean(&self) -> bool {
        let mut text = [0u8; 64];
        let read = self.events.read_at(&mut text, 0).unwrap_or(0);
        text.get(..read) == Some(b"populated 0\nfrozen 0\n")
    }

    /// Gives a clean cgroup back for the next attempt.
    pub(super) fn reuse(self) {
        let pool = Arc::clone(&self.spare);
        let mut spare = pool.lock().unwrap_or_else(PoisonError::into_inner);
        // The counts of a memory controller would be those of all its attempts.
        let counted = self.counted;
        if !counted && spare.len() < SPARE {
            spare.push(self);
        } else if !self.remove() {
            tracing::warn!(dir = %self.dir.display(), "a cgroup stays");
        }
    }

    /// Removes the cgroup; `true` proves that no process is left in it.
    pub(super) fn remove(&self) -> bool {
        match fs::remove_dir(&self.dir) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            // The handler may have made cgroups below.
            Err(_) if !populated(&self.dir) => {
                remove_all(&self.dir);
                true
            }
            Err(_) => false,
        }
    }

    /// The processes in it and below.
    pub(super) fn pids(&self) -> Vec<i32> {
        pids_below(&self.dir)
    }

    /// Lets nothing in it go on until it is killed. What can not be frozen is killed all the same.
    pub(super) fn freeze(&self) {
        if let Err(error) = fs::write(self.dir.join("cgroup.freeze"), "1") {
            tracing::debug!(%error, dir = %self.dir.display(), "can not freeze a cgroup");
        }
    }

    /// Sends KILL to all in it and below, forks in flight included.
    pub(super) fn kill(&self) -> io::Result<()> {
        kill_dir(&self.dir)
    }

    /// Whether the kernel killed something in it for want of memory.
    pub(super) fn oom(&self) -> bool {
        fs::read_to_string(self.dir.join("memory.events")).is_ok_and(|text| {
            text.lines()
                .filter_map(|l| l.strip_prefix("oom_kill "))
                .any(|n| n.trim().parse::<u64>().is_ok_and(|n| n > 0))
        })
    }
}

/// Kills all that is left below a directory and removes it when empty. `true` when nothing is left;
/// after a kill it takes another call to see that.
pub(super) fn kill_base(dir: &Path) -> bool {
    if !dir.exists() {
        return true;
    }
    if populated(dir) {
        if let Err(error) = kill_dir(dir) {
            tracing::warn!(%error, dir = %dir.display(), "can not kill a cgroup");
        }
        if populated(dir) {
            return false;
        }
    }
    remove_all(dir);
    true
}

/// Kills the cgroups that earlier keepers in the same place made for `token`.
/// Returns the processes (pid, start time) that were in them and whether all are gone.
pub(super) fn kill_marked(token: &str) -> (Vec<(i32, u64)>, bool) {
    let (mut found, mut gone) = (Vec::new(), true);
    let Ok(own) = own_dir() else {
        return (found, gone);
    };
    let wanted = mark(token);
    for base in children(&own).into_iter().filter(|d| name(d).starts_with(BASE)) {
        for dir in children(&base) {
            let mut value = [0u8; 32];
            let length = getxattr(&dir, MARK, &mut value).unwrap_or(0);
            if value.get(..length) == Some(wanted.as_bytes()) {
                let processes = pids_below(&dir).into_iter().filter_map(super::tree::read_process);
                found.extend(processes.map(|p| (p.pid, p.start_time)));
                gone &= kill_base(&dir);
            }
        }
    }
    sweep(&own);
    (found, gone)
}

/// Removes the empty directories of keepers that are no more. What is populated stays: whoever
/// knows the attempts kills them with [`super::kill_left_over`].
fn sweep(own: &Path) {
    for dir in children(own) {
        let Some(owner) = name(&dir).strip_prefix(BASE).map(str::to_owned) else {
            continue;
        };
        let Some((pid, start)) = owner.split_once('-') else {
            continue;
        };
        let (Ok(pid), Ok(start)) = (pid.parse::<i32>(), start.parse::<u64>()) else {
            continue;
        };
        let alive = super::tree::read_process(pid).is_some_and(|p| p.alive && p.start_time == start);
        if !alive && !populated(&dir) {
            remove_all(&dir);
        }
    }
}

/// The token at a fixed length: FNV-1a. It tells apart the attempts of one host; it is no
/// protection.
fn mark(token: &str) -> String {
    let hash = token
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// The directory of the calling process's cgroup v2.
fn own_dir() -> Result<PathBuf, String> {
    let membership = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
    let path =
        membership.lines().find_map(|l| l.strip_prefix("0::")).ok_or("this process is in no cgroup v2")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    mounts
        .lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            if !right.starts_with("cgroup2 ") {
                return None;
            }
            let mut fields = left.split(' ').skip(3);
            let (root, at) = (fields.next()?, fields.next()?);
            // What is mounted may be a part of the hierarchy only (a container).
            let below = Path::new(path).strip_prefix(root).ok()?;
            Some(Path::new(at).join(below))
        })
        .ok_or_else(|| "no cgroup v2 mount shows the cgroup of this process".to_owned())
}

fn procs(dir: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(dir.join("cgroup.procs"))
}

fn kill_dir(dir: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(dir.join("cgroup.kill"))?.write_all(b"1")
}

fn populated(dir: &Path) -> bool {
    match fs::read_to_string(dir.join("cgroup.events")) {
        Ok(text) => text.lines().any(|l| l == "populated 1"),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn name(dir: &Path) -> String {
    dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn collect(dir: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    for child in children(dir) {
        collect(&child, pids);
    }
}

fn remove_all(dir: &Path) {
    for child in children(dir) {
        remove_all(&child);
    }
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, dir = %dir.display(), "a cgroup stays");
    }
}

/// The processes below the directory of a dead keeper.
pub(super) fn pids_below(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    collect(dir, &mut pids);
    pids
}
