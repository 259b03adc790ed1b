//! Random sequences through `gates.lua` on a real Redis and through its model: who may start, who is woken, what is said of
//! the scope. Times pass for real; the model is told the moment of each call.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner},
};
use surety_common::{
    domain::{
        guard::{
            Gate, GuardKind,
            gate::{GateState, Phase, Trip},
        },
        ids::SessionId,
    },
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, Watched},
};

use super::{super::scripts::HOUR, HOUR_MS, Scripts};

const MEMBERS: u64 = 8;
const SESSIONS: usize = 2;

#[derive(Debug, Clone, Copy)]
enum Op {
    Ask {
        member: u64,
        session: usize,
    },
    Adopt {
        member: u64,
        session: usize,
    },
    End {
        member: u64,
        outcome: GuardOutcome,
    },
    Report {
        member: u64,
        mark: u64,
        outcome: GuardOutcome,
    },
    /// A session dies.
    Death {
        session: usize,
    },
    /// What stands of a session in the index, whatever it holds.
    Lease {
        session: usize,
        lease: Lease,
    },
    Tend,
    /// Lets time pass (ms).
    Pass {
        ms: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    Live,
    Expired,
    Closed,
}

fn outcomes() -> impl Strategy<Value = GuardOutcome> {
    use GuardOutcome as O;
    prop_oneof![
        4 => Just(O::Crashed), 3 => Just(O::WentWrong), 3 => Just(O::WentWell), 1 => Just(O::Neutral), 1 => Just(O::Undone),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (member, session) = (0..MEMBERS, 0..SESSIONS);
    let lease = prop_oneof![Just(Lease::Live), Just(Lease::Expired), Just(Lease::Closed)];
    let one = prop_oneof![
        8 => (member.clone(), session.clone()).prop_map(|(member, session)| Op::Ask { member, session }),
        1 => (member.clone(), session.clone()).prop_map(|(member, session)| Op::Adopt { member, session }),
        8 => (member.clone(), outcomes()).prop_map(|(member, outcome)| Op::End { member, outcome }),
        2 => (member, 0..4u64, outcomes()).prop_map(|(member, mark, outcome)| Op::Report { member, mark, outcome }),
        1 => session.clone().prop_map(|session| Op::Death { session }),
        2 => (session, lease.clone()).prop_map(|(session, lease)| Op::Lease { session, lease }),
        2 => Just(Op::Tend),
        3 => (1..25u64).prop_map(|ms| Op::Pass { ms }),
    ];
    // Who is alive at first.
    let first = prop::collection::vec(lease, SESSIONS).prop_map(|all| {
        all.into_iter().enumerate().map(|(session, lease)| Op::Lease { session, lease }).collect::<Vec<_>>()
    });
    (first, prop::collection::vec(one, 1..70)).prop_map(|(first, ops)| [first, ops].concat())
}

fn gates() -> impl Strategy<Value = Gate> {
    let trip = prop_oneof![
        2 => (1..6u64, any::<bool>()).prop_map(|(threshold, is_shared)| Trip::Crashes { threshold, is_shared }),
        1 => (1..=1000u64, 1..6u64).prop_map(|(per_mille, sample)| Trip::Failures { per_mille, sample }),
    ];
    (trip, 10..80u64, 1..15u64, 1..4u64).prop_map(|(trip, window_ms, first_ms, probes)| Gate {
        trip,
        window_ms,
        first_ms,
        longest_ms: 40,
        probes: if matches!(trip, Trip::Crashes { .. }) { 1 } else { probes },
        offer_s: 2000,
    })
}

fn kind(gate: &Gate) -> GuardKind {
    match gate.trip {
        Trip::Crashes { .. } => GuardKind::CrashLoop,
        Trip::Failures { .. } => GuardKind::Breaker,
    }
}

/// What a member has: a start that was let, or (no session) a probe that is wanted from it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    round: u32,
    session: Option<usize>,
    token: String,
}

struct Model {
    gate: Gate,
    state: GateState,
    line: BTreeSet<u64>,
    held: BTreeMap<u64, Held>,
    seen: Vec<String>,
    told: u64,
    /// When it was first said to be watched.
    since: Option<u64>,
    /// Sessions whose ends were bad.
    from: BTreeSet<String>,
    /// The sessions that are alive.
    alive: BTreeSet<usize>,
    /// One death was counted: no other one is within the hour that a hold lasts here.
    has_died: bool,
    woken: Vec<u64>,
}

impl Model {
    fn new(gate: Gate) -> Self {
        let (line, held) = (BTreeSet::new(), BTreeMap::new());
        Self {
            gate,
            state: GateState::default(),
            line,
            held,
            seen: Vec::new(),
            told: 0,
            since: None,
            from: BTreeSet::new(),
            alive: (0..SESSIONS).collect(),
            has_died: false,
            woken: Vec::new(),
        }
    }

