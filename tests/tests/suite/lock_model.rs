//! Locks in the store alone: the script against a simple model, tokens, expiry, and what is held again after a loss.

use std::collections::{BTreeSet, VecDeque};

use redis::AsyncCommands;
use surety_common::{
    domain::guard::GuardKind,
    store::{
        GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, StoreError, Woken,
        guards::{OFFER, ONLY_LOOK},
    },
};

use surety_tests::world::wait;

use super::scripts::World;

const HOUR_MS: u64 = 3_600_000;

fn lock(name: &str) -> Scope {
    Scope::new(GuardKind::Lock, "", name, [1, HOUR_MS, 0, 0])
}

fn item(act: GuardAct<'static>, member: &str, n: usize) -> GuardItem<'static> {
    GuardItem { act, member: member.to_owned().into(), scopes: (0..u16::try_from(n).unwrap()).collect() }
}

fn asking(arrival_ms: u64, member: &str, n: usize, keeps: bool) -> GuardItem<'static> {
    item(
        GuardAct::Ask { arrival_ms, ack_subject: format!("ack.{member}").into(), work: "".into(), keeps },
        member,
        n,
    )
}

fn releasing(token: &str, member: &str, n: usize) -> GuardItem<'static> {
    let token = token.to_owned();
    item(
        GuardAct::Release { token: token.into(), until_ms: None, outcome: GuardOutcome::WentWell },
        member,
        n,
    )
}

fn renewing(token: &str, member: &str, may_restore: bool, number: u64) -> GuardItem<'static> {
    item(GuardAct::Renew { token: token.to_owned().into(), may_restore, number }, member, 1)
}

/// One item about these locks.
async fn call(w: &World, hold_ms: u64, names: &[&str], item: GuardItem<'_>) -> Guarded {
    let scopes: Vec<Scope> = names.iter().copied().map(lock).collect();
    w.store.guard(0, Some(&w.session), hold_ms, &scopes, &[item]).await.unwrap()
}

/// Asks for these locks: the token, and each lock's number.
async fn take(w: &World, hold_ms: u64, names: &[&str], member: &str) -> (String, Vec<u64>) {
    let answer = call(w, hold_ms, names, asking(1, member, names.len(), false)).await;
    match &answer.replies[..] {
        [GuardReply::Passes(numbers)] => (answer.token, numbers.clone()),
        other => panic!("{member} does not get {names:?}: {other:?}"),
    }
}

async fn is_refused(w: &World, names: &[&str], member: &str) -> bool {
    let answer = call(w, HOUR_MS, names, asking(2, member, names.len(), false)).await;
    matches!(answer.replies[..], [GuardReply::WaitsInLine { .. }])
}

async fn keys(w: &mut World) -> Vec<String> {
    let mut all: Vec<String> = w.plain.keys("surety:*").await.unwrap();
    all.retain(|k| [":guard:", ":hold:", ":wait:", ":asleep:", ":guards"].iter().any(|s| k.contains(s)));
    all
}

/// Looks after these locks, as a reaper does.
async fn tend(w: &World, names: &[&str]) {
    for name in names {
        let act = GuardAct::Tend { session: "".into() };
        call(w, HOUR_MS, &[*name], item(act, "", 1)).await;
    }
}

/// One lock, as simple as it is meant.
#[derive(Default)]
struct Model {
    holder: Option<usize>,
    /// It came free, and was offered to this one, or is kept for it.
    offered: Option<usize>,
    /// By age; equal ones by name.
    line: BTreeSet<(u64, String, usize)>,
    highest: u64,
}

impl Model {
    fn is_for(&self, job: usize) -> bool {
        let is_free = self.holder.is_none() && self.offered.is_none() && self.line.is_empty();
        is_free || self.holder == Some(job) || self.offered == Some(job)
    }

    /// Who gets it next.
    fn next(&mut self) -> Option<String> {
        (self.holder, self.offered) = (None, None);
        let (_, member, job) = self.line.pop_first()?;
        self.offered = Some(job);
        Some(member)
    }
}

