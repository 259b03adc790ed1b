//! Whether Redis is still configured as the promises need, while a process runs. A start refuses a server that evicts records or
//! keeps no append-only file; an operator or a restart of the server may change it afterwards. New jobs wait then, what runs goes
//! on, and everything starts again by itself when the server is right again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    connect::{Connected, masters},
    doctor,
    reload::{LiveSettings, Timer},
};

/// Looks with every renewal's period, but no more often than this.
const LEAST: Duration = Duration::from_millis(500);

/// Watches until `stop`.
pub async fn watch(c: Connected, live: LiveSettings, stop: CancellationToken) {
    let mut timer = Timer::new(&live, "fitness", |s| s.lease.renewal.max(LEAST));
    loop {
        tokio::select! {
            () = timer.pause() => {}
            () = stop.cancelled() => return,
        }
        let asked = tokio::select! {
            // Also leaves a server that is a replica by now: who only reads would not notice.
            asked = masters(&c.store) => asked,
            () = stop.cancelled() => return,
        };
        match asked {
            Ok(facts) => note(&c, doctor::redis_refusals(&live.now(), &facts)),
            // Readiness says that it is away.
            Err(error) => tracing::debug!(%error, "redis cannot be asked for its settings"),
        }
    }
}

fn note(c: &Connected, refusals: Vec<String>) {
    let unfit = (!refusals.is_empty()).then(|| refusals.join("; "));
    let before = c.store.unfit();
    if before == unfit {
        return;
    }
    match &unfit {
        Some(why) => tracing::error!(
            why,
            alert = "redis_unfit",
            "redis is not configured safely any more: no job starts until it is"
        ),
        None => tracing::info!("redis is configured safely again: jobs start"),
    }
    c.store.set_unfit(unfit);
}
