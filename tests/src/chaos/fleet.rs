//! The processes of a run, and what happens to them.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep_until};

use super::schedule::{Fault, Plan, Step, Wire};
use crate::{
    process::Process,
    proxy::Proxy,
    witness::{alive, find_keeper},
    world::World,
};

/// A worker's place: its process comes and goes, its connections stay.
struct Slot {
    /// Changes when the worker moves to another host.
    home: String,
    nats: Proxy,
    redis: Proxy,
    process: Option<Process>,
    /// It was told to stop.
    is_stopping: bool,
    frozen_keeper: Option<i32>,
}

impl Slot {
    fn wires(&self, wire: Wire) -> Vec<&Proxy> {
        match wire {
            Wire::Nats => vec![&self.nats],
            Wire::Redis => vec![&self.redis],
            Wire::Both => vec![&self.nats, &self.redis],
        }
    }
}

/// Everything that can break.
pub struct Fleet {
    pub world: World,
    slots: Vec<Slot>,
    reapers: Vec<Option<Process>>,
    since: Instant,
    n: u32,
    /// What happened when, for people.
    pub log: Vec<String>,
    /// What no process may do by itself.
    pub problems: Vec<String>,
    /// Faults that were made, by name.
    pub made: BTreeMap<String, u32>,
    is_loud: bool,
}

/// One moment of the schedule.
#[derive(Debug, Clone, Copy)]
enum Act {
    Break(Fault),
    Mend(Fault),
}

impl Fleet {
    /// Starts workers and reapers. `is_loud`: tells what happens as it happens.
    pub async fn start(world: World, plan: &Plan, is_loud: bool) -> Self {
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        let mut slots = Vec::new();
        for w in 0..plan.workers {
            slots.push(Slot {
                home: format!("host-{w}"),
                nats: Proxy::start(at(world.nats.port())).await.unwrap(),
                redis: Proxy::start(at(world.redis.port())).await.unwrap(),
                process: None,
                is_stopping: false,
                frozen_keeper: None,
            });
        }
        let mut fleet = Self {
            world,
            slots,
            reapers: (0..plan.reapers).map(|_| None).collect(),
            since: Instant::now(),
            n: 0,
            log: Vec::new(),
            problems: Vec::new(),
            made: BTreeMap::new(),
            is_loud,
        };
        (0..plan.workers).for_each(|w| fleet.start_worker(w));
        (0..plan.reapers).for_each(|r| fleet.start_reaper(r));
        fleet
    }

    /// Makes the faults of a schedule, each at its time, and mends each at its time.
    pub async fn suffer(&mut self, steps: &[Step]) {
        let mut acts: Vec<(Duration, Act)> = Vec::new();
        for s in steps {
            acts.push((s.at, Act::Break(s.fault)));
            if s.until > s.at {
                acts.push((s.until, Act::Mend(s.fault)));
            }
        }
        acts.sort_by_key(|(at, _)| *at);
        for (at, act) in acts {
            while self.since.elapsed() + LOOK < at {
                sleep_until((self.since + at).min(Instant::now() + LOOK)).await;
                self.replace_dead();
            }
            sleep_until(self.since + at).await;
            self.replace_dead();
            match act {
                Act::Break(fault) => self.make(fault).await,
                Act::Mend(fault) => {
                    self.mend(fault).await;
                    self.say(format!("mended: {fault}"));
                }
            }
        }
    }

    /// Makes everything good: nothing is frozen, cut off or missing.
    pub async fn heal(&mut self) {
        for w in 0..self.slots.len() {
            self.mend(Fault::FreezeKeeper(w)).await;
            self.mend(Fault::FreezeWorker(w)).await;
            self.mend(Fault::Hold(w, Wire::Both)).await;
        }
        for r in 0..self.reapers.len() {
            self.mend(Fault::FreezeReaper(r)).await;
        }
        if self.world.nats.pid().is_none() {
            self.mend(Fault::KillNats).await;
        }
        if self.world.redis.pid().is_none() {
            self.mend(Fault::KillRedis).await;
        }
        self.replace_dead();
        self.say("everything is healed".into());
    }

