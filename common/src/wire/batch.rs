//! Which jobs a batch has: published by whoever enqueued them, in parts, so that anybody can follow all of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Some jobs of a batch, on `<ns>.batches.<batch>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchPart {
    pub v: u32,
    pub batch: String,
    /// One sending of the batch; a newer one under the same name stands for the batch instead.
    pub run: String,
    /// Queue of the jobs.
    pub queue: String,
    /// Sequence in the journal from which on the events of these jobs are found.
    pub from: u64,
    /// Ids of stored jobs; one may come twice.
    pub ids: Vec<String>,
    /// Nothing follows: the batch was sent to its end.
    pub is_last: bool,
}
