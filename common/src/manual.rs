//! Manual pages, from what `--help` says.

use std::{
    io::{self, Write},
    process::ExitCode,
};

/// The page of one command in roff, for section 1 of the manual.
pub fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).manual("Surety").render(&mut text)?;
    Ok(text)
}

/// Prints the page: what `surety-worker man` and `surety-reaper man` do. Exit code 1 when stdout cannot be written.
pub fn print(command: clap::Command) -> ExitCode {
    let written = page(command).and_then(|text| io::stdout().lock().write_all(&text));
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}
