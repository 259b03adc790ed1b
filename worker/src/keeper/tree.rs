//! Finding and killing the processes of an attempt by `/proc`.
//!
//! Needed without a cgroup, after the death of a keeper, and for what an earlier worker left. A
//! pid is never trusted by itself: a signal goes through a pidfd, opened before the start time of
//! its process is compared.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cgroup;
use super::protocol::TOKEN_VARIABLE;

/// What `/proc/<pid>/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// Field 22, in clock ticks since boot.
    pub(super) start_time: u64,
    /// Not a zombie. (A leader that left its threads running shows as one, but has threads.)
    pub(super) alive: bool,
}

/// By what the processes of an attempt are known.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// The main process; also its session and group. 0 when it was not learnt.
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) token: String,
}

/// An attempt that has processes below the same keeper.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) mark: Mark,
    /// Nothing of it may live on: its main process has ended, or it is being killed.
    pub(super) is_ending: bool,
}

/// Where processes of the attempt can be, which decides how much proof each one takes.
pub(super) enum Scope<'a> {
    /// Below this keeper, together with all attempts that it has. Asked for after each look at the processes, so that a main
    /// process that the look saw is known.
    Keeper { pid: i32, owners: &'a dyn Fn() -> Vec<Owner> },
    /// Below this worker, whose keeper died.
    Worker { pid: i32 },
    /// Anywhere.
    Host,
}

/// All processes at one moment.
pub(super) struct Table(HashMap<i32, Process>);

impl Table {
    pub(super) fn read() -> io::Result<Self> {
        let mut all = HashMap::new();
        for entry in std::fs::read_dir("/proc")? {
            // An entry that vanished meanwhile is no error.
            let Ok(entry) = entry else { continue };
            let pid = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
            if let Some(process) = pid.and_then(read_process) {
                all.insert(process.pid, process);
            }
        }
        Ok(Self(all))
    }

    /// The zombies that wait for `parent`.
    pub(super) fn zombies(&self, parent: i32) -> impl Iterator<Item = i32> + '_ {
        self.0.values().filter(move |p| p.parent == parent && !p.alive).map(|p| p.pid)
    }

    /// From `pid` upwards, itself first. Bounded, as a table read piecemeal may hold a circle.
    fn ancestors(&self, pid: i32) -> impl Iterator<Item = &Process> + '_ {
        std::iter::successors(self.0.get(&pid), |p| self.0.get(&p.parent)).take(4096)
    }

    /// The living processes of `mark`.
    fn members(
        &self,
        mark: &Mark,
        scope: &Scope<'_>,
        owners: &[Owner],
        seen: &mut Environments,
    ) -> Vec<Process> {
        let main_is = |m: &Mark, p: &Process| p.pid == m.pid && p.start_time == m.start_time;
        let main_known = self.0.get(&mark.pid).is_some_and(|p| main_is(mark, p));
        let anchor = match scope {
            Scope::Keeper { pid, .. } | Scope::Worker { pid } => Some(*pid),
            Scope::Host => None,
        };
        let is_other = |o: &&Owner| o.mark.token != mark.token;
        let own_pid = i32::try_from(std::process::id()).unwrap_or(0);
        // The number of a session or group stays taken while it has members, so it proves
        // something as long as the main process is there, or below our own subreaper.
        let by_number = mark.pid > 0 && (main_known || anchor.is_some());
        let mut ours = |a: &Process| {
            a.start_time >= mark.start_time
                && (main_is(mark, a)
                    || by_number && (a.session == mark.pid || a.group == mark.pid)
                    || seen.carries(a, &mark.token))
        };
        let mut found = Vec::new();
        for process in self.0.values().filter(|p| p.alive && p.pid != own_pid) {
            if Some(process.pid) == anchor {
                continue;
            }
            // The chain up to, without, the anchor; outside of the anchor's tree nothing matches.
            let mut inside = anchor.is_none();
            let mut chain = Vec::new();
            for ancestor in self.ancestors(process.pid) {
                if Some(ancestor.pid) == anchor {
                    inside = true;
                    break;
                }
                chain.push(*ancestor);
            }
            let is_others = |a: &Process| owners.iter().filter(is_other).any(|o| main_is(&o.mark, a));
            if !inside || chain.iter().any(is_others) {
                continue;
            }
            if Self::unclaimed(&chain, owners, scope) || chain.iter().any(&mut ours) {
                found.push(*process);
            }
        }
        found
    }

    /// Whether no attempt that goes on is old enough to own this process below the keeper: then it
    /// goes, though it shed session, group and token and its parents are gone.
    fn unclaimed(chain: &[Process], owners: &[Owner], scope: &Scope<'_>) -> bool {
        let may_own = |o: &Owner, top: &Process| !o.is_ending && o.mark.start_time <= top.start_time;
        matches!(scope, Scope::Keeper { .. })
            && chain.last().is_some_and(|top| !owners.iter().any(|o| may_own(o, top)))
    }
}

