//! Settings that change while a process runs.
//!
//! - [`LiveSettings`] is the configuration in force. Whoever needs a setting that is marked `live` asks for [`LiveSettings::now`] when something
//!   begins and keeps that snapshot for it; nobody keeps one for longer.
//! - [`Source`] is where the configuration comes from: file, environment, flags.
//! - [`Reloader`] reads it again on SIGHUP and when the file changes. What does not pass the checks of a start is refused, and
//!   what was in force stays.
//! - [`Timer`] has a period that is a setting: a change replaces what is armed, and every timer is counted while it lives.

mod file;
mod live;
mod service;
mod timer;

pub use file::Source;
pub use live::{Adopted, LiveSettings};
pub use service::Reloader;
pub use timer::{Counted, Timer};
