//! The measurements, one after the other, each on fresh servers, so that none sees what another left.

use std::{
    collections::HashMap,
    process::Stdio,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use surety_common::{
    broker::{BrokerError, floor::Floor},
    config::ConfigError,
    connect::ConnectError,
    domain::QueueName,
    store::StoreError,
};
use tokio::process::{Child, Command};

use super::{
    bed::{Bed, cpu_of},
    report::{Report, Round},
};
use crate::{
    client::{Client, ClientError, JobBuilder},
    dev::{
        processes::{ProcessError, Processes, Programs},
        servers::ServerError,
    },
};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Jobs of each rate measurement.
    pub jobs: usize,
    /// Commands of the command measurement.
    pub commands: usize,
    /// Jobs of the latency measurement.
    pub starts: usize,
    pub rounds: usize,
    /// Slots of the no-op worker.
    pub slots: usize,
}

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot {what}: {cause}")]
    Io { what: String, cause: std::io::Error },
    #[error("{0}")]
    Stuck(String),
}

pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
    let what = what.into();
    move |cause| BenchError::Io { what, cause }
}

/// Longest that one measurement may take.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// Publishes under way at once, in both the plain and our own measurement.
const IN_FLIGHT: usize = 4096;

/// Runs every measurement `rounds` times. `say` gets a line for each that begins.
pub async fn bench(plan: &Plan, say: &dyn Fn(&str)) -> Result<Report, BenchError> {
    let programs = Processes::find()?;
    let mut rounds = Vec::with_capacity(plan.rounds);
    let mut version = String::new();
    for n in 1..=plan.rounds {
        let mut round = Round::default();
        say(&format!("round {n} of {}: plain publish, plain pull and ack", plan.rounds));
        Box::pin(plain(plan, &mut round, &mut version)).await?;
        say(&format!("round {n} of {}: enqueue, no-op jobs", plan.rounds));
        Box::pin(noop(plan, &programs, &mut round)).await?;
        say(&format!("round {n} of {}: commands", plan.rounds));
        Box::pin(commands(plan, &programs, &mut round)).await?;
        say(&format!("round {n} of {}: idle enqueue to start", plan.rounds));
        Box::pin(starts(plan, &programs, &mut round)).await?;
        rounds.push(round);
    }
    Report::of(plan.jobs, version, rounds).ok_or_else(|| BenchError::Stuck("no round was asked for".into()))
}

pub(super) fn queue() -> Result<QueueName, BenchError> {
    QueueName::new("default").map_err(|e| BenchError::Stuck(e.to_string()))
}

fn rate(n: usize, took: Duration) -> f64 {
    n as f64 / took.as_secs_f64()
}

async fn plain(plan: &Plan, round: &mut Round, version: &mut String) -> Result<(), BenchError> {
    let bed = Bed::make().await?;
    *version = bed.c.broker.server_version();
    let floor = Floor::make(&bed.c.broker, "PLAIN").await?;
    round.plain_publish = rate(plan.jobs, floor.publish(plan.jobs, IN_FLIGHT).await?);
    round.plain_pull_and_ack = rate(plan.jobs, floor.pull_and_ack(plan.jobs).await?);
    floor.remove().await?;
    bed.stop().await
}

pub(super) async fn enqueue(
    client: &Client,
    n: usize,
    job: impl Fn() -> JobBuilder,
) -> Result<Duration, BenchError> {
    let queue = queue()?;
    let started = Instant::now();
    let mut pending = Vec::with_capacity(IN_FLIGHT);
    for _ in 0..n {
        if pending.len() >= IN_FLIGHT {
            // A quarter at a time, the newest of it first: one wait for the lot instead of one for each.
            for p in pending.drain(..IN_FLIGHT / 4).collect::<Vec<_>>().into_iter().rev() {
                stored(p).await?;
            }
        }
        pending.push(client.send(&queue, job()).await?);
    }
    for p in pending {
        stored(p).await?;
    }
    Ok(started.elapsed())
}

async fn stored(p: crate::client::Pending) -> Result<(), BenchError> {
    if p.stored().await?.is_duplicate {
        return Err(BenchError::Stuck("a fresh job was called a duplicate".into()));
    }
    Ok(())
}

async fn noop(plan: &Plan, programs: &Programs, round: &mut Round) -> Result<(), BenchError> {
    let (enqueued, done) = noop_jobs(plan, programs, Bed::make().await?).await?;
    round.enqueue = enqueued;
    round.noop = done.rate;
    (round.nats_cpu_us_per_job, round.worker_cpu_us_per_job) = (done.nats_us, done.worker_us);
    round.redis_cpu_us_per_job = done.redis_us;
    Ok(())
}

