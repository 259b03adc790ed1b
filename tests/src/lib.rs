//! Shared by the suites: real servers per test, real processes, and the checker of the journal.
//!
//! Test code may panic; the lints of the product are off here on purpose.
#![allow(clippy::disallowed_methods, reason = "test code reads the environment and the clock as it likes")]

pub mod chaos;
pub mod command;
pub mod guarded;
pub mod history;
pub mod nats_cluster;
pub mod process;
pub mod proxy;
pub mod raw_nats;
pub mod redis;
pub mod requester;
pub mod scrape;
pub mod witness;
pub mod world;