struct Job {
    member: String,
    arrival_ms: u64,
    /// Places of its locks, in the order that all keep.
    locks: Vec<usize>,
    token: Option<String>,
}

/// A small generator: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }
}

/// From then on what a job gets is kept for it.
const KEEPS_AFTER: u32 = 8;
const NAMES: [&str; 3] = ["a", "b", "c"];

struct Run {
    w: World,
    jobs: Vec<Job>,
    locks: [Model; 3],
    /// Jobs that may ask: they came, or were woken.
    awake: VecDeque<usize>,
    /// How often each asked.
    asked: Vec<u32>,
}

impl Run {
    fn woken(&mut self, answer: &Guarded, want: &[String]) {
        let got: Vec<&String> = answer.woken.iter().map(|s| &s.member).collect();
        assert_eq!(got, want.iter().collect::<Vec<_>>(), "who is woken");
        for s in &answer.woken {
            assert_eq!(s.ack_subject, format!("ack.{}", s.member));
            self.awake.push_back(self.jobs.iter().position(|j| j.member == s.member).unwrap());
        }
    }

    async fn ask(&mut self, n: usize) {
        self.asked[n] += 1;
        let job = &self.jobs[n];
        let names: Vec<&str> = job.locks.iter().map(|l| NAMES[*l]).collect();
        let keeps = self.asked[n] > KEEPS_AFTER;
        let item = asking(job.arrival_ms, &job.member, names.len(), keeps);
        let answer = call(&self.w, HOUR_MS, &names, item).await;
        let refusing = job.locks.iter().position(|l| !self.locks[*l].is_for(n));
        let mut want = Vec::new();
        let Some(at) = refusing else {
            let [GuardReply::Passes(numbers)] = &answer.replies[..] else {
                panic!("{} may have {names:?}: {:?}", job.member, answer.replies)
            };
            for (l, number) in job.locks.iter().zip(numbers) {
                let model = &mut self.locks[*l];
                model.line.remove(&(job.arrival_ms, job.member.clone(), n));
                (model.holder, model.offered) = (Some(n), None);
                assert!(*number > model.highest, "a token that does not grow");
                model.highest = *number;
            }
            self.jobs[n].token = Some(answer.token.clone());
            return self.woken(&answer, &want);
        };
        let place = (job.arrival_ms, job.member.clone(), n);
        self.locks[job.locks[at]].line.insert(place.clone());
        let before = self.locks[job.locks[at]].line.range(..&place).count() as u64;
        assert_eq!(answer.replies, [GuardReply::WaitsInLine { scope: at, before }], "{}", job.member);
        for (nth, l) in job.locks.iter().enumerate().filter(|(nth, _)| *nth != at) {
            // It waits there, not here.
            let model = &mut self.locks[*l];
            model.line.remove(&place);
            if keeps && nth < at {
                model.offered = Some(n);
            } else if model.offered == Some(n) {
                want.extend(model.next());
            }
        }
        self.woken(&answer, &want);
    }

    async fn release(&mut self, n: usize) {
        let job = &mut self.jobs[n];
        let token = job.token.take().unwrap();
        let names: Vec<&str> = job.locks.iter().map(|l| NAMES[*l]).collect();
        let item = releasing(&token, &job.member, names.len());
        let answer = call(&self.w, HOUR_MS, &names, item).await;
        let want: Vec<String> = job.locks.iter().filter_map(|l| self.locks[*l].next()).collect();
        self.woken(&answer, &want);
    }

    /// Somebody who has nothing gives it back.
    async fn release_in_vain(&mut self, n: usize) {
        let job = &self.jobs[n];
        let names: Vec<&str> = job.locks.iter().map(|l| NAMES[*l]).collect();
        let answer = call(&self.w, HOUR_MS, &names, releasing("another s9", &job.member, names.len())).await;
        assert_eq!(answer.woken, []);
    }
}

