//! Handlers for tests, in builds with fault points only.

use std::time::Duration;

use serde_json::Value;

use crate::{JobContext, WorkerBuilder};

/// `block`: blocks its thread until the file `until` of its payload is there, whatever it is asked to do.
/// `report`: reports progress without an end, and makes the file `dropped` of its payload when its future is dropped.
pub(crate) fn add(worker: WorkerBuilder) -> WorkerBuilder {
    let worker = worker.handler("block", |c: JobContext| async move {
        let payload = c.payload_json()?;
        let until = payload.get("until").and_then(Value::as_str).unwrap_or_default();
        tokio::task::block_in_place(|| {
            while !std::path::Path::new(until).exists() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Ok(Value::Null)
    });
    worker.handler("report", |c: JobContext| async move {
        let payload = c.payload_json()?;
        let _dropped = Mark(payload.get("dropped").and_then(Value::as_str).unwrap_or_default().to_owned());
        for n in 1u64.. {
            c.progress(0.5, &format!("report {n}")).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Value::Null)
    })
}

/// Makes a file when it is dropped.
struct Mark(String);

impl Drop for Mark {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.0, "") {
            tracing::error!(file = self.0, %error, "cannot say that the handler was dropped");
        }
    }
}
