//! The checker over a journal of any length: it keeps a few hundred bytes of each job, and no event.

use std::collections::HashMap;

use super::{
    fact::Fact,
    moves::Life,
    order::{Broken, Line, Taken},
};
use crate::{domain::Status, wire::event::Event};

/// A job whose events break a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub job: String,
    /// The rule, in words.
    pub what: String,
    /// Two different events have this revision: the order of the journal decides nothing about it.
    pub ambiguous: Option<u64>,
}

/// What an event was, for whoever keeps events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    New,
    Copy,
    /// It, or one before it, breaks a rule: nothing of this job is judged any more.
    Broken,
}

/// What was read, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub jobs: u64,
    /// Each transition once.
    pub events: u64,
    /// Events that were read before: a relayed copy past the broker's window.
    pub copies: u64,
    /// Jobs whose present generation has no outcome yet.
    pub open: u64,
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub timed_out: u64,
    /// Jobs whose record was deleted after their end; they are counted by their outcome, too.
    pub deleted: u64,
    /// Jobs whose first events the journal does not hold any more.
    pub cut: u64,
    /// Jobs that break a promise; they are in none of the other numbers of jobs but the first.
    pub broken: u64,
}

/// What the journal says of one job, for a comparison with its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The last revision with everything before it.
    pub rev: u64,
    pub is_running: bool,
    pub is_ended: bool,
    pub is_deleted: bool,
}

/// The checker: takes events in the order of the journal, and says at the end what is wrong.
#[derive(Debug, Default)]
pub struct Audit {
    /// `None`: broken, and told.
    jobs: HashMap<Box<str>, Option<Line>>,
    is_cut: bool,
    events: u64,
    copies: u64,
    gaps: usize,
    findings: Vec<Finding>,
    n_broken: u64,
}

/// Events that count as the head of a journal that has lost its oldest messages: more than are published while one entry
/// waits for its relay.
const HEAD: u64 = 100_000;
/// Findings that are kept; further ones are counted.
const KEPT: usize = 1000;

impl Audit {
    /// A checker that has read nothing. `is_cut`: the journal does not begin with its first message, so a job may begin with
    /// any event.
    pub fn new(is_cut: bool) -> Self {
        Self { is_cut, ..Self::default() }
    }

    /// The oldest messages were dropped meanwhile.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    /// The next event.
    pub fn take(&mut self, e: &Event) {
        self.see(e);
    }

    pub(super) fn see(&mut self, e: &Event) -> Seen {
        if !self.jobs.contains_key(e.job.as_str()) {
            self.jobs.insert(e.job.as_str().into(), Some(Line::default()));
        }
        let Some(Some(line)) = self.jobs.get_mut(e.job.as_str()) else { return Seen::Broken };
        let had_gap = line.has_gap();
        let taken = line.take(Fact::of(e, self.is_cut && self.events < HEAD), self.is_cut);
        self.gaps = self.gaps + usize::from(line.has_gap()) - usize::from(had_gap);
        match taken {
            Ok(Taken::New) => {
                self.events += 1;
                Seen::New
            }
            Ok(Taken::Copy | Taken::OldCopy) => {
                self.copies += 1;
                Seen::Copy
            }
            Err(broken) => {
                self.find(&e.job, broken);
                Seen::Broken
            }
        }
    }

    /// Jobs with an event that came before one of a smaller revision: in a system at work it is on its way.
    pub fn gaps(&self) -> usize {
        self.gaps
    }

    /// What the journal says of a job; `None`: nothing, or it is broken.
    pub fn told(&self, job: &str) -> Option<Told> {
        self.jobs.get(job)?.as_ref().and_then(told)
    }

    /// What it says of every sound job, in no order.
    pub fn all_told(&self) -> impl Iterator<Item = (&str, Told)> {
        self.jobs.iter().filter_map(|(job, line)| Some((job.as_ref(), told(line.as_ref()?)?)))
    }

    /// Nothing more comes: what is missing now counts as missing.
    pub fn end(&mut self) {
        let mut broken = Vec::new();
        for (job, line) in &mut self.jobs {
            let Some(l) = line.as_mut().filter(|l| l.has_gap()) else { continue };
            if let Err(b) = l.close(self.is_cut) {
                broken.push((job.to_string(), b));
            }
        }
        broken.sort_by(|a, b| a.0.cmp(&b.0));
        for (job, b) in broken {
            self.find(&job, b);
        }
        self.gaps = 0;
    }

    /// What is wrong, in the order in which it was met; at most one of each job, and at most 1000.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Adds what was found otherwise, such as in a comparison with the store.
    pub fn add(&mut self, job: &str, what: String) {
        self.find(job, Broken::Rule(what));
    }

    /// The numbers so far.
    pub fn tally(&self) -> Tally {
        let mut t = Tally {
            jobs: self.jobs.len() as u64,
            events: self.events,
            copies: self.copies,
            broken: self.n_broken,
            ..Tally::default()
        };
        for life in self.jobs.values().flatten().filter_map(Line::life) {
            t.deleted += u64::from(life.is_deleted());
            t.cut += u64::from(life.is_cut());
            match life.outcome() {
                Some(Status::Done) => t.done += 1,
                Some(Status::Failed) => t.failed += 1,
                Some(Status::Cancelled) => t.cancelled += 1,
                Some(Status::TimedOut) => t.timed_out += 1,
                _ => t.open += 1,
            }
        }
        t
    }

    fn find(&mut self, job: &str, broken: Broken) {
        let (what, ambiguous) = match broken {
            Broken::Ambiguous(rev) => (format!("two different events of revision {rev}"), Some(rev)),
            Broken::Rule(what) => (what, None),
        };
        if let Some(Some(line)) = self.jobs.insert(job.into(), None) {
            self.gaps -= usize::from(line.has_gap());
        }
        self.n_broken += 1;
        if self.findings.len() < KEPT {
            self.findings.push(Finding { job: job.to_owned(), what, ambiguous });
        }
    }
}

fn told(line: &Line) -> Option<Told> {
    let life: &Life = line.life()?;
    Some(Told {
        rev: line.rev(),
        is_running: life.is_running(),
        is_ended: life.is_ended(),
        is_deleted: life.is_deleted(),
    })
}
