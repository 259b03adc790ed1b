//! Names with a fixed alphabet. They travel in subjects, Redis keys and file names, so a value of these
//! types needs no escaping anywhere.

use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};

/// Why a name was refused. `Display` is one line for the user: what, the rule, what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not allowed: use {rule}")]
pub struct NameError {
    what: &'static str,
    rule: &'static str,
    given: String,
}

fn check(
    what: &'static str,
    rule: &'static str,
    max: usize,
    ok: fn(u8) -> bool,
    s: &str,
) -> Result<(), NameError> {
    if !s.is_empty() && s.len() <= max && s.bytes().all(ok) {
        return Ok(());
    }
    Err(NameError { what, rule, given: super::text::cut(s, 80).into_owned() })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:literal, $max:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            #[doc = concat!("Checks the rule: ", $rule, ". The error names the value and the rule.")]
            pub fn new(s: &str) -> Result<Self, NameError> {
                check($what, $rule, $max, $ok, s)?;
                Ok(Self(Arc::from(s)))
            }

            /// The name itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::new(s)
            }
        }
    };
}

name!(
    /// Names one enqueue for ever.
    JobId, "job id", "1 to 128 of A-Z a-z 0-9 _ -", 128,
    |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
);
name!(
    /// A declared stream of jobs of like urgency.
    QueueName, "queue", "1 to 64 of a-z 0-9 _ -", 64,
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-'
);
name!(
    /// Names jobs that were enqueued together.
    BatchId, "batch id", "1 to 128 of A-Z a-z 0-9 _ -", 128,
    |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
);
name!(
    /// Names the handler of a job.
    TypeName, "type", "1 to 64 of a-z 0-9 _ -", 64,
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-'
);
name!(
    /// Prefix of subjects, streams and Redis keys.
    Namespace, "namespace", "a letter a-z, then up to 31 of a-z 0-9 -", 32,
    |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
);
name!(
    /// Names a schedule; its jobs are named after it.
    ScheduleName, "schedule", "1 to 64 of A-Z a-z 0-9 _ -", 64,
    |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
);
name!(
    /// One incarnation of one worker process.
    SessionId, "session id", "1 to 128 of A-Z a-z 0-9 _ -", 128,
    |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
);

impl TypeName {
    /// Stands for a type that could not be told.
    pub fn unknown() -> Self {
        Self(Arc::from("unknown"))
    }
}

impl JobId {
    /// The id of last resort: `seq-<creation of the stream>-<sequence>`, with the letters and digits of the time only.
    pub fn of_sequence(stream_created: &str, sequence: u64) -> Self {
        let created: String = stream_created.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
        Self(Arc::from(format!("seq-{created}-{sequence}")))
    }

    /// The partition of this job among `n` (at least 1): a stable hash, the same in every process and release.
    pub fn partition(&self, n: u32) -> u32 {
        if n <= 1 {
            return 0;
        }
        // The remainder is below `n`, so it fits.
        (xxhash_rust::xxh3::xxh3_64(self.0.as_bytes()) % u64::from(n)) as u32
    }
}

/// Id of the receipt of one generation: the same for every delivery, on every host, in every release.
/// 32 hex digits of SHA-256 over job, generation and kind.
pub fn receipt_id(job: &JobId, generation: u32, kind: &str) -> String {
    let mut h = Sha256::new();
    h.update(job.as_str().as_bytes());
    h.update(b"\0");
    h.update(generation.to_string().as_bytes());
    h.update(b"\0");
    h.update(kind.as_bytes());
    let digest = h.finalize();
    let mut hex = String::with_capacity(32);
    for b in digest.iter().take(16) {
        hex.extend([b >> 4, b & 15].map(|d| char::from_digit(u32::from(d), 16).unwrap_or('0')));
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_their_alphabet_are_refused_with_the_rule() {
        for bad in ["", "a.b", "a b", "ä", &"x".repeat(129)] {
            assert!(JobId::new(bad).is_err(), "{bad:?}");
        }
        assert!(QueueName::new("Default").is_err());
        let text = TypeName::new("Thumb").unwrap_err().to_string();
        assert!(text.contains("Thumb") && text.contains("a-z"), "{text}");
    }

    #[test]
    fn partition_and_receipt_id_are_golden() {
        // Golden: other processes and other releases must agree.
        let id = JobId::new("01JD0000000000000000000000").unwrap();
        assert_eq!(id.partition(1), 0);
        assert_eq!(id.partition(16), 5);
        assert_eq!(receipt_id(&id, 1, "finished"), "ea2ee94e136ea099b4984f47d7403939");
        assert_ne!(receipt_id(&id, 1, "finished"), receipt_id(&id, 2, "finished"));
    }
}
