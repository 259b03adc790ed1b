//! Kinds of journal events.

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// A fact about one transition. Readers ignore kinds they do not know.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum EventKind { $($variant),+ }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

kinds! {
    Started = "started",
    Acked = "acked",
    Progress = "progress",
    Tool = "tool",
    PhaseStarted = "phase_started",
    PhaseCompleted = "phase_completed",
    Checkpoint = "checkpoint",
    WaitingInput = "waiting_input",
    Answered = "answered",
    Deferred = "deferred",
    AttemptFailed = "attempt_failed",
    Lost = "lost",
    Released = "released",
    SlaMissed = "sla_missed",
    Nudged = "nudged",
    CancelRequested = "cancel_requested",
    Finished = "finished",
    ReceiptDelivered = "receipt_delivered",
    ReceiptFailed = "receipt_failed",
    Buried = "buried",
    Replayed = "replayed",
    Deleted = "deleted",
    Missing = "missing",
}
