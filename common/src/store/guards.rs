//! Guards and locks: one call asks, gives back and renews for many jobs of a partition (`scripts/guard.lua`).

use std::{
    borrow::{Borrow, Cow},
    time::Duration,
};

use super::{
    group::GROUP_CAP,
    packed::Packer,
    script::{Answer, Store, StoreError},
};
use crate::domain::{
    JobId,
    guard::{GuardKind, scope::SHOWN},
    ids::SessionId,
    pause::Slot,
    text,
};

/// The token of a slot that is kept for a job in line.
pub const OFFER: &str = "?";

/// In the place of an ack subject: whether that job has ended is looked at, and it is not woken.
pub const ONLY_LOOK: &str = "-";

/// One guard, kept for one value of its template: what is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    pub kind: GuardKind,
    /// Limits; what each means is said by the script of the kind. Those of [`GuardAct::Ask`] and [`GuardAct::Report`] are in force from
    /// then on; for every other act those that are stored count, where any are.
    pub params: [u64; 4],
    /// Rule and value, for people: `api: acme/site`.
    pub label: String,
    /// 16 hex digits, unique for kind, rule and value.
    pub hash: String,
}

impl Scope {
    /// The scope of a rule (for locks: empty) and a value.
    pub fn new(kind: GuardKind, rule: &str, value: &str, params: [u64; 4]) -> Self {
        let known_by = format!("{}\0{rule}\0{value}", kind.name());
        let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(known_by.as_bytes()));
        let shown = text::cut(value, SHOWN);
        let label = if rule.is_empty() { shown.into_owned() } else { format!("{rule}: {shown}") };
        Self { kind, params, label, hash }
    }

    /// A lock, for looking at it: whoever asks for it brings limits of its own.
    pub fn of_lock(name: &str) -> Self {
        Self::new(GuardKind::Lock, "", name, [0; 4])
    }

    /// The line of those whom a pause holds.
    pub fn of_pause(slot: &Slot) -> Self {
        Self::new(GuardKind::Pause, "", &slot.to_string(), [0; 4])
    }

    /// The pause whose line this is.
    pub fn pause(&self) -> Option<Slot> {
        Some(&self.label).filter(|_| self.kind == GuardKind::Pause).and_then(|l| Slot::parse(l))
    }

    /// Its partition among `n` (at least 1).
    pub fn partition(&self, n: u32) -> u32 {
        partition(&self.hash, n)
    }
}

/// Partition of a scope's hash among `n` (at least 1).
pub fn partition(hash: &str, n: u32) -> u32 {
    // The remainder is below `n`, so it fits.
    (u64::from_str_radix(hash, 16).unwrap_or(0) % u64::from(n.max(1))) as u32
}

/// How what a job held has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardOutcome {
    /// It never ran: what was counted for it is given back as far as that is possible.
    Undone = 0,
    WentWell = 1,
    /// It failed by itself.
    WentWrong = 2,
    /// It crashed, was killed for its memory, got lost, or did not start.
    Crashed = 3,
    /// It says nothing: cancelled, released at shutdown.
    Neutral = 4,
    /// Lost with the session that held it: counted once for each session.
    Lost = 5,
    /// It never ran, and what can be kept for it is: it waits for the rest.
    Kept = 6,
}

/// One thing to do. `scopes`: positions in the list of the call.
#[derive(Debug, Clone)]
pub struct GuardItem<'a> {
    pub act: GuardAct<'a>,
    /// `<job id>/<generation>`; empty for what is done to a scope: [`GuardAct::Tend`], [`GuardAct::Open`], [`GuardAct::Reset`].
    pub member: Cow<'a, str>,
    pub scopes: Cow<'a, [u16]>,
}

