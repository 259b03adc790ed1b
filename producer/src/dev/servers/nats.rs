//! A private `nats-server`.

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{
    ServerError,
    find::NATS,
    io_error,
    run::{CLASH_PAUSE, End, Files, READY_WITHIN, Run, converse, end, is_port_clash},
};

/// How to start a [`NatsServer`].
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The port on 127.0.0.1; none (or 0): a free one, which the server itself picks.
    pub port: Option<u16>,
    /// The folder of the configuration, the ports file and the JetStream store (in `jetstream/`);
    /// created where missing, never removed.
    pub data: PathBuf,
    /// NATS configuration, appended to the server's own. A key that is set there already is replaced:
    /// a `jetstream` block has to bring its `store_dir`, and `listen`, `port` and `server_name` must
    /// not be set.
    pub extra_config: String,
    /// The file its log is appended to; none: `nats-server.log` in `data`.
    pub log: Option<PathBuf>,
}

/// A private `nats-server` with JetStream; killed when dropped (which may block for half a second).
#[derive(Debug)]
pub struct NatsServer {
    files: Files,
    extra_config: String,
    name: String,
    port: u16,
    run: Option<Run>,
}

impl NatsServer {
    /// Starts a server and returns once it answers and JetStream is on.
    ///
    /// # Errors
    /// No usable binary, a folder that cannot be written, a server that ends at its start (the port
    /// is taken, the configuration is wrong) or one that does not answer within 10 s.
    pub async fn start(options: NatsOptions) -> Result<Self, ServerError> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let name = format!("surety-dev-{}-{}", process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let files = Files::prepare(&NATS, options.data, options.log).await?;
        let port = options.port.unwrap_or(0);
        let mut server = Self { files, extra_config: options.extra_config, name, port, run: None };
        server.launch().await?;
        Ok(server)
    }

    /// `nats://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
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
                    debug!(port = self.port, "the port of a private nats-server is taken: trying again");
                    sleep(CLASH_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let config = self.write_config()?;
        let mut run = Run::start(&NATS, &self.files, vec!["--config".into(), config.into()]).await?;
        loop {
            let port = if self.port == 0 { self.reported_port(run.process.pid) } else { Some(self.port) };
            if let Some(port) = port
                && nats_answers(port, &self.name).await
            {
                self.port = port;
                self.run = Some(run);
                return Ok(());
            }
            run.pause().await?;
        }
    }

    fn write_config(&self) -> Result<PathBuf, ServerError> {
        let Self { name, port, extra_config, .. } = self;
        let store = quoted(&self.files.data)?;
        let listen = if *port == 0 {
            let ports = self.ports_folder();
            let action = || io_error(format!("prepare {}", ports.display()));
            match fs::remove_dir_all(&ports) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(action()(error)),
                _ => fs::create_dir_all(&ports).map_err(action())?,
            }
            // The server binds a free port itself and tells which: nobody can take it in between.
            format!("listen: \"127.0.0.1:-1\"\nports_file_dir: {}", quoted(&ports)?)
        } else {
            format!("listen: \"127.0.0.1:{port}\"")
        };
        let text = format!(
            "# Written by Surety at every start of this private server; changes are lost.\n\
             {listen}\n\
             server_name: \"{name}\"\n\
             jetstream {{\n  store_dir: {store}\n  max_mem: 4GB\n  max_file: 256GB\n}}\n\
             {extra_config}\n"
        );
        let path = self.files.data.join("nats-server.conf");
        write_private(&path, &text).map_err(io_error(format!("write {}", path.display())))?;
        Ok(path)
    }

    fn ports_folder(&self) -> PathBuf {
        self.files.data.join("ports")
    }

    /// The port from the ports file, `{"nats":["nats://127.0.0.1:PORT"]}`, once it is there as a whole.
    fn reported_port(&self, pid: u32) -> Option<u16> {
        let ending = format!("_{pid}.ports");
        let file = fs::read_dir(self.ports_folder())
            .ok()?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().ends_with(&ending))?;
        let text = fs::read_to_string(file.path()).ok()?;
        let (_, from_port) = text.trim_end().strip_suffix('}')?.split_once("127.0.0.1:")?;
        from_port.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }
}

/// Whether the server named `name`, and not a stranger, greets on `port` with JetStream on.
async fn nats_answers(port: u16, name: &str) -> bool {
    let name = format!("\"server_name\":\"{name}\"");
    let greeting = converse(port, &[], |text| text.contains("\r\n")).await;
    greeting.is_some_and(|text| {
        text.starts_with("INFO ") && text.contains(&name) && text.contains("\"jetstream\":true")
    })
}

/// A path as a string of NATS's configuration language.
fn quoted(path: &Path) -> Result<String, ServerError> {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => {
            Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
        }
        _ => Err(ServerError::Path(path.to_owned())),
    }
}

/// Writes a file that only its owner can read: the configuration may hold credentials.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
