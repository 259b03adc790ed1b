//! The dispatcher: takes receipts from their stream and tells requesters. It runs beside the jobs of a worker and shares
//! nothing with them but the connections; a slow requester holds a place here and no slot.

mod deliver;

use std::{sync::Arc, time::Duration};

use surety_common::{
    broker::{
        BrokerError,
        pull::{Delivery, Pulled, Puller},
    },
    telemetry::metrics::worker,
    tell::SubjectSink,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::shared::Shared;
use deliver::{Deliverer, Settle};

/// How long a pull waits at the server.
const EXPIRES: Duration = Duration::from_secs(20);
/// The pause after a failure, before it pulls again.
const PAUSE: Duration = Duration::from_millis(500);
/// The same where the server does not let us pull: only a person can help.
const DENIED_PAUSE: Duration = Duration::from_secs(30);

/// Delivers receipts until the worker drains; what is in hand then is brought to its end.
pub(crate) async fn run(w: Arc<Shared>) {
    let s = &w.settings.notify;
    let deliverer = Arc::new(Deliverer {
        c: w.c.clone(),
        sink: Box::new(SubjectSink::new(w.c.broker.clone(), s.timeout)),
        live: w.live.clone(),
        visible_after: w.settings.layout.receipt_wait,
        stop: w.abort.clone(),
    });
    let places = Arc::new(Semaphore::new(usize::try_from(s.concurrency.0).unwrap_or(64)));
    while !w.draining.is_cancelled() {
        let pause = match pull(&w, &deliverer, &places).await {
            Ok(()) => continue,
            Err(e @ BrokerError::Denied(_)) => {
                tracing::error!(error = %e, "receipts are not delivered by this worker");
                DENIED_PAUSE
            }
            Err(e) => {
                tracing::warn!(error = %e, "pulling receipts stopped, starting again");
                PAUSE
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = w.draining.cancelled() => {}
        }
    }
}

async fn pull(w: &Arc<Shared>, with: &Arc<Deliverer>, places: &Arc<Semaphore>) -> Result<(), BrokerError> {
    let mut puller = w.c.broker.receipts(EXPIRES).await?;
    let mut reconnects = w.c.broker.reconnects();
    reconnects.mark_unchanged();
    loop {
        // One permit is always in hand before a receipt can come for it.
        let free = places.available_permits().saturating_sub(puller.outstanding());
        if free > 0 {
            puller.ask(free, true).await?;
        }
        let freed = async {
            if places.available_permits() == 0 {
                drop(places.acquire().await);
            } else {
                std::future::pending().await
            }
        };
        let pulled = tokio::select! {
            pulled = puller.next() => pulled,
            () = freed => continue,
            changed = reconnects.changed() => {
                if changed.is_ok() {
                    puller.forget();
                }
                continue;
            }
            () = w.draining.cancelled() => {
                give_back(w, &mut puller).await;
                return Ok(());
            }
        };
        match pulled {
            Pulled::Message(d) => match places.clone().try_acquire_owned() {
                Ok(place) => begin(w, with, d, place),
                Err(_) => nak(w, &d).await,
            },
            Pulled::Ended | Pulled::Silent => {}
            Pulled::Gone(why) => return Err(BrokerError::Unreachable(why)),
            Pulled::Denied(e) => return Err(e),
        }
    }
}

fn begin(w: &Arc<Shared>, with: &Arc<Deliverer>, d: Delivery, place: OwnedSemaphorePermit) {
    let with = with.clone();
    w.tracker.spawn(async move {
        let (result, settle) = with.deliver(&d).await;
        worker().receipts.with_label_values(&[result]).inc();
        let settled = match settle {
            Settle::Ack => with.c.broker.ack(&d.ack_subject).await,
            Settle::Nak(delay) => with.c.broker.nak(&d.ack_subject, delay).await,
        };
        if let Err(error) = settled {
            tracing::warn!(%error, "a receipt could not be settled; it is delivered again and settled then");
        }
        drop(place);
    });
}

/// What was delivered to us and not begun is for another dispatcher, at once.
async fn give_back(w: &Shared, puller: &mut Puller) {
    while let Some(Pulled::Message(d)) = puller.next_here() {
        nak(w, &d).await;
    }
}

async fn nak(w: &Shared, d: &Delivery) {
    if let Err(error) = w.c.broker.nak(&d.ack_subject, Duration::ZERO).await {
        tracing::warn!(%error, "a receipt could not be given back; its ack-wait brings it back");
    }
}
