//! Redis has lost data: what the journal knows is written back, then the gate opens (`docs/redis-loss.md` has the protocol
//! and why it is sound).
//!
//! What the journal says of each job, and the record that follows, is made by [`surety_common::known`]. `work`: the steps of one
//! rebuild; here: who does it.

mod work;

use std::{collections::BTreeMap, time::Duration};

use surety_common::{
    broker::BrokerError,
    domain::deadline::millis,
    loss::note_newest,
    store::{Gate, GateState, StoreError},
};

use crate::rule::{Context, Done, JOURNAL_LIMIT, Look, Rule, RuleError, Step, Verdict};

/// The rule. Of several reapers one makes a data set whole; where it dies, another begins anew.
pub(crate) struct Rebuild {
    /// Name of this reaper in elections.
    me: String,
}

impl Default for Rebuild {
    fn default() -> Self {
        Self { me: ulid::Ulid::generate().to_string() }
    }
}

impl Rule for Rebuild {
    fn name(&self) -> &'static str {
        "rebuild"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let does = "write back what the journal knows, then let jobs be claimed";
            match x.c.store.check().await {
                Err(e @ (StoreError::Rebuilding | StoreError::OtherStore(_))) => {
                    Ok(vec![Verdict::new("redis", e.to_string(), does)])
                }
                other => Ok(other.map(|()| Vec::new())?),
            }
        })
    }

    fn limit(&self) -> Duration {
        JOURNAL_LIMIT
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let won = self.won(x).await?;
            if won.is_empty() {
                return Ok(Done::default());
            }
            let n = won.len();
            let lease = lease(x);
            tokio::select! {
                done = work::rebuild(x, &self.me, &won) => done?,
                lost = keep(x, &self.me, &won, lease) => return Err(lost),
            }
            Ok(Done { acted: n, ..Done::default() })
        })
    }
}

/// How long a rebuild is ours without a word from us.
fn lease(x: &Context) -> Duration {
    x.settings.lease.ttl
}

impl Rebuild {
    /// The partitions that are ours to make whole.
    async fn won(&self, x: &Context) -> Result<BTreeMap<u32, GateState>, RuleError> {
        let mut won = BTreeMap::new();
        // Ordering: the journal first. What it has was committed before, so a store that is whole is never behind it.
        if let Err(e) = note_newest(&x.c.store, &x.c.broker).await {
            tracing::debug!(error = %e, "the journal cannot be looked at");
        }
        let jobs = x.c.broker.found().await.map(|f| f.jobs_created);
        for p in 0..x.c.store.keys().partitions() {
            let mut state = x.c.store.watch_gate(p).await?;
            match &jobs {
                // Only one that was made later: a wrong address must not discard what this store's jobs wait for.
                Ok(created) if state.gate == Gate::Open && *created > state.jobs_created => {
                    tracing::error!(
                        partition = p,
                        had = state.jobs_created,
                        created,
                        alert = "nats_recreated",
                        "the stream of jobs is another one than that of this store: messages of open jobs are gone"
                    );
                    state = x.c.store.close_for_jobs(p, created).await?;
                }
                Ok(_) => {}
                Err(e) => tracing::debug!(error = %e, "the stream of jobs cannot be looked at"),
            }
            if state.gate == Gate::Open {
                continue;
            }
            match x.c.store.elect(p, &self.me, lease(x)).await {
                Ok(Some(state)) => drop(won.insert(p, state)),
                Ok(None) => {}
                // Lost once more, between the two.
                Err(StoreError::OtherStore(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(won)
    }
}

/// Says again and again that we are at it, until the gates are open. Ends with the reason why we may not be any more.
async fn keep(x: &Context, me: &str, won: &BTreeMap<u32, GateState>, lease: Duration) -> RuleError {
    let mut closed: Vec<(u32, &GateState)> = won.iter().map(|(p, state)| (*p, state)).collect();
    loop {
        tokio::time::sleep(lease / 4).await;
        for (p, state) in std::mem::take(&mut closed) {
            match renew(x, me, p, state, lease).await {
                Ok(true) => {}
                Ok(false) => continue,
                // The lease stands for a while yet.
                Err(StoreError::Unreachable(why)) => {
                    tracing::warn!(why, "the rebuild's lease is not renewed")
                }
                Err(e) => return e.into(),
            }
            closed.push((p, state));
        }
    }
}

/// Renews the lease of a rebuild. `false`: the gate is open, so there is nothing to renew.
/// Errors: `Rebuilding` where it is somebody else's by now.
async fn renew(x: &Context, me: &str, p: u32, ours: &GateState, lease: Duration) -> Result<bool, StoreError> {
    let now = match x.c.store.elect(p, me, lease).await? {
        Some(now) => now,
        // Our own call may have opened it this very moment, and its answer is still under way.
        None => x.c.store.watch_gate(p).await?,
    };
    if now.incarnation != ours.incarnation || (now.gate != Gate::Open && now.by != me) {
        return Err(StoreError::Rebuilding);
    }
    Ok(now.gate != Gate::Open)
}

/// What is stored below this age of the bound is read too: clocks of the two servers differ.
const SKEW: Duration = Duration::from_secs(600);
/// A journal of no more messages than this is read from its start, so that ended jobs are remembered as long as before.
const SHORT_JOURNAL: u64 = 200_000;

/// From when on the journal has to be read (milliseconds of the stream's clock), so that everything is in it that may be asked for
/// again: a job's events are younger than the message that carries it, and an older copy has what came before it.
async fn bound(x: &Context, won: &BTreeMap<u32, GateState>) -> Result<u64, RuleError> {
    let b = &x.c.broker;
    let kept = b.journal_kept().await?;
    if kept.last.saturating_sub(kept.first) < SHORT_JOURNAL {
        return Ok(0);
    }
    let ns = b.names().namespace();
    let mut oldest = b.now_ms().await?;
    let streams = [
        (b.names().jobs(), format!("{ns}.jobs.>")),
        (b.names().sched(), format!("{ns}.due.>")),
        (b.names().receipts(), format!("{ns}.receipts.>")),
    ];
    for (stream, subject) in streams {
        match b.next_message(&stream, 1, &subject).await {
            Ok(Some(first)) => oldest = oldest.min(first.stored_ms),
            Ok(None) => {}
            Err(e @ BrokerError::Unreachable(_)) => return Err(e.into()),
            Err(e) => {
                tracing::warn!(stream, error = %e, "its oldest message cannot be read: the whole journal is");
                return Ok(0);
            }
        }
    }
    // Its job's last event is a little older than the copy.
    oldest = b.oldest_postponed_ms().await?.map_or(oldest, |ms| oldest.min(ms));
    for (p, state) in won {
        if !state.former.is_empty() {
            oldest = oldest.min(x.c.store.last_write_ms(*p).await?);
        }
    }
    Ok(oldest.saturating_sub(millis(SKEW)))
}
