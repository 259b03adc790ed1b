//! One running attempt on the keeper's side: from its start to the proof that its tree is dead.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::cgroup::Group;
use super::output::{ControlLines, Output, Stream};
use super::process::Shared;
use super::protocol::{Cause, Exit, ExitStatusKind, FromKeeper, LINE_WINDOW};
use super::search::Searcher;
use super::spawn::Handler;
use super::tree::{Mark, children, no_strays_since, read_process};

/// How long the search for processes is waited for before what is at hand is killed.
const SEARCH_WAIT: Duration = Duration::from_secs(3);
/// How long killed processes are waited for before the attempt is reported nevertheless.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// How long a pipe may be held open by something outside of a dead tree.
const DRAIN_WAIT: Duration = Duration::from_millis(250);
/// Control lines sent along with the end: more than an unprivileged pipe can hold.
const LAST_LINES: usize = 2 << 20;

/// What the worker or the keeper's main loop wants of an attempt; the latest state counts.
#[derive(Clone, Default)]
pub(super) struct Orders {
    /// Why to end it.
    pub(super) end: Option<Cause>,
    /// KILL without TERM and grace.
    pub(super) at_once: bool,
    /// Control lines taken by the worker so far.
    pub(super) credit: u64,
}

/// The limits of an attempt, from its spec.
pub(super) struct Limits {
    pub(super) timeout: Duration,
    pub(super) grace: Duration,
}

pub(super) struct Attempt {
    pub(super) id: u64,
    pub(super) mark: Mark,
    pub(super) handler: Handler,
    pub(super) group: Option<Group>,
    pub(super) searcher: Searcher,
    pub(super) limits: Limits,
    pub(super) output: Output,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) exited: oneshot::Receiver<ExitStatusKind>,
    pub(super) started: Instant,
}

enum Phase {
    Running,
    Terminating,
    Killed,
}

impl Attempt {
    /// Attends to the handler until its tree is dead and reports its end.
    pub(super) async fn attend(mut self, shared: Arc<Shared>, out: mpsc::Sender<FromKeeper>) {
        let feeder = self.handler.stdin.take().map(|(mut pipe, bytes)| {
            tokio::spawn(async move {
                // A handler need not read its input: a broken pipe is its right.
                if let Err(error) = pipe.write_all(&bytes).await
                    && error.kind() != io::ErrorKind::BrokenPipe
                {
                    tracing::warn!(%error, "can not write a handler's stdin");
                }
            })
        });
        let mut tree = Tree {
            id: self.id,
            mark: self.mark.clone(),
            group: self.group.take(),
            searcher: self.searcher.clone(),
            main_is_there: true,
            shared: Arc::clone(&shared),
            killed: HashSet::new(),
        };
        let mut lines = ControlLines::default();
        let mut hello = Some(FromKeeper::Started {
            id: self.id,
            pid: u32::try_from(self.mark.pid).unwrap_or(0),
            start_time: self.mark.start_time,
        });
        let (status, cause) = self.run(&mut tree, &mut lines, &mut hello, &out).await;
        tree.main_is_there = false;
        let oom = status != ExitStatusKind::Code(0) && tree.group.as_ref().is_some_and(Group::oom);
        let strays_left = tree.finish(self.started).await;
        let wall = self.started.elapsed();
        if let Some(feeder) = feeder {
            feeder.abort();
        }
        self.drain(&mut lines).await;
        shared.forget(self.id);

        let mut rest = Vec::new();
        let mut room = LAST_LINES;
        while let Some(line) = lines.pop() {
            room = room.saturating_sub(line.len());
            if room == 0 {
                tracing::warn!(token = self.mark.token, "control lines dropped at the end");
                break;
            }
            rest.push(serde_bytes::ByteBuf::from(line));
        }
        let output_truncated = self.output.truncated();
        let (stdout_total, stderr_total) = (self.output.stdout_total, self.output.stderr_total);
        let (stdout, stdout_tail, stderr_tail) = self.output.finish();
        let exit = Box::new(Exit {
            status,
            cause,
            stdout,
            stdout_total,
            stderr_total,
            output_truncated,
            stdout_tail,
            stderr_tail,
            oom,
            wall,
            strays_killed: tree.killed(),
            strays_left,
        });
        let end = FromKeeper::Ended { id: self.id, exit, lines: rest };
        for event in hello.into_iter().chain([end]) {
            if out.send(event).await.is_err() {
                tracing::debug!(token = self.mark.token, "no one left to report to");
            }
        }
    }

