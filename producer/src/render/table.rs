//! Tables that fit.
//!
//! A table that is wider than the terminal cuts its last column, which by convention is the wordiest. Where that is not
//! enough it folds: each row becomes a block of `name  value` lines, and nothing is cut. Ids are never shortened, because
//! people copy them. Where no terminal is, nothing is cut to fit and nothing folds.

use comfy_table::{Cell, ContentArrangement, Table, presets};
use textwrap::{Options, WordSplitter};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{Look, Row, paint::Tone, printable};

/// Columns between two cells.
const GAP: usize = 2;
/// A last column is not cut below this.
const CUT_FLOOR: usize = 10;
/// Values are not wrapped into fewer columns than this: the terminal's own line breaks are better then.
const WRAP_FLOOR: usize = 12;

/// The rows under their headings; `(none)` without rows.
pub(super) fn table<R: Row>(rows: &[R], look: Look) -> String {
    if rows.is_empty() {
        return "(none)".into();
    }
    let mut cells: Vec<Vec<String>> =
        rows.iter().map(|r| r.cells().iter().map(|c| printable(c)).collect()).collect();
    if let Some(width) = look.width
        && !fits(R::HEADS, &mut cells, width)
    {
        return records(R::HEADS, &cells, width);
    }
    let mut t = Table::new();
    t.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if look.is_coloured {
        t.enforce_styling();
    } else {
        t.force_no_tty();
    }
    t.set_header(R::HEADS.iter().map(|h| Cell::new(h).add_attribute(comfy_table::Attribute::Bold)));
    for (row, cells) in rows.iter().zip(cells) {
        let tone = row.tone();
        t.add_row(cells.into_iter().enumerate().map(|(n, text)| match tone {
            Some((at, tone)) if at == n => Cell::new(text).fg(tone.table_colour()),
            _ => Cell::new(text),
        }));
    }
    let last = R::HEADS.len().saturating_sub(1);
    for (n, column) in t.column_iter_mut().enumerate() {
        column.set_padding((0, if n < last { GAP as u16 } else { 0 }));
    }
    t.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Makes the table fit by cutting its last column; `false`: it cannot.
fn fits(heads: &[&str], cells: &mut [Vec<String>], width: usize) -> bool {
    let Some((last_head, heads)) = heads.split_last() else { return true };
    let column = |n: usize, head: &str| {
        cells.iter().filter_map(|r| r.get(n)).map(|c| c.width()).fold(head.width(), usize::max)
    };
    let others: usize = heads.iter().enumerate().map(|(n, h)| column(n, h) + GAP).sum();
    let last = column(heads.len(), last_head);
    let Some(room) = width.checked_sub(others) else { return false };
    if room < last.min(CUT_FLOOR.max(last_head.width())) {
        return false;
    }
    for cell in cells.iter_mut().filter_map(|r| r.last_mut()) {
        *cell = cut(cell, room);
    }
    true
}

/// The text in at most `width` columns, with an ellipsis where it was cut.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let mut out = String::new();
    for c in text.chars() {
        let Some(rest) = left.checked_sub(c.width().unwrap_or(0)) else { break };
        left = rest;
        out.push(c);
    }
    out.push('…');
    out
}

/// Each row as a block of its own.
fn records(heads: &[&str], cells: &[Vec<String>], width: usize) -> String {
    let names: Vec<String> = heads.iter().map(|h| h.to_lowercase()).collect();
    let blocks = cells.iter().map(|row| {
        let entries: Vec<(&str, Option<String>)> = names
            .iter()
            .zip(row)
            .map(|(n, v)| (n.as_str(), Some(v.clone()).filter(|v| !v.is_empty())))
            .collect();
        facts(&entries, Some(width))
    });
    blocks.collect::<Vec<_>>().join("\n\n")
}

