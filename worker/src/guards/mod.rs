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
mod watched;

use std::{sync::Arc, time::Duration};

use surety_common::{
    config::{GuardRule, Limits, Settings},
    domain::{
        Job,
        guard::{Gate, GuardKind, loops::Over},
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
pub(crate) use keep::{adopt, keep, renew};
pub(crate) use pass::{Hold, Pass, ended};

use crate::{hand::InHand, shared::Shared};

/// The rules in force, and what is held by them.
pub(crate) struct Guards {
    live: LiveSettings,
    kept: keep::Kept,
    watched: watched::WatchedTypes,
}

impl Guards {
    /// Guards by the rules of these settings.
    pub(crate) fn new(live: LiveSettings) -> Self {
        Self { live, kept: keep::Kept::default(), watched: watched::WatchedTypes::default() }
    }

    /// The crash-loop guard of a type; `None` where there is none.
    fn crash_loop(&self, kind: &str) -> Option<Scope> {
        CrashLoop::new(&self.live.now()).scope(kind)
    }

    /// The scopes of a job: those of the rules, in their order, and its locks.
    fn scopes(&self, job: &Job) -> Vec<Scope> {
        let now = self.live.now();
        let rules = now.guard_rules.iter().filter(|r| r.is_for(job));
        let lock = |name: &String| Scope::new(GuardKind::Lock, "", name, [1, offer_ms(&now), 0, 0]);
        rules.filter_map(|r| scope(&now, r, job)).chain(job.locks.iter().map(lock)).collect()
    }
}

/// How long an offered slot stands (ms).
fn offer_ms(now: &Settings) -> u64 {
    u64::try_from(now.guards.offer.as_millis()).unwrap_or(u64::MAX)
}

fn scope(now: &Settings, rule: &GuardRule, job: &Job) -> Option<Scope> {
    let value = rule.scope.render(job)?;
    let offer_ms = offer_ms(now);
    let params = match rule.limits {
        Limits::Rate(r) => [r.interval_us, r.tolerance_us, 0, 0],
        Limits::Concurrency(slots) => [slots, offer_ms, 0, 0],
        Limits::Gate(g) => Gate { offer_s: offer_ms.div_ceil(1000), ..g }.params(),
    };
    Some(Scope::new(rule.kind(), &rule.name, &value, params))
}

/// A job leaves the lines of scopes of a partition, and offers that were made to it go to the next.
fn leave_lines(w: &Arc<Shared>, partition: u32, member: Arc<str>, scopes: Vec<Scope>) {
    let known_in = w.c.store.data_set(partition);
    let scopes = scopes.into_iter().filter(|s| is_held(s.kind)).map(|s| (s, 0)).collect();
    let hold = Hold { partition, member, token: OFFER.into(), known_in, scopes };
    w.lanes.guard(partition, Request::release(w, hold, None, GuardOutcome::Neutral));
}

/// What has to be asked before the claim of a job, partition by partition.
pub(crate) struct Asking {
    pub(crate) job: InHand,
    /// The partition that is asked now comes last.
    pub(crate) rest: Vec<(u32, Vec<Scope>)>,
    /// Fingerprint of what it asks for, where the loop guard is asked; else empty.
    pub(crate) work: String,
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
    let mut scopes = w.guards.scopes(document);
    let (counted, work) = is_new.then(|| loops::scope(&w.guards.live, document)).flatten().unzip();
    scopes.extend(counted);
    let is_watched = w.guards.watched.has(&document.kind);
    if is_watched {
        scopes.extend(w.guards.crash_loop(document.kind.as_str()));
    }
    let rest = by_partition(w, scopes);
    if rest.is_empty() {
        return w.lanes.claim(p, job);
    }
    let mut pass = Pass::new(w, member(&document.id, job.decoded.generation));
    pass.has_asked = is_watched;
    job.pass = Some(Box::new(pass));
    next(w, Asking { job, rest, work: work.unwrap_or_default() });
}

/// What is to be asked, the first partition last.
fn by_partition(w: &Shared, scopes: Vec<Scope>) -> Vec<(u32, Vec<Scope>)> {
    let n = w.c.store.keys().partitions();
    let mut rest: Vec<(u32, Vec<Scope>)> = Vec::with_capacity(1);
    for scope in scopes {
        let at = scope.partition(n);
        match rest.iter_mut().find(|(p, _)| *p == at) {
            Some((_, here)) => here.push(scope),
            None => rest.push((at, vec![scope])),
        }
    }
    // Everybody asks in the same order, so that no two jobs keep each other from both.
    rest.sort_by_key(|(p, _)| std::cmp::Reverse(*p));
    rest.iter_mut().for_each(|(_, here)| here.sort_by(|a, b| a.hash.cmp(&b.hash)));
    rest
}

/// Takes a job that a pause holds to the line of that pause. That one refuses it, so that nothing else is asked, and it leaves
/// the lines of its other guards.
pub(crate) fn hold(w: &Arc<Shared>, mut job: InHand, pause: &Pause) {
    let scope = Scope::of_pause(&pause.target.slot());
    let at = scope.partition(w.c.store.keys().partitions());
    job.pass = Some(Box::new(Pass::new(w, member(&job.decoded.job.id, job.decoded.generation))));
    let mut rest = by_partition(w, w.guards.scopes(&job.decoded.job));
    rest.push((at, vec![scope]));
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
            let at = scope.partition(w.c.store.keys().partitions());
            next(w, Asking { job, rest: vec![(at, vec![scope])], work: String::new() });
        }
        // Left alone by the settings of this worker.
        None => w.lanes.claim(p, job),
    }
}

/// Asks the next partition, or claims.
pub(crate) fn next(w: &Arc<Shared>, asking: Asking) {
    match asking.rest.last() {
        Some((p, _)) => w.lanes.guard(*p, Request::Ask(Box::new(asking))),
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
