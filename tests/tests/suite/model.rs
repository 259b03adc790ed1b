//! The same random sequences through the Lua scripts on a real Redis and through `domain::status::next`: after every step
//! the records, the refusals, the journal and the indexes must say the same.
//!
//! Driven are both machines, the job's and its contract's, with the promises and deadlines that the record keeps beside them
//! (`model/promise.rs`) and the index that they make. Times pass for real: what is to be over is given no time.
//!
//! What is not driven here, because no script has it yet: `Waiting`, `Answered`, `Fired`, `Defer`.

mod acts;
mod promise;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner},
};
use redis::AsyncCommands;
use surety_common::{
    domain::{
        ErrorCode, EventKind, Input, JobId, JobState, Refusal, Status,
        ids::{Namespace, SessionId, TypeName},
        status::next,
    },
    store::{
        Answer, ClaimItem, ClaimReply, DueAct, FinishItem, FinishReply, LostItem, LostReply, OutboxEntry,
        ProgressItem, ProgressReply, ReplayItem, ReplayReply, SettleItem, SettleReply, Store, StoreError,
        StoreOptions, Telling, Verdict,
    },
    wire::{event::read_message, receipt::Draft},
};
use surety_tests::{history::History, redis::Kind};

use promise::{Promise, Terms, Times, requester};

const JOBS: usize = 3;
const SESSIONS: usize = 2;
const HOUR: Duration = Duration::from_secs(3600);
const TTL: Duration = Duration::from_secs(3600);
/// So many attempts of a job may be lost.
const LOST_LIMIT: u32 = 3;

/// Which message a claim comes with.
#[derive(Debug, Clone, Copy)]
enum Carrier {
    /// The recorded one.
    Recorded,
    /// Another one of the same generation.
    Second,
    /// Another one, and the recorded one was seen to be gone.
    Adopting,
    /// That of the generation before.
    Old,
    /// That of the next generation, whose replay is not recorded yet.
    Next,
    /// The same, after its `expires_at`.
    NextLate,
    /// The recorded one, after its `expires_at`.
    Late,
}

/// Why a job ends that nobody runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Cancel,
    Burial,
    Deadline,
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Claim {
        job: usize,
        session: usize,
        carrier: Carrier,
        terms: Terms,
    },
    /// `back`: how far the epoch lies behind the recorded one; -1 is one that nobody has yet.
    Finish {
        job: usize,
        session: usize,
        verdict: Verdict,
        back: i8,
    },
    Progress {
        job: usize,
        session: usize,
        back: i8,
        is_impatient: bool,
    },
    /// Somebody wants the job cancelled while this session may run it.
    Stop {
        job: usize,
        session: usize,
        back: i8,
    },
    /// A reaper finds the job in the index; `None`: it judges rightly. `is_late`: it judged an earlier state.
    Due {
        job: usize,
        act: Option<DueAct>,
        is_late: bool,
    },
    /// What became of telling the requester; `is_late`: of the generation before.
    Told {
        job: usize,
        what: Telling,
        is_late: bool,
    },
    /// The session expires, the reaper commits what it ran, and its worker comes back with a new one.
    Expire {
        session: usize,
    },
    /// A reaper that is wrong about a session.
    LostAlive {
        session: usize,
    },
    Settle {
        job: usize,
        by: By,
        is_next_generation: bool,
    },
    Replay {
        job: usize,
    },
    Renew {
        session: usize,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    let (job, session) = (0..JOBS, 0..SESSIONS);
    let carrier = prop_oneof![
        12 => Just(Carrier::Recorded),
        1 => Just(Carrier::Second),
        1 => Just(Carrier::Adopting),
        1 => Just(Carrier::Old),
        1 => Just(Carrier::Next),
        1 => Just(Carrier::NextLate),
        1 => Just(Carrier::Late),
    ];
    let verdict = select(vec![
        Verdict::Done,
        Verdict::Fail(ErrorCode::ExitCode),
        Verdict::Fail(ErrorCode::Timeout),
        Verdict::Retry { code: ErrorCode::Signal, delay: Duration::ZERO },
        Verdict::Retry { code: ErrorCode::Signal, delay: Duration::ZERO },
        Verdict::Retry { code: ErrorCode::Oom, delay: HOUR },
        Verdict::Release,
        Verdict::StartFailed { delay: Duration::ZERO },
        Verdict::StartFailed { delay: HOUR },
        Verdict::CancelObeyed,
    ]);
    let back = prop_oneof![8 => Just(0i8), 1 => Just(1i8), 1 => Just(-1i8)];
    prop_oneof![
        10 => (job.clone(), session.clone(), carrier, Terms::any())
            .prop_map(|(job, session, carrier, terms)| Op::Claim { job, session, carrier, terms }),
        9 => (job.clone(), session.clone(), verdict, back.clone())
            .prop_map(|(job, session, verdict, back)| Op::Finish { job, session, verdict, back }),
        3 => (job.clone(), session.clone(), back.clone(), any::<bool>()).prop_map(
            |(job, session, back, is_impatient)| Op::Progress { job, session, back, is_impatient }
        ),
        3 => (job.clone(), session.clone(), back).prop_map(|(job, session, back)| Op::Stop { job, session, back }),
        7 => (job.clone(), promise::any_act(), prop::bool::weighted(0.1))
            .prop_map(|(job, act, is_late)| Op::Due { job, act, is_late }),
        6 => (job.clone(), promise::any_telling(), prop::bool::weighted(0.1))
            .prop_map(|(job, what, is_late)| Op::Told { job, what, is_late }),
        2 => session.clone().prop_map(|session| Op::Expire { session }),
        1 => session.clone().prop_map(|session| Op::LostAlive { session }),
        2 => (job.clone(), select(vec![By::Cancel, By::Burial, By::Deadline]), any::<bool>())
            .prop_map(|(job, by, is_next_generation)| Op::Settle { job, by, is_next_generation }),
        3 => job.prop_map(|job| Op::Replay { job }),
        1 => session.prop_map(|session| Op::Renew { session }),
    ]
}

