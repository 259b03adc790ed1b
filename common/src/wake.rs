//! Waking jobs that sleep at the broker because a guard had no room for them, and whose turn has come.

use std::time::Duration;

use crate::{
    broker::BrokerError,
    connect::Connected,
    domain::{JobId, pause::Slot},
    store::{
        GuardAct, GuardItem, GuardOutcome, Read, Record, Scope, StoreError, Woken,
        guards::{OFFER, ONLY_LOOK},
    },
};

/// Gives the carriers of these jobs back to the broker's line, so that some worker asks for them at once. Who has its outcome
/// already leaves its place to the next; that is repeated until nobody is left to be woken.
pub async fn wake(c: &Connected, p: u32, hold_ms: u64, scopes: &[Scope], mut woken: Vec<Woken>) {
    while !woken.is_empty() {
        let records = match records(c, &woken).await {
            Ok(records) => records,
            Err(e) => {
                tracing::debug!(error = %e, "who is woken is not looked up");
                vec![None; woken.len()]
            }
        };
        let mut items = Vec::new();
        for (sleeper, record) in woken.iter().zip(records) {
            if record.as_ref().is_some_and(|r| is_over(r, &sleeper.member)) {
                let place = u16::try_from(sleeper.scope).unwrap_or(u16::MAX);
                items.push(GuardItem {
                    act: GuardAct::Release {
                        token: OFFER.into(),
                        until_ms: None,
                        outcome: GuardOutcome::Neutral,
                    },
                    member: sleeper.member.as_str().into(),
                    scopes: vec![place].into(),
                });
            } else if let Err(e) = give_back(c, sleeper, record.as_ref()).await {
                tracing::warn!(member = sleeper.member, error = %e, "not woken; it comes back by itself");
            }
        }
        if items.is_empty() {
            return;
        }
        let answer = c.store.guard(p, None, hold_ms, scopes, &items).await;
        drop(items);
        woken = match answer {
            Ok(answer) => answer.woken,
            Err(e) => {
                tracing::warn!(error = %e, "places of jobs that have ended stay taken until their offers end");
                return;
            }
        };
    }
}

/// Lets everybody go who waits for the end of a pause; gives their number.
pub async fn open(c: &Connected, slot: &Slot) -> Result<usize, StoreError> {
    let scope = [Scope::of_pause(slot)];
    let p = scope.first().map_or(0, |s| s.partition(c.store.keys().partitions()));
    let mut n = 0;
    loop {
        let item = GuardItem { act: GuardAct::Open, member: "".into(), scopes: vec![0].into() };
        let woken = c.store.guard(p, None, 0, &scope, &[item]).await?.woken;
        if woken.is_empty() {
            return Ok(n);
        }
        n += woken.len();
        wake(c, p, 0, &scope, woken).await;
    }
}

/// Its last delivery is given back; where another message carries the job by now, that one's.
async fn give_back(c: &Connected, sleeper: &Woken, record: Option<&Record>) -> Result<(), BrokerError> {
    if sleeper.ack_subject == ONLY_LOOK {
        return Ok(());
    }
    match record.filter(|r| !r.carrier.is_empty()) {
        Some(r) if !is_of(&sleeper.ack_subject, &r.carrier) => {
            c.broker.nak_recorded(&r.queue, &r.carrier, &r.ack_subject, Duration::ZERO).await
        }
        _ if sleeper.ack_subject.is_empty() => Ok(()),
        _ => c.broker.nak(&sleeper.ack_subject, Duration::ZERO).await,
    }
}

/// Whether an ack subject is that of a carrier (`STREAM:sequence`), as far as it can be told: the common form names the
/// sequence behind stream and consumer (`$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>…`).
fn is_of(ack_subject: &str, carrier: &str) -> bool {
    let fields: Vec<&str> = ack_subject.split('.').collect();
    let (Some((_, sequence)), [.., at, _, _, _]) = (carrier.rsplit_once(':'), fields.as_slice()) else {
        return false;
    };
    // The long form, with domain and account, may have one field more at its end.
    *at == sequence || fields.len() != 9
}

/// Whether that generation of the job has its outcome.
fn is_over(record: &Record, member: &str) -> bool {
    let generation = member.rsplit_once('/').and_then(|(_, g)| g.parse::<u32>().ok());
    record.status.is_terminal() || generation.is_some_and(|g| g < record.generation)
}

/// The records of those who are woken, where they are known.
async fn records(c: &Connected, woken: &[Woken]) -> Result<Vec<Option<Record>>, StoreError> {
    let ids: Vec<Option<JobId>> =
        woken.iter().map(|w| w.member.rsplit_once('/').and_then(|(id, _)| JobId::new(id).ok())).collect();
    let known: Vec<JobId> = ids.iter().flatten().cloned().collect();
    let mut records = c.store.records_of(&known).await?.into_iter();
    Ok(ids.iter().map(|id| id.as_ref().and_then(|_| records.next()).and_then(Read::record)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_subject_is_told_from_that_of_another_carrier() {
        let ack = "$JS.ACK.SURETY_JOBS.default.2.17.40.1700000000000000000.3";
        assert!(is_of(ack, "JOBS:17"));
        assert!(!is_of(ack, "JOBS:40") && !is_of("", "JOBS:17"));
        assert!(is_of("$JS.ACK.hub.ACCT.SURETY_JOBS.default.2.17.40.17.3.x", "JOBS:9"), "not to be told");
    }

    #[test]
    fn an_older_generation_waits_for_nothing() {
        let record = Record { generation: 2, ..Record::queued() };
        assert!(is_over(&record, "a/1") && !is_over(&record, "a/2"));
        let ended = Record { status: crate::domain::Status::Cancelled, ..record };
        assert!(is_over(&ended, "a/2"));
    }
}
