//! Recurring schedules: the broker makes a job of their document each time they fire.

use surety_common::{
    broker::{BrokerError, schedule::NOT_EMPTY},
    domain::{ErrorCode, JobId, QueueName, ids::ScheduleName, schedule::When},
    wire::job::{Refused, VERSION, check},
};

use super::{Client, ClientError, JobBuilder, generated_id};

/// Why a schedule was not stored.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The queue has a schedule of this name, and it was not to be replaced.
    #[error("there is a schedule of this name")]
    Exists,
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Client {
    /// Stores a schedule that fires again and again; gives its sequence in `SCHED`. Each job is named
    /// `<name>-<sequence>` and has the lineage of whoever made the schedule. `is_new`: refused where the queue has one of this name; else it replaces that.
    /// Errors: `Refused` for a document that breaks a rule or names an id, and for a schedule that fires once (enqueue that
    /// with [`JobBuilder::at`]); `NoStream` for a queue that is not declared.
    pub async fn schedule(
        &self,
        queue: &QueueName,
        name: &ScheduleName,
        when: &When,
        job: impl Into<JobBuilder>,
        is_new: bool,
    ) -> Result<u64, ScheduleError> {
        let job = self.fit(job.into()).adopted(self.lineage.as_ref());
        let body = document(queue, when, job).map_err(ClientError::from)?.into();
        let call =
            generated_id().map_err(|e| refused(format!("a new id: {e}"))).map_err(ClientError::from)?;
        let message_id = format!("{name}/schedule/{call}");
        let link = &self.link;
        let stored = link
            .broker
            .put_schedule(&link.publisher, (queue, name), when, &body, (&message_id, is_new), link.patience)
            .await;
        match stored {
            Ok(s) => Ok(s.sequence),
            Err(BrokerError::Refused { code: NOT_EMPTY, .. }) if is_new => Err(ScheduleError::Exists),
            Err(e) => Err(ClientError::from(e).into()),
        }
    }
}

fn refused(problem: String) -> Refused {
    Refused { code: ErrorCode::InvalidJob, problems: vec![problem] }
}

/// The checked document of every job of a schedule.
fn document(queue: &QueueName, when: &When, job: JobBuilder) -> Result<Vec<u8>, Refused> {
    let JobBuilder { mut document, mut problems, .. } = job;
    if document.id.is_some() {
        problems.push("id: a schedule that fires again names each of its jobs itself; leave it out".into());
    }
    if !when.is_recurring() {
        problems.push("schedule: it fires once; enqueue the job for that time".into());
    }
    document.id = None;
    document.v = Some(VERSION);
    let body = serde_json::to_vec(&document);
    // The name of a job that is never made: it only has to pass.
    let stand_in = JobId::new("recurring").map_err(|e| refused(e.to_string()))?;
    if let Err(e) = check(document, stand_in, queue.clone()) {
        problems.extend(e.problems);
    }
    match body {
        Ok(body) if problems.is_empty() => Ok(body),
        Ok(_) => Err(Refused { code: ErrorCode::InvalidJob, problems }),
        Err(e) => Err(refused(format!("the document does not encode: {e}"))),
    }
}