/// `name  value` lines for one thing; entries without a value are left out. Long values go on below themselves.
pub(super) fn facts(entries: &[(&str, Option<String>)], width: Option<usize>) -> String {
    let name_width = entries.iter().filter(|(_, v)| v.is_some()).map(|(n, _)| n.width()).max().unwrap_or(0);
    let lines = entries.iter().filter_map(|(name, value)| {
        let value = printable(value.as_ref()?);
        let first = format!("{name:name_width$}  ");
        let indent = " ".repeat(first.width());
        Some(match width.filter(|w| *w >= indent.len() + WRAP_FLOOR) {
            Some(w) if first.width() + value.width() > w => {
                let options = Options::new(w)
                    .initial_indent(&first)
                    .subsequent_indent(&indent)
                    .word_splitter(WordSplitter::NoHyphenation);
                textwrap::fill(&value, options)
            }
            _ => format!("{first}{value}"),
        })
    });
    lines.collect::<Vec<_>>().join("\n")
}

impl Tone {
    fn table_colour(self) -> comfy_table::Color {
        match self {
            Self::Good => comfy_table::Color::DarkGreen,
            Self::Bad => comfy_table::Color::DarkRed,
            Self::Warn => comfy_table::Color::DarkYellow,
            Self::Live => comfy_table::Color::DarkCyan,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    #[derive(Debug, Serialize)]
    struct Thing(String, u32, String);

    impl Row for Thing {
        const HEADS: &'static [&'static str] = &["NAME", "COUNT", "MESSAGE"];
        fn cells(&self) -> Vec<String> {
            vec![self.0.clone(), self.1.to_string(), self.2.clone()]
        }
        fn tone(&self) -> Option<(usize, Tone)> {
            (self.1 > 10).then_some((1, Tone::Bad))
        }
    }

    fn plain(width: usize) -> Look {
        Look { width: Some(width), is_coloured: false }
    }

    #[test]
    fn a_wide_table_cuts_its_last_column_and_a_wider_one_folds() {
        let rows = [
            Thing("01JD0000000000000000000000".into(), 7, "no such host: example.org".into()),
            Thing("b".into(), 22, String::new()),
        ];
        let whole = "NAME                        COUNT  MESSAGE\n\
                     01JD0000000000000000000000  7      no such host: example.org\n\
                     b                           22";
        assert_eq!(table(&rows, Look { width: None, is_coloured: false }), whole);
        assert_eq!(table(&rows, plain(60)), whole);
        assert_eq!(
            table(&rows, plain(48)),
            "NAME                        COUNT  MESSAGE\n\
             01JD0000000000000000000000  7      no such host…\n\
             b                           22"
        );
        assert_eq!(
            table(&rows, plain(40)),
            "name     01JD0000000000000000000000\ncount    7\nmessage  no such host: example.org\n\n\
             name   b\ncount  22"
        );
        assert_eq!(
            table(&rows, plain(30)).lines().take(5).collect::<Vec<_>>(),
            [
                "name     01JD00000000000000000",
                "         00000",
                "count    7",
                "message  no such host:",
                "         example.org"
            ]
        );
    }

    #[test]
    fn only_the_named_cell_is_coloured_and_only_if_wanted() {
        let rows = [Thing("a".into(), 22, "m".into()), Thing("b".into(), 1, "m".into())];
        let text = table(&rows, Look { width: None, is_coloured: true });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("\x1b[1m") && lines[1].contains("\x1b["), "{text:?}");
        assert!(!lines[2].contains('\x1b'), "{text:?}");
        assert!(!table(&rows, plain(80)).contains('\x1b'));
    }

    #[test]
    fn wide_characters_count_as_two() {
        assert_eq!(cut("日本語の仕事", 12), "日本語の仕事");
        assert_eq!(cut("日本語の仕事", 8), "日本語…");
        assert_eq!(cut("日本語の仕事", 7), "日本語…");
        assert_eq!(cut("e\u{301}clair", 6), "e\u{301}clair");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_a_terminal_of_40_columns_or_more(
            rows in prop::collection::vec(("\\PC{0,60}", any::<u32>(), "\\PC{0,120}"), 1..5),
            width in 40usize..200,
            is_coloured: bool,
        ) {
            let rows: Vec<Thing> = rows.into_iter().map(|(a, b, c)| Thing(a, b, c)).collect();
            for line in table(&rows, Look { width: Some(width), is_coloured }).lines() {
                // What is left between the codes.
                let shown: String = line.split('\x1b').map(|part| match part.split_once('m') {
                    Some((code, rest)) if code.starts_with('[') => rest,
                    _ => part,
                }).collect();
                prop_assert!(shown.width() <= width, "{:?} has {} columns", line, shown.width());
            }
        }
    }
}