/// The children of this process, where the kernel lists them. To be called by the thread that starts and reaps them, as the
/// list is complete only while none is reaped.
pub(super) fn children(own: i32) -> Option<Vec<i32>> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).ok()?;
    text.split_whitespace().map(|pid| pid.parse().ok()).collect()
}

/// Reads one process; `None` when there is none.
pub(super) fn read_process(pid: i32) -> Option<Process> {
    let mut buffer = [0u8; 1024];
    let mut file = File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut buffer).ok()?;
    let text = buffer.get(..length)?;
    // The name may hold spaces and parentheses: the fields follow the last one.
    let after = text.iter().rposition(|b| *b == b')')?;
    let fields = std::str::from_utf8(text.get(after + 2..)?).ok()?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    let threads: i64 = fields.nth(13)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    let alive = !matches!(state, "Z" | "X" | "x") || threads > 1;
    Some(Process { pid, parent, group, session, start_time, alive })
}

/// What one look learnt of the environments with which processes were started.
#[derive(Default)]
struct Environments {
    tokens: HashMap<i32, Option<Vec<u8>>>,
    /// A process was in the middle of its `exec`, where it shows none.
    is_unsettled: bool,
}

impl Environments {
    /// Whether a process carries the token. Reads each environment once.
    fn carries(&mut self, process: &Process, token: &str) -> bool {
        if token.is_empty() {
            return false;
        }
        let is_unsettled = &mut self.is_unsettled;
        let found = self.tokens.entry(process.pid).or_insert_with(|| match token_of(process.pid) {
            Found::Token(value) => Some(value),
            Found::None => None,
            Found::Unsettled => {
                *is_unsettled = true;
                None
            }
        });
        found.as_deref() == Some(token.as_bytes())
    }
}

/// What the environment of a process has.
enum Found {
    Token(Vec<u8>),
    None,
    /// It cannot be told yet.
    Unsettled,
}

fn token_of(pid: i32) -> Found {
    match environment(pid) {
        Ok(Some(environment)) => environment
            .split(|b| *b == 0)
            .find_map(|entry| entry.strip_prefix(TOKEN_VARIABLE.as_bytes())?.strip_prefix(b"="))
            .map_or(Found::None, |value| Found::Token(value.to_vec())),
        Ok(None) => Found::Unsettled,
        Err(_) => Found::None,
    }
}

/// The environment of a process; `None` in the middle of an `exec`, where it reads as empty. In several pieces it would end at
/// any such moment, so it is read in one.
///
/// Never waits. An environment that is empty for good is told from that moment by what the kernel says of the program: it is
/// all there, has no room for an environment, and was the same program before the environment was read. Zombies and threads of
/// the kernel never have one.
fn environment(pid: i32) -> io::Result<Option<Vec<u8>>> {
    let may_have_one = |p: Process| p.alive && !(p.session == 0 && p.group == 0 && p.parent == KTHREADD);
    let mut before = None;
    for _ in 0..4 {
        let mut file = File::open(format!("/proc/{pid}/environ"))?;
        let mut read = vec![0; ONE_PIECE];
        let length = file.read(&mut read)?;
        read.truncate(length);
        if length == ONE_PIECE {
            file.read_to_end(&mut read)?;
        }
        if length > 0 || !read_process(pid).is_some_and(may_have_one) {
            return Ok(Some(read));
        }
        let Some(program) = program(pid) else { return Ok(None) };
        if program.environment_start == program.environment_end && before == Some(program) {
            return Ok(Some(read));
        }
        before = Some(program);
    }
    Ok(None)
}

