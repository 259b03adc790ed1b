//! The fingerprint that tells a new report from a repeat.

use xxhash_rust::xxh3::xxh3_64;

/// Fingerprint of a report: 16 hex digits of XXH3-64 over its kind, a zero byte and its data. The algorithm is fixed, so the
/// same report has the same one in every process, release and machine (C-11).
pub fn fingerprint(kind: &str, data: &str) -> String {
    let mut bytes = Vec::with_capacity(kind.len() + 1 + data.len());
    bytes.extend_from_slice(kind.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(data.as_bytes());
    format!("{:016x}", xxh3_64(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: C-11
    #[test]
    fn a_fingerprint_is_the_same_for_ever() {
        let of = fingerprint("progress", r#"{"message":"half","progress":0.5}"#);
        assert_eq!(of, "3e8c68f062b11cc0");
        assert_eq!(fingerprint("tool", ""), "23e93467ef52909b");
        assert_ne!(fingerprint("a", "b"), fingerprint("ab", ""));
    }
}
