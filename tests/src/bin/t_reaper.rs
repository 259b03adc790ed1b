//! `surety-reaper` with fault points.

fn main() -> std::process::ExitCode {
    surety_reaper::cli::main()
}
