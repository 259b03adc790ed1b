//! Handlers for tests, in builds with fault points only.

use serde_json::Value;

use crate::{JobContext, WorkerBuilder};

/// `block`: blocks its thread until the file `until` of its payload is there, whatever it is asked to do.
pub(crate) fn add(worker: WorkerBuilder) -> WorkerBuilder {
    worker.handler("block", |c: JobContext| async move {
        let payload = c.payload_json()?;
        let until = payload.get("until").and_then(Value::as_str).unwrap_or_default();
        tokio::task::block_in_place(|| {
            while !std::path::Path::new(until).exists() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        Ok(Value::Null)
    })
}
