//! What the broker will do with a message of a queue. It tells nobody which messages a consumer holds, only how many; so what
//! is said here of one message is sure where it is "dead" by the consumer's floor, and else rests on that number.

use std::{collections::HashMap, time::Duration};

use surety_common::{
    broker::{place::CarrierStream, position::Position, pull::Delivery, topology::Lane},
    domain::QueueName,
};
use tokio::sync::Mutex;

use crate::rule::{Context, RuleError};

/// Looks at the numbers before messages count as missing: they are asked for one after the other, while jobs come and go.
const SAMPLES: usize = 3;
/// Between two of them.
const BETWEEN: Duration = Duration::from_millis(150);

/// What will become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Delivered to nobody yet, and will be.
    Waits,
    /// A schedule that did not fire yet.
    Scheduled,
    /// No consumer covers it until somebody provisions one.
    Uncovered,
    /// It was delivered. The consumer holds it, or gives it out again; or it forgot it.
    Delivered,
    /// The consumer is past it: it is never delivered again.
    Dead,
}

/// Where a message stands with its lane.
pub(crate) fn fate(sequence: u64, is_schedule: bool, lane: Option<&Position>) -> Fate {
    match lane {
        _ if is_schedule => Fate::Scheduled,
        None => Fate::Uncovered,
        Some(at) if at.is_missing => Fate::Uncovered,
        Some(at) if sequence > at.delivered => Fate::Waits,
        Some(at) if sequence <= at.floor => Fate::Dead,
        Some(_) => Fate::Delivered,
    }
}

/// Sees the lanes; each is asked for once.
#[derive(Default)]
pub(crate) struct Sight {
    positions: Mutex<HashMap<(CarrierStream, String), Option<Position>>>,
    forgotten: Mutex<HashMap<(CarrierStream, String), u64>>,
}

impl Sight {
    /// Where the lane of a message stands; `None`: its queue is not declared.
    pub(crate) async fn lane_of(&self, x: &Context, m: &Delivery) -> Result<Option<Position>, RuleError> {
        let names = x.c.broker.names();
        let of = m.carrier().stream;
        let queue = names.queue_of(&m.subject).unwrap_or_default().to_owned();
        let mut all = self.positions.lock().await;
        if let Some(known) = all.get(&(of, queue.clone())) {
            return Ok(known.clone());
        }
        let lane = QueueName::new(&queue).ok().and_then(|q| names.lanes(&q).into_iter().find(|l| l.of == of));
        let position = match lane {
            None => None,
            Some(lane) => Some(x.c.broker.position(&lane).await?),
        };
        all.insert((of, queue), position.clone());
        Ok(position)
    }

    /// What becomes of a message.
    pub(crate) async fn fate_of(&self, x: &Context, m: &Delivery) -> Result<Fate, RuleError> {
        let is_schedule = x.c.broker.names().parse_sched_subject(&m.subject).is_some();
        Ok(fate(m.sequence, is_schedule, self.lane_of(x, m).await?.as_ref()))
    }

    /// At least so many messages of a lane are neither waiting nor held: its consumer forgot them, or gave them up.
    pub(crate) async fn forgotten(&self, x: &Context, lane: &Lane) -> Result<u64, RuleError> {
        let key = (lane.of, lane.consumer.clone());
        let mut all = self.forgotten.lock().await;
        if let Some(known) = all.get(&key) {
            return Ok(*known);
        }
        let mut least = u64::MAX;
        for sample in 0..SAMPLES {
            if sample > 0 {
                tokio::time::sleep(BETWEEN).await;
            }
            least = least.min(missing(x, lane).await?);
            if least == 0 {
                break;
            }
        }
        all.insert(key, least);
        Ok(least)
    }
}

/// One look at the numbers. They are taken before and after the messages are counted, and the larger one is believed.
async fn missing(x: &Context, lane: &Lane) -> Result<u64, RuleError> {
    let accounted = |p: &Position| p.waiting + p.held;
    let before = accounted(&x.c.broker.position(lane).await?);
    let mut there = 0;
    for subject in &lane.subjects {
        there += x.c.broker.count(&lane.stream, subject).await?;
    }
    let after = accounted(&x.c.broker.position(lane).await?);
    Ok(there.saturating_sub(before.max(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_behind_the_floor_is_dead_and_one_between_is_only_delivered() {
        let lane = Position {
            lane: Lane {
                queue: QueueName::new("q").unwrap(),
                of: CarrierStream::Jobs,
                stream: "S".into(),
                consumer: "q".into(),
                subjects: vec![],
            },
            is_missing: false,
            delivered: 20,
            floor: 10,
            delivered_as: 30,
            waiting: 5,
            held: 3,
            at_ms: 1,
        };
        let at = |n| fate(n, false, Some(&lane));
        assert_eq!(
            [at(10), at(11), at(20), at(21)],
            [Fate::Dead, Fate::Delivered, Fate::Delivered, Fate::Waits]
        );
        assert_eq!(fate(5, true, None), Fate::Scheduled);
        assert_eq!(fate(5, false, None), Fate::Uncovered);
        assert_eq!(fate(5, false, Some(&Position { is_missing: true, ..lane })), Fate::Uncovered);
    }
}
