//! The options that worker and reaper share.

use crate::config::Flags;

/// Where to listen, and what to log.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TelemetryOptions {
    /// Address for /metrics, /livez and /readyz, or `off` [default: off]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// What is logged, as a tracing filter [default: info]
    #[arg(long, env = "SURETY_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look: human or json [default: human]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl TelemetryOptions {
    /// The settings that these options give.
    pub fn flags(&self) -> Flags {
        [
            ("telemetry.listen", &self.listen, "--listen"),
            ("telemetry.log_level", &self.log, "--log"),
            ("telemetry.log_format", &self.log_format, "--log-format"),
        ]
        .into_iter()
        .filter_map(|(path, value, flag)| Some((path, value.clone()?, flag)))
        .collect()
    }
}
