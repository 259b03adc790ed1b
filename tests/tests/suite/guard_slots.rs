//! Concurrency limits and locks, script by script: random sequences through a real Redis and through a model of a few lines,
//! which after every call must agree on the answers, on who holds what, on who stands in line and on who is to be woken.
//!
//! Times pass for real: what is to be over lasts a millisecond, and both sides judge by the store's clock of the call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner},
};
use redis::AsyncCommands;
use surety_common::{
    domain::{
        guard::GuardKind,
        ids::{Namespace, SessionId},
    },
    store::{
        GuardAct, GuardItem, GuardOutcome, GuardReply, Scope, Store, StoreOptions, Woken, guards::OFFER,
    },
};

use super::scripts::{Redis, redis};

const JOBS: usize = 5;
const HOUR: u64 = 3_600_000;
const OFFER_TRIES: u8 = 5;

static N_CASES: AtomicU32 = AtomicU32::new(0);

/// A store of its own in a Redis that several share.
pub(super) async fn store(url: &str, partitions: u32) -> Store {
    let n = N_CASES.fetch_add(1, Ordering::Relaxed);
    let store = Store::connect(StoreOptions {
        url: url.into(),
        login: Default::default(),
        namespace: Namespace::new(&format!("g{n}")).unwrap(),
        partitions,
        call_timeout: Duration::from_secs(10),
        retry_limit: Duration::from_secs(10),
        keep: Duration::from_secs(3600),
        lost_limit: 5,
        look_after: Duration::from_secs(3600),
    })
    .await
    .unwrap();
    store.open("2026-01-01", true).await.unwrap();
    store
}

pub(super) async fn plain(r: &Redis) -> redis::aio::MultiplexedConnection {
    redis::Client::open(r.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

pub(super) fn ask(member: &str, arrival_ms: u64, scopes: &[u16]) -> GuardItem<'static> {
    let act = GuardAct::Ask {
        arrival_ms,
        ack_subject: format!("ack.{member}").into(),
        work: "".into(),
        keeps: false,
    };
    GuardItem { act, member: member.to_owned().into(), scopes: scopes.to_vec().into() }
}

pub(super) fn release(
    member: &str,
    token: &str,
    until_ms: Option<u64>,
    outcome: GuardOutcome,
    scopes: &[u16],
) -> GuardItem<'static> {
    let act = GuardAct::Release { token: token.to_owned().into(), until_ms, outcome };
    GuardItem { act, member: member.to_owned().into(), scopes: scopes.to_vec().into() }
}

pub(super) fn item(act: GuardAct<'static>, member: &str, scopes: &[u16]) -> GuardItem<'static> {
    GuardItem { act, member: member.to_owned().into(), scopes: scopes.to_vec().into() }
}

/// No key of a scope is left, and no reaper looks at it.
pub(super) async fn nothing_left(store: &Store, plain: &redis::aio::MultiplexedConnection, scope: &Scope) {
    let mut c = plain.clone();
    for p in 0..store.keys().partitions() {
        for key in store.keys().guard(p, &scope.hash) {
            assert!(!c.exists::<_, bool>(&key).await.unwrap(), "{key} is left of {}", scope.label);
        }
        let look: Option<f64> = c.zscore(store.keys().guards(p), &scope.hash).await.unwrap();
        assert_eq!(look, None, "{}", scope.label);
    }
}

// --- the model

#[derive(Debug, Clone, PartialEq)]
enum By {
    Call(String),
    Offer { tries: u8, ack: String },
}

#[derive(Debug, Clone, PartialEq)]
struct Held {
    until: u64,
    by: By,
}

/// One scope.
#[derive(Debug, Clone)]
struct Model {
    scope: Scope,
    held: BTreeMap<String, Held>,
    line: BTreeSet<(u64, String)>,
    asleep: BTreeMap<String, String>,
    fence: u64,
    /// More than the limit hold something: attempts that run were held again, or the limit was lowered.
    above: bool,
}

/// What a call brings with it.
struct Call<'a> {
    now: u64,
    hold_ms: u64,
    token: &'a str,
    wakes: Vec<Woken>,
    given: BTreeSet<(usize, String)>,
    idle: BTreeSet<usize>,
}

impl Model {
    fn new(scope: Scope) -> Self {
        Self {
            scope,
            held: BTreeMap::new(),
            line: BTreeSet::new(),
            asleep: BTreeMap::new(),
            fence: 0,
            above: false,
        }
    }

