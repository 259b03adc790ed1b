//! The kinds of metrics, made from their definition and registered with the one registry of this process.

use std::sync::LazyLock;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

/// Every metric of this process. One for the process, as the log is: a program that runs two workers exposes their sum.
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let registry = Registry::new();
    let process = prometheus::process_collector::ProcessCollector::for_self();
    if let Err(e) = registry.register(Box::new(process)) {
        tracing::warn!(error = %e, "no figures of the process itself");
    }
    registry
});

/// Upper bounds of a histogram's buckets, in seconds.
pub(super) type Buckets = &'static [f64];

/// One call to a server on the same network.
pub(super) const CALL: Buckets =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Work of any length: from a Rust function to a build.
pub(super) const WORK: Buckets =
    &[0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0];
/// From the moment a job is stored to its start.
pub(super) const WAIT: Buckets =
    &[0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0];

/// What a metric is, for its registration and its document.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Programs that expose it, such as `worker`.
    pub programs: &'static str,
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
    pub(super) buckets: Option<Buckets>,
}

/// A kind of metric, with or without labels.
pub(super) trait Family: Collector + Clone + Sized + 'static {
    const KIND: &'static str;
    fn make(d: &Definition) -> prometheus::Result<Self>;
}

macro_rules! families {
    ($($type:ty, $kind:literal, |$d:ident| $make:expr;)+) => {
        $(impl Family for $type {
            const KIND: &'static str = $kind;
            fn make($d: &Definition) -> prometheus::Result<Self> {
                $make
            }
        })+
    };
}

fn opts(d: &Definition) -> Opts {
    Opts::new(d.name, d.meaning.trim())
}

fn histogram(d: &Definition) -> HistogramOpts {
    HistogramOpts::from(opts(d)).buckets(d.buckets.unwrap_or(CALL).to_vec())
}

families! {
    IntCounter, "counter", |d| Self::with_opts(opts(d));
    IntCounterVec, "counter", |d| Self::new(opts(d), d.labels);
    IntGauge, "gauge", |d| Self::with_opts(opts(d));
    IntGaugeVec, "gauge", |d| Self::new(opts(d), d.labels);
    GaugeVec, "gauge", |d| Self::new(opts(d), d.labels);
    Histogram, "histogram", |d| Self::with_opts(histogram(d));
    HistogramVec, "histogram", |d| Self::new(histogram(d), d.labels);
}

/// Makes a metric and registers it.
#[expect(clippy::expect_used, reason = "names and labels are constants, and a test registers every metric")]
pub(super) fn register<F: Family>(d: &Definition) -> F {
    let family = F::make(d).expect("a metric's definition is valid");
    REGISTRY.register(Box::new(family.clone())).expect("a metric's name is used once");
    family
}

/// Every metric that has a value, in the text format of Prometheus.
pub fn exposition() -> Result<Vec<u8>, prometheus::Error> {
    use prometheus::Encoder;
    let mut out = Vec::with_capacity(16 * 1024);
    prometheus::TextEncoder::new().encode(&REGISTRY.gather(), &mut out)?;
    Ok(out)
}

/// Type of [`exposition`], for HTTP.
pub const EXPOSITION_TYPE: &str = prometheus::TEXT_FORMAT;