    fn is_probe(&self, held: &Held) -> bool {
        self.state.level > 0 && held.round == self.state.round
    }

    fn has_room(&self, now: u64) -> bool {
        let probing = self.held.values().filter(|h| self.is_probe(h)).count() as u64;
        match self.state.phase(now) {
            Phase::Closed => true,
            Phase::Open => false,
            Phase::HalfOpen => probing < self.gate.probes,
        }
    }

    fn let_go(&mut self, now: u64) {
        while self.has_room(now) {
            let Some(member) = self.line.pop_first() else { return };
            if self.state.phase(now) == Phase::HalfOpen {
                let held = Held { round: self.state.round, session: None, token: String::new() };
                self.held.insert(member, held);
            }
            self.woken.push(member);
        }
    }

    /// `of`: whose it was, and `mark` that name where it is a death.
    fn count(&mut self, outcome: GuardOutcome, was_probe: bool, mark: Option<String>, of: &str, now: u64) {
        use GuardOutcome as O;
        let is_breaker = kind(&self.gate) == GuardKind::Breaker;
        let is_bad = match outcome {
            O::Undone | O::Neutral | O::Kept => return,
            O::WentWell => false,
            O::WentWrong => is_breaker,
            O::Crashed | O::Lost => true,
        };
        let is_counted = self.state.phase(now) == Phase::Closed && (is_breaker || is_bad);
        if let Some(mark) = mark.filter(|_| is_counted) {
            if self.seen.contains(&mark) {
                return;
            }
            let is_death = mark == of;
            self.seen.push(mark);
            self.seen.drain(..self.seen.len().saturating_sub(16));
            if is_death && std::mem::replace(&mut self.has_died, true) {
                return;
            }
        }
        if is_counted && is_bad {
            if self.gate.ends(&self.state, now).1 == 0 {
                self.from.clear();
            }
            self.from.insert(of.to_owned());
        }
        let others_run =
            self.held.values().filter_map(|h| h.session).any(|s| !self.from.contains(&format!("@s{s}")));
        let watched_ms = self.since.map(|since| now - since);
        let is_alone = self.alive.iter().all(|s| self.from.contains(&format!("@s{s}")));
        let may_open = self.gate.is_believed(self.from.len() > 1, is_alone, watched_ms, others_run);
        self.state = self.gate.ended(&self.state, is_bad, was_probe, may_open, now);
    }

    /// What the call is answered, and after it what is said of the scope.
    fn call(&mut self, op: Op, token: &str, now: u64) -> (Option<GuardReply>, Option<u64>) {
        let (before, was_watched) = (self.state, self.gate.is_watched(&self.state, now));
        if !was_watched {
            self.since = None;
        }
        self.woken.clear();
        self.let_go(now);
        let is_tend = matches!(op, Op::Tend | Op::Death { .. });
        let reply = self.act(op, token, now);
        // Who comes in this very call need not be woken.
        let held = &self.held;
        self.woken.retain(|m| held.get(m).is_none_or(|h| h.token != token));
        let is_watched = self.gate.is_watched(&self.state, now);
        self.since = is_watched.then(|| self.since.unwrap_or(now));
        let is_shared = matches!(self.gate.trip, Trip::Crashes { is_shared: true, .. });
        let window = self.gate.window_ms;
        let is_news = is_tend || self.state != before || 2 * self.told < window + 2 * now;
        let said = match (is_shared, was_watched, is_watched) {
            (true, _, true) if is_news => {
                self.told = self.state.until_ms.max(now) + window;
                Some(self.told)
            }
            (true, true, false) => Some(0),
            _ => None,
        };
        let (well, badly) = self.gate.ends(&self.state, now);
        let is_over = match self.state.phase(now) {
            Phase::Closed => true,
            Phase::Open => false,
            Phase::HalfOpen => now >= self.state.until_ms + self.gate.window_ms,
        };
        if is_tend && self.line.is_empty() && self.held.is_empty() && well + badly == 0 && is_over {
            let (woken, alive) = (std::mem::take(&mut self.woken), std::mem::take(&mut self.alive));
            *self = Self { woken, alive, ..Self::new(self.gate) };
        }
        (reply, said)
    }

