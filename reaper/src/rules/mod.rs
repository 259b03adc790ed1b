//! The rules, one file each.

mod carrier_check;
mod deadlines;
mod expired_sessions;
mod foreign_barriers;
mod guards;
mod max_deliver;
mod outbox_relay;
mod partitions;
mod pauses;
mod rebuild;
mod retention;
mod sleepers;
mod stray;
mod tell;
mod unreadable;
mod waiting;

pub(crate) use deadlines::TOLD as DEADLINES;

use crate::rule::Rule;

/// Every rule of this release.
pub(crate) fn all() -> Vec<Box<dyn Rule>> {
    vec![
        Box::new(rebuild::Rebuild::default()),
        Box::new(expired_sessions::ExpiredSessions::default()),
        Box::new(guards::Guards),
        Box::new(deadlines::Deadlines::default()),
        Box::new(outbox_relay::OutboxRelay::default()),
        Box::new(max_deliver::MaxDeliver::default()),
        Box::new(waiting::Waiting::default()),
        Box::new(stray::Stray::default()),
        Box::new(retention::Retention),
        Box::new(unreadable::Unreadable),
        Box::new(foreign_barriers::ForeignBarriers::default()),
    ]
}