    /// Until the main process has ended (or did not in spite of KILL).
    async fn run(
        &mut self,
        tree: &mut Tree,
        lines: &mut ControlLines,
        hello: &mut Option<FromKeeper>,
        out: &mpsc::Sender<FromKeeper>,
    ) -> (ExitStatusKind, Cause) {
        let mut buffer = vec![0u8; 32 << 10];
        let mut phase = Phase::Running;
        let mut cause = Cause::Exited;
        let (mut stdout, mut stderr, mut control) = (true, true, true);
        let mut sent: u64 = 0;
        let mut ordered = true;
        // A limit beyond the range of the clock is none.
        let far = self.started + Duration::from_secs(86_400 * 365 * 10);
        let limit = self.started.checked_add(self.limits.timeout).unwrap_or(far);
        let timer = sleep_until(limit);
        tokio::pin!(timer);
        loop {
            let credit = self.orders.borrow().credit + u64::from(LINE_WINDOW);
            let may_send = hello.is_some() || !lines.is_empty() && sent < credit;
            tokio::select! {
                biased;
                status = &mut self.exited => {
                    return (status.unwrap_or(ExitStatusKind::Signal(9)), cause);
                }
                changed = self.orders.changed(), if ordered => {
                    ordered = changed.is_ok();
                    let orders = self.orders.borrow_and_update().clone();
                    if let Some(end) = orders.end {
                        if matches!(phase, Phase::Running) || orders.at_once {
                            cause = end;
                        }
                        if orders.at_once && !matches!(phase, Phase::Killed) {
                            tree.kill().await;
                            phase = Phase::Killed;
                            timer.as_mut().reset(Instant::now() + KILL_WAIT);
                        } else if matches!(phase, Phase::Running) {
                            tree.terminate();
                            phase = Phase::Terminating;
                            let grace = Instant::now().checked_add(self.limits.grace);
                            timer.as_mut().reset(grace.unwrap_or(far));
                        }
                    }
                }
                () = &mut timer => match phase {
                    Phase::Running => {
                        cause = Cause::TimedOut;
                        tree.terminate();
                        phase = Phase::Terminating;
                        let grace = Instant::now().checked_add(self.limits.grace);
                        timer.as_mut().reset(grace.unwrap_or(far));
                    }
                    Phase::Terminating => {
                        tree.kill().await;
                        phase = Phase::Killed;
                        timer.as_mut().reset(Instant::now() + KILL_WAIT);
                    }
                    Phase::Killed => return (ExitStatusKind::Signal(9), cause),
                },
                // Waiting for room is one branch among others: a worker that does not read holds up
                // its lines and never the limits above.
                permit = out.reserve(), if may_send => {
                    match permit {
                        Ok(permit) => if let Some(hello) = hello.take() {
                            permit.send(hello);
                        } else if let Some(line) = lines.pop() {
                            sent += 1;
                            permit.send(FromKeeper::Line { id: self.id, line });
                        },
                        // The writer never goes first; without it, only the limits matter.
                        Err(_) => {
                            *hello = None;
                            control = false;
                            while lines.pop().is_some() {}
                        }
                    }
                }
                ready = self.handler.control.readable(), if control && lines.is_empty() => {
                    control = ready.is_ok()
                        && take(&self.handler.control, &mut buffer, |b| lines.take(b));
                }
                ready = self.handler.stdout.readable(), if stdout => {
                    stdout = ready.is_ok() && take(&self.handler.stdout, &mut buffer, |b| {
                        self.output.take(Stream::Stdout, b);
                    });
                }
                ready = self.handler.stderr.readable(), if stderr => {
                    stderr = ready.is_ok() && take(&self.handler.stderr, &mut buffer, |b| {
                        self.output.take(Stream::Stderr, b);
                    });
                }
            }
        }
    }

    /// Takes what is left in the pipes. With the tree dead they are at their end after that; one
    /// passed on to an outsider is given a short time.
    async fn drain(&mut self, lines: &mut ControlLines) {
        let Self { handler, output, .. } = self;
        let mut buffer = vec![0u8; 32 << 10];
        let all = async {
            rest(&handler.stdout, &mut buffer, |b| output.take(Stream::Stdout, b)).await;
            rest(&handler.stderr, &mut buffer, |b| output.take(Stream::Stderr, b)).await;
            rest(&handler.control, &mut buffer, |b| lines.take(b)).await;
        };
        if timeout(DRAIN_WAIT, all).await.is_err() {
            tracing::warn!(token = self.mark.token, "a pipe is held open from outside the tree");
        }
        lines.end();
    }
}

