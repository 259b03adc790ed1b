//! Commands, run through the keeper.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use surety_common::{
    clock::format_span,
    config::{self, Handler, Settings, caller, handed},
    domain::{
        ErrorCode, Job, Lineage, TypeName,
        job::RESULT_CAP,
        outcome::{CommandEnd, Verdict, judge_command},
        text,
    },
    fault,
    reload::LiveSettings,
    telemetry::metrics::{shared, worker},
    wire::strict,
};

use super::{
    Attempt, Detail, Ended, Stop,
    control::{Heard, Line, LineError},
    rate::{BURST, Folding, PER_SECOND},
};
use crate::{
    keeper::{AttemptSpec, Cause, Exit, ExitStatusKind, Keeper, RunningAttempt, StopReason},
    state::{LocalState, token_of},
    told::{Outside, Told},
};

/// A command as handler.
#[derive(Clone)]
pub(crate) struct CommandHandler {
    pub(crate) kind: TypeName,
    /// As it was at the start.
    pub(crate) first: Arc<Handler>,
    /// As it is now: an attempt goes by what it finds when it begins.
    pub(crate) live: LiveSettings,
    pub(crate) keeper: Keeper,
    pub(crate) state: LocalState,
    /// The servers of this worker: what it connected to at its start.
    pub(crate) connection: Arc<config::Connection>,
    /// The signals that this worker got.
    pub(crate) told: Told,
}

