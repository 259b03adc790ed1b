//! `surety watch`: filters, outages, how it ends.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use surety_common::{domain::ErrorCode, store::Verdict};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
};

use super::{
    support::{Hand, World},
    terminal::Terminal,
};

/// A `watch` that runs, and what it writes line by line.
struct Watching {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

async fn line<R: tokio::io::AsyncBufRead + Unpin>(from: &mut Lines<R>) -> String {
    let next = tokio::time::timeout(std::time::Duration::from_secs(60), from.next_line());
    next.await.expect("no line in time").unwrap().unwrap_or_default()
}

impl Watching {
    /// Returns when everything that happens from now on will be shown.
    async fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(line(&mut err).await.contains("watching the journal"));
        Self { child, out, err }
    }

    /// The next events as (job, rev, kind).
    async fn events(&mut self, n: usize) -> Vec<(String, u64, String)> {
        let mut found = Vec::new();
        for _ in 0..n {
            let text = line(&mut self.out).await;
            let e: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text:?}"));
            let name = |n: &str| e[n].as_str().unwrap().to_owned();
            found.push((name("job"), e["rev"].as_u64().unwrap(), name("kind")));
        }
        found
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ctrl-C; the exit code and the rest of stderr.
    async fn interrupt(mut self) -> (Option<i32>, String) {
        self.signal(Signal::INT);
        let status = tokio::time::timeout(std::time::Duration::from_secs(60), self.child.wait()).await;
        let mut rest = String::new();
        self.err.into_inner().read_to_string(&mut rest).await.unwrap();
        (status.unwrap().unwrap().code(), rest)
    }
}

async fn done(w: &World, hand: &Hand, id: &str, more: &[&str]) {
    w.run(&[&["enqueue", "thumbnail", "--id", id], more].concat()).await.exits(0);
    let g = hand.granted(id).await;
    hand.finish(id, g.epoch, Verdict::Done).await;
}

fn named(job: &str, rev: u64, kind: &str) -> (String, u64, String) {
    (job.into(), rev, kind.into())
}

#[tokio::test]
async fn filters_choose_and_since_begins_in_the_past() {
    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    done(&w, &hand, "before", &[]).await;
    let watch =
        async |args: &[&str]| Watching::start(w.command(&[&["--json", "watch"], args].concat())).await;
    let mut all = watch(&[]).await;
    let mut urgent = watch(&["--queue", "critical"]).await;
    let mut ended = watch(&["--kind", "finished", "--key", "k"]).await;
    let mut open = watch(&["--kind", "started", "--job", "b", "--job", "c"]).await;
    done(&w, &hand, "a", &[]).await;
    done(&w, &hand, "b", &["--queue", "critical"]).await;
    done(&w, &hand, "c", &["--key", "k"]).await;
    let both = |id: &str| [named(id, 1, "started"), named(id, 2, "finished")];
    assert_eq!(all.events(6).await, [both("a"), both("b"), both("c")].concat());
    assert_eq!(urgent.events(2).await, both("b"));
    assert_eq!(ended.events(1).await, [named("c", 2, "finished")]);
    assert_eq!(open.events(2).await, [named("b", 1, "started"), named("c", 1, "started")]);
    // The past first, then what comes.
    let mut since = watch(&["--since", "10m", "--type", "thumbnail", "--kind", "finished"]).await;
    done(&w, &hand, "d", &[]).await;
    let jobs: Vec<String> = since.events(5).await.into_iter().map(|(job, ..)| job).collect();
    assert_eq!(jobs, ["before", "a", "b", "c", "d"]);
    assert_eq!(since.interrupt().await, (Some(130), String::new()));

    w.run(&["watch", "--queue", "defalt"]).await.exits(2).complains("did you mean \"default\"?");
    w.run(&["watch", "--kind", "finishd"]).await.exits(2).complains("'finished'");
    w.run(&["watch", "--since", "yesterday"]).await.exits(2).complains("is not a duration");
    w.run(&["--namespace", "other", "watch"]).await.exits(78).complains("surety provision");
}

// Shows: P7
#[tokio::test]
async fn an_outage_of_nats_is_said_once_and_nothing_is_missed_or_repeated() {
    let mut w = World::provisioned().await;
    let mut c = w.command(&["--json", "watch"]);
    c.env("SURETY_CONNECTION_CALL_TIMEOUT", "1s");
    let mut watching = Watching::start(c).await;
    for (round, id) in ["a", "b"].into_iter().enumerate() {
        let hand = Hand::start(&w).await;
        done(&w, &hand, id, &[]).await;
        assert_eq!(watching.events(2).await, [named(id, 1, "started"), named(id, 2, "finished")], "{round}");
        w.nats.kill9().await.unwrap();
        let said = line(&mut watching.err).await;
        assert!(said.contains("going on when it is back"), "{said}");
        // It sleeps while this happens, and must not miss it.
        watching.signal(Signal::STOP);
        w.nats.restart().await.unwrap();
        let hand = Hand::start(&w).await;
        done(&w, &hand, &format!("{id}-after"), &[]).await;
        watching.signal(Signal::CONT);
        assert_eq!(line(&mut watching.err).await, "NATS is back");
        let after = format!("{id}-after");
        assert_eq!(watching.events(2).await, [named(&after, 1, "started"), named(&after, 2, "finished")]);
    }
    assert_eq!(watching.interrupt().await, (Some(130), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_coloured_lines_that_fit_and_a_pipe_plain_ones() {
    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    let wide = Terminal::start(w.command(&["watch"]), 120);
    let narrow = Terminal::start(w.command(&["watch"]), 40);
    let mut plain = Watching::start(w.command(&["watch"])).await;
    wide.shows("Ctrl-C ends").await;
    narrow.shows("Ctrl-C ends").await;
    let id = "01JD0000000000000000000000";
    w.run(&["enqueue", "thumbnail", "--id", id]).await.exits(0);
    let g = hand.granted(id).await;
    hand.finish(id, g.epoch, Verdict::Fail(ErrorCode::ExitCode)).await;
    let lines = [line(&mut plain.out).await, line(&mut plain.out).await];
    let fields: Vec<&str> = lines[1].split(' ').skip(1).collect();
    assert_eq!(
        fields,
        ["finished", id, "2", "default", "thumbnail", "failed", "exit_code:", "by", "hand"],
        "{lines:?}"
    );
    wide.shows("failed exit_code: by hand").await;
    narrow.shows("failed exit_code: by hand").await;
    assert!(wide.text().contains("\x1b[31mfinished"), "{:?}", wide.text());
    let texts: Vec<String> = narrow.text().lines().skip(1).map(super::screen::without_codes).collect();
    assert!(texts.iter().all(|l| l.len() <= 40) && texts.iter().any(|l| l.trim() == id), "{texts:?}");
}

#[tokio::test]
async fn a_reader_that_went_away_ends_the_watch_without_waiting_for_an_event() {
    let w = World::provisioned().await;
    let watching = Watching::start(w.command(&["watch"])).await;
    let Watching { mut child, out, .. } = watching;
    drop(out);
    let status = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait()).await;
    assert_eq!(status.expect("it goes on").unwrap().code(), Some(0));
}
