//! Whether a process is ready, and who is asked.

use std::{future::Future, pin::Pin, sync::OnceLock, time::Duration};

use super::metrics::shared;
use crate::connect::Connected;

/// Longest that one part may take to answer: below the second that a prober usually waits.
const PATIENCE: Duration = Duration::from_millis(800);

/// A future that a [`Subject`] gives.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Each part that readiness needs, with what is wrong with it.
pub type Parts = Vec<(&'static str, Result<(), String>)>;

/// A started process, as its health is asked about.
pub trait Subject: Send + Sync + 'static {
    /// Looks at every part now.
    fn parts(&self) -> Asked<'_, Parts>;

    /// What makes a restart the only way on, if anything does.
    fn is_lost(&self) -> Option<String> {
        None
    }

    /// Brings what is only measured on demand up to date, before a scrape.
    fn refresh(&self) -> Asked<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The process that is asked: none until it has started.
#[derive(Default)]
pub struct Health {
    subject: OnceLock<Box<dyn Subject>>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("is_started", &self.subject.get().is_some()).finish()
    }
}

impl Health {
    /// The process has started. A second call changes nothing.
    pub fn started(&self, subject: impl Subject) {
        if self.subject.set(Box::new(subject)).is_err() {
            tracing::debug!("the process was started before");
        }
    }

    /// What is wrong, part by part; also sets the metrics that say so.
    pub async fn parts(&self) -> Parts {
        let parts = match self.subject.get() {
            Some(s) => s.parts().await,
            None => vec![("start", Err("not started yet".into()))],
        };
        let m = shared();
        for (part, state) in &parts {
            m.part_ready.with_label_values(&[part]).set(i64::from(state.is_ok()));
        }
        m.ready.set(i64::from(is_ready(&parts)));
        parts
    }

    /// Whether the process lives, or why only a restart helps.
    pub(super) fn alive(&self) -> Result<(), String> {
        self.subject.get().and_then(|s| s.is_lost()).map_or(Ok(()), Err)
    }

    /// Before a scrape.
    pub(super) async fn refresh(&self) {
        self.parts().await;
        if let Some(s) = self.subject.get() {
            s.refresh().await;
        }
    }
}

/// Whether every part is well.
pub fn is_ready(parts: &Parts) -> bool {
    parts.iter().all(|(_, state)| state.is_ok())
}

/// Why a process whose NATS client has ended cannot go on.
pub fn lost_client(c: &Connected) -> Option<String> {
    c.broker.has_ended().then(|| CLIENT_ENDED.to_owned())
}

/// What is said of it.
pub const CLIENT_ENDED: &str = "the NATS client of this process has ended: only a restart brings it back";

/// Both servers, asked at the same time: whether they answer, and whether they are those that this process started with.
pub async fn servers(c: &Connected) -> Parts {
    async fn in_time(asked: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        tokio::time::timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }
    let nats = in_time(async {
        if let Some(lost) = lost_client(c) {
            return Err(lost);
        }
        if !c.broker.is_connected() {
            return Err("not connected".to_owned());
        }
        let found = c.broker.found().await.map_err(|e| e.to_string())?;
        if found.jobs_created != c.found.jobs_created {
            return Err(
                "the stream of jobs is another one than at the start: start this process again".into()
            );
        }
        c.publisher.refusal().map_or(Ok(()), |why| Err(format!("it stores nothing: {why}")))
    });
    let redis = in_time(async {
        c.store.check().await.map_err(|e| e.to_string())?;
        c.store.refusal().or_else(|| c.store.unfit()).map_or(Ok(()), Err)
    });
    let (nats, redis) = tokio::join!(nats, redis);
    vec![("nats", nats), ("redis", redis)]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Half;

    impl Subject for Half {
        fn parts(&self) -> Asked<'_, Parts> {
            Box::pin(async { vec![("nats", Ok(())), ("redis", Err("away".into()))] })
        }
    }

    // Shows: O-06
    #[tokio::test]
    async fn a_process_is_ready_when_it_has_started_and_every_part_is_well() {
        let h = Health::default();
        assert_eq!(h.parts().await[0].0, "start");
        h.started(Half);
        let parts = h.parts().await;
        assert!(!is_ready(&parts) && is_ready(&parts[..1].to_vec()));
    }
}
