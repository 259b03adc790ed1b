//! Delivering a receipt: whether it is still owed, and when it is tried again.

use std::time::Duration;

use super::Contract;

/// What the record of a receipt's job says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub generation: u32,
    pub contract: Contract,
    /// Tries so far.
    pub told: u32,
}

/// What becomes of a receipt that a dispatcher took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It is owed, and its record counts the tries: so many before this one.
    Deliver { tries: u32 },
    /// It is owed, and no record waits for it: the job was deleted or replayed, or the store lost it. The broker's deliveries
    /// count as tries.
    DeliverAlone { tries: u32 },
    /// It was delivered or given up: this is a repeat.
    Settled(Contract),
}

/// Judges a receipt of this generation by its record, if there is one. `delivered`: the broker's count of this message.
pub fn plan(generation: u32, record: Option<Recorded>, delivered: u64) -> Plan {
    let alone = Plan::DeliverAlone { tries: u32::try_from(delivered.saturating_sub(1)).unwrap_or(u32::MAX) };
    match record.filter(|r| r.generation == generation) {
        Some(Recorded { contract: Contract::TerminalPending, told, .. }) => Plan::Deliver { tries: told },
        Some(Recorded { contract: c @ (Contract::TerminalAcked | Contract::TerminalFailed), .. }) => {
            Plan::Settled(c)
        }
        // The journal has the outcome, or there would be no receipt: the record is older than that.
        Some(Recorded {
            contract: Contract::Created | Contract::Acked | Contract::Progressing | Contract::SlaMissed,
            ..
        }) => alone,
        None => alone,
    }
}

/// How often, and after which delays, a receipt is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tries {
    pub most: u32,
    /// The last one repeats.
    pub delays: Vec<Duration>,
}

impl Tries {
    /// The delay after the `n`th try (from 1) that failed; `None`: it was the last.
    pub fn after(&self, n: u32) -> Option<Duration> {
        if n >= self.most {
            return None;
        }
        let at = usize::try_from(n.saturating_sub(1)).unwrap_or(usize::MAX);
        self.delays.get(at).or(self.delays.last()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(contract: Contract) -> Option<Recorded> {
        Some(Recorded { generation: 2, contract, told: 4 })
    }

    // Shows: R-05, C-15
    #[test]
    fn a_receipt_is_owed_until_its_record_says_otherwise() {
        use Contract as C;
        assert_eq!(plan(2, recorded(C::TerminalPending), 9), Plan::Deliver { tries: 4 });
        for c in [C::TerminalAcked, C::TerminalFailed] {
            assert_eq!(plan(2, recorded(c), 9), Plan::Settled(c));
            // That of another generation is none of its business.
            assert_eq!(plan(1, recorded(c), 9), Plan::DeliverAlone { tries: 8 });
        }
        for c in [C::Created, C::Acked, C::Progressing, C::SlaMissed] {
            assert_eq!(plan(2, recorded(c), 1), Plan::DeliverAlone { tries: 0 });
        }
        assert_eq!(plan(2, None, 1), Plan::DeliverAlone { tries: 0 });
    }

    // Shows, V-09
    #[test]
    fn delays_grow_to_the_last_and_the_last_try_is_told_apart() {
        let tries = Tries { most: 5, delays: [1, 5, 30].map(Duration::from_secs).to_vec() };
        for _ in 0..100 {
            let all: Vec<_> = (1..=6).map(|n| tries.after(n).map(|d| d.as_secs())).collect();
            assert_eq!(all, [Some(1), Some(5), Some(30), Some(30), None, None]);
        }
    }
}
