//! A requester: listens on a subject, keeps what it is told, and answers while it is told to.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use futures::StreamExt;
use serde_json::Value;

use crate::world::{World, wait};

/// One message that a requester was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// `receipt`, `started` or `nudge`, from the header.
    pub kind: String,
    /// `Nats-Msg-Id`.
    pub id: String,
    pub job: String,
    pub trace: String,
    pub body: Vec<u8>,
}

impl Heard {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Listens from its making on.
pub struct Requester {
    pub subject: String,
    heard: Arc<Mutex<Vec<Heard>>>,
    answers: Arc<AtomicBool>,
    // Dropped with it: nobody listens any more then.
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Requester {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Requester {
    /// Listens on a subject and answers every message.
    pub async fn start(w: &World, subject: &str) -> Self {
        let client = w.plain().await;
        let mut messages = client.subscribe(subject.to_owned()).await.unwrap();
        client.flush().await.unwrap();
        let (heard, answers) = (Arc::<Mutex<Vec<Heard>>>::default(), Arc::new(AtomicBool::new(true)));
        let (log, is_answering) = (heard.clone(), answers.clone());
        let task = tokio::spawn(async move {
            while let Some(m) = messages.next().await {
                let header = |name: &str| {
                    let value = m.headers.as_ref().and_then(|h| h.get(name));
                    value.map(ToString::to_string).unwrap_or_default()
                };
                log.lock().unwrap().push(Heard {
                    kind: header("Surety-Kind"),
                    id: header("Nats-Msg-Id"),
                    job: header("Surety-Job"),
                    trace: header("traceparent"),
                    body: m.payload.to_vec(),
                });
                if let (true, Some(reply)) = (is_answering.load(Ordering::SeqCst), m.reply) {
                    client.publish(reply, "seen".into()).await.unwrap();
                }
            }
        });
        Self { subject: subject.to_owned(), heard, answers, task }
    }

    /// From now on it hears everything and answers nothing, or answers again.
    pub fn answer(&self, is_answering: bool) {
        self.answers.store(is_answering, Ordering::SeqCst);
    }

    /// What it heard so far of a kind (empty: of all) about a job.
    pub fn heard(&self, job: &str, kind: &str) -> Vec<Heard> {
        let all = self.heard.lock().unwrap();
        all.iter().filter(|h| h.job == job && (kind.is_empty() || h.kind == kind)).cloned().collect()
    }

    /// Waits until it has heard so many of a kind about a job.
    pub async fn hears(&self, job: &str, kind: &str, n: usize) -> Vec<Heard> {
        wait(&format!("{n} of {kind} about {job}"), async || self.heard(job, kind).len() >= n).await;
        self.heard(job, kind)
    }
}
