//! `surety bench`: what every promise costs, as ratios to the plain broker, measured in the same run on servers of its own.

mod bed;
mod open;
mod report;
mod run;

pub use open::{OpenReport, open_records};
pub use report::{Best, Report};
pub use run::{BenchError, Plan, bench};