/// The places in memory of a program that is executed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Program {
    stack: u64,
    environment_start: u64,
    environment_end: u64,
}

/// Reads fields 28, 48, 50 and 51 of `/proc/<pid>/stat`. `None`: an `exec` is under way. It sets the first one twice: at first to where
/// the arguments begin (field 48), and last, when the places of arguments and environment are known, to what stands before them.
fn program(pid: i32) -> Option<Program> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after = text.iter().rposition(|b| *b == b')')?;
    let fields = std::str::from_utf8(text.get(after + 2..)?).ok()?;
    let fields: Vec<u64> = fields.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let field = |n: usize| fields.get(n - 3).copied();
    let program = Program { stack: field(28)?, environment_start: field(50)?, environment_end: field(51)? };
    let is_whole = program.stack > 0 && program.stack < field(48)? && program.environment_end > 0;
    is_whole.then_some(program)
}

/// Bytes that hold most environments.
const ONE_PIECE: usize = 64 << 10;

/// The parent of all threads of the kernel.
const KTHREADD: i32 = 2;

/// Sends a signal to exactly this process. `false` when it is gone or may not be signalled.
pub(super) fn signal(process: &Process, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return false;
    };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // The pidfd holds on to whoever has the number now; only then is its identity checked.
    if read_process(process.pid).is_none_or(|p| p.start_time != process.start_time) {
        return false;
    }
    pidfd_send_signal(&pidfd, signal).is_ok()
}

/// Looks at all processes that one strike makes at most.
const LOOKS: u32 = 64;
/// How long a strike looks for more before it kills what it has.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// Pauses of one strike for processes in the middle of an `exec`, each longer than the last: 21 ms together.
const PAUSES: u32 = 20;

/// One round against the trees of `marks`: stops their processes until a look finds no new ones (a
/// stopped process can not fork away from under the search, and no link of descent is lost), then
/// kills them all. Returns for each mark those that were alive; none is the proof that its tree is dead.
///
/// Blocks, for a bounded time: not for a thread that others wait for.
pub(super) fn strike(marks: &[Mark], scope: &Scope<'_>) -> io::Result<Vec<Vec<Process>>> {
    let mut found: Vec<Vec<Process>> = vec![Vec::new(); marks.len()];
    let mut known = HashSet::new();
    let (began, mut pauses) = (Instant::now(), 0);
    for _ in 0..LOOKS {
        let table = Table::read()?;
        let owners = if let Scope::Keeper { owners, .. } = scope { owners() } else { Vec::new() };
        let mut seen = Environments::default();
        let mut is_news = false;
        for (mark, found) in marks.iter().zip(&mut found) {
            for process in table.members(mark, scope, &owners, &mut seen) {
                if known.insert((process.pid, process.start_time)) {
                    is_news = true;
                    signal(&process, Signal::STOP);
                    found.push(process);
                }
            }
        }
        if began.elapsed() > LOOK_TIME {
            break;
        }
        if !is_news {
            if !seen.is_unsettled || pauses == PAUSES {
                break;
            }
            pauses += 1;
            std::thread::sleep(Duration::from_micros(100) * pauses);
        }
    }
    for process in found.iter().flatten() {
        signal(process, Signal::KILL);
    }
    Ok(found)
}

