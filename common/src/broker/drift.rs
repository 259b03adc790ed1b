//! What differs between streams and consumers as they are and as the layout wants them. Only fields that the layout owns
//! are compared and changed; what an operator set besides (limits by count or size, placement, compression) stays.

use std::fmt::Debug;

use async_nats::jetstream::{consumer::pull, stream};

use super::topology::{LAYOUT, PARTITIONS};

/// One field that is not as the layout wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub field: &'static str,
    /// `ack_wait is 5s and not 60s`.
    pub text: String,
    /// `provision` can change it without losing or moving data.
    pub is_fixable: bool,
}

/// Collects differences, and carries each wanted value over.
struct Comparison(Vec<Difference>);

impl Comparison {
    /// Takes the wanted value, and notes whether it is another one.
    fn own<T: PartialEq + Debug + Clone>(&mut self, field: &'static str, have: &mut T, want: &T) {
        self.note(field, have, want, true);
        have.clone_from(want);
    }

    /// A value that cannot be changed: it is noted and left.
    fn fixed<T: PartialEq + Debug>(&mut self, field: &'static str, have: &T, want: &T) {
        self.note(field, have, want, false);
    }

    fn note<T: PartialEq + Debug>(&mut self, field: &'static str, have: &T, want: &T, is_fixable: bool) {
        if have != want {
            let text = format!("{field} is {have:?} and not {want:?}");
            self.0.push(Difference { field, text, is_fixable });
        }
    }
}

fn number(text: &str) -> u32 {
    text.parse().unwrap_or(0)
}

/// 0 and -1 both stand for "no limit".
fn unlimited(n: i64) -> i64 {
    if n <= 0 { -1 } else { n }
}

/// What differs, and the configuration that `provision` would apply: subjects and metadata that exist are kept.
pub(crate) fn stream(have: &stream::Config, want: &stream::Config) -> (Vec<Difference>, stream::Config) {
    let mut c = Comparison(Vec::new());
    let mut next = have.clone();
    c.fixed("retention", &have.retention, &want.retention);
    c.fixed("storage", &have.storage, &want.storage);
    c.fixed("sealed", &have.sealed, &want.sealed);
    // Cannot be switched off again, and let whoever may publish here remove messages.
    for (field, have, want) in [
        ("allow_msg_ttl", have.allow_message_ttl, want.allow_message_ttl),
        ("allow_msg_schedules", have.allow_message_schedules, want.allow_message_schedules),
    ] {
        c.note(field, &have, &want, want);
    }
    next.allow_message_ttl |= want.allow_message_ttl;
    next.allow_message_schedules |= want.allow_message_schedules;

    let missing: Vec<_> = want.subjects.iter().filter(|s| !have.subjects.contains(s)).cloned().collect();
    if !missing.is_empty() {
        let text = format!("subjects {} are missing", missing.join(", "));
        c.0.push(Difference { field: "subjects", text, is_fixable: true });
        next.subjects.extend(missing);
    }
    for (key, value) in &want.metadata {
        match have.metadata.get(key) {
            Some(found) if found != value && key == PARTITIONS => {
                let text = format!(
                    "the records in redis are in {found} partitions and not {value}; changing that needs an empty system"
                );
                c.0.push(Difference { field: "partitions", text, is_fixable: false });
            }
            Some(found) if key == LAYOUT && number(found) > number(value) => {
                let text = format!("a newer release made it: layout {found}, this one knows {value}");
                c.0.push(Difference { field: "layout", text, is_fixable: false });
            }
            found => {
                c.note("metadata", &(key, found), &(key, Some(value)), true);
                next.metadata.insert(key.clone(), value.clone());
            }
        }
    }
    c.own("discard", &mut next.discard, &want.discard);
    c.own("discard_new_per_subject", &mut next.discard_new_per_subject, &want.discard_new_per_subject);
    c.own("max_age", &mut next.max_age, &want.max_age);
    // Without a limit of ours an operator's own stays.
    if want.max_bytes > 0 {
        c.own("max_bytes", &mut next.max_bytes, &want.max_bytes);
    }
    next.max_messages_per_subject = unlimited(next.max_messages_per_subject);
    let per_subject = unlimited(want.max_messages_per_subject);
    c.own("max_msgs_per_subject", &mut next.max_messages_per_subject, &per_subject);
    c.own("num_replicas", &mut next.num_replicas, &want.num_replicas);
    c.own("duplicate_window", &mut next.duplicate_window, &want.duplicate_window);
    c.own("allow_direct", &mut next.allow_direct, &want.allow_direct);
    c.own("no_ack", &mut next.no_ack, &want.no_ack);
    c.own("deny_delete", &mut next.deny_delete, &want.deny_delete);
    if !next.allow_message_schedules {
        // Roll-ups come with schedules and cannot be had without them there.
        c.own("allow_rollup_hdrs", &mut next.allow_rollup, &want.allow_rollup);
    }
    (c.0, next)
}

/// The same for a consumer. A pause that an operator made is no difference.
pub(crate) fn consumer(have: &pull::Config, want: &pull::Config) -> (Vec<Difference>, pull::Config) {
    let mut c = Comparison(Vec::new());
    let mut next = have.clone();
    c.fixed("ack_policy", &have.ack_policy, &want.ack_policy);
    c.fixed("deliver_policy", &have.deliver_policy, &want.deliver_policy);
    c.fixed("max_waiting", &have.max_waiting, &want.max_waiting.max(have.max_waiting));
    next.filter_subjects = filters(have);
    next.filter_subject = String::new();
    c.own("filter_subjects", &mut next.filter_subjects, &filters(want));
    c.own("ack_wait", &mut next.ack_wait, &want.ack_wait);
    c.own("backoff", &mut next.backoff, &want.backoff);
    c.own("max_deliver", &mut next.max_deliver, &want.max_deliver);
    c.own("max_ack_pending", &mut next.max_ack_pending, &want.max_ack_pending);
    c.own("headers_only", &mut next.headers_only, &want.headers_only);
    c.own("max_batch", &mut next.max_batch, &want.max_batch);
    c.own("max_bytes", &mut next.max_bytes, &want.max_bytes);
    c.own("max_expires", &mut next.max_expires, &want.max_expires);
    c.own("inactive_threshold", &mut next.inactive_threshold, &want.inactive_threshold);
    c.own("rate_limit_bps", &mut next.rate_limit, &want.rate_limit);
    c.own("priority_groups", &mut next.priority_groups, &want.priority_groups);
    (c.0, next)
}

/// What a consumer filters, whichever field says it.
pub(crate) fn filters(c: &pull::Config) -> Vec<String> {
    let one = Some(&c.filter_subject).filter(|f| !f.is_empty());
    let mut all: Vec<String> = c.filter_subjects.iter().chain(one).cloned().collect();
    all.sort();
    all.dedup();
    all
}
