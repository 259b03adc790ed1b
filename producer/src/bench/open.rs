//! What many open jobs cost: the reaper's work and the store's must follow what is due, not what is open.

use std::time::Duration;

use serde::Serialize;
use surety_common::{
    domain::{ErrorCode, JobId, Requester, deadline::millis, ids::SessionId},
    store::{ClaimItem, ClaimReply, FinishItem, Store, StoreError, Verdict},
};
use tokio::process::Child;

use super::{
    bed::{Bed, cpu_of},
    run::BenchError,
};
use crate::dev::processes::Processes;

/// Jobs of one call: the bound that workers have.
const GROUP: usize = 200;
/// Jobs that come due in a second, and for how many seconds.
const DUE_PER_SECOND: u64 = 100;
/// See [`DUE_PER_SECOND`].
const SECONDS: u64 = 20;
/// Longer than any of this takes.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// The figures of one number of open jobs.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct OpenRound {
    pub open: u64,
    /// Memory of Redis for each open job, its index member included.
    pub bytes_per_record: f64,
    /// Deadlines that were acted on in the measured time.
    pub acted: u64,
    pub seconds: f64,
    /// CPU of Redis for each deadline, in microseconds.
    pub redis_us_per_due: f64,
    /// CPU of the reaper for each deadline, in microseconds.
    pub reaper_us_per_due: f64,
    /// CPU of both while nothing is due, in milliseconds a second.
    pub idle_ms_per_second: f64,
}

/// All of them.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct OpenReport {
    pub rounds: Vec<OpenRound>,
}

impl OpenReport {
    /// The table for people.
    pub fn table(&self) -> String {
        let mut out =
            format!("{DUE_PER_SECOND} deadlines a second for {SECONDS} s, among so many open jobs\n\n");
        let mut line = |name: &str, f: &dyn Fn(&OpenRound) -> String| {
            let cells: Vec<String> = self.rounds.iter().map(|r| format!("{:>12}", f(r))).collect();
            out.push_str(&format!("{name:<34}{}\n", cells.join("")));
        };
        line("open jobs", &|r| r.open.to_string());
        line("memory of redis per job (bytes)", &|r| format!("{:.0}", r.bytes_per_record));
        line("deadlines acted on", &|r| r.acted.to_string());
        line("redis CPU per deadline (µs)", &|r| format!("{:.0}", r.redis_us_per_due));
        line("reaper CPU per deadline (µs)", &|r| format!("{:.0}", r.reaper_us_per_due));
        line("both, nothing due (ms/s)", &|r| format!("{:.1}", r.idle_ms_per_second));
        out
    }
}

/// Measures each number of open jobs on servers of its own. `say` gets a line for each that begins.
pub async fn open_records(numbers: &[u32], say: &dyn Fn(&str)) -> Result<OpenReport, BenchError> {
    let programs = Processes::find()?;
    let mut rounds = Vec::with_capacity(numbers.len());
    for n in numbers {
        say(&format!("{n} open jobs"));
        let mut bed = Bed::make().await?;
        let session = session()?;
        let store = &bed.c.store;
        store.open_session(0, &session, FAR, "{}").await?;
        let before = store.server().await?.used;
        fill(store, &session, 0..u64::from(*n), |_| FAR).await?;
        let bytes = store.server().await?.used.saturating_sub(before);
        // A line for each deadline would be measured too.
        bed.start(programs.reaper(), &["--log", "error"])?;
        let idle = window(&bed, Duration::from_secs(5)).await?;
        // Due one after the other, from a little after the last of them is there.
        let due = DUE_PER_SECOND * SECONDS;
        let first = u64::from(*n);
        let lead = Duration::from_secs(2);
        let after = |i: u64| lead + Duration::from_millis((i - first) * 1000 / DUE_PER_SECOND);
        fill(&bed.c.store, &session, first..first + due, after).await?;
        let open = bed.c.store.n_open().await?;
        let busy = window(&bed, Duration::from_secs(SECONDS + 4)).await?;
        let acted = open - bed.c.store.n_open().await?;
        let idle_for_busy = |idle: f64| idle / 5.0 * busy.seconds;
        let per_due = |busy: f64, idle: f64| 1e6 * (busy - idle_for_busy(idle)) / acted.max(1) as f64;
        rounds.push(OpenRound {
            open: u64::from(*n),
            bytes_per_record: bytes as f64 / f64::from(*n),
            acted,
            seconds: busy.seconds,
            redis_us_per_due: per_due(busy.redis, idle.redis),
            reaper_us_per_due: per_due(busy.reaper, idle.reaper),
            idle_ms_per_second: 1e3 * (idle.redis + idle.reaper) / idle.seconds,
        });
        bed.stop().await?;
    }
    Ok(OpenReport { rounds })
}

