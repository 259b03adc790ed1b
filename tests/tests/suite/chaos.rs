//! A minute under random faults. `make chaos` runs longer; the seed of a failed run makes the same faults again.

use std::time::{Duration, SystemTime};

use surety_tests::chaos::{
    self,
    schedule::{Fault, Plan, Step, Wire},
};

/// Faults come for so long; the rest of the minute settles and checks.
const DURATION: Duration = Duration::from_secs(35);

// Shows: V-05, P1, P2, P4, P5, P7, H-05, H-09
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_faults_breaks_no_promise() {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let plan = |seed| Plan::new(seed, DURATION, chaos::TTL);
    let seed = match std::env::var("SEED") {
        Ok(given) => given.parse().unwrap(),
        Err(_) => (nanos as u64 % 1_000_000..).find(|s| is_telling(&plan(*s))).unwrap(),
    };
    let report = chaos::run(&plan(seed), false).await;
    println!("SEED={seed}: {}", report.summary());
    assert!(report.problems.is_empty(), "{}", report.story);
    assert!(report.figures.jobs > 20, "it showed little: {}", report.summary());
}

/// Both servers are killed, a worker is, and another one cannot renew for longer than its lease.
fn is_telling(plan: &Plan) -> bool {
    let steps = plan.steps();
    let has = |want: fn(&Step) -> bool| steps.iter().any(want);
    has(|s| s.fault == Fault::KillNats)
        && has(|s| s.fault == Fault::KillRedis)
        && has(|s| matches!(s.fault, Fault::KillWorker(_) | Fault::MoveWorker(_)))
        && has(|s| {
            let keeps = matches!(
                s.fault,
                Fault::FreezeWorker(_)
                    | Fault::Hold(_, Wire::Redis | Wire::Both)
                    | Fault::Cut(_, Wire::Redis | Wire::Both)
            );
            keeps && s.until - s.at > chaos::TTL
        })
}
