//! Who we are to Redis, and what a refused connection means.

use std::{error::Error, sync::Arc};

use redis::{
    Arg, Client, ClientTlsConfig, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture,
    ServerErrorKind, TlsCertificates, Value,
    aio::{ConnectionLike, ConnectionManager},
};

use super::script::{StoreError, StoreOptions};
use crate::{
    config::Secret,
    tls::{self, TlsFiles},
};

/// How to log in, and how the connection is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// User at the server; empty: the one of the address, or the default one.
    pub user: String,
    pub password: Secret,
    pub tls: TlsFiles,
}

/// How the server knows us, for messages.
fn who(options: &StoreOptions) -> String {
    let in_url =
        || (&*options.url).into_connection_info().ok()?.redis_settings().username().map(str::to_owned);
    let user = if options.login.user.is_empty() { in_url() } else { Some(options.login.user.clone()) };
    format!("user {:?}", user.as_deref().unwrap_or("default"))
}

/// A client with login and TLS; nothing is sent yet.
pub(super) fn client(options: &StoreOptions) -> Result<Client, StoreError> {
    let url = options.url.masked();
    let refused = |e: RedisError| StoreError::Refused(format!("{url} is not a Redis URL: {e}"));
    let mut info = (&*options.url).into_connection_info().map_err(refused)?;
    let mut login = info.redis_settings().clone();
    if !options.login.user.is_empty() {
        login = login.set_username(&options.login.user);
    }
    if options.login.password.is_set() {
        login = login.set_password(options.login.password.reveal());
    }
    info = info.set_redis_settings(login);
    let is_tls = matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. });
    if !is_tls {
        return Client::open(info).map_err(refused);
    }
    tls::choose_provider();
    let pems = options.login.tls.read().map_err(StoreError::Refused)?;
    let identity = pems.identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    Client::build_with_tls(info, TlsCertificates { client_tls: identity, root_cert: pems.ca })
        .map_err(|e| StoreError::Refused(format!("{url}: {e}")))
}

/// What a failed connection means.
pub(super) fn explain(options: &StoreOptions, e: RedisError) -> StoreError {
    let url = options.url.masked();
    if let Some(why) = options.login.tls.explain(&e) {
        return StoreError::Refused(format!("{url}: {why}"));
    }
    let text = describe(&e);
    let is_login = e.kind() == ErrorKind::AuthenticationFailed
        || ["WRONGPASS", "NOAUTH"].iter().any(|code| e.code() == Some(code) || text.contains(code));
    if is_login {
        return StoreError::Denied(format!(
            "redis at {url} does not let {} in: unknown, disabled, or a wrong password",
            who(options)
        ));
    }
    if is_denied(&e) {
        return StoreError::Denied(format!("redis at {url} does not let {} in: {text}", who(options)));
    }
    if e.kind() == ErrorKind::InvalidClientConfig {
        return StoreError::Refused(format!("{url}: {text}"));
    }
    let is_tls = url.starts_with("rediss://") || url.starts_with("valkeys://");
    let hint = match is_tls {
        true if e.is_timeout() => "; a port without TLS does not answer either",
        false if e.is_connection_dropped() && !e.is_connection_refusal() => {
            "; a port with TLS wants rediss://"
        }
        _ => "",
    };
    StoreError::Unreachable(format!("{url}: {text}{hint}"))
}

/// The connection. Where the server refuses a command, the error names who we are, the command and its first key: the
/// server's own text says none of them.
#[derive(Clone)]
pub(super) struct Connection {
    manager: ConnectionManager,
    who: Arc<str>,
}

impl Connection {
    pub(super) fn new(manager: ConnectionManager, options: &StoreOptions) -> Self {
        Self { manager, who: who(options).into() }
    }

    fn name(&self, cmd: &Cmd, e: RedisError) -> RedisError {
        if !is_denied(&e) {
            return e;
        }
        let mut args = cmd.args_iter().filter_map(|a| match a {
            Arg::Simple(bytes) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        });
        let command = args.next().unwrap_or_default().into_owned();
        // A script's keys stand behind its hash and their number.
        let key = if command == "EVALSHA" { args.nth(2) } else { args.next() };
        let on = key.map_or_else(String::new, |k| format!(" on {k:?}"));
        let text = format!("redis does not let {} run {command}{on}: {}", self.who, reason(&e));
        RedisError::from((ErrorKind::Server(ServerErrorKind::NoPerm), "no permission", text))
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match self.manager.req_packed_command(cmd).await {
                // What the server refuses comes as a value, and is made an error of by who asked.
                Ok(Value::ServerError(e)) => Err(self.name(cmd, e.into())),
                other => other,
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.manager.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.manager.get_db()
    }
}

/// Whether the server lacks no reason but permission: for the command, or for one within a script.
pub(super) fn is_denied(e: &RedisError) -> bool {
    e.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || ["user executing the script", "ACL failure"].iter().any(|t| reason(e).contains(t))
}

/// What the server says.
pub(super) fn reason(e: &RedisError) -> &str {
    e.detail().unwrap_or("no permission")
}

/// An error with its causes.
fn describe(e: &RedisError) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}
