//! What others than a worker do to a job: who wants it stopped, the reaper at a deadline, whoever told its requester.

use std::time::Duration;

use proptest::{prelude::*, test_runner::TestCaseError};
use surety_common::{
    domain::{Contract, Input, Refusal, Status, ids::SessionId},
    store::{DueAct, DueItem, DueReply, StopItem, StopReply, Telling, ToldItem, ToldReply, ops::Settled},
};

use super::{
    Case, LOST_LIMIT, id,
    promise::{OVERSTAY, Promise, RECEIPT_WITHIN_MS, Times},
    receipt,
};

impl Case {
    pub(super) async fn stop(
        &mut self,
        job: usize,
        session: usize,
        back: i8,
        is_repeated: bool,
    ) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        let s = self.sessions[session].clone();
        let epoch = known.epoch(back);
        let items = [StopItem { id: id(job).to_string(), epoch, data: r#"{"reason":"r"}"#.into() }];
        let a = self.call(is_repeated, async |st| st.ask_to_stop(0, &s, &items).await).await?;
        let reply = &a.results[0];
        let Some(state) = known.state.clone() else {
            prop_assert_eq!(reply, &StopReply::NoRecord);
            return Ok(());
        };
        let times = self.times();
        let k = &mut self.jobs[job];
        // As with every write of an attempt: an epoch names one, and the session must be its owner.
        let done = if known.owned_by(&s) {
            k.apply(job, &state, Input::AskToStop { epoch }, a.now_ms, times)
        } else {
            Err(Refusal::Fenced)
        };
        match (done, reply) {
            (Ok(()), StopReply::Asked { rev }) => prop_assert_eq!(*rev, k.state.as_ref().unwrap().rev),
            (Err(Refusal::Fenced), StopReply::NotRunning { status, epoch }) => {
                prop_assert_eq!((*status, *epoch), (state.status, state.epoch));
            }
            (want, got) => prop_assert!(false, "the machine says {want:?}, the script {got:?}"),
        }
        Ok(())
    }

    pub(super) async fn due(
        &mut self,
        job: usize,
        act: Option<DueAct>,
        is_late: bool,
        is_repeated: bool,
    ) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        let now = self.store.now_ms().await.unwrap();
        let judged = known.promise.judged(known.state.as_ref(), now);
        let is_right = act.is_none() && !is_late;
        let act = act.unwrap_or(judged);
        let rev = known.state.as_ref().map_or(0, |s| s.rev);
        let outcome = if act == DueAct::Overdue { Status::TimedOut } else { Status::Failed };
        let items = [DueItem {
            id: id(job),
            rev: if is_late { rev + 1 } else { rev },
            promise_ms: known.promise.by,
            act,
            receipt: receipt(job, known.generation(), outcome),
            data: r#"{"message":"m""#.into(),
            session: SessionId::new(&known.owner).ok(),
        }];
        let a = self.store.act_on_due(0, OVERSTAY, &items).await.unwrap();
        let mut now = a.now_ms;
        if is_repeated {
            let before = self.dump().await;
            self.store.repeat_last_call();
            let again = self.store.act_on_due(0, OVERSTAY, &items).await.unwrap();
            match act {
                // Moves what it moved before, if at all.
                DueAct::LookAgain(_) if again.results[0] != DueReply::NotApplied => now = again.now_ms,
                DueAct::LookAgain(_) | DueAct::Drop => {}
                // The first call has changed what was judged.
                _ => {
                    prop_assert_eq!(&again.results[0], &DueReply::NotApplied);
                    prop_assert_eq!(before, self.dump().await, "the repeated call wrote again");
                }
            }
        }
        let reply = &a.results[0];
        let is_applied = self.expect_due(job, act, is_late, now)?;
        if !is_applied {
            prop_assert_eq!(reply, &DueReply::NotApplied, "{:?} of {:?}", act, known);
            let is_early = matches!(act, DueAct::LookAgain(_));
            prop_assert!(
                !is_right || is_early,
                "what was rightly judged was not taken: {act:?} of {known:?}"
            );
            return Ok(());
        }
        let k = &self.jobs[job];
        let want = match &k.state {
            None => Settled {
                status: Status::Failed,
                ack_subject: String::new(),
                carrier: String::new(),
                generation: 1,
                rev: 0,
                epoch: 0,
            },
            Some(n) if act == DueAct::Drop => Settled {
                status: n.status,
                ack_subject: String::new(),
                carrier: String::new(),
                generation: 1,
                rev: 0,
                epoch: 0,
            },
            Some(n) => Settled {
                status: n.status,
                ack_subject: known.ack.clone(),
                carrier: known.carrier.clone(),
                generation: n.generation,
                rev: n.rev,
                epoch: n.epoch,
            },
        };
        prop_assert_eq!(reply, &DueReply::Applied(want), "{:?} of {:?}", act, known);
        Ok(())
    }

