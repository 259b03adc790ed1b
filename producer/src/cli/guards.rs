//! `surety guards`: what every guard holds now, and starting one over.

use clap::{Args, Subcommand};
use serde::Serialize;
use surety_common::{
    domain::{guard::GuardKind, text},
    guard_view::{GuardView, view},
    store::{GuardAct, GuardItem, ScopeState},
    wake::wake,
    watch::tell,
};

use super::{Context, failure::Failure};
use crate::render::Row;

/// Show what every guard holds now
///
/// A scope is a rule and one value of its template, such as `api: acme`. One that is idle is not listed: it holds nothing back.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  surety guards\n  surety guards --full\n  surety guards reset 'api: acme'"
)]
pub(super) struct GuardsArgs {
    #[command(subcommand)]
    act: Option<Act>,
    /// Only those that would keep a job waiting now
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Subcommand)]
enum Act {
    Reset(ResetArgs),
}

/// Start a guard over, as if it had never counted anything
///
/// Who waits for it is woken. Slots and locks are held by attempts and come free with them; they have nothing to reset.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety guards reset 'api: acme'")]
struct ResetArgs {
    /// The scope as `surety guards` shows it, or its hash (`--json`)
    scope: String,
    /// The kind, where two scopes are called the same
    #[arg(long)]
    kind: Option<String>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    guards: Vec<GuardView>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Reset {
    /// What was reset, as it was before.
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
        None => list(cx, args.full).await,
    }
}

async fn list(cx: &Context, only_full: bool) -> Result<(), Failure> {
    let scopes = cx.look().await?.store.scopes().await?;
    let guards: Vec<GuardView> = scopes.iter().map(view).filter(|v| v.is_full || !only_full).collect();
    let answer = Answer { guards };
    cx.screen.table(&answer, &answer.guards)?;
    if answer.guards.is_empty() {
        let n_rules = cx.settings.guard_rules.len();
        cx.screen.note(&format!("no guard holds anything back; this configuration has {n_rules} rules"));
    }
    Ok(())
}

/// The one scope that is meant.
fn find<'a>(scopes: &'a [ScopeState], args: &ResetArgs) -> Result<&'a ScopeState, Failure> {
    let is_meant = |s: &&ScopeState| {
        (s.scope.label == args.scope || s.scope.hash == args.scope)
            && args.kind.as_ref().is_none_or(|k| k == s.scope.kind.name())
    };
    let meant: Vec<&ScopeState> = scopes.iter().filter(is_meant).collect();
    match meant[..] {
        [one] => Ok(one),
        [] => {
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
    if let Some(kind) = &args.kind {
        let known = GuardKind::ALL.map(GuardKind::name);
        if !known.contains(&kind.as_str()) {
            return Err(Failure::input(format!("--kind: {kind:?} is none of {}", known.join(", "))));
        }
    }
    let c = cx.connect().await?;
    let scopes = c.store.scopes().await?;
    let found = find(&scopes, args)?;
    if found.scope.kind == GuardKind::Pause {
        let what = "is paused by a person: `surety pause --list` says why, `surety resume` ends it";
        return Err(Failure::no(format!("{:?} {what}", found.scope.label)));
    }
    if matches!(found.scope.kind, GuardKind::Concurrency | GuardKind::Lock) {
        return Err(Failure::no(format!(
            "{:?} is held by attempts ({}): it comes free when they end; `surety workers --attempts` lists them",
            found.scope.label,
            view(found).now
        )));
    }
    let item = GuardItem { act: GuardAct::Reset, member: "".into(), scopes: vec![0].into() };
    let hold_ms = u64::try_from(cx.settings.lease.ttl.as_millis()).unwrap_or(u64::MAX);
    let scope = [found.scope.clone()];
    let answer = c.store.guard(found.partition, None, hold_ms, &scope, &[item]).await?;
    let woken = answer.woken.len();
    tell(&c, &scope, &answer.watched, answer.now_ms).await;
    wake(&c, found.partition, hold_ms, &scope, answer.woken).await;
    c.broker.flush().await?;
    let answer = Reset { guard: view(found), woken };
    cx.screen.show(&answer, || {
        format!("{} {} starts over; {woken} jobs were woken", answer.guard.kind, answer.guard.scope)
    })
}
