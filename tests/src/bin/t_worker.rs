//! `surety-worker` with fault points.

fn main() -> std::process::ExitCode {
    surety_worker::cli::main()
}
