//! Decoding of the scripts' results: arrays that begin with a number, which says what follows.

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use super::{
    deadlines::{DueReply, StopReply, ToldReply},
    defers::DeferReply,
    guards::{GuardReply, Turned, Watched, Woken},
    ops::{
        ClaimReply, Ended, FinishReply, Grant, LostReply, ProgressReply, ReplayReply, SettleReply, Settled,
    },
    waiting::WaitingReply,
};
use crate::domain::{Contract, Status};

macro_rules! tagged {
    ($type:ty, $what:literal, |$seq:ident| { $($tag:literal => $make:expr),+ $(,)? }) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Tagged;
                impl<'de> Visitor<'de> for Tagged {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_seq<A: SeqAccess<'de>>(self, mut $seq: A) -> Result<$type, A::Error> {
                        let tag: u8 = take(&mut $seq)?;
                        match tag {
                            $($tag => Ok($make),)+
                            other => Err(de::Error::custom(format!("{}: unknown code {other}", $what))),
                        }
                    }
                }
                d.deserialize_seq(Tagged)
            }
        }
    };
}

fn take<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(seq: &mut A) -> Result<T, A::Error> {
    seq.next_element()?.ok_or_else(|| de::Error::custom("reply is too short"))
}

fn status<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Status, A::Error> {
    let code: u8 = take(seq)?;
    Status::from_code(code).ok_or_else(|| de::Error::custom(format!("status {code} is unknown")))
}

fn ended<'de, A: SeqAccess<'de>>(seq: &mut A, is_journaled: bool) -> Result<Ended, A::Error> {
    Ok(Ended {
        is_journaled,
        status: status(seq)?,
        generation: take(seq)?,
        epoch: take(seq)?,
        code: take(seq)?,
    })
}

tagged!(ClaimReply, "claim reply", |s| {
    0 => ClaimReply::Granted(Grant {
        epoch: take(&mut s)?,
        attempt: take(&mut s)?,
        charged: take(&mut s)?,
        generation: take(&mut s)?,
        started_ms: take(&mut s)?,
        rev: take(&mut s)?,
        start_failures: take(&mut s)?,
        limit_ms: take(&mut s)?,
    }),
    1 => ClaimReply::LiveOwner { lease_ms: take(&mut s)? },
    2 => ClaimReply::NotDue { due_in_ms: take(&mut s)? },
    3 => ClaimReply::SecondCarrier { recorded: take(&mut s)? },
    4 => ClaimReply::Ended(ended(&mut s, true)?),
    5 => ClaimReply::Ended(ended(&mut s, false)?),
    6 => ClaimReply::StaleGeneration,
    7 => ClaimReply::Expired,
    8 => ClaimReply::Overdue,
    9 => ClaimReply::AskFirst { for_ms: take(&mut s)? },
});

tagged!(FinishReply, "finish reply", |s| {
    0 => FinishReply::Applied { status: status(&mut s)?, rev: take(&mut s)? },
    1 => FinishReply::Fenced { status: status(&mut s)?, epoch: take(&mut s)? },
    2 => FinishReply::NoRecord,
    3 => FinishReply::BudgetSpent,
});

tagged!(LostReply, "lost reply", |s| {
    0 => LostReply::Applied(Settled {
        status: status(&mut s)?,
        ack_subject: take(&mut s)?,
        carrier: take(&mut s)?,
        generation: take(&mut s)?,
        rev: take(&mut s)?,
        epoch: 0,
    }),
    1 => LostReply::NotApplied,
});

tagged!(ProgressReply, "progress reply", |s| {
    0 => ProgressReply::Journaled { rev: take(&mut s)? },
    1 => ProgressReply::Fenced,
});

tagged!(SettleReply, "settle reply", |s| {
    0 => SettleReply::Applied(Settled {
        status: status(&mut s)?,
        ack_subject: take(&mut s)?,
        carrier: take(&mut s)?,
        generation: take(&mut s)?,
        rev: take(&mut s)?,
        epoch: take(&mut s)?,
    }),
    1 => SettleReply::Running { status: status(&mut s)? },
    2 => SettleReply::Ended(ended(&mut s, true)?),
});

