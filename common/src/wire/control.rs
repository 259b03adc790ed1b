//! Requests about jobs, for whoever has NATS only: a request on `<ns>.control.job.<id>`, answered by a reaper.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is asked of a job. Fields that are not of this operation are ignored; fields that nobody knows are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlRequest {
    /// Version: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<u32>,
    /// `cancel`, `status` or `why`.
    pub op: String,
    /// `cancel`: stored with the outcome, or with the request of an attempt to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `cancel`: queue of a job that was not enqueued yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// `cancel`: how long the end of a running attempt is waited for, in milliseconds: at most 60000, 3000 where it is left out.
    /// The time limit of the request has to be longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// The answer: exactly one of `answer` and `error` is there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ControlReply {
    pub v: u32,
    /// The job's id, as it was asked for.
    pub id: String,
    /// The operation, as far as it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// What `surety cancel`, `status` or `why` writes with `--json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ControlError>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlError {
    pub code: ControlCode,
    /// For people, with what to do.
    pub text: String,
    /// With `unknown_op`: the operations there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known: Vec<String>,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlCode {
    /// The request is no JSON object of this shape, or a name in it is not allowed.
    BadRequest,
    /// There is no such operation.
    UnknownOp,
    /// The operation has its name and is not made yet.
    NotSupported,
    /// No record, no waiting message and no journal event has this id.
    UnknownJob,
    /// This reaper has as many requests in hand as it takes: ask again.
    Busy,
    /// A server that is needed cannot be reached, or the time for the request is up: ask again. A cancel that was begun may
    /// have happened.
    Unreachable,
    /// The answer is larger than a message may be: `surety why` shows it.
    TooLarge,
    /// Something that a person has to look at: the text says what.
    Internal,
}

impl ControlCode {
    /// Every code.
    pub const ALL: [Self; 8] = [
        Self::BadRequest,
        Self::UnknownOp,
        Self::NotSupported,
        Self::UnknownJob,
        Self::Busy,
        Self::Unreachable,
        Self::TooLarge,
        Self::Internal,
    ];

    /// The name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownOp => "unknown_op",
            Self::NotSupported => "not_supported",
            Self::UnknownJob => "unknown_job",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::TooLarge => "too_large",
            Self::Internal => "internal",
        }
    }
}

impl ControlError {
    /// An error of this kind.
    pub fn new(code: ControlCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), known: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: B-03
    #[test]
    fn codes_have_the_names_that_are_on_the_wire() {
        for c in ControlCode::ALL {
            assert_eq!(serde_json::to_value(c).unwrap(), c.name());
        }
    }
}
