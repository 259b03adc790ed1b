//! TLS to both servers, with an authority that lives as long as the test.

use std::net::TcpListener;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use surety_common::domain::Status;
use surety_tests::{
    command::Said,
    process::Process,
    world::{World, wait},
};

/// An authority, and the files that it made.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Its own certificate is in `ca.pem`.
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), cert.pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    /// Makes `<name>.pem` and `<name>-key.pem`, for these hosts.
    fn issue(&self, name: &str, hosts: &[&str], edit: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// Servers that speak TLS, with a certificate for `127.0.0.1` unless another host is given.
struct Secure {
    world: World,
    ca: Authority,
    redis_port: u16,
}

#[derive(Clone, Copy)]
struct Options {
    host: &'static str,
    is_mutual: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { host: "127.0.0.1", is_mutual: false }
    }
}

impl Secure {
    async fn start(o: Options) -> Self {
        let ca = Authority::new("Surety tests");
        ca.issue("server", &[o.host], |_| {});
        ca.issue("client", &[], |_| {});
        let (cert, key, root) = (ca.path("server.pem"), ca.path("server-key.pem"), ca.path("ca.pem"));
        let verify = if o.is_mutual { format!("ca_file: {root:?}, verify: true,") } else { String::new() };
        let nats = format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, {verify} }}");
        let clients = if o.is_mutual { "yes" } else { "no" };
        // Redis cannot pick a free port itself; a port that was free a moment ago may be taken meanwhile.
        for left in (0..5).rev() {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let port = free.to_string();
            let redis = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key];
            let redis = [&redis[..], &["--tls-ca-cert-file", &root, "--tls-auth-clients", clients]].concat();
            match World::try_on("", &nats, &redis).await {
                Ok(world) => return Self { world, ca, redis_port: free },
                Err(e) => assert!(left > 0 && e.contains("already in use"), "{e}"),
            }
        }
        unreachable!()
    }

    fn redis(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.redis_port)
    }

    /// Options that trust the authority, and show our certificate where `is_mutual`.
    fn options(&self, is_mutual: bool) -> Vec<String> {
        let mut all = vec!["--redis".to_owned(), self.redis()];
        for server in ["nats", "redis"] {
            all.extend([format!("--{server}-ca"), self.ca.path("ca.pem")]);
            if is_mutual {
                all.extend([format!("--{server}-cert"), self.ca.path("client.pem")]);
                all.extend([format!("--{server}-key"), self.ca.path("client-key.pem")]);
            }
        }
        all
    }

    /// Runs `surety` with these options; NATS is named besides.
    async fn surety(&self, options: &[String], args: &[&str]) -> Said {
        let all: Vec<&str> = options.iter().map(String::as_str).chain(args.iter().copied()).collect();
        self.world.surety_bare(&[&["--nats", &self.world.nats.url()][..], &all].concat()).await
    }

    fn worker(&self, options: &[String]) -> Process {
        let all: Vec<&str> = options.iter().map(String::as_str).collect();
        self.world.worker(&all, &[])
    }
}