/// What to do.
#[derive(Debug, Clone)]
pub enum GuardAct<'a> {
    /// Whether it may start. `arrival_ms`: its place in a line; `ack_subject`: its delivery, to be woken; `work`: fingerprint of
    /// what it asks for, where its loop guard is asked, else empty; `keeps`: it was woken in vain too often, and what it could
    /// have is kept for it while it waits for the rest (the scopes are in the order of all).
    Ask { arrival_ms: u64, ack_subject: Cow<'a, str>, work: Cow<'a, str>, keeps: bool },
    /// Gives back what `token` made. `until_ms`: of what is kept ([`GuardOutcome::Kept`]), until when its job waits for the rest,
    /// where it knows; then it is kept a little longer, else for an hour at most.
    Release { token: Cow<'a, str>, until_ms: Option<u64>, outcome: GuardOutcome },
    /// Keeps what `token` made. `may_restore`: the data set was lost since, so what is gone may be held again, `number` being what
    /// was given with it (a lock's fencing token).
    Renew { token: Cow<'a, str>, may_restore: bool, number: u64 },
    /// The attempt was granted: what another delivery of the job made is this one's now.
    Adopt,
    /// Whether its turn came since it joined the line.
    Check,
    /// Starts a scope over: nothing was ever counted. Who stands in the line of slots asks again, the first ones; what is held
    /// stays. Who was promised a moment by a rate limit asks again, the first ones now, the others by [`GuardAct::Tend`]. Of locks
    /// nothing changes.
    Reset,
    /// Something ended that did not ask, or whose holder cannot say so. `mark`: it is counted once under this name.
    Report { mark: Cow<'a, str>, outcome: GuardOutcome },
    /// Looks after scopes: what is over by time, and what a dead session held.
    Tend { session: Cow<'a, str> },
    /// Lets the first of those go that wait in the line of a pause.
    Open,
}

/// The member that a generation of a job is.
pub fn member(id: &JobId, generation: u32) -> String {
    format!("{id}/{generation}")
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardReply {
    /// It may start. For each scope 0 when it was held already, else a number above 0: of a lock its fencing token.
    Passes(Vec<u64>),
    /// Its moment comes at `at_ms`.
    WaitsUntil {
        scope: usize,
        at_ms: u64,
    },
    /// It stands in line, behind so many.
    WaitsInLine {
        scope: usize,
        before: u64,
    },
    /// Never: so many were counted before it. `limit`: see [`crate::domain::guard::loops::Over::from_code`].
    Stopped {
        scope: usize,
        count: u64,
        limit: u8,
    },
    /// The store was just rebuilt; nothing starts yet.
    NotYet,
    /// For each scope: 1 renewed, 0 gone, 2 held again.
    Renewed(Vec<u8>),
    /// For each scope the number as in `Passes`.
    Adopted(Vec<u64>),
    Tended,
    /// Its turn has come, or it is not in line any more.
    Turn(bool),
    /// Not of an item: somebody who slept and whose turn it is.
    Wake(Woken),
    /// Not of an item: what a crash-loop scope says of itself.
    Watch(Watched),
    /// Not of an item: a breaker or a crash loop was opened or closed by this call.
    Turned(Turned),
}

/// A carrier that sleeps at the broker and whose job may ask again now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Woken {
    /// Position of its scope.
    pub scope: usize,
    pub member: String,
    /// Empty where it is not known; [`ONLY_LOOK`] where it is not to be woken.
    pub ack_subject: String,
}

/// Whether jobs of a scope that is shared by a type have to ask before they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Position of its scope.
    pub scope: usize,
    /// They have to until then (ms); 0: not any more.
    pub until_ms: u64,
}

/// A breaker or a crash loop that was opened or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turned {
    /// Position of its scope.
    pub scope: usize,
    /// How often in a row it has been opened now; 0: it was closed.
    pub level: u32,
    /// Nobody starts until then (ms); 0: it was closed.
    pub until_ms: u64,
}

/// What a call answered.
#[derive(Debug, Clone)]
pub struct Guarded {
    pub now_ms: u64,
    /// In the order of the items, without the releases and the reports.
    pub replies: Vec<GuardReply>,
    pub woken: Vec<Woken>,
    pub watched: Vec<Watched>,
    /// What this call made is given back by this.
    pub token: String,
}

/// A scope as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredScope {
    pub scope: Scope,
    /// When a reaper looks at it (ms).
    pub look_ms: u64,
}

