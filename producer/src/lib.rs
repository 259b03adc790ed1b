//! The producer side of Surety, in reading order:
//!
//! 1. [`client`]: enqueue jobs from Rust, one by one or pipelined.
//! 2. [`cli`]: the `surety` command, one file per noun.
//! 3. [`mod@bench`]: what every promise costs, against the plain broker.
//! 4. [`demo`]: a worker is killed among thousands of jobs, and the journal proves that nothing was lost.
//! 5. [`dev`]: private servers and processes for development and tests.
//!
//! Deliberately absent: running jobs (worker) and repairing them (reaper).

pub mod bench;
pub mod cli;
pub mod client;
pub mod demo;
pub mod dev;
mod render;