/// One step: an operation, and whether its reply is lost, so that it is repeated under the same call id.
type Step = (Op, bool);

/// A job as the model knows it.
#[derive(Debug, Default, Clone)]
struct Known {
    state: Option<JobState>,
    carrier: String,
    /// Subject that acks the recorded delivery, or empty.
    ack: String,
    /// Name of the session that runs it, or empty.
    owner: String,
    promise: Promise,
    /// Kind, generation, status and contract of every event so far.
    events: Vec<(&'static str, u32, &'static str, &'static str)>,
}

impl Known {
    fn generation(&self) -> u32 {
        self.state.as_ref().map_or(1, |s| s.generation)
    }

    fn epoch(&self, back: i8) -> u64 {
        self.state.as_ref().map_or(0, |s| s.epoch).saturating_add_signed(-i64::from(back))
    }

    fn owned_by(&self, session: &SessionId) -> bool {
        self.owner == session.as_str()
    }

    /// Lets the machine decide, and keeps what it decided.
    fn apply(
        &mut self,
        job: usize,
        state: &JobState,
        input: Input,
        now_ms: u64,
        times: Times,
    ) -> Result<(), Refusal> {
        let t = next(state, input, now_ms, requester(job))?;
        let told = t.events.iter().map(|e| {
            // A burial is told as failed already by its first event, and settles the contract by its second.
            let contract = if *e == EventKind::Buried { state.contract } else { t.state.contract };
            (e.name(), t.state.generation, t.state.status.name(), contract.name())
        });
        self.events.extend(told);
        if !t.state.status.is_running() {
            self.owner.clear();
        }
        if t.state.status.is_terminal() && !state.status.is_terminal() {
            self.ack.clear();
        }
        // Being asked twice writes nothing, so it moves nothing in the index either.
        if !t.events.is_empty() {
            self.promise.follow(&t.state, input, now_ms, times);
        }
        self.state = Some(t.state);
        Ok(())
    }
}

struct Case {
    store: Store,
    redis: redis::aio::MultiplexedConnection,
    sessions: Vec<SessionId>,
    n_sessions: usize,
    jobs: Vec<Known>,
    max_retries: Vec<u32>,
    created_ms: u64,
    /// How long what waits is left alone.
    look: Duration,
    n_carriers: u64,
    /// Every journal body so far, and the last outbox entry that was read.
    journal: Vec<String>,
    last_entry: String,
}

fn id(job: usize) -> JobId {
    JobId::new(&format!("job-{job}")).unwrap()
}

fn carrier_name(n: u64) -> String {
    format!("JOBS:{n}")
}

fn ack_of(carrier: &str) -> String {
    format!("ack.{carrier}")
}

fn receipt(job: usize, generation: u32, outcome: Status) -> String {
    Draft::new(&id(job), generation, &TypeName::new("t").unwrap(), outcome.name()).open_json()
}

static N_CASES: AtomicU32 = AtomicU32::new(0);

impl Case {
    async fn start(url: &str, look: Duration) -> Self {
        let n = N_CASES.fetch_add(1, Ordering::Relaxed);
        let store = Store::connect(StoreOptions {
            url: url.into(),
            login: Default::default(),
            namespace: Namespace::new(&format!("m{n}")).unwrap(),
            partitions: 1,
            call_timeout: Duration::from_secs(5),
            retry_limit: Duration::from_secs(5),
            keep: HOUR,
            look_after: look,
            lost_limit: LOST_LIMIT,
        })
        .await
        .unwrap();
        store.open("2026-01-01", true).await.unwrap();
        let redis = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let created_ms = store.now_ms().await.unwrap();
        let mut case = Self {
            store,
            redis,
            sessions: Vec::new(),
            n_sessions: 0,
            jobs: vec![Known::default(); JOBS],
            max_retries: vec![0, 1, 3],
            created_ms,
            look,
            n_carriers: 0,
            journal: Vec::new(),
            last_entry: String::new(),
        };
        for _ in 0..SESSIONS {
            let s = case.session().await;
            case.sessions.push(s);
        }
        case
    }

