//! The `surety` command.

fn main() -> std::process::ExitCode {
    surety_producer::cli::main()
}
