//! One receipt: told to its requester, then committed, journaled, and acked, in this order. Dying in between leaves an
//! unacked receipt, whose next delivery begins anew: the requester may get the same bytes under the same id once more.

use std::time::Duration;

use surety_common::{
    broker::{pull::Delivery, receipts::Incoming},
    connect::Connected,
    domain::{
        delivery::{Plan, Recorded, Tries, plan},
        notice::Kind,
    },
    fault,
    pace::{Pace, Transient},
    recover::RecoverError,
    reload::LiveSettings,
    store::{Telling, ToldReply},
    tell::{Message, Sink, Told, commit},
};
use tokio_util::sync::CancellationToken;

/// How long what is committed is tried to be journaled.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));
/// The pause before a receipt is looked at again for which a server was away.
const AWAY: Duration = Duration::from_secs(2);

/// The same where its record cannot be read, or what follows cannot be committed: others repair that.
const BROKEN: Duration = Duration::from_secs(30);

/// What becomes of the receipt's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    Ack,
    Nak(Duration),
}

/// What a delivery needs.
pub(super) struct Deliverer {
    pub(super) c: Connected,
    pub(super) sink: Box<dyn Sink>,
    /// How often a receipt is tried is asked at each try.
    pub(super) live: LiveSettings,
    /// A receipt that nobody settles or extends for this long is given to another dispatcher.
    pub(super) visible_after: Duration,
    /// The worker ends: nothing is waited for any more.
    pub(super) stop: CancellationToken,
}

impl Deliverer {
    /// Delivers one receipt, or finds that it was: the label of what became of it, and how its message is settled.
    pub(super) async fn deliver(&self, d: &Delivery) -> (&'static str, Settle) {
        let r = match self.c.broker.read_receipt(d) {
            Ok(r) => r,
            Err(why) => {
                // Nobody of ours writes such a message, and no other delivery would read it better.
                tracing::error!(
                    subject = %d.subject, sequence = d.sequence, bytes = d.payload.len(), why, alert = "receipt_unreadable",
                    "a message among the receipts is none and is dropped"
                );
                return ("unreadable", Settle::Ack);
            }
        };
        let record = match self.c.store.record(&r.job).await {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(job_id = %r.job, %error, "a receipt waits for its record");
                let delay = if error.is_transient() { AWAY } else { BROKEN };
                return ("left", Settle::Nak(delay));
            }
        };
        let recorded =
            record.map(|x| Recorded { generation: x.generation, contract: x.contract, told: x.told });
        let (tries, is_recorded) = match plan(r.generation, recorded, r.delivered) {
            Plan::Deliver { tries } => (tries, true),
            Plan::DeliverAlone { tries } => (tries, false),
            Plan::Settled(contract) => {
                tracing::debug!(job_id = %r.job, contract = contract.name(), "a receipt came again that is settled");
                return ("settled", Settle::Ack);
            }
        };
        let message = Message {
            kind: Kind::Receipt,
            id: r.id(),
            job: r.job.clone(),
            generation: r.generation,
            trace: r.trace.clone(),
            body: r.body.clone(),
        };
        fault::point("receipt_taken");
        let told = self.sink.surface(&r.requester, &message).await;
        fault::point("receipt_told");
        self.follow(&r, told, tries.saturating_add(1), is_recorded).await
    }

    fn tries(&self) -> Tries {
        let s = &self.live.now().notify;
        Tries { most: u32::try_from(s.tries.0).unwrap_or(u32::MAX), delays: s.backoff.0.clone() }
    }

    /// What follows from the `n`th try.
    async fn follow(&self, r: &Incoming, told: Told, n: u32, is_recorded: bool) -> (&'static str, Settle) {
        let job = &r.job;
        let (what, why, after) = match told {
            Told::Surfaced => (Telling::Receipt, String::new(), None),
            Told::NotTried(why) => {
                tracing::warn!(job_id = %job, why, "a receipt could not be tried");
                return ("left", Settle::Nak(AWAY));
            }
            Told::NotSurfaced(why) => match self.tries().after(n) {
                Some(after) => (Telling::ReceiptLater { after }, why, Some(after)),
                None => (Telling::ReceiptGivenUp, why, None),
            },
            Told::Never(why) => (Telling::ReceiptGivenUp, why, None),
        };
        let data = Data { receipt: r.id(), tries: n, message: (!why.is_empty()).then(|| why.clone()) };
        if is_recorded {
            match self.commit(r, what, &why, &data).await {
                Committed::Applied => {}
                // Another dispatcher was faster, after the time that this one had; or a call was, whose answer was lost.
                Committed::Before => return ("settled", Settle::Ack),
                Committed::Not => return ("left", Settle::Nak(BROKEN)),
            }
        }
        match (what, after) {
            (Telling::ReceiptGivenUp, _) => {
                tracing::error!(
                    job_id = %job, generation = r.generation, tries = n, why, alert = "receipt_failed",
                    "delivery of a receipt is given up; it stays in the journal"
                );
                ("failed", Settle::Ack)
            }
            (_, Some(after)) => {
                tracing::info!(job_id = %job, tries = n, why, ?after, "a receipt did not surface and is tried again");
                ("later", Settle::Nak(after))
            }
            _ => {
                tracing::debug!(job_id = %job, tries = n, "receipt delivered");
                ("delivered", Settle::Ack)
            }
        }
    }

    /// Commits until an answer comes: what was told must not be told again because a server is away.
    async fn commit(&self, r: &Incoming, what: Telling, why: &str, data: &Data) -> Committed {
        let mut delays = Pace::forever().delays();
        loop {
            let error = match commit(&self.c, &r.job, r.generation, what, why, data, PATIENCE).await {
                // Without a record there is nothing to settle.
                Ok(ToldReply::Applied { .. } | ToldReply::NoRecord) => return Committed::Applied,
                Ok(ToldReply::NotApplied { .. }) => return Committed::Before,
                // Told by the store; set aside in the end, and then there is no record.
                Ok(ToldReply::Unreadable) => return Committed::Not,
                Err(RecoverError::Broker(error)) => {
                    tracing::warn!(job_id = %r.job, %error, "what became of a receipt waits in the outbox");
                    return Committed::Applied;
                }
                Err(RecoverError::Store(error)) => error,
            };
            if !error.is_transient() {
                tracing::error!(job_id = %r.job, %error, "what became of a receipt cannot be committed");
                return Committed::Not;
            }
            if let Err(error) = self.c.broker.extend(&r.ack_subject).await {
                tracing::debug!(%error, "a receipt could not be extended");
            }
            let delay = delays.next_delay().unwrap_or(AWAY).min(self.visible_after / 4);
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stop.cancelled() => return Committed::Not,
            }
        }
    }
}

/// Data of the events `receipt_delivered` and `receipt_failed`.
#[derive(serde::Serialize)]
struct Data {
    receipt: String,
    tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// What became of a commit.
enum Committed {
    Applied,
    /// It was applied before, by another.
    Before,
    /// It is not, and cannot be now.
    Not,
}
