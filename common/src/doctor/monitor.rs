//! What the monitoring port of NATS tells and no client may ask.

use std::time::Duration;

use serde_json::Value;

use super::facts::{Known, Monitor};

impl Monitor {
    /// Reads the answer to `GET /varz`. `is_local`: the server stores on this host.
    pub fn of_varz(varz: &Value, is_local: bool) -> Known<Self> {
        let Some(config) = varz.pointer("/jetstream/config") else {
            return Err("its /varz has no jetstream.config".into());
        };
        let is_synced_always = config.get("sync_always").and_then(Value::as_bool).unwrap_or(false);
        let nanos = config.get("sync_interval").and_then(Value::as_u64).unwrap_or(0);
        let folder = config.get("store_dir").and_then(Value::as_str).unwrap_or_default();
        Ok(Self {
            is_synced_always,
            sync_interval: Duration::from_nanos(nanos),
            disk: if is_local { super::gather::disk(folder, "NATS") } else { None },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varz_tells_how_often_messages_reach_the_disk() {
        let varz = |config: Value| serde_json::json!({ "jetstream": { "config": config } });
        let m = Monitor::of_varz(&varz(serde_json::json!({ "sync_interval": 120_000_000_000u64 })), true)
            .unwrap();
        assert_eq!((m.is_synced_always, m.sync_interval.as_secs(), m.disk), (false, 120, None));
        let m = Monitor::of_varz(&varz(serde_json::json!({ "sync_always": true })), false).unwrap();
        assert!(m.is_synced_always);
        assert!(Monitor::of_varz(&serde_json::json!({}), true).is_err());
    }
}
