//! A world whose servers know one user for each role, with the files of `deploy/`.

use std::{path::PathBuf, process::Stdio};

use surety_common::{
    config::{Settings, load_text},
    connect::{Connected, connect},
    doctor::Role,
};
use tokio::{process::Command, sync::mpsc};

use crate::{
    command::Said,
    process::Process,
    redis::Kind,
    world::{PATIENCE, World},
};

/// Every role that has a user at NATS; all but the producer have one at Redis too.
pub const ROLES: [&str; 5] = ["producer", "worker", "reaper", "reader", "operator"];

/// The password of a role: one that has to be quoted and encoded wherever it goes.
pub fn password(role: &str) -> String {
    format!("p@ss:/{role}?#%")
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// `deploy/nats/users.conf` with the passwords of [`password`].
pub fn nats_users() -> String {
    let text = std::fs::read_to_string(repository("deploy/nats/users.conf")).unwrap();
    ROLES.iter().fold(text, |text, role| {
        let variable = format!("$SURETY_{}_PASSWORD", role.to_uppercase());
        assert_eq!(text.matches(&variable).count(), 1, "{variable}");
        text.replace(&variable, &format!("{:?}", password(role)))
    })
}

/// What `deploy/redis/make-acl` makes of the same passwords.
async fn redis_users() -> String {
    let mut c = Command::new(repository("deploy/redis/make-acl"));
    for role in ROLES {
        c.env(format!("SURETY_{}_PASSWORD", role.to_uppercase()), password(role));
    }
    let out = c.stdin(Stdio::null()).output().await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The servers of a world, guarded.
pub struct Guarded {
    pub world: World,
    _acl: tempfile::TempDir,
}

impl Guarded {
    /// Servers with these users, provisioned by the operator.
    pub async fn with(config: &str) -> Self {
        Self::edited(config, |users| users).await
    }

    /// The same with other users of NATS.
    pub async fn edited(config: &str, edit: impl FnOnce(String) -> String) -> Self {
        Self::of(Kind::wanted(), config, edit).await
    }

    /// On a Redis Cluster, every node of which has the users.
    pub async fn on_cluster(config: &str) -> Self {
        Self::of(Kind::Cluster { replicas: 0 }, config, |users| users).await
    }

    async fn of(kind: Kind, config: &str, edit: impl FnOnce(String) -> String) -> Self {
        let acl = tempfile::tempdir().unwrap();
        let file = acl.path().join("users.acl");
        // The server is started without users, because whoever starts it asks it whether it is there.
        std::fs::write(&file, "").unwrap();
        let args = ["--aclfile", file.to_str().unwrap()];
        let world = World::try_of(kind, config, &edit(nats_users()), &args).await.unwrap();
        std::fs::write(&file, redis_users().await).unwrap();
        for node in 0..world.redis.nodes.len() {
            let mut admin = world.redis.plain(node).await;
            redis::cmd("ACL").arg("LOAD").exec_async(&mut admin).await.unwrap();
        }
        let g = Self { world, _acl: acl };
        g.surety("operator", &["provision"]).await.exits(0);
        g
    }

    /// Settings of a role, as variables of the environment.
    pub fn environment(&self, role: &str) -> Vec<(&'static str, String)> {
        vec![
            ("SURETY_CONNECTION_NATS_USER", role.into()),
            ("SURETY_CONNECTION_NATS_PASSWORD", password(role)),
            ("SURETY_CONNECTION_NATS_INBOX_PREFIX", format!("_INBOX_{role}")),
            ("SURETY_CONNECTION_REDIS_USER", role.into()),
            ("SURETY_CONNECTION_REDIS_PASSWORD", password(role)),
        ]
    }

    /// The settings of this world for a role.
    pub fn settings(&self, role: &str) -> Settings {
        let env = self.environment(role);
        let flags = vec![
            ("connection.nats_url", self.world.nats.url(), "test"),
            ("connection.redis_url", self.world.redis.url(), "test"),
        ];
        let get = |name: &str| env.iter().find(|(k, _)| *k == name).map(|(_, v)| v.clone());
        load_text(Some((&self.world.config, "test")), &get, &flags).unwrap()
    }

    /// The operator's connection, to look with.
    pub async fn operator(&self) -> Connected {
        connect(&self.settings("operator"), "test", Role::Operator).await.unwrap()
    }

    /// Runs `surety` as a role.
    pub async fn surety(&self, role: &str, args: &[&str]) -> Said {
        let env = self.environment(role);
        let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
        self.world.surety_with(&env, args).await
    }

    /// A worker process with the rights of a role.
    pub fn worker(&self, role: &str, state: &str) -> Process {
        let env = self.environment(role);
        let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
        self.world.worker(&["--state-dir", &self.world.path(state)], &env)
    }

    /// A reaper process with the rights of one.
    pub fn reaper(&self) -> Process {
        let env = self.environment("reaper");
        let env: Vec<_> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
        self.world.reaper(&env)
    }

    /// A plain NATS client with the rights of a role, and what the server refuses it.
    pub async fn nats(&self, role: &str) -> (async_nats::Client, mpsc::UnboundedReceiver<String>) {
        let (tx, rx) = mpsc::unbounded_channel();
        let options = async_nats::ConnectOptions::with_user_and_password(role.into(), password(role))
            .custom_inbox_prefix(format!("_INBOX_{role}"))
            .event_callback(move |event| {
                let tx = tx.clone();
                async move {
                    if let async_nats::Event::ServerError(e) = event {
                        tx.send(e.to_string()).ok();
                    }
                }
            });
        let client = tokio::time::timeout(PATIENCE, options.connect(self.world.nats.url())).await;
        (client.unwrap().unwrap(), rx)
    }

    /// A plain Redis connection of a role.
    pub async fn redis(&self, role: &str) -> redis::aio::MultiplexedConnection {
        use redis::IntoConnectionInfo;
        let info = self.world.redis.url().into_connection_info().unwrap();
        let login = info.redis_settings().clone().set_username(role).set_password(password(role));
        let client = redis::Client::open(info.set_redis_settings(login)).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }
}
