//! What a look at the message of a waiting job means for its record.

use std::time::Duration;

use super::{
    deadlines::DueReply,
    ops::millis,
    script::{Answer, Store, StoreError, pack},
    unreadable::Prepared,
};
use crate::domain::{ErrorCode, JobId, Status};

/// What is to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CarrierAct {
    /// It is there, or is to come. `looks`: how many looks in a row found it delivered and nothing came of it.
    LookAgain { after: Duration, looks: u32 },
    /// Another message carries the job from now on.
    Replace { carrier: String, after: Duration },
    /// It is gone, and no journal has an outcome. Receipt: [`crate::wire::receipt::Draft::open_json`]; `data`: JSON object of
    /// the event.
    Lost { receipt: String, data: String },
    /// The journal has the outcome of this generation.
    Ended { status: Status, code: String, rev: u64, epoch: u64 },
}

/// One waiting job, as it was when its message was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarrierItem {
    pub id: JobId,
    pub rev: u64,
    pub promise_ms: u64,
    pub carrier: String,
    pub act: CarrierAct,
}

impl Store {
    /// Commits what was found of the messages of waiting jobs of one partition. A job that is otherwise by now is left alone.
    pub async fn on_carriers(
        &self,
        p: u32,
        items: &[CarrierItem],
    ) -> Result<Answer<Vec<DueReply>>, StoreError> {
        let prepare = |items: &[&CarrierItem]| {
            let keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            let packed: Vec<_> = items
                .iter()
                .map(|it| {
                    let (act, (after, looks, next, status, code, rev, epoch, receipt, data)) = match &it.act {
                        CarrierAct::LookAgain { after, looks } => {
                            (1u8, (millis(*after), *looks, "", 0, "", 0, 0, "", ""))
                        }
                        CarrierAct::Replace { carrier, after } => {
                            (2, (millis(*after), 0, carrier.as_str(), 0, "", 0, 0, "", ""))
                        }
                        CarrierAct::Lost { receipt, data } => {
                            let code = ErrorCode::MessageLost.name();
                            (3, (0, 0, "", 0, code, 0, 0, receipt.as_str(), data.as_str()))
                        }
                        CarrierAct::Ended { status, code, rev, epoch } => {
                            (4, (0, 0, "", status.code(), code.as_str(), *rev, *epoch, "", ""))
                        }
                    };
                    let (id, seen, carrier) = (it.id.as_str(), it.rev, it.carrier.as_str());
                    let (promise, status): (u64, u8) = (it.promise_ms, status);
                    (
                        id, seen, promise, carrier, act, after, looks, next, status, code, rev, epoch,
                        receipt, data,
                    )
                })
                .collect();
            Ok(Prepared { keys, frame: self.frame(p, None), items: pack(&packed)? })
        };
        self.skipping(&self.inner.scripts.carrier, p, None, items, |i| i.id.as_str(), prepare).await
    }
}
