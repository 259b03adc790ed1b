//! `/metrics`, `/livez` and `/readyz` over HTTP. Each answer closes its connection, and each connection has a time limit:
//! whoever is slow, or holds many, cannot keep others from asking for long.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    family::{EXPOSITION_TYPE, exposition},
    health::{Health, is_ready},
    listen::Listen,
};

/// Connections at a time. The next one takes the place of the oldest.
const CONNECTIONS: usize = 32;
/// Connections of one peer at a time. Its next one takes the place of its own oldest.
const OF_ONE_PEER: usize = 16;
/// Longest that a request may take to arrive.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// Longest that a connection may live.
const CONNECTION_WITHIN: Duration = Duration::from_secs(15);
/// Longest that a scrape waits for what is measured on demand; Prometheus itself waits 10 s.
const REFRESH_WITHIN: Duration = Duration::from_secs(5);

/// The address could not be had. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for metrics and health: {source}; give telemetry.listen (--listen, SURETY_TELEMETRY_LISTEN) \
     another address, or `off`"
)]
pub struct ListenError {
    pub address: SocketAddr,
    pub source: std::io::Error,
}

/// Serves until [`Server::stop`], or until it is dropped.
#[derive(Debug)]
pub struct Server {
    health: Arc<Health>,
    address: Option<SocketAddr>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    /// Listens, or does nothing where it is off. It answers from now on: alive, and not ready until
    /// [`Health::started`]. `program` goes into the metrics.
    pub async fn start(listen: Listen, program: &str) -> Result<Self, ListenError> {
        super::metrics::start(program);
        let (health, stop, tasks) =
            (Arc::new(Health::default()), CancellationToken::new(), TaskTracker::new());
        let mut address = None;
        if let Listen::At(wanted) = listen {
            let failed = |source| ListenError { address: wanted, source };
            let listener = TcpListener::bind(wanted).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            tracing::info!(address = %bound, "metrics and health at http://{bound}/metrics, /livez, /readyz");
            address = Some(bound);
            let site = Arc::new(Site { health: health.clone(), scrape: Mutex::new(()) });
            tasks.spawn(accept(listener, site, stop.clone(), tasks.clone()));
        }
        tasks.close();
        Ok(Self { health, address, stop, tasks })
    }

    /// Whom it asks.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Stops; connections under way are closed.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

struct Site {
    health: Arc<Health>,
    /// One scrape at a time: they all see the same.
    scrape: Mutex<()>,
}

/// Connections that live, the oldest first. Who holds many makes room for others, himself first.
#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: VecDeque<(u64, IpAddr, CancellationToken)>,
}

impl Places {
    /// Takes a place for a peer, and ends the connection that has to make room, if any has to.
    fn take(&mut self, peer: IpAddr) -> (u64, CancellationToken) {
        let of_peer = self.taken.iter().filter(|(_, p, _)| *p == peer).count();
        let oldest = if of_peer >= OF_ONE_PEER {
            self.taken.iter().position(|(_, p, _)| *p == peer)
        } else {
            (self.taken.len() >= CONNECTIONS).then_some(0)
        };
        if let Some((_, _, end)) = oldest.and_then(|at| self.taken.remove(at)) {
            end.cancel();
        }
        self.next += 1;
        let end = CancellationToken::new();
        self.taken.push_back((self.next, peer, end.clone()));
        (self.next, end)
    }

    fn leave(&mut self, place: u64) {
        self.taken.retain(|(n, ..)| *n != place);
    }
}

async fn accept(listener: TcpListener, site: Arc<Site>, stop: CancellationToken, tasks: TaskTracker) {
    let places = Arc::new(std::sync::Mutex::new(Places::default()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (site, stop, places) = (site.clone(), stop.clone(), places.clone());
                let (place, end) = places.lock().unwrap_or_else(PoisonError::into_inner).take(peer.ip());
                tasks.spawn(async move {
                    tokio::select! {
                        served = tokio::time::timeout(CONNECTION_WITHIN, serve(stream, site)) => match served {
                            Ok(Ok(())) => {}
                            Ok(Err(e)) => tracing::debug!(error = %e, "a request for metrics or health failed"),
                            Err(_) => tracing::debug!("a request for metrics or health took too long"),
                        },
                        () = end.cancelled() => {
                            tracing::debug!(%peer, "a connection for metrics or health made room for a newer one");
                        }
                        () = stop.cancelled() => {}
                    }
                    places.lock().unwrap_or_else(PoisonError::into_inner).leave(place);
                });
            }
            Err(e) => {
                // Out of file descriptors, most likely: others need the time more.
                tracing::warn!(error = %e, "cannot take a connection for metrics or health");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, site: Arc<Site>) -> Result<(), hyper::Error> {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let site = site.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&request, &site).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .max_buf_size(16 * 1024)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

type Answer = Response<Full<Bytes>>;

fn with(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut r = Response::new(Full::new(body.into()));
    *r.status_mut() = status;
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    r
}

const TEXT: &str = "text/plain; charset=utf-8";

async fn answer<B>(request: &Request<B>, site: &Site) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut r = with(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
        r.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return r;
    }
    match request.uri().path() {
        "/metrics" => metrics(site).await,
        "/livez" => match site.health.alive() {
            Ok(()) => with(StatusCode::OK, TEXT, "alive\n"),
            Err(why) => with(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
        },
        "/readyz" => ready(&site.health).await,
        _ => with(StatusCode::NOT_FOUND, TEXT, "/metrics, /livez and /readyz are here\n"),
    }
}

async fn metrics(site: &Site) -> Answer {
    let _one_at_a_time = site.scrape.lock().await;
    if tokio::time::timeout(REFRESH_WITHIN, site.health.refresh()).await.is_err() {
        tracing::debug!("the servers take long: the scrape goes without what is measured on demand");
    }
    match exposition() {
        Ok(body) => with(StatusCode::OK, EXPOSITION_TYPE, body),
        Err(e) => with(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("metrics do not encode: {e}\n")),
    }
}

/// `{"ready":false,"parts":{"nats":"ok","redis":"…"}}`; 503 unless ready.
async fn ready(health: &Health) -> Answer {
    let parts = health.parts().await;
    let is_ready = is_ready(&parts);
    let states: serde_json::Map<String, serde_json::Value> = parts
        .into_iter()
        .map(|(part, state)| (part.to_owned(), state.err().unwrap_or_else(|| "ok".to_owned()).into()))
        .collect();
    let body = serde_json::json!({ "ready": is_ready, "parts": states }).to_string() + "\n";
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    with(status, "application/json", body)
}
