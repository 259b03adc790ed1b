//! `surety events`: the journal of a job, or of a key.

use std::collections::{BTreeMap, HashSet};

use clap::Args;
use serde::Serialize;
use surety_common::{
    domain::JobId,
    lookup::{find, journal_part},
    wire::event::Event,
};

use super::{Context, failure::Failure, lookup};
use crate::render::{Row, Tone};

/// Most events of one page.
pub(super) const PAGE_CAP: usize = 500;

/// List the journal of a job, or of a key
///
/// Events of a job come in the order of its transitions (rev), each once. A page has at most 500 events; when there are
/// more, the answer says so and how to go on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety events 01JD0000000000000000000000 --limit 50\n  \
                        surety events --key workspace-42 --json")]
pub(super) struct EventsArgs {
    /// The job's id
    #[arg(value_name = "ID", required_unless_present = "key", conflicts_with = "key")]
    id: Option<JobId>,
    /// List the events of all jobs with this key instead, in the order of the journal
    #[arg(long)]
    key: Option<String>,
    /// Events to list, at most 500; 0 lists none
    #[arg(long, value_name = "N", default_value_t = 200, allow_negative_numbers = true)]
    limit: i64,
    /// Go on after this rev (with --key: after this many events)
    #[arg(long, value_name = "REV", default_value_t = 0)]
    after: u64,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Page {
    events: Vec<Event>,
    /// There are more.
    is_cut: bool,
    /// What `--after` takes to go on, when there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<u64>,
    /// Journal messages that held something unreadable.
    unreadable: u64,
}

/// A line of the journal of one job.
#[derive(Serialize)]
pub(super) struct OfJob<'a>(pub(super) &'a Event);

/// A line of the journal of a key: of several jobs.
#[derive(Serialize)]
struct OfKey<'a>(&'a Event);

/// Time of an event as people read it: the journal is younger than a year.
pub(super) fn moment(at: &str) -> String {
    at.get(5..23).map_or_else(|| at.to_owned(), |t| t.replace('T', " "))
}

fn data(e: &Event) -> String {
    if e.data.is_null() { String::new() } else { e.data.to_string() }
}

impl Row for OfJob<'_> {
    const HEADS: &'static [&'static str] = &["REV", "AT", "KIND", "STATUS", "ATTEMPT", "DATA"];
    fn cells(&self) -> Vec<String> {
        let e = self.0;
        let (rev, attempt) = (e.rev.to_string(), e.attempt.to_string());
        vec![rev, moment(&e.at), e.kind.clone(), e.status.clone(), attempt, data(e)]
    }
    fn tone(&self) -> Option<(usize, Tone)> {
        Some((3, Tone::of_status(&self.0.status)?))
    }
}

impl Row for OfKey<'_> {
    const HEADS: &'static [&'static str] = &["AT", "JOB", "REV", "KIND", "DATA"];
    fn cells(&self) -> Vec<String> {
        let e = self.0;
        vec![moment(&e.at), e.job.clone(), e.rev.to_string(), e.kind.clone(), data(e)]
    }
    fn tone(&self) -> Option<(usize, Tone)> {
        Some((3, Tone::of_status(&self.0.status)?))
    }
}

/// The smallest events of a job after `after`, at most one more than a page.
struct ByRev {
    job: JobId,
    after: u64,
    limit: usize,
    found: BTreeMap<(u64, u32), Event>,
}

impl ByRev {
    fn add(&mut self, e: Event) {
        if e.job != self.job.as_str() || e.rev <= self.after {
            return;
        }
        // A relayed copy has the same generation and rev.
        self.found.entry((e.rev, e.generation)).or_insert(e);
        if self.found.len() > self.limit + 1 {
            self.found.pop_last();
        }
    }

    fn page(mut self, unreadable: u64) -> Page {
        let is_cut = self.found.len() > self.limit;
        if is_cut {
            self.found.pop_last();
        }
        let events: Vec<Event> = self.found.into_values().collect();
        let next_after = events.last().map(|e| e.rev).or(Some(self.after)).filter(|_| is_cut);
        Page { events, is_cut, next_after, unreadable }
    }
}

/// Events of a key in journal order, from position `after`, at most a page.
struct ByKey {
    key: String,
    after: u64,
    limit: usize,
    seen: HashSet<(String, u32, u64)>,
    position: u64,
    events: Vec<Event>,
    is_cut: bool,
}

impl ByKey {
    fn add(&mut self, e: Event) {
        if e.key.as_deref() != Some(self.key.as_str())
            || !self.seen.insert((e.job.clone(), e.generation, e.rev))
        {
            return;
        }
        self.position += 1;
        if self.position <= self.after {
            return;
        }
        if self.events.len() < self.limit { self.events.push(e) } else { self.is_cut = true }
    }

