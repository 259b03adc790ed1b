//! One run of a server, from its start to its end, and how it is spoken to.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    ServerError,
    find::Program,
    io_error,
    process::{Process, keeper},
};
use crate::dev::folder::{self, Taken};

/// How long a folder may stay taken.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);
/// Name of the lock in a server's folder.
const LOCK: &str = "surety.lock";
/// How long a server may take until it answers.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(10);
/// The pause between two looks at a server that starts or ends.
pub(super) const POLL: Duration = Duration::from_millis(10);
/// The pause before the next attempt on a port that is still taken.
pub(super) const CLASH_PAUSE: Duration = Duration::from_millis(100);
/// One attempt to talk to a starting server.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// The most a server's greeting may be long; NATS's INFO is below 1 KiB, Redis's INFO server too.
const GREETING_BYTES: usize = 64 * 1024;
/// How much of the end of a log goes into an error, in bytes.
const LOG_TAIL_BYTES: u64 = 4 * 1024;

/// What the keeper needs to start a server.
pub(super) struct Launch {
    pub(super) binary: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) folder: PathBuf,
    pub(super) output: File,
    /// The lock on its folder, which it has for as long as it lives.
    pub(super) lock: File,
}

/// One run of a server, from its start to its end.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) program: &'static Program,
    pub(super) process: Process,
    pub(super) log: PathBuf,
    /// Where this run's part of the log begins.
    pub(super) log_from: u64,
    pub(super) deadline: Instant,
}

impl Run {
    pub(super) async fn start(
        program: &'static Program,
        files: &Files,
        arguments: Vec<OsString>,
    ) -> Result<Self, ServerError> {
        let lock = files.take_in_time(program).await?;
        let log = files.log.clone();
        let action = || io_error(format!("write {}", log.display()));
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(action())?;
        let log_from = output.metadata().map_err(action())?.len();
        let launch =
            Launch { binary: files.binary.clone(), arguments, folder: files.data.clone(), output, lock };
        let process =
            keeper::start(launch).await.map_err(io_error(format!("start {}", files.binary.display())))?;
        Ok(Self { program, process, log, log_from, deadline: Instant::now() + READY_WITHIN })
    }

    /// A pause between two attempts to reach the server; an error when there is nothing to wait for.
    pub(super) async fn pause(&mut self) -> Result<(), ServerError> {
        let program = self.program.name;
        let pid = self.process.pid;
        if let Some(status) = self.process.exited().map_err(io_error(format!("wait for process {pid}")))? {
            return Err(ServerError::Exited { program, status, log: self.log_tail() });
        }
        if Instant::now() >= self.deadline {
            return Err(ServerError::NotReady { program, within: READY_WITHIN, log: self.log_tail() });
        }
        sleep(POLL).await;
        Ok(())
    }

    fn log_tail(&self) -> String {
        let tail = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES).max(self.log_from);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        };
        match tail() {
            Ok(text) if text.is_empty() => format!("(nothing in {})", self.log.display()),
            Ok(text) => text,
            Err(error) => format!("(cannot read {}: {error})", self.log.display()),
        }
    }
}

pub(super) fn is_port_clash(error: &ServerError) -> bool {
    matches!(error, ServerError::Exited { log, .. }
        if log.to_ascii_lowercase().contains("address already in use"))
}

/// Where a server's things are; all absolute.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) binary: PathBuf,
    pub(super) data: PathBuf,
    pub(super) log: PathBuf,
}

impl Files {
    /// Takes the folder. A server whose owner was killed dies with it, and may need a moment for that.
    async fn take_in_time(&self, program: &'static Program) -> Result<File, ServerError> {
        let deadline = Instant::now() + TAKEN_WITHIN;
        loop {
            match self.take(program) {
                Err(ServerError::InUse { .. }) if Instant::now() < deadline => sleep(POLL).await,
                done => return done,
            }
        }
    }

    /// Takes the folder of its data: two servers on the same files destroy them.
    fn take(&self, program: &'static Program) -> Result<File, ServerError> {
        let note = format!("started by process {}", std::process::id());
        match folder::take(&self.data, LOCK, &note) {
            Ok(Taken::Ours(file)) => Ok(file),
            Ok(Taken::Theirs(by)) => {
                Err(ServerError::InUse { program: program.name, folder: self.data.clone(), by })
            }
            Err(e) => Err(io_error(format!("lock {}", self.data.join(LOCK).display()))(e)),
        }
    }

    pub(super) async fn prepare(
        program: &'static Program,
        data: PathBuf,
        log: Option<PathBuf>,
    ) -> Result<Self, ServerError> {
        let prepare = move || {
            let binary = program.find()?;
            let create = |folder: &Path| {
                fs::create_dir_all(folder).map_err(io_error(format!("create {}", folder.display())))
            };
            let absolute = |path: PathBuf| {
                std::path::absolute(&path).map_err(io_error(format!("find {}", path.display())))
            };
            let data = absolute(data)?;
            create(&data)?;
            let log = absolute(log.unwrap_or_else(|| data.join(program.name).with_extension("log")))?;
            log.parent().map_or(Ok(()), create)?;
            Ok(Self { binary, data, log })
        };
        tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|error| io_error(format!("look for {}", program.name))(error.into()))?
    }
}

pub(super) enum End {
    Stop,
    Kill,
}

/// Ends a run, if there is one; whatever happens, it is not kept.
pub(super) async fn end(run: &mut Option<Run>, how: End) -> Result<(), ServerError> {
    match (run.take(), how) {
        (None, _) => Ok(()),
        (Some(run), End::Stop) => run.process.stop().await,
        (Some(run), End::Kill) => run.process.kill().await,
    }
}

/// Sends `question` and returns the answer as soon as `enough` holds for it (bounded in time and
/// size); none when it does not come to that.
pub(super) async fn converse(port: u16, question: &[u8], enough: impl Fn(&str) -> bool) -> Option<String> {
    let talk = async {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        stream.write_all(question).await?;
        let mut answer = Vec::with_capacity(4096);
        loop {
            let text = String::from_utf8_lossy(&answer);
            if enough(&text) {
                return Ok(Some(text.into_owned()));
            }
            if answer.len() >= GREETING_BYTES || stream.read_buf(&mut answer).await? == 0 {
                return io::Result::Ok(None);
            }
        }
    };
    match timeout(PROBE_WITHIN, talk).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => None,
    }
}
