//! Jobs that wait for their turn in the line of a guard, while their messages sleep at the broker under a long delay. The line is in
//! Redis: where that lost its data, nobody is left to wake them. So whoever makes a data set whole has each of them looked at
//! soon, and a look at such a job (`carrier_check`) gives its message back. It is delivered once more, asks its guards
//! again, and stands in line again if it has to. That is the same message: its place is that of its arrival, and nothing is doubled.

use std::{collections::BTreeMap, time::Duration};

use surety_common::{
    broker::pull::Delivery,
    domain::{Status, guard::GuardKind},
    store::{CarrierAct, CarrierItem, GateState, Read, Record},
};

use super::carrier_check;
use crate::{
    rule::{Context, RuleError},
    sight::Sight,
};

/// So many of them come back within a second: as many as one call of a guard wakes.
const PER_SECOND: u64 = 200;

/// Whether a job waits for its turn, and not for a moment of its own, as that of a rate limit is.
pub(crate) fn is_in_line(r: &Record) -> bool {
    let is_line = |k: &GuardKind| k.has_line() && k.reason() == r.code;
    r.status == Status::Deferred && GuardKind::ALL.iter().any(is_line)
}

/// Gives the message of one of them back. One that is on its way already is not delivered twice by it.
pub(crate) async fn wake(x: &Context, sight: &Sight, r: &Record, m: &Delivery) -> Result<(), RuleError> {
    if !r.ack_subject.is_empty() {
        x.c.broker.nak(&r.ack_subject, Duration::ZERO).await?;
    } else if let Some(at) = sight.lane_of(x, m).await? {
        x.c.broker.nak_held(&at, m.sequence).await?;
    }
    Ok(())
}

/// Has every job that is in a line looked at, from the opening of the gates on, in the order of their arrival. Those of other
/// partitions, too: a line is where its scope is, and holds jobs of all of them. `calm`: how long gates stay `restored`.
pub(crate) async fn look_soon(
    x: &Context,
    won: &BTreeMap<u32, GateState>,
    calm: Duration,
) -> Result<(), RuleError> {
    let mut sleepers = Vec::new();
    for p in 0..x.c.store.keys().partitions() {
        match in_line(x, p).await {
            Ok(found) => sleepers.extend(found.into_iter().map(|s| (p, s))),
            Err(e) => of_others(p, won, e)?,
        }
    }
    if sleepers.is_empty() {
        return Ok(());
    }
    let mut opening = Duration::ZERO;
    for p in won.keys() {
        opening = opening.max(calm.saturating_sub(x.c.store.watch_gate(*p).await?.restored_for));
    }
    tracing::info!(jobs = sleepers.len(), "they stood in lines of guards: each is woken, to ask again");
    sleepers.sort_by(|(_, a), (_, b)| (a.created_ms, &a.item.id).cmp(&(b.created_ms, &b.item.id)));
    let mut items: BTreeMap<u32, Vec<CarrierItem>> = BTreeMap::new();
    for (place, (p, s)) in (0..).zip(sleepers) {
        let act = CarrierAct::LookAgain { after: opening + turn(place), looks: 0 };
        items.entry(p).or_default().push(CarrierItem { act, ..s.item });
    }
    for (p, items) in items {
        for some in items.chunks(x.batch) {
            if let Err(e) = x.c.store.on_carriers(p, some).await {
                of_others(p, won, e.into())?;
                break;
            }
        }
    }
    Ok(())
}

/// How long after the first one somebody is woken before whom so many are.
fn turn(place: u64) -> Duration {
    Duration::from_millis(place.saturating_mul(1000) / PER_SECOND)
}

/// Nobody's gate stays closed because another partition cannot be reached, or is being made whole by somebody else.
fn of_others(p: u32, won: &BTreeMap<u32, GateState>, e: RuleError) -> Result<(), RuleError> {
    if won.contains_key(&p) {
        return Err(e);
    }
    tracing::warn!(partition = p, error = %e, "its jobs that stand in lines are not woken; each comes back by itself");
    Ok(())
}

/// One of them.
struct Sleeper {
    created_ms: u64,
    item: CarrierItem,
}

/// Those of one partition.
async fn in_line(x: &Context, p: u32) -> Result<Vec<Sleeper>, RuleError> {
    let ids = x.c.store.indexed(p).await?;
    let mut out = Vec::new();
    for ids in ids.chunks(x.batch) {
        let keys: Vec<String> = ids.iter().map(|id| x.c.store.keys().job(id)).collect();
        let records = x.c.store.records(&keys).await?.into_iter().map(Read::record);
        let found = ids.iter().zip(records).filter_map(|(id, r)| Some((id, r.filter(is_in_line)?)));
        out.extend(found.map(|(id, r)| {
            let act = CarrierAct::LookAgain { after: Duration::ZERO, looks: 0 };
            Sleeper { created_ms: r.created_ms, item: carrier_check::item(id, &r, act) }
        }));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_turn_is_told_from_who_waits_for_a_moment() {
        let deferred =
            |code: &str| Record { status: Status::Deferred, code: code.into(), ..Record::queued() };
        for reason in ["concurrency", "lock_busy", "paused", "circuit_open", "crash_loop"] {
            assert!(is_in_line(&deferred(reason)), "{reason}");
            assert!(!is_in_line(&Record { status: Status::Running, ..deferred(reason) }), "{reason}");
        }
        for own in ["rate_limited", "start_failed", "loop_guard", ""] {
            assert!(!is_in_line(&deferred(own)), "{own}");
        }
    }

    #[test]
    fn many_are_woken_one_after_the_other() {
        let within = |from: u64| (0..2000).filter(|n| turn(*n).as_secs() == from).count() as u64;
        assert_eq!((within(0), within(1), within(9), within(10)), (PER_SECOND, PER_SECOND, PER_SECOND, 0));
        assert_eq!(turn(10_000), Duration::from_secs(50));
    }
}
