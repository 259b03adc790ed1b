//! The figures, and how they are shown.

use serde::Serialize;

/// One round's figures. Rates are per second, times in microseconds.
#[derive(Debug, Clone, Default, Serialize, schemars::JsonSchema)]
pub struct Round {
    pub plain_publish: f64,
    pub plain_pull_and_ack: f64,
    pub enqueue: f64,
    pub noop: f64,
    pub redis_cpu_us_per_job: f64,
    pub nats_cpu_us_per_job: f64,
    pub worker_cpu_us_per_job: f64,
    pub command_us: f64,
    pub bare_spawn_us: f64,
    pub start_p50_us: f64,
    pub start_p99_us: f64,
}

/// The best of the rounds: highest rates, lowest times; the ratios are those of the best round by ratio.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Best {
    pub enqueue_ratio: f64,
    pub noop_ratio: f64,
    pub command_ratio: f64,
    pub start_p50_us: f64,
    pub start_p99_us: f64,
    pub redis_cpu_us_per_job: f64,
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Report {
    pub jobs: usize,
    pub cores: usize,
    pub nats: String,
    pub rounds: Vec<Round>,
    pub best: Best,
}

impl Report {
    /// Takes the best of the rounds; `None` without any.
    pub fn of(jobs: usize, nats: String, rounds: Vec<Round>) -> Option<Self> {
        let highest = |f: fn(&Round) -> f64| {
            rounds.iter().map(f).fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))))
        };
        let lowest = |f: fn(&Round) -> f64| {
            rounds.iter().map(f).fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.min(b))))
        };
        let best = Best {
            enqueue_ratio: highest(|r| r.enqueue / r.plain_publish)?,
            noop_ratio: highest(|r| r.noop / r.plain_pull_and_ack)?,
            command_ratio: lowest(|r| r.command_us / r.bare_spawn_us)?,
            start_p50_us: lowest(|r| r.start_p50_us)?,
            start_p99_us: lowest(|r| r.start_p99_us)?,
            redis_cpu_us_per_job: lowest(|r| r.redis_cpu_us_per_job)?,
        };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Some(Self { jobs, cores, nats, rounds, best })
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{} jobs a round, best of {}, {} cores shared by servers, worker and client, nats-server {}\n\n",
            self.jobs,
            self.rounds.len(),
            self.cores,
            self.nats
        );
        let mut line = |name: &str, f: &dyn Fn(&Round) -> String| {
            let cells: Vec<String> = self.rounds.iter().map(|r| format!("{:>12}", f(r))).collect();
            out.push_str(&format!("{name:<34}{}\n", cells.join("")));
        };
        line("plain publish, 256 B (1/s)", &|r| format!("{:.0}", r.plain_publish));
        line("enqueue (1/s)", &|r| format!("{:.0}", r.enqueue));
        line("  of plain publish", &|r| format!("{:.0} %", 100.0 * r.enqueue / r.plain_publish));
        line("plain pull and ack (1/s)", &|r| format!("{:.0}", r.plain_pull_and_ack));
        line("no-op jobs, every promise on (1/s)", &|r| format!("{:.0}", r.noop));
        line("  of plain pull and ack", &|r| format!("{:.0} %", 100.0 * r.noop / r.plain_pull_and_ack));
        line("redis CPU per job (µs)", &|r| format!("{:.1}", r.redis_cpu_us_per_job));
        line("nats CPU per job (µs)", &|r| format!("{:.1}", r.nats_cpu_us_per_job));
        line("worker CPU per job (µs)", &|r| format!("{:.1}", r.worker_cpu_us_per_job));
        line("bare spawn and wait, 4 at once (µs)", &|r| format!("{:.0}", r.bare_spawn_us));
        line("command job, 4 at once (µs)", &|r| format!("{:.0}", r.command_us));
        line("  of a bare spawn", &|r| format!("{:.1} ×", r.command_us / r.bare_spawn_us));
        line("idle enqueue to start, p50 (µs)", &|r| format!("{:.0}", r.start_p50_us));
        line("idle enqueue to start, p99 (µs)", &|r| format!("{:.0}", r.start_p99_us));
        let b = &self.best;
        out.push_str(&format!(
            "\nbest: enqueue {:.0} % of plain publish, no-op {:.0} % of plain pull and ack, command {:.1} × a bare spawn\n",
            100.0 * b.enqueue_ratio,
            100.0 * b.noop_ratio,
            b.command_ratio
        ));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_each_ratio_is_taken_within_a_round() {
        let round = |e: f64, p: f64| Round {
            enqueue: e,
            plain_publish: p,
            plain_pull_and_ack: 1.0,
            bare_spawn_us: 1.0,
            ..Round::default()
        };
        let r =
            Report::of(1, "2.15.1".into(), vec![round(50.0, 100.0), round(90.0, 100.0), round(100.0, 200.0)])
                .unwrap();
        assert_eq!(r.best.enqueue_ratio, 0.9);
        assert!(r.table().contains("90 %"));
        assert!(Report::of(1, String::new(), vec![]).is_none());
    }
}