    fn page(self, unreadable: u64) -> Page {
        let next = self.after + self.events.len() as u64;
        Page { events: self.events, is_cut: self.is_cut, next_after: self.is_cut.then_some(next), unreadable }
    }
}

pub(super) async fn run(cx: &Context, args: EventsArgs) -> Result<(), Failure> {
    let limit = match usize::try_from(args.limit) {
        Err(_) => return Err(Failure::input(format!("--limit {} is negative; 0 lists none", args.limit))),
        Ok(n) if n > PAGE_CAP => {
            cx.screen.note(&format!("a page has at most {PAGE_CAP} events"));
            PAGE_CAP
        }
        Ok(n) => n,
    };
    let (after, is_of_job) = (args.after, args.id.is_some());
    let page = if limit == 0 {
        Page { events: Vec::new(), is_cut: false, next_after: None, unreadable: 0 }
    } else if let Some(id) = args.id {
        let c = cx.look().await?;
        let Some(seen) = find(&c, &id).await? else { return Err(lookup::unknown(&id)) };
        let (queue, from_ms) = journal_part(&seen);
        let mut found = ByRev { job: id, after, limit, found: BTreeMap::new() };
        let unreadable = c.broker.read_journal(queue.as_deref(), from_ms, |e| found.add(e)).await?;
        found.page(unreadable)
    } else {
        let c = cx.client().await?;
        let key = args.key.unwrap_or_default();
        let (seen, events) = (HashSet::new(), Vec::new());
        let mut found = ByKey { key, after, limit, seen, position: 0, events, is_cut: false };
        let unreadable = c.broker().read_journal(None, 0, |e| found.add(e)).await?;
        found.page(unreadable)
    };
    if is_of_job {
        cx.screen.table(&page, &page.events.iter().map(OfJob).collect::<Vec<_>>())?;
    } else {
        cx.screen.table(&page, &page.events.iter().map(OfKey).collect::<Vec<_>>())?;
    }
    if page.unreadable > 0 {
        cx.screen
            .note(&format!("{} journal messages held something unreadable, see the log", page.unreadable));
    }
    if let Some(next) = page.next_after {
        cx.screen.note(&format!("the list is cut; go on with --after {next}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(job: &str, rev: u64) -> Event {
        let text = format!(
            r#"{{"v":1,"job":"{job}","gen":1,"rev":{rev},"kind":"progress","at":"2026-11-21T08:00:00.000Z","queue":"q",
                "type":"t","key":"k","status":"running","contract":"acked","attempt":1,"epoch":1}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn moments_are_short_and_what_is_no_time_is_kept() {
        assert_eq!(moment("2026-11-21T08:00:00.123Z"), "11-21 08:00:00.123");
        assert_eq!(moment("soon"), "soon");
    }

    fn by_rev(after: u64, limit: usize) -> ByRev {
        ByRev { job: JobId::new("a").unwrap(), after, limit, found: BTreeMap::new() }
    }

    // Shows: E-02
    #[test]
    fn events_of_one_clock_tick_come_in_the_order_of_their_revs_and_once_each() {
        let mut found = by_rev(0, 200);
        for rev in (1..=100).rev().chain(1..=100) {
            found.add(event("a", rev));
            found.add(event("b", rev));
        }
        let page = found.page(0);
        let revs: Vec<u64> = page.events.iter().map(|e| e.rev).collect();
        assert_eq!(revs, (1..=100).collect::<Vec<_>>());
        assert!(!page.is_cut);
    }

    // Shows: E-04
    #[test]
    fn two_thousand_events_are_read_page_by_page_without_gap_or_repeat() {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let mut found = by_rev(after, 500);
            (1..=2000).for_each(|rev| found.add(event("a", rev)));
            let page = found.page(0);
            all.extend(page.events.iter().map(|e| e.rev));
            match page.next_after {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(all, (1..=2000).collect::<Vec<_>>());
    }

    // Shows: E-04
    #[test]
    fn events_of_a_key_are_paged_by_position() {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let mut found = ByKey {
                key: "k".into(),
                after,
                limit: 3,
                seen: HashSet::new(),
                position: 0,
                events: vec![],
                is_cut: false,
            };
            for rev in 1..=4 {
                found.add(event("a", rev));
                found.add(event("b", rev));
                found.add(event("a", rev));
            }
            let page = found.page(0);
            all.extend(page.events.iter().map(|e| (e.job.clone(), e.rev)));
            match page.next_after {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(all.len(), 8);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 8);
    }
}
