//! A terminal of a given size, in which a command runs.

use std::{
    fs::File,
    io::{Read, Write},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::process::{Child, Command};

use super::support::wait;

/// A command whose stdin, stdout and stderr are a terminal.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    /// Starts the command in a terminal of this many columns and 24 lines.
    pub(crate) fn start(mut command: Command, columns: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).unwrap();
        let theirs = || Stdio::from(File::options().read(true).write(true).open(&path).unwrap());
        command.stdin(theirs()).stdout(theirs()).stderr(theirs()).env("TERM", "xterm-256color");
        let child = command.spawn().unwrap();
        // Its copies of the terminal must close with the command, or the reader would wait for ever.
        drop(command);
        let keyboard = File::from(ours);
        let mut screen = keyboard.try_clone().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let to = seen.clone();
        // Reading fails when the last copy of the other side is closed.
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut chunk) {
                to.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        Self { child, keyboard, seen, reader }
    }

    /// What was shown so far, with `\n` line ends.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).replace("\r\n", "\n")
    }

    /// Waits until the terminal shows a text.
    pub(crate) async fn shows(&self, part: &str) {
        wait(part, async || self.text().contains(part)).await;
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// The exit code and everything that was shown, when the command has ended.
    pub(crate) async fn end(mut self) -> (i32, String) {
        let status = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        let code = status.expect("the command hangs").unwrap().code().unwrap_or(-1);
        tokio::task::block_in_place(|| self.reader.join().unwrap());
        (code, String::from_utf8_lossy(&self.seen.lock().unwrap()).replace("\r\n", "\n"))
    }
}
