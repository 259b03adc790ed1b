//! Three NATS servers that keep every stream three times. What the last of them hears from the others can be held back.

use std::net::{SocketAddr, TcpListener};

use async_nats::jetstream::stream::Config;
use surety_producer::dev::servers::{NatsOptions, NatsServer};

use crate::{
    proxy::Proxy,
    world::{World, wait},
};

/// A world whose NATS is a cluster; its own server is the first of three.
pub struct NatsCluster {
    pub world: World,
    /// Kept for as long as it is needed.
    _second: NatsServer,
    last: NatsServer,
    /// All ways between the last server and the others.
    ways: Vec<Proxy>,
}

/// Elections take seconds, and calls are repeated for as long.
const PATIENT: &str = r#"
[connection]
retry_limit = "30s"
call_timeout = "5s"
[lease]
renewal = "500ms"
ttl = "7s"
margin = "1s"
[layout]
replicas = 3
"#;

/// Configuration of a server that listens for the others on a port, and connects to these.
fn cluster(own: u16, advertise: u16, routes: &[u16]) -> String {
    let routes: Vec<String> = routes.iter().map(|p| format!("\"nats-route://127.0.0.1:{p}\"")).collect();
    format!(
        "cluster {{\n  name: \"test\"\n  listen: \"127.0.0.1:{own}\"\n  advertise: \"127.0.0.1:{advertise}\"\n  routes: [{}]\n}}",
        routes.join(", ")
    )
}

async fn to(port: u16) -> Proxy {
    Proxy::start(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap()
}

impl NatsCluster {
    /// Starts the servers; the streams are made by whoever provisions.
    pub async fn start() -> Self {
        // Held together, so that they differ; free again before the servers take them.
        let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|l| l.local_addr().unwrap().port()).collect();
        drop(held);
        let [a, b, last] = [ports[0], ports[1], ports[2]];
        let ways = vec![to(a).await, to(b).await, to(last).await];
        let [to_a, to_b, to_last] = [0, 1, 2].map(|n: usize| ways[n].addr().port());
        let world = World::on(PATIENT, &cluster(a, a, &[b]), &[]).await;
        let server = async |name: &str, extra_config: String| {
            let data = world.dir.path().join(name);
            NatsServer::start(NatsOptions { port: None, data, extra_config, log: None }).await.unwrap()
        };
        let second = server("nats-2", cluster(b, b, &[a])).await;
        let last = server("nats-3", cluster(last, to_last, &[to_a, to_b])).await;
        let js = async_nats::jetstream::new(world.plain().await);
        wait("the three to know each other", async || {
            let probe = Config { name: "PROBE".into(), num_replicas: 3, ..Config::default() };
            js.create_stream(probe).await.is_ok()
        })
        .await;
        js.delete_stream("PROBE").await.unwrap();
        Self { world, _second: second, last, ways }
    }

    /// Address of the server that can be made to lag.
    pub fn last(&self) -> String {
        self.last.url()
    }

    /// Holds back what the last server hears and says, until [`NatsCluster::catch_up`].
    pub fn lag(&self) {
        self.ways.iter().for_each(Proxy::hold);
    }

    pub fn catch_up(&self) {
        self.ways.iter().for_each(Proxy::heal);
    }

    /// Waits until another server than the last one leads a stream.
    pub async fn last_follows(&self, stream: &str) {
        let plain = self.world.plain().await;
        let js = async_nats::jetstream::new(plain.clone());
        let last = async_nats::connect(self.last()).await.unwrap().server_info().server_name;
        wait("another server to lead", async || {
            let Ok(mut stream_now) = js.get_stream(stream).await else { return false };
            let leader = stream_now.info().await.ok().and_then(|i| i.cluster.clone()).and_then(|c| c.leader);
            if leader.as_deref() == Some(last.as_str()) {
                let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
                plain.request(subject, "".into()).await.ok();
            }
            leader.is_some_and(|l| l != last)
        })
        .await;
    }
}
