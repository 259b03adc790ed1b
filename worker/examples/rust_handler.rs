//! A worker of your own with handlers in Rust: `surety_worker` as a library.
//!
//! ```text
//! surety dev --workers 0                                  # private servers and a reaper
//! cargo run -p surety-worker --example rust_handler       # this worker
//! surety enqueue word-count '{"text":"one two three"}' --wait
//! ```

use serde_json::json;
use surety_worker::{HandlerError, JobContext, Worker};

/// Counts the words of `{"text": …}`.
async fn word_count(job: JobContext) -> Result<serde_json::Value, HandlerError> {
    let payload = job.payload_json()?;
    // The same payload will not be better next time: no retry.
    let text = payload
        .get("text")
        .and_then(|t| t.as_str())
        .ok_or_else(|| HandlerError::give_up("payload.text must be a text"))?;
    if !job.progress(0.5, "counting").await {
        // Another attempt owns the job now; whatever this one returns is refused.
        return Err(HandlerError::retry("the lease is gone"));
    }
    Ok(json!({ "words": text.split_whitespace().count(), "attempt": job.attempt }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    surety_common::telemetry::start(surety_common::telemetry::LogFormat::Human, "info");
    let file = std::path::Path::new("surety.toml");
    let settings = surety_common::config::load(file.exists().then_some(file), &vec![])?;
    // Command handlers of the file need a keeper process, which `surety-worker` has; this worker runs Rust only.
    let settings = surety_common::config::Settings { handlers: Default::default(), ..settings };
    let worker = Worker::builder(settings).handler("word-count", word_count).start().await?;
    tokio::signal::ctrl_c().await?;
    // A second Ctrl-C ends the drain at once.
    worker
        .stop(async {
            if let Err(error) = tokio::signal::ctrl_c().await {
                eprintln!("cannot listen for a second Ctrl-C: {error}");
            }
        })
        .await;
    Ok(())
}
