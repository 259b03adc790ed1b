//! Producers in other languages, written from `docs/protocol.md` alone, against a real system.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use surety_tests::world::{World, messages};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn python(args: &[&str], modules: Option<&Path>, env: &[(&str, &str)]) -> Output {
    let mut c = Command::new("python3");
    c.args(args).envs(env.iter().copied());
    if let Some(m) = modules {
        c.env("PYTHONPATH", m);
    }
    c.output().unwrap()
}

/// Where nats-py is: `Some(None)` where Python finds it itself, else a folder that pip put it into.
fn nats_py(into: &Path) -> Option<Option<PathBuf>> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no python3 here");
        return None;
    }
    if python(&["-c", "import nats.js"], None, &[]).status.success() {
        return Some(None);
    }
    let to = into.display().to_string();
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", &to, "nats-py"];
    let done = python(&pip, None, &[("PIP_USER", "0"), ("PIP_ROOT_USER_ACTION", "ignore")]);
    if done.status.success() {
        return Some(Some(into.to_owned()));
    }
    eprintln!("SKIPPED: pip cannot install nats-py: {}", String::from_utf8_lossy(&done.stderr));
    None
}

// Shows: J-11, V-10
#[tokio::test(flavor = "multi_thread")]
async fn a_python_script_written_from_the_protocol_enqueues_jobs_and_reads_their_outcomes() {
    let handler = root().join("examples/handlers/python/wordcount.py");
    let w = World::with(&format!("[handlers.words]\ncommand = [\"python3\", {handler:?}]")).await;
    let modules = w.dir.path().join("python");
    let Some(modules) = tokio::task::spawn_blocking(move || nats_py(&modules)).await.unwrap() else { return };
    let c = w.connect().await;
    let mut worker = w.worker(&[], &[]);

    let script = root().join("examples/producers/python/producer.py").display().to_string();
    let url = w.nats.url();
    let run = |more: &[&str]| {
        let args: Vec<String> = [script.as_str(), "--nats", &url, "--patience", "40"]
            .iter()
            .chain(more)
            .map(|s| (*s).to_owned())
            .collect();
        let modules = modules.clone();
        tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            python(&args, modules.as_deref(), &[])
        })
    };

    let out =
        run(&["--type", "words", "--payload", r#"{"text":"one two three"}"#, "--count", "3"]).await.unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{said}\n{}", w.logs());
    let receipts: Vec<serde_json::Value> = out
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(receipts.len(), 3);
    for r in &receipts {
        assert_eq!((r["outcome"].as_str(), r["result"]["words"].as_u64()), (Some("done"), Some(3)), "{r}");
    }

    // What a handler refuses for good is an outcome too, and the script hears of it.
    let out = run(&["--type", "words", "--payload", r#"{"text":7}"#]).await.unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    let receipt: serde_json::Value = serde_json::from_slice(&out.stdout).expect(&said);
    assert_eq!(
        (receipt["outcome"].as_str(), receipt["error_code"].as_str()),
        (Some("failed"), Some("handler_error"))
    );

    // A queue that nobody declared is refused at once, and nothing of it is stored.
    let before = messages(&w, &c.broker.names().jobs()).await;
    let out = run(&["--queue", "no-such-queue"]).await.unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(messages(&w, &c.broker.names().jobs()).await, before);

    w.drained(&c).await;
    w.history(&c).await.check().unwrap();
    assert_eq!(worker.stop().await, Some(0));
}
