//! What a rule is.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use surety_common::{
    broker::BrokerError, config::Settings, connect::Connected, pace::Transient, recover::RecoverError,
    store::StoreError,
};

use crate::service::STEP_LIMIT;

/// What a rule may use.
pub struct Context {
    pub c: Connected,
    /// Those in force when the step begins.
    pub settings: Arc<Settings>,
    /// Most items of one step; halved while steps time out.
    pub batch: usize,
}

/// What one step of a rule did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Things repaired.
    pub acted: usize,
    /// Things that were due and are not any more, with nothing to be repaired in them.
    pub passed: usize,
    /// More is left.
    pub is_partial: bool,
}

impl Done {
    /// Whether the next step follows at once: more is left, and this one got on. What stays as it is waits for the next tick.
    pub fn goes_on(&self) -> bool {
        self.is_partial && self.acted + self.passed > 0
    }
}

/// Why a step failed. What it committed stays; the next tick goes on.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
}

impl Transient for RuleError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Store(e) | Self::Recover(RecoverError::Store(e)) => e.is_transient(),
            Self::Broker(e) | Self::Recover(RecoverError::Broker(e)) => e.is_transient(),
        }
    }
}

/// Longest that a step may take which reads the whole journal: one of a hundred million events takes half an hour.
pub(crate) const JOURNAL_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// The future of one step.
pub(crate) type Step<'a> = Pin<Box<dyn Future<Output = Result<Done, RuleError>> + Send + 'a>>;

/// What a rule found and would do about it, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Whose: a job, a session, an entry.
    pub of: String,
    /// What was read.
    pub evidence: String,
    /// What follows.
    pub does: String,
}

impl Verdict {
    pub(crate) fn new(of: impl ToString, evidence: String, does: impl ToString) -> Self {
        Self { of: of.to_string(), evidence, does: does.to_string() }
    }
}

/// The future of a look.
pub(crate) type Look<'a> = Pin<Box<dyn Future<Output = Result<Vec<Verdict>, RuleError>> + Send + 'a>>;

/// One rule: reads what may be stuck, decides purely, applies with a fence.
pub trait Rule: Send + Sync {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// What its next step would do, and why. Writes nothing, nowhere: also nothing that its steps remember.
    fn look<'a>(&'a self, context: &'a Context) -> Look<'a>;

    /// Longest that one step may take before it counts as timed out and its batch is halved.
    fn limit(&self) -> Duration {
        STEP_LIMIT
    }

    /// One bounded step. It may be dropped at any point: by its limit, or where the reaper stops and it is a long one.
    fn step<'a>(&'a self, context: &'a Context) -> Step<'a>;
}