// Shows: L-02
#[tokio::test]
async fn random_jobs_with_several_locks_do_as_a_simple_model_says_and_none_is_passed_by_for_ever() {
    for seed in 0..4 {
        let (w, mut dice) = (World::start().await, Dice(seed));
        let mut jobs = Vec::new();
        for n in 0..60 {
            let mut locks: Vec<usize> = Vec::new();
            for _ in 0..=dice.below(3) {
                let l = dice.below(3);
                if !locks.contains(&l) {
                    locks.push(l);
                }
            }
            locks.sort_by_key(|l| lock(NAMES[*l]).hash);
            // Some come at the same moment, some carry an older date than those before them.
            let arrival_ms = 1000 + (n as u64 / 2) * 10 - 40 * (dice.below(4) as u64);
            jobs.push(Job { member: format!("j{n}/1"), arrival_ms, locks, token: None });
        }
        let asked = vec![0; jobs.len()];
        let mut run = Run { w, jobs, locks: Default::default(), awake: VecDeque::new(), asked };
        let mut to_come = (0..run.jobs.len()).collect::<VecDeque<_>>();
        for _ in 0..20_000 {
            let holding: Vec<usize> = (0..run.jobs.len()).filter(|n| run.jobs[*n].token.is_some()).collect();
            match dice.below(8) {
                0..3 if !to_come.is_empty() => {
                    let n = to_come.pop_front().unwrap();
                    run.ask(n).await;
                }
                3..6 if !run.awake.is_empty() => {
                    let at = dice.below(run.awake.len());
                    let n = run.awake.remove(at).unwrap();
                    run.ask(n).await;
                }
                6 if !holding.is_empty() => run.release(holding[dice.below(holding.len())]).await,
                7 => run.release_in_vain(dice.below(run.jobs.len())).await,
                _ if to_come.is_empty() && run.awake.is_empty() && holding.is_empty() => break,
                _ => {}
            }
        }
        assert!(to_come.is_empty(), "the dice were enough");
        for (n, model) in run.locks.iter().enumerate() {
            assert!(model.holder.is_none() && model.offered.is_none(), "{} is taken for ever", NAMES[n]);
            assert!(model.line.is_empty(), "somebody waits for {} for ever", NAMES[n]);
        }
        let most = run.asked.iter().max().unwrap();
        assert!(*most <= KEEPS_AFTER + 4, "a job asked {most} times");
        tend(&run.w, &NAMES).await;
        assert_eq!(keys(&mut run.w).await, Vec::<String>::new(), "an idle lock leaves nothing");
    }
}

// Shows: L-01
#[tokio::test]
async fn what_is_kept_for_a_job_ends_an_hour_after_the_first_time_and_a_look_wakes_nobody() {
    let mut w = World::start().await;
    take(&w, HOUR_MS, &["b"], "holder/1").await;
    let names = ["a", "b"];
    let waits = GuardReply::WaitsInLine { scope: 1, before: 0 };
    let [_, hold, ..] = w.store.keys().guard(0, &lock("a").hash);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let answer = call(&w, HOUR_MS, &names, asking(1, "job/1", 2, true)).await;
        assert_eq!(answer.replies, std::slice::from_ref(&waits));
        kept.push(w.plain.hget::<_, _, Vec<u8>>(&hold, "job/1").await.unwrap());
        wait("time to pass", async || w.store.now_ms().await.unwrap() > answer.now_ms).await;
    }
    assert_eq!(kept[0], kept[1], "it is kept for longer than an hour");
    // Its look is due.
    let _: u64 = w.plain.zadd(w.store.keys().guards(0), lock("a").hash, 1).await.unwrap();
    let looked = call(&w, HOUR_MS, &["a"], item(GuardAct::Tend { session: "".into() }, "", 1)).await;
    let woken = Woken { scope: 0, member: "job/1".into(), ack_subject: ONLY_LOOK.into() };
    assert_eq!(looked.woken, [woken]);
    assert_eq!(w.plain.hget::<_, _, Vec<u8>>(&hold, "job/1").await.unwrap(), kept[0]);
    // Over, it leaves its place, as any job in line does.
    let leaves = GuardAct::Release { token: OFFER.into(), until_ms: None, outcome: GuardOutcome::Neutral };
    call(&w, HOUR_MS, &["a"], item(leaves, "job/1", 1)).await;
    assert!(!w.plain.exists::<_, bool>(&hold).await.unwrap());
}

