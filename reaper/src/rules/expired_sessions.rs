//! A session that was not renewed for its TTL: its worker is dead, frozen or cut off, and by the trust deadline, a margin
//! earlier, its handlers were killed. Its attempts are committed as lost and their carriers given back at once.

use surety_common::{recover::lost_session, telemetry::metrics};

use crate::rule::{Context, Done, Rule, Step};

pub(crate) struct ExpiredSessions;

impl Rule for ExpiredSessions {
    fn name(&self) -> &'static str {
        "expired_sessions"
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            for p in 0..x.c.store.keys().partitions() {
                let now = x.c.store.now_ms().await?;
                let limit = isize::try_from(x.batch).unwrap_or(100);
                for (session, expired_at) in x.c.store.sessions(p, now, limit).await? {
                    tracing::warn!(%session, late_ms = now.saturating_sub(expired_at), "session expired");
                    // The script checks the expiry again: a session that was renewed meanwhile is left alone.
                    let r = lost_session(&x.c, p, &session, x.batch).await?;
                    done.acted += r.lost;
                    if !r.is_alive && !r.is_partial {
                        metrics::reaper().sessions_expired.inc();
                    }
                    done.is_partial |= r.is_partial;
                }
            }
            Ok(done)
        })
    }
}
