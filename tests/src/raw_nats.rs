//! A NATS connection without a client: sends what no client would let through.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::world::{PATIENCE, World};

/// One connection, which speaks the protocol line by line.
pub struct RawNats(BufReader<TcpStream>);

/// A message that arrived: the protocol line without its verb, and what follows it.
#[derive(Debug)]
pub struct RawMessage {
    pub reply: String,
    pub bytes: Vec<u8>,
}

impl RawNats {
    /// Connects to the server of a world.
    pub async fn to(w: &World) -> Self {
        Self::connect(([127, 0, 0, 1], w.nats.port()).into()).await
    }

    /// Connects to a server.
    pub async fn connect(at: SocketAddr) -> Self {
        let mut this = Self(BufReader::new(TcpStream::connect(at).await.unwrap()));
        assert!(this.line().await.starts_with("INFO "));
        let hello =
            r#"CONNECT {"verbose":false,"headers":true,"no_responders":true,"lang":"raw","version":"1"}"#;
        this.send(hello.as_bytes()).await;
        this.flush().await;
        this
    }

    /// Sends one line.
    pub async fn send(&mut self, line: &[u8]) {
        self.0.get_mut().write_all(&[line, b"\r\n"].concat()).await.unwrap();
    }

    /// Publishes: the header block with its first line and the empty one, as it goes over the wire.
    pub async fn publish(&mut self, subject: &[u8], block: &[u8], body: &[u8]) {
        let sizes = format!(" {} {}", block.len(), block.len() + body.len());
        self.send(&[b"HPUB ", subject, sizes.as_bytes()].concat()).await;
        self.send(&[block, body].concat()).await;
        self.flush().await;
    }

    /// The same with a subject for the answer, which is awaited; gives its body.
    pub async fn request(&mut self, subject: &[u8], block: &[u8], body: &[u8]) -> Vec<u8> {
        self.send(b"SUB _INBOX.raw 1").await;
        let sizes = format!(" _INBOX.raw {} {}", block.len(), block.len() + body.len());
        self.send(&[b"HPUB ", subject, sizes.as_bytes()].concat()).await;
        self.send(&[block, body].concat()).await;
        self.message().await.bytes
    }

    /// Waits until the server has read all that was sent.
    pub async fn flush(&mut self) {
        self.send(b"PING").await;
        loop {
            let line = self.line().await;
            assert!(!line.starts_with("-ERR"), "{line}");
            if line == "PONG" {
                return;
            }
        }
    }

    /// The next message of any subscription.
    pub async fn message(&mut self) -> RawMessage {
        loop {
            let line = self.line().await;
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "PING" => self.send(b"PONG").await,
                "MSG" | "HMSG" => {
                    let n: usize = words[words.len() - 1].parse().unwrap();
                    let mut bytes = vec![0; n + 2];
                    self.0.read_exact(&mut bytes).await.unwrap();
                    bytes.truncate(n);
                    return RawMessage { reply: words[3].to_owned(), bytes };
                }
                _ => assert!(!line.starts_with("-ERR"), "{line}"),
            }
        }
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        let read = self.0.read_until(b'\n', &mut line);
        let n = tokio::time::timeout(PATIENCE, read).await.expect("the server says nothing").unwrap();
        assert!(n > 0, "the server closed the connection");
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }
}
