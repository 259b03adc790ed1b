//! JetStream: streams and consumers as data ([`topology`]), publishing with counted acks ([`publish`]), pulling into free
//! slots ([`pull`]), settling carriers ([`carrier`]), dead letters ([`dead`], [`purge`]), the journal ([`journal`],
//! [`follow`]), receipts on their way ([`receipts`]), telling a requester ([`tell`]), what is paused ([`pauses`]), what a producer publishes ([`jobs`]), how full the queues are ([`queues`]), logging in ([`auth`]).
//!
//! Facts about the server that the code relies on are in `docs/platform.md`.

pub mod advisories;
pub mod auth;
pub mod barrier;
pub mod batches;
pub mod carrier;
pub mod control;
pub mod dead;
pub mod decode;
mod denial;
pub mod drift;
mod endings;
pub mod floor;
pub mod follow;
pub mod hand_on;
pub(crate) mod info;
pub mod jobs;
pub mod journal;
pub mod journal_search;
mod leader;
pub mod pauses;
pub mod place;
pub mod position;
pub mod postpone;
pub mod publish;
pub mod pull;
pub mod purge;
pub mod queues;
pub mod receipts;
mod scan;
pub mod schedule;
pub mod search;
mod sizes;
pub mod tell;
pub mod topology;
pub mod whereabouts;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{ConnectOptions, Event, ServerError, jetstream};
use denial::Denials;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::read_millis,
    config::Address,
    domain::ids::Namespace,
    pace::{Pace, Transient, retry},
    telemetry::metrics::shared,
};

/// Why a call to the broker failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// Network, timeout, election or restart: may go away by itself.
    #[error("nats is not reachable or not ready: {0}")]
    Unreachable(String),
    /// No stream takes the subject: an undeclared queue, or nothing is provisioned.
    #[error(
        "no stream takes {subject:?}: the queue is not declared (run `surety provision`, or name one of the declared queues)"
    )]
    NoStream { subject: String },
    /// The server answered with an error.
    #[error("nats refused: {text} (code {code})")]
    Refused { code: u64, text: String },
    /// The server, or what is provisioned on it, does not do what the promises need.
    #[error("{0}")]
    Unfit(String),
    /// The server does not let us in, or does not let us do this. Names who we are to it, and the subject.
    #[error("{0}")]
    Denied(String),
    /// The data set that a journal entry belongs to is gone, or may be: whether the entry counts is not known, and nothing may
    /// be done because of it.
    #[error("redis has lost the data set of this journal entry")]
    Outlived,
}

impl Transient for BrokerError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Outlived)
    }
}

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// `nats://host:port`, several separated by commas.
    pub url: Address,
    /// Login, TLS, inbox prefix.
    pub auth: auth::Auth,
    /// Name of the connection, shown by the server.
    pub name: String,
    pub namespace: Namespace,
    /// How long the first connection is tried.
    pub retry_limit: Duration,
    /// How long one request or publish acknowledgement may take.
    pub call_timeout: Duration,
}

/// One connection to NATS. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    pub(crate) client: async_nats::Client,
    pub(crate) js: jetstream::Context,
    names: topology::Names,
    call_timeout: Duration,
    reconnects: watch::Receiver<u64>,
    denials: Denials,
    /// Cancelled when the client's tasks are gone, whatever ended them: from then on no call can succeed.
    ended: CancellationToken,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("has_ended", &self.has_ended()).finish_non_exhaustive()
    }
}

impl Broker {
    /// Connects. Whether the server is fit for use is for [`crate::doctor`] to judge. Later disconnections heal by
    /// themselves (reconnect within 250 ms of the server's return) and are logged.
    /// Errors: `Unreachable` with the address; `Denied` for a wrong login; `Unfit` for files or certificates that do not
    /// fit.
    pub async fn connect(options: BrokerOptions) -> Result<Self, BrokerError> {
        let (addresses, login) = auth::addresses(&options.url)?;
        let auth = options.auth.with(login);
        let url = options.url.masked();
        let (count, reconnects) = watch::channel(0);
        let count = Arc::new(count);
        let denials = Denials::new(auth.who(), &auth.inbox_prefix);
        let connected = retry(Pace::call(options.retry_limit), || async {
            let (count, was_lost) = (count.clone(), AtomicBool::new(false));
            let of_this_try = CancellationToken::new();
            // The client keeps its callback for as long as its connection task lives, and drops it also when that panics.
            let guard = of_this_try.clone().drop_guard();
            auth.apply(ConnectOptions::new())?
                .name(&options.name)
                .connection_timeout(options.call_timeout)
                .request_timeout(Some(options.call_timeout))
                .client_capacity(16 * 1024)
                .subscription_capacity(64 * 1024)
                .reconnect_delay_callback(|tries| Duration::from_millis((20 << tries.min(4)).min(250) as u64))
                .event_callback({
                    let denials = denials.clone();
                    move |event| {
                        let _kept = &guard;
                        match &event {
                            Event::Disconnected => was_lost.store(true, Ordering::Relaxed),
                            Event::Connected if was_lost.swap(false, Ordering::Relaxed) => {
                                shared().nats_reconnects.inc();
                                denials.reconnected();
                                count.send_modify(|n| *n += 1);
                            }
                            Event::SlowConsumer(_) => shared().nats_dropped.inc(),
                            _ => {}
                        }
                        tell(&denials, &event);
                        std::future::ready(())
                    }
                })
                .connect(&addresses[..])
                .await
                .map(|client| (client, of_this_try))
                .map_err(|e| auth.explain(&url, &e))
        })
        .await?;
        let (client, ended) = connected;
        #[cfg(feature = "faults")]
        crate::fault::ends_client(client.clone());
        let js = jetstream::ContextBuilder::new().timeout(options.call_timeout).build(client.clone());
        Ok(Self {
            client,
            js,
            names: topology::Names::new(options.namespace),
            call_timeout: options.call_timeout,
            reconnects,
            denials,
            ended,
        })
    }

