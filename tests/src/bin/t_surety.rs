//! `surety`, for tests that need workers beside it.

fn main() -> std::process::ExitCode {
    surety_producer::cli::main()
}