    async fn session(&mut self) -> SessionId {
        self.n_sessions += 1;
        let s = SessionId::new(&format!("s{}", self.n_sessions)).unwrap();
        self.store.open_session(0, &s, TTL, "{}").await.unwrap();
        s
    }

    /// Makes a call; with `is_repeated` its first reply is "lost": the second must be the same and write nothing.
    async fn call<R: PartialEq + std::fmt::Debug>(
        &self,
        is_repeated: bool,
        call: impl AsyncFn(&Store) -> Result<Answer<R>, StoreError>,
    ) -> Result<Answer<R>, TestCaseError> {
        let first = call(&self.store).await.map_err(|e| TestCaseError::fail(e.to_string()))?;
        if is_repeated {
            let before = self.dump().await;
            self.store.repeat_last_call();
            let second = call(&self.store).await.map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(&first.results, &second.results, "the repeated call answered something else");
            prop_assert_eq!(before, self.dump().await, "the repeated call wrote again");
        }
        Ok(first)
    }

    /// Everything in Redis that a repeated call must not change. (The commit counter counts calls.)
    async fn dump(&self) -> Vec<Vec<u8>> {
        let mut redis = self.redis.clone();
        let keys = self.store.keys();
        let mut out = Vec::new();
        for job in 0..JOBS {
            out.push(redis.get::<_, Option<Vec<u8>>>(keys.job(&id(job))).await.unwrap().unwrap_or_default());
        }
        let outbox: u64 = redis.xlen(keys.outbox(0)).await.unwrap();
        out.push(outbox.to_string().into_bytes());
        for s in &self.sessions {
            let mut run: Vec<String> = redis.smembers(keys.run(0, s)).await.unwrap();
            run.sort();
            out.push(run.join(",").into_bytes());
        }
        out
    }

    fn times(&self) -> Times {
        Times { look: self.look.as_millis() as u64, ..Times::default() }
    }

    fn claim_item(&self, job: usize, carrier: &str, generation: u32, terms: Terms) -> ClaimItem<'static> {
        ClaimItem {
            ack_ms: terms.promise_ms(),
            progress_ms: terms.promise_ms(),
            requester: requester(job),
            summary: "".into(),
            id: id(job).to_string().into(),
            queue: "default".into(),
            job_type: "t".into(),
            key: String::new().into(),
            trace: String::new().into(),
            carrier: carrier.to_owned().into(),
            ack_subject: ack_of(carrier).into(),
            created_ms: self.created_ms,
            finish_ms: terms.finish_ms(),
            max_retries: self.max_retries[job],
            timeout_ms: terms.timeout_ms(),
            generation,
            adopt: String::new().into(),
            expires_ms: 0,
            has_asked: false,
        }
    }

    async fn step(&mut self, (op, is_repeated): Step) -> Result<(), TestCaseError> {
        match op {
            Op::Claim { job, session, carrier, terms } => {
                self.claim(job, session, carrier, terms, is_repeated).await
            }
            Op::Finish { job, session, verdict, back } => {
                self.finish(job, session, verdict, back, is_repeated).await
            }
            Op::Progress { job, session, back, is_impatient } => {
                self.progress(job, session, back, is_impatient, is_repeated).await
            }
            Op::Stop { job, session, back } => self.stop(job, session, back, is_repeated).await,
            Op::Due { job, act, is_late } => self.due(job, act, is_late, is_repeated).await,
            Op::Told { job, what, is_late } => self.told(job, what, is_late, is_repeated).await,
            Op::Expire { session } => self.expire(session).await,
            Op::LostAlive { session } => {
                let before = self.dump().await;
                let items = self.lost_items(session);
                let refused = self.store.lost(0, &self.sessions[session], &items).await;
                prop_assert!(matches!(refused, Err(StoreError::SessionLost)), "{refused:?}");
                prop_assert_eq!(before, self.dump().await);
                Ok(())
            }
            Op::Settle { job, by, is_next_generation } => {
                self.settle(job, by, is_next_generation, is_repeated).await
            }
            Op::Replay { job } => self.replay(job, is_repeated).await,
            Op::Renew { session } => self.renew(session).await,
        }
    }

