//! The search for processes, in a thread of its own: a look at all processes takes its time, and the keeper's main loop has none.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::process::Shared;
use super::tree::{Mark, Process, Scope, strike};

/// Asks that one strike takes together.
const AT_ONCE: usize = 256;

struct Ask {
    mark: Mark,
    answer: oneshot::Sender<io::Result<Vec<Process>>>,
}

/// Strikes the trees of attempts, those that are asked for meanwhile together: the number of attempts that end at once does not
/// multiply the looks. The thread ends with the last clone.
#[derive(Clone)]
pub(super) struct Searcher {
    // No attempt asks twice at once, so their number is its bound.
    asks: mpsc::UnboundedSender<Ask>,
}

impl Searcher {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (asks, queue) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("search".into()).spawn(move || serve(&shared, queue))?;
        Ok(Self { asks })
    }

    /// Kills what there is of the attempt, and says what was alive: nothing is the proof that it is dead.
    pub(super) async fn strike(&self, mark: Mark) -> io::Result<Vec<Process>> {
        let gone = || io::Error::other("the thread that searches for processes has ended");
        let (answer, found) = oneshot::channel();
        self.asks.send(Ask { mark, answer }).map_err(|_| gone())?;
        found.await.map_err(|_| gone())?
    }
}

fn serve(shared: &Shared, mut queue: mpsc::UnboundedReceiver<Ask>) {
    let mut asks = Vec::new();
    while queue.blocking_recv_many(&mut asks, AT_ONCE) > 0 {
        let (marks, answers): (Vec<_>, Vec<_>) = asks.drain(..).map(|a| (a.mark, a.answer)).unzip();
        let owners = || shared.owners();
        let struck = strike(&marks, &Scope::Keeper { pid: shared.pid, owners: &owners });
        let each = match struck {
            Ok(found) => found.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => {
                marks.iter().map(|_| Err(io::Error::new(error.kind(), error.to_string()))).collect()
            }
        };
        for (answer, found) in answers.into_iter().zip(each) {
            if answer.send(found).is_err() {
                tracing::debug!("a search that nobody waits for any more");
            }
        }
    }
}
