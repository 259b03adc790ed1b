//! Guards: rules that may defer or refuse a start. Here is what they are and for whom they are kept; what a guard decides is in
//! one file per kind, and the scripts of the store enforce the same.

pub mod gate;
pub mod loops;
pub mod rate;
pub mod scope;

pub use gate::Gate;
pub use rate::Rate;
pub use scope::{Template, TemplateError};

/// What a guard is. The code is stored and spoken by the scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuardKind {
    /// Starts per time.
    Rate = 1,
    /// Attempts at once.
    Concurrency = 2,
    /// One attempt at once, with a fencing token.
    Lock = 3,
    /// No start until an operator resumes.
    Pause = 4,
    /// Nobody, then probes, where what starts crashes again and again.
    CrashLoop = 5,
    /// Nobody, then probes, where too many fail.
    Breaker = 6,
    /// What the jobs of one root do.
    Loop = 7,
}

impl GuardKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Rate, Self::Concurrency, Self::Lock, Self::Pause, Self::CrashLoop, Self::Breaker, Self::Loop];

    /// As it is written in settings, tables and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::Lock => "lock",
            Self::Pause => "pause",
            Self::CrashLoop => "crash_loop",
            Self::Breaker => "breaker",
            Self::Loop => "loop",
        }
    }

    /// Whether who is refused stands in a line until its turn comes; others have a moment of their own, or are stopped.
    pub fn has_line(self) -> bool {
        match self {
            Self::Concurrency | Self::Lock | Self::Pause | Self::CrashLoop | Self::Breaker => true,
            Self::Rate | Self::Loop => false,
        }
    }

    /// The kind of a stored code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == code)
    }

    /// Whether a code is the reason of some guard: it says why a job waited, and nothing of one that runs.
    pub fn is_reason(code: &str) -> bool {
        Self::ALL.into_iter().any(|kind| kind.reason() == code)
    }

    /// Why a job is deferred by it: as the journal, the record and the metrics say it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Rate => "rate_limited",
            Self::Concurrency => "concurrency",
            Self::Lock => "lock_busy",
            Self::Pause => "paused",
            Self::CrashLoop => "crash_loop",
            Self::Breaker => "circuit_open",
            // It does not defer: what it stops has this error code.
            Self::Loop => "loop_guard",
        }
    }
}
