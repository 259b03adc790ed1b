//! Guards and locks: what is over by time is freed, an offer that nobody came for goes to the next in line, and an idle scope is
//! forgotten. What a dead session held is freed before (`expired_sessions`).

use surety_common::{store::Scope, tend, wake::open};

use super::partitions;
use crate::rule::{Context, Done, Look, Rule, RuleError, Step, Verdict};

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
        Box::pin(partitions::each(x, move |p| Box::pin(step_of(x, p))))
    }
}

/// Looks after the scopes of a partition that are due.
async fn step_of(x: &Context, p: u32) -> Result<Done, RuleError> {
    let now = x.c.store.now_ms_of(p).await?;
    let due = x.c.store.guard_scopes(p, now, 0, x.batch).await?;
    let mut done = Done::default();
    let is_full = due.len() == x.batch;
    let n_due = if is_full { x.c.store.guards_due(p, now).await? } else { 0 };
    let scopes: Vec<Scope> = due.into_iter().map(|s| s.scope).collect();
    let over = super::pauses::over(&x.c, scopes.iter()).await?;
    let woken = tend::tend(&x.c, p, hold_ms(x), scopes, &[]).await?;
    done.acted += woken;
    for slot in over {
        done.acted += open(&x.c, &slot).await?;
    }
    if is_full {
        // Those that were due and are not any more. One that stays due is not asked again before the next tick.
        let left = x.c.store.guards_due(p, now).await?;
        done.passed = usize::try_from(n_due.saturating_sub(left)).unwrap_or(usize::MAX);
    }
    // That many are woken by one call at most.
    done.is_partial = is_full || woken >= MOST_WAKES;
    Ok(done)
}

pub(super) fn hold_ms(x: &Context) -> u64 {
    u64::try_from(x.settings.lease.ttl.as_millis()).unwrap_or(u64::MAX)
}
