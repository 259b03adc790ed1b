//! Guards and locks, as a worker meets them: asked before a claim, kept while an attempt runs, given back at its end.
//!
//! A job that no rule is for goes straight to its claim. Else its scopes are asked partition by partition, and what each gave
//! stands in the job's [`Pass`]; whoever drops that gives everything back. Begin with [`start`]; what becomes of a refusal is in
//! [`defer`].

mod call;
mod defer;
mod keep;
mod loops;
mod pass;
mod scopes;
mod watched;

use std::{sync::Arc, time::Duration};

use surety_common::{
    domain::{
        Job,
        guard::{GuardKind, loops::Over},
        pause::Pause,
    },
    reload::LiveSettings,
    store::{
        GuardOutcome, Scope,
        guards::{OFFER, member},
    },
    watch::CrashLoop,
};

pub(crate) use call::{Request, serve};
pub(crate) use defer::{Deferral, commit};
pub(crate) use keep::{adopt, keep, refresh, renew};
pub(crate) use pass::{Hold, Pass, ended};
pub(crate) use scopes::Place;

use crate::{hand::InHand, shared::Shared};

/// The rules in force, and what is held by them.
pub(crate) struct Guards {
    live: LiveSettings,
    kept: keep::Kept,
    watched: watched::WatchedTypes,
    scopes: scopes::Scopes,
}

impl Guards {
    /// Guards by the rules of these settings.
    pub(crate) fn new(live: LiveSettings) -> Self {
        Self {
            live,
            kept: keep::Kept::default(),
            watched: watched::WatchedTypes::default(),
            scopes: scopes::Scopes::default(),
        }
    }

    /// The crash-loop guard of a type; `None` where there is none.
    fn crash_loop(&self, kind: &str) -> Option<Scope> {
        CrashLoop::new(&self.live.now()).scope(kind)
    }

    /// The scopes of a job by the rules and by its locks, in no order.
    fn scopes(&self, partitions: u32, job: &Job) -> Vec<Place> {
        self.scopes.of(self.live.now(), partitions, job)
    }
}

/// A job leaves the lines of scopes of a partition. Offers that were made to it go to the next; or they are kept for it until that
/// moment (ms).
fn leave_lines(
    w: &Arc<Shared>,
    partition: u32,
    member: Arc<str>,
    scopes: &[Place],
    kept_until_ms: Option<u64>,
) {
    let known_in = w.c.store.data_set(partition);
    let scopes = scopes.iter().filter(|(_, s)| is_held(s.kind)).map(|(_, s)| (s.clone(), 0)).collect();
    let hold = Arc::new(Hold { partition, member, token: OFFER.into(), known_in, scopes });
    let outcome = kept_until_ms.map_or(GuardOutcome::Neutral, |_| GuardOutcome::Kept);
    w.lanes.guard(partition, Request::release(w, hold, kept_until_ms, outcome));
}

/// What has to be asked before the claim of a job, partition by partition.
pub(crate) struct Asking {
    pub(crate) job: InHand,
    /// Ordered as [`in_order`] says: what is asked now comes last.
    rest: Vec<Place>,
    /// Fingerprint of what it asks for, where the loop guard is asked; else empty.
    work: String,
}

impl Asking {
    /// Where what is asked now begins in `rest`.
    fn begin(&self) -> usize {
        let now = self.rest.last().map(|(p, _)| *p);
        self.rest.iter().rposition(|(p, _)| Some(*p) != now).map_or(0, |before| before + 1)
    }

    /// What is asked now: all of one partition.
    fn now(&self) -> &[Place] {
        self.rest.get(self.begin()..).unwrap_or_default()
    }

    /// Takes out what is asked now.
    fn take(&mut self) -> Vec<Place> {
        match self.begin() {
            0 => std::mem::take(&mut self.rest),
            at => self.rest.split_off(at),
        }
    }
}

