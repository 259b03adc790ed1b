//! The session: one incarnation of this worker, kept alive by renewal, trusted until a deadline of its own.
//!
//! The worker trusts its lease until the *start* of its last successful renewal plus TTL minus margin, on the boot-time
//! clock. At that moment every attempt is ended without a word, by the worker and, whatever the worker does, by the keeper;
//! the store lets others have them only a margin later.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use surety_common::{
    clock::boot_ms,
    domain::ids::SessionId,
    pace::Pace,
    reload::Counted,
    store::{FinishItem, Renewed, SessionInfo, StoreError, TYPES_SAID, Verdict, ops::parse_member},
    telemetry::metrics,
};
use tokio_util::sync::CancellationToken;

use crate::{finishes::finish_one, guards, intake, shared::Shared, state::SessionFolder};

/// One session.
pub(crate) struct Session {
    pub(crate) id: Arc<SessionId>,
    trust_until: AtomicU64,
    lost: CancellationToken,
    /// Incarnation of each partition's data set that knows it.
    known_in: Mutex<Vec<Arc<str>>>,
}

impl Session {
    /// Gives the session up: its attempts are ended without a word.
    pub(crate) fn lose(&self, why: &str) {
        if !self.lost.is_cancelled() {
            tracing::error!(session = %self.id, why, "session lost: its attempts are killed");
            metrics::worker().sessions_lost.inc();
            self.lost.cancel();
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Resolves when the session is lost.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// What this worker says of itself, as JSON.
pub(crate) fn info(w: &Shared) -> Result<String, StoreError> {
    let now = w.condition();
    let mut types: Vec<String> = w.handlers.keys().map(ToString::to_string).collect();
    types.sort_unstable();
    types.truncate(TYPES_SAID);
    let info = SessionInfo {
        types: Some(types),
        not_ready: Some(now.not_ready),
        passed_on: Some(now.passed_on),
        host: Some(rustix::system::uname().nodename().to_string_lossy().into_owned()),
        pid: Some(std::process::id()),
        started_at: Some(surety_common::clock::wall_now().to_string()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        slots: Some(w.settings.worker.slots.0),
        queues: Some(intake::queues(w).into_iter().map(|(q, _)| q.to_string()).collect()),
        ttl_ms: u64::try_from(w.settings.lease.ttl.as_millis()).ok(),
    };
    serde_json::to_string(&info).map_err(|e| StoreError::Decode(e.to_string()))
}

/// Opens sessions, renews them, replaces lost ones; ends when `until` is cancelled, closing the last one.
pub(crate) async fn keep(
    w: Arc<Shared>,
    first: Arc<Session>,
    mut folder: Option<SessionFolder>,
    until: CancellationToken,
) {
    let mut session = first;
    loop {
        tokio::select! {
            () = renew_loop(&w, &session) => {}
            () = until.cancelled() => {
                close(&w, &session, folder).await;
                return;
            }
        }
        w.session.send_replace(None);
        let n = w.fence_all();
        tracing::warn!(attempts = n, "waiting for the attempts of the lost session to die");
        while w.n_running() > 0 {
            tokio::select! {
                () = w.freed.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(200)) => { w.fence_all(); }
            }
        }
        if let Some(f) = folder.take()
            && let Err(e) = f.remove()
        {
            tracing::warn!(error = %e, "cannot remove the folder of the lost session");
        }
        tokio::select! {
            opened = open_until_it_works(&w) => (session, folder) = opened,
            () = until.cancelled() => return,
        }
        w.session.send_replace(Some(session.clone()));
    }
}

async fn open_until_it_works(w: &Shared) -> (Arc<Session>, Option<SessionFolder>) {
    let mut delays = Pace::forever().delays();
    loop {
        match open(w).await {
            Ok(s) => return s,
            Err(e) => tracing::warn!(error = %e, "cannot open a session"),
        }
        tokio::time::sleep(delays.next_delay().unwrap_or(Duration::from_secs(2))).await;
    }
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("state folder: {0}")]
    State(#[from] std::io::Error),
}

/// Opens a session in every partition.
pub(crate) async fn open(w: &Shared) -> Result<(Arc<Session>, Option<SessionFolder>), OpenError> {
    let id =
        SessionId::new(&ulid::Ulid::generate().to_string()).map_err(|e| StoreError::Decode(e.to_string()))?;
    let folder = w.state.as_ref().map(|s| s.open(&id)).transpose()?;
    let started = boot_ms();
    let info = info(w)?;
    let mut known_in = Vec::new();
    for p in 0..w.c.store.keys().partitions() {
        w.c.store.open_session(p, &id, w.settings.lease.ttl, &info).await?;
        known_in.push(w.c.store.data_set(p));
    }
    let session = Session {
        id: Arc::new(id),
        trust_until: AtomicU64::new(0),
        lost: CancellationToken::new(),
        known_in: Mutex::new(known_in),
    };
    trust(w, &session, started);
    metrics::worker().sessions_opened.inc();
    tracing::info!(session = %session.id, "session opened");
    Ok((Arc::new(session), folder))
}

fn trust(w: &Shared, session: &Session, renewal_started: u64) {
    let lease = &w.settings.lease;
    let for_ms = u64::try_from(lease.ttl.saturating_sub(lease.margin).as_millis()).unwrap_or(0);
    session.trust_until.store(renewal_started + for_ms, Ordering::Relaxed);
    if let Some(k) = &w.keeper {
        k.trust(renewal_started + for_ms);
    }
}

/// Renews until the session is lost.
async fn renew_loop(w: &Arc<Shared>, session: &Arc<Session>) {
    let _timer = Counted::new("renewal");
    let mut suspects: HashSet<String> = HashSet::new();
    let mut orders = w.c.broker.orders(&session.id).await;
    let mut next = tokio::time::Instant::now() + w.settings.lease.renewal;
    loop {
        tokio::select! {
            () = session.lost() => return,
            () = tokio::time::sleep_until(next) => {}
            // Somebody wants an attempt stopped: the store knows which.
            () = orders.came() => {}
            () = watchdog(session) => {
                session.lose("it was not renewed in time");
                return;
            }
        }
        let started = boot_ms();
        let renewed = tokio::select! {
            r = renew(w, session, &mut suspects) => r,
            () = watchdog(session) => {
                session.lose("it was not renewed in time");
                return;
            }
        };
        let result = if renewed.is_ok() { "ok" } else { "failed" };
        metrics::worker().renewals.with_label_values(&[result]).inc();
        next = match renewed {
            Ok(()) => {
                trust(w, session, started);
                tokio::time::Instant::now() + w.settings.lease.renewal
            }
            Err(StoreError::SessionLost) => {
                session.lose("the store says that it expired");
                return;
            }
            Err(e) => {
                // H-03, H-04: logged and tried again soon; only the trust deadline ends the attempts.
                tracing::warn!(error = %e, "renewal failed");
                tokio::time::Instant::now() + (w.settings.lease.renewal / 5).min(Duration::from_secs(1))
            }
        };
    }
}

/// Resolves when the trust deadline passed. Looks at the boot-time clock, which goes on while the machine sleeps.
async fn watchdog(session: &Session) {
    loop {
        let until = session.trust_until.load(Ordering::Relaxed);
        let now = boot_ms();
        if now >= until {
            return;
        }
        tokio::time::sleep(Duration::from_millis((until - now).min(500))).await;
    }
}

async fn renew(w: &Arc<Shared>, session: &Session, suspects: &mut HashSet<String>) -> Result<(), StoreError> {
    let mut found = HashSet::new();
    for p in 0..w.c.store.keys().partitions() {
        let running = w.running_in(p);
        let answer = renew_in(w, session, p, &running).await?;
        match guards::renew(w, &session.id, p).await {
            // What is held is held again once the data set is whole.
            Ok(()) | Err(StoreError::Rebuilding) => {}
            Err(e) => return Err(e),
        }
        for member in answer.fenced {
            if let Some((id, epoch)) = parse_member(&member) {
                // It may have been finished between the snapshot and the call: then there is nothing to fence any more.
                if w.fence(&id, epoch) {
                    tracing::warn!(job_id = %id, epoch, "fenced: the store gave the job to another owner");
                }
            }
        }
        for member in answer.stops {
            if let Some((id, epoch)) = parse_member(&member)
                && w.cancel(&id, epoch)
            {
                tracing::info!(job_id = %id, epoch, "asked to stop: the job is to be cancelled");
            }
        }
        for member in answer.orphans {
            let Some((id, epoch)) = parse_member(&member) else { continue };
            if w.is_running(&id) {
                continue;
            }
            // A claim whose reply is still on its way looks the same: only what was there at the last renewal too is one.
            if suspects.contains(&member) {
                tracing::warn!(job_id = %id, epoch, "the store gives us an attempt that nobody runs: released");
                let item = FinishItem {
                    id,
                    epoch,
                    verdict: Verdict::Release,
                    receipt: "{".into(),
                    data: r#"{"reason":"orphan""#.into(),
                    detail: String::new(),
                };
                finish_one(w, p, &session.id, &item).await?;
            } else {
                found.insert(member);
            }
        }
    }
    *suspects = found;
    Ok(())
}

/// Renews in one partition. Where its data set was lost, the session is opened again in the one that is being rebuilt, so
/// that its attempts go on; too late for that, it is lost.
async fn renew_in(w: &Shared, session: &Session, p: u32, running: &[String]) -> Result<Renewed, StoreError> {
    let ttl = w.settings.lease.ttl;
    open_again(w, session, p).await?;
    match w.c.store.renew(p, &session.id, ttl, running).await {
        // This very call found it out.
        Err(StoreError::Rebuilding) => {
            open_again(w, session, p).await?;
            w.c.store.renew(p, &session.id, ttl, running).await
        }
        other => other,
    }
}

async fn open_again(w: &Shared, session: &Session, p: u32) -> Result<(), StoreError> {
    let incarnation = w.c.store.data_set(p);
    let is_known = |known: &Vec<Arc<str>>| known.get(p as usize).is_some_and(|k| *k == incarnation);
    if is_known(&session.known_in.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(());
    }
    w.c.store.reopen_session(p, &session.id, w.settings.lease.ttl, &info(w)?).await?;
    tracing::warn!(session = %session.id, partition = p, attempts = w.running_in(p).len(), "session opened again in the data set that is rebuilt");
    if let Some(k) = session.known_in.lock().unwrap_or_else(PoisonError::into_inner).get_mut(p as usize) {
        *k = incarnation;
    }
    Ok(())
}

async fn close(w: &Shared, session: &Session, folder: Option<SessionFolder>) {
    for p in 0..w.c.store.keys().partitions() {
        match w.c.store.close_session(p, &session.id).await {
            Ok(s) if s.owned > 0 => {
                tracing::warn!(
                    attempts = s.owned,
                    "session not closed: the reaper takes back what it still owns"
                );
            }
            Ok(_) => {}
            Err(e) => tracing::warn!(error = %e, "session not closed; it expires by itself"),
        }
    }
    if let Some(f) = folder
        && let Err(e) = f.remove()
    {
        tracing::warn!(error = %e, "cannot remove the session's folder");
    }
    tracing::info!(session = %session.id, "session closed");
}