    fn limit(&self) -> usize {
        self.scope.params[0] as usize
    }

    fn is_lock(&self) -> bool {
        self.scope.kind == GuardKind::Lock
    }

    fn offer(&mut self, at: usize, call: &mut Call<'_>, member: String, tries: u8, ack: String) {
        let until = call.now + self.scope.params[1].div_ceil(u64::from(OFFER_TRIES));
        call.wakes.push(Woken { scope: at, member: member.clone(), ack_subject: ack.clone() });
        self.held.insert(member, Held { until, by: By::Offer { tries, ack } });
    }

    fn promote(&mut self, at: usize, call: &mut Call<'_>) {
        while self.held.len() < self.limit()
            && let Some((_, member)) = self.line.pop_first()
        {
            let ack = self.asleep.remove(&member).unwrap_or_default();
            self.offer(at, call, member, 1, ack);
        }
    }

    fn reclaim(&mut self, at: usize, call: &mut Call<'_>, session: &str) {
        for (member, held) in self.held.clone() {
            let is_over = held.until <= call.now;
            match held.by {
                By::Call(token) => {
                    if is_over || (!session.is_empty() && token.ends_with(&format!(" {session}"))) {
                        self.held.remove(&member);
                    }
                }
                By::Offer { tries, ack } if is_over => {
                    if tries < OFFER_TRIES {
                        self.offer(at, call, member, tries + 1, ack);
                    } else {
                        self.held.remove(&member);
                        call.wakes.push(Woken { scope: at, member, ack_subject: ack });
                    }
                }
                By::Offer { .. } => {}
            }
        }
    }

    fn has_room_for(&self, member: &str) -> bool {
        match self.held.get(member) {
            Some(Held { by: By::Offer { .. }, .. }) => self.held.len() <= self.limit(),
            Some(_) => true,
            None => self.held.len() < self.limit() && self.line.is_empty(),
        }
    }

    fn leave_line(&mut self, member: &str) {
        self.line.retain(|(_, m)| m != member);
        self.asleep.remove(member);
    }

    fn adopt(&mut self, at: usize, call: &mut Call<'_>, member: &str) -> u64 {
        let key = (at, member.to_owned());
        let mine = By::Call(call.token.to_owned());
        let is_repeated = self.held.get(member).is_some_and(|h| h.by == mine) && !call.given.contains(&key);
        self.leave_line(member);
        self.held.insert(member.to_owned(), Held { until: call.now + call.hold_ms, by: mine });
        call.given.insert(key);
        call.idle.remove(&at);
        if !self.is_lock() {
            return 1;
        }
        if !is_repeated {
            self.fence = (self.fence + 1).max(call.now);
        }
        self.fence
    }

    fn take(&mut self, at: usize, call: &mut Call<'_>, member: &str) -> u64 {
        if let Some(Held { until, by: By::Call(token) }) = self.held.get(member)
            && *until > call.now
            && (token != call.token || call.given.contains(&(at, member.to_owned())))
        {
            return 0;
        }
        self.adopt(at, call, member)
    }

    fn join(&mut self, at: usize, call: &mut Call<'_>, member: &str, arrival: u64, ack: &str) -> u64 {
        self.held.remove(member);
        if !self.line.iter().any(|(_, m)| m == member) {
            self.line.insert((arrival, member.to_owned()));
        }
        self.asleep.insert(member.to_owned(), ack.to_owned());
        call.idle.remove(&at);
        self.line.iter().position(|(_, m)| m == member).unwrap() as u64
    }

    fn is_offered(&self, member: &str) -> bool {
        matches!(self.held.get(member), Some(Held { by: By::Offer { .. }, .. }))
    }

    fn decline(&mut self, at: usize, call: &mut Call<'_>, member: &str) {
        if self.is_offered(member) {
            self.held.remove(member);
            self.promote(at, call);
        } else if !self.held.contains_key(member) {
            self.leave_line(member);
        }
    }

    fn drop(&mut self, at: usize, call: &mut Call<'_>, member: &str, token: &str) {
        let is_its = match self.held.get(member) {
            Some(Held { by: By::Call(t), .. }) => t == token,
            Some(_) => token == OFFER,
            None => false,
        };
        if is_its {
            self.held.remove(member);
            self.promote(at, call);
        } else if token == OFFER {
            self.leave_line(member);
        }
    }