    /// Starts again what ended by itself, as a service manager would. That is allowed while a server is away (exit code 69).
    pub fn replace_dead(&mut self) {
        for w in 0..self.slots.len() {
            if self.slots[w].is_stopping {
                continue;
            }
            let Some(p) = self.slots[w].process.as_mut() else { continue };
            let Some(code) = p.exited() else { continue };
            let log = p.log();
            self.slots[w].process = None;
            self.ended(&format!("worker {w}"), code, &log);
            self.start_worker(w);
        }
        for r in 0..self.reapers.len() {
            let Some(p) = self.reapers[r].as_mut() else { continue };
            let Some(code) = p.exited() else { continue };
            let log = p.log();
            self.reapers[r] = None;
            self.ended(&format!("reaper {r}"), code, &log);
            self.start_reaper(r);
        }
    }

    /// Stops all processes in order; each must end with 0.
    pub async fn stop(&mut self) {
        let workers = self.slots.iter_mut().filter_map(|s| s.process.as_mut());
        let all: Vec<&mut Process> = workers.chain(self.reapers.iter_mut().flatten()).collect();
        all.iter().for_each(|p| p.terminate());
        for p in all {
            let code = p.ended(Duration::from_secs(60)).await;
            if code != Some(0) {
                self.problems.push(format!("a process ended with {code:?}:\n{}", last_lines(&p.log(), 20)));
            }
        }
    }