    fn act(&mut self, op: Op, token: &str, now: u64) -> Option<GuardReply> {
        match op {
            Op::Ask { member, session } => return Some(self.ask(member, session, token, now)),
            Op::Adopt { member, session } => {
                self.line.remove(&member);
                let round = self.held.get(&member).filter(|h| self.is_probe(h)).map_or(0, |h| h.round);
                let held = Held { round, session: Some(session), token: token.to_owned() };
                self.held.insert(member, held);
                return Some(GuardReply::Adopted(vec![1]));
            }
            Op::End { member, outcome } => {
                let held = self.held.get(&member).filter(|h| h.session.is_some()).cloned();
                if let Some(held) = held {
                    let was_probe = self.is_probe(&held);
                    self.held.remove(&member);
                    let of = format!("@s{}", held.session.unwrap_or_default());
                    self.count(outcome, was_probe, None, &of, now);
                    self.let_go(now);
                }
            }
            Op::Report { member, mark, outcome } => {
                let was_probe = self.held.remove(&member).is_some_and(|h| self.is_probe(&h));
                self.count(outcome, was_probe, Some(mark.to_string()), "@", now);
                self.let_go(now);
            }
            Op::Death { session } => {
                let theirs = |h: &Held| h.session == Some(session);
                let dead: Vec<u64> = self.held.iter().filter(|(_, h)| theirs(h)).map(|(m, _)| *m).collect();
                for member in dead {
                    let was_probe = self.held.remove(&member).is_some_and(|h| self.is_probe(&h));
                    let of = format!("@s{session}");
                    self.count(GuardOutcome::Crashed, was_probe, Some(of.clone()), &of, now);
                }
                self.let_go(now);
                return Some(GuardReply::Tended);
            }
            Op::Tend => {
                self.let_go(now);
                return Some(GuardReply::Tended);
            }
            Op::Lease { .. } | Op::Pass { .. } => {}
        }
        None
    }

