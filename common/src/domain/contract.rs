//! The promise to the requester, as its own small machine beside the job's status.

use serde::{Deserialize, Serialize};

/// State of the contract. The order is the rank: it never falls, except from `sla_missed` back to `progressing`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Contract {
    Created,
    Acked,
    Progressing,
    SlaMissed,
    TerminalPending,
    TerminalAcked,
    TerminalFailed,
}

/// What happened to the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContractInput {
    /// The start was surfaced to the requester (nobody to tell: by the claim itself).
    Surfaced,
    /// The handler reported progress.
    Progress,
    /// The progress deadline passed.
    Missed,
    /// The job reached an outcome; `someone` says whether there is a requester to tell.
    Ended { someone: bool },
    /// The receipt was delivered.
    Delivered,
    /// Delivery was given up.
    GivenUp,
    /// A new generation starts (operator replay).
    Replayed,
}

impl Contract {
    /// Every state, in rank order. Store, journal, CLI and documents use [`Contract::name`].
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Acked,
        Self::Progressing,
        Self::SlaMissed,
        Self::TerminalPending,
        Self::TerminalAcked,
        Self::TerminalFailed,
    ];

    /// The state after `input`; `None` means "not applied" (a late or repeated input), which is neither an error nor a write.
    pub fn next(self, input: ContractInput) -> Option<Self> {
        use Contract as C;
        use ContractInput as I;
        let open = self < C::TerminalPending;
        match (self, input) {
            (C::Created, I::Surfaced) => Some(C::Acked),
            // Progress surfaces more than an acknowledgement would, so it also moves `created`.
            (C::Created | C::Acked | C::SlaMissed, I::Progress) => Some(C::Progressing),
            (C::Acked | C::Progressing, I::Missed) => Some(C::SlaMissed),
            (_, I::Ended { someone }) if open => {
                Some(if someone { C::TerminalPending } else { C::TerminalAcked })
            }
            (C::TerminalPending, I::Delivered) => Some(C::TerminalAcked),
            (C::TerminalPending, I::GivenUp) => Some(C::TerminalFailed),
            (_, I::Replayed) if !open => Some(C::Created),
            _ => None,
        }
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Acked => "acked",
            Self::Progressing => "progressing",
            Self::SlaMissed => "sla_missed",
            Self::TerminalPending => "terminal_pending",
            Self::TerminalAcked => "terminal_acked",
            Self::TerminalFailed => "terminal_failed",
        }
    }

    /// The number in the Redis record (1 to 7).
    pub fn code(self) -> u8 {
        self as u8 + 1
    }

    /// The state of a record's number; `None` for a number that this release does not know.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Shows: C-02
    #[test]
    fn a_late_ack_moves_only_created() {
        for c in Contract::ALL {
            let want = (c == Contract::Created).then_some(Contract::Acked);
            assert_eq!(c.next(ContractInput::Surfaced), want, "{c:?}");
        }
    }

    #[test]
    fn codes_round_trip() {
        for c in Contract::ALL {
            assert_eq!(Contract::from_code(c.code()), Some(c));
        }
        assert_eq!(Contract::from_code(0), None);
    }

    fn any_input() -> impl Strategy<Value = ContractInput> {
        use ContractInput as I;
        prop::sample::select(vec![
            I::Surfaced,
            I::Progress,
            I::Missed,
            I::Ended { someone: true },
            I::Ended { someone: false },
            I::Delivered,
            I::GivenUp,
        ])
    }

    proptest! {
        // Shows: C-04
        #[test]
        fn rank_falls_only_from_sla_missed_to_progressing(inputs in prop::collection::vec(any_input(), 0..40)) {
            let mut c = Contract::Created;
            for input in inputs {
                if let Some(n) = c.next(input) {
                    prop_assert!(n > c || (c, n) == (Contract::SlaMissed, Contract::Progressing));
                    c = n;
                }
            }
        }
    }
}
