//! `surety demo`.

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Context, failure::Failure};
use crate::{
    demo::{DemoError, Plan, Watch, run as run_demo},
    render::note,
};

/// Run thousands of real jobs, kill a worker in the middle, and prove that nothing was lost
///
/// Starts private servers, a reaper and two workers, enqueues one job for each file of a tree (digests by sha256sum, and by a
/// script that reports progress), kills one worker with KILL while its handlers run, and waits for the rest. At the end every
/// digest is compared with one computed here, and the journal must show exactly one outcome of every job. Exit code 0 means
/// that all of it is proved. Servers and workers of your own are not touched.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety demo --tree /usr/include --files 3000")]
pub(super) struct DemoArgs {
    /// Folder with the files [default: the first that has enough of cargo's sources, the Rust toolchain's documentation,
    /// /usr/share, /usr/include]
    #[arg(long, value_name = "FOLDER")]
    tree: Option<PathBuf>,
    /// Files, and so jobs
    #[arg(long, value_name = "N", default_value_t = 2500, value_parser = clap::value_parser!(u32).range(50..=100_000))]
    files: u32,
    /// Keep data and logs in this folder, which must be new or empty [default: a temporary one that is removed]
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

pub(super) async fn run(cx: &Context, a: DemoArgs) -> Result<(), Failure> {
    let plan = Plan { tree: a.tree, files: a.files as usize, keep: a.keep };
    let watcher = Watcher::new(plan.files);
    let outcome = run_demo(&plan, &watcher).await;
    watcher.bar.finish_and_clear();
    let report = outcome?;
    cx.screen.show(&report, || report.table())?;
    if let Some(folder) = &plan.keep {
        let folder = folder.display();
        cx.screen
            .note(&format!("kept: surety dev --data {folder} --config {folder}/surety.toml --workers 0"));
    }
    if report.is_proved() {
        return Ok(());
    }
    Err(Failure::no(format!("the demo proves nothing:\n  {}", report.figures.problems.join("\n  "))))
}

impl From<DemoError> for Failure {
    fn from(e: DemoError) -> Self {
        match e {
            DemoError::Server(e) => e.into(),
            DemoError::Process(e) => e.into(),
            DemoError::Connect(e) => e.into(),
            DemoError::Config(e) => e.into(),
            DemoError::Tree(text) => Self::input(text),
            other => Self::no(other.to_string()),
        }
    }
}

/// A bar on a terminal; elsewhere a line for every tenth of the jobs.
struct Watcher {
    bar: ProgressBar,
    is_terminal: bool,
    tenths: AtomicUsize,
}

impl Watcher {
    fn new(files: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(files as u64) } else { ProgressBar::hidden() };
        let bar = match ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {elapsed}") {
            Ok(style) => bar.with_style(style),
            Err(error) => {
                tracing::debug!(%error, "the progress bar keeps its own style");
                bar
            }
        };
        Self { bar, is_terminal, tenths: AtomicUsize::new(0) }
    }
}

impl Watch for Watcher {
    fn say(&self, line: &str) {
        self.bar.suspend(|| note(line));
    }

    fn ended(&self, ended: usize, of: usize) {
        self.bar.set_position(ended as u64);
        let tenths = ended * 10 / of.max(1);
        if !self.is_terminal && self.tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
            note(&format!("{ended} of {of} jobs have ended"));
        }
    }
}
