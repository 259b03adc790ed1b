//! `surety dev` with stand-ins for reaper and worker, so that it is tested alone.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A folder with a copy of the command and, if wanted, scripts as its siblings.
fn install(folder: &Path, script: Option<&str>) -> PathBuf {
    let surety = folder.join("surety");
    fs::copy(env!("CARGO_BIN_EXE_surety"), &surety).unwrap();
    for name in ["surety-reaper", "surety-worker"] {
        if let Some(text) = script {
            let path = folder.join(name);
            fs::write(&path, format!("#!/bin/sh\nname={name}\nfolder='{}'\n{text}\n", folder.display()))
                .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    surety
}

fn dev(surety: &Path, folder: &Path) -> Command {
    let mut c = Command::new(surety);
    c.args(["dev", "--nats-port", "0", "--redis-port", "0", "--workers", "2"]).current_dir(folder);
    c.env_remove("NATS_URL").env_remove("REDIS_URL").kill_on_drop(true);
    // The copy is outside the project, where `.servers/bin` would be found.
    let servers = surety_producer::dev::servers::find_nats_server().unwrap();
    c.env("SURETY_NATS_SERVER", servers);
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

async fn read_until(child: &mut Child, part: &str) -> String {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut all = String::new();
    let read = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            all.push_str(&line);
            all.push('\n');
            if line.contains(part) {
                return;
            }
        }
        panic!("{part:?} did not come:\n{all}");
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.unwrap();
    all
}

async fn ended(child: Child) -> (Option<i32>, String) {
    let out = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

// Shows: D-01
#[tokio::test]
async fn ctrl_c_ends_the_processes_before_the_servers() {
    let folder = tempfile::tempdir().unwrap();
    // Its trap is set before it says that it is there. At TERM a stand-in looks whether the NATS server is still there, as one that drains needs it.
    let script = "url=$(echo \"$@\" | sed 's/.*--nats nats:..\\([^ ]*\\).*/\\1/')\n\
                  port=${url##*:}\n\
                  stop() { if grep -qi \":$(printf %04x $port) \" /proc/net/tcp; then echo up; else echo gone; fi > \
                  $folder/$name.$$.term; exit 0; }\ntrap stop TERM\n\
                  echo \"$@\" > $folder/$name.$$.args\nwhile :; do sleep 0.05; done";
    let surety = install(folder.path(), Some(script));
    let mut child = dev(&surety, folder.path()).spawn().unwrap();
    let said = read_until(&mut child, "Ctrl-C").await;
    assert!(said.contains("surety enqueue noop '{}' --wait --nats nats://127.0.0.1:"), "{said}");
    let files = |ending: &str| -> Vec<String> {
        let all = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path());
        all.filter(|p| p.to_string_lossy().ends_with(ending))
            .map(|p| fs::read_to_string(p).unwrap())
            .collect()
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        while files(".args").iter().filter(|a| a.contains("--namespace surety")).count() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let (code, err) = ended(child).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(files(".term"), ["up\n"; 3], "{err}");
    assert!(folder.path().join(".surety/dev/nats").is_dir());
}

#[tokio::test]
async fn a_process_that_dies_is_reported_and_not_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let surety = install(folder.path(), Some("echo x >> $folder/starts\nexit 7"));
    let child = dev(&surety, folder.path()).spawn().unwrap();
    let (code, err) = ended(child).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("ended by itself (exit status: 7)"), "{err}");
    assert_eq!(fs::read_to_string(folder.path().join("starts")).unwrap(), "x\nx\nx\n");
}

#[tokio::test]
async fn missing_programs_and_taken_ports_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let surety = install(folder.path(), None);
    let (code, err) = ended(dev(&surety, folder.path()).spawn().unwrap()).await;
    assert_eq!(code, Some(78), "{err}");
    assert!(
        err.contains("surety-reaper is not beside this program") && err.contains("cargo build --release"),
        "{err}"
    );

    let surety = install(folder.path(), Some("exit 0"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut c = dev(&surety, folder.path());
    c.args(["--namespace", "x"]);
    let port = taken.local_addr().unwrap().port().to_string();
    let mut c2 = Command::new(&surety);
    c2.args(["dev", "--nats-port", &port, "--redis-port", "0"]).current_dir(folder.path()).kill_on_drop(true);
    c2.env("SURETY_NATS_SERVER", surety_producer::dev::servers::find_nats_server().unwrap());
    c2.stderr(Stdio::piped()).stdout(Stdio::null());
    let (code, err) = ended(c2.spawn().unwrap()).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&format!("port {port} is taken; --nats-port 0 takes a free one")), "{err}");
}

// Shows: P1
#[tokio::test]
async fn two_in_one_folder_are_one_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let surety = install(folder.path(), Some("trap 'exit 0' TERM\nwhile :; do sleep 0.05; done"));
    let mut first = dev(&surety, folder.path()).spawn().unwrap();
    read_until(&mut first, "Ctrl-C").await;
    let (code, err) = ended(dev(&surety, folder.path()).spawn().unwrap()).await;
    assert_eq!(code, Some(1), "{err}");
    let who = format!("already runs in .surety/dev (process {}, nats://", first.id().unwrap());
    assert!(err.contains("already runs in .surety/dev (process ") && err.contains("--data"), "{err}");
    assert!(err.contains(&who.replace("nats://", "")), "{err}");
    // The lock ends with the process, whatever ended it, and that of a server with the server.
    first.kill().await.unwrap();
    let mut second = dev(&surety, folder.path()).spawn().unwrap();
    read_until(&mut second, "Ctrl-C").await;
    second.kill().await.unwrap();
}

// Shows: P1
#[tokio::test]
async fn a_server_has_the_folder_of_its_data_alone() {
    use surety_producer::dev::servers::{NatsOptions, NatsServer, RedisOptions, RedisServer, ServerError};
    let folder = tempfile::tempdir().unwrap();
    let redis =
        || RedisOptions { port: None, data: folder.path().join("redis"), extra_args: Vec::new(), log: None };
    let nats = || NatsOptions {
        port: None,
        data: folder.path().join("nats"),
        extra_config: String::new(),
        log: None,
    };
    let (mut one, two) =
        (RedisServer::start(redis()).await.unwrap(), NatsServer::start(nats()).await.unwrap());
    for taken in [RedisServer::start(redis()).await.map(drop), NatsServer::start(nats()).await.map(drop)] {
        let e = taken.unwrap_err();
        assert!(matches!(&e, ServerError::InUse { by, .. } if by.contains("process")), "{e}");
    }
    // One that starts again has its own folder.
    one.restart().await.unwrap();
    drop((one, two));
    NatsServer::start(nats()).await.unwrap();
}