/// Figures of no-op jobs: a rate, and CPU per job in microseconds.
pub(super) struct Noop {
    pub(super) rate: f64,
    pub(super) redis_us: f64,
    pub(super) nats_us: f64,
    pub(super) worker_us: f64,
}

/// Enqueues no-op jobs, then starts a worker and lets it run them all: the rate of the one, and the figures of the other.
pub(super) async fn noop_jobs(
    plan: &Plan,
    programs: &Programs,
    mut bed: Bed,
) -> Result<(f64, Noop), BenchError> {
    let client = bed.client().await?;
    // With its envelope the whole document has about 256 bytes, as the plain messages have.
    let payload = serde_json::json!("x".repeat(180));
    let body = JobBuilder::new("noop").payload(&payload).map_err(|e| BenchError::Stuck(e.to_string()))?;
    let enqueued = rate(plan.jobs, enqueue(&client, plan.jobs, || body.clone()).await?);
    let before = bed.c.store.cpu_seconds().await?;
    bed.start(programs.reaper(), &[])?;
    bed.start(programs.worker(), &["--slots", &plan.slots.to_string()])?;
    let nats_before = bed.nats.pid().map(cpu_of).transpose()?.unwrap_or(0.0);
    let ended = bed.until_empty().await?;
    let cpu = bed.c.store.cpu_seconds().await? - before;
    let nats = bed.nats.pid().map(cpu_of).transpose()?.unwrap_or(0.0) - nats_before;
    let worker = bed.processes.last().and_then(Child::id).map(cpu_of).transpose()?.unwrap_or(0.0);
    let took = ended.duration_since(bed.first_start().await?).unwrap_or(Duration::from_millis(1));
    let each = |seconds: f64| 1e6 * seconds / plan.jobs as f64;
    let done = Noop {
        rate: rate(plan.jobs, took),
        redis_us: each(cpu),
        nats_us: each(nats),
        worker_us: each(worker),
    };
    bed.stop().await?;
    Ok((enqueued, done))
}

async fn commands(plan: &Plan, programs: &Programs, round: &mut Round) -> Result<(), BenchError> {
    let started = Instant::now();
    let mut running = FuturesUnordered::new();
    for i in 0..plan.commands {
        if i >= 4 {
            running.next().await;
        }
        running.push(bare());
    }
    while let Some(done) = running.next().await {
        done?;
    }
    round.bare_spawn_us = started.elapsed().as_secs_f64() * 1e6 / plan.commands as f64;

    let mut bed = Bed::make().await?;
    let client = bed.client().await?;
    enqueue(&client, plan.commands, || JobBuilder::new("true")).await?;
    bed.start(programs.reaper(), &[])?;
    bed.start(programs.worker(), &["--slots", "4"])?;
    let ended = bed.until_empty().await?;
    let took = ended.duration_since(bed.first_start().await?).unwrap_or(Duration::from_millis(1));
    round.command_us = took.as_secs_f64() * 1e6 / plan.commands as f64;
    bed.stop().await
}

async fn bare() -> Result<(), BenchError> {
    let out = Command::new("/bin/true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    out.await.map(drop).map_err(io("run /bin/true"))
}

/// From just before the publish to the moment the broker stored the `started` event: so the journal's publish is in it, and
/// the true start is a little earlier.
async fn starts(plan: &Plan, programs: &Programs, round: &mut Round) -> Result<(), BenchError> {
    let mut bed = Bed::make().await?;
    let client = bed.client().await?;
    let queue = queue()?;
    bed.start(programs.reaper(), &[])?;
    bed.start(programs.worker(), &["--slots", "8"])?;
    // The first jobs warm the path up; they are not counted.
    let warm = 20;
    let mut sent: HashMap<String, i128> = HashMap::new();
    for i in 0..plan.starts + warm {
        let before = surety_common::clock::wall_now().as_nanosecond();
        let e = client.enqueue(&queue, JobBuilder::new("noop")).await?;
        if i >= warm {
            sent.insert(e.id.to_string(), before);
        }
        bed.until_empty().await?;
    }
    let mut waits: Vec<f64> = Vec::with_capacity(sent.len());
    bed.c
        .broker
        .read_journal_stored(|stored_ns, e| {
            if e.kind == "started"
                && let Some(before) = sent.get(&e.job)
            {
                waits.push((stored_ns - before) as f64 / 1000.0);
            }
        })
        .await?;
    waits.sort_by(f64::total_cmp);
    let at =
        |q: f64| waits.get(((waits.len() as f64 - 1.0) * q).round() as usize).copied().unwrap_or(f64::NAN);
    (round.start_p50_us, round.start_p99_us) = (at(0.5), at(0.99));
    bed.stop().await
}
