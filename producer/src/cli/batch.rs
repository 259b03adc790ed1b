//! `surety batch`: many jobs, one JSON document a line, pipelined.

use std::{collections::VecDeque, io::IsTerminal, path::PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use surety_common::{
    broker::BrokerError,
    domain::{BatchId, QueueName, job::PAYLOAD_CAP},
    pace::Transient,
    wire::job::parse,
};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};

use super::{
    Context,
    enqueue::{Kin, explain},
    failure::Failure,
    members::Members,
    watch::batch::{Outcomes, follow},
};
use crate::{
    client::{Client, ClientError, Enqueued, JobBuilder, Pending},
    render::note,
};

/// Longest line that is read: the largest payload, escaped twice over, and the rest of a document.
const LINE_CAP: usize = 2 * PAYLOAD_CAP + 64 * 1024;
/// Most jobs under way, and the most bytes of them.
const WINDOW: usize = 4096;
const WINDOW_BYTES: usize = 32 << 20;

/// Enqueue a file of job documents, one JSON document a line
///
/// A line that is refused is reported with its number and does not stop the others (exit code 2 at the end). An
/// undeclared queue or a lost broker stops the batch; the counts then say exactly what was accepted. A document with an
/// `id` may be sent again: a job that is stored already is counted as duplicate. With --watch the command goes on until all
/// jobs have ended (exit code 1 unless all are done; Ctrl-C ends the watching, not the jobs).
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety batch jobs.ndjson --queue default --batch-id import-7\n  \
                        surety batch jobs.ndjson --watch\n  \
                        generate | surety batch - --ids")]
pub(super) struct BatchArgs {
    /// File of job documents; `-` reads stdin
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Queue to put them in
    #[arg(long, value_name = "NAME", default_value = "default")]
    queue: QueueName,
    /// Put into meta.batch of every job, and follow them all with `surety watch --batch NAME`
    #[arg(long, value_name = "NAME")]
    batch_id: Option<BatchId>,
    /// Follow the jobs until all have ended
    #[arg(long)]
    watch: bool,
    /// Print the id of each stored job before the counts
    #[arg(long)]
    ids: bool,
    #[command(flatten)]
    kin: Kin,
}

/// What became of the lines.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(super) struct Counts {
    /// Lines read, without empty ones.
    lines: u64,
    /// Stored by this batch.
    accepted: u64,
    /// Stored before under the same id.
    duplicate: u64,
    /// Never stored: a bad document, or the broker said no.
    refused: u64,
    /// The broker went away before it answered: stored or not. Send them again under their ids.
    uncertain: u64,
    /// First line that was not sent, when the batch stopped early.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<String>>,
    /// With --watch: how the jobs ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcomes: Option<Outcomes>,
}

impl Counts {
    fn human(&self) -> String {
        let Self { accepted, duplicate, refused, uncertain, .. } = self;
        let ids = self.ids.as_ref().map(|i| i.join("\n")).filter(|i| !i.is_empty());
        let mut text = ids.map(|i| format!("{i}\n")).unwrap_or_default();
        text.push_str(&format!("accepted {accepted}, duplicate {duplicate}, refused {refused}"));
        if *uncertain > 0 {
            text.push_str(&format!(", uncertain {uncertain}"));
        }
        text
    }
}

/// One line whose job is under way.
struct Sent {
    line: u64,
    /// The document had an id.
    is_named: bool,
    pending: Pending,
}

/// One batch under way.
struct Batch<'a> {
    client: &'a Client,
    queue: &'a QueueName,
    batch_id: Option<&'a BatchId>,
    members: Option<Members<'a>>,
    counts: Counts,
    window: VecDeque<Sent>,
    window_bytes: usize,
    bar: ProgressBar,
    /// Why nothing more is sent.
    stopped: Option<Failure>,
}