    fn ask(&mut self, member: u64, session: usize, token: &str, now: u64) -> GuardReply {
        let phase = self.state.phase(now);
        let held = self.held.get(&member).cloned();
        let is_let = held
            .as_ref()
            .is_some_and(|h| h.session.is_some() || (phase == Phase::HalfOpen && self.is_probe(h)));
        if is_let || phase == Phase::Closed || (self.line.is_empty() && self.has_room(now)) {
            if held.is_some_and(|h| h.session.is_some()) {
                return GuardReply::Passes(vec![0]);
            }
            self.line.remove(&member);
            let round = if phase == Phase::HalfOpen { self.state.round } else { 0 };
            self.held.insert(member, Held { round, session: Some(session), token: token.to_owned() });
            return GuardReply::Passes(vec![1]);
        }
        let before = self.line.len() as u64;
        self.held.remove(&member);
        self.line.insert(member);
        GuardReply::WaitsInLine { scope: 0, before }
    }
}

async fn send(w: &Scripts, scope: &Scope, session: &SessionId, member: u64, act: GuardAct<'_>) -> Guarded {
    let member = if matches!(act, GuardAct::Tend { .. }) { String::new() } else { format!("j{member}/1") };
    let item = GuardItem { act, member: member.into(), scopes: vec![0].into() };
    w.store.guard(0, Some(session), HOUR_MS, std::slice::from_ref(scope), &[item]).await.unwrap()
}

async fn lease(w: &Scripts, session: &SessionId, to: Lease) {
    match to {
        Lease::Live => w.store.open_session(0, session, HOUR, "{}").await,
        Lease::Expired => w.store.expire_session(0, session).await,
        Lease::Closed => w.store.close_session(0, session).await,
    }
    .unwrap();
}

async fn drive(w: &Scripts, n: usize, gate: Gate, ops: &[Op]) -> Result<(), TestCaseError> {
    let scope = Scope::new(kind(&gate), "rule", &format!("case {n}"), gate.params());
    let sessions: Vec<SessionId> = (0..SESSIONS).map(|s| SessionId::new(&format!("s{s}")).unwrap()).collect();
    let mut model = Model::new(gate);
    for session in &sessions {
        lease(w, session, Lease::Live).await;
    }
    for (step, op) in ops.iter().enumerate() {
        let nobody = &sessions[0];
        let answer = match *op {
            Op::Ask { member, session } => {
                let act = GuardAct::Ask {
                    arrival_ms: member,
                    ack_subject: format!("ack.{member}").into(),
                    work: "".into(),
                    keeps: false,
                };
                send(w, &scope, &sessions[session], member, act).await
            }
            Op::Adopt { member, session } => {
                send(w, &scope, &sessions[session], member, GuardAct::Adopt).await
            }
            Op::End { member, outcome } => {
                let token = model.held.get(&member).filter(|h| h.session.is_some()).map(|h| h.token.clone());
                let token = token.unwrap_or_else(|| "of nobody".into());
                send(
                    w,
                    &scope,
                    nobody,
                    member,
                    GuardAct::Release { token: token.into(), until_ms: None, outcome },
                )
                .await
            }
            Op::Report { member, mark, outcome } => {
                send(w, &scope, nobody, member, GuardAct::Report { mark: mark.to_string().into(), outcome })
                    .await
            }
            Op::Death { session } => {
                let session = sessions[session].to_string();
                send(w, &scope, nobody, 0, GuardAct::Tend { session: session.into() }).await
            }
            Op::Tend => send(w, &scope, nobody, 0, GuardAct::Tend { session: "".into() }).await,
            Op::Lease { session, lease: to } => {
                lease(w, &sessions[session], to).await;
                if to == Lease::Live {
                    model.alive.insert(session)
                } else {
                    model.alive.remove(&session)
                };
                continue;
            }
            Op::Pass { ms } => {
                let until = w.store.now_ms().await.unwrap() + ms;
                while w.store.now_ms().await.unwrap() < until {}
                continue;
            }
        };
        let (reply, said) = model.call(*op, &answer.token, answer.now_ms);
        let at = format!("step {step}: {op:?} at {} of {gate:?}, model {:?}", answer.now_ms, model.state);
        prop_assert_eq!(answer.replies, reply.into_iter().collect::<Vec<_>>(), "{}", at);
        let mut woken: Vec<String> = answer.woken.iter().map(|x| x.member.clone()).collect();
        let mut expected: Vec<String> = model.woken.iter().map(|m| format!("j{m}/1")).collect();
        woken.sort();
        expected.sort();
        prop_assert_eq!(woken, expected, "{}", at);
        let expected: Vec<Watched> =
            said.into_iter().map(|until_ms| Watched { scope: 0, until_ms }).collect();
        prop_assert_eq!(answer.watched, expected, "{}", at);
    }
    Ok(())
}

// Shows: S-06
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_in_redis_decides_as_its_model_does() {
    let w = Scripts::start().await;
    let handle = tokio::runtime::Handle::current();
    let saved = FileFailurePersistence::Direct("proptest-regressions/gates.txt");
    let config = Config { cases: 90, failure_persistence: Some(Box::new(saved)), ..Config::default() };
    let cases = std::sync::atomic::AtomicUsize::new(0);
    let run = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&(gates(), ops()), |(gate, ops)| {
            let n = cases.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            handle.block_on(drive(&w, n, gate, &ops))
        })
    });
    if let Err(e) = run {
        panic!("{e}");
    }
}
