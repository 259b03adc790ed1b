//! A run under random faults: servers, workers and reapers are killed, frozen, stopped and cut off while jobs flow; then
//! everything is healed, and every promise is checked from what is left. `make chaos` and `tests/suite/chaos.rs` run it.
//!
//! 1. [`schedule`]: which faults come when, from a seed.
//! 2. [`fleet`]: makes them.
//! 3. [`load`]: the jobs, and what must become of each.
//! 4. [`traces`]: what handlers wrote down, and what of them is alive.
//! 5. [`verdict`]: what is wrong, if anything.

pub mod fleet;
pub mod load;
pub mod schedule;
pub mod traces;
pub mod verdict;

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use surety_common::connect::Connected;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{requester::Requester, world::World};
use fleet::Fleet;
use load::{Addresses, Book, Load};
use schedule::Plan;
use traces::Traces;
use verdict::{Figures, Problem};

/// Session TTL of a run. A keeper that is frozen is found out within half the margin, and within two seconds at the soonest: with
/// a shorter margin than four, trees outlive a lease that ends meanwhile.
pub const TTL: Duration = Duration::from_secs(6);
const TIMES: &str = r#"
[lease]
renewal = "300ms"
ttl = "6s"
margin = "4s"
[layout]
receipt_wait = "4s"
[notify]
timeout = "1s"
tries = 1000
backoff = ["100ms", "500ms"]
[contract]
ack = "1s"
progress = "1s"
[reaper]
carrier_check = "2s"
[guards]
fallback = "1s"
[guards.concurrency.keyed]
scope = "{key}"
types = ["keyed"]
limit = 1
[guards.rate.quick]
scope = "{type}"
types = ["quick"]
limit = 2
"#;
/// Longest that everything takes to settle after the last fault.
const SETTLES_WITHIN: Duration = Duration::from_secs(120);

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    pub figures: Figures,
    /// Faults that were made, by name.
    pub made: BTreeMap<String, u32>,
    /// How long it took to settle after the last fault.
    pub settled: Duration,
    /// Empty when every promise was kept.
    pub problems: Vec<Problem>,
    /// For people: the faults with their times, and all that is known of the first offending jobs.
    pub story: String,
}

impl Report {
    /// One paragraph.
    pub fn summary(&self) -> String {
        let f = &self.figures;
        let outcomes: Vec<String> = f.outcomes.iter().map(|(o, n)| format!("{n} {o}")).collect();
        let faults: u32 = self.made.values().sum();
        let made: Vec<String> = self.made.iter().map(|(what, n)| format!("{n} {what}")).collect();
        format!(
            "{} jobs ({}), {} attempts, {} of them lost, {} events ({} copies); settled {:.1} s after the last of {faults} \
             faults: {}",
            f.jobs,
            outcomes.join(", "),
            f.attempts,
            f.lost,
            f.events,
            f.copies,
            self.settled.as_secs_f64(),
            made.join(", ")
        )
    }
}

/// Runs a plan on servers and processes of its own. `is_loud`: tells what happens on stderr.
pub async fn run(plan: &Plan, is_loud: bool) -> Report {
    let folder = tempfile::tempdir().unwrap();
    // With `everysec` a killed Redis loses what it wrote while its disk stalled, up to two seconds: that is a loss of data.
    let fsync: &[&str] = if plan.may_wipe { &[] } else { &["--appendfsync", "always"] };
    let world = World::on(&(load::handlers(folder.path()) + TIMES), "", fsync).await;
    let traces = Traces::new(folder.path());
    let c = world.connect().await;
    let requester = Requester::start(&world, load::REQUESTER).await;
    let book = Arc::new(Mutex::new(Book::default()));
    let addresses =
        Addresses { nats: world.nats.url(), redis: world.redis.url(), config: world.config_file() };
    let load = Load { book: book.clone(), addresses };
    let (stop, give_up) = (CancellationToken::new(), CancellationToken::new());
    let producer = {
        let (stop, give_up, seed) = (stop.clone(), give_up.clone(), plan.seed);
        tokio::spawn(async move { load.run(seed, stop, give_up).await })
    };

    let mut fleet = Fleet::start(world, plan, is_loud).await;
    fleet.suffer(&plan.steps()).await;
    fleet.heal().await;
    stop.cancel();
    let healed = Instant::now();
    let mut problems = settle(&mut fleet, &c, &book, &producer, plan.may_wipe).await;
    let settled = healed.elapsed();
    give_up.cancel();
    producer.await.unwrap();

    let book = std::mem::take(&mut *book.lock().unwrap());
    let mut figures = Figures::default();
    match verdict::judge(&fleet.world, &c, &book, &traces, &requester).await {
        Ok((f, more)) => {
            figures = f;
            problems.extend(more);
        }
        Err(away) => problems.push(Problem { job: None, what: format!("nothing can be asked: {away}") }),
    }
    let audit = fleet.world.surety(&["audit", "--running"]).await;
    if audit.code != Some(0) {
        problems.push(Problem { job: None, what: format!("surety audit: {}\n{}", audit.err, audit.out) });
    }
    fleet.stop().await;
    for (pid, what) in traces.alive() {
        problems.push(Problem { job: None, what: format!("a process of a handler was left: {what}") });
        // Told, and not left to whoever runs this.
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).ok();
    }
    problems.extend(fleet.problems.iter().map(|p| Problem { job: None, what: p.clone() }));
    let story = story(plan, &fleet, &c, &traces, &problems).await;
    Report { figures, made: fleet.made.clone(), settled, problems, story }
}

