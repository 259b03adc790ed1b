//! What a process says of itself: its log ([`log`]), its metrics ([`metrics`], [`labels`], [`document`]), and whether it is
//! alive and ready ([`mod@health`]), over HTTP ([`server`], asked by `ask`).
//!
//! One registry and one log for each process. Deliberately absent: pushing metrics anywhere; a process is scraped.

mod ask;
pub mod document;
pub mod family;
pub mod health;
pub mod labels;
pub mod listen;
pub mod log;
pub mod metrics;
mod options;
pub mod server;

pub use ask::{arguments_after, health};
pub use listen::Listen;
pub use log::{LogFormat, last_words, read_filter, set_filter, start};
pub use options::TelemetryOptions;
pub use server::{ListenError, Server};
