//! The keeper: a small helper process that is parent and subreaper of every command handler.
//!
//! A worker that is killed or frozen can not clean up after itself, so the handlers do not hang
//! off the worker but off a keeper: the same binary, started again with the argument `keeper`.
//!
//! * The worker side is [`Keeper`]: start it once, [`Keeper::run`] an attempt, read its control
//!   lines with [`RunningAttempt::next_line`], await its end with [`RunningAttempt::wait`].
//! * The keeper side is [`run_keeper`], called by `main` when the first argument is `keeper`.
//!
//! What the keeper guarantees:
//!
//! * End of its stdin (the worker is gone) and the passing of the trust deadline (the worker is
//!   frozen or cut off) kill every tree at once.
//! * The time limit of an attempt is TERM to its process group, a grace, then KILL of its whole
//!   tree, those included which left the group or the session.
//! * The end of an attempt is reported only after nothing of its tree is left.
//! * A keeper that dies is noticed by the worker, which kills what the keeper left (it is a
//!   subreaper too), reports [`Cause::KeeperLost`] and starts another keeper. One that does not answer any more, because
//!   it is frozen or hangs in a system call, is killed first.
//!
//! A handler is a session and process group of its own, sits in a cgroup v2 of its own where the
//! host permits, reads its input from stdin, has the control pipe (JSON lines) at descriptor 3 and
//! carries [`TOKEN_VARIABLE`] in its environment.
//!
//! Without a cgroup a process is attributed to its attempt by descent, session, group and token.
//! One that shed all four (double fork, `setsid` and `env -i`) is still found as an unknown child
//! of the keeper, but killed only when no other attempt can be its owner, and is out of reach when
//! the keeper itself is killed. With a cgroup there is no such gap, unless the process moved itself into another cgroup besides.

mod attempt;
mod cgroup;
mod client;
mod output;
mod process;
mod protocol;
mod search;
mod spawn;
mod supervisor;
mod tree;

pub use client::{Keeper, KeeperOptions, RunningAttempt, Stopper};
pub use process::run_keeper;
pub use protocol::{
    AttemptSpec, Cause, Exit, ExitStatusKind, KeeperError, StartError, StopReason, TOKEN_VARIABLE,
};
pub use tree::kill_left_over;

/// Milliseconds since boot, time in suspend included (`CLOCK_BOOTTIME`).
///
/// The clock of [`Keeper::trust`]: the same in worker and keeper, and not moved by anyone setting
/// the date.
#[must_use]
pub fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}
