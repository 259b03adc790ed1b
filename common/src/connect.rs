//! Connecting a process to both servers, with the checks of [`crate::doctor`] that every process makes at its start.

use std::path::Path;

use crate::{
    broker::{
        Broker, BrokerError, BrokerOptions,
        auth::{Auth, Login},
        journal_search::JournalSearch,
        publish::Publisher,
        topology::{Found, Provisioned},
    },
    config::{Connection, FilePath, Settings},
    doctor::{
        Facts, Finding, Role, Severity,
        facts::RedisFacts,
        gather::{self, Depth},
        judge, refusals,
    },
    domain::ids::Namespace,
    pace::{Pace, Transient, retry},
    relay::Relay,
    store::{self, Store, StoreError, StoreOptions},
    tls::TlsFiles,
};

/// Why a process could not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The servers are there and cannot keep the promises.
    #[error("the servers do not keep what the promises need:\n  {}", .0.join("\n  "))]
    Unfit(Vec<String>),
}

impl ConnectError {
    /// Whether the cause is an unreachable server (exit code 69) and not a wrong setup (78).
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Broker(e) => e.is_transient(),
            Self::Store(e) => e.is_transient(),
            Self::Unfit(_) => false,
        }
    }
}

impl Transient for ConnectError {
    fn is_transient(&self) -> bool {
        self.is_unreachable()
    }
}

/// Both servers, checked, and what is provisioned.
#[derive(Clone)]
pub struct Connected {
    pub broker: Broker,
    pub publisher: Publisher,
    pub store: Store,
    pub relay: Relay,
    pub found: Found,
    /// Searches for jobs that nothing but the journal may know.
    pub searches: JournalSearch,
}

/// Connects to the broker alone: enough for a producer. Refuses a server that loses messages.
pub async fn broker(s: &Settings, name: &str) -> Result<Broker, ConnectError> {
    let broker = greet(s, name).await?;
    let nats = gather::nats(&broker, s, Role::Operator, Depth::Greeting).await?;
    refuse(&Facts {
        role: Role::Operator,
        settings: Box::new(s.clone()),
        nats: Ok(nats),
        redis: None,
        fleet: None,
    })?;
    Ok(broker)
}

/// Connects to the broker, whatever it is.
pub(crate) async fn greet(s: &Settings, name: &str) -> Result<Broker, ConnectError> {
    let c = &s.connection;
    // Boxed, as the store's below: logging in and TLS are large, and happen once.
    Ok(Box::pin(Broker::connect(BrokerOptions {
        url: c.nats_url.clone(),
        auth: nats_auth(c),
        name: name.to_owned(),
        namespace: namespace(s)?,
        retry_limit: c.retry_limit,
        call_timeout: c.call_timeout,
    }))
    .await?)
}

/// Connects to the store, whatever it is.
pub(crate) async fn store(s: &Settings, partitions: u32) -> Result<Store, ConnectError> {
    Ok(Box::pin(Store::connect(StoreOptions {
        url: s.connection.redis_url.clone(),
        login: redis_login(&s.connection),
        namespace: namespace(s)?,
        partitions,
        call_timeout: s.connection.call_timeout,
        retry_limit: s.connection.retry_limit,
        keep: std::time::Duration::from_secs(7 * 24 * 3600),
        look_after: s.reaper.carrier_check,
        lost_limit: u32::try_from(s.guards.lost_limit.0).unwrap_or(u32::MAX),
    }))
    .await?)
}

fn tls(server: &'static str, ca: &FilePath, cert: &FilePath, key: &FilePath) -> TlsFiles {
    TlsFiles {
        server,
        ca: ca.get().map(Path::to_owned),
        identity: cert.get().zip(key.get()).map(|(c, k)| (c.to_owned(), k.to_owned())),
    }
}

fn redis_login(c: &Connection) -> store::Login {
    store::Login {
        user: c.redis_user.clone(),
        password: c.redis_password.clone(),
        tls: tls("redis", &c.redis_ca, &c.redis_cert, &c.redis_key),
    }
}

fn nats_auth(c: &Connection) -> Auth {
    // The settings were checked at load: at most one way to log in is set.
    let login = if let Some(file) = c.nats_creds.get() {
        Login::Credentials(file.to_owned())
    } else if let Some(file) = c.nats_nkey.get() {
        Login::Nkey(file.to_owned())
    } else if c.nats_token.is_set() {
        Login::Token(c.nats_token.clone())
    } else if !c.nats_user.is_empty() {
        Login::Password { user: c.nats_user.clone(), password: c.nats_password.clone() }
    } else {
        Login::Open
    };
    Auth {
        login,
        tls: tls("nats", &c.nats_ca, &c.nats_cert, &c.nats_key),
        tls_first: c.nats_tls_first,
        inbox_prefix: c.nats_inbox_prefix.clone(),
    }
}

fn namespace(s: &Settings) -> Result<Namespace, ConnectError> {
    // The settings were checked at load; this cannot fail for a loaded configuration.
    Namespace::new(&s.connection.namespace).map_err(|e| ConnectError::Unfit(vec![e.to_string()]))
}

