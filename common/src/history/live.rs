//! The journal against the store: *running* in a record must mean that a live attempt runs, and the journal must know each
//! of a record's transitions. Both move while they are compared, so what differs is a doubt until it has lasted.

use std::collections::HashSet;

use super::audit::Told;
use crate::{
    domain::Status,
    store::{Fleet, Record},
};

/// What the store says of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub status: Status,
    pub rev: u64,
    pub epoch: u64,
    pub session: String,
}

impl From<&Record> for Stored {
    fn from(r: &Record) -> Self {
        Self { status: r.status, rev: r.rev, epoch: r.epoch, session: r.session.clone() }
    }
}

/// Something that may be on its way between store and journal, and is wrong when it stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// The journal does not have this revision of a record yet.
    NotJournaled { rev: u64 },
    /// The journal is ahead of the record.
    Forgotten { rev: u64, of: u64 },
    /// The journal knows an open job that the store does not know.
    NoRecord,
    /// The journal has the outcome, the record has not.
    NotEnded { rev: u64 },
    /// A record says that it runs, and the session that runs it is dead or gone.
    DeadOwner { epoch: u64, session: String },
    /// A record says that it runs, and its session does not hold it.
    NotHeld { epoch: u64, session: String },
    /// A live session holds an attempt that its record does not know.
    NoAttempt { epoch: u64, session: String },
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotJournaled { rev } => write!(f, "the record has revision {rev}, the journal does not"),
            Self::Forgotten { rev, of } => write!(f, "the journal has revision {of}, the record only {rev}"),
            Self::NoRecord => f.write_str("the job is open and has no record"),
            Self::NotEnded { rev } => {
                write!(f, "the journal has the outcome, the record of revision {rev} has none")
            }
            Self::DeadOwner { epoch, session } => {
                write!(f, "attempt of epoch {epoch} runs under session {session}, which is dead")
            }
            Self::NotHeld { epoch, session } => {
                write!(f, "attempt of epoch {epoch} runs under session {session}, which does not hold it")
            }
            Self::NoAttempt { epoch, session } => {
                write!(f, "session {session} holds an attempt of epoch {epoch} that the record does not know")
            }
        }
    }
}

/// What the fleet runs, ready for questions.
#[derive(Debug, Default)]
pub struct Live {
    alive: HashSet<String>,
    held: HashSet<(String, u64, String)>,
    /// Held attempts of live sessions that no record knows.
    unknown: Vec<(String, Doubt)>,
}

impl Live {
    /// What a look at the fleet says.
    pub fn of(fleet: &Fleet) -> Self {
        let mut live = Self::default();
        for s in fleet.alive() {
            live.alive.insert(s.id.clone());
            for h in &s.held {
                live.held.insert((h.job.to_string(), h.epoch, s.id.clone()));
                if h.record.as_ref().is_none_or(|r| !r.status.is_running()) {
                    let doubt = Doubt::NoAttempt { epoch: h.epoch, session: s.id.clone() };
                    live.unknown.push((h.job.to_string(), doubt));
                }
            }
        }
        live
    }

    /// What is wrong with what live sessions hold: jobs with the doubt.
    pub fn unknown(&self) -> &[(String, Doubt)] {
        &self.unknown
    }

    /// What is wrong with one job. `told` must have been read before the record.
    pub fn doubt(&self, job: &str, told: Option<Told>, record: Option<&Stored>) -> Option<Doubt> {
        let Some(r) = record else {
            return told.is_some_and(|t| !t.is_ended).then_some(Doubt::NoRecord);
        };
        if r.status.is_running() {
            let (epoch, session) = (r.epoch, r.session.clone());
            if !self.alive.contains(&session) {
                return Some(Doubt::DeadOwner { epoch, session });
            }
            if !self.held.contains(&(job.to_owned(), epoch, session.clone())) {
                return Some(Doubt::NotHeld { epoch, session });
            }
        }
        match told {
            // Its id began a new life: the old one tells nothing of this record.
            Some(t) if t.is_deleted => None,
            Some(t) if t.rev > r.rev => Some(Doubt::Forgotten { rev: r.rev, of: t.rev }),
            Some(t) if t.rev == r.rev && t.is_ended && !r.status.is_terminal() => {
                Some(Doubt::NotEnded { rev: r.rev })
            }
            Some(t) if t.rev == r.rev => None,
            None if r.rev == 0 => None,
            Some(_) | None => Some(Doubt::NotJournaled { rev: r.rev }),
        }
    }
}

