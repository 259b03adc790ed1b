//! A session that was not renewed for its TTL: its worker is dead, frozen or cut off, and by the trust deadline, a margin
//! earlier, its handlers were killed. Its attempts are committed as lost and their carriers given back at once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use surety_common::{
    clock::format_span, domain::ids::SessionId, recover::lost_session, telemetry::metrics, tend,
    watch::CrashLoop,
};

use super::{guards, partitions};
use crate::rule::{Context, Done, Look, Rule, RuleError, Step, Verdict};

/// How long the scopes of the guards are looked through after attempts were taken back.
const SWEEP_LIMIT: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct ExpiredSessions {
    /// Of each partition those that run nothing any more, and whose guards are not freed yet.
    dead: Mutex<BTreeMap<u32, Vec<SessionId>>>,
}

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
            let done = partitions::each(x, move |p| Box::pin(self.take_back(x, p))).await;
            // What is held by nobody any more ends by its own time: an attempt that is to be taken back never waits for that.
            if !done.as_ref().is_ok_and(|d| d.is_partial) {
                self.sweep(x).await;
            }
            done
        })
    }
}

impl ExpiredSessions {
    /// Commits what expired sessions run as lost, in one partition. What fails for one session does not keep the others.
    async fn take_back(&self, x: &Context, p: u32) -> Result<Done, RuleError> {
        let mut done = Done::default();
        let mut failed = Ok(());
        let now = x.c.store.now_ms_of(p).await?;
        for (session, expired_at) in x.c.store.sessions(p, now, limit(x)).await? {
            tracing::warn!(%session, late_ms = now.saturating_sub(expired_at), "session expired");
            // The script checks the expiry again: a session that was renewed meanwhile is left alone.
            let r = match lost_session(&x.c, p, &session, x.batch, &CrashLoop::new(&x.settings)).await {
                Ok(r) => r,
                Err(e) => {
                    failed = failed.and(Err(e));
                    continue;
                }
            };
            done.acted += r.lost;
            if !r.is_alive && !r.is_partial {
                metrics::reaper().sessions_expired.inc();
                self.dead.lock().unwrap_or_else(PoisonError::into_inner).entry(p).or_default().push(session);
            }
            done.is_partial |= r.is_partial;
        }
        failed.map(|()| done).map_err(RuleError::from)
    }

    /// Frees what those hold of the guards whose attempts were taken back, as far as that is done in a short time.
    async fn sweep(&self, x: &Context) {
        let dead = std::mem::take(&mut *self.dead.lock().unwrap_or_else(PoisonError::into_inner));
        let sweeps = dead.iter().map(|(p, sessions)| async move {
            match tend::sweep(&x.c, *p, guards::hold_ms(x), sessions, SWEEP_LIMIT).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(
                        partition = p,
                        sessions = sessions.len(),
                        "too many scopes to be looked through: what dead sessions hold ends by its time"
                    );
                }
                Err(error) => {
                    tracing::warn!(partition = p, %error, "what dead sessions hold ends by its time");
                }
            }
        });
        join_all(sweeps).await;
    }
}

fn limit(x: &Context) -> isize {
    isize::try_from(x.batch).unwrap_or(100)
}