pub(super) async fn run(cx: &Context, args: BatchArgs) -> Result<(), Failure> {
    let (input, size): (Box<dyn AsyncRead + Send + Unpin>, Option<u64>) = if args.file.as_os_str() == "-" {
        (Box::new(tokio::io::stdin()), None)
    } else {
        let open = |e: std::io::Error| Failure::input(format!("cannot read {}: {e}", args.file.display()));
        let file = tokio::fs::File::open(&args.file).await.map_err(open)?;
        let size = file.metadata().await.map_err(open)?.len();
        (Box::new(file), Some(size))
    };
    let client = args.kin.tie(cx.client().await?)?;
    let mut batch = Batch {
        client: &client,
        queue: &args.queue,
        batch_id: args.batch_id.as_ref(),
        members: Members::start(&client, &args.queue, args.batch_id.as_ref(), args.watch).await?,
        counts: Counts { ids: args.ids.then(Vec::new), ..Counts::default() },
        window: VecDeque::new(),
        window_bytes: 0,
        bar: bar(size),
        stopped: None,
    };
    let read = batch.read(BufReader::with_capacity(256 * 1024, input)).await;
    while let Some(sent) = batch.window.pop_front() {
        batch.settle(sent).await;
    }
    batch.bar.finish_and_clear();
    let Batch { mut counts, stopped, members, .. } = batch;
    let followed = match members {
        Some(m) => m.finish(read.is_ok() && stopped.is_none()).await,
        None => None,
    };
    let mut watched = Ok(());
    if let (Some(followed), Ok(()), None) = (followed, &read, &stopped) {
        if !cx.screen.is_json {
            cx.screen.line(&counts.human())?;
        }
        match follow(cx.screen, client.broker(), followed).await {
            Ok(o) => counts.outcomes = Some(o),
            Err(f) => watched = Err(f),
        }
    }
    match &counts.outcomes {
        Some(o) if !cx.screen.is_json => o.show(cx.screen)?,
        _ if !cx.screen.is_json && watched.is_err() => {}
        _ => cx.screen.show(&counts, || counts.human())?,
    }
    read?;
    watched?;
    if let Some(line) = counts.stopped_at {
        note(&format!("stopped: line {line} and what follows was not sent"));
    }
    match stopped {
        Some(f) => Err(f),
        None if counts.refused > 0 => {
            Err(Failure::input(format!("{} of {} lines were refused", counts.refused, counts.lines)))
        }
        None => counts.outcomes.as_ref().map_or(Ok(()), Outcomes::verdict),
    }
}

/// A progress bar on a terminal, nothing elsewhere.
fn bar(size: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(n) => (ProgressBar::new(n), "{bar:30} {bytes}/{total_bytes} {msg} {elapsed}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {msg} {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(error) => {
            tracing::debug!(%error, "the progress bar keeps its own style");
            bar
        }
    }
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text,
    TooLong,
    End,
}

/// Reads one line without its break into `line`; a longer one than [`LINE_CAP`] is read past.
async fn next_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> std::io::Result<(Line, usize)> {
    line.clear();
    let (mut is_long, mut total) = (false, 0);
    loop {
        let chunk = input.fill_buf().await?;
        if chunk.is_empty() {
            let end = if total == 0 { Line::End } else { Line::Text };
            return Ok((if is_long { Line::TooLong } else { end }, total));
        }
        let (part, used, is_end) = match chunk.iter().position(|b| *b == b'\n') {
            Some(n) => (chunk.get(..n).unwrap_or_default(), n + 1, true),
            None => (chunk, chunk.len(), false),
        };
        if line.len() + part.len() > LINE_CAP {
            is_long = true;
            line.clear();
        }
        if !is_long {
            line.extend_from_slice(part);
        }
        input.consume(used);
        total += used;
        if is_end {
            return Ok((if is_long { Line::TooLong } else { Line::Text }, total));
        }
    }
}

