//! Records that could not be read several times: set aside, with what the journal knows of their jobs in their place.

use surety_common::mend::{Defaults, mend};

use crate::rule::{Context, Done, Rule, Step};

/// The rule.
pub(crate) struct Unreadable;

impl Rule for Unreadable {
    fn name(&self) -> &'static str {
        "unreadable"
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let defaults = Defaults {
                finish: x.settings.attempt.finish,
                progress: x.settings.contract.progress,
                look: x.settings.reaper.carrier_check,
            };
            let mut done = Done::default();
            for p in 0..x.c.store.keys().partitions() {
                let mended = mend(&x.c, p, &defaults).await?;
                done.acted += mended.restored + mended.dropped;
            }
            Ok(done)
        })
    }
}