tagged!(DueReply, "due reply", |s| {
    0 => DueReply::Applied(Settled {
        status: status(&mut s)?,
        ack_subject: take(&mut s)?,
        carrier: take(&mut s)?,
        generation: take(&mut s)?,
        rev: take(&mut s)?,
        epoch: take(&mut s)?,
    }),
    1 => DueReply::NotApplied,
});

fn contract<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Contract, A::Error> {
    let code: u8 = take(seq)?;
    Contract::from_code(code).ok_or_else(|| de::Error::custom(format!("contract {code} is unknown")))
}

tagged!(ToldReply, "told reply", |s| {
    0 => ToldReply::Applied { contract: contract(&mut s)?, rev: take(&mut s)?, tries: take(&mut s)? },
    1 => ToldReply::NotApplied { contract: contract(&mut s)? },
    2 => ToldReply::NoRecord,
});

tagged!(StopReply, "stop reply", |s| {
    0 => StopReply::Asked { rev: take(&mut s)? },
    1 => StopReply::NotRunning { status: status(&mut s)?, epoch: take(&mut s)? },
    2 => StopReply::NoRecord,
});

tagged!(WaitingReply, "waiting reply", |s| {
    0 => WaitingReply::Registered { generation: take(&mut s)? },
    1 => WaitingReply::Known { carrier: take(&mut s)? },
    2 => WaitingReply::Ended(ended(&mut s, true)?),
    3 => WaitingReply::Ended(ended(&mut s, false)?),
    4 => WaitingReply::StaleGeneration,
});

tagged!(DeferReply, "defer reply", |s| {
    0 => DeferReply::Deferred { rev: take(&mut s)? },
    1 => DeferReply::LiveOwner { lease_ms: take(&mut s)? },
    2 => DeferReply::SecondCarrier { recorded: take(&mut s)? },
    3 => DeferReply::Ended(ended(&mut s, true)?),
    4 => DeferReply::Ended(ended(&mut s, false)?),
    5 => DeferReply::StaleGeneration,
    6 => DeferReply::Expired,
    7 => DeferReply::Overdue,
    8 => DeferReply::NotDue { due_in_ms: take(&mut s)? },
});

fn rest<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(seq: &mut A) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(one) = seq.next_element()? {
        all.push(one);
    }
    Ok(all)
}

// Scopes are counted from 1 in Lua.
fn scope<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<usize, A::Error> {
    let place: usize = take(seq)?;
    place.checked_sub(1).ok_or_else(|| de::Error::custom("scope 0 is none"))
}

tagged!(GuardReply, "guard reply", |s| {
    0 => GuardReply::Passes(rest(&mut s)?),
    1 => GuardReply::WaitsUntil { scope: scope(&mut s)?, at_ms: take(&mut s)? },
    2 => GuardReply::WaitsInLine { scope: scope(&mut s)?, before: take(&mut s)? },
    3 => GuardReply::Stopped { scope: scope(&mut s)?, count: take(&mut s)?, limit: take(&mut s)? },
    4 => GuardReply::NotYet,
    5 => GuardReply::Renewed(rest(&mut s)?),
    6 => GuardReply::Adopted(rest(&mut s)?),
    7 => GuardReply::Tended,
    8 => GuardReply::Turn(take::<A, u8>(&mut s)? == 1),
    9 => GuardReply::Wake(Woken { scope: scope(&mut s)?, member: take(&mut s)?, ack_subject: take(&mut s)? }),
    10 => GuardReply::Watch(Watched { scope: scope(&mut s)?, until_ms: take(&mut s)? }),
    11 => GuardReply::Turned(Turned { scope: scope(&mut s)?, level: take(&mut s)?, until_ms: take(&mut s)? }),
});

tagged!(ReplayReply, "replay reply", |s| {
    0 => ReplayReply::Queued { generation: take(&mut s)?, rev: take(&mut s)? },
    1 => ReplayReply::Open { status: status(&mut s)? },
    2 => ReplayReply::NoRecord,
});
