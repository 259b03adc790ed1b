//! The order of one job's events: by `rev`, without gaps, each once. Several processes publish, so an event may be read
//! before one with a smaller revision, and twice.
//!
//! A job of a deleted job's id is a new one and counts from 1. Who deleted the old one may have died before that was
//! journaled, so the first events of the new life may be read before the `deleted` of the old one. What contradicts an ended
//! life and is later than its last event is kept aside as the life that comes next, and counts once the `deleted` is there.

use std::cmp::Ordering;

use super::{
    fact::{Fact, Kind},
    moves::Life,
};
use crate::domain::EventKind;

/// Revisions whose content is remembered, to tell a copy from another event of the same revision.
const REMEMBERED: usize = 64;
/// Events that may have been read before one with a smaller revision.
const EARLY: usize = 1024;

/// What an event turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    New,
    /// It was read before.
    Copy,
    /// Its revision was read before, so long ago that its content is not remembered.
    OldCopy,
}

/// What is wrong with a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// Two different events have this revision.
    Ambiguous(u64),
    Rule(String),
}

impl From<String> for Broken {
    fn from(rule: String) -> Self {
        Self::Rule(rule)
    }
}

/// The checker of one job.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    /// `None`: its first event was not read yet.
    life: Option<Life>,
    read: Revisions,
    /// Events after a gap, by revision.
    early: Vec<Fact>,
    /// When the last event before `next` happened; 0: not known.
    at_ms: u64,
    /// What was read of the life after this one, whose `deleted` was not read yet. A box, for nearly no job has one.
    reborn: Option<Box<Reborn>>,
    /// What was read of the life before this one: a copy of it may come late. A box, for the same reason.
    former: Option<Box<Revisions>>,
}

/// The revisions of a life that were read without a gap.
#[derive(Debug, Clone)]
struct Revisions {
    /// The one that comes next.
    next: u64,
    /// Hashes of the last ones before it, by revision modulo their number.
    hashes: Vec<u64>,
}

/// A life that has begun before the end of the one before it was read.
#[derive(Debug, Clone)]
struct Reborn {
    line: Line,
    /// When its first known event happened. What is older is of the life before.
    since_ms: u64,
    /// A revision that both lives have.
    rev: u64,
}

impl Default for Revisions {
    fn default() -> Self {
        Self { next: 1, hashes: Vec::new() }
    }
}

impl Revisions {
    /// The hash of a revision; `None`: it was not read, or is not remembered.
    fn hash(&self, rev: u64) -> Option<u64> {
        let is_near = rev < self.next && rev + REMEMBERED as u64 >= self.next;
        self.hashes.get(place(rev)).copied().filter(|h| is_near && *h != 0)
    }

    fn has(&self, f: &Fact) -> bool {
        self.hash(f.rev) == Some(f.hash)
    }

    fn add(&mut self, f: &Fact) {
        let i = place(f.rev);
        if self.hashes.len() <= i {
            self.hashes.resize(i + 1, 0);
        }
        if let Some(h) = self.hashes.get_mut(i) {
            *h = f.hash;
        }
        self.next = f.rev + 1;
    }
}

impl Line {
    /// The next event as it was read. `is_cut`: the journal has lost its oldest events, so a job may begin with any.
    pub(super) fn take(&mut self, f: Fact, is_cut: bool) -> Result<Taken, Broken> {
        if self.is_of_next_life(&f) {
            return self.keep_aside(f, is_cut);
        }
        let taken = self.take_own(f, is_cut)?;
        self.turn_over()?;
        Ok(taken)
    }

    /// An event of this life, or of one that begins behind its `deleted`.
    fn take_own(&mut self, f: Fact, is_cut: bool) -> Result<Taken, Broken> {
        if f.rev == 0 {
            return Err(Broken::Rule("revision 0".into()));
        }
        if self.former.as_ref().is_some_and(|r| r.has(&f)) {
            return Ok(Taken::Copy);
        }
        if f.rev < self.read.next {
            return self.again(f, is_cut);
        }
        if f.rev == self.read.next {
            if self.is_reborn_unseen(is_cut) {
                self.begin_amid()?;
                return self.take_own(f, is_cut);
            }
            self.apply(f)?;
            self.follow_on()?;
            return Ok(Taken::New);
        }
        let early = &mut self.early;
        match early.binary_search_by_key(&f.rev, |e| e.rev) {
            Ok(i) if early.get(i).is_some_and(|e| e.hash == f.hash) => return Ok(Taken::Copy),
            Ok(_) => return Err(Broken::Ambiguous(f.rev)),
            Err(i) => early.insert(i, f),
        }
        if early.len() > EARLY {
            self.close(is_cut)?;
        }
        Ok(Taken::New)
    }

    /// Nothing more comes: what is missing now is missing.
    pub(super) fn close(&mut self, is_cut: bool) -> Result<(), Broken> {
        if let Some(r) = &self.reborn {
            return Err(Broken::Ambiguous(r.rev));
        }
        let Some(first) = self.early.first() else { return Ok(()) };
        if self.life.is_none() && is_cut {
            return self.begin_amid();
        }
        Err(missing(self.read.next, first.rev))
    }

    /// Whether events are held back because one before them was not read.
    pub(super) fn has_gap(&self) -> bool {
        !self.early.is_empty() || self.reborn.is_some()
    }

    /// The latest life, also while the end of the one before it is missing.
    pub(super) fn life(&self) -> Option<&Life> {
        self.latest().life.as_ref()
    }

