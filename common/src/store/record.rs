//! The packed record of a job, as the scripts write it (`prelude.lua` has the same positions). Fields are only ever
//! appended; a record with more fields than this release knows still decodes.

use serde::{
    Deserialize,
    de::{self, SeqAccess, Visitor},
};

use crate::domain::{Contract, ErrorCode, JobState, Status};

/// What Redis knows of a job. Times are milliseconds of the store's clock, 0 for "not set"; texts are empty for "not set".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub status: Status,
    pub contract: Contract,
    pub generation: u32,
    pub rev: u64,
    pub epoch: u64,
    pub attempt: u32,
    pub charged: u32,
    pub max_retries: u32,
    pub start_failures: u32,
    pub due_ms: u64,
    pub started_ms: u64,
    pub deadline_ms: u64,
    pub created_ms: u64,
    pub finish_by_ms: u64,
    pub ended_ms: u64,
    pub queue: String,
    pub job_type: String,
    /// A JSON string literal, or empty.
    pub key: String,
    pub trace: String,
    pub carrier: String,
    /// Subject that acks the recorded delivery.
    pub ack_subject: String,
    pub session: String,
    pub code: String,
    /// Outbox entry of the last transition.
    pub entry: String,
}

impl Record {
    /// Reads a packed record. The error names the field; nothing is ever replaced by a default.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        rmp_serde::from_slice(bytes).map_err(|e| {
            super::script::unreadable();
            format!("record does not decode: {e}")
        })
    }

    /// The part that the job machine knows.
    pub fn state(&self) -> JobState {
        JobState {
            status: self.status,
            contract: self.contract,
            generation: self.generation,
            rev: self.rev,
            epoch: self.epoch,
            attempt: self.attempt,
            charged: self.charged,
            max_retries: self.max_retries,
            start_failures: self.start_failures,
            due_ms: self.due_ms,
            error: if self.status.is_terminal() { ErrorCode::from_name(&self.code) } else { None },
        }
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Record;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of at least 26 fields")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Record, A::Error> {
                macro_rules! field {
                    ($name:literal) => {
                        seq.next_element()
                            .map_err(|e| de::Error::custom(format!("{}: {e}", $name)))?
                            .ok_or_else(|| de::Error::missing_field($name))?
                    };
                }
                let version: u32 = field!("version");
                if version != 1 {
                    return Err(de::Error::custom(format!("record version {version} is unknown")));
                }
                let status: u8 = field!("status");
                let status = Status::from_code(status)
                    .ok_or_else(|| de::Error::custom(format!("status {status} is unknown")))?;
                let contract: u8 = field!("contract");
                let contract = Contract::from_code(contract)
                    .ok_or_else(|| de::Error::custom(format!("contract {contract} is unknown")))?;
                let record = Record {
                    status,
                    contract,
                    generation: field!("generation"),
                    rev: field!("rev"),
                    epoch: field!("epoch"),
                    attempt: field!("attempt"),
                    charged: field!("charged"),
                    max_retries: field!("max_retries"),
                    start_failures: field!("start_failures"),
                    due_ms: field!("due"),
                    started_ms: field!("started"),
                    deadline_ms: field!("deadline"),
                    created_ms: field!("created"),
                    finish_by_ms: field!("finish_by"),
                    ended_ms: field!("ended"),
                    queue: field!("queue"),
                    job_type: field!("type"),
                    key: field!("key"),
                    trace: field!("trace"),
                    carrier: field!("carrier"),
                    ack_subject: field!("reply"),
                    session: field!("session"),
                    code: field!("code"),
                    entry: {
                        let _call: String = field!("call");
                        field!("entry")
                    },
                };
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(record)
            }
        }

        d.deserialize_seq(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sample = ((u8, u8, u8, u8, u64, u64, u8, u8), (u8, u8, u64, u64, u64, u64, u64, u64));

    // Shows: B-03
    #[test]
    fn a_record_of_a_newer_release_still_decodes_and_a_broken_one_names_its_field() {
        let nums: Sample = ((1, 4, 2, 1, 7, 2, 2, 1), (3, 0, 0, 10, 20, 5, 30, 0));
        let mut fields: Vec<serde_json::Value> = Vec::new();
        let (a, b) = nums;
        for n in [a.0, a.1, a.2, a.3] {
            fields.push(n.into());
        }
        for n in [a.4, a.5] {
            fields.push(n.into());
        }
        for n in [a.6, a.7, b.0, b.1] {
            fields.push(n.into());
        }
        for n in [b.2, b.3, b.4, b.5, b.6, b.7] {
            fields.push(n.into());
        }
        for s in ["default", "thumb", "", "", "JOBS:1", "ack", "s1", "", "call", "1-0"] {
            fields.push(s.into());
        }
        let r = Record::decode(&rmp_serde::to_vec(&fields).unwrap()).unwrap();
        assert_eq!(
            (r.status, r.epoch, r.queue.as_str(), r.entry.as_str()),
            (Status::Running, 2, "default", "1-0")
        );

        fields.push("a field of the future".into());
        assert_eq!(Record::decode(&rmp_serde::to_vec(&fields).unwrap()).unwrap(), r);

        fields[5] = "two".into();
        let e = Record::decode(&rmp_serde::to_vec(&fields).unwrap()).unwrap_err();
        assert!(e.contains("epoch"), "{e}");
    }
}