// Shows: L-02
#[tokio::test]
async fn only_the_token_of_its_owner_renews_or_frees_a_lock_and_that_of_a_dead_one_ends() {
    let w = World::start().await;
    let (first, _) = take(&w, 60_000, &["a", "b"], "one/1").await;
    assert!(is_refused(&w, &["b"], "two/1").await);
    for (token, member) in [("x s1", "one/1"), (first.as_str(), "two/1"), ("?", "one/1")] {
        let answer = call(&w, 60_000, &["a"], releasing(token, member, 1)).await;
        assert_eq!(answer.woken, []);
        let answer = call(&w, 60_000, &["a"], renewing(token, member, false, 0)).await;
        assert_eq!(answer.replies, [GuardReply::Renewed(vec![0])], "{token} {member}");
    }
    assert!(is_refused(&w, &["a"], "two/1").await);
    let answer = call(&w, 60_000, &["a"], renewing(&first, "one/1", false, 0)).await;
    assert_eq!(answer.replies, [GuardReply::Renewed(vec![1])]);
    call(&w, 60_000, &["a", "b"], releasing(&first, "one/1", 2)).await;
    // A killed owner does not renew; the lock is to be had afterwards, and no sooner.
    let (dead, numbers) = take(&w, 300, &["c"], "one/1").await;
    let (before, got) = (std::time::Instant::now(), std::sync::Mutex::new(Vec::new()));
    wait("the lock of a dead owner", async || {
        let answer = call(&w, 60_000, &["c"], asking(5, "three/1", 1, false)).await;
        *got.lock().unwrap() = answer.replies.clone();
        matches!(answer.replies[..], [GuardReply::Passes(_)])
    })
    .await;
    assert!(before.elapsed().as_millis() >= 250, "{:?}", before.elapsed());
    let replies = got.into_inner().unwrap();
    let [GuardReply::Passes(later)] = &replies[..] else { unreachable!() };
    assert!(later[0] > numbers[0]);
    let late = call(&w, 60_000, &["c"], renewing(&dead, "one/1", false, 0)).await;
    assert_eq!(late.replies, [GuardReply::Renewed(vec![0])]);
    call(&w, 60_000, &["c"], releasing(&dead, "one/1", 1)).await;
    assert!(is_refused(&w, &["c"], "four/1").await, "the dead owner's token freed it");
}

// Shows: L-02
#[tokio::test]
async fn the_token_of_a_lock_grows_after_its_keys_are_gone_and_when_the_clock_is_set_back() {
    let mut w = World::start().await;
    let mut highest = 0;
    for n in 0..3 {
        let member = format!("m{n}/1");
        let (token, numbers) = take(&w, 60_000, &["a"], &member).await;
        assert!(numbers[0] > highest);
        highest = numbers[0];
        call(&w, 60_000, &["a"], releasing(&token, &member, 1)).await;
        tend(&w, &["a"]).await;
        assert_eq!(keys(&mut w).await, Vec::<String>::new());
    }
    // Given while the clock was an hour ahead.
    let (token, _) = take(&w, 60_000, &["a"], "ahead/1").await;
    let state = format!("surety:{{p00}}:guard:{}", lock("a").hash);
    let ahead = highest + HOUR_MS;
    let _: () = w.plain.hset(&state, "fence", ahead).await.unwrap();
    call(&w, 60_000, &["a"], releasing(&token, "ahead/1", 1)).await;
    tend(&w, &["a"]).await;
    assert_eq!(keys(&mut w).await, Vec::<String>::new());
    let (_, numbers) = take(&w, 60_000, &["a"], "after/1").await;
    assert!(numbers[0] > ahead, "{} after {ahead}", numbers[0]);
}

