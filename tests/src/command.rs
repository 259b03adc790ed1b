//! Running `surety` against a world.

use std::process::Stdio;

use tokio::process::Command;

use crate::world::{PATIENCE, World, bin};

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The exit code must be this one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }
}

/// Every field of a JSON answer must be named in a document; what stands under `data` is not ours to name.
pub fn is_documented(answer: &serde_json::Value, doc: &str, data: &[&str]) {
    use serde_json::Value;
    match answer {
        Value::Object(fields) => {
            for (name, value) in fields {
                assert!(doc.contains(&format!("`{name}`")), "the field {name} is not documented");
                if !data.contains(&name.as_str()) {
                    is_documented(value, doc, data);
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|v| is_documented(v, doc, data)),
        _ => {}
    }
}

impl World {
    /// Runs `surety` with the configuration and servers of this world, and nothing else of the environment.
    pub async fn surety(&self, args: &[&str]) -> Said {
        self.surety_at(&self.nats.url(), args).await
    }

    /// The same with another address of NATS, such as one with a user.
    pub async fn surety_at(&self, nats: &str, args: &[&str]) -> Said {
        self.run_surety(nats, &[], args).await
    }

    /// The same with these variables of the environment.
    pub async fn surety_with(&self, env: &[(&str, &str)], args: &[&str]) -> Said {
        self.run_surety(&self.nats.url(), env, args).await
    }

    /// The same with addresses among the arguments, or none.
    pub async fn surety_bare(&self, args: &[&str]) -> Said {
        self.run(&[], args).await
    }

    /// The same with these variables of the environment.
    pub async fn surety_bare_with(&self, env: &[(&str, &str)], args: &[&str]) -> Said {
        self.run(env, args).await
    }

    async fn run_surety(&self, nats: &str, env: &[(&str, &str)], args: &[&str]) -> Said {
        let redis = self.redis.url();
        self.run(env, &[&["--nats", nats, "--redis", &redis][..], args].concat()).await
    }

    async fn run(&self, env: &[(&str, &str)], args: &[&str]) -> Said {
        let mut c = Command::new(bin("t-surety"));
        c.env_clear()
            .envs(env.iter().copied())
            .args(["--config", &self.config_file().display().to_string()])
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let o = tokio::time::timeout(PATIENCE, c.output()).await.expect("the command hangs").unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Said { code: o.status.code(), out: text(o.stdout), err: text(o.stderr) }
    }

    /// Runs `surety --json`, which must succeed, and gives its answer.
    pub async fn ask(&self, args: &[&str]) -> serde_json::Value {
        let all: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        self.surety(&all).await.exits(0).json()
    }
}
