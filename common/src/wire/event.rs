//! Journal events as readers see them. They are written by the Lua scripts (one function, `prelude.lua`), in the same
//! call as the transition that they tell of; a test reads every script's events back through this type.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One event. `kind` is a string here, because readers ignore kinds that they do not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    pub v: u32,
    pub job: String,
    #[serde(rename = "gen")]
    pub generation: u32,
    /// Number of this transition of the job, from 1, without gaps.
    pub rev: u64,
    pub kind: String,
    /// RFC 3339, the clock of the store.
    pub at: String,
    pub queue: String,
    #[serde(rename = "type")]
    pub job_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub status: String,
    pub contract: String,
    pub attempt: u32,
    pub epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// `STREAM:sequence` of the message that carries the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub data: serde_json::Value,
}

/// Reads one journal message: the events that can be read, and a line for each that cannot.
pub fn read_message(body: &[u8]) -> (Vec<Event>, Vec<String>) {
    // Each event is read alone: what is odd in one does not take its neighbours with it.
    let items: Vec<&RawValue> = match serde_json::from_slice(body) {
        Ok(v) => v,
        Err(e) => return (Vec::new(), vec![format!("journal message is not a JSON array: {e}")]),
    };
    let mut good = Vec::with_capacity(items.len());
    let mut bad = Vec::new();
    for item in items {
        match serde_json::from_str(item.get()) {
            Ok(e) => good.push(e),
            Err(e) => bad.push(format!("journal event does not decode: {e}")),
        }
    }
    (good, bad)
}
