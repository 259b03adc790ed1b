//! `surety-reaper`: see [`surety_reaper::cli`].

fn main() -> std::process::ExitCode {
    surety_reaper::cli::main()
}
