//! A private `redis-server`.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{
    ServerError,
    find::REDIS,
    io_error,
    run::{CLASH_PAUSE, End, Files, READY_WITHIN, Run, converse, end, is_port_clash},
};

/// How to start a [`RedisServer`].
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// The port on 127.0.0.1; none (or 0): a free one.
    pub port: Option<u16>,
    /// The folder of its append-only files; created where missing, never removed.
    pub data: PathBuf,
    /// Further arguments, for instance `["--maxmemory", "64mb"]`; they win over the defaults
    /// (`--save "" --appendonly yes --appendfsync everysec --maxmemory-policy noeviction
    /// --bind 127.0.0.1`), but not over the port, the folder and `--daemonize no`. 127.0.0.1 must
    /// remain bound. A `--requirepass` is respected here; [`RedisServer::url`] does not carry it.
    pub extra_args: Vec<String>,
    /// The file its log is appended to; none: `redis-server.log` in `data`.
    pub log: Option<PathBuf>,
}

/// A private `redis-server`; killed when dropped (which may block for half a second).
#[derive(Debug)]
pub struct RedisServer {
    files: Files,
    extra_args: Vec<String>,
    port: u16,
    run: Option<Run>,
}

impl RedisServer {
    /// Starts a server and returns once it answers and has loaded its data.
    ///
    /// # Errors
    /// No usable binary, a folder that cannot be written, a server that ends at its start (the port
    /// is taken, an argument is wrong) or one that does not answer within 10 s.
    pub async fn start(options: RedisOptions) -> Result<Self, ServerError> {
        let files = Files::prepare(&REDIS, options.data, options.log).await?;
        let wanted = options.port.filter(|port| *port != 0);
        let mut server = Self { files, extra_args: options.extra_args, port: wanted.unwrap_or(0), run: None };
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if wanted.is_none() {
                server.port = free_port()?;
            }
            match server.launch().await {
                // Redis cannot pick a port itself, so another process may have been faster.
                Err(error) if wanted.is_none() && is_port_clash(&error) && Instant::now() < deadline => {
                    debug!(port = server.port, "a free port was taken meanwhile: trying another one");
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(server),
            }
        }
    }

    /// `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port, the same for the server's whole life.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process, from its start until [`kill9`](Self::kill9) or [`stop`](Self::stop).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.run.as_ref().map(|run| run.process.pid)
    }

    /// Kills the server with KILL and returns when it is gone; nothing when there is none.
    ///
    /// # Errors
    /// The operating system refused, or the process is still there after 5 s.
    pub async fn kill9(&mut self) -> Result<(), ServerError> {
        end(&mut self.run, End::Kill).await
    }

    /// Ends the server with TERM, or after 5 s with KILL, and returns when it is gone.
    ///
    /// # Errors
    /// The operating system refused, or the process is still there 5 s after KILL.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        end(&mut self.run, End::Stop).await
    }

    /// Stops the server where it still runs, and starts it again on the same port and data.
    ///
    /// # Errors
    /// As for [`stop`](Self::stop) and [`start`](Self::start); a port that is taken is tried again
    /// for 10 s, since a client's own outgoing connection may hold it for a moment.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.launch().await {
                Err(error) if is_port_clash(&error) && Instant::now() < deadline => {
                    debug!(port = self.port, "the port of a private redis-server is taken: trying again");
                    sleep(CLASH_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let defaults = [
            ["--save", ""],
            ["--appendonly", "yes"],
            ["--appendfsync", "everysec"],
            ["--maxmemory-policy", "noeviction"],
            ["--bind", "127.0.0.1"],
        ];
        let mut arguments: Vec<OsString> = defaults.concat().into_iter().map(OsString::from).collect();
        arguments.extend(self.extra_args.iter().map(OsString::from));
        // The folder is the working one: so its name needs no quoting.
        let port = self.port.to_string();
        let fixed = ["--port", &port, "--dir", ".", "--daemonize", "no"];
        arguments.extend(fixed.into_iter().map(OsString::from));
        let mut run = Run::start(&REDIS, &self.files, arguments).await?;
        while !redis_answers(self.port, run.process.pid, self.password()).await {
            run.pause().await?;
        }
        self.run = Some(run);
        Ok(())
    }

    fn password(&self) -> Option<&str> {
        let mut arguments = self.extra_args.iter().rev().peekable();
        while let Some(value) = arguments.next() {
            if arguments.peek().is_some_and(|name| *name == "--requirepass") {
                return Some(value);
            }
        }
        None
    }
}

/// Whether the server with this pid, and not a stranger, answers PING on `port`.
async fn redis_answers(port: u16, pid: u32, password: Option<&str>) -> bool {
    let mut question = String::new();
    if let Some(password) = password {
        question.push_str(&format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len()));
    }
    question.push_str("PING\r\nINFO server\r\n");
    let pid = format!("\r\nprocess_id:{pid}\r\n");
    // An error (-LOADING, -NOAUTH) ends the wait as well; INFO alone answers while data is loaded.
    let enough = |text: &str| text.contains(&pid) || text.starts_with('-') || text.contains("\n-");
    let answer = converse(port, question.as_bytes(), enough).await;
    answer.is_some_and(|text| text.contains("+PONG\r\n") && text.contains(&pid))
}

/// A port on 127.0.0.1 that was free a moment ago.
fn free_port() -> Result<u16, ServerError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(io_error("find a free port"))
}
