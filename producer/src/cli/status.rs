//! `surety status`: where a job is.

use clap::Args;
use surety_common::{domain::JobId, view::JobView};

use super::{Context, failure::Failure, lookup};
use crate::render::Screen;

/// Show where a job is
///
/// Reads the record; a job that nobody has pulled yet is found in its queue, one that is scheduled by its schedule, one whose
/// record is gone in the journal.
/// Statuses: queued, scheduled, deferred, running, waiting_input, retry_wait, and terminal: done, failed, cancelled,
/// timed_out.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety status 01JD0000000000000000000000")]
pub(super) struct StatusArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
}

fn human(view: &JobView, screen: Screen) -> String {
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    let attempt = view.attempt.map(|a| match (view.charged, view.max_retries) {
        (Some(c), Some(m)) => format!("{a} ({c} of {} failed)", u64::from(m) + 1),
        _ => a.to_string(),
    });
    let text = |name: &str| {
        view.detail.as_ref().and_then(|d| d.get(name)).and_then(|v| v.as_str()).map(str::to_owned)
    };
    let subject = view.requester.as_ref().and_then(|r| r.get("subject")?.as_str()).map(str::to_owned);
    screen.facts(&[
        ("id", Some(view.id.clone())),
        ("status", Some(view.status.to_owned())),
        ("read from", Some(view.source.to_owned())),
        ("queue", Some(view.queue.clone())),
        ("type", view.job_type.clone()),
        ("key", view.key.clone()),
        ("summary", view.summary.clone()),
        ("contract", view.contract.map(str::to_owned)),
        ("requester", subject),
        ("start told by", view.ack_by.clone()),
        ("progress by", view.progress_by.clone()),
        ("nudged", view.is_nudged.filter(|n| *n).map(|_| "yes".to_owned())),
        ("tries to tell", view.tries.map(|n| n.to_string())),
        ("not seen because", view.tell_error.clone()),
        ("last report", view.last_report.clone()),
        ("generation", Some(view.generation.to_string())),
        ("rev", number(view.rev)),
        ("attempt", attempt),
        ("epoch", number(view.epoch)),
        ("session", view.session.clone()),
        ("error code", view.error_code.clone()),
        // What is kept of a failure is of an earlier attempt where the job is done.
        ("error", text("message").filter(|_| view.status != "done")),
        ("carrier", view.carrier.clone()),
        ("created at", view.created_at.clone()),
        ("started at", view.started_at.clone()),
        ("not before", view.due_at.clone()),
        ("attempt ends by", view.deadline_at.clone()),
        ("finish by", view.finish_by.clone()),
        ("ended at", view.ended_at.clone()),
    ])
}

pub(super) async fn run(cx: &Context, args: StatusArgs) -> Result<(), Failure> {
    let id = args.id;
    let c = cx.look().await?;
    let view = JobView::find(&c, &id).await?.ok_or_else(|| lookup::unknown(&id))?;
    cx.screen.show(&view, || human(&view, cx.screen))
}

#[cfg(test)]
mod tests {
    use clap::Args as _;
    use surety_common::domain::Status;

    use super::*;

    // Shows: I-02
    #[test]
    fn the_help_lists_every_status_and_which_are_terminal() {
        let help = StatusArgs::augment_args(clap::Command::new("status"))
            .get_long_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let (open, terminal) = help.split_once("and terminal:").unwrap();
        for s in Status::ALL {
            let part = if s.is_terminal() { terminal } else { open };
            assert!(part.contains(s.name()), "{} is not in the right list of:\n{help}", s.name());
        }
    }
}
