//! Receipts: the proof of an outcome. The worker or the reaper writes everything but `finished_at`, which the store's
//! clock appends in the script that decides the outcome; from then on the bytes never change.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{ErrorCode, JobId, TypeName, ids::receipt_id};

/// A receipt as readers see it.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Receipt {
    pub v: u32,
    /// Hash of job, generation and kind: the idempotency key of every delivery.
    pub receipt: String,
    pub job: String,
    #[serde(rename = "gen")]
    pub generation: u32,
    #[serde(rename = "type")]
    pub job_type: String,
    /// `done`, `failed`, `timed_out` or `cancelled`.
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<ErrorCode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub result: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub usage: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    pub finished_at: String,
}

/// What a receipt says, without the time.
#[derive(Debug, Clone, Serialize)]
pub struct Draft<'a> {
    v: u32,
    receipt: String,
    job: &'a str,
    #[serde(rename = "gen")]
    generation: u32,
    #[serde(rename = "type")]
    job_type: &'a str,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<ErrorCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<&'a str>,
}

impl<'a> Draft<'a> {
    /// A receipt of this outcome, without details.
    pub fn new(job: &'a JobId, generation: u32, job_type: &'a TypeName, outcome: &'a str) -> Self {
        Self {
            v: 1,
            receipt: receipt_id(job, generation, "finished"),
            job: job.as_str(),
            generation,
            job_type: job_type.as_str(),
            outcome,
            error_code: None,
            message: None,
            result: None,
            usage: None,
            started_at: None,
            trace: None,
        }
    }

    /// The JSON object without its closing brace, ready for the script to append `finished_at`.
    pub fn open_json(&self) -> String {
        // A struct of strings, numbers and checked raw JSON always serializes.
        let mut s = serde_json::to_string(self).unwrap_or_else(|_| "{".into());
        s.pop();
        s
    }
}
