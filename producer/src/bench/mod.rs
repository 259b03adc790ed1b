//! `surety bench`: what every promise costs, as ratios to the plain broker, measured in the same run on servers of its own.

mod report;
mod run;

pub use report::{Best, Report};
pub use run::{BenchError, Plan, bench};