    /// Resolves when the client has ended for good: after [`Broker::close`], or when its connection task died. A process
    /// that did not close it cannot go on.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the client has ended: see [`Broker::ended`].
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Counts how often a lost connection was made anew. What waited at the server for this client, a pull for instance, is
    /// gone then.
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        self.reconnects.clone()
    }

    /// Awaits a call of the API that concerns a stream; a refusal ends it at once.
    pub(crate) async fn on_stream<T>(
        &self,
        stream: &str,
        call: impl Future<Output = T>,
    ) -> Result<T, BrokerError> {
        self.denials.guard(|s| denial::is_api_of(s, stream), call).await
    }

    /// A request to one subject; a refusal ends it at once.
    pub(crate) async fn request(
        &self,
        subject: String,
        body: bytes::Bytes,
    ) -> Result<async_nats::Message, BrokerError> {
        let call = self.client.request(subject.clone(), body);
        let answer = self.denials.guard(|s| s == subject, call).await?;
        answer.map_err(|e| BrokerError::Unreachable(e.to_string()))
    }

    /// Names of subjects, streams and consumers.
    pub fn names(&self) -> &topology::Names {
        &self.names
    }

    /// How long one request may take.
    pub fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// Most bytes that a message may have.
    pub fn max_payload(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Version of the server.
    pub fn server_version(&self) -> String {
        self.client.server_info().version
    }

    /// What the server said when we connected: its version, and whether it has JetStream.
    pub(crate) fn greeting(&self) -> (String, bool) {
        let info = self.client.server_info();
        (info.version, info.jetstream)
    }

    /// What the server says of the user of this connection (JSON).
    pub(crate) async fn user_info(&self) -> Result<serde_json::Value, BrokerError> {
        let ask = self.request("$SYS.REQ.USER.INFO".to_owned(), bytes::Bytes::new());
        let m = tokio::time::timeout(self.call_timeout.min(Duration::from_secs(1)), ask)
            .await
            .map_err(|_| BrokerError::Unreachable("no answer".into()))??;
        serde_json::from_slice(&m.payload).map_err(|e| BrokerError::Unfit(e.to_string()))
    }

    /// Whether the connection stands now.
    pub fn is_connected(&self) -> bool {
        !self.has_ended() && self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Closes the connection for good, after what is buffered was sent. Without it a dropped connection whose server is
    /// gone goes on trying to reconnect.
    pub async fn close(&self) {
        if let Err(e) = self.client.drain().await {
            tracing::debug!(error = %e, "the connection was closed before");
        }
    }

    /// Sends what is buffered; bounded by the call timeout.
    pub async fn flush(&self) -> Result<(), BrokerError> {
        tokio::time::timeout(self.call_timeout, self.client.flush())
            .await
            .map_err(|_| BrokerError::Unreachable("flush timed out".into()))?
            .map_err(|e| BrokerError::Unreachable(e.to_string()))
    }

    /// A request of the JetStream API, with JSON in and out.
    pub(crate) async fn api(
        &self,
        subject: String,
        body: serde_json::Value,
    ) -> Result<serde_json::Value, BrokerError> {
        let full = format!("$JS.API.{subject}");
        let answer: serde_json::Value = self
            .denials
            .guard(|s| s == full, self.js.request(subject, &body))
            .await?
            .map_err(|e| BrokerError::Unreachable(e.to_string()))?;
        if let Some(e) = answer.get("error") {
            let code = e.get("err_code").and_then(serde_json::Value::as_u64).unwrap_or(0);
            let text = e.get("description").and_then(serde_json::Value::as_str).unwrap_or("").to_owned();
            return Err(
                if code == 10008
                    || code == 10074
                    || e.get("code").and_then(serde_json::Value::as_u64) == Some(503)
                {
                    BrokerError::Unreachable(text)
                } else {
                    BrokerError::Refused { code, text }
                },
            );
        }
        Ok(answer)
    }
}

/// When the server made an answer (milliseconds of its clock).
fn answered_ms(answer: &serde_json::Value) -> Option<u64> {
    read_millis(answer.get("ts")?.as_str()?)
}

fn tell(denials: &Denials, event: &Event) {
    match event {
        Event::Connected => tracing::info!("nats connected"),
        Event::Disconnected => tracing::warn!("nats disconnected, reconnecting"),
        // `close` was called, or the last handle was dropped: the end of a command.
        Event::Draining | Event::Closed => tracing::debug!(%event, "nats connection ends"),
        Event::ServerError(ServerError::Other(text)) if denials.note(text) => {}
        other => tracing::warn!(event = %other, "nats"),
    }
}
