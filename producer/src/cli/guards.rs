//! `surety guards`: what every guard holds now, and starting one over.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;
use surety_common::{
    connect::Connected,
    domain::{guard::GuardKind, pause::Pauses, text},
    guard_view::{GuardView, view, view_with},
    store::{GuardAct, GuardItem, ScopeAt, ScopeState, Store, StoreError},
    wake::wake,
    watch::tell,
};

use super::{Context, failure::Failure};
use crate::render::Row;

/// Show what every guard holds now
///
/// A scope is a rule and one value of its template, such as `api: acme`. One that is idle is not listed: it holds nothing back.
/// Kinds: `rate`, `concurrency`, `lock`, `pause` (the line of who is paused), `crash_loop`, `breaker`, `loop` (one for each root
/// whose jobs enqueued others; listed when it is full, and with `--kind loop`). A breaker or crash loop is `closed` (everybody
/// starts), `open` (nobody does, until the time that is shown) or `half-open` (a few probes do, and the first that ends decides).
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  surety guards
  surety guards --full --limit 1000
  surety guards --kind breaker
  surety guards reset 'api: acme'")]
pub(super) struct GuardsArgs {
    #[command(subcommand)]
    act: Option<Act>,
    /// Only those that would keep a job waiting now, or that stop it
    #[arg(long)]
    full: bool,
    /// Only guards of this kind
    #[arg(long, value_parser = kind)]
    kind: Option<GuardKind>,
    /// Show so many at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

#[derive(Debug, Subcommand)]
enum Act {
    Reset(ResetArgs),
}

/// Start a guard over, as if it had never counted anything
///
/// A rate limit has its whole burst again, first for those who were promised a moment: they are woken, in the order of their moments,
/// and judged by the rule in force, before newcomers; where that was removed from the settings, they start. A breaker or crash loop
/// is closed, and all that it counted is forgotten; who waits is woken. The window of a loop guard begins anew. Who stands in the
/// line of a concurrency limit is woken and asks again: where its rule was removed from the settings, it starts; else it is back in
/// its place. Slots and locks that attempts hold come free with them.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety guards reset 'api: acme'")]
struct ResetArgs {
    /// The scope as `surety guards` shows it, or its hash (`--json`)
    scope: String,
    /// The kind, where two scopes are called the same
    #[arg(long, value_parser = kind)]
    kind: Option<GuardKind>,
}

/// The kind of this name.
fn kind(name: &str) -> Result<GuardKind, String> {
    let found = GuardKind::ALL.into_iter().find(|k| k.name() == name);
    found.ok_or_else(|| format!("none of {}", GuardKind::ALL.map(GuardKind::name).join(", ")))
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    guards: Vec<GuardView>,
    /// Why nothing can be relied on now: the store is closed, being rebuilt from the broker, and what it shows is not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    store_closed: Option<String>,
    /// Of those that were asked for, how many are not shown (`--limit`).
    more: usize,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Reset {
    /// What was reset, as it is now.
    guard: GuardView,
    /// Jobs that were woken.
    woken: usize,
}

impl Row for GuardView {
    const HEADS: &'static [&'static str] = &["KIND", "SCOPE", "LIMIT", "NOW", "WAITING", "CLEARS"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.kind.to_owned(),
            self.scope.clone(),
            self.limit.clone(),
            self.now.clone(),
            self.waiting.to_string(),
            self.clears_at.clone().unwrap_or_else(|| "-".into()),
        ]
    }
}

pub(super) async fn run(cx: &Context, args: GuardsArgs) -> Result<(), Failure> {
    match args.act {
        Some(Act::Reset(a)) => reset(cx, &a).await,
        None => list(cx, &args).await,
    }
}

async fn list(cx: &Context, args: &GuardsArgs) -> Result<(), Failure> {
    let Connected { store, broker, .. } = cx.look().await?;
    let store_closed = closed(&store).await?;
    let mut scopes = store.scopes_in_use().await?;
    let n_in_use = scopes.len();
    scopes.retain(|s| args.kind.is_none_or(|k| k == s.scope.kind));
    // Most roots are of no interest: they are listed where they are asked for, or hold something back.
    let is_shown_when_full =
        |s: &ScopeAt| args.full || (s.scope.kind == GuardKind::Loop && args.kind.is_none());
    let (judged, mut shown): (Vec<_>, Vec<_>) = scopes.into_iter().partition(is_shown_when_full);
    for state in store.scope_states(&judged).await?.into_iter().filter(|s| view(s).is_full) {
        shown.push(ScopeAt { partition: state.partition, scope: state.scope });
    }
    shown.sort_by(|a, b| (a.scope.kind, &a.scope.label).cmp(&(b.scope.kind, &b.scope.label)));
    let more = shown.len().saturating_sub(args.limit);
    shown.truncate(args.limit);
    let states = store.scope_states(&shown).await?;
    // What a pause is called, and when it ends, is known to the broker alone.
    let pauses = if states.iter().any(|s| s.scope.kind == GuardKind::Pause) {
        broker.pauses().await?.pauses
    } else {
        Pauses::default()
    };
    let guards = states.iter().map(|s| view_with(s, &pauses)).collect();
    let answer = Answer { guards, store_closed, more };
    cx.screen.table(&answer, &answer.guards)?;
    if let Some(why) = &answer.store_closed {
        cx.screen.note(&incomplete(why));
    }
    if more > 0 {
        cx.screen.note(&format!("{more} more; --limit shows them, --kind and --full choose"));
    } else if answer.guards.is_empty() && answer.store_closed.is_none() {
        cx.screen.note(&nothing(args, n_in_use));
    }
    Ok(())
}

