//! The servers and processes of one measurement.

use std::{
    ffi::OsString,
    path::Path,
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use surety_common::{
    config::{Settings, load_text, private_servers},
    connect::{Connected, provision},
};
use tokio::process::{Child, Command};

use super::run::{BenchError, LIMIT, io};
use crate::{
    client::Client,
    dev::servers::{NatsOptions, NatsServer, RedisOptions, RedisServer},
};

/// Private servers, provisioned, with reaper and worker as processes. Everything ends when dropped.
pub(super) struct Bed {
    // Fields are dropped in this order: processes before servers before their folder.
    pub(super) processes: Vec<Child>,
    pub(super) c: Connected,
    settings: Settings,
    pub(super) nats: NatsServer,
    redis: RedisServer,
    dir: tempfile::TempDir,
}

const CONFIG: &str = "[handlers.true]\ncommand = [\"/bin/true\"]\n";

impl Bed {
    pub(super) async fn make() -> Result<Self, BenchError> {
        Self::with("").await
    }

    /// With more configuration.
    pub(super) async fn with(more: &str) -> Result<Self, BenchError> {
        let config = format!("{CONFIG}{more}");
        let dir = tempfile::tempdir().map_err(io("make a folder for the servers"))?;
        let nats = NatsServer::start(NatsOptions {
            port: None,
            data: dir.path().join("nats"),
            extra_config: String::new(),
            log: None,
        });
        let redis = RedisServer::start(RedisOptions {
            port: None,
            data: dir.path().join("redis"),
            // At the default of 64 MiB the append-only file is rewritten several times within one measurement.
            extra_args: ["--auto-aof-rewrite-min-size", "1gb"].map(str::to_owned).to_vec(),
            log: None,
        });
        let (nats, redis) = (nats.await?, redis.await?);
        let flags = private_servers(nats.url(), redis.url(), "bench");
        let settings = load_text(Some((&config, "bench")), &|_| None, &flags)?;
        std::fs::write(dir.path().join("surety.toml"), &config).map_err(io("write the configuration"))?;
        let (c, _) = provision(&settings, "surety-bench").await?;
        Ok(Self { processes: Vec::new(), c, settings, nats, redis, dir })
    }

    pub(super) fn start(&mut self, program: &Path, more: &[&str]) -> Result<(), BenchError> {
        let config = self.dir.path().join("surety.toml");
        let mut args: Vec<OsString> = vec!["--config".into(), config.into()];
        args.extend(["--nats", &self.nats.url(), "--redis", &self.redis.url()].map(OsString::from));
        args.extend(["--private-servers", "--listen", "off"].map(OsString::from));
        if !more.contains(&"--log") {
            args.extend(["--log", "warn"].map(OsString::from));
        }
        args.extend(more.iter().map(OsString::from));
        let child = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(io(format!("start {}", program.display())))?;
        self.processes.push(child);
        Ok(())
    }

    pub(super) async fn client(&self) -> Result<Client, BenchError> {
        Ok(Client::on(self.c.broker.clone(), &self.settings).await?)
    }

    pub(super) async fn until_empty(&self) -> Result<SystemTime, BenchError> {
        let jobs = self.c.broker.names().jobs();
        let started = Instant::now();
        loop {
            if self.c.broker.stream_messages(&jobs).await? == 0 {
                return Ok(surety_common::clock::wall_now().into());
            }
            if started.elapsed() > LIMIT {
                return Err(BenchError::Stuck("the jobs did not end in time".into()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// When the first attempt started, by the journal (milliseconds of the store's clock, which is this machine's).
    pub(super) async fn first_start(&self) -> Result<SystemTime, BenchError> {
        let mut first: Option<jiff::Timestamp> = None;
        self.c
            .broker
            .read_journal(None, 0, |e| {
                if e.kind == "started"
                    && let Ok(at) = e.at.parse::<jiff::Timestamp>()
                {
                    first = Some(first.map_or(at, |f| f.min(at)));
                }
            })
            .await?;
        first.map(SystemTime::from).ok_or_else(|| BenchError::Stuck("no job was started".into()))
    }

    pub(super) async fn stop(mut self) -> Result<(), BenchError> {
        for p in &mut self.processes {
            p.kill().await.map_err(io("stop a process"))?;
        }
        self.c.broker.close().await;
        self.nats.stop().await?;
        self.redis.stop().await?;
        Ok(())
    }
}

/// CPU time of a process so far, in seconds.
pub(super) fn cpu_of(pid: u32) -> Result<f64, BenchError> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(io("read the CPU time of a process"))?;
    // After the name in parentheses: state, then 10 numbers, then user and system time in clock ticks.
    let rest = stat.rsplit_once(')').map_or("", |(_, r)| r);
    let ticks: f64 = rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}
