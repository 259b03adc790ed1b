//! `surety dev`: everything on this machine, for trying things out.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use surety_common::{config, connect, telemetry::Listen};

use super::{Context, failure::Failure};
use crate::dev::{
    folder::{self, Taken},
    processes::{Outcome, Processes},
    servers::{NatsOptions, NatsServer, RedisOptions, RedisServer},
};

/// Run private servers, a reaper and workers on this machine
///
/// Starts nats-server and redis-server with their data under --data, provisions them, then starts surety-reaper and
/// surety-worker from the folder of this program. Ctrl-C stops the processes first, then the servers; a second one kills
/// them. The data is kept: the next start goes on where this one ended.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety dev --config surety.toml --workers 2")]
pub(super) struct DevArgs {
    /// Folder of all data and logs
    #[arg(long, value_name = "FOLDER", default_value = ".surety/dev")]
    data: PathBuf,
    /// Port of the NATS server on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 4222)]
    nats_port: u16,
    /// Port of the Redis server on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 6379)]
    redis_port: u16,
    /// Worker processes to start; 0 for servers and reaper only
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=64))]
    workers: u32,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Running<'a> {
    nats: &'a str,
    redis: &'a str,
    workers: u32,
    data: String,
}

pub(super) async fn run(cx: &Context, args: DevArgs) -> Result<(), Failure> {
    let DevArgs { data, nats_port, redis_port, workers } = args;
    // Looked for first: without them nothing else is worth starting.
    let programs = Processes::find()?;
    let _ours = take(&data, nats_port)?;
    // Before anything starts, so that nothing has to be taken down again.
    for (flag, port) in [("--nats-port", nats_port), ("--redis-port", redis_port)] {
        if port != 0 && std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).is_err() {
            return Err(port_taken(flag, port));
        }
    }
    let mut nats = NatsServer::start(NatsOptions {
        port: Some(nats_port),
        data: data.join("nats"),
        extra_config: String::new(),
        log: None,
    })
    .await
    .map_err(|e| with_hint(e, "--nats-port", nats_port))?;
    let mut redis = RedisServer::start(RedisOptions {
        port: Some(redis_port),
        data: data.join("redis"),
        extra_args: vec![],
        log: None,
    })
    .await
    .map_err(|e| with_hint(e, "--redis-port", redis_port))?;
    let (nats_url, redis_url) = (nats.url(), redis.url());

    let mut flags = config::private_servers(nats_url.clone(), redis_url.clone(), "surety dev");
    flags.push(("connection.namespace", cx.settings.connection.namespace.clone(), "--namespace"));
    let settings = config::load(cx.file.as_deref(), &flags)?;
    let (connected, done) = connect::provision(&settings, "surety-dev").await?;
    for line in done.changed.iter().chain(&done.refused) {
        cx.screen.note(line);
    }
    drop(connected);

    let mut arguments: Vec<std::ffi::OsString> = Vec::new();
    if let Some(file) = &cx.file {
        arguments.extend(["--config".into(), file.into()]);
    }
    for (flag, value) in
        [("--nats", &nats_url), ("--redis", &redis_url), ("--namespace", &settings.connection.namespace)]
    {
        arguments.extend([flag.into(), value.into()]);
    }
    arguments.push("--private-servers".into());
    // A worker that drains takes its time; whoever takes longer is killed.
    let patience = settings.worker.drain + settings.attempt.kill_grace + std::time::Duration::from_secs(10);
    let mut processes = Processes::new(programs, patience);
    let listen = settings.telemetry.listen;
    processes.start_reaper(&[arguments.clone(), listen_at(listen, 1)].concat())?;
    for n in 1..=workers {
        let place = if n == 1 { 0 } else { n };
        let arguments = [arguments.clone(), listen_at(listen, place)].concat();
        processes.start_worker(n, &arguments, &data.join(format!("worker-{n}")))?;
    }
    let running = Running { nats: &nats_url, redis: &redis_url, workers, data: data.display().to_string() };
    cx.screen.show(&running, || {
        let mut at = String::new();
        if nats_port != 4222 {
            at.push_str(&format!(" --nats {nats_url}"));
        }
        if redis_port != 6379 {
            at.push_str(&format!(" --redis {redis_url}"));
        }
        format!(
            "nats   {nats_url}\nredis  {redis_url}\ndata   {}\ntry    surety enqueue noop '{{}}' --wait{at}\nCtrl-C stops everything",
            data.display()
        )
    })?;
    let outcome = processes.run().await;
    // Ordering: the processes are gone, so nobody needs the servers any more.
    redis.stop().await?;
    nats.stop().await?;
    match outcome? {
        Outcome::Stopped => Ok(()),
        Outcome::Died(what) => Err(Failure::no(what)),
    }
}

/// One host, several processes: the first worker listens where the settings say, the reaper one port on, then the others.
fn listen_at(first: Listen, place: u32) -> Vec<std::ffi::OsString> {
    let own = match first {
        Listen::At(mut a) if a.port() != 0 => {
            match u16::try_from(u32::from(a.port()) + place) {
                Ok(port) => {
                    a.set_port(port);
                    Listen::At(a)
                }
                // No port is left.
                Err(_) => Listen::Off,
            }
        }
        // A free one for each.
        other => other,
    };
    vec!["--listen".into(), own.to_string().into()]
}

fn with_hint(e: crate::dev::servers::ServerError, flag: &str, port: u16) -> Failure {
    let failure = Failure::from(e);
    if port != 0 && failure.text.to_ascii_lowercase().contains("address already in use") {
        return port_taken(flag, port);
    }
    failure
}

fn port_taken(flag: &str, port: u16) -> Failure {
    Failure::no(format!("port {port} is taken; {flag} 0 takes a free one"))
}

/// The data folder is ours from here on, until this process ends: two of us on one folder would destroy each other's data.
fn take(data: &Path, nats_port: u16) -> Result<File, Failure> {
    let cannot = |e: std::io::Error| Failure::no(format!("cannot use the folder {}: {e}", data.display()));
    std::fs::create_dir_all(data).map_err(cannot)?;
    let nats =
        if nats_port == 0 { "a free port".to_owned() } else { format!("nats://127.0.0.1:{nats_port}") };
    let note = format!("process {}, {nats}", std::process::id());
    match folder::take(data, "dev.lock", &note).map_err(cannot)? {
        Taken::Ours(file) => Ok(file),
        Taken::Theirs(who) => Err(Failure::no(format!(
            "surety dev already runs in {} ({who}): use that one, stop it, or take another folder with --data",
            data.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_on_one_host_listen_at_ports_of_their_own() {
        let at = |listen: &str, place| listen_at(listen.parse().unwrap(), place)[1].clone();
        assert_eq!(at("127.0.0.1:9464", 0), "127.0.0.1:9464");
        assert_eq!(at("127.0.0.1:9464", 1), "127.0.0.1:9465");
        assert_eq!([at("off", 1), at("127.0.0.1:65535", 1)], ["off", "off"]);
        assert_eq!(at("127.0.0.1:0", 2), "127.0.0.1:0");
    }
}