    async fn claim(
        &mut self,
        job: usize,
        session: usize,
        carrier: Carrier,
        terms: Terms,
        is_repeated: bool,
    ) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        let s = self.sessions[session].clone();
        self.n_carriers += 1;
        let other = carrier_name(self.n_carriers);
        let recorded = if known.carrier.is_empty() { other.clone() } else { known.carrier.clone() };
        let generation = known.generation();
        let (before, after) = match &known.state {
            Some(_) => ((generation - 1).max(1), generation + 1),
            None => (1, 1),
        };
        let mut item = match carrier {
            Carrier::Recorded | Carrier::Late => self.claim_item(job, &recorded, generation, terms),
            Carrier::Second | Carrier::Adopting => self.claim_item(job, &other, generation, terms),
            Carrier::Old => self.claim_item(job, &other, before, terms),
            Carrier::Next | Carrier::NextLate => self.claim_item(job, &other, after, terms),
        };
        match carrier {
            Carrier::Adopting => item.adopt = known.carrier.clone().into(),
            Carrier::Late | Carrier::NextLate => item.expires_ms = 1,
            _ => {}
        }
        let items = [item.clone()];
        let claim = async |st: &Store| {
            let mut a = st.claim(0, &s, 1_000_000, &items).await?;
            // Spans are made points in time, so that a repeated call answers the same.
            for r in &mut a.results {
                match r {
                    ClaimReply::LiveOwner { lease_ms: ms } | ClaimReply::NotDue { due_in_ms: ms } => {
                        *ms += a.now_ms
                    }
                    _ => {}
                }
            }
            Ok(a)
        };
        let a = self.call(is_repeated, claim).await?;
        let now = a.now_ms;

