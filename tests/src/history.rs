//! The checker of the journal, which `surety demo` uses as well.

pub use surety_common::history::{History, JobHistory, Violation};