/// Takes a job that is in hand to its claim, past every guard that is for it.
pub(crate) fn start(w: &Arc<Shared>, p: u32, job: InHand) {
    if job.pass.is_some() {
        return w.lanes.claim(p, job);
    }
    if loops::is_too_deep(&w.guards.live, &job.decoded.job) {
        let w2 = w.clone();
        w.tracker.spawn(async move { loops::stop(w2, p, job, Over::Depth).await });
        return;
    }
    ask(w, p, job, true);
}

/// Asks every guard that is for a job. `is_new`: the loop guard, too.
fn ask(w: &Arc<Shared>, p: u32, mut job: InHand, is_new: bool) {
    let document = &job.decoded.job;
    let n = w.c.store.keys().partitions();
    let mut rest = w.guards.scopes(n, document);
    let (counted, work) = is_new.then(|| loops::scope(&w.guards.live, document)).flatten().unzip();
    rest.extend(counted.map(|s| placed(n, s)));
    let is_watched = w.guards.watched.has(&document.kind);
    if is_watched {
        rest.extend(w.guards.crash_loop(document.kind.as_str()).map(|s| placed(n, s)));
    }
    if rest.is_empty() {
        return w.lanes.claim(p, job);
    }
    in_order(&mut rest);
    let mut pass = Pass::new(w, member(&document.id, job.decoded.generation));
    pass.has_asked = is_watched;
    job.pass = Some(Box::new(pass));
    next(w, Asking { job, rest, work: work.unwrap_or_default() });
}

fn placed(partitions: u32, scope: Scope) -> Place {
    (scope.partition(partitions), Arc::new(scope))
}

/// Everybody asks in the same order, so that no two jobs keep each other from both: what comes last is asked first, and of one
/// partition all at once, by their hashes.
fn in_order(rest: &mut [Place]) {
    if rest.len() > 1 {
        rest.sort_unstable_by(|(p, a), (q, b)| q.cmp(p).then_with(|| a.hash.cmp(&b.hash)));
    }
}

/// Takes a job that a pause holds to the line of that pause. That one refuses it, so that nothing else is asked, and it leaves
/// the lines of its other guards.
pub(crate) fn hold(w: &Arc<Shared>, mut job: InHand, pause: &Pause) {
    let n = w.c.store.keys().partitions();
    job.pass = Some(Box::new(Pass::new(w, member(&job.decoded.job.id, job.decoded.generation))));
    let mut rest = w.guards.scopes(n, &job.decoded.job);
    in_order(&mut rest);
    rest.push(placed(n, Scope::of_pause(&pause.target.slot())));
    next(w, Asking { job, rest, work: String::new() });
}

/// A claim was answered that jobs of this type crash: that guard is asked, too.
pub(crate) fn ask_first(w: &Arc<Shared>, p: u32, mut job: InHand, left: Duration) {
    let document = &job.decoded.job;
    w.guards.watched.add(&document.kind, left);
    let scope = w.guards.crash_loop(document.kind.as_str());
    let of = member(&document.id, job.decoded.generation);
    job.pass.get_or_insert_with(|| Box::new(Pass::new(w, of))).has_asked = true;
    match scope {
        Some(scope) => {
            let rest = vec![placed(w.c.store.keys().partitions(), scope)];
            next(w, Asking { job, rest, work: String::new() });
        }
        // Left alone by the settings of this worker.
        None => w.lanes.claim(p, job),
    }
}

/// Asks the next partition, or claims.
pub(crate) fn next(w: &Arc<Shared>, asking: Asking) {
    match asking.rest.last() {
        Some((p, _)) => w.lanes.guard(*p, Request::Ask(asking)),
        None => {
            let p = w.c.store.keys().partition(&asking.job.decoded.job.id);
            w.lanes.claim(p, asking.job);
        }
    }
}

/// Whether a scope is one whose holds have to be kept alive.
fn is_held(kind: GuardKind) -> bool {
    !matches!(kind, GuardKind::Rate | GuardKind::Pause | GuardKind::Loop)
}
