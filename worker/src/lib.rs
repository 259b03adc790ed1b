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
//! Reading order: [`handler`] (what runs), `attempt` (one attempt from claim to ack), `intake` (pull and slots), `commit`
//! (group commit of claims and finishes), `session` (lease and trust), `keeper` (the process that owns the commands).

mod attempt;
mod builder;
pub mod cli;
mod commit;
mod due;
pub mod handler;
mod intake;
pub mod keeper;
mod meter;
mod plan;
mod ready;
mod session;
mod settle;
mod shared;
mod state;
mod track;

pub use builder::{Running, StartError, Worker, WorkerBuilder};
pub use handler::{HandlerError, JobContext};
