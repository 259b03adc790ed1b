//! Whose an event is, where a job's id was used again: a job of a deleted job's id is a new one and counts from 1. Pure.
//!
//! Who deleted the old record may have died before that was journaled, so the first events of the new life may stand in the
//! journal before the `deleted` of the old one. They are counted for a life of their own, which takes the place of the old one
//! with its `deleted`. Without one the old life stays what it was: the data set that wrote what contradicts it may have been
//! one that had lost the outcome, and the first outcome is the true one.

use super::fold::Known;

/// What was read of the life after a job's, whose `deleted` was not read yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reborn {
    pub(super) known: Known,
    /// When its first known event happened: a `deleted` that is not later is that of the life before.
    pub(super) since_ms: u64,
}

/// Whose an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The life that is known.
    This,
    /// The one after it.
    Next,
    /// Of either: both count it.
    Either,
    /// It is the end of this life, and the next one takes its place.
    End,
    /// A late copy, of a life before this one.
    Former,
}

/// What decides about an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark<'a> {
    pub(super) generation: u32,
    pub(super) rev: u64,
    pub(super) kind: &'a str,
    pub(super) at_ms: u64,
}

impl Mark<'_> {
    /// Whether only an ended job has such events.
    fn is_last(&self) -> bool {
        matches!(self.kind, "deleted" | "receipt_delivered" | "receipt_failed")
    }
}

impl Known {
    /// Whether an event begins another life of a deleted job. The same millisecond may have seen both.
    pub(super) fn is_followed_by(&self, m: Mark<'_>) -> bool {
        let is_later = m.at_ms > self.at_ms || m.at_ms == self.at_ms && !m.is_last();
        self.is_deleted && m.rev <= self.rev && is_later
    }

    /// Whose an event is that begins no life behind a deleted one.
    pub(super) fn whose(&self, m: Mark<'_>) -> Whose {
        let is_last = m.is_last();
        // Nothing else can wait in an outbox until the record is deleted, and be relayed a second time.
        if is_last && self.after_ms > 0 && m.at_ms <= self.after_ms {
            return Whose::Former;
        }
        if let Some(next) = &self.reborn {
            if m.kind == "deleted" {
                return if m.at_ms <= next.since_ms { Whose::End } else { Whose::Either };
            }
            if m.at_ms >= next.since_ms {
                let fits =
                    self.is_open() || is_last || m.generation > self.generation || m.kind == "replayed";
                return if fits { Whose::Either } else { Whose::Next };
            }
        }
        if self.contradicts(m) { Whose::Next } else { Whose::This }
    }

    /// Whether an event is later than everything of an ended life, and has a revision that this life has already.
    fn contradicts(&self, m: Mark<'_>) -> bool {
        let is_ended = self.status.is_terminal() && !self.is_deleted;
        is_ended && m.rev <= self.rev && !self.gaps.contains(&m.rev) && m.at_ms > self.at_ms
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        domain::Status,
        known::{Fold, fold::Known},
    };

