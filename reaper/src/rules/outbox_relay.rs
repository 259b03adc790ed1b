//! Journal entries that their writer did not get published: published here, under the same message id.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use surety_common::{
    clock::format_span,
    domain::deadline::millis,
    pace::{Pace, Transient},
    store::OutboxEntry,
};

use crate::rule::{Context, Done, Look, Rule, RuleError, Step, Verdict};

/// Tries after which an entry that is refused is set aside, so that it blocks no other.
const TRIES: u32 = 5;

/// Remembers how often an entry was refused.
#[derive(Default)]
pub(crate) struct OutboxRelay {
    refused: Mutex<HashMap<String, u32>>,
}

impl OutboxRelay {
    fn tries(&self, id: &str) -> u32 {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied().unwrap_or(0)
    }

    /// The first entries of a partition that are late and were not set aside.
    async fn late(&self, x: &Context, p: u32) -> Result<Vec<OutboxEntry>, RuleError> {
        let age = millis(x.settings.reaper.relay_age);
        let before = x.c.store.now_ms_of(p).await?.saturating_sub(age);
        // Entries that were set aside stay at the front: read on behind them.
        let mut after = String::new();
        loop {
            let page = x.c.store.outbox(p, &after, before, x.batch).await?;
            let Some(last) = page.last().map(|e| e.id.clone()) else { return Ok(page) };
            let fresh: Vec<_> = page.into_iter().filter(|e| self.tries(&e.id) < TRIES).collect();
            if !fresh.is_empty() {
                return Ok(fresh);
            }
            after = last;
        }
    }

    fn count(&self, id: &str) -> u32 {
        let mut all = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let n = all.entry(id.to_owned()).or_default();
        *n += 1;
        *n
    }
}

impl Rule for OutboxRelay {
    fn name(&self) -> &'static str {
        "outbox_relay"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for p in 0..x.c.store.keys().partitions() {
                for e in self.late(x, p).await? {
                    let evidence = format!(
                        "written to the outbox with commit {}, not confirmed for {}",
                        e.commit,
                        format_span(x.settings.reaper.relay_age)
                    );
                    out.push(Verdict::new(&e.id, evidence, format!("publish it on events.{}", e.suffix)));
                }
            }
            Ok(out)
        })
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            for p in 0..x.c.store.keys().partitions() {
                let entries = self.late(x, p).await?;
                if entries.is_empty() {
                    continue;
                }
                let all = x.c.relay.publish(p, &entries, Pace::call(Duration::from_secs(5))).await;
                let mut stored: Vec<String> = Vec::new();
                match all {
                    Ok(()) => stored.extend(entries.iter().map(|e| e.id.clone())),
                    Err(e) if e.is_transient() => return Err(e.into()),
                    // One of them is refused: each is tried alone, so that the others go on.
                    Err(_) => {
                        for e in &entries {
                            match x
                                .c
                                .relay
                                .publish(p, std::slice::from_ref(e), Pace::call(Duration::from_secs(5)))
                                .await
                            {
                                Ok(()) => stored.push(e.id.clone()),
                                Err(error) => {
                                    if self.count(&e.id) == TRIES && e.problem.is_some() {
                                        // Nothing can be done with it but by a person, who has its bytes.
                                        x.c.store.set_entry_aside(p, &e.id).await?;
                                        tracing::error!(
                                            entry = e.id, %error, alert = "journal_entry_unreadable",
                                            "journal entry set aside: it does not decode"
                                        );
                                    } else if self.tries(&e.id) == TRIES {
                                        tracing::error!(
                                            entry = e.id, subject = e.suffix, %error, alert = "journal_entry_refused",
                                            "journal entry set aside: the broker refuses it"
                                        );
                                    }
                                }
                            }
                        }
                    }
                }
                x.c.store.trim(p, &stored).await?;
                done.acted += stored.len();
                done.is_partial |= entries.len() >= x.batch;
            }
            Ok(done)
        })
    }
}