/// Connects to both servers, refuses those that may lose jobs or records, and opens the data set that belongs to `JOBS`.
/// The data set of a fresh Redis is created here; one that has lost something gets its gate closed ([`crate::loss`]).
/// A worker and a reaper look at streams, consumers and permissions too, and log what is wrong and can be lived with.
pub async fn connect(s: &Settings, name: &str, role: Role) -> Result<Connected, ConnectError> {
    let broker = broker(s, name).await?;
    if role == Role::Operator {
        let found = broker.found().await?;
        return Box::pin(open(s, broker, found, None, Access::Work)).await;
    }
    let nats = Box::pin(gather::nats(&broker, s, role, Depth::Short)).await?;
    let facts = Facts { role, settings: Box::new(s.clone()), nats: Ok(nats), redis: None, fleet: None };
    refuse(&facts)?;
    let found = broker.found().await?;
    Box::pin(open(s, broker, found, Some(facts), Access::Work)).await
}

/// [`connect`] for whoever only looks: writes nothing, so that a user who may not write can do it too.
pub async fn look(s: &Settings, name: &str) -> Result<Connected, ConnectError> {
    let broker = broker(s, name).await?;
    let found = broker.found().await?;
    look_at(s, broker, found).await
}

/// The store's part of [`look`], for whoever has the broker's already: a caller that can do without the store bounds this.
pub async fn look_at(s: &Settings, broker: Broker, found: Found) -> Result<Connected, ConnectError> {
    Box::pin(open(s, broker, found, None, Access::Look)).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Work,
    Look,
}

/// Makes streams and consumers, then connects as an operator's command does.
pub async fn provision(s: &Settings, name: &str) -> Result<(Connected, Provisioned), ConnectError> {
    let broker = broker(s, name).await?;
    let done = Box::pin(broker.provision(&s.layout())).await?;
    let found = broker.found().await?;
    Ok((Box::pin(open(s, broker, found, None, Access::Work)).await?, done))
}

async fn open(
    s: &Settings,
    broker: Broker,
    found: Found,
    facts: Option<Facts>,
    access: Access,
) -> Result<Connected, ConnectError> {
    let store = store(s, found.partitions).await?;
    // A failover passes: whoever meets one waits for its end and looks again.
    let pace = Pace::call(s.connection.retry_limit);
    let redis = retry(pace, || masters(&store)).await?;
    let is_start = facts.is_some();
    let mut facts = facts.unwrap_or(Facts {
        role: Role::Operator,
        settings: Box::new(s.clone()),
        nats: gather::nats(&broker, s, Role::Operator, Depth::Greeting).await.map_err(|e| e.to_string()),
        redis: None,
        fleet: None,
    });
    facts.redis = Some(Ok(redis));
    match access {
        Access::Work => {
            let findings = refuse(&facts)?;
            if is_start {
                findings.iter().for_each(log);
            }
        }
        // Whoever only looks can say what is wrong, and still show what is there.
        Access::Look => judge(&facts).iter().filter(|f| f.refuses_start).for_each(log),
    }
    retry(pace, || async {
        match access {
            Access::Work => Box::pin(crate::loss::open(&store, &broker, &found, facts.role)).await,
            Access::Look => Ok(store.look(&found.jobs_created).await?),
        }
    })
    .await?;
    let publisher = Publisher::start(&broker).await?;
    let relay = Relay::new(
        store.clone(),
        broker.clone(),
        publisher.clone(),
        s.lease.ttl.saturating_sub(s.lease.margin),
    );
    Ok(Connected { broker, publisher, store, relay, found, searches: JournalSearch::default() })
}

/// Asks Redis what it is; each server that has to take writes must be a master.
pub(crate) async fn masters(store: &Store) -> Result<RedisFacts, StoreError> {
    let facts = gather::redis(store, false).await?;
    let replica = facts.servers.iter().find(|s| s.state.as_ref().is_ok_and(|state| state.is_replica));
    let Some(replica) = replica else { return Ok(facts) };
    store.connect_anew().await;
    Err(StoreError::Unreachable(format!(
        "redis at {} is a replica, which takes no writes: wait for the end of a failover, or set `connection.redis_url` to the master",
        replica.url
    )))
}

/// Judges; an error when something loses jobs.
fn refuse(facts: &Facts) -> Result<Vec<Finding>, ConnectError> {
    let findings = judge(facts);
    let refusals = refusals(&findings);
    if refusals.is_empty() { Ok(findings) } else { Err(ConnectError::Unfit(refusals)) }
}

/// Says what a process starts with although it is not as it should be.
fn log(f: &Finding) {
    if f.severity >= Severity::Warning {
        tracing::warn!(check = f.check, place = f.place, fix = f.fix, "{}", f.what);
    } else {
        tracing::debug!(check = f.check, place = f.place, fix = f.fix, "{}", f.what);
    }
}
