//! The options that every program has: which file, which servers, who we are to them.

use std::path::PathBuf;

use super::layers::Flags;

/// The default file, used where it exists.
const CONFIG_FILE: &str = "surety.toml";

/// Where the settings and the servers are. Passwords are no options: the list of processes would show them.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection options")]
pub struct ConnectionOptions {
    /// Read the settings from this file [default: ./surety.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "SURETY_CONFIG")]
    pub config: Option<PathBuf>,
    /// NATS servers, separated by commas [default: nats://127.0.0.1:4222, or NATS_URL]
    #[arg(long, global = true, value_name = "URL")]
    nats: Option<String>,
    /// Redis server [default: redis://127.0.0.1:6379, or REDIS_URL]
    #[arg(long, global = true, value_name = "URL")]
    redis: Option<String>,
    /// Prefix of subjects, streams and Redis keys [default: surety]
    #[arg(long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Context of the `nats` command, or `selected` for the selected one [default: NATS_CONTEXT]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// User at NATS; its password comes from SURETY_CONNECTION_NATS_PASSWORD or ..._FILE
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    nats_user: Option<String>,
    /// Credentials of a NATS user (JWT and seed)
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    nats_creds: Option<String>,
    /// Seed of a NATS nkey
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    nats_nkey: Option<String>,
    /// What the subjects of replies begin with [default: _INBOX]
    #[arg(long, global = true, value_name = "SUBJECT", hide_short_help = true)]
    nats_inbox_prefix: Option<String>,
    /// Authorities (PEM) that may vouch for NATS [default: those of the system]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    nats_ca: Option<String>,
    /// Our certificate (PEM) for NATS
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    nats_cert: Option<String>,
    /// Key (PEM) of that certificate
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    nats_key: Option<String>,
    /// TLS from the first byte, for a NATS server with `handshake_first`
    #[arg(long, global = true, hide_short_help = true)]
    nats_tls_first: bool,
    /// User at Redis; its password comes from SURETY_CONNECTION_REDIS_PASSWORD or ..._FILE
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    redis_user: Option<String>,
    /// Authorities (PEM) that may vouch for Redis [default: those of the system]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    redis_ca: Option<String>,
    /// Our certificate (PEM) for Redis
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    redis_cert: Option<String>,
    /// Key (PEM) of that certificate
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    redis_key: Option<String>,
    /// The addresses are servers of our own: no context, login or TLS from file and environment
    #[arg(long, global = true, hide = true)]
    private_servers: bool,
}

impl ConnectionOptions {
    /// The file to read, if there is one.
    pub fn file(&self) -> Option<PathBuf> {
        let (file, must_exist) = self.source();
        must_exist.then_some(file)
    }

    /// The file that may be read, and whether it must be there: it was asked for, or is there now.
    pub(crate) fn source(&self) -> (PathBuf, bool) {
        let default = || PathBuf::from(CONFIG_FILE);
        let must_exist = self.config.is_some() || default().is_file();
        (self.config.clone().unwrap_or_else(default), must_exist)
    }

    /// The settings that these options give.
    pub fn flags(&self) -> Flags {
        let on = |given: bool| given.then(|| "true".to_owned());
        [
            ("connection.nats_url", self.nats.clone(), "--nats"),
            ("connection.redis_url", self.redis.clone(), "--redis"),
            ("connection.namespace", self.namespace.clone(), "--namespace"),
            ("connection.nats_context", self.context.clone(), "--context"),
            ("connection.nats_user", self.nats_user.clone(), "--nats-user"),
            ("connection.nats_creds", self.nats_creds.clone(), "--nats-creds"),
            ("connection.nats_nkey", self.nats_nkey.clone(), "--nats-nkey"),
            ("connection.nats_inbox_prefix", self.nats_inbox_prefix.clone(), "--nats-inbox-prefix"),
            ("connection.nats_ca", self.nats_ca.clone(), "--nats-ca"),
            ("connection.nats_cert", self.nats_cert.clone(), "--nats-cert"),
            ("connection.nats_key", self.nats_key.clone(), "--nats-key"),
            ("connection.nats_tls_first", on(self.nats_tls_first), "--nats-tls-first"),
            ("connection.redis_user", self.redis_user.clone(), "--redis-user"),
            ("connection.redis_ca", self.redis_ca.clone(), "--redis-ca"),
            ("connection.redis_cert", self.redis_cert.clone(), "--redis-cert"),
            ("connection.redis_key", self.redis_key.clone(), "--redis-key"),
            (PRIVATE, on(self.private_servers), "--private-servers"),
        ]
        .into_iter()
        .filter_map(|(path, value, flag)| Some((path, value?, flag)))
        .collect()
    }
}

/// A flag that is no setting: see [`private_servers`].
pub(super) const PRIVATE: &str = "--private-servers";

/// Flags for servers that this program started itself: what file and environment say about logging in elsewhere does not
/// apply to them, and is not sent to them.
pub fn private_servers(nats: String, redis: String, who: &'static str) -> Flags {
    vec![
        ("connection.nats_url", nats, who),
        ("connection.redis_url", redis, who),
        (PRIVATE, "true".to_owned(), who),
    ]
}
