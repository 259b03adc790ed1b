//! Fault points: places where a test makes a process die. Compiled in with the `faults` feature only, which nothing but
//! the tests crate asks for.

/// Dies by SIGKILL at the `n`-th pass of the point named in `SURETY_FAULT=<point>:<n>`; otherwise does nothing.
/// Points are named after the numbered steps of the write order (`docs/write-order.md`).
#[cfg(feature = "faults")]
pub fn point(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicI64, Ordering},
    };
    static PLAN: OnceLock<Option<(String, AtomicI64)>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "a test's switch, never part of the configuration")]
        let text = std::env::var("SURETY_FAULT").ok()?;
        let (point, n) = text.split_once(':')?;
        Some((point.to_owned(), AtomicI64::new(n.parse().ok()?)))
    });
    if let Some((point, left)) = plan
        && point == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
        && let Err(e) =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
    {
        tracing::error!("fault point {name}: {e}");
    }
}

/// Does nothing: fault points are not compiled in.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Ends a NATS client, as a panic of its task would, once the file named in `SURETY_FAULT_CLIENT` is there.
#[cfg(feature = "faults")]
pub(crate) fn ends_client(client: async_nats::Client) {
    #[expect(clippy::disallowed_methods, reason = "a test's switch, never part of the configuration")]
    let Ok(file) = std::env::var("SURETY_FAULT_CLIENT") else { return };
    tokio::spawn(async move {
        while !std::path::Path::new(&file).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        if let Err(e) = client.drain().await {
            tracing::error!("fault: {e}");
        }
    });
}
