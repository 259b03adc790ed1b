//! Redis: what is happening now. Records, due index, outbox and sessions, per partition.
//!
//! One Lua script per operation ([`script`]), each atomic, fenced and safe to repeat. Every script call carries a call id:
//! a retry of a call whose reply was lost gets the same answer. Owner of the layout: [`keys`], [`record`] and `entry`.
//! Deliberately absent: publishing what the outbox holds (that is [`crate::relay`]).

pub mod carriers;
pub mod cluster;
pub mod deadlines;
mod defers;
mod entry;
pub mod gate;
pub mod group;
pub mod guards;
mod identity;
pub mod keys;
mod link;
pub mod locks;
mod login;
pub mod look;
pub mod open;
pub mod ops;
mod packed;
mod reads;
pub mod record;
mod replies;
pub mod restore;
mod scopes;
pub mod script;
pub mod server;
pub mod sessions;
mod trouble;
pub mod unreadable;
mod waiting;

pub use carriers::{CarrierAct, CarrierItem};
pub use cluster::{ClusterState, Master, Node};
pub use deadlines::{DueAct, DueItem, DueReply, StopItem, StopReply, Telling, ToldItem, ToldReply};
pub use defers::{DeferItem, DeferReply};
pub use entry::{Origin, OutboxEntry, OutboxReceipt};
pub use gate::{Gate, GateState, Why};
pub use group::Group;
pub use guards::{
    GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, StoredScope, WatchItem, Watched, Woken,
};
pub use keys::Keys;
pub use login::Login;
pub use look::Depths;
pub use open::OpenJobs;
pub use ops::{
    ClaimItem, ClaimReply, FinishItem, FinishReply, Forgotten, LostItem, LostReply, ProgressItem,
    ProgressReply, Renewed, ReplayItem, ReplayReply, SessionState, SettleItem, SettleReply, Verdict,
};
pub use record::Record;
pub use restore::{Restored, RestoredItem};
pub use scopes::{ScopeAt, ScopeState};
pub use script::{Answer, Store, StoreError, StoreOptions};
pub use server::{ServerConfig, ServerState};
pub use sessions::{
    Fleet, FleetSession, Held, Mate, PassedOn, SessionInfo, TYPES_SAID, Unhandled, unhandled,
};
pub use unreadable::Read;
pub use waiting::{WaitingItem, WaitingReply};
