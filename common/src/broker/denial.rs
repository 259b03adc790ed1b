//! What the server refuses us. It says so beside the call and never as its answer: the call itself would only time out.
//! So whoever waits for an answer listens here too.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::BrokerError;

/// Refusals that are remembered for those who have not looked yet.
const REMEMBERED: usize = 64;
/// Like refusals (of acks, say, each with a subject of its own) are logged once in this time.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denial {
    /// Number since the connection was made, from 1.
    n: u64,
    pub(super) subject: String,
    pub(super) is_publish: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the newest refusal.
    n: u64,
    recent: VecDeque<Denial>,
    /// The inbox that we may not listen to: no answer can reach us at all.
    deaf: Option<String>,
}

/// The refusals of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Denials {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Who we are to the server.
    who: String,
    inbox_prefix: String,
    state: watch::Sender<State>,
    logged: Mutex<VecDeque<(String, Instant)>>,
}

impl Denials {
    pub(super) fn new(who: String, inbox_prefix: &str) -> Self {
        let prefix = if inbox_prefix.is_empty() { "_INBOX" } else { inbox_prefix };
        let inner = Inner {
            who,
            inbox_prefix: format!("{prefix}."),
            state: watch::Sender::new(State::default()),
            logged: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes note of what the server said; `false` when it is no refusal.
    pub(super) fn note(&self, text: &str) -> bool {
        let Some((subject, is_publish)) = parse(text) else { return false };
        let is_inbox = !is_publish && subject.starts_with(&self.inner.inbox_prefix);
        self.log(&subject, is_publish, is_inbox);
        self.inner.state.send_modify(|s| {
            s.n += 1;
            if is_inbox {
                s.deaf = Some(subject.clone());
            }
            if s.recent.len() == REMEMBERED {
                s.recent.pop_front();
            }
            s.recent.push_back(Denial { n: s.n, subject, is_publish });
        });
        true
    }

    /// A new connection may have other permissions.
    pub(super) fn reconnected(&self) {
        self.inner.state.send_if_modified(|s| s.deaf.take().is_some());
    }

    fn log(&self, subject: &str, is_publish: bool, is_inbox: bool) {
        let family: Vec<_> = subject.split('.').take(4).collect();
        let family = format!("{is_publish} {}", family.join("."));
        let mut logged = self.inner.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        logged.retain(|(_, at)| now.duration_since(*at) < LOGGED_EVERY);
        if logged.len() < REMEMBERED && !logged.iter().any(|(f, _)| *f == family) {
            logged.push_back((family, now));
            let error = if is_inbox { self.deaf(subject) } else { self.error(subject, is_publish) };
            tracing::error!("{error}");
        }
    }

    pub(super) fn error(&self, subject: &str, is_publish: bool) -> BrokerError {
        let verb = if is_publish { "publish" } else { "subscribe" };
        BrokerError::Denied(format!("nats does not let {} {verb} to {subject:?}", self.inner.who))
    }

    fn deaf(&self, inbox: &str) -> BrokerError {
        BrokerError::Denied(format!(
            "nats does not let {} subscribe to {inbox:?}, so that no answer can reach it (what it sent may have arrived); \
             set connection.nats_inbox_prefix to one that it may subscribe to",
            self.inner.who
        ))
    }

    /// From now on.
    pub(super) fn listen(&self) -> Listener {
        let mut news = self.inner.state.subscribe();
        let seen = news.borrow_and_update().n;
        Listener { of: self.clone(), news, seen }
    }

    /// Why no answer can reach us, if none can.
    pub(super) fn is_deaf(&self) -> Option<BrokerError> {
        self.inner.state.borrow().deaf.as_deref().map(|inbox| self.deaf(inbox))
    }

    /// Runs a call that publishes to a subject which `concerns` knows, and waits for an answer. A refusal ends it at once.
    ///
    /// # Cancel safety
    /// That of the call.
    pub(super) async fn guard<T>(
        &self,
        concerns: impl Fn(&str) -> bool,
        call: impl Future<Output = T>,
    ) -> Result<T, BrokerError> {
        let mut listener = self.listen();
        tokio::select! {
            biased;
            answer = call => Ok(answer),
            denied = listener.denied(concerns) => Err(denied),
        }
    }
}

/// Hears what is refused from the moment that it was made.
pub(super) struct Listener {
    of: Denials,
    news: watch::Receiver<State>,
    seen: u64,
}

impl Listener {
    /// What was refused since the last look, and whether we are deaf.
    pub(super) fn take(&mut self) -> (Vec<Denial>, Option<BrokerError>) {
        let state = self.news.borrow_and_update();
        let new = state.recent.iter().filter(|d| d.n > self.seen).cloned().collect();
        self.seen = state.n;
        (new, state.deaf.as_deref().map(|inbox| self.of.deaf(inbox)))
    }

    /// Waits for the next news.
    pub(super) async fn changed(&mut self) {
        if self.news.changed().await.is_err() {
            // The sender lives in `of`, so this cannot be; never is the answer that does no harm.
            std::future::pending().await
        }
    }

    /// Waits until a publish to a subject that `concerns` knows is refused, or we are deaf.
    ///
    /// # Cancel safety
    /// Refusals of other subjects that were seen are forgotten; nothing else is lost.
    pub(super) async fn denied(&mut self, concerns: impl Fn(&str) -> bool) -> BrokerError {
        loop {
            let (new, deaf) = self.take();
            if let Some(e) = deaf {
                return e;
            }
            if let Some(d) = new.iter().find(|d| d.is_publish && concerns(&d.subject)) {
                return self.of.error(&d.subject, true);
            }
            self.changed().await;
        }
    }
}

/// Whether a subject is one of the API's for this stream.
pub(super) fn is_api_of(subject: &str, stream: &str) -> bool {
    subject.starts_with("$JS.API.") && subject.split('.').any(|t| t == stream)
}

/// Subject, and whether a publish was refused, of `Permissions Violation for Publish to "a.b"`.
fn parse(text: &str) -> Option<(String, bool)> {
    let rest = text.get(text.find("ermissions Violation for ")?..)?;
    let is_publish = rest.contains(" for Publish to ");
    let subject = rest.split('"').nth(1)?;
    Some((subject.to_owned(), is_publish))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO_A: &str = "Permissions Violation for Publish to \"surety.jobs.a\"";

    #[test]
    fn refusals_are_read_from_what_the_server_says() {
        assert_eq!(parse(TO_A), Some(("surety.jobs.a".into(), true)));
        let queue = "Permissions Violation for Subscription to \"x.>\" using queue \"q\"";
        assert_eq!(parse(queue), Some(("x.>".into(), false)));
        assert_eq!(parse("Maximum Payload Violation"), None);
        assert!(is_api_of("$JS.API.CONSUMER.MSG.NEXT.S_JOBS.q", "S_JOBS"));
        assert!(!is_api_of("$JS.API.STREAM.INFO.S_JOBS2", "S_JOBS"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_with_the_refusal_of_its_own_subject_only() {
        let denials = Denials::new("user \"ann\"".into(), "");
        denials.note(TO_A);
        let call = denials.guard(|s| s == "surety.jobs.a", tokio::time::sleep(Duration::from_secs(5)));
        // What was refused before the call is not its own.
        call.await.unwrap();
        let call = denials.guard(|s| s == "surety.jobs.a", std::future::pending::<()>());
        let server = async {
            for subject in ["b", "a"] {
                tokio::time::sleep(Duration::from_millis(1)).await;
                denials.note(&TO_A.replace("jobs.a", &format!("jobs.{subject}")));
            }
        };
        let (answer, ()) = tokio::join!(call, server);
        let text = answer.unwrap_err().to_string();
        assert_eq!(text, "nats does not let user \"ann\" publish to \"surety.jobs.a\"");
    }

    #[tokio::test]
    async fn nobody_waits_for_answers_that_cannot_come_until_a_reconnect() {
        let denials = Denials::new("user \"ann\"".into(), "_I");
        denials.note("Permissions Violation for Subscription to \"_I.x.*\"");
        let e = denials.guard(|_| false, std::future::pending::<()>()).await.unwrap_err().to_string();
        assert!(e.contains("\"_I.x.*\"") && e.contains("nats_inbox_prefix"), "{e}");
        assert!(denials.is_deaf().is_some());
        denials.reconnected();
        assert!(denials.is_deaf().is_none());
    }
}