impl Doubt {
    /// Whether an earlier doubt is still one, by what is thought of the job now.
    pub fn lasts(&self, told: Option<Told>, now: Option<&Self>) -> bool {
        match self {
            // The record may have moved on: it is enough that the journal came after it.
            Self::NotJournaled { rev } => told.is_none_or(|t| t.rev < *rev && !t.is_deleted),
            other => now == Some(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::JobId,
        store::{FleetSession, Held},
    };

    fn stored(status: Status, rev: u64) -> Stored {
        Stored { status, rev, epoch: 3, session: "s".into() }
    }

    fn told(rev: u64, is_ended: bool) -> Option<Told> {
        Some(Told { rev, is_running: !is_ended, is_ended, is_deleted: false })
    }

    fn live(holds: &[(&str, u64)], expires_ms: u64) -> Live {
        let held = holds.iter().map(|(job, epoch)| Held {
            job: JobId::new(job).unwrap(),
            epoch: *epoch,
            record: None,
        });
        let session = FleetSession { id: "s".into(), info: None, expires_ms, held: held.collect() };
        Live::of(&Fleet { now_ms: 100, sessions: vec![session] })
    }

    #[test]
    fn running_means_live() {
        let running = stored(Status::Running, 1);
        let ask = |l: &Live, r: &Stored| l.doubt("a", told(1, false), Some(r)).map(|d| d.to_string());
        assert_eq!(ask(&live(&[("a", 3)], 200), &running), None);
        assert!(ask(&live(&[("a", 3)], 50), &running).unwrap().contains("dead"));
        assert!(ask(&live(&[], 200), &running).unwrap().contains("does not hold"));
        assert!(ask(&live(&[("a", 2)], 200), &running).unwrap().contains("does not hold"));
        assert_eq!(ask(&live(&[], 50), &stored(Status::RetryWait, 1)), None);
        assert_eq!(live(&[("a", 3)], 200).unknown().len(), 1, "no record knows it");
    }

    // Shows: P7
    #[test]
    fn the_journal_has_what_the_record_has() {
        let l = Live::default();
        let idle = stored(Status::RetryWait, 4);
        let ask = |told, r: Option<&Stored>| l.doubt("a", told, r);
        assert_eq!(ask(told(4, false), Some(&idle)), None);
        assert_eq!(ask(told(3, false), Some(&idle)), Some(Doubt::NotJournaled { rev: 4 }));
        assert_eq!(ask(None, Some(&idle)), Some(Doubt::NotJournaled { rev: 4 }));
        assert_eq!(ask(told(5, false), Some(&idle)), Some(Doubt::Forgotten { rev: 4, of: 5 }));
        assert_eq!(ask(told(4, true), Some(&idle)), Some(Doubt::NotEnded { rev: 4 }));
        assert_eq!(ask(told(4, false), None), Some(Doubt::NoRecord));
        assert_eq!(ask(told(4, true), None), None);
        assert_eq!(ask(None, None), None);
        // Registered, and nothing happened to it.
        assert_eq!(ask(None, Some(&stored(Status::Queued, 0))), None);
    }

    #[test]
    fn what_was_on_its_way_is_no_doubt_when_it_has_come() {
        let late = Doubt::NotJournaled { rev: 4 };
        assert!(late.lasts(told(3, false), None) && late.lasts(None, None));
        // The record went on meanwhile; that revision is another matter.
        assert!(!late.lasts(told(4, false), Some(&Doubt::NotJournaled { rev: 9 })));
        let dead = Doubt::DeadOwner { epoch: 1, session: "s".into() };
        assert!(dead.lasts(None, Some(&dead.clone())) && !dead.lasts(None, None));
        assert!(!dead.lasts(None, Some(&Doubt::DeadOwner { epoch: 2, session: "t".into() })));
    }
}