    fn renew(&mut self, at: usize, call: &mut Call<'_>, member: &str, token: &str, may_restore: bool) -> u8 {
        let mine = Held { until: call.now + call.hold_ms, by: By::Call(token.to_owned()) };
        // A lock that another has by now is lost.
        let is_to_be_had = !self.is_lock() || (may_restore && self.held.len() < self.limit());
        match self.held.get(member) {
            Some(held) if held.by == mine.by => {
                call.idle.remove(&at);
                self.held.insert(member.to_owned(), mine);
                1
            }
            None if is_to_be_had && !self.line.iter().any(|(_, m)| m == member) => {
                call.idle.remove(&at);
                self.above |= self.held.len() >= self.limit();
                self.held.insert(member.to_owned(), mine);
                2
            }
            _ => 0,
        }
    }
}

/// The replies with every fencing token as one number: how they grow is told by `lock_model`.
fn unfenced(replies: &[GuardReply]) -> Vec<GuardReply> {
    let plain = |numbers: &[u64]| numbers.iter().map(|n| (*n).min(2)).collect();
    let one = |reply: &GuardReply| match reply {
        GuardReply::Passes(numbers) => GuardReply::Passes(plain(numbers)),
        GuardReply::Adopted(numbers) => GuardReply::Adopted(plain(numbers)),
        other => other.clone(),
    };
    replies.iter().map(one).collect()
}

