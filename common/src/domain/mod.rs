//! The rules of a job, without IO. `now`, random values and ids are arguments.

pub mod contract;
pub mod cron;
pub mod deadline;
pub mod delivery;
pub mod event;
pub mod fingerprint;
pub mod guard;
pub mod ids;
pub mod job;
pub mod lineage;
pub mod notice;
pub mod outcome;
pub mod pause;
pub mod requester;
pub mod retry;
pub mod schedule;
pub mod status;
pub mod text;

pub use contract::Contract;
pub use event::EventKind;
pub use fingerprint::fingerprint;
pub use ids::{BatchId, JobId, QueueName, TypeName};
pub use job::{Job, Terms};
pub use lineage::Lineage;
pub use outcome::{ErrorCode, FailureClass};
pub use requester::Requester;
pub use retry::RetryPolicy;
pub use status::{Input, JobState, Refusal, Status, Transition};
