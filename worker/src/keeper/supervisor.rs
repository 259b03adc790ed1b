//! The task that owns the keeper process: talks to it, and replaces it when it dies.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::cgroup;
use super::client::{Board, Entry, KeeperOptions, Queued, Shared, lost_exit};
use super::protocol::{Frames, FromKeeper, KeeperError, StartError, ToKeeper, frame};
use super::tree::{Mark, Scope, Table, read_process, strike};

/// How long a new keeper may take to answer.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// How long a killed keeper is waited for.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How long a keeper may take to kill everything after the end of its input.
const END_WAIT: Duration = Duration::from_secs(15);

/// A keeper process that has answered.
pub(super) struct Link {
    child: Child,
    input: ChildStdin,
    frames: Frames<ChildStdout>,
    pid: u32,
    cgroups: Option<PathBuf>,
}

impl Link {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

/// Starts a keeper and awaits its answer.
pub(super) async fn connect(options: &KeeperOptions, trust: u64) -> Result<Link, KeeperError> {
    let mut child = Command::new(&options.program)
        .args(&options.args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Signals of a terminal are for the worker.
        .process_group(0)
        .spawn()
        .map_err(KeeperError::Start)?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(KeeperError::NoAnswer("it has no pipes".to_owned()));
    };
    let mut frames = Frames::new(output);
    let hello = async {
        let setup = frame(&ToKeeper::Setup { cgroup: options.cgroup, trust })?;
        input.write_all(&setup).await?;
        frames.next::<FromKeeper>().await
    };
    let problem = match timeout(HELLO_WAIT, hello).await {
        Ok(Ok(Some(FromKeeper::Hello { cgroups }))) => {
            if options.cgroup
                && let Err(reason) = &cgroups
            {
                tracing::info!(reason, "attempts run without a cgroup");
            }
            let pid = child.id().unwrap_or(0);
            return Ok(Link { child, input, frames, pid, cgroups: cgroups.ok() });
        }
        Ok(Ok(_)) => "it does not speak the protocol".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("nothing for {} s", HELLO_WAIT.as_secs()),
    };
    end(&mut child).await;
    Err(KeeperError::NoAnswer(problem))
}

/// Serves the handles until all are dropped or the keeper is shut down.
pub(super) async fn supervise(
    shared: Arc<Shared>,
    options: KeeperOptions,
    mut link: Link,
    mut runs: mpsc::Receiver<Queued>,
    finished: watch::Sender<bool>,
) {
    let mut pause = Duration::from_millis(10);
    loop {
        let since = Instant::now();
        let closing = serve(&shared, &mut link, &mut runs, options.silence).await;
        let Link { mut child, input, mut frames, cgroups, .. } = link;
        if closing {
            // The end of its input makes it kill everything; its last reports are still taken.
            drop(input);
            shared.board().closing = true;
            if timeout(END_WAIT, receive(&shared, &mut frames)).await.is_err() {
                tracing::error!("the keeper does not end");
            }
        } else {
            tracing::error!(pid = link.pid, "the keeper is lost, its attempts are killed");
        }
        end(&mut child).await;
        let lost = take_lost(&shared, closing);
        if closing {
            bury(lost, cgroups).await;
            finished.send_replace(true);
            return;
        }
        // Proof may take its time; the next keeper need not wait for it.
        tokio::spawn(bury(lost, cgroups));
        if since.elapsed() > Duration::from_secs(30) {
            pause = Duration::from_millis(10);
        }
        link = loop {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
            let (trust, closing) = {
                let board = shared.board();
                (board.trust, board.closing)
            };
            if closing || runs.is_closed() && runs.is_empty() {
                bury(take_lost(&shared, true), None).await;
                finished.send_replace(true);
                return;
            }
            match connect(&options, trust).await {
                Ok(link) => break link,
                Err(error) => tracing::error!(%error, "no new keeper"),
            }
        };
        shared.pid.store(link.pid, Ordering::Relaxed);
    }
}

/// Ends a keeper that has no more use.
async fn end(child: &mut Child) {
    match timeout(KILL_WAIT, child.kill()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "can not kill the keeper"),
        // In a system call that does not return; it executes nothing of ours any more.
        Err(_) => tracing::error!("the keeper was killed and does not end"),
    }
}

