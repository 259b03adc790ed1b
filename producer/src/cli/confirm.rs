//! Consent to what is hard to take back: a person at a terminal is asked, a program says `--yes`.
//!
//! The command shows what it is about to do first (its preview is data, on stdout), then calls [`Consent::to`].

use std::io::{IsTerminal, Write};

use clap::Args;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use super::failure::Failure;
use crate::render::Screen;

/// The `--yes` of a command, to flatten into its arguments.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Consent {
    /// Do it without asking
    #[arg(short, long)]
    yes: bool,
}

impl Consent {
    /// `--yes` was given: there is no need to show what would happen.
    pub(super) fn is_given(self) -> bool {
        self.yes
    }

    /// Returns when the step may be taken. `would` is the step as a fact with its count: `3 jobs would be replayed`.
    ///
    /// Asks on stderr where both stdin and stderr are a terminal and no JSON is wanted.
    /// Errors: exit code 1 when the answer is no; 2 when nobody can be asked and `--yes` was not given.
    pub(super) async fn to(self, screen: Screen, would: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        let is_asked = !screen.is_json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if !is_asked {
            return Err(Failure::input(format!("nothing was done: {would}; repeat with --yes")));
        }
        question(would).map_err(|e| Failure::no(format!("nothing was done: cannot ask: {e}")))?;
        // Asynchronous, so that connections stay alive while a person thinks.
        answer(BufReader::new(tokio::io::stdin())).await
    }
}

fn question(would: &str) -> std::io::Result<()> {
    let mut err = std::io::stderr().lock();
    write!(err, "{would}. Go on? [y/N] ")?;
    err.flush()
}

/// Reads one line; only `y` and `yes` are consent.
async fn answer(input: impl AsyncBufRead + Unpin) -> Result<(), Failure> {
    let line = input.lines().next_line().await.map_err(|e| Failure::no(format!("nothing was done: {e}")))?;
    match line.unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::no("nothing was done")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::failure::Exit, *};

    #[tokio::test]
    async fn only_yes_is_consent() {
        for text in ["y\n", "YES\n", " yes \r\n", "y"] {
            assert!(answer(text.as_bytes()).await.is_ok(), "{text:?}");
        }
        for text in ["", "\n", "n\n", "yess\n", "no\nyes\n"] {
            assert_eq!(answer(text.as_bytes()).await.unwrap_err().exit, Exit::No, "{text:?}");
        }
    }
}
