//! What every Surety process shares, in reading order:
//!
//! 1. [`domain`]: the rules. Pure: no clock, no randomness, no client, no runtime.
//! 2. [`wire`]: the JSON documents and headers that other languages read and write.
//! 3. [`store`]: Redis; one Lua script per operation, which enforces the table of `domain`.
//! 4. [`broker`]: JetStream; streams and consumers as data, publish, pull, ack, dead letter.
//! 5. [`history`]: what the journal must look like if every promise was kept.
//! 6. [`tell`]: notices and receipts to whoever asked for a job.
//! 7. [`doctor`]: what is wrong with the servers or the fleet, and how to repair it.
//! 8. [`config`], [`reload`], [`tls`], [`clock`], [`pace`], [`telemetry`], [`manual`]: what a process needs around them.
//!
//! Deliberately absent: process supervision (worker), rules of repair (reaper), commands (producer).

pub mod broker;
pub mod cancel;
pub mod clock;
pub mod config;
pub mod connect;
pub mod doctor;
pub mod domain;
pub mod ending;
pub mod fault;
pub mod fitness;
pub mod guard_view;
pub mod history;
pub mod known;
pub mod locks;
pub mod lookup;
pub mod loss;
pub mod manual;
pub mod mend;
pub mod pace;
pub mod recover;
pub mod relay;
pub mod reload;
pub mod store;
pub mod telemetry;
pub mod tell;
pub mod tend;
pub mod tls;
pub mod view;
pub mod wake;
pub mod watch;
pub mod why;
pub mod wire;
