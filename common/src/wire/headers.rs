//! Header names, each in one place. `docs/protocol.md` explains them.

/// De-duplicates publishes inside the stream's window; the job id, for a first publish.
pub const MSG_ID: &str = "Nats-Msg-Id";
/// Refuses a publish that would land in another stream than the one meant.
pub const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
/// Refuses a publish where the newest message of its subject is another one; 0: where there is any.
pub const EXPECTED_LAST: &str = "Nats-Expected-Last-Subject-Sequence";
/// When a schedule fires: `@at <RFC 3339>`, `@every <duration>`, or cron with six fields.
pub const SCHEDULE: &str = "Nats-Schedule";
/// Subject of the message that a schedule makes each time.
pub const SCHEDULE_TARGET: &str = "Nats-Schedule-Target";
/// IANA time zone in which a cron schedule is read; UTC without it.
pub const SCHEDULE_ZONE: &str = "Nats-Schedule-Time-Zone";
/// Set by the server on what a schedule made: the subject of the schedule.
pub const SCHEDULER: &str = "Nats-Scheduler";
/// Set by the server likewise: when it fires next, or [`SCHEDULE_ENDS`].
pub const SCHEDULE_NEXT: &str = "Nats-Schedule-Next";
/// Value of [`SCHEDULE_NEXT`] where the schedule fired for its only time.
pub const SCHEDULE_ENDS: &str = "purge";

/// On a message of a bucket: what was done to the key, where that is not a new value.
pub const KV_OPERATION: &str = "KV-Operation";
/// Value of [`KV_OPERATION`]: the key has no value any more.
pub const KV_DELETE: &str = "DEL";
/// Set by the server where it removed a value: why.
pub const MARKER: &str = "Nats-Marker-Reason";

/// W3C trace context; travels to the handler and the receipt.
pub const TRACEPARENT: &str = "traceparent";
/// See [`TRACEPARENT`].
pub const TRACESTATE: &str = "tracestate";

/// Job id of a republished carrier, whose `Nats-Msg-Id` is no longer the job id.
pub const JOB: &str = "Surety-Job";
/// Generation of a republished carrier.
pub const GENERATION: &str = "Surety-Generation";
/// Highest generation: far above any number of replays, and with room to count on.
pub const MAX_GENERATION: u32 = 1_000_000_000;
/// When the job was first stored (RFC 3339), on a republished carrier.
pub const FIRST_AT: &str = "Surety-First-At";
/// Commit counter of the Redis data set when the journal entry was written.
pub const COMMIT: &str = "Surety-Commit";
/// Who is to be told of a receipt (JSON, as in the `finished` event).
pub const NOTIFY: &str = "Surety-Notify";
/// What a message to a requester is: `receipt`, `started` or `nudge`.
pub const KIND: &str = "Surety-Kind";
/// On a barrier of the journal, `<partition> <incarnation>`: from here on only entries of this data set count in this partition.
pub const FENCE: &str = "Surety-Fence";
/// Job ids that have a `finished` event in this journal message, separated by commas.
pub const ENDED: &str = "Surety-Ended";

/// Error code of a dead letter.
pub const REASON: &str = "Surety-Reason";
/// One line about a dead letter.
pub const MESSAGE: &str = "Surety-Message";
/// Subject the dead letter was first published to.
pub const SUBJECT: &str = "Surety-Subject";
/// `STREAM:sequence` of the dead letter's carrier; on a republished carrier, of the message whose place it takes.
pub const CARRIER: &str = "Surety-Carrier";
/// On a dead letter that holds only the beginning of its message: how many bytes the whole had.
pub const CUT: &str = "Surety-Cut";
/// Epoch of the last attempt of the dead letter, or when a carrier was republished.
pub const EPOCH: &str = "Surety-Epoch";
/// Prefix under which a dead letter keeps the original value of a header that must not be repeated (`Nats-*`).
pub const ORIGINAL: &str = "Surety-Original-";

/// Whether a header of a carrier may be copied to a republished message as it is. `Nats-*` would be obeyed by the
/// server (an old message id makes it drop the copy), and `Surety-*` is ours to set.
pub fn may_copy(name: &str) -> bool {
    let starts = |p: &str| name.get(..p.len()).is_some_and(|s| s.eq_ignore_ascii_case(p));
    !starts("Nats-") && !starts("Surety-")
}

/// Makes a text fit for a header value: one line, bounded, no control characters.
pub fn clean(text: &str) -> String {
    let one_line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    crate::domain::text::cut(one_line.trim(), 512).into_owned()
}

/// The generation of a carrier by its header: 1 where there is none.
/// Errors: it is no number from 1 to [`MAX_GENERATION`]. Nobody may guess then: a record of generation 0 cannot be read.
pub fn read_generation(header: Option<&str>) -> Result<u32, String> {
    let Some(text) = header else { return Ok(1) };
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|g| is_number && (1..=MAX_GENERATION).contains(g))
        .ok_or_else(|| format!("{GENERATION}: not a number from 1 to {MAX_GENERATION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: P8
    #[test]
    fn a_generation_is_a_whole_number_from_1_on() {
        assert_eq!(read_generation(None), Ok(1));
        assert_eq!(read_generation(Some("7")), Ok(7));
        assert_eq!(read_generation(Some("1000000000")), Ok(MAX_GENERATION));
        for bad in
            ["0", "-1", "+1", "1.5", "abc", "", " 1", "1000000001", "4294967296", "99999999999999999999"]
        {
            assert!(read_generation(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
