//! One call for what has gathered: asks, releases, checks. Group commit as in [`crate::lanes`].

use std::{borrow::Cow, collections::HashMap, ops::Range, sync::Arc, time::Duration};

use surety_common::{
    domain::guard::{GuardKind, loops::Over},
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, StoreError, Watched, Woken},
    wake, watch,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Asking, Deferral, Hold, defer::Until, leave_lines, loops, next, scopes::offer_ms};
use crate::{
    hand::{InHand, Settle},
    lanes::by_session,
    meter::Reason,
    shared::Shared,
};

/// What a lane takes.
pub(crate) enum Request {
    Ask(Asking),
    /// The drain waits for it.
    Release {
        hold: Arc<Hold>,
        /// Of what is kept: until when its job waits for the rest.
        until_ms: Option<u64>,
        outcome: GuardOutcome,
        _token: TaskTrackerToken,
    },
    /// An attempt crashed that did not ask the guard that is to know it. The drain waits for it.
    Crashed {
        member: Arc<str>,
        scope: Arc<Scope>,
        name: String,
        _token: TaskTrackerToken,
    },
    /// A job in line has been given back: whether its turn came meanwhile.
    Check {
        member: Arc<str>,
        scope: Arc<Scope>,
        ack_subject: String,
    },
}

impl Request {
    /// A release for which the drain waits.
    pub(crate) fn release(w: &Shared, hold: Arc<Hold>, until_ms: Option<u64>, outcome: GuardOutcome) -> Self {
        Self::Release { hold, until_ms, outcome, _token: w.tracker.token() }
    }
}

/// The scopes of a call, each once.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) scopes: Vec<Arc<Scope>>,
    /// By hash; where few are asked for, looking at all of them is faster.
    places: HashMap<String, u16>,
}

/// Scopes that are looked at one by one.
const FEW: usize = 8;

impl Table {
    /// The place of a scope, which is added where it is new.
    pub(crate) fn place(&mut self, scope: &Arc<Scope>) -> u16 {
        let few = self.scopes.iter().take(FEW);
        let known = few.zip(0u16..).find(|(s, _)| Arc::ptr_eq(s, scope) || s.hash == scope.hash);
        if let Some(at) = known.map(|(_, at)| at).or_else(|| self.places.get(&scope.hash).copied()) {
            return at;
        }
        // Bounded by the group: a few scopes, and sixteen locks at most, for each of some hundred requests.
        let at = u16::try_from(self.scopes.len()).unwrap_or(u16::MAX);
        if self.scopes.len() >= FEW {
            self.places.insert(scope.hash.clone(), at);
        }
        self.scopes.push(scope.clone());
        at
    }

    /// The same, for who brings its rules into force: what was placed by an attempt that began under others gives way.
    fn place_anew(&mut self, scope: &Arc<Scope>) -> u16 {
        let at = self.place(scope);
        if let Some(known) = self.scopes.get_mut(usize::from(at))
            && !Arc::ptr_eq(known, scope)
            && known.params != scope.params
        {
            *known = scope.clone();
        }
        at
    }
}

/// Serves a group of requests to one partition.
pub(crate) async fn serve(w: Arc<Shared>, p: u32, group: Vec<Request>, permit: OwnedSemaphorePermit) {
    let (mut asks, mut others) = (Vec::with_capacity(group.len()), Vec::new());
    for request in group {
        match request {
            Request::Ask(asking) => asks.push(asking),
            other => others.push(other),
        }
    }
    // Who gathered in one group is asked in the order of arrival, whatever order they came to be decoded in (J-02).
    asks.sort_by_key(arrival);
    let mut groups = by_session(asks, |a| &a.job.held.session);
    if groups.is_empty() {
        groups.push(Vec::new());
    }
    for asks in groups {
        // What is given back comes before who asks for it.
        call(&w, p, asks, std::mem::take(&mut others)).await;
    }
    drop(permit);
}

/// Place in a line: when it was stored, and before whom.
fn arrival(asking: &Asking) -> (u64, u64) {
    (asking.job.arrival_ms, asking.job.held.d.sequence)
}