/// Takes the attempts that die with the keeper off the board: all when there is no next keeper,
/// else those it was told of.
fn take_lost(shared: &Shared, all: bool) -> Vec<Entry> {
    let mut board = shared.board();
    let ids: Vec<u64> = board.attempts.iter().filter(|(_, e)| all || e.sent).map(|(id, _)| *id).collect();
    ids.iter()
        .filter_map(|id| {
            board.stops.remove(id);
            board.credits.remove(id);
            board.attempts.remove(id)
        })
        .collect()
}

/// Talks to one keeper. `true` when it is to end, `false` when it is lost.
async fn serve(
    shared: &Shared,
    link: &mut Link,
    runs: &mut mpsc::Receiver<Queued>,
    silence: Duration,
) -> bool {
    let pid = link.pid;
    let Link { input, frames, .. } = link;
    tokio::select! {
        // What was heard counts before the time that passed.
        biased;
        () = receive(shared, frames) => false,
        closing = transmit(shared, input, runs) => closing,
        () = silent(shared, silence) => {
            tracing::error!(pid, ?silence, alert = "keeper_hangs", "the keeper does not answer: it is frozen, or hangs in a system call");
            false
        }
    }
}

/// Looks of one span of silence: a worker that was frozen itself looks once and asks again before it judges.
const LOOKS: u32 = 4;

/// Ends when nothing was heard of the keeper for so long, though it was asked.
async fn silent(shared: &Shared, silence: Duration) {
    let mut looks = interval(silence / LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    shared.heard.store(true, Ordering::Relaxed);
    let mut quiet = 0;
    while quiet <= LOOKS {
        looks.tick().await;
        quiet = if shared.heard.swap(false, Ordering::Relaxed) { 0 } else { quiet + 1 };
        shared.board().ask = true;
        shared.bell.notify_one();
    }
}

/// Writes starts and what is on the board.
async fn transmit(shared: &Shared, input: &mut ChildStdin, runs: &mut mpsc::Receiver<Queued>) -> bool {
    loop {
        let mut messages = Vec::new();
        {
            let mut board = shared.board();
            if board.closing {
                return true;
            }
            if std::mem::take(&mut board.trust_changed) {
                messages.push(ToKeeper::Trust { until: board.trust });
            }
            if std::mem::take(&mut board.ask) {
                messages.push(ToKeeper::AreYouThere);
            }
            // Attempts not sent yet keep their stop until the keeper knows them.
            let Board { stops, credits, attempts, .. } = &mut *board;
            let known = |id: &u64| attempts.get(id).is_some_and(|e| e.sent);
            for (id, reason) in stops.extract_if(|id, _| known(id)) {
                messages.push(ToKeeper::Stop { id, reason });
            }
            stops.retain(|id, _| attempts.contains_key(id));
            for (id, lines) in credits.drain() {
                messages.push(ToKeeper::Credit { id, lines });
            }
        }
        let mut bytes = Vec::new();
        for message in &messages {
            match frame(message) {
                Ok(frame) => bytes.extend_from_slice(&frame),
                Err(error) => tracing::error!(%error, "a message to the keeper is lost"),
            }
        }
        if !bytes.is_empty() && !write(input, &bytes).await {
            return false;
        }
        tokio::select! {
            biased;
            () = shared.bell.notified() => {}
            queued = runs.recv() => {
                let Some(Queued { id, frame }) = queued else { return true };
                let wanted = match shared.board().attempts.get_mut(&id) {
                    Some(entry) => {
                        entry.sent = true;
                        true
                    }
                    None => false,
                };
                if wanted && !write(input, &frame).await {
                    return false;
                }
            }
        }
    }
}

async fn write(input: &mut ChildStdin, bytes: &[u8]) -> bool {
    match input.write_all(bytes).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "the keeper does not read any more");
            false
        }
    }
}

/// Takes the keeper's reports until there are no more.
async fn receive(shared: &Shared, frames: &mut Frames<ChildStdout>) {
    loop {
        match frames.next::<FromKeeper>().await {
            Ok(Some(event)) => {
                shared.heard.store(true, Ordering::Relaxed);
                take(shared, event);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the keeper's reports can not be read");
                return;
            }
        }
    }
}