    /// The highest revision of the latest life that was read, with everything before it.
    pub(super) fn rev(&self) -> u64 {
        self.latest().read.next - 1
    }

    fn latest(&self) -> &Self {
        self.reborn.as_ref().map_or(self, |r| &r.line)
    }

    /// Whether an event can be only of a life after this one, which has its outcome and no `deleted`. One clock, that of the
    /// store, has given all the times, and within a life they do not fall from one revision to the next.
    fn is_of_next_life(&self, f: &Fact) -> bool {
        let is_after = |r: &Reborn| match f.at_ms.cmp(&r.since_ms) {
            Ordering::Less => false,
            // The same millisecond saw the old record deleted and the new one made.
            Ordering::Equal => f.kind != Kind::Known(EventKind::Deleted),
            Ordering::Greater => true,
        };
        let contradicts = || {
            let is_ended = self.life.as_ref().is_some_and(|l| l.is_ended() && !l.is_deleted());
            is_ended && f.rev < self.read.next && f.at_ms > self.at_ms && !self.read.has(f)
        };
        f.rev > 0 && (self.reborn.as_deref().is_some_and(is_after) || contradicts())
    }

    /// An event of the life after this one. What makes no sense there either is as ambiguous as it looked.
    fn keep_aside(&mut self, f: Fact, is_cut: bool) -> Result<Taken, Broken> {
        let (at_ms, rev) = (f.at_ms, f.rev);
        let fresh = || Box::new(Reborn { line: Self::default(), since_ms: at_ms, rev });
        let r = self.reborn.get_or_insert_with(fresh);
        r.since_ms = r.since_ms.min(at_ms);
        r.line.take_own(f, is_cut).map_err(|_| Broken::Ambiguous(r.rev))
    }

    /// Once the end of this life was read, the one that was kept aside takes its place, if it is younger.
    fn turn_over(&mut self) -> Result<(), Broken> {
        if !self.life.as_ref().is_some_and(Life::is_deleted) {
            return Ok(());
        }
        let Some(r) = self.reborn.take() else { return Ok(()) };
        if r.since_ms < self.at_ms {
            return Err(Broken::Ambiguous(r.rev));
        }
        if let Some(first) = self.early.first() {
            return Err(missing(self.read.next, first.rev));
        }
        self.follow_up(r.line);
        Ok(())
    }

    /// Goes on with the life after this one.
    fn follow_up(&mut self, mut line: Self) {
        // One that ended in the meantime has a former life of its own.
        line.former.get_or_insert_with(|| Box::new(std::mem::take(&mut self.read)));
        *self = line;
    }

    /// A revision that was read before.
    fn again(&mut self, f: Fact, is_cut: bool) -> Result<Taken, Broken> {
        match self.read.hash(f.rev) {
            Some(hash) if hash == f.hash => Ok(Taken::Copy),
            // A job of a deleted job's id is a new one, and counts from 1.
            _ if self.life.as_ref().is_some_and(Life::is_deleted) && f.rev <= EARLY as u64 => {
                self.follow_up(Self::default());
                self.take_own(f, is_cut)
            }
            Some(_) => Err(Broken::Ambiguous(f.rev)),
            None => Ok(Taken::OldCopy),
        }
    }

    /// The first that was read of the job is the end of its life, and now another one begins.
    fn is_reborn_unseen(&self, is_cut: bool) -> bool {
        let is_deleted = |f: &Fact| f.kind == Kind::Known(EventKind::Deleted);
        is_cut && self.life.is_none() && self.early.iter().any(is_deleted)
    }

    /// The oldest events are gone. At the head of what is left an entry that was published late may have outlived one that
    /// was published in time, so what stands there before a gap is left out.
    fn begin_amid(&mut self) -> Result<(), Broken> {
        let mut rest: Vec<Fact> = Vec::new();
        for f in std::mem::take(&mut self.early) {
            if let Some(last) = rest.last().filter(|l| l.rev + 1 != f.rev) {
                if !rest.iter().all(|f| f.is_at_head) {
                    return Err(missing(last.rev + 1, f.rev));
                }
                rest.clear();
            }
            rest.push(f);
        }
        let mut rest = rest.into_iter();
        if let Some(first) = rest.next() {
            self.life = Some(Life::amid(&first));
            self.remember(&first);
        }
        rest.try_for_each(|f| self.apply(f))
    }

    fn apply(&mut self, f: Fact) -> Result<(), Broken> {
        match &mut self.life {
            Some(life) => life.apply(&f)?,
            None => self.life = Some(Life::begin(&f)?),
        }
        self.remember(&f);
        Ok(())
    }

    fn remember(&mut self, f: &Fact) {
        self.read.add(f);
        self.at_ms = f.at_ms;
    }

    /// The events that waited for the one that just came.
    fn follow_on(&mut self) -> Result<(), Broken> {
        let mut revs = self.read.next..;
        let n = self.early.iter().take_while(|f| Some(f.rev) == revs.next()).count();
        let ready: Vec<Fact> = self.early.drain(..n).collect();
        ready.into_iter().try_for_each(|f| self.apply(f))
    }
}

fn missing(rev: u64, next: u64) -> Broken {
    Broken::Rule(format!("revision {rev} is missing, {next} follows"))
}

fn place(rev: u64) -> usize {
    (rev % REMEMBERED as u64) as usize
}
