//! Notices: what a requester is told before the end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A notice, as the body of a request to the requester's subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Notice {
    pub v: u32,
    /// The same for every sending of this notice: its idempotency key.
    pub notice: String,
    /// `started` or `nudge`.
    pub kind: String,
    pub job: String,
    #[serde(rename = "gen")]
    pub generation: u32,
    #[serde(rename = "type")]
    pub job_type: String,
    pub queue: String,
    /// The job's public description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// One line for people.
    pub text: String,
    /// When it happened (RFC 3339, the clock of the store): the start; the promise of progress that passed.
    pub at: String,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Time limit of the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_by: Option<String>,
    /// Finish deadline of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_by: Option<String>,
}