/// The whole script: scopes by their places in the call.
fn serve(
    models: &mut [Model],
    places: &[usize],
    items: &[GuardItem<'_>],
    call: &mut Call<'_>,
) -> Vec<GuardReply> {
    for (at, m) in places.iter().enumerate() {
        let m = &mut models[*m];
        m.reclaim(at, call, "");
        m.promote(at, call);
    }
    let mut replies = Vec::new();
    for item in items {
        let its: Vec<(usize, usize)> =
            item.scopes.iter().map(|s| (usize::from(*s), places[usize::from(*s)])).collect();
        let member = &*item.member;
        match &item.act {
            GuardAct::Ask { arrival_ms, ack_subject, .. } => {
                let refused = its.iter().find(|(_, m)| !models[*m].has_room_for(member)).copied();
                let Some((by, m)) = refused else {
                    let take = its.iter().map(|(at, m)| models[*m].take(*at, call, member));
                    replies.push(GuardReply::Passes(take.collect()));
                    continue;
                };
                for (at, m) in its.iter().filter(|(at, _)| *at != by) {
                    models[*m].decline(*at, call, member);
                }
                let before = models[m].join(by, call, member, *arrival_ms, ack_subject);
                replies.push(GuardReply::WaitsInLine { scope: by, before });
            }
            GuardAct::Release { token, .. } => {
                for (at, m) in &its {
                    models[*m].drop(*at, call, member, token);
                }
            }
            GuardAct::Renew { token, may_restore, .. } => {
                let renew =
                    its.iter().map(|(at, m)| models[*m].renew(*at, call, member, token, *may_restore));
                replies.push(GuardReply::Renewed(renew.collect()));
            }
            GuardAct::Adopt => {
                if its.iter().all(|(_, m)| models[*m].has_room_for(member)) {
                    let adopt = its.iter().map(|(at, m)| models[*m].adopt(*at, call, member));
                    replies.push(GuardReply::Adopted(adopt.collect()));
                } else {
                    replies.push(GuardReply::NotYet);
                }
            }
            GuardAct::Check => {
                let m = &models[its[0].1];
                let waits = m.line.iter().any(|(_, l)| l == member);
                replies.push(GuardReply::Turn(m.held.contains_key(member) || !waits));
            }
            GuardAct::Tend { session } => {
                for (at, m) in &its {
                    models[*m].reclaim(*at, call, session);
                    models[*m].promote(*at, call);
                    if models[*m].held.is_empty() && models[*m].line.is_empty() {
                        call.idle.insert(*at);
                    }
                }
                replies.push(GuardReply::Tended);
            }
            GuardAct::Open | GuardAct::Reset | GuardAct::Report { .. } => {
                unreachable!("none of them changes a slot")
            }
        }
    }
    for at in &call.idle {
        models[places[*at]].fence = 0;
    }
    let is_here =
        |w: &Woken| matches!(models[places[w.scope]].held.get(&w.member), Some(Held { by: By::Call(_), .. }));
    call.wakes.retain(|w| !is_here(w));
    replies
}

// --- what is done

#[derive(Debug, Clone)]
enum Op {
    Ask {
        job: usize,
        scopes: u8,
        arrival: u64,
    },
    /// The token of one of the last calls, or one that nobody has.
    Release {
        job: usize,
        scopes: u8,
        token: Option<prop::sample::Index>,
    },
    /// A waiter has ended.
    Leave {
        job: usize,
        scopes: u8,
    },
    Renew {
        job: usize,
        scopes: u8,
        token: prop::sample::Index,
        may_restore: bool,
    },
    Adopt {
        job: usize,
        scopes: u8,
    },
    Check {
        job: usize,
        scope: u16,
    },
    Tend {
        session: Option<usize>,
    },
}

#[derive(Debug, Clone)]
struct Step {
    ops: Vec<Op>,
    session: Option<usize>,
    is_short: bool,
    is_repeated: bool,
    /// Of the concurrency limits, as the caller knows them; none: those that are in force.
    limits: Option<[u64; 2]>,
}

fn any_op() -> impl Strategy<Value = Op> {
    let (job, scopes) = (0..JOBS, 1..8u8);
    let index = any::<prop::sample::Index>();
    prop_oneof![
        8 => (job.clone(), scopes.clone(), 1000..1004u64).prop_map(|(job, scopes, arrival)| Op::Ask { job, scopes, arrival }),
        6 => (job.clone(), scopes.clone(), prop::option::weighted(0.9, any::<prop::sample::Index>()))
            .prop_map(|(job, scopes, token)| Op::Release { job, scopes, token }),
        1 => (job.clone(), scopes.clone()).prop_map(|(job, scopes)| Op::Leave { job, scopes }),
        2 => (job.clone(), scopes.clone(), index, prop::bool::weighted(0.3))
            .prop_map(|(job, scopes, token, may_restore)| Op::Renew { job, scopes, token, may_restore }),
        1 => (job.clone(), scopes).prop_map(|(job, scopes)| Op::Adopt { job, scopes }),
        1 => (job, 0..3u16).prop_map(|(job, scope)| Op::Check { job, scope }),
        2 => prop::option::of(0..2usize).prop_map(|session| Op::Tend { session }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let session = prop_oneof![1 => Just(None), 4 => (0..2usize).prop_map(Some)];
    let flags = (prop::bool::weighted(0.25), prop::bool::weighted(0.15));
    let limits = prop::option::weighted(0.3, [1..3u64, 1..4u64]);
    (prop::collection::vec(any_op(), 1..4), session, flags, limits).prop_map(
        |(ops, session, (is_short, is_repeated), limits)| Step {
            ops,
            session,
            is_short,
            is_repeated,
            limits,
        },
    )
}

struct Case {
    store: Store,
    plain: redis::aio::MultiplexedConnection,
    sessions: [SessionId; 2],
    models: Vec<Model>,
    tokens: Vec<String>,
}

fn member(job: usize) -> String {
    format!("job-{job}/1")
}

impl Case {
    async fn start(r: &Redis, limits: [u64; 2], is_short_offer: bool) -> Self {
        let offer = if is_short_offer { 5 } else { HOUR };
        let scope = |kind, value: &str, limit| Scope::new(kind, "rule", value, [limit, offer, 0, 0]);
        let scopes = [
            scope(GuardKind::Concurrency, "a", limits[0]),
            scope(GuardKind::Concurrency, "b", limits[1]),
            scope(GuardKind::Lock, "c", 1),
        ];
        Self {
            store: store(&r.url(), 1).await,
            plain: plain(r).await,
            sessions: ["s1", "s2"].map(|s| SessionId::new(s).unwrap()),
            models: scopes.into_iter().map(Model::new).collect(),
            tokens: Vec::new(),
        }
    }

    fn item(&self, op: &Op) -> GuardItem<'static> {
        let places = |bits: u8| (0..3u16).filter(|s| bits & (1 << s) != 0).collect::<Vec<_>>();
        let token = |index: &prop::sample::Index| match self.tokens.len() {
            0 => "none".to_owned(),
            n => self.tokens[n - 1 - index.index(n.min(8))].clone(),
        };
        let of = |job: &usize, scopes: &u8, act| item(act, &member(*job), &places(*scopes));
        let give = |token: String| GuardAct::Release {
            token: token.into(),
            until_ms: None,
            outcome: GuardOutcome::WentWell,
        };
        match op {
            Op::Ask { job, scopes, arrival } => {
                // The same message has the same place in a line, whenever it comes.
                let arrival_ms = arrival + *job as u64 % 2;
                of(
                    job,
                    scopes,
                    GuardAct::Ask {
                        arrival_ms,
                        ack_subject: format!("ack.{job}.{arrival}").into(),
                        work: "".into(),
                        keeps: false,
                    },
                )
            }
            Op::Release { job, scopes, token: t } => {
                of(job, scopes, give(t.as_ref().map_or_else(|| "nobody's".to_owned(), token)))
            }
            Op::Leave { job, scopes } => of(job, scopes, give(OFFER.to_owned())),
            Op::Renew { job, scopes, token: t, may_restore } => of(
                job,
                scopes,
                GuardAct::Renew { token: token(t).into(), may_restore: *may_restore, number: 0 },
            ),
            Op::Adopt { job, scopes } => of(job, scopes, GuardAct::Adopt),
            Op::Check { job, scope } => item(GuardAct::Check, &member(*job), &[*scope]),
            Op::Tend { session } => {
                let session = session.map(|s| self.sessions[s].to_string()).unwrap_or_default();
                item(GuardAct::Tend { session: session.into() }, "", &[0, 1, 2])
            }
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let mut items: Vec<GuardItem<'static>> = step.ops.iter().map(|op| self.item(op)).collect();
        // Places as the worker gives them: in the order in which the items name the scopes.
        let mut places: Vec<usize> = Vec::new();
        for s in items.iter_mut().flat_map(|i| i.scopes.to_mut()) {
            let m = usize::from(*s);
            let at = places.iter().position(|p| *p == m).unwrap_or_else(|| {
                places.push(m);
                places.len() - 1
            });
            *s = at as u16;
        }
        let hold_ms = if step.is_short { 1 } else { HOUR };
        self.call(step, &places, &items, hold_ms).await?;
        if step.is_repeated {
            self.store.repeat_last_call();
            self.call(step, &places, &items, hold_ms).await?;
        }
        Ok(())
    }

    async fn call(
        &mut self,
        step: &Step,
        places: &[usize],
        items: &[GuardItem<'_>],
        hold_ms: u64,
    ) -> Result<(), TestCaseError> {
        let session = step.session.map(|s| self.sessions[s].clone());
        let scopes = self.rules(step.limits, places, items).await;
        let answer = self.store.guard(0, session.as_ref(), hold_ms, &scopes, items).await;
        let answer = answer.map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut call = Call {
            now: answer.now_ms,
            hold_ms,
            token: &answer.token,
            wakes: Vec::new(),
            given: BTreeSet::new(),
            idle: BTreeSet::new(),
        };
        let replies = serve(&mut self.models, places, items, &mut call);
        prop_assert_eq!(unfenced(&answer.replies), unfenced(&replies));
        let in_order = |mut all: Vec<Woken>| {
            all.sort_by(|a, b| {
                (a.scope, &a.member, &a.ack_subject).cmp(&(b.scope, &b.member, &b.ack_subject))
            });
            all
        };
        prop_assert_eq!(in_order(answer.woken), in_order(call.wakes));
        self.tokens.push(answer.token);
        for m in &mut self.models {
            m.above &= m.held.len() > m.limit();
        }
        for m in &self.models {
            self.same(m).await?;
        }
        Ok(())
    }

    /// The scopes as the caller has them. What it asks for goes by its limits from then on, and what nothing is stored of.
    async fn rules(
        &mut self,
        limits: Option<[u64; 2]>,
        places: &[usize],
        items: &[GuardItem<'_>],
    ) -> Vec<Scope> {
        let mut out = Vec::new();
        for (at, place) in places.iter().enumerate() {
            let m = &mut self.models[*place];
            let mut scope = m.scope.clone();
            if let Some(limit) = limits.and_then(|l| l.get(*place).copied()) {
                scope.params[0] = limit;
            }
            let asks = |i: &GuardItem<'_>| {
                matches!(i.act, GuardAct::Ask { .. }) && i.scopes.iter().any(|s| usize::from(*s) == at)
            };
            let [state, ..] = self.store.keys().guard(0, &scope.hash);
            if items.iter().any(asks) || !self.plain.hexists::<_, _, bool>(state, "params").await.unwrap() {
                m.scope = scope.clone();
                m.above |= m.held.len() > m.limit();
            }
            out.push(scope);
        }
        out
    }

    async fn same(&self, m: &Model) -> Result<(), TestCaseError> {
        let mut c = self.plain.clone();
        let [_, hold, wait, asleep] = self.store.keys().guard(0, &m.scope.hash);
        let held: BTreeMap<String, Vec<u8>> = c.hgetall(hold).await.unwrap();
        let read = |v: &Vec<u8>| {
            let mut until = [0; 8];
            until[..6].copy_from_slice(&v[..6]);
            let by = match &v[6..] {
                [b'?', tries, ack @ ..] => {
                    By::Offer { tries: tries - b'0', ack: String::from_utf8(ack.to_vec()).unwrap() }
                }
                token => By::Call(String::from_utf8(token.to_vec()).unwrap()),
            };
            Held { until: u64::from_le_bytes(until), by }
        };
        let held: BTreeMap<String, Held> = held.iter().map(|(k, v)| (k.clone(), read(v))).collect();
        prop_assert_eq!(&held, &m.held, "held of {}", &m.scope.label);
        let line: Vec<(String, f64)> = c.zrange_withscores(wait, 0, -1).await.unwrap();
        let line: BTreeSet<(u64, String)> = line.into_iter().map(|(m, at)| (at as u64, m)).collect();
        prop_assert_eq!(&line, &m.line, "line of {}", &m.scope.label);
        let sleepers: BTreeMap<String, String> = c.hgetall(asleep).await.unwrap();
        prop_assert_eq!(&sleepers, &m.asleep, "sleepers of {}", &m.scope.label);
        // What is promised, whatever the model says.
        prop_assert!(
            m.above || held.len() <= m.limit(),
            "{} of {} hold {}",
            held.len(),
            m.limit(),
            m.scope.label
        );
        prop_assert!(held.len() >= m.limit() || line.is_empty(), "somebody waits beside a free slot");
        prop_assert!(line.iter().all(|(_, w)| !held.contains_key(w)), "somebody waits for what it has");
        // Somebody looks when the first of it is over.
        if let Some(first) = held.values().map(|h| h.until).min() {
            let look: Option<f64> = c.zscore(self.store.keys().guards(0), &m.scope.hash).await.unwrap();
            prop_assert!(look.is_some_and(|l| l as u64 <= first), "{look:?} is after {first}");
        }
        Ok(())
    }

    /// Everything is given back by those who made it, the waiters go away: nothing may be left.
    async fn empty(&mut self) -> Result<(), TestCaseError> {
        for (place, m) in self.models.clone().iter().enumerate() {
            for (_, waiter) in &m.line {
                let leave = [release(waiter, OFFER, None, GuardOutcome::Neutral, &[0])];
                self.as_is(place, &leave).await?;
            }
            for (holder, held) in &m.held {
                let token = match &held.by {
                    By::Call(token) => token.as_str(),
                    By::Offer { .. } => OFFER,
                };
                self.as_is(place, &[release(holder, token, None, GuardOutcome::WentWell, &[0])]).await?;
            }
            self.as_is(place, &[item(GuardAct::Tend { session: "".into() }, "", &[0])]).await?;
            nothing_left(&self.store, &self.plain, &m.scope).await;
        }
        Ok(())
    }

    async fn as_is(&mut self, place: usize, items: &[GuardItem<'_>]) -> Result<(), TestCaseError> {
        let step = Step { ops: Vec::new(), session: None, is_short: false, is_repeated: false, limits: None };
        self.call(&step, &[place], items, HOUR).await
    }
}

// Shows: S-07, P6
#[test]
fn slots_and_locks_do_what_their_model_does() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = rt.block_on(redis());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/guard_slots.txt");
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let limits = [1..3u64, 1..4u64];
    let all = (limits, any::<bool>(), prop::collection::vec(any_step(), 1..60));
    let result = runner.run(&all, |(limits, is_short_offer, steps)| {
        rt.block_on(async {
            let mut case = Case::start(&server, limits, is_short_offer).await;
            for step in &steps {
                case.step(step).await?;
            }
            case.empty().await
        })
    });
    if let Err(e) = result {
        panic!("{e}");
    }
}
