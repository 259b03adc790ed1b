//! What guards cost: no-op jobs with a rate limit and a concurrency limit on each, and a key that a crowd waits for.

use std::time::{Duration, Instant};

use serde::Serialize;
use surety_common::{
    domain::guard::GuardKind,
    store::{GuardAct, GuardItem, GuardOutcome, Scope},
    wake::wake,
};

use super::{
    bed::Bed,
    run::{BenchError, LIMIT, Plan, noop_jobs, queue},
};
use crate::{client::JobBuilder, dev::processes::Processes};

/// One rate limit and one concurrency limit that every job asks, and neither ever refuses.
const WIDE: &str = "[guards.rate.all]\nscope = \"{queue}\"\nlimit = 1000000\n\
                    [guards.concurrency.all]\nscope = \"{queue}\"\nlimit = 1000000\n";
/// A key has four slots.
const NARROW: &str = "[guards.concurrency.key]\nscope = \"{key}\"\nlimit = 4\n";
const SLOTS: u64 = 4;
/// Jobs of the other key.
const OTHERS: usize = 10;

/// The figures.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct GuardReport {
    /// No-op jobs a second without guards, the best round.
    pub plain: f64,
    /// The same with one rate limit and one concurrency limit on each.
    pub guarded: f64,
    /// CPU of Redis for each job without and with guards, in microseconds.
    pub redis_us: [f64; 2],
    /// CPU of the worker for each job without and with guards, in microseconds.
    pub worker_us: [f64; 2],
    /// Jobs that wait for one key.
    pub crowd: usize,
    /// Jobs a second that were put into its line.
    pub lined_up: f64,
    /// Enqueue to end of jobs of another key on an idle worker, in milliseconds (median).
    pub other_alone_ms: f64,
    /// The same while the crowd waits.
    pub other_beside_ms: f64,
    /// Jobs a second that the crowded key ran through its four slots, one woken for each that ended.
    pub drained: f64,
}

impl GuardReport {
    /// The table for people.
    pub fn table(&self) -> String {
        let [redis, redis_guarded] = self.redis_us;
        let [worker, worker_guarded] = self.worker_us;
        format!(
            "no-op jobs without guards                {:>10.0} /s\n\
             with a rate and a concurrency limit each {:>10.0} /s, {:.0} % of it\n\
             redis CPU per job                        {redis:>10.1} µs, guarded {redis_guarded:.1}\n\
             worker CPU per job                       {worker:>10.1} µs, guarded {worker_guarded:.1}\n\
             crowd of one key                         {:>10} jobs, {SLOTS} slots\n\
             put into line                            {:>10.0} /s\n\
             another key, enqueue to end, alone       {:>10.1} ms\n\
             beside the crowd                         {:>10.1} ms\n\
             the crowd, one woken for each that ends  {:>10.0} /s\n",
            self.plain,
            self.guarded,
            100.0 * self.guarded / self.plain,
            self.crowd,
            self.lined_up,
            self.other_alone_ms,
            self.other_beside_ms,
            self.drained,
        )
    }
}

