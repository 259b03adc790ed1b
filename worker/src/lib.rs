//! The worker: pulls jobs into free slots, claims each, runs its handler, finishes, and settles the carrier last.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use surety_worker::{JobContext, Worker};
//!
//! let settings = surety_common::config::load(None, &vec![])?;
//! let worker = Worker::builder(settings)
//!     .handler("hello", |job: JobContext| async move { Ok(serde_json::json!({ "hello": job.payload_json()? })) })
//!     .start()
//!     .await?;
//! worker.stopped().await;
//! # Ok(()) }
//! ```
//!
//! Reading order: [`handler`] (what runs), then the way of a job: `intake` (pull into free slots), `admit` (decode, route;
//! what is paused is known by `pauses`), `claims`
//! (the right to run), `attempt` (one execution), `verdict` (what its end means), `finishes` (store, journal, carrier); `lanes`
//! (group commit between them), `session` (lease and trust), `keeper` (the process that owns the commands). `dispatch` delivers receipts
//! beside all that.

mod admit;
mod announce;
mod attempt;
mod builder;
mod claims;
pub mod cli;
mod condition;
mod dispatch;
mod due;
mod finishes;
mod guards;
mod hand;
pub mod handler;
mod intake;
pub mod keeper;
mod lanes;
mod meter;
mod pauses;
mod plan;
mod postpone;
mod ready;
mod reports;
mod session;
mod settle;
mod shared;
mod state;
#[cfg(feature = "faults")]
mod test_handlers;
mod told;
mod track;
mod verdict;

pub use builder::{Running, StartError, Worker, WorkerBuilder};
pub use handler::{HandlerError, JobContext};
