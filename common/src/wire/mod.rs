//! Documents that cross a process boundary: the job a producer publishes, the events of the journal, headers.
//!
//! Wire documents change only by addition. The schemas in `schema/` are generated from these types ([`schema`]).

pub mod event;
pub mod headers;
pub mod job;
pub mod receipt;
pub mod schema;
