//! `surety provision` and `surety config`.

use clap::Args;
use serde::Serialize;
use surety_common::{config::GuardRule, connect};

use super::{Context, failure::Failure};

/// Make the streams and consumers that the settings declare
///
/// Safe to repeat: a second run changes nothing. Queues that exist and are no longer declared are kept, with what waits
/// in them. Differences that would lose or move data are reported and left alone (exit code 1).
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety provision --config surety.toml")]
pub(super) struct ProvisionArgs {}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Report {
    changed: Vec<String>,
    refused: Vec<String>,
}

pub(super) async fn run(cx: &Context, _: ProvisionArgs) -> Result<(), Failure> {
    let (_, done) = connect::provision(&cx.settings, "surety-provision").await?;
    let report = Report { changed: done.changed, refused: done.refused };
    cx.screen.show(&report, || {
        if report.changed.is_empty() { "nothing to do".to_owned() } else { report.changed.join("\n") }
    })?;
    if report.refused.is_empty() {
        return Ok(());
    }
    Err(Failure::no(format!("left alone, because a person must decide:\n  {}", report.refused.join("\n  "))))
}

/// Print the settings in effect, passwords masked
#[derive(Debug, Args)]
#[command(
    after_help = "Checks them too: every problem is told, with exit code 78. Workers and reapers read their file again when it\nchanges, and on SIGHUP; docs/config.md marks which settings they take without a restart.\n\nExample:\n  surety config --json\n  surety --config new.toml config"
)]
pub(super) struct ConfigArgs {}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Effective {
    file: Option<String>,
    settings: serde_json::Map<String, serde_json::Value>,
    handlers: Vec<String>,
    guards: Vec<Rule>,
}

/// A rule of `[guards.<kind>.<name>]`, with what it takes by default.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Rule {
    kind: &'static str,
    name: String,
    /// For what it is kept.
    scope: String,
    /// The types that it is for; empty: all.
    types: Vec<String>,
    /// The queues that it is for; empty: all.
    queues: Vec<String>,
    /// What it allows, as `surety guards` says it.
    limit: String,
}

impl Rule {
    fn of(r: &GuardRule) -> Self {
        Self {
            kind: r.kind().name(),
            name: r.name.clone(),
            scope: r.scope.to_string(),
            types: r.types.iter().map(ToString::to_string).collect(),
            queues: r.queues.iter().map(ToString::to_string).collect(),
            limit: r.text(),
        }
    }

    /// `guards.rate.api = one every 600ms, 10 at once; scope {key}; types a, b`.
    fn line(&self) -> String {
        let Self { kind, name, scope, limit, .. } = self;
        let only = |what: &str, names: &[String]| match names {
            [] => String::new(),
            _ => format!("; {what} {}", names.join(", ")),
        };
        let (types, queues) = (only("types", &self.types), only("queues", &self.queues));
        format!("guards.{kind}.{name} = {limit}; scope {scope}{types}{queues}")
    }
}

pub(super) fn config(cx: &Context, _: ConfigArgs) -> Result<(), Failure> {
    let values = cx.settings.values();
    let mut settings = serde_json::Map::new();
    for (section, key, value) in &values {
        settings.insert(format!("{section}.{key}"), value.clone().into());
    }
    let effective = Effective {
        file: cx.file.as_ref().map(|f| f.display().to_string()),
        settings,
        handlers: cx.settings.handlers.keys().cloned().collect(),
        guards: cx.settings.guard_rules.iter().map(Rule::of).collect(),
    };
    cx.screen.show(&effective, || {
        let from = effective.file.as_deref().unwrap_or("none, defaults only");
        let lines = values.iter().map(|(s, k, v)| format!("{s}.{k} = {v}"));
        let handlers = effective.handlers.iter().map(|h| format!("handlers.{h}"));
        let guards = effective.guards.iter().map(Rule::line);
        let first = std::iter::once(format!("# file: {from}"));
        first.chain(lines).chain(guards).chain(handlers).collect::<Vec<_>>().join("\n")
    })
}
