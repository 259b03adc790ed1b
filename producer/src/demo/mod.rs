//! `surety demo`: one job for each file of a real tree, two workers, one of them killed in the middle; then a proof, from the
//! journal and from a computation of its own, that every job ended exactly once and with the right result.
//!
//! In reading order: [`run`] is the story, `tree` finds the files, `handlers` is the configuration of the workers, `bed` holds
//! servers and processes, `judge` is the proof, `report` its words.

mod bed;
mod handlers;
mod judge;
mod report;
mod run;
mod tree;

pub use report::Report;
pub use run::{DemoError, Plan, Watch, run};
