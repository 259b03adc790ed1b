//! Output: tables for people and JSON for programs, from the same rows.
//!
//! Data goes to stdout through one locked handle, everything else to stderr. A reader that went away (`surety … | head`)
//! ends the command quietly.

mod paint;
mod table;

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
};

use clap::ColorChoice;
use serde::Serialize;
use tokio::{io::Interest, net::unix::pipe::Sender};

use crate::cli::failure::Failure;
pub(crate) use paint::Tone;
pub(crate) use table::cut;

/// One line of a table. The last column is the one that a narrow terminal cuts: put the wordiest there.
pub(crate) trait Row: Serialize {
    /// Headings, one for each cell.
    const HEADS: &'static [&'static str];
    /// The cells, as people read them.
    fn cells(&self) -> Vec<String>;
    /// The cell to colour, by its place, and how.
    fn tone(&self) -> Option<(usize, Tone)> {
        None
    }
}

/// How text for people looks.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Columns of the terminal; `None` where stdout is none.
    width: Option<usize>,
    is_coloured: bool,
}

/// Where and how a command writes its data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) is_json: bool,
    look: Look,
}

impl Screen {
    /// The stdout of this process.
    pub(crate) fn of_stdout(is_json: bool, color: ColorChoice) -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        // A terminal that does not know its size says 0.
        let size = is_terminal.then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
        let width = size.map(|s| usize::from(s.ws_col)).filter(|w| *w > 0);
        Self { is_json, look: Look { width, is_coloured: paint::is_wanted(color, is_terminal) } }
    }

    /// Columns of the terminal; `None` where stdout is none.
    pub(crate) fn width(self) -> Option<usize> {
        self.look.width
    }

    /// Returns when nobody reads stdout any more: a pipe whose other end was closed. Never for other kinds of stdout.
    pub(crate) async fn reader_gone(self) {
        // A copy of the descriptor, of which only errors are watched: nothing is written through it.
        let pipe = io::stdout().as_fd().try_clone_to_owned().and_then(Sender::from_owned_fd_unchecked);
        let is_gone = match &pipe {
            Ok(p) => p.ready(Interest::ERROR).await.is_ok(),
            // A file, for example.
            Err(_) => false,
        };
        if !is_gone {
            std::future::pending::<()>().await;
        }
    }

    /// The text in its colour, where colours are wanted.
    pub(crate) fn paint(self, tone: Option<Tone>, text: &str) -> String {
        match tone {
            Some(t) if self.look.is_coloured => t.paint(text),
            _ => text.to_owned(),
        }
    }

    /// Writes a value as one line of JSON, or the text made by `human`.
    pub(crate) fn show<T: Serialize + ?Sized>(
        self,
        value: &T,
        human: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.is_json { write(&json(value)?) } else { self.line(&human()) }
    }

    /// Writes rows as a table; as JSON it is the given value, which holds them.
    pub(crate) fn table<T: Serialize, R: Row>(self, value: &T, rows: &[R]) -> Result<(), Failure> {
        self.show(value, || table::table(rows, self.look))
    }

    /// Rows as a table that fits the terminal, for a text that has more than it.
    pub(crate) fn rows<R: Row>(self, rows: &[R]) -> String {
        table::table(rows, self.look)
    }

    /// One line of a stranger's text, cut to the terminal.
    pub(crate) fn fit(self, text: &str) -> String {
        let text = printable(text);
        self.look.width.map_or_else(|| text.clone(), |w| cut(&text, w))
    }

    /// [`facts`] that fit the terminal.
    pub(crate) fn facts(self, entries: &[(&str, Option<String>)]) -> String {
        table::facts(entries, self.look.width)
    }

    /// Writes text and a line break; an empty text writes nothing.
    pub(crate) fn line(self, text: &str) -> Result<(), Failure> {
        if text.is_empty() { Ok(()) } else { write(&harmless(text)) }
    }

    /// Writes a remark to stderr.
    pub(crate) fn note(self, text: &str) {
        note(text);
    }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.trim_end_matches('\n').as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(Failure::stdout)
}

/// The last look at everything that is not JSON: whatever a stranger's text stands in it, the cursor stays where it is. Line breaks,
/// tabs and the colours of our own remain; every other control character is shown as the picture of it, or as U+FFFD.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_fine = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(is_fine) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let n = colour(rest).unwrap_or(c.len_utf8());
        let (here, after) = rest.split_at(n);
        match u32::from(c) {
            _ if n > c.len_utf8() || is_fine(c) => out.push_str(here),
            code @ 0..=0x1f => out.push(char::from_u32(0x2400 + code).unwrap_or(char::REPLACEMENT_CHARACTER)),
            _ => out.push(char::REPLACEMENT_CHARACTER),
        }
        rest = after;
    }
    Cow::Owned(out)
}

/// Length of the colour sequence (`ESC [ … m`) that a text begins with.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers.get(end..)?.starts_with('m').then_some(end + 3)
}

/// Writes a line to stderr. A closed stderr is nobody's loss.
pub(crate) fn note(text: &str) {
    if let Err(error) = writeln!(io::stderr().lock(), "{}", harmless(text)) {
        tracing::trace!(%error, "stderr is closed");
    }
}

/// One line of JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::bug(format!("the answer does not encode: {e}")))
}

/// `name  value` lines for one thing; entries without a value are left out.
pub(crate) fn facts(entries: &[(&str, Option<String>)]) -> String {
    table::facts(entries, None)
}

/// Text of a stranger, without what would move the cursor or recolour the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_moves_the_cursor() {
        assert_eq!(harmless("plain\tü\n"), "plain\tü\n");
        assert_eq!(harmless("\u{1b}[31mred\u{1b}[0m"), "\u{1b}[31mred\u{1b}[0m");
        assert_eq!(harmless("a\u{1b}[2Jb\u{1b}]0;t\u{7}\rc"), "a␛[2Jb␛]0;t␇␍c");
        assert_eq!(harmless("\u{9b}2J\u{7f}\u{1b}"), "\u{fffd}2J\u{fffd}␛");
    }

    #[test]
    fn facts_leave_out_what_is_not_set() {
        let text = facts(&[("id", Some("a".into())), ("started", None), ("status", Some("done".into()))]);
        assert_eq!(text, "id      a\nstatus  done");
        assert_eq!(facts(&[("id", Some("a\x1b[31mb\nc".into()))]), "id  a [31mb c");
    }
}
