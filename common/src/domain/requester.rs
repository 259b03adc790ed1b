//! Who asked for a job, and how they are told.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Longest subject in bytes.
const SUBJECT_CAP: usize = 256;

/// Whoever must be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Requester {
    #[default]
    Nobody,
    /// A NATS subject: each message is a request, and its reply says that it was seen.
    Subject {
        subject: String,
        /// Whether the start, and silence, are told besides the outcome.
        notices: bool,
    },
}

/// Why a requester was refused: the rule, and what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is not a subject to publish to: use 1 to 256 bytes, words with dots between them, no spaces, `*`, `>` or `$`"
)]
pub struct SubjectError {
    given: String,
}

/// As the record and the journal have it.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    subject: Cow<'a, str>,
    notices: bool,
}

impl Requester {
    /// A subject, checked.
    pub fn new(subject: &str, notices: bool) -> Result<Self, SubjectError> {
        let is_word = |w: &str| {
            !w.is_empty()
                && w.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '*' | '>' | '$'))
        };
        // Subjects of the server itself begin with `$`: a message there would be a command.
        if subject.len() > SUBJECT_CAP || !subject.split('.').all(is_word) {
            return Err(SubjectError { given: super::text::cut(subject, 80).into_owned() });
        }
        Ok(Self::Subject { subject: subject.to_owned(), notices })
    }

    /// Whether the start, and silence, are told.
    pub fn wants_notices(&self) -> bool {
        matches!(self, Self::Subject { notices: true, .. })
    }

    /// Whether there is nobody to tell.
    pub fn is_nobody(&self) -> bool {
        *self == Self::Nobody
    }

    /// The form of records and of the journal: a JSON object, or empty for nobody.
    pub fn to_json(&self) -> Cow<'static, str> {
        match self {
            Self::Nobody => Cow::Borrowed(""),
            Self::Subject { subject, notices } => {
                let written = Written { subject: subject.into(), notices: *notices };
                // A struct of a text and a boolean always serializes.
                Cow::Owned(serde_json::to_string(&written).unwrap_or_default())
            }
        }
    }

    /// Reads [`Requester::to_json`]. The error says what is wrong; nobody is not a default for what cannot be read.
    pub fn from_json(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::Nobody);
        }
        let w: Written<'_> = serde_json::from_str(text).map_err(|e| format!("requester: {e}"))?;
        Self::new(&w.subject, w.notices).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requester_is_written_and_read_back() {
        for r in [Requester::Nobody, Requester::new("replies.a-1", false).unwrap()] {
            assert_eq!(Requester::from_json(&r.to_json()), Ok(r));
        }
        assert!(Requester::from_json("{}").is_err());
    }

    #[test]
    fn a_subject_that_is_none_is_refused() {
        for bad in ["", "a b", "a.*", "a.>", "$JS.API.x", "a..b", ".a", &"x".repeat(257)] {
            let e = Requester::new(bad, true).unwrap_err().to_string();
            assert!(e.contains("not a subject"), "{e}");
        }
        assert!(Requester::new("_INBOX.abc.1", true).unwrap().wants_notices());
    }
}
