//! The embedded default: private servers ([`servers`]) and sibling processes ([`processes`]) on one machine.

pub(crate) mod folder;
pub mod processes;
pub mod servers;
