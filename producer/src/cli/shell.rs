//! `surety completions` and `surety man`: for the shell around the command.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use serde::Serialize;
use surety_common::manual;

use super::failure::Failure;
use crate::render::Screen;

/// Print the script that completes commands and options in a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  surety completions bash > ~/.local/share/bash-completion/completions/surety\n  \
                  surety completions zsh > ~/.zfunc/_surety\n  \
                  surety completions fish > ~/.config/fish/completions/surety.fish"
)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Script {
    shell: String,
    script: String,
}

/// Prints the script for the command line `root`.
pub(super) fn completions(screen: Screen, args: &CompletionsArgs, mut root: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut root, "surety", &mut script);
    let script = text(script)?;
    let answer = Script { shell: args.shell.to_string(), script };
    screen.show(&answer, || answer.script.clone())
}

/// Print a manual page, or write all of them
///
/// Without --out the page of one command, of surety itself where none is named. surety-worker and surety-reaper print their
/// own with `surety-worker man` and `surety-reaper man`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  surety man dlq replay | man -l -\n  surety man --out /usr/local/share/man/man1"
)]
pub(super) struct ManArgs {
    /// The command, such as `dlq replay`
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    out: Option<PathBuf>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Page {
    /// Such as `surety-dlq-replay`.
    name: String,
    /// The page in roff.
    page: String,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Written {
    files: Vec<String>,
}

/// Prints or writes pages of the command line `root`.
pub(super) fn man(screen: Screen, args: &ManArgs, root: Command) -> Result<(), Failure> {
    let mut root = root.disable_help_subcommand(true);
    root.build();
    if let Some(folder) = &args.out {
        let mut files = Vec::new();
        write(&root, folder, &mut files)?;
        let written = Written { files };
        return screen.show(&written, || written.files.join("\n"));
    }
    let mut at = &root;
    for name in &args.command {
        at = at.find_subcommand(name).ok_or_else(|| {
            let known: Vec<&str> = at.get_subcommands().map(Command::get_name).collect();
            Failure::input(format!("{} has no command {name:?}; it has {}", at.get_name(), known.join(", ")))
        })?;
    }
    let page = render(at).map_err(|e| Failure::bug(format!("the page does not render: {e}")))?;
    let page = Page { name: name(at), page };
    screen.show(&page, || page.page.clone())
}

/// Writes the page of a command and of all below it.
fn write(command: &Command, folder: &Path, files: &mut Vec<String>) -> Result<(), Failure> {
    let path = folder.join(format!("{}.1", name(command)));
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, render(command)?))
        .map_err(|e| Failure::input(format!("cannot write {}: {e}", path.display())))?;
    files.push(path.display().to_string());
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| write(c, folder, files))
}

fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn render(command: &Command) -> std::io::Result<String> {
    let page = manual::page(command.clone())?;
    String::from_utf8(page).map_err(std::io::Error::other)
}

fn text(bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|e| Failure::bug(format!("the script is not UTF-8: {e}")))
}
