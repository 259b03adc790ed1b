//! The `surety` command.

/// Every job is a handful of short-lived allocations on several threads, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    surety_producer::cli::main()
}
