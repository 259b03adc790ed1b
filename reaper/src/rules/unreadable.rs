//! Records that could not be read several times: set aside, with what the journal knows of their jobs in their place.

use std::time::Duration;

use surety_common::mend::{TRIES, mend};

use crate::rule::{Context, Done, JOURNAL_LIMIT, Look, Rule, Step, Verdict};

/// The rule.
pub(crate) struct Unreadable;

impl Rule for Unreadable {
    fn name(&self) -> &'static str {
        "unreadable"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for p in 0..x.c.store.keys().partitions() {
                for (id, times) in
                    x.c.store.noted_unreadable(p).await?.into_iter().filter(|(_, n)| *n >= TRIES)
                {
                    let evidence = format!("its record could not be read {times} times");
                    let does = "set it aside, and put in its place what the journal knows";
                    out.push(Verdict::new(id, evidence, does));
                }
            }
            Ok(out)
        })
    }

    fn limit(&self) -> Duration {
        JOURNAL_LIMIT
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            for p in 0..x.c.store.keys().partitions() {
                let mended = mend(&x.c, p, &x.settings).await?;
                done.acted += mended.restored + mended.dropped;
            }
            Ok(done)
        })
    }
}