async fn call(w: &Arc<Shared>, p: u32, asks: Vec<Asking>, others: Vec<Request>) {
    let mut table = Table::default();
    // Places of scopes of all items, one behind the other.
    let mut places = Vec::with_capacity(2 * (asks.len() + others.len()));
    let of_others: Vec<Range<usize>> = others
        .iter()
        .map(|other| {
            let from = places.len();
            match other {
                Request::Release { hold, .. } => {
                    places.extend(hold.scopes.iter().map(|(s, _)| table.place(s)))
                }
                Request::Check { scope, .. } => places.push(table.place(scope)),
                Request::Crashed { scope, .. } => places.push(table.place_anew(scope)),
                Request::Ask(_) => {}
            }
            from..places.len()
        })
        .collect();
    let of_asks: Vec<Range<usize>> = asks
        .iter()
        .map(|a| {
            let from = places.len();
            places.extend(a.now().iter().map(|(_, s)| table.place_anew(s)));
            from..places.len()
        })
        .collect();
    let at = |range: Range<usize>| Cow::Borrowed(places.get(range).unwrap_or_default());
    let others_first = others.iter().zip(of_others).filter_map(|(other, range)| other_item(other, at(range)));
    let items: Vec<GuardItem<'_>> = others_first
        .chain(asks.iter().zip(of_asks).filter_map(|(asking, range)| ask_item(asking, at(range))))
        .collect();
    let session = asks.first().map(|a| a.job.held.session.id.clone());
    let answer = w.c.store.guard(p, session.as_deref(), w.hold_ms(), &table.scopes, &items).await;
    drop(items);
    match answer {
        Ok(answer) => {
            let Guarded { now_ms, replies, woken, watched, token } = answer;
            let mut replies = replies.into_iter();
            for other in &others {
                if let Request::Check { ack_subject, .. } = other
                    && replies.next() == Some(GuardReply::Turn(true))
                {
                    give_back(w, ack_subject).await;
                }
            }
            let token: Arc<str> = token.into();
            for (asking, reply) in asks.into_iter().zip(replies) {
                answered(w, p, asking, reply, &table.scopes, &token, now_ms).await;
            }
            after(w, p, &table.scopes, woken, watched, now_ms);
        }
        Err(e) => {
            // What was to be given back ends with its time: nobody renews it any more.
            tracing::warn!(asks = asks.len(), others = others.len(), error = %e, "a call of the guards failed");
            refuse(w, asks, &e).await;
        }
    }
    // Ordering: a worker does not end before what it frees is free, and who is next is told: their tokens are dropped last.
    drop(others);
}

/// What is to be done for a request that asks for no start.
fn other_item<'a>(other: &'a Request, scopes: Cow<'a, [u16]>) -> Option<GuardItem<'a>> {
    let (member, act) = match other {
        Request::Release { hold, until_ms, outcome, .. } => {
            let token = Cow::Borrowed(&*hold.token);
            (&hold.member, GuardAct::Release { token, until_ms: *until_ms, outcome: *outcome })
        }
        Request::Check { member, .. } => (member, GuardAct::Check),
        Request::Crashed { member, name, .. } => {
            let mark = Cow::Borrowed(name.as_str());
            (member, GuardAct::Report { mark, outcome: GuardOutcome::Crashed })
        }
        Request::Ask(_) => return None,
    };
    Some(GuardItem { act, member: Cow::Borrowed(&**member), scopes })
}

fn ask_item<'a>(asking: &'a Asking, scopes: Cow<'a, [u16]>) -> Option<GuardItem<'a>> {
    let (pass, d) = (asking.job.pass.as_ref()?, &asking.job.held.d);
    let act = GuardAct::Ask {
        arrival_ms: asking.job.arrival_ms,
        ack_subject: Cow::Borrowed(d.ack_subject.as_str()),
        work: Cow::Borrowed(asking.work.as_str()),
        keeps: keeps(&asking.job),
    };
    Some(GuardItem { act, member: Cow::Borrowed(&*pass.member), scopes })
}

