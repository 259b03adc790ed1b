//! Outcomes that nobody reads: a barrier of the journal that names another data set than the store has. Readers pass over whatever
//! else was written behind it, so one message of a stranger would hide everything. No rule can tell what was meant, so a person
//! has to remove that message, and is told so until it is gone.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use surety_common::{domain::text, loss::foreign_barriers};

use crate::rule::{Context, Done, Look, Rule, Step, Verdict};

/// Between two looks at least.
const EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    /// Places of those that were foreign at the last look. One that is foreign twice is not that of a rebuild under way.
    foreign: BTreeSet<u64>,
}

/// The rule.
#[derive(Debug, Default)]
pub(crate) struct ForeignBarriers(Mutex<Seen>);

impl Rule for ForeignBarriers {
    fn name(&self) -> &'static str {
        "foreign_barriers"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let foreign = foreign_barriers(&x.c.store, &x.c.broker).await?;
            Ok(foreign
                .iter()
                .map(|b| {
                    let evidence = format!(
                        "message {} of {} is a barrier of partition {} and names the data set {:?}",
                        b.sequence,
                        x.c.broker.names().events(),
                        b.partition,
                        b.incarnation
                    );
                    Verdict::new(
                        format!("barrier {}", b.sequence),
                        evidence,
                        "raise the alert `journal_hidden`",
                    )
                })
                .collect())
        })
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            if !self.is_time() {
                return Ok(Done::default());
            }
            let found = foreign_barriers(&x.c.store, &x.c.broker).await?;
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            for b in found.iter().filter(|b| seen.foreign.contains(&b.sequence)) {
                tracing::error!(
                    stream = x.c.broker.names().events(),
                    message = b.sequence,
                    partition = b.partition,
                    data_set = text::cut(&b.incarnation, 64).as_ref(),
                    alert = "journal_hidden",
                    "a barrier of the journal names a data set that the store does not have: what was written behind it is not \
                     read; remove that message"
                );
            }
            seen.foreign = found.iter().map(|b| b.sequence).collect();
            Ok(Done::default())
        })
    }
}

impl ForeignBarriers {
    fn is_time(&self) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = seen.at.is_none_or(|at| at.elapsed() >= EVERY);
        if is_time {
            seen.at = Some(Instant::now());
        }
        is_time
    }
}