/// Why the store takes no claims now, if it does not: what it shows is not all then.
pub(super) async fn closed(store: &Store) -> Result<Option<String>, StoreError> {
    match store.check().await {
        Ok(()) => Ok(None),
        Err(e @ (StoreError::Rebuilding | StoreError::OtherStore(_))) => Ok(Some(e.to_string())),
        Err(e) => Err(e),
    }
}

/// The same for people.
pub(super) fn incomplete(why: &str) -> String {
    format!("this is not all: {why}; nothing starts until the store is complete again")
}

/// What it means that nothing is listed.
fn nothing(args: &GuardsArgs, n_in_use: usize) -> String {
    let of_kind = args.kind.map_or_else(String::new, |k| format!("{} ", k.name()));
    match (args.full, n_in_use) {
        (_, 0) => "no guard is in use: nothing is held, counted or waited for".to_owned(),
        (true, n) => format!("no {of_kind}guard would keep a job waiting now; {n} scopes are in use"),
        (false, n) => format!("no {of_kind}guard to be listed; {n} scopes are in use"),
    }
}

/// The one scope that is meant.
fn find<'a>(scopes: &'a [ScopeAt], args: &ResetArgs) -> Result<&'a ScopeAt, Failure> {
    let is_meant = |s: &&ScopeAt| {
        (s.scope.label == args.scope || s.scope.hash == args.scope)
            && args.kind.is_none_or(|k| k == s.scope.kind)
    };
    let meant: Vec<&ScopeAt> = scopes.iter().filter(is_meant).collect();
    match meant[..] {
        [one] => Ok(one),
        [] => {
            if let Some(other) =
                scopes.iter().find(|s| s.scope.label == args.scope || s.scope.hash == args.scope)
            {
                let (is, asked) = (other.scope.kind.name(), args.kind.map_or("", GuardKind::name));
                return Err(Failure::no(format!(
                    "{:?} is kept by a guard of kind {is}, and not {asked}",
                    args.scope
                )));
            }
            let near = text::nearest(&args.scope, scopes.iter().map(|s| s.scope.label.as_str()));
            let hint = near.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
            Err(Failure::no(format!("no guard is kept for {:?} now{hint}", args.scope)))
        }
        _ => {
            let kinds: Vec<_> = meant.iter().map(|s| s.scope.kind.name()).collect();
            Err(Failure::input(format!(
                "{:?} is kept by several guards: {}; say which with --kind",
                args.scope,
                kinds.join(", ")
            )))
        }
    }
}

async fn reset(cx: &Context, args: &ResetArgs) -> Result<(), Failure> {
    let c = cx.connect().await?;
    let scopes = c.store.scopes_in_use().await?;
    let at = find(&scopes, args)?;
    let label = &at.scope.label;
    if at.scope.kind == GuardKind::Pause {
        let what = "is paused by a person: `surety pause --list` says why, `surety resume` ends it";
        return Err(Failure::no(format!("{label:?} {what}")));
    }
    if at.scope.kind == GuardKind::Lock {
        let what = "is a lock: it comes free when its attempt ends; `surety locks release` takes it away";
        return Err(Failure::no(format!("{label:?} {what}")));
    }
    let Some(found) = c.store.scope_state(at.partition, &at.scope.hash).await? else {
        return Err(Failure::no(format!("no guard is kept for {label:?} any more")));
    };
    let hold_ms = u64::try_from(cx.settings.lease.ttl.as_millis()).unwrap_or(u64::MAX);
    let scope = [found.scope.clone()];
    // Who stands in line for slots, or sleeps for a moment, is let go a part at a time; of other kinds a reaper goes on with those
    // who are left.
    let in_line = match found.scope.kind {
        GuardKind::Concurrency => found.waiting,
        GuardKind::Rate => u64::MAX,
        _ => 0,
    };
    let (mut act, mut woken) = (GuardAct::Reset, 0);
    loop {
        let item = GuardItem { act: act.clone(), member: "".into(), scopes: vec![0].into() };
        let answer = c.store.guard(found.partition, None, hold_ms, &scope, &[item]).await?;
        let n = answer.woken.len();
        woken += n;
        tell(&c, &scope, &answer.watched, answer.now_ms).await;
        wake(&c, found.partition, hold_ms, &scope, answer.woken).await;
        // Those who asked again and stand in line again are not woken twice.
        if n == 0 || woken as u64 >= in_line {
            break;
        }
        if found.scope.kind == GuardKind::Rate {
            // What started since was counted: it does not start over with each part.
            act = GuardAct::Tend { session: "".into() };
        }
    }
    c.broker.flush().await?;
    // One that holds nothing any more is not kept: it is shown with nothing in it.
    let idle = ScopeState { fields: BTreeMap::new(), held: 0, waiting: 0, repeats: 0, ..found.clone() };
    let after = c.store.scope_state(found.partition, &found.scope.hash).await?.unwrap_or(idle);
    let answer = Reset { guard: view(&after), woken };
    cx.screen.show(&answer, || said(&answer))
}

fn said(a: &Reset) -> String {
    let (kind, scope, woken) = (a.guard.kind, &a.guard.scope, a.woken);
    if kind == GuardKind::Concurrency.name() {
        return format!(
            "{kind} {scope}: {woken} jobs were woken and ask again; what is held stays ({})",
            a.guard.now
        );
    }
    format!("{kind} {scope} starts over; {woken} jobs were woken")
}
