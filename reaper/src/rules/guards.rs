//! Guards and locks: what is over by time is freed, an offer that nobody came for goes to the next in line, and an idle scope is
//! forgotten. What a dead session held is freed at once by [`sweep`].

use surety_common::{
    domain::ids::SessionId,
    store::{Scope, StoreError},
    tend,
    wake::open,
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
                let woken = tend::tend(&x.c, p, hold_ms(x), scopes, None).await?;
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
pub(crate) async fn sweep(x: &Context, p: u32, session: &SessionId) -> Result<(), StoreError> {
    tend::sweep(&x.c, p, hold_ms(x), x.batch, session).await
}