    /// An event of a job, at a second of some hour.
    fn event(second: u32, generation: u32, rev: u64, kind: &str, status: &str) -> String {
        format!(
            r#"{{"v":1,"job":"a","gen":{generation},"rev":{rev},"kind":"{kind}","at":"2026-11-21T08:00:{second:02}.000Z",
            "queue":"q","type":"t","status":"{status}","contract":"acked","attempt":1,"epoch":{second},"session":"s{second}"}}"#
        )
    }

    fn known(events: &[String]) -> Known {
        let mut f = Fold::default();
        events.iter().for_each(|e| f.message(format!("[{e}]").as_bytes(), |_| true));
        assert_eq!((f.unreadable, f.len()), (0, 1));
        f.get("a").unwrap().clone()
    }

    fn brief(events: &[String]) -> (Status, u64, u32, bool) {
        let k = known(events);
        assert!(k.reborn.is_none() || k.status.is_terminal(), "{k:?}");
        (k.status, k.rev, k.charged, k.is_deleted)
    }

    /// A life up to its end, and the events of the one after it.
    fn lives() -> (Vec<String>, Vec<String>) {
        let old = vec![
            event(1, 1, 1, "started", "running"),
            event(2, 1, 2, "finished", "done"),
            event(3, 1, 3, "receipt_delivered", "done"),
            event(4, 1, 4, "deleted", "done"),
        ];
        let new = vec![
            event(5, 1, 1, "started", "running"),
            event(6, 1, 2, "attempt_failed", "retry_wait"),
            event(7, 1, 3, "started", "running"),
            event(8, 1, 4, "progress", "running"),
            event(9, 1, 5, "progress", "running"),
        ];
        (old, new)
    }

    // Shows: P7
    #[test]
    fn a_new_life_that_is_read_before_the_end_of_the_old_one_is_known_with_it() {
        let (old, new) = lives();
        for held in 1..=2 {
            for n in 1..=new.len() {
                let (told, late) = old.split_at(old.len() - held);
                let (before, after) = new.split_at(n);
                // Copies change nothing, of whichever life.
                for copies in [&[][..], &new[..1], &old[..3], &old[..]] {
                    let all = [told, before, &before[..1], late, after, copies].concat();
                    let k = known(&all);
                    assert_eq!((k.status, k.rev, k.first, k.charged), (Status::Running, 5, 1, 1), "{all:#?}");
                    assert_eq!((k.is_deleted, k.gaps.as_slice(), &*k.session), (false, &[][..], "s9"));
                    assert!(k.reborn.is_none());
                }
            }
        }
        // Its first event may be read behind its second, and in the millisecond in which the old record was deleted.
        let [told, late] = [&old[..3], &old[3..]];
        assert_eq!(brief(&[told, &[new[1].clone(), new[0].clone()], late].concat()).0, Status::RetryWait);
        let at_once = event(4, 1, 1, "started", "running");
        for all in [
            [told, std::slice::from_ref(&at_once), late, &new[1..]],
            [told, late, std::slice::from_ref(&at_once), &new[1..]],
        ] {
            let k = known(&all.concat());
            assert_eq!((k.status, k.rev, k.first, k.charged), (Status::Running, 5, 1, 1));
        }
        // What is told of the old one once more has the revisions that the new one comes to next.
        for n in 1..4 {
            let k = known(&[told, &new[..1], late, &new[1..n], &old[2..]].concat());
            assert_eq!((k.rev, k.is_deleted, k.gaps.len()), (n as u64, false, 0));
            let k = known(&[&old[..], &new[..n], &old[2..]].concat());
            assert_eq!((k.rev, k.is_deleted, k.gaps.len()), (n as u64, false, 0));
        }
        // It may have ended, and be deleted.
        let ended = [new[0].clone(), event(6, 1, 2, "finished", "failed")];
        assert_eq!(brief(&[told, &ended, late].concat()), (Status::Failed, 2, 0, false));
        let gone = event(7, 1, 3, "deleted", "failed");
        assert_eq!(
            brief(&[told, &ended, std::slice::from_ref(&gone), late].concat()),
            (Status::Failed, 3, 0, true)
        );
        assert_eq!(brief(&[told, &ended, late, &[gone]].concat()), (Status::Failed, 3, 0, true));
        // What its requester is told may be taken for the old one's in the meantime.
        let delivered = event(7, 1, 3, "receipt_delivered", "failed");
        let (told, rest) = old.split_at(2);
        assert_eq!(brief(&[told, &ended, &[delivered], rest].concat()), (Status::Failed, 3, 0, false));
    }

    #[test]
    fn the_new_life_is_there_to_be_written_with_the_end_of_the_old_one() {
        let (old, new) = lives();
        let mut f = Fold::default();
        let mut read = |events: &[String]| {
            f.message(format!("[{}]", events.join(",")).as_bytes(), |_| true);
            f.take_dirty().into_iter().map(|(_, k)| (k.rev, k.after_ms > 0)).collect::<Vec<_>>()
        };
        assert_eq!(read(&old[..3]), [(3, false)]);
        assert_eq!(read(&new[..1]), []);
        assert_eq!(read(&old[3..]), [(1, true)]);
        assert_eq!(read(&new[1..2]), [(2, true)]);
    }

    // Shows: P2
    #[test]
    fn without_the_end_of_the_old_life_its_outcome_stands() {
        let (old, new) = lives();
        // The data set lost the outcome, and ran the job again.
        for n in 1..=new.len() {
            let all = [&old[..2], &new[..n]].concat();
            assert_eq!(brief(&all), (Status::Done, 2, 0, false));
        }
        let second = [&old[..2], &new[1..3], &[event(9, 1, 4, "finished", "failed")]].concat();
        assert_eq!(brief(&second), (Status::Done, 2, 0, false));
        // Its receipt is delivered, it is replayed and deleted as ever.
        let base = [&old[..2], &new[1..2]].concat();
        let later = [
            event(20, 1, 3, "receipt_delivered", "done"),
            event(30, 2, 4, "replayed", "queued"),
            event(31, 2, 5, "started", "running"),
            event(32, 2, 6, "finished", "failed"),
            event(33, 2, 7, "deleted", "failed"),
        ];
        let with = |n: usize| known(&[&base[..], &later[..n]].concat());
        assert_eq!((with(1).status, with(1).rev), (Status::Done, 3));
        assert_eq!((with(2).status, with(2).generation, with(2).is_open()), (Status::Queued, 2, true));
        assert_eq!((with(3).status, with(3).rev, with(3).gaps.len()), (Status::Running, 5, 0));
        assert_eq!((with(4).status, with(4).is_deleted), (Status::Failed, false));
        assert!(with(5).is_deleted && with(5).reborn.is_none());
        // What began before it was deleted was none, in whatever order it is read.
        let mixed = [event(9, 1, 2, "acked", "running"), event(5, 1, 1, "started", "running")];
        let k = known(&[&old[..2], &mixed, &[event(7, 1, 3, "deleted", "done")]].concat());
        assert!(k.is_deleted && k.status == Status::Done && k.reborn.is_none());
        // A generation may be read before the event that opened it.
        let swapped = known(&[&base[..], &later[..1], &later[2..3]].concat());
        assert_eq!((swapped.status, swapped.rev, &*swapped.gaps), (Status::Running, 5, &[4][..]));
    }

    #[test]
    fn what_is_no_later_than_the_outcome_is_an_old_copy() {
        let (old, _) = lives();
        for second in [1, 2] {
            let again = event(second, 1, 1, "started", "running");
            assert!(known(&[&old[..2], std::slice::from_ref(&again)].concat()).reborn.is_none());
            assert!(known(&[&old[..2], &[again], &old[2..]].concat()).is_deleted);
        }
        // A revision that was missing is none that contradicts.
        let gap = [old[0].clone(), event(3, 1, 3, "finished", "done"), event(9, 1, 2, "acked", "running")];
        let k = known(&gap);
        assert!(k.reborn.is_none() && k.gaps.is_empty());
    }
}