async fn answered(
    w: &Arc<Shared>,
    p: u32,
    mut asking: Asking,
    reply: GuardReply,
    scopes: &[Arc<Scope>],
    token: &Arc<str>,
    now_ms: u64,
) {
    let (until, scope) = match reply {
        GuardReply::Passes(numbers) => {
            let asked = asking.take();
            if let Some(pass) = asking.job.pass.as_mut() {
                pass.add(p, token, asked, &numbers);
            }
            return next(w, asking);
        }
        GuardReply::WaitsUntil { scope, at_ms } => (Until::Moment(at_ms), scope),
        GuardReply::WaitsInLine { scope, before } => (Until::Turn { before }, scope),
        GuardReply::Stopped { count, limit, .. } if let Some(over) = Over::from_code(limit, count) => {
            // What other partitions gave is given back by the drop of the pass.
            let mut job = asking.job;
            job.pass = None;
            let (w2, p) = (w.clone(), w.c.store.keys().partition(&job.decoded.job.id));
            w.tracker.spawn(async move { loops::stop(w2, p, job, over).await });
            return;
        }
        other => {
            let is_expected = other == GuardReply::NotYet;
            if !is_expected {
                tracing::error!(reply = ?other, "a guard answered what was not asked");
            }
            return not_now(w, asking.job, Reason::Rebuilding, w.settings.lease.margin).await;
        }
    };
    let Some(scope) = scopes.get(scope) else { return };
    let moment = match until {
        Until::Moment(at_ms) => Some(at_ms),
        Until::Turn { .. } => None,
    };
    // Who is in line for what it was offered waits no longer than for an offer that nobody comes for.
    let is_near = moment.is_some_and(|at_ms| at_ms <= now_ms + offer_ms(&w.live.now()));
    // What other partitions gave is given back by the drop of the pass; what they offer and were not asked for yet, by this.
    asking.take();
    if let Some(pass) = &asking.job.pass {
        for scopes in asking.rest.chunk_by(|(p, _), (q, _)| p == q) {
            if let Some((at, _)) = scopes.first() {
                leave_lines(w, *at, pass.member.clone(), scopes, moment.filter(|_| is_near));
            }
        }
    }
    let mut job = asking.job;
    let is_patient = keeps(&job);
    let is_for_long = !matches!(scope.kind, GuardKind::Rate | GuardKind::Concurrency | GuardKind::Lock);
    if let Some(pass) = job.pass.as_mut().filter(|_| !is_for_long && (is_patient || is_near)) {
        pass.keeps(moment);
    }
    job.pass = None;
    let p = w.c.store.keys().partition(&job.decoded.job.id);
    w.lanes.defer(p, Deferral { job, scope: scope.clone(), until, asked_ms: now_ms });
}

/// A job that came so often and was let in by some of its guards, but never by all at once, keeps what it gets from then on.
const KEEPS_AFTER: u64 = 8;

fn keeps(job: &InHand) -> bool {
    job.held.d.delivered > KEEPS_AFTER
}

/// None of them may start: the store was not to be asked.
async fn refuse(w: &Arc<Shared>, asks: Vec<Asking>, e: &StoreError) {
    let (reason, delay) = match e {
        StoreError::Rebuilding => (Reason::Rebuilding, w.settings.lease.margin),
        e => {
            tracing::warn!(jobs = asks.len(), error = %e, "the guards cannot be asked; the jobs are given back");
            (Reason::StoreError, Duration::from_secs(1))
        }
    };
    for asking in asks {
        not_now(w, asking.job, reason, delay).await;
    }
}

async fn not_now(w: &Shared, job: InHand, reason: Reason, delay: Duration) {
    w.meters.deferred(&job.held.queue, reason);
    job.held.settle(Settle::Nak(delay)).await;
}

async fn give_back(w: &Shared, ack_subject: &str) {
    if let Err(e) = w.c.broker.nak(&ack_subject.to_owned(), Duration::ZERO).await {
        tracing::warn!(error = %e, "a job whose turn has come was not woken; it comes back by itself");
    }
}

/// Wakes whose turn has come and tells which types are watched, on a task of its own.
pub(crate) fn after(
    w: &Arc<Shared>,
    p: u32,
    scopes: &[Arc<Scope>],
    woken: Vec<Woken>,
    watched: Vec<Watched>,
    now_ms: u64,
) {
    if woken.is_empty() && watched.is_empty() {
        return;
    }
    let scopes: Vec<Scope> = scopes.iter().map(|s| Scope::clone(s)).collect();
    let (c, hold_ms) = (w.c.clone(), w.hold_ms());
    w.tracker.spawn(async move {
        watch::tell(&c, &scopes, &watched, now_ms).await;
        wake::wake(&c, p, hold_ms, &scopes, woken).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(value: &str, limit: u64) -> Arc<Scope> {
        Arc::new(Scope::new(GuardKind::Concurrency, "one", value, [limit, 5000, 0, 0]))
    }

    // Shows: G-02
    #[test]
    fn the_rule_of_who_asks_goes_before_that_of_who_gives_back() {
        // So many that both ways of finding one are gone.
        let names: Vec<String> = (0..2 * FEW).map(|n| n.to_string()).collect();
        let mut table = Table::default();
        let given: Vec<u16> = names.iter().map(|n| table.place(&scope(n, 3))).collect();
        let asked: Vec<u16> = names.iter().map(|n| table.place_anew(&scope(n, 1))).collect();
        assert_eq!(given, asked, "one place for each");
        let limits = |t: &Table| t.scopes.iter().map(|s| s.params[0]).collect::<Vec<_>>();
        assert_eq!(limits(&table), [1; 2 * FEW]);
        for n in &names {
            table.place(&scope(n, 3));
        }
        assert_eq!(limits(&table), [1; 2 * FEW], "what is given back brings no rule");
    }
}
