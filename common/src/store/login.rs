//! Who we are to Redis, and what a refused connection means.

use std::{error::Error, sync::Arc};

use redis::{
    Arg, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, TlsCertificates, Value,
    aio::ConnectionLike, cluster::ClusterClientBuilder, cluster_routing::Slot,
};

use super::{
    cluster::Node,
    link::Link,
    script::{StoreError, StoreOptions},
};
use crate::{
    config::{Address, Secret},
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
    let first = || options.url.each().first()?.as_str().into_connection_info().ok();
    let in_url = || first()?.redis_settings().username().map(str::to_owned);
    let user = if options.login.user.is_empty() { in_url() } else { Some(options.login.user.clone()) };
    format!("user {:?}", user.as_deref().unwrap_or("default"))
}

/// An address as it may be printed.
pub(super) fn masked(address: &str) -> String {
    Address::from(address).masked()
}

/// Where a server is, and who we are to it.
fn info(options: &StoreOptions, address: &str) -> Result<ConnectionInfo, StoreError> {
    let refused = |e: RedisError| StoreError::Refused(format!("{} is not a Redis URL: {e}", masked(address)));
    let info = address.into_connection_info().map_err(refused)?;
    let mut login = info.redis_settings().clone();
    if !options.login.user.is_empty() {
        login = login.set_username(&options.login.user);
    }
    if options.login.password.is_set() {
        login = login.set_password(options.login.password.reveal());
    }
    Ok(info.set_redis_settings(login))
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

fn certificates(options: &StoreOptions) -> Result<TlsCertificates, StoreError> {
    tls::choose_provider();
    let pems = options.login.tls.read().map_err(StoreError::Refused)?;
    let identity = pems.identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    Ok(TlsCertificates { client_tls: identity, root_cert: pems.ca })
}

/// A client of one server with login and TLS; nothing is sent yet.
pub(super) fn client(options: &StoreOptions, address: &str) -> Result<Client, StoreError> {
    let info = info(options, address)?;
    let refused = |e: RedisError| StoreError::Refused(format!("{}: {e}", masked(address)));
    if !is_tls(&info) {
        return Client::open(info).map_err(refused);
    }
    Client::build_with_tls(info, certificates(options)?).map_err(refused)
}

/// A client of the cluster that the server at `address` is of, with its login and TLS. Any of `nodes` will do to find the
/// cluster again, and any of the addresses that were given.
pub(super) fn cluster(
    options: &StoreOptions,
    address: &str,
    nodes: &[Node],
) -> Result<ClusterClientBuilder, StoreError> {
    let first = info(options, address)?;
    let login = first.redis_settings();
    let scheme = if is_tls(&first) { "rediss" } else { "redis" };
    let mut seeds = Vec::new();
    let given = options.url.each();
    for url in given.into_iter().chain(nodes.iter().map(|n| format!("{scheme}://{n}"))) {
        let seed = info(options, &url)?;
        if is_tls(&seed) == is_tls(&first) && !matches!(seed.addr(), ConnectionAddr::Unix(_)) {
            seeds.push(seed);
        }
    }
    let mut builder = ClusterClientBuilder::new(seeds).use_protocol(login.protocol()).database_id(0);
    if let Some(user) = login.username() {
        builder = builder.username(user);
    }
    if let Some(password) = login.password() {
        builder = builder.password(password);
    }
    if is_tls(&first) {
        builder = builder.certs(certificates(options)?);
    }
    Ok(builder)
}

/// What a failed connection means.
pub(super) fn explain(options: &StoreOptions, address: &str, e: RedisError) -> StoreError {
    let url = masked(address);
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
    if text.contains("not allowed in cluster mode") {
        return StoreError::Refused(format!("{url}: a cluster has the database 0 only"));
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
    link: Link,
    who: Arc<str>,
    /// Where a command goes that names no key.
    home: Option<Slot>,
}

impl Connection {
    pub(super) fn new(link: Link, options: &StoreOptions) -> Self {
        Self { link, who: who(options).into(), home: None }
    }

    /// The same connection, whose commands go to the node that has this slot, whether they name a key or not.
    pub(super) fn at(self, slot: Slot) -> Self {
        Self { home: Some(slot), ..self }
    }

    /// See [`super::Store::connect_anew`].
    pub(super) async fn connect_anew(&self) {
        if let Link::One(server) = &self.link {
            server.connect_anew().await;
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.link, Link::Cluster(_))
    }

    /// Asks one node of the cluster; the server, where there is one only.
    pub(super) async fn ask(&mut self, cmd: &Cmd, node: &Node) -> RedisResult<Value> {
        let answer = self.link.send_to(cmd, node).await;
        self.judge(cmd, answer)
    }

    /// What the server refuses comes as a value, and is made an error of.
    fn judge(&self, cmd: &Cmd, answer: RedisResult<Value>) -> RedisResult<Value> {
        match answer {
            Ok(Value::ServerError(e)) => Err(self.name(cmd, e.into())),
            other => other,
        }
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
            let answer = self.link.send(cmd, self.home).await;
            self.judge(cmd, answer)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.link.send_all(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.link.db()
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
