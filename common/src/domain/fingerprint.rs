//! Fingerprints, which tell what is new from a repeat: of a report, and of what a job asks for.

use serde_json::{Value, value::RawValue};
use xxhash_rust::xxh3::xxh3_64;

use super::ids::TypeName;

/// Fingerprint of a report: 16 hex digits of XXH3-64 over its kind, a zero byte and its data. The algorithm is fixed, so the
/// same report has the same one in every process, release and machine (C-11).
pub fn fingerprint(kind: &str, data: &str) -> String {
    let mut bytes = Vec::with_capacity(kind.len() + 1 + data.len());
    bytes.extend_from_slice(kind.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(data.as_bytes());
    format!("{:016x}", xxh3_64(&bytes))
}

/// Fingerprint of what a job asks for: of its type, its payload and its key. Two payloads are the same when they are the same JSON
/// value: white space and the order of names do not count, the way a number is written does (`1` is not `1.0`). A payload that is
/// nested deeper than 127 levels counts by its text. What else a job says (labels, times, who is told) does not count.
pub fn of_work(kind: &TypeName, payload: &RawValue, key: Option<&str>) -> String {
    let mut plain = String::with_capacity(payload.get().len() + key.map_or(0, |k| k.len() + 1));
    match serde_json::from_str::<Value>(payload.get()) {
        Ok(value) => write_plain(&value, &mut plain),
        Err(_) => plain.push_str(payload.get()),
    }
    if let Some(key) = key {
        // JSON has no zero byte, so this is no other payload.
        plain.push('\0');
        plain.push_str(key);
    }
    fingerprint(kind.as_str(), &plain)
}

/// JSON without white space, the names of each object in the order of their bytes. Recurses as deep as the reader does, which
/// has a limit.
fn write_plain(value: &Value, out: &mut String) {
    match value {
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (i, (name, value)) in entries.into_iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write_plain(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, value) in items.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write_plain(value, out);
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(kind: &str, payload: &str) -> String {
        keyed(kind, payload, None)
    }

    fn keyed(kind: &str, payload: &str, key: Option<&str>) -> String {
        of_work(&TypeName::new(kind).unwrap(), &RawValue::from_string(payload.to_owned()).unwrap(), key)
    }

    #[test]
    fn the_same_work_has_the_same_fingerprint_however_it_is_written() {
        let plain = r#"{"a":[1,{"x":null,"y":"\u00e4\n"}],"b":true}"#;
        assert_eq!(
            work("fix", plain),
            fingerprint("fix", "{\"a\":[1,{\"x\":null,\"y\":\"ä\\n\"}],\"b\":true}")
        );
        let other = "{ \"b\": true,\n \"a\": [1, {\"y\": \"\u{e4}\\n\", \"x\": null}] }";
        assert_eq!(work("fix", plain), work("fix", other));
        for different in [r#"{"a":[1.0],"b":true}"#, r#"{"a":[1],"b":"true"}"#, "null", r#""fix""#] {
            assert_ne!(work("fix", r#"{"a":[1],"b":true}"#), work("fix", different));
        }
        assert_ne!(work("fix", "null"), work("review", "null"));
        assert_ne!(keyed("fix", "null", Some("k")), keyed("fix", "null", Some("l")));
        assert_ne!(keyed("fix", "null", Some("k")), work("fix", "null"));
        // As it is in every release and on every machine.
        assert_eq!(work("fix", r#"{"n":1}"#), "555620afbf75ffc7");
    }

    #[test]
    fn work_that_is_nested_beyond_reading_counts_by_its_text() {
        let deep = |n: usize, space: &str| format!("{}{space}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(work("fix", &deep(100, "")), work("fix", &deep(100, " ")));
        assert_ne!(work("fix", &deep(500, "")), work("fix", &deep(500, " ")));
    }

    // Shows: C-11
    #[test]
    fn a_fingerprint_is_the_same_for_ever() {
        let of = fingerprint("progress", r#"{"message":"half","progress":0.5}"#);
        assert_eq!(of, "3e8c68f062b11cc0");
        assert_eq!(fingerprint("tool", ""), "23e93467ef52909b");
        assert_ne!(fingerprint("a", "b"), fingerprint("ab", ""));
    }
}