/// A cheap proof that the keeper `pid` has no unknown children, for the end of a short attempt:
/// pids are given out in order, so what the attempt started has a number between its main process
/// and the last one given out. `None` when that range wrapped or is too wide to be cheap.
pub(super) fn no_strays_since(main: i32, keeper: i32, known: impl Fn(i32) -> bool) -> Option<bool> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let last: i32 = load.split_whitespace().next_back()?.parse().ok()?;
    if last < main || last - main > 64 {
        return None;
    }
    let stray = |pid| read_process(pid).is_some_and(|p| p.parent == keeper && p.alive && !known(p.pid));
    Some(!(main + 1..=last).any(stray))
}

/// Kills what an earlier worker and its keeper left of an attempt.
///
/// `pid` and `start_time` (`/proc/<pid>/stat` field 22, clock ticks since boot) are those of
/// [`super::RunningAttempt`], `token` that of its [`super::AttemptSpec`]. Killed is every process
/// started with the token in its environment, its descendants, and what is in the cgroup an
/// earlier keeper made for the token. The session and group of the main process are killed only
/// when both numbers match and it carries the token itself. No other process is touched: a pid that
/// was given out anew is safe, and numbers alone prove nothing.
///
/// Returns the number of processes killed. Blocks, at most about ten seconds.
///
/// # Errors
///
/// `/proc` can not be read, or (`TimedOut`) something survived.
pub fn kill_left_over(pid: u32, start_time: u64, token: &str) -> io::Result<u32> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // Token matches are as old as the attempt; a pid of a boot before this one matches nothing.
    let mut marks = vec![Mark { pid: 0, start_time: 0, token: token.to_owned() }];
    if is_marked(pid, start_time, token) {
        marks.push(Mark { pid, start_time, token: token.to_owned() });
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut killed = HashSet::new();
    let mut pause = Duration::from_millis(1);
    loop {
        let mut gone = true;
        for process in strike(&marks, &Scope::Host)?.into_iter().flatten() {
            gone = false;
            killed.insert((process.pid, process.start_time));
        }
        let (inside, empty) = cgroup::kill_marked(token);
        killed.extend(inside);
        if gone && empty {
            return Ok(u32::try_from(killed.len()).unwrap_or(u32::MAX));
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "processes survived KILL"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether this very process is alive and carries the token. It may be in the middle of its `exec`: that is waited for, briefly.
fn is_marked(pid: i32, start_time: u64, token: &str) -> bool {
    for n in 0..=PAUSES {
        if read_process(pid).is_none_or(|p| !p.alive || p.start_time != start_time) {
            return false;
        }
        match token_of(pid) {
            Found::Token(value) => return value == token.as_bytes(),
            Found::None => break,
            Found::Unsettled => std::thread::sleep(Duration::from_micros(100) * n),
        }
    }
    tracing::warn!(
        pid,
        token,
        "this process does not carry the token of the attempt that it is recorded for: it is let be"
    );
    false
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    // Shows: P-03
    #[test]
    fn a_process_that_executes_another_program_is_known_at_every_moment() {
        let mut child = Command::new("sh")
            .args(["-c", "n=$1; [ $n -lt 20000 ] || exit; exec sh -c \"$0\" \"$0\" $((n + 1))"])
            .args(["n=$1; [ $n -lt 20000 ] || exit; exec sh -c \"$0\" \"$0\" $((n + 1))", "0"])
            .env(TOKEN_VARIABLE, "restless")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let unseen = (0..20_000).filter(|_| matches!(token_of(pid), Found::None)).count();
        let is_running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_running, "it ended before it was looked at often enough");
        assert_eq!(unseen, 0, "a stray would have been taken for dead");
    }

    #[test]
    fn an_empty_environment_is_told_at_once() {
        let mut child = Command::new("/bin/sleep").arg("60").env_clear().spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // A `spawn` returns in the middle of the `exec`.
        let deadline = Instant::now() + Duration::from_secs(60);
        while environment(pid).unwrap().is_none() {
            assert!(Instant::now() < deadline, "it is never told");
        }
        let found: Vec<_> = (0..100).map(|_| environment(pid).unwrap()).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.iter().all(|e| e.as_deref() == Some(&[])), "{found:?}");
    }
}
