//! What people see: narrow terminals, colours, pipes that close.

use std::process::Stdio;

use tokio::io::AsyncReadExt;
use unicode_width::UnicodeWidthStr;

use super::{
    support::{Hand, World, feed, finish},
    terminal::Terminal,
};

const LONG: &str = "01JD0000000000000000000000-of-a-long-name";

pub(crate) fn without_codes(line: &str) -> String {
    let parts = line.split('\x1b').map(|part| match part.split_once('m') {
        Some((code, rest)) if code.starts_with('[') => rest,
        _ => part,
    });
    parts.collect()
}

/// Two cancelled jobs, whose dead letters have long ids and wide characters.
async fn letters() -> World {
    let w = World::provisioned().await;
    for id in ["a", LONG] {
        w.run(&["enqueue", "thumbnail", "--id", id, "--key", "k"]).await.exits(0);
        w.run(&["cancel", id, "--reason", "日本語の仕事は間違っていた、と書いてある"]).await.exits(0);
    }
    w
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_fits_a_terminal_of_40_columns_and_ids_stay_whole() {
    let w = letters().await;
    let _worker = Hand::start(&w).await;
    for args in [
        &["dlq", "list"][..],
        &["dlq", "replay", "--all"],
        &["events", "a"],
        &["events", "--key", "k"],
        &["queues"],
        &["status", "a"],
        &["why", "a"],
        &["workers"],
    ] {
        for columns in [40, 80, 200] {
            let mut t = Terminal::start(w.command(args), columns);
            if args.contains(&"replay") {
                t.shows("[y/N]").await;
                t.types("n\n");
            }
            let (_, text) = t.end().await;
            // What is asked, and its answer, is no table.
            let table: Vec<&str> = text.lines().filter(|l| !l.contains("nothing was done")).collect();
            assert!(table.len() > 1, "{args:?}: {text}");
            for line in table.iter().filter(|l| !l.contains("[y/N]")) {
                let line = without_codes(line);
                assert!(line.width() <= usize::from(columns), "{args:?} at {columns}: {line:?}");
            }
            if args[0] == "dlq" && columns > 40 {
                assert!(text.contains(LONG), "{text}");
            }
        }
    }
    // Where no terminal is, nothing is cut to fit.
    let said = w.run(&["dlq", "list"]).await.exits(0);
    assert!(said.out.lines().count() == 3 && said.out.contains("と書いてある"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_terminals_and_can_be_switched_off_and_on() {
    let w = letters().await;
    let is_coloured = async |args: &[&str], no_color: &str| {
        let mut c = w.command(args);
        c.env("NO_COLOR", no_color);
        Terminal::start(c, 80).end().await.1.contains("\x1b[")
    };
    assert!(is_coloured(&["events", "a"], "").await, "an empty NO_COLOR says nothing");
    assert!(!is_coloured(&["events", "a"], "1").await);
    assert!(!is_coloured(&["events", "a", "--color", "never"], "").await);
    assert!(is_coloured(&["events", "a", "--color", "always"], "1").await, "a flag is stronger");
    assert!(!is_coloured(&["events", "a", "--json"], "").await);
    assert!(is_coloured(&["events", "a", "--json", "--log", "info"], "").await, "the log is");
    assert!(!is_coloured(&["events", "a", "--json", "--log", "info"], "1").await);
    assert!(!w.run(&["events", "a"]).await.exits(0).out.contains('\x1b'));
    assert!(w.run(&["events", "a", "--color", "always"]).await.exits(0).out.contains('\x1b'));
}

#[tokio::test]
async fn a_pipe_that_closes_in_the_middle_ends_the_command_quietly() {
    let w = World::provisioned().await;
    // More than a pipe holds.
    let payload = format!("\"{}\"", "x".repeat(400_000));
    feed(w.command(&["enqueue", "thumbnail", "-", "--id", "large"]), payload.as_bytes()).await.exits(0);
    w.run(&["cancel", "large"]).await.exits(0);
    for args in [&["dlq", "show", "large"][..], &["--json", "dlq", "show", "large"]] {
        let mut child = w.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 3]).await.unwrap();
        drop(stdout);
        let out = child.wait_with_output().await.unwrap();
        assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""));
    }
    let mut help = w.command(&["enqueue", "--help"]);
    help.stdout(Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap()));
    let said = finish(help).await;
    assert!(!said.err.contains("panicked"), "{}", said.err);
}
