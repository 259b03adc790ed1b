// SURETY: this file is ours; see README.md beside the manifest.

//! Reading what nats-server hands on unread: the header block, subject and reply of a message are whatever their
//! publisher sent. No sequence of bytes in them is an error of the connection.

use std::{borrow::Cow, str::FromStr};

use crate::{
    header::{HeaderMap, HeaderName, HeaderValue},
    StatusCode,
};

/// Most header lines that are read of one message. A block of `max_payload` bytes could hold hundreds of thousands.
const MAX_LINES: usize = 1000;
/// Of a longer block these are read as well, from its end: there the server adds what it says of a stored message.
const LAST_LINES: usize = 32;
/// Most flaws that are kept of one message.
const MAX_FLAWS: usize = 8;
/// Most bytes of a name in a flaw.
const MAX_NAME: usize = 64;

/// What a [`HeaderFlaw`] says of a block of which only the first lines were read.
pub const TOO_MANY_LINES: &str = "there are more than 1000 header lines";

/// One thing in a header block that could not be read as it stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFlaw {
    /// The name of the header, trimmed and cut, where the line has one; otherwise empty.
    pub name: String,
    /// What is wrong, for people.
    pub what: &'static str,
}

/// What stands in a header block.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) headers: HeaderMap,
    pub(crate) status: Option<StatusCode>,
    pub(crate) description: Option<String>,
}

/// A text as it came, with what is no UTF-8 replaced.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// The arguments of a protocol line: parted by spaces and tabs, and by nothing else that a subject may contain.
pub(crate) fn arguments(line: &str) -> Arguments<'_> {
    line.split([' ', '\t']).filter(|s| !s.is_empty())
}

/// Named, so that it borrows no longer than it is used.
type Arguments<'a> = std::iter::Filter<std::str::Split<'a, [char; 2]>, fn(&&'a str) -> bool>;

/// Reads a header block. `is_delivery`: it is of a message that a consumer delivers (its reply is an ack subject).
///
/// A status belongs to the server's own messages. In a stored message it is its publisher's text, and nobody may
/// mistake it for a word of the server: it is left out.
pub(crate) fn read(bytes: &[u8], is_delivery: bool) -> Block {
    let text = text(bytes);
    let is_utf8 = matches!(text, Cow::Borrowed(_));
    let mut block = Block::default();
    let mut flaws = Flaws::default();
    let mut lines = text.lines().peekable();
    let first = lines.next().unwrap_or_default();
    match first.strip_prefix("NATS/1.0") {
        Some(rest) => status(rest.trim(), &mut block, &mut flaws),
        None => flaws.add("", "the block does not begin with NATS/1.0"),
    }

    let all = text.lines().count();
    let mut n = 0;
    while let Some(line) = lines.next() {
        n += 1;
        if line.is_empty() {
            continue;
        }
        if n > MAX_LINES && n + LAST_LINES < all {
            continue;
        }
        let Some((name, value)) = line.split_once(':') else {
            flaws.add("", "a line has no colon");
            continue;
        };
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|s| s.starts_with(char::is_whitespace)) {
            n += 1;
            value.push_str(more);
        }
        value.truncate(value.trim_end().len());
        let key = match HeaderName::from_str(name) {
            Ok(key) if !name.is_empty() => key,
            _ => {
                flaws.add(name, "the name is not a header name");
                continue;
            }
        };
        if value.contains(['\r', '\n']) {
            flaws.add(name, "the value has a line break in it");
            value = value.replace(['\r', '\n'], " ");
        }
        if !is_utf8 && value.contains(char::REPLACEMENT_CHARACTER) {
            flaws.add(name, "the value is not UTF-8");
        }
        if let Ok(value) = HeaderValue::from_str(&value) {
            block.headers.append(key, value);
        }
    }

    let is_stored = is_delivery
        || (block.headers.get("Nats-Stream").is_some() && block.headers.get("Nats-Sequence").is_some());
    if all > MAX_LINES + LAST_LINES {
        flaws.must_have(TOO_MANY_LINES);
    }
    if is_stored && (block.status.is_some() || block.description.is_some()) {
        (block.status, block.description) = (None, None);
        flaws.add("", "the first line has a status");
    }
    block.headers.flaws = (!flaws.0.is_empty()).then(|| Box::new(flaws.0));
    block
}

fn status(rest: &str, block: &mut Block, flaws: &mut Flaws) {
    let (code, description) = rest.split_once(' ').unwrap_or((rest, ""));
    if code.is_empty() {
        return;
    }
    match code.parse() {
        Ok(code) => block.status = Some(code),
        Err(_) => return flaws.add("", "the first line has text behind NATS/1.0"),
    }
    let description = description.trim();
    block.description = (!description.is_empty()).then(|| description.to_owned());
}

#[derive(Default)]
struct Flaws(Vec<HeaderFlaw>);

impl Flaws {
    /// One that is kept, whatever else is.
    fn must_have(&mut self, what: &'static str) {
        self.0.truncate(MAX_FLAWS - 1);
        self.add("", what);
    }

    fn add(&mut self, name: &str, what: &'static str) {
        if self.0.len() < MAX_FLAWS {
            let name = name.trim();
            let end = (0..=name.len().min(MAX_NAME)).rev().find(|i| name.is_char_boundary(*i)).unwrap_or(0);
            self.0.push(HeaderFlaw { name: name[..end].to_owned(), what });
        }
    }
}
