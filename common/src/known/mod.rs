//! What the journal knows of jobs, and the record that follows from it: for a data set that is made whole again
//! (`docs/redis-loss.md`), and for one record that cannot be read ([`crate::mend`]).
//!
//! 1. [`fold`]: what the journal says of each job, with little memory. Pure.
//! 2. `lives`: whose an event is, where an id was used again. Pure.
//! 3. [`mod@record`]: from that, and from what the job's message says, to a record.

pub mod fold;
mod lives;
pub mod record;

pub use fold::{Fold, Known};
pub use record::{Said, record, said};
