//! Documents that cross a process boundary: the job a producer publishes, the events of the journal, receipts and
//! notices for its requester, lists of batches, pauses, headers.
//!
//! Wire documents change only by addition. The schemas in `schema/` are generated from these types ([`schema`]).

pub mod batch;
pub mod control;
pub mod event;
pub mod headers;
pub mod job;
mod lineage;
pub mod notice;
pub mod pause;
pub mod receipt;
pub mod schema;
pub mod strict;