impl CommandHandler {
    /// Time limit for jobs that set none.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.of(&self.live.now()).timeout
    }

    fn of<'a>(&'a self, now: &'a Settings) -> &'a Handler {
        now.handlers.get(self.kind.as_str()).unwrap_or(&self.first)
    }

    fn spec(&self, config: &Handler, defaults: &config::Attempt, a: &Attempt, token: &str) -> AttemptSpec {
        let job = a.context.job();
        let mut env = handed::variables(&self.connection, config);
        let mut set = |k: &str, v: String| env.push((k.to_owned(), v));
        set(caller::JOB_ID, job.id.to_string());
        set("SURETY_JOB_TYPE", job.kind.to_string());
        set("SURETY_QUEUE", job.queue.to_string());
        set("SURETY_ATTEMPT", a.context.attempt.to_string());
        set("SURETY_EPOCH", a.context.epoch.to_string());
        set("SURETY_CONTROL_FD", "3".into());
        // For the handler's information only; the keeper measures the limit itself.
        let deadline = surety_common::clock::wall_now() + a.timeout;
        set("SURETY_DEADLINE", deadline.to_string());
        if !a.context.locks().is_empty() {
            // Texts and numbers always serialize.
            set("SURETY_LOCKS", serde_json::to_string(a.context.locks()).unwrap_or_default());
        }
        if let Some(l) = &job.lineage {
            set(caller::PARENT, l.parent().to_string());
        }
        // For whatever enqueues jobs in there: so they are known as children of this one.
        set(caller::ROOT, job.root().to_string());
        set(caller::DEPTH, job.depth().to_string());
        if let Some(t) = &a.trace {
            set("TRACEPARENT", t.clone());
        }
        AttemptSpec {
            token: token.to_owned(),
            argv: config.command.clone(),
            env,
            cwd: config.cwd.as_ref().map(PathBuf::from),
            stdin: stdin(job, a.context.attempt),
            timeout: a.timeout,
            grace: config.kill_grace.unwrap_or(defaults.kill_grace),
            output_limit: config.output_limit.unwrap_or(defaults.output_limit.0),
            result_cap: RESULT_CAP,
            tail_lines: usize::try_from(defaults.tail_lines.0).unwrap_or(100),
        }
    }

    /// Runs the command to its end. When this returns, nothing of its process tree is left.
    pub(crate) async fn run(&self, a: Attempt) -> Ended {
        let now = self.live.now();
        let config = self.of(&now);
        let token = token_of(a.context.id().as_str(), a.context.epoch, &a.session);
        // Ordering: the local record comes first, so that a restarted worker knows what may still be alive.
        if let Err(e) = self.state.begin(&a.session, a.context.id(), a.context.epoch, &token) {
            return Ended::NotStarted { message: format!("cannot write the local attempt record: {e}") };
        }
        let running = match self.keeper.run(self.spec(config, &now.attempt, &a, &token)).await {
            Ok(r) => r,
            Err(e) => {
                let message = format!("{}: {e}", config.command.first().map_or("", String::as_str));
                // J-07: the start error is the one that is reported; a failed roll-back is logged beside it.
                if let Err(rollback) = self.state.end(&a.session, a.context.id(), a.context.epoch) {
                    tracing::error!(job_id = %a.context.id(), error = %rollback, "cannot remove the local attempt record");
                }
                tracing::error!(job_id = %a.context.id(), error = %e, "start failed");
                return Ended::NotStarted { message };
            }
        };
        if let Err(e) = self.state.started(
            &a.session,
            a.context.id(),
            a.context.epoch,
            &token,
            running.pid,
            running.start_time,
        ) {
            tracing::warn!(job_id = %a.context.id(), error = %e, "cannot complete the local attempt record");
        }
        fault::point("started");
        let (heard, exit) = follow(&running, &a).await;
        if let Err(e) = self.state.end(&a.session, a.context.id(), a.context.epoch) {
            tracing::warn!(job_id = %a.context.id(), error = %e, "cannot remove the local attempt record");
        }
        if self.was_signalled(config, &heard, &exit, &a).await {
            return Ended::Signalled;
        }
        Self::judge(config, heard, exit, a.timeout, &a.stop)
    }

    /// Whether a signal to the whole service ended it: that is no failure of the job.
    async fn was_signalled(&self, config: &Handler, heard: &Heard, exit: &Exit, a: &Attempt) -> bool {
        let is_named = |code| config.exit_codes.iter().any(|(c, _)| *c == code);
        let is_said = heard.said.is_error || matches!(exit.status, ExitStatusKind::Code(c) if is_named(c));
        let Some(end) = Outside::of(exit, is_said) else { return false };
        let until = async {
            tokio::select! {
                () = a.stop.fence.cancelled() => {}
                () = a.stop.cancel.cancelled() => {}
                () = a.stop.lock.lost() => {}
            }
        };
        let is_part = self.told.is_part_of_stop(&end, until).await;
        if is_part {
            tracing::warn!(
                job_id = %a.context.id(), epoch = a.context.epoch, signal = end.signal,
                "a signal that went to this whole service ended the command; its job is given back at no cost"
            );
        }
        is_part
    }

    fn judge(config: &Handler, heard: Heard, exit: Exit, timeout: Duration, stop: &Stop) -> Ended {
        // It is killed as a fenced one is; but its lease is good, so it has a say.
        let is_killed = exit.cause == Cause::Stopped(StopReason::Fenced) && !stop.fence.is_cancelled();
        if let Some((code, class, message)) = stop.lock.failure().filter(|_| is_killed) {
            return Ended::Failed { code, class, message, detail: detail(&heard, exit) };
        }
        let end = match (&exit.cause, exit.status) {
            (Cause::Stopped(StopReason::Shutdown), _) => return Ended::Stopped,
            (Cause::Stopped(StopReason::Cancelled), _) => return Ended::Cancelled,
            (Cause::Stopped(StopReason::Fenced) | Cause::TrustLost, _) => return Ended::Fenced,
            (Cause::TimedOut, _) => CommandEnd::TimedOut,
            (Cause::KeeperLost, _) => CommandEnd::Signal { oom: false },
            (Cause::Exited, ExitStatusKind::Code(c)) => CommandEnd::Exit(c),
            (Cause::Exited, ExitStatusKind::Signal(_)) => CommandEnd::Signal { oom: exit.oom },
        };
        if exit.output_truncated {
            tracing::warn!(
                stdout_bytes = exit.stdout_total,
                stderr_bytes = exit.stderr_total,
                "output over the limit was cut; the command went on"
            );
            worker().truncations.with_label_values(&["output"]).inc();
        }
        match judge_command(end, &heard.said, &config.exit_codes) {
            Verdict::Done => {
                Ended::Done { result: heard.result.or_else(|| result(&exit)), usage: heard.usage }
            }
            Verdict::Failed(code, class) => Ended::Failed {
                code,
                class,
                message: message(code, &exit, &heard, timeout),
                detail: detail(&heard, exit),
            },
        }
    }
}

