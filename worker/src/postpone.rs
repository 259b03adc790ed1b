//! Jobs that come back after a long delay give their place at the broker to others meanwhile.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use surety_common::{
    broker::{BrokerError, decode::Decoded, hand_on::Moved, postpone::LONGEST_NAK, pull::Delivery},
    fault,
    pace::Pace,
};
use tokio::sync::Mutex;

use crate::{hand::Settle, shared::Shared};

/// How long the copy is tried; after that the message waits where it is.
const PATIENCE: Pace = Pace::call(Duration::from_secs(5));
/// The clock of NATS is asked for again after this long: whoever sets it is believed then.
const CLOCK_AGE: Duration = Duration::from_secs(10);

/// What the clock of NATS said, and when.
#[derive(Debug, Default)]
pub(crate) struct BrokerClock(Mutex<Option<(u64, Instant)>>);

impl BrokerClock {
    async fn now_ms(&self, w: &Shared) -> Result<u64, BrokerError> {
        let mut known = self.0.lock().await;
        let passed = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some((ms, since)) = known.filter(|(_, since)| since.elapsed() < CLOCK_AGE) {
            return Ok(ms.saturating_add(passed(since)));
        }
        let ms = w.c.broker.now_ms().await?;
        *known = Some((ms, Instant::now()));
        Ok(ms)
    }
}

/// What becomes of the message of a job that is tried again after `delay`: where that is long, a copy waits in its place, and it
/// is acked. `epoch`: of the attempt that ended; 0 where it is not known.
pub(crate) async fn later(
    w: &Shared,
    d: &Delivery,
    decoded: &Decoded,
    epoch: u64,
    delay: Duration,
) -> Settle {
    if delay <= LONGEST_NAK {
        return Settle::Nak(delay);
    }
    match try_later(w, d, decoded, epoch, delay).await {
        Ok(true) => {
            fault::point("postponed");
            Settle::Ack
        }
        Ok(false) => Settle::Nak(delay),
        Err(error) => {
            tracing::warn!(
                job_id = %decoded.job.id, %error,
                "no schedule could be stored for the next attempt; the message waits in its queue and takes up a place"
            );
            Settle::Nak(delay)
        }
    }
}

async fn try_later(
    w: &Shared,
    d: &Delivery,
    decoded: &Decoded,
    epoch: u64,
    delay: Duration,
) -> Result<bool, BrokerError> {
    let asked = Instant::now();
    let now_ms = w.broker_clock.now_ms(w).await?;
    // The delay began before the clock was asked.
    let delay = delay.saturating_sub(asked.elapsed());
    let at_ms = now_ms.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
    let at = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    // So far away that it has no date: it waits where it is, for as long as the server can count.
    let Some(at) = at else { return Ok(false) };
    let job = &decoded.job;
    let moved = Moved { job: &job.id, queue: &job.queue, generation: decoded.generation, epoch };
    w.c.broker.postpone(&w.c.publisher, d, &moved, at, PATIENCE).await
}
