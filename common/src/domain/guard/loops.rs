//! The loop guard: when a line of jobs is a loop. Its depth needs no state; what is counted is kept for each root, and
//! `scripts/guards/loops.lua` does the same as [`Counted`] on Redis's clock.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{clock::format_span, domain::Job};

/// What one line of jobs may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopLimits {
    /// Steps from the root.
    pub depth: u32,
    /// Jobs of one root that ask for the same work, within `window`.
    pub repeats: u64,
    /// Jobs of one root, within `window`.
    pub fan_out: u64,
    pub window: Duration,
}

/// Which limit a job is over. The code is spoken by the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Depth,
    /// So many of the same work were counted before it.
    Repeats(u64),
    /// So many of its root were counted before it.
    FanOut(u64),
}

impl Over {
    /// The limit of a reply of the script.
    pub fn from_code(code: u8, count: u64) -> Option<Self> {
        match code {
            1 => Some(Self::Repeats(count)),
            2 => Some(Self::FanOut(count)),
            _ => None,
        }
    }
}

impl LoopLimits {
    /// Whether a job is too deep.
    pub fn is_too_deep(&self, job: &Job) -> bool {
        job.depth() > self.depth
    }

    /// Why a job was stopped, with its lineage: for receipt, journal, dead letter and log.
    pub fn explain(&self, over: Over, job: &Job) -> String {
        let (root, kind, window) = (job.root(), &job.kind, format_span(self.window));
        let limit = match over {
            Over::Depth => format!("it is {} deep, the limit is {}", job.depth(), self.depth),
            Over::Repeats(n) => format!(
                "{n} jobs of root {root} asked for the same work (type {kind}, same payload and key) within {window}, the limit is {}",
                self.repeats
            ),
            Over::FanOut(n) => {
                format!("root {root} has {n} jobs within {window}, the limit is {}", self.fan_out)
            }
        };
        let parent = job.lineage.as_ref().map_or("none", |l| l.parent().as_str());
        format!("loop guard: {limit}; parent {parent}, root {root}, depth {}", job.depth())
    }
}

/// What is counted for one root. A window begins with the first job that is counted, and with its end everything is forgotten.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    since_ms: u64,
    members: HashSet<String>,
    works: HashMap<String, u64>,
}

impl Counted {
    /// Counts a generation of a job (`member`) that asks for `work`, unless it is over a limit. One that was counted before in
    /// this window passes and is not counted again, however often it is delivered, deferred or retried.
    pub fn ask(&mut self, limits: &LoopLimits, now_ms: u64, member: &str, work: &str) -> Result<(), Over> {
        let window_ms = u64::try_from(limits.window.as_millis()).unwrap_or(u64::MAX);
        if self.since_ms.saturating_add(window_ms) <= now_ms {
            *self = Self { since_ms: now_ms, ..Self::default() };
        }
        if self.members.contains(member) {
            return Ok(());
        }
        let repeats = self.works.get(work).copied().unwrap_or(0);
        let n = u64::try_from(self.members.len()).unwrap_or(u64::MAX);
        if repeats >= limits.repeats {
            return Err(Over::Repeats(repeats));
        }
        if n >= limits.fan_out {
            return Err(Over::FanOut(n));
        }
        self.members.insert(member.to_owned());
        *self.works.entry(work.to_owned()).or_default() += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{JobId, QueueName},
        wire::job,
    };

    const LIMITS: LoopLimits =
        LoopLimits { depth: 3, repeats: 2, fan_out: 4, window: Duration::from_secs(60) };

    fn a_job(lineage: &str) -> Job {
        let body = format!(r#"{{"type":"fix"{lineage}}}"#);
        let (id, queue) = (JobId::new("j").unwrap(), QueueName::new("default").unwrap());
        job::check(job::parse(body.as_bytes()).unwrap(), id, queue).unwrap()
    }

    #[test]
    fn depth_is_a_matter_of_the_job_alone_and_the_stop_names_its_line() {
        assert!(!LIMITS.is_too_deep(&a_job("")));
        assert!(!LIMITS.is_too_deep(&a_job(r#","parent":"p","root":"r","depth":3"#)));
        let deep = a_job(r#","parent":"p","root":"r","depth":4"#);
        assert!(LIMITS.is_too_deep(&deep));
        assert_eq!(
            LIMITS.explain(Over::Depth, &deep),
            "loop guard: it is 4 deep, the limit is 3; parent p, root r, depth 4"
        );
        assert_eq!(
            LIMITS.explain(Over::Repeats(2), &deep),
            "loop guard: 2 jobs of root r asked for the same work (type fix, same payload and key) within 1m, the limit is 2; \
             parent p, root r, depth 4"
        );
    }

    #[test]
    fn repeats_and_descendants_are_counted_once_each_and_only_within_the_window() {
        let mut c = Counted::default();
        let now = 1_000_000;
        for member in ["a", "b", "a", "b", "a"] {
            assert_eq!(c.ask(&LIMITS, now, member, "w"), Ok(()), "{member}");
        }
        assert_eq!(c.ask(&LIMITS, now + 59_999, "c", "w"), Err(Over::Repeats(2)));
        for member in ["d", "e"] {
            assert_eq!(c.ask(&LIMITS, now, member, member), Ok(()));
        }
        assert_eq!(c.ask(&LIMITS, now, "f", "f"), Err(Over::FanOut(4)));
        assert_eq!(c.ask(&LIMITS, now, "a", "w"), Ok(()), "who was counted goes on");
        assert_eq!(c.ask(&LIMITS, now + 60_000, "c", "w"), Ok(()), "a new window");
    }

    // Shows: J-02
    #[test]
    fn the_same_jobs_at_the_same_times_are_stopped_in_every_run() {
        let run = || {
            let mut c = Counted::default();
            (0..50u64)
                .map(|i| c.ask(&LIMITS, i * 3000, &format!("m{}", i % 17), &format!("w{}", i % 5)))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
        assert!(run().iter().any(Result::is_err) && run().iter().any(Result::is_ok));
    }
}