// Shows: L-02
#[tokio::test]
async fn a_lock_that_was_given_in_writes_that_are_lost_is_noticed_by_the_next_call() {
    let mut w = World::start().await;
    let store = w.store.keys().store(0);
    let before: u64 = w.plain.hget(&store, "commit").await.unwrap();
    take(&w, HOUR_MS, &["a"], "one/1").await;
    // A replica takes over that lacks that call.
    let _: () = w.plain.hset(&store, "commit", before).await.unwrap();
    for key in keys(&mut w).await {
        let _: () = w.plain.del(key).await.unwrap();
    }
    let other = [lock("a")];
    for _ in 0..2 {
        let answer = w.store.guard(0, None, HOUR_MS, &other, &[asking(2, "two/1", 1, false)]).await;
        assert!(matches!(answer, Err(StoreError::Rebuilding)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_call_has_room_for_the_locks_of_all_its_jobs() {
    let w = World::start().await;
    // Two groups of 200, each job with 16 locks of its own and some rules by key.
    const JOBS: u16 = 400;
    const EACH: u16 = 22;
    let scopes: Vec<Scope> = (0..JOBS * EACH).map(|n| lock(&n.to_string())).collect();
    let items: Vec<GuardItem<'_>> = (0..JOBS)
        .map(|job| GuardItem {
            scopes: (job * EACH..(job + 1) * EACH).collect(),
            ..asking(1, &format!("{job}/1"), 0, false)
        })
        .collect();
    let answer = w.store.guard(0, Some(&w.session), HOUR_MS, &scopes, &items).await.unwrap();
    let has_all = |reply: &GuardReply| matches!(reply, GuardReply::Passes(n) if n.len() == usize::from(EACH));
    assert!(answer.replies.len() == usize::from(JOBS) && answer.replies.iter().all(has_all));
}

// Shows: L-02
#[tokio::test]
async fn a_lock_whose_keys_were_lost_is_held_again_where_nobody_took_it() {
    let mut w = World::start().await;
    let (first, numbers) = take(&w, 60_000, &["a"], "one/1").await;
    let lose = async |w: &mut World| {
        for key in keys(w).await {
            let _: () = w.plain.del(key).await.unwrap();
        }
    };
    // Deleted in a whole data set: lost.
    lose(&mut w).await;
    let answer = call(&w, 60_000, &["a"], renewing(&first, "one/1", false, numbers[0])).await;
    assert_eq!(answer.replies, [GuardReply::Renewed(vec![0])]);
    // With its data set: held again, with what was given with it.
    let answer = call(&w, 60_000, &["a"], renewing(&first, "one/1", true, numbers[0] + HOUR_MS)).await;
    assert_eq!(answer.replies, [GuardReply::Renewed(vec![2])]);
    assert!(is_refused(&w, &["a"], "two/1").await);
    let answer = call(&w, 60_000, &["a"], releasing(&first, "one/1", 1)).await;
    assert_eq!(answer.woken.len(), 1);
    let (second, after) = take(&w, 60_000, &["a"], "two/1").await;
    assert!(after[0] > numbers[0] + HOUR_MS, "above what its holder brought");
    // Another has it: lost.
    let answer = call(&w, 60_000, &["a"], renewing(&first, "one/1", true, numbers[0])).await;
    assert_eq!(answer.replies, [GuardReply::Renewed(vec![0])]);
    let answer = call(&w, 60_000, &["a"], renewing(&second, "two/1", false, after[0])).await;
    assert_eq!(answer.replies, [GuardReply::Renewed(vec![1])]);
}
