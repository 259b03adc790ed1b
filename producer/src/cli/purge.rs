//! `surety dlq purge`: dead letters that nobody needs any more.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use serde::Serialize;
use surety_common::{
    broker::purge::{Selection, Survey},
    clock::{format_span, iso, parse_span},
    domain::{JobId, QueueName, deadline::millis},
};

use super::{Context, confirm::Consent, failure::Failure};
use crate::render::facts;

/// Remove dead letters for good
///
/// Without an option that selects, all of them. What would go is shown first and asked about; where nobody can be asked,
/// it needs --yes (exit code 2). A job whose letter was removed cannot be replayed; its record and its journal stay.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety dlq purge --queue default --older-than 30d\n  \
                        surety dlq purge --id 01JD0000000000000000000000 --yes")]
pub(super) struct PurgeArgs {
    /// Of this queue only
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Buried longer ago than this only, such as 30d or 12h, by the clock of NATS
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,
    /// Of this job only, all its generations
    #[arg(long, value_name = "ID")]
    id: Option<JobId>,
    #[command(flatten)]
    consent: Consent,
}

/// A span, where `30d` is 30 times 24 hours.
fn age(text: &str) -> Result<Duration, String> {
    let days = text.trim().strip_suffix('d').and_then(|n| n.trim().parse::<u32>().ok());
    match days {
        Some(n) => Ok(Duration::from_secs(u64::from(n) * 24 * 3600)),
        None => parse_span(text).map_err(|e| format!("{e}, or 30d")),
    }
}

/// What is, or was, selected.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Selected<'a> {
    letters: u64,
    /// Of their messages.
    bytes: u64,
    oldest: Option<String>,
    newest: Option<String>,
    by_reason: &'a BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    older_than: Option<String>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Preview<'a> {
    would_purge: &'a Selected<'a>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Receipt<'a> {
    /// Letters that this command removed.
    purged: u64,
    selected: &'a Selected<'a>,
}

impl<'a> Selected<'a> {
    fn new(args: &'a PurgeArgs, s: &'a Survey) -> Self {
        Self {
            letters: s.letters,
            bytes: s.bytes,
            oldest: s.oldest_ms.and_then(iso),
            newest: s.newest_ms.and_then(iso),
            by_reason: &s.by_reason,
            queue: args.queue.as_ref().map(QueueName::as_str),
            id: args.id.as_ref().map(JobId::as_str),
            older_than: args.older_than.map(format_span),
        }
    }

    fn reasons(&self) -> String {
        let each = self.by_reason.iter().map(|(reason, n)| format!("{n} {reason}"));
        each.collect::<Vec<_>>().join(", ")
    }

    fn text(&self) -> String {
        facts(&[
            ("dead letters", Some(self.letters.to_string())),
            ("queue", Some(self.queue.unwrap_or("all").to_owned())),
            ("job", self.id.map(str::to_owned)),
            ("oldest", self.oldest.clone()),
            ("newest", self.newest.clone()),
            ("reasons", Some(self.reasons())),
            ("bytes", Some(self.bytes.to_string())),
        ])
    }
}

fn letters(n: u64) -> String {
    if n == 1 { "1 dead letter".into() } else { format!("{n} dead letters") }
}

pub(super) async fn run(cx: &Context, args: PurgeArgs) -> Result<(), Failure> {
    let client = cx.client().await?;
    let broker = client.broker();
    let before_ms = match args.older_than {
        None => None,
        // Burials are timed by the server's clock, so their age is measured with it too.
        Some(age) => Some(broker.now_ms().await?.saturating_sub(millis(age))),
    };
    let of = Selection { queue: args.queue.clone(), id: args.id.clone(), before_ms };
    let survey = broker.survey_letters(&of).await?;
    let selected = Selected::new(&args, &survey);
    if survey.letters > 0 && !args.consent.is_given() {
        cx.screen.show(&Preview { would_purge: &selected }, || selected.text())?;
        let would = format!("{} would be removed for good", letters(survey.letters));
        args.consent.to(cx.screen, &would).await?;
    }
    let purged = broker.purge_letters(&of, &survey).await?;
    cx.screen.show(&Receipt { purged, selected: &selected }, || match (purged, &selected.oldest) {
        (0, None) => "nothing to remove: no dead letter is selected".to_owned(),
        (n, oldest) => {
            let (from, to) = (oldest.as_deref().unwrap_or("?"), selected.newest.as_deref().unwrap_or("?"));
            format!("removed {} ({}), buried {from} to {to}", letters(n), selected.reasons())
        }
    })?;
    if purged < survey.letters {
        let rest = survey.letters - purged;
        cx.screen.note(&format!("{} had been replayed or removed by somebody else meanwhile", letters(rest)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_may_be_in_days() {
        assert_eq!(age("30d").unwrap().as_secs(), 30 * 86_400);
        assert_eq!(age("12h").unwrap().as_secs(), 12 * 3600);
        for bad in ["", "d", "-1d", "a month", "99999999999d"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }
}
