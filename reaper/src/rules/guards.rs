//! Guards and locks: what is over by time is freed, an offer that nobody came for goes to the next in line, and an idle scope is
//! forgotten. What a dead session held is freed at once by [`sweep`].

use surety_common::{
    connect::Connected,
    store::{GuardAct, GuardItem, Scope, StoreError},
    wake::{open, wake},
    watch::tell,
};

use crate::rule::{Context, Done, Look, Rule, Step, Verdict};

/// Sleepers that one call wakes at most (`scripts/guards/frame.lua`).
const MOST_WAKES: usize = 200;

pub(crate) struct Guards;

impl Rule for Guards {
    fn name(&self) -> &'static str {
        "guards"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for p in 0..x.c.store.keys().partitions() {
                let now = x.c.store.now_ms_of(p).await?;
                let due = x.c.store.guard_scopes(p, now, 0, x.batch).await?;
                for slot in super::pauses::over(&x.c, due.iter().map(|s| &s.scope)).await? {
                    out.push(Verdict::new(slot, "its pause is over".to_owned(), "wake who waits for that"));
                }
                for s in due {
                    let evidence =
                        format!("{} is due since {} ms", s.scope.kind.name(), now.saturating_sub(s.look_ms));
                    out.push(Verdict::new(s.scope.label, evidence, "free what is over, wake who is next"));
                }
            }
            Ok(out)
        })
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            for p in 0..x.c.store.keys().partitions() {
                let now = x.c.store.now_ms_of(p).await?;
                let due = x.c.store.guard_scopes(p, now, 0, x.batch).await?;
                done.is_partial |= due.len() == x.batch;
                let scopes: Vec<Scope> = due.into_iter().map(|s| s.scope).collect();
                let over = super::pauses::over(&x.c, scopes.iter()).await?;
                let woken = tend(&x.c, p, hold_ms(x), scopes, "").await?;
                // That many are woken by one call at most.
                done.is_partial |= woken >= MOST_WAKES;
                done.acted += woken;
                for slot in over {
                    done.acted += open(&x.c, &slot).await?;
                }
            }
            Ok(done)
        })
    }
}

fn hold_ms(x: &Context) -> u64 {
    u64::try_from(x.settings.lease.ttl.as_millis()).unwrap_or(u64::MAX)
}

/// Frees what a dead session held, in every scope of a partition: before its holds end by themselves.
pub(crate) async fn sweep(x: &Context, p: u32, session: &str) -> Result<(), StoreError> {
    let mut skip = 0;
    loop {
        // What is tended may move behind the others, or away: a scope that is missed ends by its time.
        let found = x.c.store.guard_scopes(p, u64::MAX / 4096, skip, x.batch).await?;
        let n = found.len();
        let scopes = found.into_iter().map(|s| s.scope).collect();
        tend(&x.c, p, hold_ms(x), scopes, session).await?;
        if n < x.batch {
            return Ok(());
        }
        skip += n;
    }
}

async fn tend(
    c: &Connected,
    p: u32,
    hold_ms: u64,
    scopes: Vec<Scope>,
    session: &str,
) -> Result<usize, StoreError> {
    if scopes.is_empty() {
        return Ok(0);
    }
    let item = |place| GuardItem {
        act: GuardAct::Tend { session: session.to_owned() },
        member: String::new(),
        scopes: vec![place],
    };
    let items: Vec<GuardItem> = (0u16..).take(scopes.len()).map(item).collect();
    let answer = c.store.guard(p, None, hold_ms, &scopes, &items).await?;
    let woken = answer.woken.len();
    tell(c, &scopes, &answer.watched, answer.now_ms).await;
    wake(c, p, hold_ms, &scopes, answer.woken).await;
    Ok(woken)
}