fn take(shared: &Shared, event: FromKeeper) {
    let mut board = shared.board();
    match event {
        FromKeeper::Hello { .. } | FromKeeper::Here => {}
        FromKeeper::Started { id, pid, start_time } => {
            if let Some(entry) = board.attempts.get_mut(&id) {
                entry.process = Some((pid, start_time));
                if let Some(started) = entry.started.take()
                    && started.send(Ok((pid, start_time))).is_err()
                {
                    tracing::debug!(token = entry.token, "started, but not wanted any more");
                }
            }
        }
        FromKeeper::Refused { id, error } => {
            board.stops.remove(&id);
            if let Some(mut entry) = board.attempts.remove(&id)
                && let Some(started) = entry.started.take()
                && let Err(Err(error)) = started.send(Err(error))
            {
                tracing::debug!(%error, token = entry.token, "not started, nor wanted any more");
            }
        }
        FromKeeper::Line { id, line } => {
            // The window is the size of the queue: it is full only when the keeper ignores it, and
            // closed when nobody listens any more.
            if let Some(entry) = board.attempts.get(&id)
                && let Err(mpsc::error::TrySendError::Full(_)) = entry.lines.try_send(line)
            {
                tracing::error!(token = entry.token, "a control line is lost");
            }
        }
        FromKeeper::Ended { id, exit, lines } => {
            board.stops.remove(&id);
            board.credits.remove(&id);
            if let Some(entry) = board.attempts.remove(&id) {
                if let Ok(mut last) = entry.last_lines.lock() {
                    last.extend(lines);
                }
                if entry.ended.send(*exit).is_err() {
                    tracing::debug!(token = entry.token, "ended, and nobody waits");
                }
            }
        }
    }
}

/// Kills what a dead keeper left and reports its attempts, each only when nothing of it is left,
/// however long that takes.
async fn bury(lost: Vec<Entry>, cgroups: Option<PathBuf>) {
    let marks: Vec<Mark> = lost
        .iter()
        .filter(|e| e.sent)
        .map(|e| {
            let (pid, start_time) = e.process.unwrap_or((0, 0));
            Mark { pid: i32::try_from(pid).unwrap_or(0), start_time, token: e.token.clone() }
        })
        .collect();
    let mut killed = vec![0u32; marks.len()];
    // A handler just forked shows its token only when it has exec'ed, so one look is not enough.
    let mut looks = if marks.iter().any(|m| m.pid == 0) { 3 } else { 1 };
    let mut pause = Duration::from_millis(2);
    while looks > 0 && !(marks.is_empty() && cgroups.is_none()) {
        let (of_round, dir) = (marks.clone(), cgroups.clone());
        match tokio::task::spawn_blocking(move || round(&of_round, dir.as_deref())).await {
            Ok(Ok((counts, true))) if counts.iter().all(|c| *c == 0) => looks -= 1,
            Ok(Ok((counts, _))) => {
                for (sum, count) in killed.iter_mut().zip(counts) {
                    *sum = (*sum).max(count);
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "can not search for lost processes"),
            Err(error) => tracing::error!(%error, "a search for lost processes failed"),
        }
        if looks > 0 {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
    let mut killed = killed.into_iter();
    for entry in lost {
        // The main process is no stray.
        let killed = if entry.sent { killed.next().unwrap_or(0).saturating_sub(1) } else { 0 };
        if let Some(started) = entry.started {
            let error = StartError::KeeperLost("it died before the handler ran".to_owned());
            if started.send(Err(error)).is_err() {
                tracing::debug!(token = entry.token, "lost, and not wanted any more");
            }
        }
        if entry.ended.send(lost_exit(entry.begun.elapsed(), killed)).is_err() {
            tracing::debug!(token = entry.token, "lost, and nobody waits");
        }
    }
}

/// One look: kills what there is, and reaps what came to this process with the keeper's death.
/// Returns the living per mark, and whether the cgroups are empty.
fn round(marks: &[Mark], cgroups: Option<&Path>) -> std::io::Result<(Vec<u32>, bool)> {
    let own = i32::try_from(std::process::id()).map_err(std::io::Error::other)?;
    let found = strike(marks, &Scope::Worker { pid: own })?;
    let counts = found.iter().map(|f| u32::try_from(f.len()).unwrap_or(u32::MAX)).collect();
    let inside = cgroups.map(cgroup::pids_below).unwrap_or_default();
    let empty = cgroups.is_none_or(cgroup::kill_base);
    // Only the keeper's: other children of this process have owners that wait for them.
    let table = Table::read()?;
    for pid in table.zombies(own) {
        let numbered = |p: i32| marks.iter().any(|m| m.pid > 0 && m.pid == p);
        let lost = inside.contains(&pid)
            || read_process(pid).is_some_and(|p| numbered(p.session) || numbered(p.group));
        if lost && let Some(id) = Pid::from_raw(pid) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Err(error) = waitid(WaitId::Pid(id), options) {
                tracing::debug!(%error, pid, "can not reap");
            }
        }
    }
    Ok((counts, empty))
}
