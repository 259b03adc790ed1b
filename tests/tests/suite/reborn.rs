//! An id is used again before the journal has the end of its first life: whoever deleted the record died with that in hand.

use std::{path::Path, time::Duration};

use redis::AsyncCommands;
use surety_common::{
    connect::Connected,
    domain::{Status, ids::SessionId},
    pace::Pace,
    store::{OutboxEntry, Verdict},
};
use surety_tests::{
    witness::{id, wait_logged},
    world::{World, wait},
};

use super::{
    redis_loss::{claim, flush, go_back, keep_copy},
    scripts::{FIRST, count_epochs, finish},
};

const PATIENCE: Pace = Pace::call(Duration::from_secs(5));

/// A store in which one job has ended, and is written step by step.
struct Lives<'a> {
    c: &'a Connected,
    session: SessionId,
}

impl<'a> Lives<'a> {
    async fn start(world: &World, c: &'a Connected) -> Self {
        count_epochs(&world.redis.url()).await;
        let session = SessionId::new("s").unwrap();
        c.store.open_session(0, &session, Duration::from_secs(3600), "{}").await.unwrap();
        Self { c, session }
    }

    async fn publish(&self, entries: &[OutboxEntry]) {
        self.c.relay.publish(0, entries, PATIENCE).await.unwrap();
        let ids: Vec<String> = entries.iter().map(|e| e.id.clone()).collect();
        self.c.store.trim(0, &ids).await.unwrap();
    }

    async fn begins(&self, job: &str) {
        let claimed = self.c.store.claim(0, &self.session, 1000, &[claim(job)]).await.unwrap();
        self.publish(&claimed.entries).await;
    }

    async fn ends(&self, job: &str) {
        let item = finish(job, 1, Verdict::Done);
        let finished = self.c.store.finish(0, &self.session, &[item]).await.unwrap();
        self.publish(&finished.entries).await;
    }

    /// Deletes what has ended. Gives what would say so, still to be published.
    async fn forget(&self) -> Vec<OutboxEntry> {
        // No retention is so quick that end and deletion are of one millisecond.
        wait("the record to be deleted", async || {
            let head = self.c.store.ended(0, 100).await.unwrap();
            let done = self.c.store.forget(0, Duration::from_millis(2), &head).await.unwrap();
            done.results[0].is_some_and(|f| f.deleted == 1)
        })
        .await;
        self.c.store.outbox(0, "", u64::MAX >> 1, 100).await.unwrap()
    }

    /// A whole life, deleted, and the beginning of the next one.
    async fn twice(&self, job: &str) -> Vec<OutboxEntry> {
        self.begins(job).await;
        self.ends(job).await;
        let deleted = self.forget().await;
        assert_eq!(deleted.len(), 1, "{deleted:?}");
        self.begins(job).await;
        deleted
    }
}

/// Whether a file below a folder has this text.
fn has(dir: &Path, text: &str) -> bool {
    std::fs::read_dir(dir).unwrap().flatten().any(|e| match e.file_type().unwrap().is_dir() {
        true => has(&e.path(), text),
        false => std::fs::read(e.path()).unwrap().windows(text.len()).any(|w| w == text.as_bytes()),
    })
}

// Shows: P1, P7
#[tokio::test]
async fn a_rebuilt_store_knows_the_new_life_whenever_the_end_of_the_old_one_comes() {
    let world = World::start().await;
    let c = world.connect().await;
    let lives = Lives::start(&world, &c).await;
    let early = lives.twice("early").await;
    lives.publish(&early).await;
    let late = lives.twice("late").await;
    flush(&world, 0).await;
    let mut reaper = world.reaper(&[]);
    // What came until then is read; the end of one life is published by somebody who had it in hand.
    reaper.logged("what came late is waited for").await;
    assert_eq!(c.store.record(&id("late")).await.unwrap().map(|r| r.status), Some(Status::Done));
    assert_eq!(c.store.record(&id("early")).await.unwrap().map(|r| r.status), Some(Status::Running));
    // Their data set is gone; the broker has it before the barrier, so it counts.
    let entry = surety_common::broker::journal::Entry {
        message_id: format!("{}-0-{}", late[0].origin.incarnation, late[0].id),
        suffix: &late[0].suffix,
        body: &late[0].body,
        ended: &late[0].ended,
        commit: late[0].commit,
    };
    c.broker.journal_now(&c.publisher, &entry, PATIENCE).await.unwrap();
    reaper.logged("redis is whole again").await;
    // The attempts of both new lives are lost as their session is: they are open, with their own revisions.
    for job in ["early", "late"] {
        let r = world.status(&c, job, Status::RetryWait).await;
        assert_eq!((r.rev, r.epoch, r.charged), (2, FIRST, 1), "{job}");
    }
    let journaled = async || {
        let h = world.history(&c).await;
        h.count("early", "lost") + h.count("late", "lost") == 2
    };
    wait_logged(&world, "both to be journaled", journaled).await;
    world.history(&c).await.check().unwrap();
}

// Shows: P1
#[tokio::test]
async fn an_older_copy_that_knows_the_old_life_only_is_no_reason_to_forget_the_new_one() {
    let mut world = World::start().await;
    let c = world.connect().await;
    let lives = Lives::start(&world, &c).await;
    lives.begins("a").await;
    lives.ends("a").await;
    // Redis writes its file a moment later.
    () = world.redis.plain(0).await.set("marker", "written-before-the-copy").await.unwrap();
    wait("the file of Redis to have all that", async || has(&keep_copy(&world), "written-before-the-copy"))
        .await;
    let copy = keep_copy(&world);
    let deleted = lives.forget().await;
    lives.publish(&deleted).await;
    lives.begins("a").await;
    go_back(&mut world, &copy).await;
    let there = world.status(&c, "a", Status::Done).await;
    assert_eq!(there.rev, 2, "as high as what it has to make room for, or higher");
    let mut reaper = world.reaper(&[]);
    reaper.logged("redis is whole again").await;
    // The copy has its session, too, which lives.
    let r = world.status(&c, "a", Status::Running).await;
    assert_eq!((r.session.as_str(), r.ended_ms), ("s", 0));
    world.history(&c).await.check().unwrap();
}
