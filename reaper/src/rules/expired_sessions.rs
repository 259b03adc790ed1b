//! A session that was not renewed for its TTL: its worker is dead, frozen or cut off, and by the trust deadline, a margin
//! earlier, its handlers were killed. Its attempts are committed as lost and their carriers given back at once.

use std::time::Duration;

use surety_common::{clock::format_span, recover::lost_session, telemetry::metrics, watch::CrashLoop};

use crate::rule::{Context, Done, Look, Rule, Step, Verdict};

pub(crate) struct ExpiredSessions;

impl Rule for ExpiredSessions {
    fn name(&self) -> &'static str {
        "expired_sessions"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for p in 0..x.c.store.keys().partitions() {
                let now = x.c.store.now_ms_of(p).await?;
                for (session, expired_at) in x.c.store.sessions(p, now, limit(x)).await? {
                    let held = x.c.store.running(p, &session).await?;
                    let jobs: Vec<String> =
                        held.iter().take(10).map(|(id, epoch)| format!("{id}:{epoch}")).collect();
                    let since = format_span(Duration::from_millis(now.saturating_sub(expired_at)));
                    let evidence = format!(
                        "its lease ended {since} ago; it holds {} attempts {}",
                        held.len(),
                        jobs.join(" ")
                    );
                    out.push(Verdict::new(&session, evidence, "commit its attempts as lost"));
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
                for (session, expired_at) in x.c.store.sessions(p, now, limit(x)).await? {
                    tracing::warn!(%session, late_ms = now.saturating_sub(expired_at), "session expired");
                    // The script checks the expiry again: a session that was renewed meanwhile is left alone.
                    let r = lost_session(&x.c, p, &session, x.batch, &CrashLoop::new(&x.settings)).await?;
                    done.acted += r.lost;
                    if !r.is_alive {
                        super::guards::sweep(x, p, &session).await?;
                    }
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

fn limit(x: &Context) -> isize {
    isize::try_from(x.batch).unwrap_or(100)
}
