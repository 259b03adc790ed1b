//! Configuration: defaults (compiled in) < file < environment < flags.
//!
//! Every setting is declared once, in [`settings`], with its default, unit and meaning; `docs/config.md` and the sample
//! file are generated from that table. Every problem of every layer is reported at once, with the place it came from. A
//! duration of 0 means "not set": the default applies, never "immediately".
//!
//! The same table says which settings a running process takes anew ([`Reload`]); how it does is in [`crate::reload`].

mod beside;
pub mod caller;
mod changes;
mod connection;
mod context;
pub mod document;
mod guards;
pub mod handed;
mod handlers;
mod layers;
mod loops;
mod options;
mod secrets;
mod settings;
mod value;

pub use changes::{Change, Reload};
pub use guards::{GuardRule, Limits};
pub use handlers::Handler;
pub use layers::{ConfigError, Flags, load, load_text};
pub(crate) use layers::{load_read, read};
pub use options::{ConnectionOptions, private_servers};
pub use secrets::{Address, FilePath, Secret};
pub use settings::{
    Attempt, Connection, GuardSettings, LayoutSettings, Lease, LoopSettings, Reaper, Row, Settings,
    Telemetry, WorkerSettings, table,
};
pub use value::{Choice, Count, Setting, Size, Span};