impl Store {
    /// Scopes of a partition that are to be looked at by `until_ms`, the earliest first; at most `limit`, after the first `skip`.
    pub async fn guard_scopes(
        &self,
        p: u32,
        until_ms: u64,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<StoredScope>, StoreError> {
        let mut c = self.connection();
        let mut range = redis::cmd("ZRANGE");
        range.arg(self.keys().guards(p)).arg("-inf").arg(until_ms).arg("BYSCORE");
        range.arg("LIMIT").arg(skip).arg(limit).arg("WITHSCORES");
        let found: Vec<(String, f64)> = range.query_async(&mut c).await?;
        let hashes: Vec<&str> = found.iter().map(|(hash, _)| hash.as_str()).collect();
        let known = self.named_scopes(p, &hashes).await?;
        let mut out = Vec::with_capacity(found.len());
        let mut forget = redis::cmd("ZREM");
        forget.arg(self.keys().guards(p));
        let n_arguments = forget.args_iter().count();
        for ((hash, look), scope) in found.into_iter().zip(known) {
            match scope {
                Some(scope) => out.push(StoredScope { scope, look_ms: look as u64 }),
                None => {
                    tracing::error!(scope = hash, "a guard scope does not decode: it is forgotten");
                    forget.arg(hash);
                }
            }
        }
        if forget.args_iter().count() > n_arguments {
            let _: u64 = forget.query_async(&mut c).await?;
        }
        Ok(out)
    }

    /// What the state of each of these scopes says it is; `None` where it says nothing that can be read. One round trip.
    async fn named_scopes(&self, p: u32, hashes: &[&str]) -> Result<Vec<Option<Scope>>, StoreError> {
        let mut reads = redis::pipe();
        for hash in hashes {
            let [state, ..] = self.keys().guard(p, hash);
            reads.cmd("HMGET").arg(state).arg("params").arg("label");
        }
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let states: Vec<(Option<String>, Option<String>)> = reads.query_async(&mut self.connection()).await?;
        let scope = |(hash, (params, label)): (&&str, (Option<String>, Option<String>))| {
            let (kind, params) = read_params(params.as_deref()?)?;
            Some(Scope { kind, params, label: label.unwrap_or_default(), hash: (*hash).to_owned() })
        };
        Ok(hashes.iter().zip(states).map(scope).collect())
    }

    /// Scopes of a partition that are in use, about `count` from `cursor` on (0: the first); and the next cursor, 0 after the last.
    /// Each that is in use from beginning to end is among them, be it twice, whatever moves meanwhile.
    pub async fn scan_scopes(
        &self,
        p: u32,
        cursor: u64,
        count: usize,
    ) -> Result<(u64, Vec<Scope>), StoreError> {
        let mut scan = redis::cmd("ZSCAN");
        scan.arg(self.keys().guards(p)).arg(cursor).arg("COUNT").arg(count);
        let (next, found): (u64, Vec<(String, f64)>) = scan.query_async(&mut self.connection()).await?;
        let hashes: Vec<&str> = found.iter().map(|(hash, _)| hash.as_str()).collect();
        Ok((next, self.named_scopes(p, &hashes).await?.into_iter().flatten().collect()))
    }

    /// How many scopes of a partition are to be looked at by `until_ms`.
    pub async fn guards_due(&self, p: u32, until_ms: u64) -> Result<u64, StoreError> {
        let mut count = redis::cmd("ZCOUNT");
        count.arg(self.keys().guards(p)).arg("-inf").arg(until_ms);
        Ok(count.query_async(&mut self.connection()).await?)
    }

    /// Asks the guards of a partition, gives back, renews. `hold_ms`: how long a hold lasts unless it is renewed.
    /// Errors: `Rebuilding` and `Unreachable`; in each case nobody may start.
    pub async fn guard(
        &self,
        p: u32,
        session: Option<&SessionId>,
        hold_ms: u64,
        scopes: &[impl Borrow<Scope>],
        items: &[GuardItem<'_>],
    ) -> Result<Guarded, StoreError> {
        let (inc, call, s, keep, look) = self.frame(p, session);
        let token = format!("{call} {s}");
        let mut keys = Vec::with_capacity(1 + 4 * scopes.len());
        keys.push(self.keys().guards(p));
        let mut packed = Packer::with_capacity(64 * scopes.len() + 160 * items.len());
        for scope in scopes {
            let scope = scope.borrow();
            keys.extend(self.keys().guard(p, &scope.hash));
            packed.byte(scope.kind as u8);
            for n in scope.params {
                packed.u48(n);
            }
            packed.text(&scope.hash).text(&scope.label);
        }
        pack_items(&mut packed, items);
        let frame = (inc, call, s, keep, look, hold_ms, scopes.len());
        let script = &self.inner.scripts.guard;
        let answer: Answer<Vec<GuardReply>> =
            self.call(script, p, session, &keys, &frame, packed.into_bytes()).await?;
        let (mut replies, mut woken) = (Vec::with_capacity(answer.results.len()), Vec::new());
        let mut watched = Vec::new();
        for reply in answer.results {
            match reply {
                GuardReply::Wake(w) => woken.push(w),
                GuardReply::Watch(w) => watched.push(w),
                GuardReply::Turned(t) => tell_turn(scopes.get(t.scope).map(Borrow::borrow), t, answer.now_ms),
                reply => replies.push(reply),
            }
        }
        Ok(Guarded { now_ms: answer.now_ms, replies, woken, watched, token })
    }
}

/// Says in the log of whoever made the call that turned it, so once, that jobs of this scope are held back, or start again.
fn tell_turn(scope: Option<&Scope>, turned: Turned, now_ms: u64) {
    let Some(scope) = scope else { return };
    let (guard, scope) = (scope.kind.name(), scope.label.as_str());
    if turned.level == 0 {
        tracing::info!(guard, scope, "jobs start again");
        return;
    }
    let seconds = Duration::from_millis(turned.until_ms.saturating_sub(now_ms)).as_secs_f64();
    tracing::error!(
        guard,
        scope,
        seconds,
        times = turned.level,
        alert = "guard_opened",
        "too many of its jobs ended badly: none is started for a while, then a probe"
    );
}

/// A type whose jobs ask the crash-loop guard before they are claimed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WatchItem {
    pub job_type: String,
    /// Until then (ms); 0: not any more.
    pub until_ms: u64,
    /// When its scope said so (ms of that scope's clock): a later word stands.
    pub said_ms: u64,
}

impl Store {
    /// Tells a partition which types are watched. Same errors as [`Store::guard`].
    pub async fn watch(&self, p: u32, items: &[WatchItem]) -> Result<(), StoreError> {
        let script = &self.inner.scripts.watch;
        let answer: Answer<Vec<(u8,)>> =
            self.call(script, p, None, &[], &self.frame(p, None), super::script::pack(items)?).await?;
        tracing::trace!(partition = p, results = answer.results.len(), "told which types are watched");
        Ok(())
    }
}

/// `kind a b c d`, as the script keeps it.
pub(super) fn read_params(text: &str) -> Option<(GuardKind, [u64; 4])> {
    let mut numbers = text.split(' ').map(|n| n.parse::<f64>().ok().map(|n| n as u64));
    let kind = numbers.next()?.and_then(|k| u8::try_from(k).ok()).and_then(GuardKind::from_code)?;
    let mut params = [0; 4];
    for place in &mut params {
        *place = numbers.next()??;
    }
    Some((kind, params))
}

/// What is the same for many: op, text, flag.
fn header<'a>(act: &'a GuardAct<'_>) -> (u8, &'a str, u8) {
    match act {
        GuardAct::Ask { work, keeps, .. } => (1, work, u8::from(*keeps)),
        GuardAct::Release { token, outcome, .. } => (2, token, *outcome as u8),
        GuardAct::Renew { token, may_restore, .. } => (3, token, u8::from(*may_restore)),
        GuardAct::Adopt => (4, "", 0),
        GuardAct::Check => (6, "", 0),
        GuardAct::Open => (8, "", 0),
        GuardAct::Reset => (7, "", 0),
        GuardAct::Report { mark, outcome } => (9, mark, *outcome as u8),
        GuardAct::Tend { session } => (5, session, 0),
    }
}

