//! Output: tables for people and JSON for programs, from the same rows.
//!
//! Data goes to stdout through one locked handle, everything else to stderr. A reader that went away (`surety … | head`)
//! ends the command quietly.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::failure::Failure;

/// One line of a table.
pub(crate) trait Row: Serialize {
    /// Headings, one for each cell.
    const HEADS: &'static [&'static str];
    /// The cells, as people read them.
    fn cells(&self) -> Vec<String>;
}

/// Where and how a command writes its data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) is_json: bool,
}

impl Screen {
    /// Writes a value as one line of JSON, or the text made by `human`.
    pub(crate) fn show<T: Serialize + ?Sized>(
        self,
        value: &T,
        human: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.is_json { self.line(&json(value)?) } else { self.line(&human()) }
    }

    /// Writes rows as a table; as JSON it is the given value, which holds them.
    pub(crate) fn table<T: Serialize, R: Row>(self, value: &T, rows: &[R]) -> Result<(), Failure> {
        self.show(value, || table(rows))
    }

    /// Writes text and a line break; an empty text writes nothing.
    pub(crate) fn line(self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.trim_end_matches('\n').as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(Failure::stdout)
    }

    /// Writes a remark to stderr.
    pub(crate) fn note(self, text: &str) {
        note(text);
    }
}

/// Writes a line to stderr. A closed stderr is nobody's loss.
pub(crate) fn note(text: &str) {
    if let Err(error) = writeln!(io::stderr().lock(), "{text}") {
        tracing::trace!(%error, "stderr is closed");
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::bug(format!("the answer does not encode: {e}")))
}

fn table<R: Row>(rows: &[R]) -> String {
    if rows.is_empty() {
        return "(none)".into();
    }
    let mut t = Table::new();
    t.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    t.set_header(R::HEADS);
    for row in rows {
        t.add_row(row.cells().iter().map(|c| printable(c)));
    }
    t.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `name  value` lines for one thing; entries without a value are left out.
pub(crate) fn facts(entries: &[(&str, Option<String>)]) -> String {
    let width = entries.iter().filter(|(_, v)| v.is_some()).map(|(n, _)| n.len()).max().unwrap_or(0);
    let lines = entries
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|v| format!("{name:width$}  {}", printable(v))));
    lines.collect::<Vec<_>>().join("\n")
}

/// Text of a stranger, without what would move the cursor or recolour the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pair(&'static str, u32);

    impl Row for Pair {
        const HEADS: &'static [&'static str] = &["NAME", "N"];
        fn cells(&self) -> Vec<String> {
            vec![self.0.into(), self.1.to_string()]
        }
    }

    #[test]
    fn a_table_has_its_headings_and_no_control_characters() {
        let text = table(&[Pair("a\x1b[31mb\nc", 1), Pair("long name", 22)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("NAME") && !text.contains('\x1b'));
        assert_eq!(table::<Pair>(&[]), "(none)");
    }

    #[test]
    fn facts_leave_out_what_is_not_set() {
        let text = facts(&[("id", Some("a".into())), ("started", None), ("status", Some("done".into()))]);
        assert_eq!(text, "id      a\nstatus  done");
    }
}
