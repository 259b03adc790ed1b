//! The `surety` command and the client library against real servers. Every test has servers and folders of its own.

mod batch;
mod client;
mod dev;
mod dlq;
mod input;
mod jobs;
mod servers;
mod support;