impl Batch<'_> {
    /// Sends every line until the input ends or the batch is stopped.
    async fn read(&mut self, mut input: impl AsyncBufRead + Unpin) -> Result<(), Failure> {
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            let (kind, bytes) = next_line(&mut input, &mut line)
                .await
                .map_err(|e| Failure::input(format!("cannot read line {}: {e}", number + 1)))?;
            number += 1;
            self.bar.inc(bytes as u64);
            if kind == Line::End {
                return Ok(());
            }
            if kind == Line::Text && line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if self.stopped.is_some() {
                self.counts.stopped_at = Some(number);
                return Ok(());
            }
            self.counts.lines += 1;
            if kind == Line::TooLong {
                self.refuse(number, &format!("longer than {LINE_CAP} bytes"));
                continue;
            }
            self.send(number, &line).await;
            while self.window.len() >= WINDOW || self.window_bytes >= WINDOW_BYTES {
                let Some(sent) = self.window.pop_front() else { break };
                self.settle(sent).await;
            }
        }
    }

    async fn send(&mut self, number: u64, line: &[u8]) {
        let doc = match parse(line) {
            Ok(doc) => doc,
            Err(e) => return self.refuse(number, &e.to_string()),
        };
        let is_named = doc.id.is_some();
        let mut job = JobBuilder::from(doc);
        if let Some(b) = self.batch_id {
            job = job.meta("batch", b.as_str());
        }
        match self.client.send(self.queue, job).await {
            Ok(pending) => {
                self.window_bytes += pending.size();
                self.window.push_back(Sent { line: number, is_named, pending });
            }
            Err(e) => self.failed(number, e).await,
        }
    }

    /// Waits for one acknowledgement. After the batch stopped, nothing is repeated: what is under way is only counted.
    async fn settle(&mut self, Sent { line, is_named, pending }: Sent) {
        self.window_bytes = self.window_bytes.saturating_sub(pending.size());
        let stored =
            if self.stopped.is_some() { pending.stored_as_sent().await } else { pending.stored().await };
        match stored {
            Ok(Enqueued { id, is_duplicate, .. }) => {
                if is_duplicate {
                    self.counts.duplicate += 1;
                } else {
                    self.counts.accepted += 1;
                }
                if let Some(members) = &mut self.members {
                    members.add(&id, is_named, is_duplicate).await;
                }
                if let Some(ids) = &mut self.counts.ids {
                    ids.push(id.to_string());
                }
            }
            Err(e) => self.failed(line, e).await,
        }
        self.bar.set_message(format!("{} accepted", self.counts.accepted));
    }

    async fn failed(&mut self, number: u64, error: ClientError) {
        if let ClientError::Refused(e) = &error {
            return self.refuse(number, &e.to_string());
        }
        let is_uncertain = error.is_transient();
        let is_final = is_uncertain || matches!(error, ClientError::Broker(BrokerError::NoStream { .. }));
        if self.stopped.is_none() && is_final {
            self.stopped = Some(explain(self.client, self.queue, error).await);
            let text = self.stopped.as_ref().map(|f| f.text.clone()).unwrap_or_default();
            return self.count(number, &text, is_uncertain);
        }
        self.count(number, &error.to_string(), is_uncertain);
    }

    fn count(&mut self, number: u64, reason: &str, is_uncertain: bool) {
        if is_uncertain {
            self.counts.uncertain += 1;
            self.bar.suspend(|| note(&format!("line {number}: uncertain: {reason}")));
        } else {
            self.refuse(number, reason);
        }
    }

    fn refuse(&mut self, number: u64, reason: &str) {
        self.counts.refused += 1;
        self.bar.suspend(|| note(&format!("line {number}: refused: {reason}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8]) -> Vec<(Line, usize)> {
        // A tiny buffer, so that lines come in pieces.
        let mut reader = BufReader::with_capacity(7, input);
        let (mut out, mut line) = (Vec::new(), Vec::new());
        loop {
            let (kind, _) = next_line(&mut reader, &mut line).await.unwrap();
            if kind == Line::End {
                return out;
            }
            out.push((kind, line.len()));
        }
    }

    #[tokio::test]
    async fn lines_are_cut_at_breaks_and_the_last_needs_none() {
        let got = lines(b"abc\n\n{\"type\":\"a\"}\nlast").await;
        assert_eq!(got, [(Line::Text, 3), (Line::Text, 0), (Line::Text, 12), (Line::Text, 4)]);
        assert_eq!(lines(b"").await, []);
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused_without_being_kept() {
        let mut input = vec![b'x'; 2 * LINE_CAP];
        input.extend_from_slice(b"\nshort\n");
        assert_eq!(lines(&input).await, [(Line::TooLong, 0), (Line::Text, 5)]);
    }

    #[test]
    fn counts_read_well() {
        let c = Counts { accepted: 2, refused: 1, ..Counts::default() };
        assert_eq!(c.human(), "accepted 2, duplicate 0, refused 1");
    }
}
