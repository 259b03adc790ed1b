//! A contract that stands, asked for again: the claim of another attempt brings the terms anew, and keeps the state.

use std::time::Duration;

use surety_common::{
    domain::{Contract, Requester},
    store::{
        ClaimItem, ClaimReply, DueAct, DueItem, FinishReply, ProgressItem, Record, Telling, ToldItem, Verdict,
    },
};

use super::scripts::{BASE, World, claim, epoch, finish, id};

/// A claim by these terms.
fn terms<'a>(who: &'a Requester, summary: &'static str, progress_ms: u32) -> ClaimItem<'a> {
    ClaimItem { requester: who, summary: summary.into(), progress_ms, ..claim("a") }
}

async fn told(w: &World, what: Telling) {
    let item = ToldItem { id: id("a"), generation: 1, what, note: String::new(), data: "{}".into() };
    w.store.told(0, &[item]).await.unwrap();
}

async fn record(w: &World) -> Record {
    w.store.record(&id("a")).await.unwrap().unwrap()
}

/// Brings a job to a state of its contract. The attempt of an open one has failed, so that it can be claimed again.
async fn brought_to(w: &World, contract: Contract, who: &Requester) {
    let first = terms(who, "old", u32::from(contract != Contract::SlaMissed) * 60_000);
    let e = epoch(&w.claim(&[first]).await[0]);
    if contract != Contract::Created {
        let progress = Duration::from_millis(u64::from(contract != Contract::SlaMissed) * 60_000);
        told(w, Telling::Start { progress }).await;
    }
    match contract {
        Contract::Progressing => {
            let item = ProgressItem {
                id: "a".into(),
                epoch: BASE + e,
                kind: "progress",
                data: "{}".into(),
                progress_ms: 60_000,
                print: "p".into(),
            };
            w.store.progress(0, &w.session, &[item]).await.unwrap();
        }
        Contract::SlaMissed => {
            let r = record(w).await;
            let item = DueItem {
                id: id("a"),
                rev: r.rev,
                promise_ms: r.promise_ms,
                act: DueAct::Missed(Duration::from_secs(60)),
                receipt: "{".into(),
                data: "{".into(),
                session: Some(w.session.clone()),
            };
            w.store.act_on_due(0, Duration::from_secs(60), &[item]).await.unwrap();
            told(w, Telling::Nudge).await;
        }
        _ => {}
    }
    let is_open = contract < Contract::TerminalPending;
    let again = Verdict::Retry { code: surety_common::domain::ErrorCode::Signal, delay: Duration::ZERO };
    let verdict = if is_open { again } else { Verdict::Done };
    let ended = w.finish(&[finish("a", e, verdict)]).await;
    assert!(matches!(ended[0], FinishReply::Applied { .. }), "{ended:?}");
    match contract {
        Contract::TerminalAcked => told(w, Telling::Receipt).await,
        Contract::TerminalFailed => told(w, Telling::ReceiptGivenUp).await,
        _ => {}
    }
    assert_eq!(record(w).await.contract, contract);
}

// Shows: C-03
#[tokio::test]
async fn asking_again_renews_the_terms_and_keeps_the_state() {
    let (old, new) = (Requester::new("old", true).unwrap(), Requester::new("new", true).unwrap());
    for contract in Contract::ALL {
        let w = World::start().await;
        brought_to(&w, contract, &old).await;
        let before = record(&w).await;
        let reply = w.claim(&[terms(&new, "new", 30_000)]).await;
        let after = record(&w).await;
        if contract >= Contract::TerminalPending {
            assert!(matches!(reply[0], ClaimReply::Ended(_)), "{contract:?}: {reply:?}");
            // To the byte: what a record holds is all in here.
            assert_eq!(after, before, "{contract:?}");
            continue;
        }
        assert!(matches!(reply[0], ClaimReply::Granted(_)), "{contract:?}: {reply:?}");
        assert_eq!(after.contract, contract);
        assert_eq!((after.summary.as_str(), after.notify.as_str()), ("new", &*new.to_json()));
        // The terms begin with this attempt, and a nudge that was told is none of it.
        let promised = if contract == Contract::Created { 60_000 } else { 30_000 };
        assert_eq!((after.promise_ms, after.told), (after.started_ms + promised, 0), "{contract:?}");
        assert!(after.deadline_ms > before.deadline_ms, "{contract:?}");
    }
}
