//! What this process was told by signals, and which ends of commands belong to it.
//!
//! A service manager, a container runtime or a shell may send its signal to every process of a service and not only to the
//! worker. A command that ends by it did nothing wrong, so its attempt is given back and not counted as failed.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::keeper::{Cause, Exit, ExitStatusKind};

/// How long an end by a signal that others send to a whole service waits for the same signal to reach the worker, and how old
/// a SIGHUP of the worker's own may be.
pub(crate) const STOP_WAIT: Duration = Duration::from_secs(2);

const HUP: i32 = 1;
const INT: i32 = 2;
const QUIT: i32 = 3;
const KILL: i32 = 9;
const TERM: i32 = 15;
/// What a program brings upon itself: ILL, TRAP, ABRT, BUS, FPE, SEGV, PIPE, XCPU, XFSZ, SYS. A crash is one at any time.
const OWN_FAULTS: [i32; 10] = [4, 5, 6, 7, 8, 11, 13, 24, 25, 31];

/// The signals that this process got, as far as they concern its commands.
#[derive(Clone)]
pub(crate) struct Told {
    draining: CancellationToken,
    hung_up: watch::Sender<Option<Instant>>,
}

impl Told {
    /// `draining`: cancelled when the worker was told to stop.
    pub(crate) fn new(draining: CancellationToken) -> Self {
        Self { draining, hung_up: watch::Sender::new(None) }
    }

    /// Notes a SIGHUP.
    pub(crate) fn hang_up(&self) {
        self.hung_up.send_replace(Some(Instant::now()));
    }

    /// Whether this end of a command is part of a stop of the whole service. Waits up to [`STOP_WAIT`] where the signal is one
    /// that is sent to whole services and this process has not got it yet; never for any other end. `until`: nobody cares any more.
    pub(crate) async fn is_part_of_stop(&self, end: &Outside, until: impl Future<Output = ()>) -> bool {
        if self.draining.is_cancelled() || end.signal == HUP && self.was_hung_up() {
            return true;
        }
        if !end.is_waited_for() {
            return false;
        }
        let mut hung_up = self.hung_up.subscribe();
        let hangs_up = async {
            if end.signal != HUP || hung_up.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.draining.cancelled() => true,
            () = hangs_up => true,
            () = tokio::time::sleep(STOP_WAIT) => false,
            () = until => false,
        }
    }

    fn was_hung_up(&self) -> bool {
        self.hung_up.borrow().is_some_and(|at| at.elapsed() <= STOP_WAIT)
    }
}

/// An end of a command by a signal that came from outside: not from us, and not by its own fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outside {
    pub(crate) signal: i32,
}

impl Outside {
    /// `None`: the command ended in another way. `is_said`: the handler gave an error of its own, or its table names the exit
    /// code, so that an exit code is not read as a signal. Shells and runtimes that catch a signal exit with 128 and its number.
    pub(crate) fn of(exit: &Exit, is_said: bool) -> Option<Self> {
        let signal = match (exit.cause, exit.status) {
            // Whoever killed the keeper killed the command with it.
            (Cause::KeeperLost, _) => KILL,
            (Cause::Exited, ExitStatusKind::Signal(s)) => s,
            (Cause::Exited, ExitStatusKind::Code(code)) if !is_said => {
                Some(code - 128).filter(|s| [HUP, INT, QUIT, KILL, TERM].contains(s))?
            }
            _ => return None,
        };
        (!exit.oom && !OWN_FAULTS.contains(&signal)).then_some(Self { signal })
    }

    /// KILL and what else ends a process without a stop of its service: the verdict must not wait for one.
    fn is_waited_for(self) -> bool {
        [HUP, INT, QUIT, TERM].contains(&self.signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(cause: Cause, status: ExitStatusKind, oom: bool) -> Exit {
        Exit {
            status,
            cause,
            stdout: vec![],
            stdout_total: 0,
            stderr_total: 0,
            output_truncated: false,
            stdout_tail: vec![],
            stderr_tail: vec![],
            oom,
            wall: Duration::ZERO,
            strays_killed: 0,
            strays_left: 0,
        }
    }

    fn signal_of(cause: Cause, status: ExitStatusKind, oom: bool, is_said: bool) -> Option<i32> {
        Outside::of(&exit(cause, status, oom), is_said).map(|o| o.signal)
    }

    #[test]
    fn only_an_end_that_others_can_bring_about_comes_from_outside() {
        use ExitStatusKind::{Code, Signal};
        let of = |status| signal_of(Cause::Exited, status, false, false);
        for s in [HUP, INT, QUIT, KILL, TERM, 10, 12, 40] {
            assert_eq!(of(Signal(s)), Some(s));
        }
        for s in OWN_FAULTS {
            assert_eq!((of(Signal(s)), of(Code(128 + s))), (None, None), "{s}");
        }
        assert_eq!(
            (of(Code(143)), of(Code(130)), of(Code(129)), of(Code(137))),
            (Some(15), Some(2), Some(1), Some(9))
        );
        for code in [0, 1, 15, 75, 124, 127, 128, 138, 255] {
            assert_eq!(of(Code(code)), None, "{code}");
        }
        assert_eq!(signal_of(Cause::Exited, Code(143), false, true), None, "its own word counts");
        assert_eq!(signal_of(Cause::Exited, Signal(KILL), true, false), None, "the kernel's want of memory");
        assert_eq!(signal_of(Cause::TimedOut, Signal(TERM), false, false), None, "our own signal");
        assert_eq!(signal_of(Cause::KeeperLost, Signal(KILL), false, false), Some(KILL));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_waits_a_stated_time_for_the_stop_and_only_where_one_may_follow() {
        let end = |signal| Outside { signal };
        let never = std::future::pending;
        let told = Told::new(CancellationToken::new());
        let at = Instant::now();
        for s in [KILL, 10, 40] {
            assert!(!told.is_part_of_stop(&end(s), never()).await);
        }
        assert_eq!(at.elapsed(), Duration::ZERO, "no other verdict waits");
        assert!(!told.is_part_of_stop(&end(TERM), never()).await);
        assert_eq!(at.elapsed(), STOP_WAIT);
        // Whoever is not interested any more is let go.
        assert!(!told.is_part_of_stop(&end(TERM), std::future::ready(())).await);
        let (hup, term, int) = (end(HUP), end(TERM), end(INT));
        let later = async {
            tokio::time::advance(STOP_WAIT / 2).await;
            told.hang_up();
        };
        let (is_hup, is_term, ()) =
            tokio::join!(told.is_part_of_stop(&hup, never()), told.is_part_of_stop(&term, never()), later);
        assert!(is_hup && !is_term, "a SIGHUP of the worker explains one of its command and nothing else");
        told.hang_up();
        assert!(told.is_part_of_stop(&hup, never()).await);
        tokio::time::advance(STOP_WAIT * 2).await;
        assert!(!told.is_part_of_stop(&hup, never()).await, "too old");
        let stop = async {
            tokio::time::advance(STOP_WAIT / 2).await;
            told.draining.cancel();
        };
        let (is_int, ()) = tokio::join!(told.is_part_of_stop(&int, never()), stop);
        assert!(is_int);
        assert!(told.is_part_of_stop(&end(KILL), never()).await, "while it drains every one counts");
    }
}