/// A whole job through real processes.
async fn works(s: &Secure, options: &[String]) {
    s.surety(options, &["provision"]).await.exits(0);
    let mut worker = s.worker(options);
    worker.logged("worker ready").await;
    let said = s.surety(options, &["enqueue", "noop", "--id", "a", "--wait", "--json"]).await.exits(0);
    assert_eq!(said.json()["outcome"], Status::Done.name());
    s.surety(options, &["status", "a"]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_servers_are_reached_over_tls() {
    let s = Secure::start(Options::default()).await;
    works(&s, &s.options(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_servers_are_shown_our_certificate() {
    let s = Secure::start(Options { is_mutual: true, ..Options::default() }).await;
    works(&s, &s.options(true)).await;
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut options = s.options(true);
        change(&mut options);
        options
    };
    let without = |server: &'static str| {
        with(&|o: &mut Vec<String>| {
            for what in ["cert", "key"] {
                let at = o.iter().position(|a| *a == format!("--{server}-{what}")).unwrap();
                o.drain(at..at + 2);
            }
        })
    };
    let e = s.surety(&without("nats"), &["queues"]).await.exits(78).err;
    assert!(e.contains("wants a certificate of ours; set connection.nats_cert"), "{e}");
    let e = s.surety(&without("redis"), &["status", "a"]).await.exits(78).err;
    assert!(e.contains("wants a certificate of ours; set connection.redis_cert"), "{e}");
    // One that the servers do not know.
    let other = Authority::new("Somebody else");
    other.issue("client", &[], |_| {});
    for (server, command) in [("nats", &["queues"][..]), ("redis", &["status", "a"])] {
        let options = with(&|o: &mut Vec<String>| {
            for what in ["cert", "key"] {
                let at = o.iter().position(|a| *a == format!("--{server}-{what}")).unwrap();
                let file = if what == "cert" { "client.pem" } else { "client-key.pem" };
                o[at + 1] = other.path(file);
            }
        });
        let e = s.surety(&options, command).await.exits(78).err;
        assert!(e.contains("refused our certificate") && e.contains(&format!("{server}_cert")), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_trusted_is_not_used() {
    let s = Secure::start(Options::default()).await;
    s.surety(&s.options(false), &["provision"]).await.exits(0);
    let other = Authority::new("Somebody else");
    for (server, command) in [("nats", &["queues"][..]), ("redis", &["status", "a"])] {
        // An authority of ours that did not issue it.
        let mut options = s.options(false);
        let at = options.iter().position(|a| *a == format!("--{server}-ca")).unwrap();
        options[at + 1] = other.path("ca.pem");
        let e = s.surety(&options, command).await.exits(78).err;
        assert!(e.contains("was not issued by an authority in") && e.contains(&other.path("ca.pem")), "{e}");
        // None of ours: those of the system do not know it either.
        options.drain(at..at + 2);
        let e = s.surety(&options, command).await.exits(78).err;
        assert!(e.contains("unknown authority") && e.contains(&format!("connection.{server}_ca")), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_host_is_not_accepted() {
    let s = Secure::start(Options { host: "nats.example.org", ..Options::default() }).await;
    let e = s.surety(&s.options(false), &["queues"]).await.exits(78).err;
    assert!(e.contains("nats at ") && e.contains("is for another host"), "{e}");
    assert!(e.contains("nats.example.org") && e.contains("127.0.0.1"), "{e}");
    // NATS without TLS has to be there for the CLI to come to Redis: the other way round.
    let e = s.redis_alone().await;
    assert!(e.contains("is for another host") && e.contains("nats.example.org"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_not_accepted() {
    let s = Secure::start(Options::default()).await;
    s.ca.issue("server", &["127.0.0.1"], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    // Redis reads its files again when it is told to.
    let client = redis::Client::open(s.world.redis.url()).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let reload = redis::cmd("CONFIG").arg("SET").arg("tls-cert-file").arg(s.ca.path("server.pem")).to_owned();
    reload
        .to_owned()
        .arg("tls-key-file")
        .arg(s.ca.path("server-key.pem"))
        .exec_async(&mut admin)
        .await
        .unwrap();
    let e = s.redis_alone().await;
    assert!(e.contains("has expired"), "{e}");
}

impl Secure {
    /// Connects to Redis alone, which must fail for good; gives the reason.
    async fn redis_alone(&self) -> String {
        use surety_common::{
            domain::ids::Namespace,
            pace::Transient,
            store::{Login, Store, StoreOptions},
            tls::TlsFiles,
        };
        let settings = self.world.settings();
        let tls =
            TlsFiles { server: "redis", ca: Some(self.ca.path("ca.pem").into()), ..TlsFiles::default() };
        let options = StoreOptions {
            look_after: std::time::Duration::from_secs(3600),
            lost_limit: 5,
            url: self.redis().into(),
            login: Login { tls, ..Login::default() },
            namespace: Namespace::new("surety").unwrap(),
            partitions: 1,
            call_timeout: settings.connection.call_timeout,
            retry_limit: settings.connection.retry_limit,
            keep: std::time::Duration::from_secs(60),
        };
        let e = Store::connect(options).await.err().expect("no connection");
        assert!(!e.is_transient(), "{e}");
        e.to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_plain_are_not_mixed_up() {
    let s = Secure::start(Options::default()).await;
    s.surety(&s.options(false), &["provision"]).await.exits(0);
    // The plain port of Redis, asked for TLS; and its TLS port, asked without.
    let mut options = s.options(false);
    options[1] = s.world.redis.url().replace("redis://", "rediss://");
    let e = s.surety(&options, &["status", "a"]).await.exits(69).err;
    assert!(e.contains("a port without TLS does not answer either"), "{e}");
    let plain =
        [vec!["--redis".to_owned(), s.redis().replace("rediss://", "redis://")], options[2..4].to_vec()];
    let e = s.surety(&plain.concat(), &["status", "a"]).await.exits(69).err;
    assert!(e.contains("a port with TLS wants rediss://"), "{e}");
    // A NATS server without TLS is not talked to by whoever asked for it, or wants one of his authorities.
    let w = World::start().await;
    for options in [
        vec!["--nats".to_owned(), w.nats.url().replace("nats://", "tls://")],
        vec!["--nats".to_owned(), w.nats.url(), "--nats-ca".to_owned(), s.ca.path("ca.pem")],
    ] {
        let options: Vec<&str> = options.iter().map(String::as_str).chain(["queues"]).collect();
        let e = w.surety_bare(&options).await.exits(78).err;
        assert!(e.contains("does not speak TLS on this port"), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_tls_first_is_reached_when_told() {
    let s = Secure::start(Options::default()).await;
    // Whoever starts it looks for its greeting, so it is told later to give none.
    let file = s.world.path("nats/nats-server.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("tls { ", "tls { handshake_first: true, ")).unwrap();
    let pid = Pid::from_raw(i32::try_from(s.world.nats.pid().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    wait("the server to take its new configuration", async || {
        std::fs::read_to_string(s.world.path("nats/nats-server.log"))
            .unwrap()
            .contains("Reloaded server configuration")
    })
    .await;
    let mut options = s.options(false);
    let e = s.surety(&options, &["queues"]).await.exits(69).err;
    assert!(e.contains("nats_tls_first"), "{e}");
    options.push("--nats-tls-first".to_owned());
    works(&s, &options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named() {
    let ca = Authority::new("Surety tests");
    for name in ["one", "two"] {
        ca.issue(name, &[], |_| {});
    }
    std::fs::write(ca.path("text"), "no certificate").unwrap();
    let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    std::fs::write(ca.path("broken"), pem("AAAA")).unwrap();
    let w = World::start().await;
    let files = |options: &[&str]| -> Vec<String> {
        options.iter().map(|o| if o.starts_with("--") { (*o).to_owned() } else { ca.path(o) }).collect()
    };
    for (options, setting, why) in [
        (&["--nats-ca", "gone.pem"][..], "connection.nats_ca", "cannot read"),
        (&["--nats-ca", "text"], "connection.nats_ca", "there is no certificate (PEM) in"),
        (&["--nats-ca", "broken"], "connection.nats_ca", "cannot be used"),
        (
            &["--nats-cert", "one.pem", "--nats-key", "two-key.pem"],
            "connection.nats_key",
            "is not the key of",
        ),
        (
            &["--nats-cert", "one.pem", "--nats-key", "one.pem"],
            "connection.nats_key",
            "there is no private key",
        ),
        (&["--nats-creds", "gone.creds"], "connection.nats_creds", "cannot read"),
        (&["--nats-creds", "text"], "connection.nats_creds", "holds no NATS user"),
        (&["--nats-nkey", "text"], "connection.nats_nkey", "holds no seed"),
    ] {
        let options = files(options);
        let args: Vec<&str> = options.iter().map(String::as_str).chain(["queues"]).collect();
        let e = w.surety(&args).await.exits(78).err;
        assert!(
            e.contains(setting)
                && e.contains(why)
                && e.contains(&options[1].rsplit('/').next().unwrap().to_owned()[..3]),
            "{args:?}: {e}"
        );
    }
}