/// Measures. `crowd`: jobs that wait for one key. `say` gets a line for each measurement that begins.
pub async fn guards(plan: &Plan, crowd: usize, say: &dyn Fn(&str)) -> Result<GuardReport, BenchError> {
    let programs = Processes::find()?;
    let (mut plain, mut guarded) = (None, None);
    for n in 1..=plan.rounds {
        for (config, best) in [("", &mut plain), (WIDE, &mut guarded)] {
            let with = if config.is_empty() { "without" } else { "with" };
            say(&format!("round {n} of {}: no-op jobs {with} guards", plan.rounds));
            let bed = Bed::with(config).await?;
            let (_, done) = Box::pin(noop_jobs(plan, &programs, bed)).await?;
            if best.as_ref().is_none_or(|b: &super::run::Noop| b.rate < done.rate) {
                *best = Some(done);
            }
        }
    }
    let (Some(plain), Some(guarded)) = (plain, guarded) else {
        return Err(BenchError::Stuck("no round was asked for".into()));
    };
    say(&format!("{crowd} jobs of one key"));
    let mut bed = Bed::with(NARROW).await?;
    bed.start(programs.reaper(), &[])?;
    bed.start(programs.worker(), &["--slots", "512"])?;
    let alone = others(&bed).await?;
    // Its slots are taken, by nobody, for as long as it takes to fill the line.
    let scope = [Scope::new(GuardKind::Concurrency, "key", "crowd", [SLOTS, 5000, 0, 0])];
    let hold_ms = u64::try_from(LIMIT.as_millis() * 4).unwrap_or(u64::MAX);
    let item =
        |act, i: u64| GuardItem { act, member: format!("nobody-{i}/1").into(), scopes: vec![0].into() };
    let ask = || GuardAct::Ask { arrival_ms: 0, ack_subject: "".into(), work: "".into(), keeps: false };
    let taken: Vec<GuardItem<'_>> = (0..SLOTS).map(|i| item(ask(), i)).collect();
    let token = bed.c.store.guard(0, None, hold_ms, &scope, &taken).await?.token;
    let client = bed.client().await?;
    let started = Instant::now();
    let body = JobBuilder::new("noop").key("crowd");
    super::run::enqueue(&client, crowd, || body.clone()).await?;
    until(&bed, &scope, |s| s.is_some_and(|s| s.waiting as usize >= crowd)).await?;
    let lined_up = crowd as f64 / started.elapsed().as_secs_f64();
    let beside = others(&bed).await?;
    let release =
        || GuardAct::Release { token: token.as_str().into(), mark: None, outcome: GuardOutcome::Neutral };
    let freed: Vec<GuardItem<'_>> = (0..SLOTS).map(|i| item(release(), i)).collect();
    let started = Instant::now();
    let answer = bed.c.store.guard(0, None, hold_ms, &scope, &freed).await?;
    wake(&bed.c, 0, hold_ms, &scope, answer.woken).await;
    // A tenth of them is enough to tell the rate.
    let left = crowd - crowd / 10;
    until(&bed, &scope, |s| s.is_none_or(|s| s.waiting as usize <= left)).await?;
    let drained = (crowd / 10) as f64 / started.elapsed().as_secs_f64();
    bed.stop().await?;
    Ok(GuardReport {
        plain: plain.rate,
        guarded: guarded.rate,
        redis_us: [plain.redis_us, guarded.redis_us],
        worker_us: [plain.worker_us, guarded.worker_us],
        crowd,
        lined_up,
        other_alone_ms: alone,
        other_beside_ms: beside,
        drained,
    })
}

/// Waits until the crowded scope is as wanted.
async fn until(
    bed: &Bed,
    scope: &[Scope; 1],
    want: impl Fn(Option<surety_common::store::ScopeState>) -> bool,
) -> Result<(), BenchError> {
    let started = Instant::now();
    let [scope] = scope;
    while !want(bed.c.store.scope_state(0, &scope.hash).await?) {
        if started.elapsed() > LIMIT {
            return Err(BenchError::Stuck("the crowd did not get there in time".into()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Median time from enqueue to end of jobs of another key, one after the other (ms).
async fn others(bed: &Bed) -> Result<f64, BenchError> {
    let client = bed.client().await?;
    let queue = queue()?;
    let mut took = Vec::with_capacity(OTHERS);
    for _ in 0..OTHERS {
        let started = Instant::now();
        let job = client.enqueue(&queue, JobBuilder::new("noop").key("other")).await?;
        while !bed.c.store.record(&job.id).await?.is_some_and(|r| r.status.is_terminal()) {
            if started.elapsed() > LIMIT {
                return Err(BenchError::Stuck("a job of another key did not end in time".into()));
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        took.push(started.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    Ok(took.get(OTHERS / 2).copied().unwrap_or(f64::NAN))
}