/// Waits until nothing is left to do; gives what still is when time is up.
async fn settle(
    fleet: &mut Fleet,
    c: &Connected,
    book: &Mutex<Book>,
    producer: &tokio::task::JoinHandle<()>,
    may_wipe: bool,
) -> Vec<Problem> {
    let deadline = Instant::now() + SETTLES_WITHIN;
    let mut left = Vec::new();
    while Instant::now() < deadline {
        fleet.replace_dead();
        let jobs = {
            let book = book.lock().unwrap();
            Book { jobs: book.jobs.clone(), problems: Vec::new() }
        };
        let looked =
            timeout(Duration::from_secs(10), verdict::unsettled(&fleet.world, c, &jobs, may_wipe)).await;
        left = match looked {
            Ok(Ok(left)) if left.is_empty() && producer.is_finished() => return left,
            Ok(Ok(left)) => left,
            Ok(Err(away)) => vec![Problem { job: None, what: format!("nothing can be asked: {away}") }],
            Err(_) => vec![Problem { job: None, what: "the servers do not answer".into() }],
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if !producer.is_finished() {
        left.push(Problem { job: None, what: "not every job that was to be cancelled is".into() });
    }
    for p in &mut left {
        p.what = format!("not settled after {SETTLES_WITHIN:?}: {}", p.what);
    }
    left
}

/// Jobs that are told in full.
const TOLD: usize = 3;

async fn story(plan: &Plan, fleet: &Fleet, c: &Connected, traces: &Traces, problems: &[Problem]) -> String {
    let mut out = format!("SEED={} DURATION={}\n", plan.seed, plan.duration.as_secs());
    out += &fleet.log.join("\n");
    out += "\n";
    if problems.is_empty() {
        return out;
    }
    out += &format!("\n{} problems:\n", problems.len());
    for p in problems.iter().take(50) {
        let job = p.job.as_deref().map(|j| format!("{j}: ")).unwrap_or_default();
        writeln!(out, "- {job}{}", p.what).unwrap();
    }
    let mut jobs: Vec<&str> = problems.iter().filter_map(|p| p.job.as_deref()).collect();
    jobs.dedup();
    for job in jobs.into_iter().take(TOLD) {
        writeln!(out, "\n=== {job}: the journal").unwrap();
        let mut events = Vec::new();
        let mut take = |e: surety_common::wire::event::Event| {
            if e.job == job {
                events.push(e);
            }
        };
        if let Err(e) = c.broker.read_journal(None, 0, &mut take).await {
            writeln!(out, "cannot be read: {e}").unwrap();
        }
        for e in &events {
            let session = e.session.as_deref().unwrap_or("-");
            writeln!(
                out,
                "{} rev {} {} {} epoch {} attempt {} session {session} {}",
                e.at, e.rev, e.kind, e.status, e.epoch, e.attempt, e.data
            )
            .unwrap();
        }
        let record = c.store.record(&surety_common::domain::JobId::new(job).unwrap()).await;
        writeln!(out, "=== {job}: the record\n{record:?}\n=== {job}: its traces").unwrap();
        out += &traces.of(job).lines.join("\n");
        writeln!(out, "\n=== {job}: the logs").unwrap();
        out += &fleet.logged(job).join("\n");
        out += "\n";
    }
    out
}
