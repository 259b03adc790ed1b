//! `surety locks`: who has which lock; taking one away.

use clap::{Args, Subcommand};
use serde::Serialize;
use surety_common::locks::{self, LockView, Released};

use super::{
    Context,
    failure::Failure,
    guards::{closed, incomplete},
    workers::span,
};
use crate::render::Row;

/// Show who holds which lock, and who waits; take a lock away
///
/// A job that names locks starts when it has all of them, and holds them until its attempt has ended, however it ends. Listed
/// are those that are held or waited for. TOKEN is the fencing token that the handler was given (SURETY_LOCKS): it grows with
/// every holder. `offered` under STATE: it came free a moment ago and its next job was woken.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety locks\n  surety locks release repo:acme/site --force")]
pub(super) struct LocksArgs {
    #[command(subcommand)]
    command: Option<LocksCommand>,
}

#[derive(Debug, Subcommand)]
enum LocksCommand {
    Release(ReleaseArgs),
}

/// Take a lock away from whoever has it
///
/// Locks free themselves: at the end of the attempt, and where its worker died when its session ends. So this is for an attempt
/// that must not keep its lock any longer; `surety cancel` is the gentler way. The attempt that had it is killed and fails with
/// `lock_lost`, which counts as a retry; the next in line is started at once and does not wait for that, so both may run for a
/// moment: only what checks the fencing token is safe then. Without --force it says whose it is and does nothing (exit code 1).
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety locks release repo:acme/site --force")]
struct ReleaseArgs {
    /// The name of the lock
    #[arg(value_name = "NAME")]
    name: String,
    /// Take it, although somebody holds it
    #[arg(long)]
    force: bool,
}

#[derive(Serialize, schemars::JsonSchema)]
#[serde(transparent)]
struct Line(LockView);

impl Row for Line {
    const HEADS: &'static [&'static str] =
        &["LOCK", "STATE", "FOR", "JOB", "ATTEMPT", "EPOCH", "TOKEN", "WAITING", "WORKER"];
    fn cells(&self) -> Vec<String> {
        let owner = self.0.owner.as_ref();
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let state = match owner {
            Some(o) if o.is_offer => "offered",
            Some(_) => "held",
            None => "free",
        };
        let worker = owner.and_then(|o| match (&o.host, o.pid) {
            (Some(host), Some(pid)) => Some(format!("{host}, process {pid}")),
            _ => o.session.clone(),
        });
        vec![
            self.0.name.clone(),
            state.to_owned(),
            or_none(owner.and_then(|o| o.held_ms).map(span)),
            or_none(owner.map(|o| o.job.clone())),
            or_none(owner.and_then(|o| o.attempt).map(|n| n.to_string())),
            or_none(owner.and_then(|o| o.epoch).map(|n| n.to_string())),
            self.0.token.to_string(),
            self.0.waiting.to_string(),
            or_none(worker),
        ]
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    locks: Vec<LockView>,
    /// Why this is not all: the store is closed, being rebuilt from the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    store_closed: Option<String>,
}

pub(super) async fn run(cx: &Context, args: LocksArgs) -> Result<(), Failure> {
    match args.command {
        None => list(cx).await,
        Some(LocksCommand::Release(a)) => release(cx, a).await,
    }
}

async fn list(cx: &Context) -> Result<(), Failure> {
    let c = cx.look().await?;
    let answer = Answer { store_closed: closed(&c.store).await?, locks: locks::list(&c).await? };
    let lines: Vec<Line> = answer.locks.iter().cloned().map(Line).collect();
    cx.screen.table(&answer, &lines)?;
    if let Some(why) = &answer.store_closed {
        cx.screen.note(&incomplete(why));
    } else if lines.is_empty() {
        cx.screen.note("no lock is held, and nobody waits for one");
    }
    Ok(())
}

async fn release(cx: &Context, args: ReleaseArgs) -> Result<(), Failure> {
    let c = cx.connect().await?;
    let hold_ms = u64::try_from(cx.settings.lease.ttl.as_millis()).unwrap_or(u64::MAX);
    let report: Released = locks::release(&c, &args.name, args.force, hold_ms).await?;
    if report.is_released {
        return cx.screen.show(&report, || report.text.clone());
    }
    if cx.screen.is_json {
        cx.screen.show(&report, String::new)?;
    }
    Err(Failure::no(report.text))
}
