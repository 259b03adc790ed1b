//! Records of ended jobs are deleted when they are old enough, and never before their outcome is journaled.

use std::time::Duration;

use redis::AsyncCommands;
use surety_common::{
    domain::Status,
    store::{ClaimItem, Forgotten, Verdict},
};
use surety_tests::world::{World as Servers, wait};

use super::scripts::{World, claim, epoch, finish, id, replay};

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

impl World {
    async fn run(&self, jobs: &[&str]) {
        let items: Vec<ClaimItem<'_>> = jobs.iter().map(|j| claim(j)).collect();
        let grants = self.claim(&items).await;
        let done: Vec<_> =
            jobs.iter().zip(&grants).map(|(j, g)| finish(j, epoch(g), Verdict::Done)).collect();
        self.finish(&done).await;
    }

    /// As if the journal had everything.
    async fn journaled(&self) {
        let ids: Vec<_> = self.outbox().await.into_iter().map(|e| e.id).collect();
        self.store.trim(0, &ids).await.unwrap();
    }

    async fn forget(&self, keep: Duration, n: isize) -> Option<Forgotten> {
        let head = self.store.ended(0, n).await.unwrap();
        self.store.forget(0, keep, &head).await.unwrap().results[0]
    }

    async fn has(&self, job: &str) -> bool {
        self.plain.clone().exists(self.store.keys().job(&id(job))).await.unwrap()
    }
}

#[tokio::test]
async fn a_record_is_deleted_when_it_is_old_enough_and_the_journal_says_so() {
    let w = World::start().await;
    w.run(&["a", "b", "c"]).await;
    w.journaled().await;
    assert_eq!(w.forget(HOUR, 100).await, Some(Forgotten { taken: 0, deleted: 0, kept: 0 }));
    assert!(w.has("a").await);

    // The group is cut in its middle: what is left of it keeps its time.
    assert_eq!(w.forget(NOW, 3).await, Some(Forgotten { taken: 3, deleted: 2, kept: 0 }));
    assert!(!w.has("a").await && !w.has("b").await && w.has("c").await);
    let left = w.store.ended(0, 10).await.unwrap();
    assert!(left.len() == 2 && left[0].starts_with('@') && left[1] == "c", "{left:?}");
    let events = w.events().await;
    let said: Vec<_> = events.iter().map(|e| (e.job.as_str(), e.rev, e.kind.as_str())).collect();
    assert_eq!(said, [("a", 3, "deleted"), ("b", 3, "deleted")]);

    // Another reaper that read the same elements comes too late.
    let head = w.store.ended(0, 10).await.unwrap();
    assert_eq!(w.forget(NOW, 10).await, Some(Forgotten { taken: 2, deleted: 1, kept: 0 }));
    assert_eq!(w.store.forget(0, NOW, &head).await.unwrap().results, [None]);
    assert_eq!(w.store.ended(0, 10).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_journaled_not_readable_or_open_again_stays() {
    let w = World::start().await;
    w.run(&["old"]).await;
    w.run(&["again", "broken"]).await;
    w.journaled().await;
    () = w.plain.clone().set(w.store.keys().job(&id("broken")), "rubbish").await.unwrap();
    w.store.replay(0, &[replay("again", 2)]).await.unwrap();
    w.run(&["fresh"]).await;

    let done = w.forget(NOW, 100).await.unwrap();
    assert_eq!((done.deleted, done.kept), (1, 2), "{done:?}");
    assert!(!w.has("old").await);
    for job in ["again", "broken", "fresh"] {
        assert!(w.has(job).await, "{job}");
    }
    assert_eq!(w.store.record(&id("again")).await.unwrap().unwrap().status, Status::Queued);
    let mut left = w.store.ended(0, 100).await.unwrap();
    left.retain(|e| !e.starts_with('@'));
    assert_eq!(left, ["broken", "fresh"], "looked at again later");

    // Once it has ended again and the journal has it, it goes as the others do.
    w.store.open_session(0, &w.session, HOUR, "{}").await.unwrap();
    let item = ClaimItem { generation: 2, carrier: "JOBS:again-2".into(), ..claim("again") };
    let granted = epoch(&w.claim(&[item]).await[0]);
    w.finish(&[finish("again", granted, Verdict::Done)]).await;
    w.journaled().await;
    assert_eq!(w.forget(NOW, 100).await.unwrap().deleted, 2);
    assert!(!w.has("again").await && !w.has("fresh").await && w.has("broken").await);
}

#[tokio::test]
async fn the_reaper_forgets_and_the_history_stays_whole() {
    // One job a step: the time of its group in front of it must not use that up.
    let w = Servers::with("[reaper]\nkeep = \"1ms\"\ntick = \"100ms\"\nbatch = 1\n").await;
    let c = w.connect().await;
    let _worker = w.worker(&[], &[]);
    w.publish("default", "a", r#"{"type":"noop"}"#).await;
    w.drained(&c).await;
    assert!(c.store.record(&id("a")).await.unwrap().is_some(), "nobody forgets but the reaper");
    let _reaper = w.reaper(&[]);
    wait("the record is deleted", async || c.store.record(&id("a")).await.unwrap().is_none()).await;
    wait("the journal says so", async || w.history(&c).await.count("a", "deleted") == 1).await;
    w.history(&c).await.check().unwrap();
}
