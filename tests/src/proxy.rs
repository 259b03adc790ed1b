//! A TCP proxy whose connections a test can cut, freeze and slow down.
//!
//! ```no_run
//! # async fn example(redis: std::net::SocketAddr) -> std::io::Result<()> {
//! # use surety_tests::proxy::Proxy;
//! let proxy = Proxy::start(redis).await?;
//! let url = format!("redis://{}", proxy.addr());
//! proxy.hold(); // a partition: nothing arrives, nobody is told
//! proxy.heal(); // what was on its way arrives
//! proxy.cut(); // connections close; a new one is closed at once
//! proxy.heal();
//! # Ok(()) }
//! ```
//!
//! The switches take effect before they return: after [`Proxy::hold`] or [`Proxy::cut`] no byte is
//! handed on any more (a byte in a socket's buffer at that moment has already been handed on).
//! Dropping the proxy closes everything.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Connections at a time; further ones are closed at once.
const CONNECTIONS: usize = 1024;
/// How much is read at once, in bytes.
const CHUNK: usize = 16 * 1024;
/// Chunks under way in one direction of a connection: with a delay, at most `CHUNK * CHUNKS` bytes
/// (1 MiB) are on their way, then the sender has to wait.
const CHUNKS: usize = 64;
/// How long a connection to the upstream may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Flow,
    Hold,
    Cut,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// The cuts so far: a connection made before the last one must not live.
    cuts: u64,
    delay: Duration,
    upstream: SocketAddr,
}

/// A proxy on a port of its own, in front of one upstream.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and hands every connection on to `upstream`, which need
    /// not be there yet: a connection is closed when the upstream refuses it.
    ///
    /// # Errors
    /// No port could be bound.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let state = watch::Sender::new(State { mode: Mode::Flow, cuts: 0, delay: Duration::ZERO, upstream });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Ok(Self { addr, state, accepting })
    }

    /// Where to connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes all connections; until [`heal`](Self::heal), new ones are closed as soon as they are
    /// made. What was under way is lost.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.mode = Mode::Cut;
            state.cuts += 1;
        });
    }

    /// Stops the bytes of all connections, in both directions, and keeps the connections, like a
    /// network partition does. New connections are accepted and reach the upstream after
    /// [`heal`](Self::heal). The end of a connection is held back as well.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.mode = Mode::Hold);
    }

    /// Ends [`cut`](Self::cut) and [`hold`](Self::hold): what was held flows on, in order. A
    /// [`delay`](Self::delay) remains.
    pub fn heal(&self) {
        self.state.send_modify(|state| state.mode = Mode::Flow);
    }

    /// New connections go to another upstream from now on; those that stand stay where they are, as when a name is moved.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.state.send_modify(|state| state.upstream = upstream);
    }

    /// Hands on what arrives from now on this much later, in each direction; zero ends it. The order
    /// is kept, so bytes do not overtake others that still have a longer delay.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Drops the set of connections, which aborts each of them.
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: watch::Sender<State>) {
    let mut connections = JoinSet::new();
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        let client = match accepted {
            Ok((client, _)) => client,
            Err(_) => {
                // Out of descriptors, or a client that has gone: neither is the end of the proxy.
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let State { mode, cuts, upstream, .. } = *state.borrow();
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else { continue };
        if mode == Mode::Cut {
            continue;
        }
        let state = state.subscribe();
        connections.spawn(async move {
            let mut cut = state.clone();
            tokio::select! {
                biased;
                // An error: the proxy is gone.
                _gone_or_cut = cut.wait_for(|state| state.cuts != cuts) => {}
                _closed = connection(client, upstream, cuts, state) => {}
            }
            drop(permit);
        });
    }
}

async fn connection(
    client: TcpStream,
    upstream: SocketAddr,
    cuts: u64,
    state: watch::Receiver<State>,
) -> io::Result<()> {
    flowing(&mut state.clone()).await?;
    let server = timeout(CONNECT_WITHIN, TcpStream::connect(upstream)).await??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // An error in one direction ends both; an orderly end is handed on and the other goes on.
    tokio::try_join!(
        direction(from_client, to_server, cuts, state.clone()),
        direction(from_server, to_client, cuts, state),
    )?;
    Ok(())
}

async fn flowing(state: &mut watch::Receiver<State>) -> io::Result<()> {
    match state.wait_for(|state| state.mode == Mode::Flow).await {
        Ok(_) => Ok(()),
        Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Bytes (none: the end), and when they are due.
type Chunk = (Instant, Vec<u8>);

async fn direction(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    cuts: u64,
    state: watch::Receiver<State>,
) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    tokio::try_join!(read_all(from, sender, state.clone()), write_all(to, receiver, cuts, state),)?;
    Ok(())
}

async fn read_all(
    mut from: OwnedReadHalf,
    sender: mpsc::Sender<Chunk>,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    loop {
        flowing(&mut state).await?;
        let mut bytes = Vec::with_capacity(CHUNK);
        let end = match from.read_buf(&mut bytes).await {
            Ok(length) => length == 0,
            Err(error) => {
                // A reset does not get through a partition either.
                flowing(&mut state).await?;
                return Err(error);
            }
        };
        let due = Instant::now() + state.borrow().delay;
        sender.send((due, bytes)).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        if end {
            return Ok(());
        }
    }
}

async fn write_all(
    mut to: OwnedWriteHalf,
    mut receiver: mpsc::Receiver<Chunk>,
    cuts: u64,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    while let Some((due, bytes)) = receiver.recv().await {
        sleep_until(due).await;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            flowing(&mut state).await?;
            to.writable().await?;
            // The borrow keeps the switches from turning until the bytes are handed on.
            let now = state.borrow();
            if now.mode != Mode::Flow || now.cuts != cuts {
                continue;
            }
            match to.try_write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    flowing(&mut state).await?;
    to.shutdown().await
}