        // What the scripts decide around the machine: which message carries the job.
        let mut state = known.state.clone().unwrap_or_else(|| JobState {
            generation: item.generation,
            ..JobState::queued(item.max_retries)
        });
        let times = Times {
            ack: item.ack_ms.into(),
            progress: item.progress_ms.into(),
            timeout: item.timeout_ms,
            ..self.times()
        };
        let finish_by = item.created_ms + item.finish_ms;
        let k = &mut self.jobs[job];
        if k.state.is_none() {
            // Kept only if the claim is granted; until then it is written anew by each.
            k.promise.finish_by = finish_by;
        }
        let mut recorded = known.carrier.clone();
        if item.generation > state.generation && state.status.is_terminal() {
            // The replay is recorded by the claim that meets its carrier first.
            state.max_retries = item.max_retries;
            k.apply(job, &state, Input::Replay, now, times).unwrap();
            k.promise.finish_by = finish_by;
            state = k.state.clone().unwrap();
            recorded = item.carrier.to_string();
            (k.carrier, k.ack) = (recorded.clone(), item.ack_subject.to_string());
        }
        let reply = &a.results[0];
        if item.generation < state.generation {
            prop_assert_eq!(reply, &ClaimReply::StaleGeneration);
            return Ok(());
        }
        let is_second = !recorded.is_empty() && recorded != item.carrier && recorded != item.adopt;
        if is_second && !state.status.is_terminal() {
            prop_assert_eq!(reply, &ClaimReply::SecondCarrier { recorded });
            return Ok(());
        }
        let is_late = item.expires_ms != 0 && state.epoch == 0;
        let is_overdue = k.promise.finish_by <= now;
        let with_budget = JobState { max_retries: item.max_retries, ..state.clone() };
        match (next(&with_budget, Input::Claim, now, requester(job)), reply) {
            (Err(Refusal::Terminal), ClaimReply::Ended(e)) => {
                prop_assert_eq!(
                    (e.status, e.generation, e.epoch),
                    (state.status, state.generation, state.epoch)
                );
                prop_assert_eq!(e.code.as_str(), state.error.map_or("", ErrorCode::name));
                // Nothing was published by this test, so the outcome must be handed over.
                prop_assert!(!e.is_journaled);
                // That of the outcome; or, once its receipt is settled, which comes after, that of the receipt's event.
                let is_settled = k.events.last().is_some_and(|(kind, ..)| kind.starts_with("receipt"));
                let is_its = |e: &OutboxEntry| e.ended.split(',').any(|i| i == item.id);
                prop_assert!(a.entries.iter().any(|e| is_settled || is_its(e)));
            }
            (Err(Refusal::LiveOwner), ClaimReply::LiveOwner { lease_ms }) => prop_assert!(*lease_ms > now),
            (Err(Refusal::NotDue), ClaimReply::NotDue { due_in_ms }) => {
                prop_assert_eq!(*due_in_ms, state.due_ms);
            }
            (Ok(_), ClaimReply::Expired) => prop_assert!(is_late),
            (Ok(_), ClaimReply::Overdue) => prop_assert!(is_overdue && !is_late),
            (Ok(_), ClaimReply::Granted(g)) => {
                prop_assert!(!is_late && !is_overdue);
                k.apply(job, &with_budget, Input::Claim, now, times).unwrap();
                let is_cut = k.promise.deadline == k.promise.finish_by;
                prop_assert_eq!(g.limit_ms, if is_cut { k.promise.deadline - now } else { 0 });
                let n = k.state.as_ref().unwrap();
                prop_assert_eq!(
                    (g.epoch, g.attempt, g.charged, g.generation, g.rev, g.start_failures),
                    (n.epoch, n.attempt, n.charged, n.generation, n.rev, n.start_failures)
                );
                prop_assert_eq!(g.started_ms, now);
                k.owner = s.to_string();
                (k.carrier, k.ack) = (item.carrier.into_owned(), item.ack_subject.into_owned());
            }
            (want, got) => prop_assert!(false, "the machine says {want:?}, the script {got:?}"),
        }
        Ok(())
    }

    async fn finish(
        &mut self,
        job: usize,
        session: usize,
        verdict: Verdict,
        back: i8,
        is_repeated: bool,
    ) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        let s = self.sessions[session].clone();
        let epoch = known.epoch(back);
        let outcome = match verdict {
            Verdict::Fail(ErrorCode::Timeout) => Status::TimedOut,
            Verdict::Fail(_) => Status::Failed,
            Verdict::CancelObeyed => Status::Cancelled,
            _ => Status::Done,
        };
        let items = [FinishItem {
            id: id(job),
            epoch,
            verdict,
            receipt: receipt(job, known.generation(), outcome),
            data: r#"{"message":"m""#.into(),
            detail: String::new(),
        }];
        let a = self.call(is_repeated, async |st| st.finish(0, &s, &items).await).await?;
        let reply = &a.results[0];
        let Some(state) = known.state.clone() else {
            prop_assert_eq!(reply, &FinishReply::NoRecord);
            return Ok(());
        };
        let due = |delay: Duration| a.now_ms + delay.as_millis() as u64;
        let input = match verdict {
            Verdict::Done => Input::Finish { epoch },
            Verdict::Fail(code) => Input::Fail { epoch, code },
            Verdict::Retry { delay, .. } => Input::Retry { epoch, at_ms: due(delay) },
            Verdict::Release => Input::Release { epoch },
            Verdict::StartFailed { delay } => Input::StartFailed { epoch, until_ms: due(delay) },
            Verdict::CancelObeyed => Input::CancelObeyed { epoch },
        };
        let times = self.times();
        let k = &mut self.jobs[job];
        // The epoch alone names one attempt; that a session may not use another's is the scripts' own, further check.
        let done = if known.owned_by(&s) || !state.status.is_running() {
            k.apply(job, &state, input, a.now_ms, times)
        } else {
            Err(Refusal::Fenced)
        };
        match (done, reply) {
            (Ok(()), FinishReply::Applied { status, rev }) => {
                let n = k.state.as_ref().unwrap();
                prop_assert_eq!((*status, *rev), (n.status, n.rev));
            }
            (Err(Refusal::Fenced), FinishReply::Fenced { status, epoch }) => {
                prop_assert_eq!((*status, *epoch), (state.status, state.epoch));
            }
            (Err(Refusal::Budget), FinishReply::BudgetSpent) => {}
            (want, got) => prop_assert!(false, "the machine says {want:?}, the script {got:?}"),
        }
        Ok(())
    }

    async fn progress(
        &mut self,
        job: usize,
        session: usize,
        back: i8,
        is_impatient: bool,
        is_repeated: bool,
    ) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        let s = self.sessions[session].clone();
        let epoch = known.epoch(back);
        let progress_ms = if is_impatient { 0 } else { 60_000 };
        let times = Times { progress: progress_ms.into(), ..self.times() };
        let items = [ProgressItem {
            id: id(job).to_string(),
            epoch,
            kind: "progress",
            data: r#"{"p":0.5}"#.into(),
            progress_ms,
            print: "abc".into(),
        }];
        let a = self.call(is_repeated, async |st| st.progress(0, &s, &items).await).await?;
        let k = &mut self.jobs[job];
        let done = match &known.state {
            Some(state) if known.owned_by(&s) => {
                k.apply(job, state, Input::Progress { epoch }, a.now_ms, times)
            }
            _ => Err(Refusal::Fenced),
        };
        match (done, &a.results[0]) {
            (Ok(()), ProgressReply::Journaled { rev }) => {
                prop_assert_eq!(*rev, k.state.as_ref().unwrap().rev);
            }
            (Err(Refusal::Fenced), ProgressReply::Fenced) => {}
            (want, got) => prop_assert!(false, "the machine says {want:?}, the script {got:?}"),
        }
        Ok(())
    }

    fn lost_items(&self, session: usize) -> Vec<LostItem> {
        (0..JOBS)
            .map(|job| LostItem {
                id: id(job).to_string(),
                epoch: self.jobs[job].epoch(0),
                receipt: receipt(job, self.jobs[job].generation(), Status::Failed),
                data: format!(r#"{{"session":"{}""#, self.sessions[session]),
            })
            .collect()
    }

    async fn expire(&mut self, session: usize) -> Result<(), TestCaseError> {
        let s = self.sessions[session].clone();
        self.store.expire_session(0, &s).await.unwrap();
        let items = self.lost_items(session);
        let a = self.store.lost(0, &s, &items).await.unwrap();
        let times = self.times();
        for (job, reply) in a.results.iter().enumerate() {
            let k = &mut self.jobs[job];
            if !k.owned_by(&s) {
                prop_assert_eq!(reply, &LostReply::NotApplied);
                continue;
            }
            let state = k.state.clone().unwrap();
            k.apply(job, &state, Input::Lost { epoch: state.epoch, limit: LOST_LIMIT }, a.now_ms, times)
                .unwrap();
            let n = k.state.as_ref().unwrap();
            match reply {
                LostReply::Applied(l) => {
                    prop_assert_eq!((l.status, l.generation, l.rev), (n.status, n.generation, n.rev));
                    prop_assert_eq!(&l.carrier, &k.carrier);
                    prop_assert_eq!(&l.ack_subject, &ack_of(&k.carrier));
                }
                LostReply::NotApplied | LostReply::Unreadable => prop_assert!(false, "not applied: {:?}", n),
            }
        }
        // Nothing is left of it: not for a claim, not for a renewal, not for another pass of the reaper.
        let again = self.store.lost(0, &s, &items).await.unwrap();
        prop_assert!(again.results.iter().all(|r| *r == LostReply::NotApplied));
        let claim = [self.claim_item(0, "JOBS:0", 1, Terms::Roomy)];
        let refused = self.store.claim(0, &s, 1_000_000, &claim).await;
        prop_assert!(matches!(refused, Err(StoreError::SessionLost)), "{refused:?}");
        let refused = self.store.renew(0, &s, TTL, &[]).await;
        prop_assert!(matches!(refused, Err(StoreError::SessionLost)), "{refused:?}");
        prop_assert_eq!(self.store.running(0, &s).await.unwrap(), vec![]);
        self.sessions[session] = self.session().await;
        Ok(())
    }

    async fn settle(
        &mut self,
        job: usize,
        by: By,
        is_next_generation: bool,
        is_repeated: bool,
    ) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        let is_cancel = by == By::Cancel;
        // Only a cancel has no carrier in hand, which may be that of a replay that is not recorded yet.
        let generation =
            known.generation() + u32::from(is_next_generation && !is_cancel && known.state.is_some());
        self.n_carriers += 1;
        let carrier = if is_cancel {
            String::new()
        } else if known.carrier.is_empty() || generation > known.generation() {
            carrier_name(self.n_carriers)
        } else {
            known.carrier.clone()
        };
        let (verdict, status, code) = match by {
            By::Cancel => (1, Status::Cancelled, ErrorCode::Cancelled),
            By::Burial => (2, Status::Failed, ErrorCode::InvalidJob),
            By::Deadline => (3, Status::TimedOut, ErrorCode::FinishDeadline),
        };
        let items = [SettleItem {
            notify: requester(job).to_json().into_owned(),
            id: id(job).to_string(),
            verdict,
            code: code.name(),
            receipt: receipt(job, generation, status),
            reason: r#"{"message":"m"}"#.into(),
            queue: "default".into(),
            job_type: "t".into(),
            key: String::new(),
            trace: String::new(),
            ack_subject: if is_cancel { String::new() } else { ack_of(&carrier) },
            carrier: carrier.clone(),
            created_ms: self.created_ms,
            generation,
        }];
        let a = self.call(is_repeated, async |st| st.settle(0, &items).await).await?;
        let times = self.times();
        let k = &mut self.jobs[job];
        let mut state = known.state.clone().unwrap_or_else(|| JobState { generation, ..JobState::queued(0) });
        if k.state.is_none() {
            k.carrier = carrier;
        } else if generation > state.generation && state.status.is_terminal() {
            k.apply(job, &state, Input::Replay, a.now_ms, times).unwrap();
            state = k.state.clone().unwrap();
            (k.carrier, k.promise.finish_by) = (carrier, items[0].created_ms);
        }
        if !is_cancel && k.carrier != items[0].carrier && !state.status.is_terminal() {
            // A message that names a job which another one carries.
            prop_assert_eq!(&a.results[0], &SettleReply::Running { status: state.status });
            return Ok(());
        }
        let input = match by {
            By::Cancel => Input::Cancel,
            By::Burial => Input::Bury { code },
            By::Deadline => Input::Overdue,
        };
        let recorded_ack = k.ack.clone();
        match (k.apply(job, &state, input, a.now_ms, times), &a.results[0]) {
            (Ok(()), SettleReply::Applied(got)) => {
                let n = k.state.as_ref().unwrap();
                prop_assert_eq!(
                    (got.status, got.generation, got.rev, got.epoch),
                    (n.status, n.generation, n.rev, n.epoch)
                );
                prop_assert_eq!(&got.carrier, &k.carrier);
                // Kept in the record, for whoever repeats the call.
                k.ack = if is_cancel { recorded_ack } else { items[0].ack_subject.clone() };
                prop_assert_eq!(&got.ack_subject, &k.ack);
            }
            (Err(Refusal::LiveOwner), SettleReply::Running { status }) => {
                prop_assert_eq!(*status, state.status);
            }
            (Err(Refusal::Terminal), SettleReply::Ended(e)) => {
                prop_assert_eq!(
                    (e.status, e.generation, e.epoch),
                    (state.status, state.generation, state.epoch)
                );
                prop_assert_eq!(e.code.as_str(), state.error.map_or("", ErrorCode::name));
            }
            (want, got) => prop_assert!(false, "the machine says {want:?}, the script {got:?}"),
        }
        Ok(())
    }

    async fn replay(&mut self, job: usize, is_repeated: bool) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        self.n_carriers += 1;
        let carrier = carrier_name(self.n_carriers);
        let items = [ReplayItem {
            id: id(job).to_string(),
            generation: known.generation() + 1,
            carrier: carrier.clone(),
            created_ms: self.created_ms,
            finish_ms: 86_400_000,
            data: "{}".into(),
        }];
        let a = self.call(is_repeated, async |st| st.replay(0, &items).await).await?;
        let times = self.times();
        let k = &mut self.jobs[job];
        let Some(state) = known.state else {
            prop_assert_eq!(a.results[0], ReplayReply::NoRecord);
            return Ok(());
        };
        match (k.apply(job, &state, Input::Replay, a.now_ms, times), &a.results[0]) {
            (Ok(()), ReplayReply::Queued { generation, rev }) => {
                let n = k.state.as_ref().unwrap();
                prop_assert_eq!((*generation, *rev), (n.generation, n.rev));
                (k.carrier, k.ack) = (carrier, String::new());
                k.promise.finish_by = items[0].created_ms + items[0].finish_ms;
            }
            (Err(Refusal::Open), ReplayReply::Open { status }) => prop_assert_eq!(*status, state.status),
            (want, got) => prop_assert!(false, "the machine says {want:?}, the script {got:?}"),
        }
        Ok(())
    }

    async fn renew(&mut self, session: usize) -> Result<(), TestCaseError> {
        let s = &self.sessions[session];
        // The worker runs the odd jobs of the session, and one that it does not own.
        let owned: BTreeSet<String> = self.members(s);
        let stops = self.marks(s);
        let runs: Vec<String> = owned.iter().skip(1).cloned().chain(["job-0:4711".to_owned()]).collect();
        let a = self.store.renew(0, s, TTL, &runs).await.unwrap();
        prop_assert_eq!(a.fenced, vec!["job-0:4711".to_owned()]);
        prop_assert_eq!(a.orphans, owned.into_iter().take(1).collect::<Vec<_>>());
        prop_assert_eq!(a.stops.into_iter().collect::<BTreeSet<_>>(), stops);
        Ok(())
    }

    fn members(&self, s: &SessionId) -> BTreeSet<String> {
        (0..JOBS)
            .filter(|job| self.jobs[*job].owned_by(s))
            .map(|job| format!("{}:{}", id(job), self.jobs[job].epoch(0)))
            .collect()
    }

    /// What somebody wants stopped of it.
    fn marks(&self, s: &SessionId) -> BTreeSet<String> {
        let is_wanted = |job: &usize| self.jobs[*job].state.as_ref().is_some_and(|st| st.is_cancelling);
        (0..JOBS)
            .filter(|job| self.jobs[*job].owned_by(s))
            .filter(is_wanted)
            .map(|job| format!("{}:{}", id(job), self.jobs[job].epoch(0)))
            .collect()
    }

    /// Compares everything that Redis holds with the model.
    async fn check(&mut self) -> Result<(), TestCaseError> {
        let keys = self.store.keys().clone();
        let mut due_wanted = BTreeMap::new();
        let ended: Vec<String> = self.redis.lrange(keys.ended(0), 0, -1).await.unwrap();
        for (job, k) in self.jobs.iter().enumerate() {
            let record = self.store.record(&id(job)).await.unwrap();
            prop_assert_eq!(record.as_ref().map(|r| r.state()), k.state.clone(), "job {}", job);
            let Some(r) = record else { continue };
            prop_assert_eq!(&r.session, &k.owner);
            prop_assert_eq!(&r.carrier, &k.carrier);
            prop_assert!(
                !r.status.is_terminal() || ended.contains(&id(job).to_string()),
                "an ended job is in the list by which retention finds it"
            );
            let p = &k.promise;
            prop_assert_eq!((r.promise_ms, r.told), (p.by, p.told), "promise of job {}", job);
            prop_assert_eq!(r.notify.as_str(), requester(job).to_json());
            if !r.status.is_terminal() {
                prop_assert_eq!((r.deadline_ms, r.finish_by_ms), (p.deadline, p.finish_by));
                prop_assert!(
                    r.status.is_running() || r.promise_ms > 0,
                    "something is promised of every job that waits"
                );
            }
            due_wanted.extend(p.indexed(&r.state()).map(|at| (id(job).to_string(), at)));
        }
        let due: Vec<(String, f64)> = self.redis.zrange_withscores(keys.due(0), 0, -1).await.unwrap();
        let due: BTreeMap<_, _> = due.into_iter().map(|(i, score)| (i, score as u64)).collect();
        prop_assert_eq!(due, due_wanted, "due holds what has a deadline, by its earliest");
        for s in self.sessions.clone() {
            let run: BTreeSet<String> = self.redis.smembers(keys.run(0, &s)).await.unwrap();
            let mut wanted = self.members(&s);
            wanted.extend(self.marks(&s).into_iter().map(|m| format!("!{m}")));
            prop_assert_eq!(run, wanted, "run:{} holds what it runs, and what is to be stopped", s);
        }
        let more = self.store.outbox(0, &self.last_entry, u64::MAX >> 1, 1000).await.unwrap();
        for e in more {
            let (events, bad) = read_message(e.body.as_bytes());
            prop_assert_eq!(bad, Vec::<String>::new());
            let ended: Vec<_> =
                events.iter().filter(|e| e.kind == "finished").map(|e| e.job.as_str()).collect();
            prop_assert_eq!(ended.join(","), e.ended);
            prop_assert_eq!(e.suffix.as_str(), if ended.is_empty() { "default" } else { "default.ended" });
            self.last_entry = e.id;
            self.journal.push(e.body);
        }
        let mut told: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for body in &self.journal {
            for e in read_message(body.as_bytes()).0 {
                told.entry(e.job).or_default().push((e.kind, e.generation, e.status, e.contract, e.rev));
            }
        }
        for (job, k) in self.jobs.iter().enumerate() {
            let told = told.remove(id(job).as_str()).unwrap_or_default();
            // In the order of the outbox, not sorted: that order must be the order of the revisions.
            let wanted: Vec<_> = (1u64..)
                .zip(&k.events)
                .map(|(rev, (kind, generation, status, contract))| {
                    ((*kind).to_owned(), *generation, (*status).to_owned(), (*contract).to_owned(), rev)
                })
                .collect();
            prop_assert_eq!(told, wanted, "events of job {}", job);
        }
        Ok(())
    }

    /// The journal of the whole case passes the checker that the integration tests use.
    fn check_history(&self) -> Result<(), TestCaseError> {
        let events: Vec<_> = self.journal.iter().flat_map(|b| read_message(b.as_bytes()).0).collect();
        if events.is_empty() {
            return Ok(());
        }
        History::fold(events).and_then(|h| h.check()).map_err(|v| TestCaseError::fail(format!("{v:#?}")))
    }
}