/// Packs neighbours to whom the same is done as one. What few items have (texts, numbers) stands in blocks of their own, which
/// the script reads only where it wants them.
fn pack_items(packed: &mut Packer, items: &[GuardItem<'_>]) {
    let is_alike =
        |a: &GuardItem<'_>, b: &GuardItem<'_>| a.scopes == b.scopes && header(&a.act) == header(&b.act);
    for alike in items.chunk_by(is_alike).flat_map(|c| c.chunks(GROUP_CAP)) {
        let Some(first) = alike.first() else { continue };
        let (op, text, flag) = header(&first.act);
        packed.byte(op).text(text).byte(flag);
        // Two bytes each that are never zero, so that they are a text.
        for at in first.scopes.iter() {
            packed.byte((at % 255) as u8 + 1).byte((at / 255) as u8 + 1);
        }
        // At most `GROUP_CAP`.
        packed.byte(0).u16(u16::try_from(alike.len()).unwrap_or(u16::MAX));
        for item in alike {
            packed.text(&item.member);
        }
        packed.block(|p| alike.iter().for_each(|item| pack_more(p, &item.act)));
        packed.block(|p| {
            for item in alike {
                match item.act {
                    GuardAct::Ask { arrival_ms: n, .. } | GuardAct::Renew { number: n, .. } => p.u48(n),
                    GuardAct::Release { until_ms, outcome: GuardOutcome::Kept, .. } => {
                        p.u48(until_ms.unwrap_or(0))
                    }
                    _ => p,
                };
            }
        });
    }
}

/// The text that an item has for itself.
fn pack_more(packed: &mut Packer, act: &GuardAct<'_>) {
    match act {
        GuardAct::Ask { ack_subject, .. } => packed.text(ack_subject),
        _ => packed,
    };
}
