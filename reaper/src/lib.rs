//! The reaper: reconciles what got stuck, one small rule at a time. Several may run; every action is re-checked and
//! committed atomically by the store, so two of them never act twice on one thing.

pub mod cli;
mod control;
mod fleet;
mod leftover;
mod meter;
mod once;
mod rule;
mod rules;
mod service;
mod sight;

pub use once::{Pass, PassError, once};
pub use rule::{Context, Done, Rule, Verdict};
pub use service::{Reaper, StartError};
