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
/// A line that is none to speak of, to compare with; the median of so many of them.
const FEW: usize = 10;
const FEW_TIMES: usize = 11;
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
    /// The same of a key that ten jobs wait for (median of eleven such keys).
    pub few_drained: f64,
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
             the crowd, one woken for each that ends  {:>10.0} /s\n\
             the same for a key with {FEW} jobs           {:>10.0} /s\n",
            self.plain,
            self.guarded,
            100.0 * self.guarded / self.plain,
            self.crowd,
            self.lined_up,
            self.other_alone_ms,
            self.other_beside_ms,
            self.drained,
            self.few_drained,
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
    say(&format!("{FEW} jobs of one key, then {crowd}"));
    let mut bed = Bed::with(NARROW).await?;
    bed.start(programs.reaper(), &[])?;
    bed.start(programs.worker(), &["--slots", "512"])?;
    let alone = others(&bed).await?;
    let mut few = Vec::with_capacity(FEW_TIMES);
    for n in 0..FEW_TIMES {
        let line = Line::make(&bed, &format!("few-{n}"), FEW).await?;
        few.push(line.run_through(&bed, FEW).await?);
    }
    few.sort_by(f64::total_cmp);
    let line = Line::make(&bed, "crowd", crowd).await?;
    let beside = others(&bed).await?;
    // A tenth of them is enough to tell the rate.
    let drained = line.run_through(&bed, (crowd / 10).max(1)).await?;
    bed.stop().await?;
    Ok(GuardReport {
        plain: plain.rate,
        guarded: guarded.rate,
        redis_us: [plain.redis_us, guarded.redis_us],
        worker_us: [plain.worker_us, guarded.worker_us],
        crowd,
        lined_up: line.lined_up,
        other_alone_ms: alone,
        other_beside_ms: beside,
        drained,
        few_drained: few.get(FEW_TIMES / 2).copied().unwrap_or(f64::NAN),
    })
}

/// Jobs of one key that wait for its slots, which nobody has for as long as it takes to fill the line.
struct Line {
    scope: [Scope; 1],
    partition: u32,
    n: usize,
    /// Gives the slots free.
    token: String,
    /// Jobs a second that were put into line.
    lined_up: f64,
}

const HOLD_MS: u64 = 4 * LIMIT.as_millis() as u64;

impl Line {
    async fn make(bed: &Bed, key: &str, n: usize) -> Result<Self, BenchError> {
        let scope = [Scope::new(GuardKind::Concurrency, "key", key, [SLOTS, 5000, 0, 0])];
        let partition = scope.first().map_or(0, |s| s.partition(bed.c.store.keys().partitions()));
        let ask = || GuardAct::Ask { arrival_ms: 0, ack_subject: "".into(), work: "".into(), keeps: false };
        let taken: Vec<GuardItem<'_>> = (0..SLOTS).map(|i| of_nobody(ask(), i)).collect();
        let token = bed.c.store.guard(partition, None, HOLD_MS, &scope, &taken).await?.token;
        let client = bed.client().await?;
        let started = Instant::now();
        let body = JobBuilder::new("noop").key(key);
        super::run::enqueue(&client, n, || body.clone()).await?;
        let mut line = Self { scope, partition, n, token, lined_up: f64::NAN };
        line.until(bed, |waiting| waiting >= n).await?;
        line.lined_up = n as f64 / started.elapsed().as_secs_f64();
        Ok(line)
    }

    /// Frees the slots, and gives the jobs a second at which the first `many` left the line.
    async fn run_through(&self, bed: &Bed, many: usize) -> Result<f64, BenchError> {
        let release = || GuardAct::Release {
            token: self.token.as_str().into(),
            until_ms: None,
            outcome: GuardOutcome::Neutral,
        };
        let freed: Vec<GuardItem<'_>> = (0..SLOTS).map(|i| of_nobody(release(), i)).collect();
        let started = Instant::now();
        let answer = bed.c.store.guard(self.partition, None, HOLD_MS, &self.scope, &freed).await?;
        wake(&bed.c, self.partition, HOLD_MS, &self.scope, answer.woken).await;
        let left = self.n - many.min(self.n);
        self.until(bed, |waiting| waiting <= left).await?;
        Ok(many as f64 / started.elapsed().as_secs_f64())
    }

    /// Waits until as many wait as wanted.
    async fn until(&self, bed: &Bed, want: impl Fn(usize) -> bool) -> Result<(), BenchError> {
        let started = Instant::now();
        let [scope] = &self.scope;
        loop {
            let state = bed.c.store.scope_state(self.partition, &scope.hash).await?;
            if want(state.map_or(0, |s| s.waiting as usize)) {
                return Ok(());
            }
            if started.elapsed() > LIMIT {
                return Err(BenchError::Stuck("the crowd did not get there in time".into()));
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }
}

fn of_nobody(act: GuardAct<'_>, i: u64) -> GuardItem<'_> {
    GuardItem { act, member: format!("nobody-{i}/1").into(), scopes: vec![0].into() }
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
