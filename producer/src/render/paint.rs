//! Colour: on a terminal that shows it, unless `NO_COLOR` or `--color never` says otherwise.

use anstyle::{AnsiColor, Style};
use clap::ColorChoice;

/// What a colour means. Nothing is told by colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Ended well.
    Good,
    /// Failed.
    Bad,
    /// Needs a look.
    Warn,
    /// Under way.
    Live,
}

impl Tone {
    /// The tone of a job's status.
    pub(crate) fn of_status(status: &str) -> Option<Self> {
        Some(match status {
            "done" => Self::Good,
            "failed" | "timed_out" => Self::Bad,
            "cancelled" | "retry_wait" | "deferred" | "waiting_input" => Self::Warn,
            "running" => Self::Live,
            _ => return None,
        })
    }

    fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green,
            Self::Bad => AnsiColor::Red,
            Self::Warn => AnsiColor::Yellow,
            Self::Live => AnsiColor::Cyan,
        }
        .on_default()
    }

    /// The text between the codes that colour it.
    pub(super) fn paint(self, text: &str) -> String {
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// Whether to colour what goes to stdout.
pub(super) fn is_wanted(choice: ColorChoice, is_terminal: bool) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            is_terminal && !anstyle_query::no_color() && anstyle_query::term_supports_color()
        }
    }
}
