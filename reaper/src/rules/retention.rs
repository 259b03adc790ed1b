//! Records of jobs that ended long ago: deleted, with an event that says so.

use std::time::Duration;

use surety_common::{domain::deadline::millis, pace::Pace, store::Read};

use crate::rule::{Context, Done, Look, Rule, RuleError, Step, Verdict};

/// The rule.
pub(crate) struct Retention;

/// Which of the ended jobs at the front of the list are to go.
struct Front {
    head: Vec<String>,
    /// How old they must be.
    keep: Duration,
    why: &'static str,
    /// More of them are to go after these.
    is_more: bool,
}

impl Rule for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for p in 0..x.c.store.keys().partitions() {
                let Some(front) = front(x, p).await? else { continue };
                let now = x.c.store.now_ms_of(p).await?;
                let mut since = "";
                for element in &front.head {
                    if element.starts_with('@') {
                        since = element.trim_start_matches('@');
                        if !is_old(Some(element), now, front.keep) {
                            break;
                        }
                    } else {
                        let evidence = format!("ended at {since} ms or before; {}", front.why);
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
            for p in 0..x.c.store.keys().partitions() {
                let Some(Front { head, keep, is_more, .. }) = front(x, p).await? else { continue };
                let answer = x.c.store.forget(p, keep, &head).await?;
                x.c.relay.publish(p, &answer.entries, Pace::call(Duration::from_secs(5))).await?;
                for f in answer.results.into_iter().flatten() {
                    if f.kept > 0 {
                        note(x, p, &head).await?;
                        tracing::warn!(
                            jobs = f.kept,
                            alert = "records_kept",
                            "old records are kept: their outcome is not journaled or not delivered, or they cannot be read"
                        );
                    }
                    done.acted += f.deleted;
                    done.is_partial |= f.deleted > 0 && f.taken == head.len() && is_more;
                }
            }
            Ok(done)
        })
    }
}

/// What is to go of a partition, the oldest first: what is old enough, else what is too much.
async fn front(x: &Context, p: u32) -> Result<Option<Front>, RuleError> {
    let (settings, store) = (&x.settings.reaper, &x.c.store);
    let mut head = store.ended(p, head_len(x)).await?;
    let now = store.now_ms_of(p).await?;
    if is_old(head.first().map(String::as_str), now, settings.keep) {
        let why = "older than `reaper.keep`";
        return Ok(Some(Front { head, keep: settings.keep, why, is_more: true }));
    }
    // A message id is known at the broker for so long: before that a repeated publish is no second job.
    let least = x.settings.layout.duplicate_window.min(settings.keep);
    if !is_old(head.first().map(String::as_str), now, least) {
        return Ok(None);
    }
    let share = settings.keep_records.0 / u64::from(store.keys().partitions()).max(1);
    let too_many = store.ended_len(p).await?.saturating_sub(share);
    let (surplus, why) = if too_many > 0 {
        (usize::try_from(too_many).unwrap_or(usize::MAX), "more than `reaper.keep_records` are kept")
    } else if settings.keep_bytes.0 > 0 && store.used_memory(p).await? > settings.keep_bytes.0 {
        (usize::MAX, "redis uses more memory than `reaper.keep_bytes`")
    } else {
        return Ok(None);
    };
    let is_more = surplus > head.len();
    head.truncate(surplus.max(2));
    Ok(Some(Front { head, keep: least, why, is_more }))
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
    let keep = millis(keep);
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