    /// Lines of all logs that name something.
    pub fn logged(&self, what: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for e in std::fs::read_dir(self.world.dir.path()).unwrap().flatten() {
            let path = e.path();
            if path.extension().is_some_and(|x| x == "log") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                lines.extend(text.lines().filter(|l| l.contains(what)).map(|l| format!("{name}: {l}")));
            }
        }
        lines
    }

    fn say(&mut self, what: String) {
        let line = format!("{:7.2} s  {what}", self.since.elapsed().as_secs_f64());
        if self.is_loud {
            eprintln!("{line}");
        }
        self.log.push(line);
    }

    fn ended(&mut self, who: &str, code: Option<i32>, log: &str) {
        self.say(format!("{who} ended with {code:?} and is started again"));
        if code != Some(69) {
            self.problems.push(format!("{who} ended by itself with {code:?}:\n{}", last_lines(log, 20)));
        }
    }

    fn start_worker(&mut self, w: usize) {
        self.n += 1;
        let slot = &self.slots[w];
        let url = |scheme: &str, p: &Proxy| format!("{scheme}://{}", p.addr());
        let (nats, redis) = (url("nats", &slot.nats), url("redis", &slot.redis));
        let state = self.world.path(&slot.home);
        let args = ["--state-dir", &state, "--nats", &nats, "--redis", &redis, "--slots", "6"];
        let process = self.world.worker(&args, &[]);
        let pid = process.pid();
        self.slots[w].process = Some(process);
        let home = self.slots[w].home.clone();
        self.say(format!("worker {w} is started: {pid} at {home}"));
    }

    fn start_reaper(&mut self, r: usize) {
        let process = self.world.reaper(&[]);
        let pid = process.pid();
        self.reapers[r] = Some(process);
        self.say(format!("reaper {r} is started: {pid}"));
    }

    fn keeper(&self, w: usize) -> Option<i32> {
        find_keeper(self.slots[w].process.as_ref()?.id()?)
    }

    async fn make(&mut self, fault: Fault) {
        *self.made.entry(name(fault)).or_default() += 1;
        self.say(fault.to_string());
        match fault {
            Fault::KillWorker(w) | Fault::MoveWorker(w) => {
                if let Some(mut p) = self.slots[w].process.take() {
                    p.kill9().await;
                }
                if let Fault::MoveWorker(_) = fault {
                    self.slots[w].home = format!("host-{w}-{}", self.n);
                }
            }
            Fault::StopWorker(w) => {
                self.slots[w].is_stopping = true;
                if let Some(p) = &self.slots[w].process {
                    p.terminate();
                }
            }
            Fault::FreezeWorker(w) => {
                if let Some(p) = &self.slots[w].process {
                    p.freeze();
                }
            }
            Fault::KillKeeper(w) => match self.keeper(w) {
                Some(pid) => signal(pid, Signal::KILL),
                None => self.say(format!("worker {w} has no keeper now")),
            },
            Fault::FreezeKeeper(w) => match self.keeper(w) {
                Some(pid) => {
                    signal(pid, Signal::STOP);
                    self.slots[w].frozen_keeper = Some(pid);
                }
                None => self.say(format!("worker {w} has no keeper now")),
            },
            Fault::KillReaper(r) => {
                if let Some(mut p) = self.reapers[r].take() {
                    p.kill9().await;
                }
            }
            Fault::FreezeReaper(r) => {
                if let Some(p) = &self.reapers[r] {
                    p.freeze();
                }
            }
            Fault::Cut(w, wire) => self.slots[w].wires(wire).iter().for_each(|p| p.cut()),
            Fault::Hold(w, wire) => self.slots[w].wires(wire).iter().for_each(|p| p.hold()),
            Fault::KillNats => self.world.nats.kill9().await.unwrap(),
            Fault::KillRedis => self.world.redis.kill9().await.unwrap(),
            Fault::WipeRedis => self.redis(&["FLUSHALL"]).await,
            Fault::RefuseWrites => self.redis(&["CONFIG", "SET", "min-replicas-to-write", "3"]).await,
            // Nobody listens there.
            Fault::DemoteRedis => self.redis(&["REPLICAOF", "127.0.0.1", "1"]).await,
            Fault::EmptyRedis => {
                self.world.redis.kill9().await.unwrap();
                empty(&self.world.dir.path().join("redis"));
            }
        }
    }

    async fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::KillWorker(w) | Fault::MoveWorker(w) => {
                if self.slots[w].process.is_none() {
                    self.start_worker(w);
                }
            }
            Fault::StopWorker(w) => {
                self.slots[w].is_stopping = false;
                let Some(mut p) = self.slots[w].process.take() else { return };
                // A server that is away may keep it from giving everything back.
                let code = p.ended(Duration::from_secs(60)).await;
                if !matches!(code, Some(0 | 69)) {
                    self.problems.push(format!(
                        "worker {w} was told to stop and ended with {code:?}:\n{}",
                        last_lines(&p.log(), 20)
                    ));
                }
                self.start_worker(w);
            }
            Fault::FreezeWorker(w) => {
                if let Some(p) = &self.slots[w].process {
                    p.thaw();
                }
            }
            Fault::FreezeKeeper(w) => {
                if let Some(pid) = self.slots[w].frozen_keeper.take().filter(|p| alive(*p)) {
                    signal(pid, Signal::CONT);
                }
            }
            Fault::KillReaper(r) => {
                if self.reapers[r].is_none() {
                    self.start_reaper(r);
                }
            }
            Fault::FreezeReaper(r) => {
                if let Some(p) = &self.reapers[r] {
                    p.thaw();
                }
            }
            Fault::Cut(w, wire) | Fault::Hold(w, wire) => {
                self.slots[w].wires(wire).iter().for_each(|p| p.heal());
            }
            Fault::KillNats => self.world.nats.restart().await.unwrap(),
            Fault::KillRedis | Fault::EmptyRedis => self.world.redis.restart().await.unwrap(),
            Fault::RefuseWrites => self.redis(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await,
            Fault::DemoteRedis => self.redis(&["REPLICAOF", "NO", "ONE"]).await,
            Fault::KillKeeper(_) | Fault::WipeRedis => {}
        }
    }

    /// One command to Redis itself.
    async fn redis(&self, words: &[&str]) {
        let client = redis::Client::open(self.world.redis.url()).unwrap();
        let mut c = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::Cmd::new();
        words.iter().for_each(|w| {
            command.arg(*w);
        });
        let _: redis::Value = command.query_async(&mut c).await.unwrap();
    }
}

/// How often it is looked whether a process ended by itself.
const LOOK: Duration = Duration::from_millis(200);

/// A fault without whom it meets.
fn name(fault: Fault) -> String {
    fault.to_string().split(' ').filter(|w| w.parse::<usize>().is_err()).collect::<Vec<_>>().join(" ")
}

fn signal(pid: i32, s: Signal) {
    // It may have ended in this moment.
    kill_process(Pid::from_raw(pid).unwrap(), s).ok();
}

fn empty(folder: &PathBuf) {
    for e in std::fs::read_dir(folder).unwrap().flatten() {
        let path = e.path();
        // The server's own log stays: it says what the server found at its start.
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else if path.extension().is_none_or(|x| x != "log") {
            std::fs::remove_file(&path).unwrap();
        }
    }
}

fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}