/// Reads once. `false` at the end of the pipe.
fn take(pipe: &pipe::Receiver, buffer: &mut [u8], with: impl FnOnce(&[u8])) -> bool {
    match pipe.try_read(buffer) {
        Ok(0) => false,
        Ok(count) => {
            with(buffer.get(..count).unwrap_or_default());
            true
        }
        Err(e) => matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

/// Reads to the end, by system calls: the reactor may not have seen yet that there is something.
async fn rest(pipe: &pipe::Receiver, buffer: &mut [u8], mut with: impl FnMut(&[u8])) {
    loop {
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => return,
            Ok(count) => with(buffer.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => sleep(Duration::from_millis(1)).await,
            Err(error) => {
                tracing::warn!(%error, "can not read a handler's pipe");
                return;
            }
        }
    }
}

/// The processes of one attempt.
struct Tree {
    id: u64,
    mark: Mark,
    group: Option<Group>,
    searcher: Searcher,
    /// Not reaped: its pid is the number of its group, and of no other.
    main_is_there: bool,
    shared: Arc<Shared>,
    killed: HashSet<(i32, u64)>,
}

impl Tree {
    /// TERM to the process group.
    fn terminate(&self) {
        // A stopped process gets its TERM only when it goes on.
        self.signal_group(&[Signal::TERM, Signal::CONT]);
    }

    /// To be called before the main process is reaped: its pid holds the number of the group.
    fn signal_group(&self, signals: &[Signal]) {
        let Some(group) = Pid::from_raw(self.mark.pid) else {
            return;
        };
        for signal in signals {
            if let Err(error) = kill_process_group(group, *signal)
                && error != Errno::SRCH
            {
                tracing::warn!(%error, token = self.mark.token, "can not signal a group");
            }
        }
    }

    /// KILL to all of the tree: what is in the cgroup, and what is found by descent, session, group and token, as a process
    /// that may write to another cgroup can leave its own. Returns how many were alive.
    ///
    /// All of it stands still first, so that nothing is done meanwhile and no link of descent is lost.
    async fn kill(&mut self) -> usize {
        self.shared.ending(self.id);
        if let Some(group) = &self.group {
            let alive = group.pids().into_iter().filter_map(read_process);
            self.killed.extend(alive.map(|p| (p.pid, p.start_time)));
            group.freeze();
        }
        if self.main_is_there {
            self.signal_group(&[Signal::STOP]);
        }
        let left = match timeout(SEARCH_WAIT, self.searcher.strike(self.mark.clone())).await {
            Ok(Ok(found)) => {
                self.killed.extend(found.iter().map(|p| (p.pid, p.start_time)));
                found.len()
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "can not search /proc");
                1
            }
            Err(_) => {
                tracing::error!(token = self.mark.token, "the search for processes takes long");
                1
            }
        };
        if self.main_is_there {
            self.signal_group(&[Signal::KILL]);
        }
        let Some(group) = &self.group else { return left };
        match group.kill() {
            Ok(()) => left + group.pids().len(),
            Err(error) => {
                tracing::warn!(%error, "can not kill a cgroup");
                left.max(1)
            }
        }
    }

    /// Kills what the main process left, until nothing is. Returns how many survived the wait.
    async fn finish(&mut self, started: Instant) -> u32 {
        if self.quickly_dead(started) {
            if let Some(group) = self.group.take() {
                group.reuse();
            }
            return 0;
        }
        let deadline = Instant::now() + KILL_WAIT;
        let mut pause = Duration::from_micros(200);
        loop {
            let left = self.kill().await;
            let dead = left == 0 && self.group.as_ref().is_none_or(Group::remove);
            if dead {
                return 0;
            }
            if Instant::now() > deadline {
                tracing::error!(left, token = self.mark.token, "processes survive KILL");
                return u32::try_from(left.max(1)).unwrap_or(u32::MAX);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// The cheap proof for the usual case, a handler that left nothing: nothing is in its cgroup or group, and what else it
    /// left would be a child of this process by now, as the kernel gives it all orphans.
    fn quickly_dead(&self, started: Instant) -> bool {
        let main = self.mark.pid;
        let is_empty = match &self.group {
            Some(group) => group.is_clean(),
            None => Pid::from_raw(main).is_some_and(|p| test_kill_process_group(p) == Err(Errno::SRCH)),
        };
        if !is_empty {
            return false;
        }
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if matches!(waitid(WaitId::All, peek), Err(Errno::CHILD)) {
            return true;
        }
        let mains = self.shared.mains();
        let is_stray = |pid: &i32| !mains.contains(pid) && read_process(*pid).is_some_and(|p| p.alive);
        if let Some(children) = children(self.shared.pid) {
            return !children.iter().any(is_stray);
        }
        // With other attempts running there are children. In a second the pids can not have gone
        // round; without other attempts any child is a stray.
        !mains.is_empty()
            && started.elapsed() < Duration::from_secs(1)
            && no_strays_since(main, self.shared.pid, |pid| mains.contains(&pid)) == Some(true)
    }

    fn killed(&self) -> u32 {
        let main = (self.mark.pid, self.mark.start_time);
        u32::try_from(self.killed.iter().filter(|p| **p != main).count()).unwrap_or(u32::MAX)
    }
}
