//! `surety-worker`: see [`surety_worker::cli`].

fn main() -> std::process::ExitCode {
    surety_worker::cli::main()
}
