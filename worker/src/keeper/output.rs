//! Draining a handler's pipes with bounded memory: result, tails and control lines.

use std::collections::VecDeque;

use super::protocol::{MAX_LINE, MAX_RESULT, MAX_TAIL_LINES};

/// Bytes of a line kept in a tail.
const TAIL_LINE: usize = 4 << 10;

/// Text output of one attempt.
pub(super) struct Output {
    result: Vec<u8>,
    result_cap: usize,
    limit: u64,
    pub(super) stdout_total: u64,
    pub(super) stderr_total: u64,
    stdout_tail: Tail,
    stderr_tail: Tail,
}

/// Which of the two text streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Output {
    pub(super) fn new(result_cap: usize, limit: u64, tail_lines: usize) -> Self {
        let lines = tail_lines.min(MAX_TAIL_LINES);
        Self {
            result: Vec::new(),
            result_cap: result_cap.min(MAX_RESULT),
            limit,
            stdout_total: 0,
            stderr_total: 0,
            stdout_tail: Tail::new(lines),
            stderr_tail: Tail::new(lines),
        }
    }

    /// Takes what was read. Over the limit the result gets no more, while the totals and the tails
    /// (bounded by themselves, and the end of an output is where its error stands) go on.
    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match stream {
            Stream::Stdout => {
                let left = self.limit.saturating_sub(self.stdout_total + self.stderr_total);
                let room = self.result_cap.saturating_sub(self.result.len());
                let keep = bytes.len().min(room).min(usize::try_from(left).unwrap_or(usize::MAX));
                self.result.extend_from_slice(bytes.get(..keep).unwrap_or_default());
                self.stdout_total += count;
                self.stdout_tail.take(bytes);
            }
            Stream::Stderr => {
                self.stderr_total += count;
                self.stderr_tail.take(bytes);
            }
        }
    }

    pub(super) fn truncated(&self) -> bool {
        self.stdout_total.saturating_add(self.stderr_total) > self.limit
    }

    /// Result, tail of stdout, tail of stderr.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<String>, Vec<String>) {
        (self.result, self.stdout_tail.finish(), self.stderr_tail.finish())
    }
}

/// The last lines of a stream.
struct Tail {
    lines: VecDeque<Vec<u8>>,
    max: usize,
    partial: Vec<u8>,
    /// Something stands before the next newline, be it an over-long line of which no more is kept.
    open: bool,
}

impl Tail {
    fn new(max: usize) -> Self {
        Self { lines: VecDeque::new(), max, partial: Vec::new(), open: false }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.max == 0 {
            return;
        }
        // Only the last lines of a chunk can survive it: find them from behind, so that a flood
        // of short lines costs a scan and no allocations.
        let mut newlines = bytes.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
        let rest = match newlines.nth(self.max) {
            Some((at, _)) => {
                self.lines.clear();
                self.partial.clear();
                self.open = false;
                bytes.get(at + 1..).unwrap_or_default()
            }
            None => bytes,
        };
        let mut pieces = rest.split(|b| *b == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = TAIL_LINE.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            self.open |= !piece.is_empty();
            if pieces.peek().is_some() {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        if self.lines.len() >= self.max {
            self.lines.pop_front();
        }
        self.lines.push_back(std::mem::take(&mut self.partial));
        self.open = false;
    }

    fn finish(mut self) -> Vec<String> {
        if self.open {
            self.close();
        }
        self.lines.iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect()
    }
}

/// Splits the control pipe into lines and cuts the over-long. Empty lines are dropped.
#[derive(Default)]
pub(super) struct ControlLines {
    partial: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
}

impl ControlLines {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let mut pieces = bytes.split(|b| *b == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = MAX_LINE.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            if pieces.peek().is_some() {
                self.end();
            }
        }
    }

    /// Makes a last line without newline a line.
    pub(super) fn end(&mut self) {
        if !self.partial.is_empty() {
            self.ready.push_back(std::mem::take(&mut self.partial));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_lines_over_chunk_borders() {
        let mut tail = Tail::new(2);
        tail.take(b"a\nb\nc");
        tail.take(b"c\n\nd");
        assert_eq!(tail.finish(), ["", "d"]);
        let mut tail = Tail::new(2);
        tail.take(b"1\n2\n3\n4\n5\n");
        assert_eq!(tail.finish(), ["4", "5"]);
        let mut tail = Tail::new(3);
        tail.take(&[b'x'; 5000]);
        tail.take(b"y\nz");
        let lines = tail.finish();
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [4096, 1]);
    }

    #[test]
    fn result_is_cut_at_cap_and_limit() {
        let mut output = Output::new(4, 100, 1);
        output.take(Stream::Stdout, b"abcdef");
        assert!(!output.truncated());
        output.take(Stream::Stderr, &[b'e'; 100]);
        assert!(output.truncated());
        assert_eq!(output.stdout_total, 6);
        assert_eq!(output.finish().0, b"abcd");
        let mut output = Output::new(10, 3, 1);
        output.take(Stream::Stdout, b"abcdef");
        assert!(output.truncated());
        assert_eq!(output.finish().0, b"abc");
    }

    #[test]
    fn control_lines_are_split_and_cut() {
        let mut lines = ControlLines::default();
        lines.take(b"{\"a\":1}\n\n{\"b\"");
        lines.take(b":2}\n");
        lines.take(&vec![b'x'; MAX_LINE + 5]);
        lines.end();
        assert_eq!(lines.pop().as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(lines.pop().as_deref(), Some(&b"{\"b\":2}"[..]));
        assert_eq!(lines.pop().map(|l| l.len()), Some(MAX_LINE));
        assert!(lines.is_empty());
    }
}
