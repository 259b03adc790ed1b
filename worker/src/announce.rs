//! Telling a requester that an attempt started: beside the attempt, which waits for nothing of it. What is not told here, a
//! reaper tells when the promise has passed.

use std::{sync::Arc, time::Duration};

use surety_common::{
    domain::{Contract, JobId},
    store::{StoreError, ops::Grant},
    tell::{SubjectSink, notice::tell_start},
};
use tokio::sync::Semaphore;

use crate::{hand::InHand, shared::Shared};

/// What telling needs.
pub(crate) struct Announcer {
    sink: SubjectSink,
    places: Arc<Semaphore>,
}

impl Announcer {
    /// At most so many messages at once.
    pub(crate) fn new(sink: SubjectSink, at_once: usize) -> Self {
        Self { sink, places: Arc::new(Semaphore::new(at_once)) }
    }
}

/// Tells that an attempt started, where somebody wants to know and was not told yet.
pub(crate) fn started(w: &Arc<Shared>, job: &InHand, grant: &Grant) {
    let document = &job.decoded.job;
    if !document.requester.wants_notices() {
        return;
    }
    let Ok(place) = w.announcer.places.clone().try_acquire_owned() else {
        tracing::debug!(job_id = %document.id, "too many notices are under way; a reaper tells this one");
        return;
    };
    let (w, id, epoch) = (w.clone(), document.id.clone(), grant.epoch);
    let progress = Duration::from_millis(w.progress_ms(document).into());
    let tracker = w.tracker.clone();
    tracker.spawn(async move {
        tokio::select! {
            told = tell(&w, &id, epoch, progress) => {
                if let Err(error) = told {
                    tracing::warn!(job_id = %id, %error, "a notice could not be told or committed; a reaper tells it");
                }
            }
            () = w.abort.cancelled() => {}
        }
        drop(place);
    });
}

async fn tell(
    w: &Shared,
    id: &JobId,
    epoch: u64,
    progress: Duration,
) -> Result<(), surety_common::recover::RecoverError> {
    let record = w.c.store.record(id).await?.ok_or(StoreError::Decode("the job has no record".into()))?;
    // From the record, as a reaper makes it; and only while this very start is still untold.
    if record.status.is_running() && record.epoch == epoch && record.contract == Contract::Created {
        tell_start(&w.c, &w.announcer.sink, id, &record, progress, "worker").await?;
    }
    Ok(())
}
