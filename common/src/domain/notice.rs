//! What a requester is told, and in which words. Every text is a pure function of stored fields, so two processes that tell
//! the same thing say the same (C-07), and none of them knows the payload (C-16).

use super::{EventKind, JobId, ids::receipt_id, text};

/// Longest summary inside a text.
const SUMMARY_CAP: usize = 200;

/// What a message to a requester is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The outcome, with its proof.
    Receipt,
    /// An attempt started.
    Started,
    /// Progress was promised by a time and did not come.
    Nudge,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Receipt, Self::Started, Self::Nudge];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Receipt => "receipt",
            Self::Started => "started",
            Self::Nudge => "nudge",
        }
    }

    /// What a requester is told of an event; `None`: it is in the journal and nobody is shown it, so it never counts as an
    /// acknowledgement or a delivery. A new kind of event has to be put on one of the two sides here.
    pub fn of(event: EventKind) -> Option<Self> {
        use EventKind as E;
        match event {
            E::Started => Some(Self::Started),
            E::SlaMissed => Some(Self::Nudge),
            E::Finished => Some(Self::Receipt),
            E::Acked
            | E::Progress
            | E::Tool
            | E::PhaseStarted
            | E::PhaseCompleted
            | E::Checkpoint
            | E::WaitingInput
            | E::Answered
            | E::Deferred
            | E::AttemptFailed
            | E::Lost
            | E::Released
            | E::Nudged
            | E::CancelRequested
            | E::ReceiptDelivered
            | E::ReceiptFailed
            | E::Buried
            | E::Replayed
            | E::Deleted
            | E::Missing => None,
        }
    }
}

/// What a text is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    pub job: &'a JobId,
    pub job_type: &'a str,
    /// Public; may be empty.
    pub summary: &'a str,
    pub attempt: u32,
}

/// The text of a notice, one line for people.
pub fn text(kind: Kind, f: &Facts<'_>) -> String {
    let what = if f.summary.is_empty() { f.job_type } else { &text::cut(f.summary, SUMMARY_CAP) };
    let Facts { job, attempt, .. } = f;
    match kind {
        Kind::Started => format!("Started: {what} (job {job}, attempt {attempt})."),
        Kind::Nudge => {
            format!(
                "No progress for longer than promised: {what} (job {job}, attempt {attempt}). It still runs."
            )
        }
        Kind::Receipt => format!("Ended: {what} (job {job})."),
    }
}

/// Id of a notice, the same whoever sends it: its idempotency key. `n` tells notices of one kind apart: the epoch of a start,
/// the revision of a missed promise.
pub fn notice_id(job: &JobId, generation: u32, kind: Kind, n: u64) -> String {
    receipt_id(job, generation, &format!("{}/{n}", kind.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows
    #[test]
    fn three_kinds_of_events_are_shown_and_all_others_are_not() {
        let shown: Vec<_> =
            EventKind::ALL.iter().filter_map(|e| Some((e.name(), Kind::of(*e)?.name()))).collect();
        assert_eq!(shown, [("started", "started"), ("sla_missed", "nudge"), ("finished", "receipt")]);
        for unseen in [EventKind::Tool, EventKind::PhaseStarted, EventKind::Progress] {
            assert_eq!(Kind::of(unseen), None);
        }
    }

    // Shows: C-07, C-08, C-16, V-09
    #[test]
    fn a_text_says_the_same_each_time_and_only_what_is_public() {
        let job = JobId::new("order-7").unwrap();
        let facts = Facts { job: &job, job_type: "thumbnail", summary: "Thumbnail of a.png", attempt: 2 };
        for _ in 0..100 {
            let said = Kind::ALL.map(|k| text(k, &facts));
            assert_eq!(
                said,
                [
                    "Ended: Thumbnail of a.png (job order-7).",
                    "Started: Thumbnail of a.png (job order-7, attempt 2).",
                    "No progress for longer than promised: Thumbnail of a.png (job order-7, attempt 2). It still runs.",
                ]
            );
            assert_eq!(notice_id(&job, 1, Kind::Nudge, 7), notice_id(&job, 1, Kind::Nudge, 7));
        }
        let bare = Facts { summary: "", ..facts };
        assert_eq!(text(Kind::Started, &bare), "Started: thumbnail (job order-7, attempt 2).");
    }

    #[test]
    fn each_notice_has_an_id_of_its_own() {
        let job = JobId::new("order-7").unwrap();
        let ids: std::collections::BTreeSet<_> = Kind::ALL
            .into_iter()
            .flat_map(|k| [(1, 1), (1, 2), (2, 1)].map(|(g, n)| notice_id(&job, g, k, n)))
            .chain([receipt_id(&job, 1, "finished")])
            .collect();
        assert_eq!(ids.len(), 10);
    }
}
