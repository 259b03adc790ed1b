//! JSON that every reader can read. The syntax of JSON allows what many readers refuse: half of a surrogate pair, a number that no
//! double holds, nesting without end. A text that goes through us unread, such as a payload or a result, is therefore looked at where
//! it comes in: what a producer sent is refused, what a handler said is repaired, so that nobody behind us stumbles over it.

use std::borrow::Cow;

/// Deepest nesting of a text. Readers have limits of their own (ours 128 levels), and the text ends up some levels deep in
/// receipts and events.
pub const MAX_DEPTH: usize = 100;

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotStrict {
    #[error("it is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("a string has half of a surrogate pair (\\uD800 to \\uDFFF), which is no character")]
    Surrogate,
    #[error("a number is too large for a double (1.8e308)")]
    Number,
}

/// What a walk over a text meets, in order.
enum Met {
    /// Half of a pair, at these bytes.
    Surrogate(usize, usize),
    /// A number that no double holds, at these bytes.
    Number(usize, usize),
}

/// Whether a text, which is JSON by its syntax, can be read by everybody.
pub fn check(json: &str) -> Result<(), NotStrict> {
    let mut first = Ok(());
    walk(json.as_bytes(), |met| {
        first = first.and(Err(match met {
            Met::Surrogate(..) => NotStrict::Surrogate,
            Met::Number(..) => NotStrict::Number,
        }));
    })?;
    first
}

/// The text with what cannot be read replaced: half of a surrogate pair by U+FFFD, a number that no double holds by `null`.
/// Errors: `TooDeep`, which nothing can repair.
pub fn repair(json: &str) -> Result<Cow<'_, str>, NotStrict> {
    let mut out = String::new();
    let mut from = 0;
    walk(json.as_bytes(), |met| {
        let (start, end, by) = match met {
            Met::Surrogate(start, end) => (start, end, "\\ufffd"),
            Met::Number(start, end) => (start, end, "null"),
        };
        out.push_str(json.get(from..start).unwrap_or_default());
        out.push_str(by);
        from = end;
    })?;
    if from == 0 {
        return Ok(Cow::Borrowed(json));
    }
    out.push_str(json.get(from..).unwrap_or_default());
    Ok(Cow::Owned(out))
}

/// One pass over the bytes, without allocation. All offsets that are told are between characters.
fn walk(bytes: &[u8], mut met: impl FnMut(Met)) -> Result<(), NotStrict> {
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let (mut i, mut depth) = (0, 0usize);
    while i < bytes.len() {
        match at(i) {
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(NotStrict::TooDeep);
                }
                i += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                i += 1;
            }
            b'"' => i = string(bytes, i + 1, &mut met),
            b'-' | b'0'..=b'9' => {
                let start = i;
                while matches!(at(i), b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') {
                    i += 1;
                }
                let digits = bytes.get(start..i).unwrap_or_default();
                // Shorter ones without an exponent are in range.
                let is_large = digits.len() > 300 || digits.iter().any(|b| matches!(b, b'e' | b'E'));
                let value = || std::str::from_utf8(digits).ok()?.parse::<f64>().ok();
                if is_large && value().is_none_or(f64::is_infinite) {
                    met(Met::Number(start, i));
                }
            }
            _ => i += 1,
        }
    }
    Ok(())
}

/// Walks over a string from behind its opening quote; gives where it goes on behind the closing one.
fn string(bytes: &[u8], mut i: usize, met: &mut impl FnMut(Met)) -> usize {
    while let Some(b) = bytes.get(i) {
        match b {
            b'"' => return i + 1,
            b'\\' => match unit(bytes, i) {
                None => i += 2,
                Some(0xD800..=0xDBFF) => match unit(bytes, i + 6) {
                    Some(0xDC00..=0xDFFF) => i += 12,
                    _ => {
                        met(Met::Surrogate(i, i + 6));
                        i += 6;
                    }
                },
                Some(0xDC00..=0xDFFF) => {
                    met(Met::Surrogate(i, i + 6));
                    i += 6;
                }
                Some(_) => i += 6,
            },
            _ => i += 1,
        }
    }
    i
}

/// The UTF-16 unit of an escape `\uXXXX` that begins here.
fn unit(bytes: &[u8], i: usize) -> Option<u32> {
    let digits = bytes.get(i..i + 6)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn nested(n: usize) -> String {
        "[".repeat(n) + &"]".repeat(n)
    }

    #[test]
    fn what_others_cannot_read_is_found_and_repaired() {
        for (json, why, repaired) in [
            (r#"{"t":"Party \ud83d"}"#, NotStrict::Surrogate, r#"{"t":"Party \ufffd"}"#),
            (r#"{"t":"\ude00 \ud83dx"}"#, NotStrict::Surrogate, r#"{"t":"\ufffd \ufffdx"}"#),
            (r#"{"\uD83D":1}"#, NotStrict::Surrogate, r#"{"\ufffd":1}"#),
            (r#"["\ud83d\ud83d\ude00"]"#, NotStrict::Surrogate, r#"["\ufffd\ud83d\ude00"]"#),
            (r#"{"d":1e999}"#, NotStrict::Number, r#"{"d":null}"#),
            ("[-1E+400,1]", NotStrict::Number, "[null,1]"),
        ] {
            assert_eq!(check(json), Err(why), "{json}");
            assert_eq!(repair(json).unwrap(), repaired);
            assert!(serde_json::from_str::<Value>(json).is_err(), "{json}");
            assert!(serde_json::from_str::<Value>(repaired).is_ok(), "{repaired}");
        }
        let long = format!("[{}]", "9".repeat(400));
        assert_eq!((check(&long), repair(&long).unwrap().as_ref()), (Err(NotStrict::Number), "[null]"));
        assert_eq!(repair(&nested(MAX_DEPTH + 1)), Err(NotStrict::TooDeep));
        assert_eq!(check(&nested(20_000)), Err(NotStrict::TooDeep));
    }

    #[test]
    fn what_everybody_reads_is_left_alone() {
        for json in [
            r#"{"t":"\ud83d\ude00 \\ud83d \"[[[\" 1e999","n":[1e308,-0,1.5E-400,123456789012345678901234567890]}"#,
            r#""\\""#,
            "null",
            &nested(MAX_DEPTH),
        ] {
            assert_eq!(check(json), Ok(()), "{json}");
            assert!(matches!(repair(json), Ok(Cow::Borrowed(_))));
            assert!(serde_json::from_str::<Value>(json).is_ok(), "{json}");
        }
    }

    proptest! {
        /// Whatever is JSON for the lazy reader is JSON for the strict one after a repair.
        #[test]
        fn a_repaired_text_can_be_read(json in r#"(\["?(\\u[dD][89aAcC][0-9]{2}|[a-z0-9]|\\\\|e|-|,|[0-9]e[0-9]{3}){0,12}"?\]?)"#) {
            if serde_json::from_str::<Box<serde_json::value::RawValue>>(&json).is_ok() {
                let repaired = repair(&json).unwrap();
                prop_assert!(serde_json::from_str::<Value>(&repaired).is_ok(), "{} -> {}", json, repaired);
                prop_assert_eq!(check(&json).is_ok(), repaired == json);
            }
        }
    }
}