fn session() -> Result<SessionId, BenchError> {
    SessionId::new("bench").map_err(|e| BenchError::Stuck(e.to_string()))
}

/// CPU seconds of a while.
struct Used {
    redis: f64,
    reaper: f64,
    seconds: f64,
}

async fn window(bed: &Bed, length: Duration) -> Result<Used, BenchError> {
    let reaper =
        || bed.processes.last().and_then(Child::id).map(cpu_of).transpose().map(Option::unwrap_or_default);
    let (redis, own) = (bed.c.store.cpu_seconds().await?, reaper()?);
    tokio::time::sleep(length).await;
    Ok(Used {
        redis: bed.c.store.cpu_seconds().await? - redis,
        reaper: reaper()? - own,
        seconds: length.as_secs_f64(),
    })
}

/// Makes jobs that were tried once and wait an hour for their retry; `finish` says how long after now each has to be ended.
async fn fill(
    store: &Store,
    session: &SessionId,
    numbers: std::ops::Range<u64>,
    finish: impl Fn(u64) -> Duration,
) -> Result<(), BenchError> {
    let now = store.now_ms().await?;
    let all: Vec<u64> = numbers.collect();
    for group in all.chunks(GROUP) {
        let items: Vec<ClaimItem<'_>> = group.iter().map(|i| claim(*i, now, finish(*i))).collect();
        let claimed = store.claim(0, session, u64::MAX >> 8, &items).await?;
        // Nothing of this is for the journal: only what the measured deadlines write is.
        store.confirm(0, claimed.entries.iter().map(|e| e.id.clone()));
        let mut ended = Vec::with_capacity(group.len());
        for (item, reply) in items.iter().zip(claimed.results) {
            let ClaimReply::Granted(grant) = reply else {
                return Err(BenchError::Stuck(format!("a claim was answered {reply:?}")));
            };
            let code = ErrorCode::ExitCode;
            ended.push(FinishItem {
                id: JobId::new(&item.id).map_err(|e| StoreError::Decode(e.to_string()))?,
                epoch: grant.epoch,
                verdict: Verdict::Retry { code, delay: Duration::from_secs(3600) },
                receipt: "{".into(),
                data: r#"{"error_code":"exit_code""#.into(),
                detail: String::new(),
            });
        }
        let finished = store.finish(0, session, &ended).await?;
        store.confirm(0, finished.entries.iter().map(|e| e.id.clone()));
    }
    Ok(())
}

fn claim(i: u64, now_ms: u64, finish: Duration) -> ClaimItem<'static> {
    ClaimItem {
        // As long as an id that the client makes.
        id: format!("01BENCH{i:019}").into(),
        queue: "default".into(),
        job_type: "noop".into(),
        key: "".into(),
        trace: "".into(),
        carrier: format!("JOBS:{i}").into(),
        ack_subject: "".into(),
        created_ms: now_ms,
        finish_ms: millis(finish),
        max_retries: 3,
        timeout_ms: 600_000,
        generation: 1,
        adopt: "".into(),
        expires_ms: 0,
        has_asked: false,
        ack_ms: 5000,
        progress_ms: 45_000,
        requester: &Requester::Nobody,
        summary: "".into(),
    }
}
