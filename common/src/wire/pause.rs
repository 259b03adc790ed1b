//! A pause as it is kept: the value of an entry of the bucket `<NS>_PAUSES`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    clock::iso_millis,
    domain::pause::{Pause, Slot, Target},
};

/// Who paused what, why, and until when. The entry's key says what is paused, too, and holds even where this cannot be read:
/// `queue.<name>`, `type.<name>`, or `key.<hash>` (XXH3-128 of the key, 32 hex digits).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PauseDocument {
    pub v: u32,
    /// `queue`, `type` or `key`.
    pub kind: String,
    /// Name of the queue or the type, or the key itself.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who paused it: `user@host`, or what `--by` said.
    pub by: String,
    /// Since when (RFC 3339, the broker's clock).
    pub at: String,
    /// When it ends by itself (RFC 3339, the broker's clock).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl From<&Pause> for PauseDocument {
    fn from(p: &Pause) -> Self {
        Self {
            v: 1,
            kind: p.target.kind().to_owned(),
            name: p.target.name().to_owned(),
            reason: p.reason.clone(),
            by: p.by.clone(),
            at: iso_millis(p.at_ms).unwrap_or_default(),
            until: p.until_ms.and_then(iso_millis),
        }
    }
}

/// Reads the entry of a place. What cannot be read holds without an end: somebody wanted it held. `stored_ms`: when it was
/// stored. `None`: the place is of no kind that this release knows.
pub fn read(slot: &Slot, body: &[u8], stored_ms: u64) -> Option<Pause> {
    let read = serde_json::from_slice::<PauseDocument>(body).map_err(|e| e.to_string());
    let read = read.and_then(|d| of_document(slot, d, stored_ms));
    if let Err(error) = &read {
        tracing::warn!(%slot, error, "a pause that cannot be read holds without an end; `surety resume` removes it");
    }
    match read {
        Ok(pause) => Some(pause),
        Err(error) => Some(Pause {
            target: slot.target()?,
            reason: Some(format!("(its entry cannot be read: {error})")),
            by: "unknown".to_owned(),
            at_ms: stored_ms,
            until_ms: None,
        }),
    }
}

fn of_document(slot: &Slot, d: PauseDocument, stored_ms: u64) -> Result<Pause, String> {
    let mut target = slot.target().ok_or("an unknown kind")?;
    if let Target::Hashed(_) = target {
        let named = Target::key(&d.name)?;
        if named.slot() != *slot {
            return Err(format!("it says {named}, which is kept elsewhere"));
        }
        target = named;
    }
    let ms = |text: &str| {
        let t: jiff::Timestamp = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
        u64::try_from(t.as_millisecond()).map_err(|e| e.to_string())
    };
    let until_ms = d.until.as_deref().map(ms).transpose()?;
    Ok(Pause { target, reason: d.reason, by: d.by, at_ms: ms(&d.at).unwrap_or(stored_ms), until_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{QueueName, TypeName};

    #[test]
    fn pauses_are_written_and_read_back() {
        for target in [
            Target::Queue(QueueName::new("default").unwrap()),
            Target::Type(TypeName::new("t").unwrap()),
            Target::key("acme/site €").unwrap(),
        ] {
            for (reason, until_ms) in [(None, None), (Some("disk".to_owned()), Some(1_800_000_000_123))] {
                let pause = Pause {
                    target: target.clone(),
                    reason,
                    by: "ann@h".into(),
                    at_ms: 1_700_000_000_456,
                    until_ms,
                };
                let body = serde_json::to_vec(&PauseDocument::from(&pause)).unwrap();
                assert_eq!(read(&target.slot(), &body, 7), Some(pause));
            }
        }
    }

    #[test]
    fn what_cannot_be_read_holds_without_an_end() {
        let slot = Target::key("a").unwrap().slot();
        let other = r#"{"v":1,"kind":"key","name":"b","by":"x","at":"2026-11-21T08:00:00Z"}"#;
        let until = r#"{"v":1,"kind":"key","name":"a","by":"x","at":"2026-11-21T08:00:00Z","until":"soon"}"#;
        for body in ["", "{}", "not json", other, until] {
            let p = read(&slot, body.as_bytes(), 7).unwrap();
            assert!(p.holds_at(u64::MAX) && p.at_ms == 7, "{body}");
            assert!(p.reason.unwrap().contains("cannot be read"));
        }
        // A field of a newer release is no reason.
        let newer = r#"{"v":2,"kind":"key","name":"a","by":"x","at":"2026-11-21T08:00:00Z","ticket":"T-1"}"#;
        assert_eq!(read(&slot, newer.as_bytes(), 7).unwrap().by, "x");
    }
}
