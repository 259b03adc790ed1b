//! The `surety` command and the client library against real servers. Every test has servers and folders of its own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy allows these in test functions only, not in what they call"
)]

mod batch;
mod client;
mod demo;
mod dev;
mod dlq;
mod guards;
mod input;
mod jobs;
mod later;
mod members;
mod purge;
mod reference;
mod schedules;
mod screen;
mod servers;
mod shell;
mod support;
mod terminal;
mod watch;
