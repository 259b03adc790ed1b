//! Lines of pauses that are over: ended by their own time, or resumed by somebody who could not wake those who wait.

use surety_common::{
    broker::BrokerError,
    connect::Connected,
    domain::pause::{Pauses, Slot},
    store::Scope,
};

/// Which of these scopes are lines of pauses that hold no more. The pauses are asked for only where there is such a line.
pub(super) async fn over<'a>(
    c: &Connected,
    scopes: impl Iterator<Item = &'a Scope>,
) -> Result<Vec<Slot>, BrokerError> {
    let slots: Vec<Slot> = scopes.filter_map(Scope::pause).collect();
    if slots.is_empty() {
        return Ok(slots);
    }
    let known = c.broker.pauses().await?;
    Ok(among(slots, &known.pauses, known.now_ms))
}

fn among(slots: Vec<Slot>, pauses: &Pauses, now_ms: u64) -> Vec<Slot> {
    let holds = |slot: &Slot| pauses.at(slot).is_some_and(|p| p.holds_at(now_ms));
    slots.into_iter().filter(|slot| !holds(slot)).collect()
}

#[cfg(test)]
mod tests {
    use surety_common::domain::pause::{Pause, Target};

    use super::*;

    #[test]
    fn a_line_is_opened_when_its_pause_is_gone_or_has_ended_and_not_before() {
        let slot = |key: &str| Target::key(key).unwrap().slot();
        let mut pauses = Pauses::default();
        for (key, until_ms) in [("for-ever", None), ("ends", Some(100))] {
            let target = Target::key(key).unwrap();
            pauses.put(slot(key), Pause { target, reason: None, by: "ann".into(), at_ms: 1, until_ms });
        }
        let all = || vec![slot("for-ever"), slot("ends"), slot("gone")];
        assert_eq!(among(all(), &pauses, 99), [slot("gone")]);
        assert_eq!(among(all(), &pauses, 100), [slot("ends"), slot("gone")]);
    }
}
