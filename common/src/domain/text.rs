//! Cutting text without breaking a character.

use std::borrow::Cow;

/// `s` if it has at most `max` bytes, else its longest prefix of whole characters that leaves room for the note
/// `… [truncated, N bytes total]`, plus that note. The result has at most `max` bytes, unless `max` is too small for
/// the note: then it is the longest whole-character prefix of at most `max` bytes.
pub fn cut(s: &str, max: usize) -> Cow<'_, str> {
    if s.len() <= max {
        return Cow::Borrowed(s);
    }
    let note = format!("… [truncated, {} bytes total]", s.len());
    match max.checked_sub(note.len()) {
        Some(room) => Cow::Owned(format!("{}{note}", prefix(s, room))),
        None => Cow::Borrowed(prefix(s, max)),
    }
}

/// The longest prefix of at most `max` bytes that ends on a character boundary.
pub fn prefix(s: &str, max: usize) -> &str {
    let mut end = max.min(s.len());
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    s.get(..end).unwrap_or("")
}

/// Longest name that is looked at as a typing slip.
const SLIP_CAP: usize = 64;

/// The known name nearest to `given`, if one is near enough to be a typing slip.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance costs the product of both lengths, and a stranger may choose the one.
    if given.len() > SLIP_CAP {
        return None;
    }
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(given, k), k))
        .filter(|(d, k)| *d <= 2.max(k.len() / 3))
        .min()
        .map(|(_, k)| k)
}

/// A URL without user and password, for messages.
pub fn mask(url: &str) -> String {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = url.split_at(begin);
    let rest = match rest.rfind('@') {
        Some(at) => format!("***{}", rest.get(at..).unwrap_or("")),
        None => rest.to_owned(),
    };
    // Where a socket's path takes the place of the host, they stand in the query.
    let Some((path, query)) = rest.split_once('?') else { return format!("{scheme}{rest}") };
    let hide = |pair: &str| match pair.split_once('=') {
        Some((k @ ("user" | "pass"), _)) => format!("{k}=***"),
        _ => pair.to_owned(),
    };
    format!("{scheme}{path}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
}

/// An address without the login that it may hold.
pub fn without_login(url: &str) -> String {
    let (scheme, rest) = url.split_at(url.find("://").map_or(0, |at| at + 3));
    let rest = rest.rfind('@').map_or(rest, |at| rest.get(at + 1..).unwrap_or(""));
    let Some((path, query)) = rest.split_once('?') else { return format!("{scheme}{rest}") };
    let is_login = |pair: &&str| matches!(pair.split('=').next(), Some("user" | "pass"));
    let kept: Vec<_> = query.split('&').filter(|pair| !is_login(pair)).collect();
    if kept.is_empty() { format!("{scheme}{path}") } else { format!("{scheme}{path}?{}", kept.join("&")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Shows: P-10
        #[test]
        fn cut_never_splits_a_character_and_says_how_much_there_was(s in "\\PC{0,200}", max in 0usize..300) {
            let out = cut(&s, max);
            prop_assert!(out.len() <= max || s.len() <= max);
            if s.len() > max && max >= 64 {
                let note = format!("[truncated, {} bytes total]", s.len());
                prop_assert!(out.ends_with(&note));
            }
        }
    }

    #[test]
    fn no_password_of_a_url_is_shown() {
        for (url, shown) in [
            ("nats://ann:s3cret@h:4222", "nats://***@h:4222"),
            ("ann:s3cret@h", "***@h"),
            ("redis://:p@ss@h:6379/2", "redis://***@h:6379/2"),
            ("rediss://h:6379", "rediss://h:6379"),
            ("unix:///run/redis.sock?db=1&pass=s3cret", "unix:///run/redis.sock?db=1&pass=***"),
        ] {
            assert_eq!(mask(url), shown);
        }
    }

    #[test]
    fn nearest_finds_a_slip_and_leaves_strangers_alone() {
        assert_eq!(nearest("paylod", ["payload", "type"]), Some("payload"));
        assert_eq!(nearest("zzzzzz", ["payload", "type"]), None);
    }
}
