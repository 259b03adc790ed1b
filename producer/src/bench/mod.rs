//! `surety bench`: what every promise costs, as ratios to the plain broker, measured in the same run on servers of its own.

mod bed;
mod guards;
mod open;
mod report;
mod run;

pub use guards::{GuardReport, guards};
pub use open::{OpenReport, open_records};
pub use report::{Best, Report};
pub use run::{BenchError, Plan, bench};
