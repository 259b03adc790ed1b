//! Records of jobs that ended long ago: deleted, with an event that says so.

use std::time::Duration;

use surety_common::{pace::Pace, store::Read};

use crate::rule::{Context, Done, Look, Rule, RuleError, Step, Verdict};

/// The rule.
pub(crate) struct Retention;

impl Rule for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            let keep = x.settings.reaper.keep;
            for p in 0..x.c.store.keys().partitions() {
                let head = x.c.store.ended(p, head_len(x)).await?;
                let now = x.c.store.now_ms().await?;
                let mut since = "";
                for element in &head {
                    if element.starts_with('@') {
                        since = element;
                        if !is_old(Some(since), now, keep) {
                            break;
                        }
                    } else {
                        let evidence = format!("ended at {} ms or before", since.trim_start_matches('@'));
                        out.push(Verdict::new(element, evidence, "delete its record, if nothing needs it"));
                    }
                }
            }
            Ok(out)
        })
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            let keep = x.settings.reaper.keep;
            for p in 0..x.c.store.keys().partitions() {
                let head = x.c.store.ended(p, head_len(x)).await?;
                if !is_old(head.first().map(String::as_str), x.c.store.now_ms().await?, keep) {
                    continue;
                }
                let answer = x.c.store.forget(p, keep, &head).await?;
                x.c.relay.publish(p, &answer.entries, Pace::call(Duration::from_secs(5))).await?;
                for f in answer.results.into_iter().flatten() {
                    if f.kept > 0 {
                        note(x, p, &head).await?;
                        tracing::warn!(
                            jobs = f.kept,
                            alert = "records_kept",
                            "old records are kept: their outcome is not journaled, or they cannot be read"
                        );
                    }
                    done.acted += f.deleted;
                    done.is_partial |= f.deleted > 0 && f.taken == head.len();
                }
            }
            Ok(done)
        })
    }
}

/// Notes the records that cannot be read among these, so that they are set aside.
async fn note(x: &Context, p: u32, head: &[String]) -> Result<(), RuleError> {
    let ids: Vec<&String> = head.iter().filter(|h| !h.starts_with('@')).collect();
    let keys: Vec<String> = ids.iter().map(|id| x.c.store.keys().job_in(p, id)).collect();
    for (id, read) in ids.into_iter().zip(x.c.store.records(&keys).await?) {
        if read == Read::Unreadable {
            x.c.store.note_unreadable(p, id).await;
        }
    }
    Ok(())
}

/// The first element is the time of a group, not a job.
fn head_len(x: &Context) -> isize {
    isize::try_from(x.batch).unwrap_or(100) + 1
}

/// Whether the oldest group of ended jobs is older than `keep`. What is no time is for the script to judge.
fn is_old(first: Option<&str>, now_ms: u64, keep: Duration) -> bool {
    let Some(first) = first else { return false };
    let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    let since: Option<u64> = first.strip_prefix('@').and_then(|ms| ms.parse().ok());
    since.is_none_or(|since| since.saturating_add(keep) <= now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_age_of_the_oldest_group_counts() {
        let keep = Duration::from_millis(100);
        assert!(!is_old(None, 1000, keep));
        assert!(!is_old(Some("@901"), 1000, keep));
        assert!(is_old(Some("@900"), 1000, keep));
        assert!(!is_old(Some("@900"), 1000, Duration::MAX));
        assert!(is_old(Some("an-id"), 1000, keep));
    }
}
