//! Whether a worker can take jobs now.

use std::sync::Weak;

use surety_common::telemetry::health::{Asked, Parts, Subject, lost_client, servers};

use crate::shared::Shared;

/// A started worker, as `/readyz` asks about it. It does not keep the worker alive: a stop waits for its last user.
pub(crate) struct Ready {
    pub(crate) w: Weak<Shared>,
}

impl Subject for Ready {
    fn is_lost(&self) -> Option<String> {
        lost_client(&self.w.upgrade()?.c)
    }

    fn parts(&self) -> Asked<'_, Parts> {
        Box::pin(async {
            let Some(w) = self.w.upgrade() else {
                return vec![("worker", Err("stopped".to_owned()))];
            };
            let mut parts = servers(&w.c).await;
            let session = match &*w.session.borrow() {
                Some(s) if !s.is_lost() => Ok(()),
                _ => Err("no session: nothing is claimed until one is opened".to_owned()),
            };
            parts.push(("session", session));
            let pauses = match *w.pauses.is_known().borrow() {
                true => Ok(()),
                false => Err("what is paused is not known: nothing is started until it is".to_owned()),
            };
            parts.push(("pauses", pauses));
            let is_draining = w.draining.is_cancelled();
            parts.push(("worker", if is_draining { Err("draining".to_owned()) } else { Ok(()) }));
            parts
        })
    }
}