    /// What an act of a reaper does to the model; whether it does anything.
    fn expect_due(
        &mut self,
        job: usize,
        act: DueAct,
        is_late: bool,
        now: u64,
    ) -> Result<bool, TestCaseError> {
        let times = self.times();
        let k = &mut self.jobs[job];
        let Some(state) = k.state.clone() else { return Ok(act == DueAct::Drop) };
        let is_told = state.contract >= Contract::TerminalAcked;
        if act == DueAct::Drop {
            return Ok(state.status.is_terminal() && is_told);
        }
        let (runs, ended) = (state.status.is_running(), state.status.is_terminal());
        let is_open = !runs && !ended;
        let has_passed = k.promise.by > 0 && k.promise.by <= now;
        let is_untold = matches!(state.contract, Contract::Created | Contract::SlaMissed);
        let ms = |d: Duration| d.as_millis() as u64;
        let (by, deadline, finish_by) = (k.promise.by, k.promise.deadline, k.promise.finish_by);
        let mut take = |input, after| k.apply(job, &state, input, now, Times { after, ..times }).is_ok();
        Ok(!is_late
            && match act {
                DueAct::LookAgain(_) if ended => false,
                DueAct::LookAgain(d) if runs => {
                    k.promise.index = Some(now + ms(d));
                    true
                }
                DueAct::LookAgain(d) => {
                    (k.promise.by, k.promise.index) = (now + ms(d), None);
                    true
                }
                // Nothing in these sequences waits for its first start under a deadline.
                DueAct::Expired => false,
                DueAct::Overdue => is_open && finish_by <= now && take(Input::Overdue, 0),
                DueAct::Overstayed(d) => {
                    let at_ms = now + ms(d);
                    runs && deadline <= now && take(Input::Overstayed { at_ms, limit: LOST_LIMIT }, 0)
                }
                DueAct::Missed(d) => runs && by <= now && take(Input::Missed, ms(d)),
                DueAct::Tell(d) => {
                    let may =
                        has_passed && (runs && is_untold || state.contract == Contract::TerminalPending);
                    if may {
                        // The tries of a receipt are counted by those who tell.
                        let is_try = state.contract != Contract::TerminalPending;
                        k.promise = Promise {
                            by: now + ms(d),
                            told: k.promise.told + u32::from(is_try),
                            index: None,
                            ..k.promise.clone()
                        };
                    }
                    may
                }
                DueAct::Forgo => {
                    let may = runs && has_passed && state.contract == Contract::Created;
                    if may {
                        (k.promise.by, k.promise.index) = (0, None);
                    }
                    may
                }
                DueAct::Drop => false,
            })
    }

    pub(super) async fn told(
        &mut self,
        job: usize,
        what: Telling,
        is_late: bool,
        is_repeated: bool,
    ) -> Result<(), TestCaseError> {
        let known = self.jobs[job].clone();
        let generation = known.generation() - u32::from(is_late);
        let items = [ToldItem { id: id(job), generation, what, note: "no answer".into(), data: "{}".into() }];
        let a = self.call(is_repeated, async |st| st.told(0, &items).await).await?;
        let reply = &a.results[0];
        let Some(state) = known.state.clone() else {
            prop_assert_eq!(reply, &ToldReply::NoRecord);
            return Ok(());
        };
        let now = a.now_ms;
        let times = self.times();
        let k = &mut self.jobs[job];
        let mut take =
            |input, progress| k.apply(job, &state, input, now, Times { progress, ..times }).is_ok();
        let ms = |d: Duration| d.as_millis() as u64;
        let is_pending = state.contract == Contract::TerminalPending;
        let is_applied = !is_late
            && match what {
                Telling::Start { progress } => take(Input::Surfaced, ms(progress)),
                // The machine knows no promise: that a nudge was told before is the record's to know.
                Telling::Nudge => known.promise.by > 0 && take(Input::Nudged, 0),
                Telling::Receipt => take(Input::Delivered, 0),
                Telling::ReceiptGivenUp => take(Input::GivenUp, 0),
                Telling::ReceiptLater { after } => {
                    if is_pending {
                        k.promise.told += 1;
                        k.promise.by = now + ms(after) + RECEIPT_WITHIN_MS;
                    }
                    is_pending
                }
                Telling::StartFailed => {
                    let may = state.contract == Contract::Created && !state.status.is_terminal();
                    if may {
                        k.promise.index = None;
                    }
                    may
                }
            };
        let n = k.state.clone().unwrap();
        let want = if is_applied {
            ToldReply::Applied { contract: n.contract, rev: n.rev, tries: k.promise.told }
        } else {
            ToldReply::NotApplied { contract: n.contract }
        };
        prop_assert_eq!(reply, &want, "{:?} of {:?}", what, known);
        Ok(())
    }
}