async fn run(url: &str, look: Duration, steps: &[Step]) -> Result<BTreeSet<&'static str>, TestCaseError> {
    let mut case = Case::start(url, look).await;
    for step in steps {
        case.step(*step).await.map_err(|e| TestCaseError::fail(format!("{step:?}: {e}")))?;
        case.check().await.map_err(|e| TestCaseError::fail(format!("after {step:?}: {e}")))?;
    }
    case.check_history()?;
    Ok(case.jobs.iter().flat_map(|k| &k.events).map(|(kind, ..)| *kind).collect())
}

/// Runs random sequences on a Redis of this kind; gives the kinds of events that came about.
fn agree(kind: Kind, config: Config) -> BTreeSet<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let redis = runtime.block_on(super::scripts::redis_of(kind));
    let config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/proptest-regressions/model.txt"
        )))),
        max_shrink_iters: 400,
        ..config
    };
    let steps = prop::collection::vec((any_op(), prop::bool::weighted(0.2)), 1..=50);
    let look = select(vec![HOUR, Duration::from_millis(1)]);
    let seen = std::cell::RefCell::new(BTreeSet::new());
    let outcome = TestRunner::new(config).run(&(look, steps), |(look, steps)| {
        seen.borrow_mut().extend(runtime.block_on(run(&redis.url(), look, &steps))?);
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
    seen.into_inner()
}

// Shows: V-01
#[test]
fn they_agree_on_a_cluster() {
    agree(Kind::Cluster { replicas: 0 }, Config::with_cases(32));
}

// Shows: V-01, A-01, A-03, A-07, C-02, C-04, C-13, E-07, X-03
#[test]
fn the_scripts_and_the_machine_agree_on_random_sequences() {
    // The sequences reach every move that the scripts have.
    let want: BTreeSet<_> = [
        EventKind::Started,
        EventKind::Progress,
        EventKind::Deferred,
        EventKind::AttemptFailed,
        EventKind::Released,
        EventKind::Lost,
        EventKind::Buried,
        EventKind::Finished,
        EventKind::Replayed,
        EventKind::Acked,
        EventKind::SlaMissed,
        EventKind::Nudged,
        EventKind::CancelRequested,
        EventKind::ReceiptDelivered,
        EventKind::ReceiptFailed,
    ]
    .map(EventKind::name)
    .into();
    // The rarest move is in most runs, and in one of four.
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        seen.extend(agree(Kind::wanted(), Config::default()));
        if seen == want {
            return;
        }
    }
    assert_eq!(seen, want);
}