fn detail(heard: &Heard, exit: Exit) -> Detail {
    Detail {
        exit_code: if let ExitStatusKind::Code(c) = exit.status { Some(c) } else { None },
        signal: if let ExitStatusKind::Signal(s) = exit.status { Some(s) } else { None },
        iteration: heard.said.iteration.map(|(n, _)| n),
        stdout_tail: fit_tail(exit.stdout_tail),
        stderr_tail: fit_tail(exit.stderr_tail),
        output_truncated: exit.output_truncated,
    }
}

/// Most bytes of one tail as JSON: both together have 64 KiB, whatever stands in them.
const TAIL_CAP: usize = 32 * 1024;

/// The last lines that have room.
fn fit_tail(mut lines: Vec<String>) -> Vec<String> {
    let mut left = TAIL_CAP;
    let size = |line: &String| serde_json::to_string(line).map_or(usize::MAX, |json| json.len() + 1);
    let kept = lines.iter().rev().take_while(|line| match left.checked_sub(size(line)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    let n = kept.count();
    lines.split_off(lines.len() - n)
}

async fn send(a: &Attempt, report: &Line) {
    if !a.context.reports.send(report).await {
        tracing::warn!(job_id = %a.context.id(), "a report of this attempt was refused");
    }
}

/// Follows the control lines to the end of the attempt, stopping it when told to.
async fn follow(running: &RunningAttempt, a: &Attempt) -> (Heard, Exit) {
    let mut heard = Heard::default();
    let stopper = running.stopper();
    let mut lines_open = true;
    let mut folding = Folding::new(Instant::now());
    let mut due = None;
    let (mut stopping, mut killing) = (false, false);
    loop {
        tokio::select! {
            line = running.next_line(), if lines_open => match line {
                None => {
                    lines_open = false;
                    if let Some(last) = folding.last().filter(|_| !stopping) {
                        send(a, &last).await;
                    }
                }
                Some(text_) => match Line::read(&text_) {
                    Ok(line) => {
                        heard.take(&line);
                        match folding.offer(line, Instant::now()) {
                            Ok(Some(report)) if !stopping => send(a, &report).await,
                            Ok(_) => {}
                            Err(wait) => {
                                due.get_or_insert(tokio::time::Instant::now() + wait);
                            }
                        }
                        if folding.is_news() {
                            tracing::warn!(
                                job_id = %a.context.id(), burst = BURST, per_second = PER_SECOND,
                                "the handler reports faster than the journal takes it: reports are folded, the last one counts"
                            );
                        }
                    }
                    Err(e) => {
                        // It may have been the result: to go on without would tell another outcome than the handler's.
                        if let LineError::NotStrict(why) = &e {
                            heard.refuse(&format!("a control line was refused: {why}"));
                        }
                        shared().decode_errors.with_label_values(&["line"]).inc();
                        tracing::warn!(
                            job_id = %a.context.id(),
                            error = %e,
                            line = %text::cut(&text_, 200),
                            "control line does not parse and is ignored"
                        );
                    }
                },
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() && lines_open => {
                due = match folding.due(Instant::now()) {
                    Ok(report) => {
                        if let Some(report) = report.filter(|_| !stopping) {
                            send(a, &report).await;
                        }
                        None
                    }
                    Err(wait) => Some(tokio::time::Instant::now() + wait),
                };
            }
            exit = running.wait(), if !lines_open => return (heard, exit),
            // At once, also where it was asked to stop and takes its time.
            () = a.stop.fence.cancelled(), if !killing => {
                (stopping, killing) = (true, true);
                stopper.stop(StopReason::Fenced);
            }
            () = a.stop.lock.lost(), if !killing => {
                (stopping, killing) = (true, true);
                stopper.stop(StopReason::Fenced);
            }
            () = a.stop.cancel.cancelled(), if !stopping => {
                stopping = true;
                stopper.stop(StopReason::Cancelled);
            }
            () = a.stop.abort.cancelled(), if !stopping => {
                stopping = true;
                stopper.stop(StopReason::Shutdown);
            }
        }
    }
}

/// The job as one JSON document, for the command's stdin.
fn stdin(job: &Job, attempt: u32) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Document<'a> {
        v: u32,
        id: &'a str,
        #[serde(rename = "type")]
        kind: &'a str,
        queue: &'a str,
        attempt: u32,
        payload: &'a RawValue,
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<&'a str>,
        #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
        meta: &'a std::collections::BTreeMap<String, String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        parent: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        root: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        depth: Option<u32>,
    }
    let lineage = job.lineage.as_ref();
    let doc = Document {
        v: 1,
        id: job.id.as_str(),
        kind: job.kind.as_str(),
        queue: job.queue.as_str(),
        attempt,
        payload: &job.payload,
        key: job.key.as_deref(),
        meta: &job.meta,
        parent: lineage.map(|l| l.parent().as_str()),
        root: lineage.map(|l| l.root().as_str()),
        depth: lineage.map(Lineage::depth),
    };
    // Strings, numbers and checked raw JSON always serialize.
    let mut bytes = serde_json::to_vec(&doc).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// stdout as the result: parsed as JSON, else its text.
fn result(exit: &Exit) -> Option<Box<RawValue>> {
    let all = String::from_utf8_lossy(&exit.stdout);
    let trimmed = all.trim();
    if trimmed.is_empty() {
        return None;
    }
    let is_whole = exit.stdout_total <= exit.stdout.len() as u64;
    // What is JSON by its syntax only is repaired; what is nested without end is a text.
    if is_whole
        && serde_json::from_str::<&RawValue>(trimmed).is_ok()
        && let Ok(repaired) = strict::repair(trimmed)
        && let Ok(raw) = RawValue::from_string(repaired.into_owned())
    {
        return Some(raw);
    }
    // What counts is what is stored: a control character has six bytes there.
    let mut room = RESULT_CAP / 2;
    loop {
        let shown = if is_whole {
            text::cut(trimmed, room).into_owned()
        } else {
            format!("{}… [truncated, {} bytes total]", text::prefix(trimmed, room), exit.stdout_total)
        };
        let json = serde_json::to_string(&shown).ok()?;
        if json.len() <= RESULT_CAP {
            return RawValue::from_string(json).ok();
        }
        room /= 2;
    }
}

fn message(code: ErrorCode, exit: &Exit, heard: &Heard, timeout: Duration) -> String {
    if let Some(m) = &heard.error_message {
        return text::cut(m, 1024).into_owned();
    }
    let last = exit.stderr_tail.iter().rev().find(|l| !l.trim().is_empty());
    let what = match (code, &exit.cause, exit.status) {
        (ErrorCode::Timeout, ..) => return format!("time limit of {} reached", format_span(timeout)),
        (ErrorCode::LimitReached, ..) => {
            format!("ended at its iteration limit {:?}", heard.said.iteration.unwrap_or_default())
        }
        (_, Cause::KeeperLost, _) => "the keeper process died; the command was killed with it".to_owned(),
        (_, _, ExitStatusKind::Code(c)) => format!("exit code {c}"),
        (_, _, ExitStatusKind::Signal(s)) => format!("ended by signal {s}"),
    };
    match last {
        Some(l) => text::cut(&format!("{what}: {}", l.trim()), 1024).into_owned(),
        None => what,
    }
}
