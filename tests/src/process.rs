//! Processes under test, ended by their id and never left behind.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// A process that writes its log to a file; killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program. Its stderr goes to `log`.
    pub fn start(program: &str, args: &[String], env: &[(&str, &str)], log: PathBuf) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
        for (k, v) in env {
            command.env(k, v);
        }
        Self { child: command.spawn().unwrap(), log }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// Process id; `None`: it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The exit code (`None` for a signal) of a process that has ended; `None` while it runs.
    pub fn exited(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().unwrap().map(|s| s.code())
    }

    fn signal(&self, s: Signal) {
        if let Some(id) = self.child.id() {
            kill_process(Pid::from_raw(id as i32).unwrap(), s).unwrap();
        }
    }

    /// `kill -9`; waits until it is gone.
    pub async fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().await.unwrap();
    }

    /// `SIGSTOP`.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// `SIGCONT`.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// `SIGTERM`; gives the exit code.
    pub async fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.ended(Duration::from_secs(60)).await
    }

    /// Sends `SIGHUP`.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Sends `SIGTERM` and does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for the end; gives the exit code, `None` for a signal.
    pub async fn ended(&mut self, within: Duration) -> Option<i32> {
        tokio::time::timeout(within, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("the process did not end:\n{}", self.log()))
            .unwrap()
            .code()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log holds a text.
    pub async fn logged(&mut self, text: &str) {
        self.logged_within(text, Duration::from_secs(30)).await;
    }

    /// Waits so long until its log holds a text.
    pub async fn logged_within(&mut self, text: &str, within: Duration) {
        let until = Instant::now() + within;
        while !self.log().contains(text) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended with {status} before it logged {text:?}:\n{}", self.log());
            }
            assert!(Instant::now() < until, "{text:?} was not logged:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
