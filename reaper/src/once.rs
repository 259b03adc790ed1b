//! One pass of every rule, for scripts and for people who want to know what a reaper would do.

use std::io::{self, Write};

use serde::Serialize;
use surety_common::{
    config::Settings,
    connect::{ConnectError, connect, look},
    doctor::Role,
};

use crate::{
    rule::{Context, Rule, Verdict},
    rules,
    service::STEP_LIMIT,
};

/// How a pass goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// Only tells what it would do; writes nothing, and takes nothing.
    pub is_dry: bool,
    /// One JSON object in a line for each rule that acted, or for each verdict.
    pub is_json: bool,
}

/// Why a pass did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("stdout: {0}")]
    Output(#[from] io::Error),
}

/// A verdict with its rule.
#[derive(Serialize)]
struct Told<'a> {
    rule: &'static str,
    #[serde(flatten)]
    verdict: &'a Verdict,
}

/// What a rule did.
#[derive(Serialize)]
struct Acted {
    rule: &'static str,
    acted: usize,
}

/// Goes through every rule once, and tells on `out` what was done, or would be. Returns the number of rules that failed; what the
/// others did stays.
pub async fn once(settings: Settings, pass: Pass, out: &mut (impl Write + Send)) -> Result<usize, PassError> {
    let c = if pass.is_dry {
        look(&settings, "surety-reaper").await?
    } else {
        connect(&settings, "surety-reaper", Role::Reaper).await?
    };
    let batch = usize::try_from(settings.reaper.batch.0).unwrap_or(100);
    let x = Context { c, settings: settings.into(), batch };
    let mut failed = 0;
    for rule in rules::all() {
        let is_well =
            if pass.is_dry { tell(&x, &*rule, pass, out).await? } else { act(&x, &*rule, pass, out).await? };
        failed += usize::from(!is_well);
    }
    Ok(failed)
}

/// Does what is there to do, to its end. `false`: a step failed.
async fn act(x: &Context, rule: &dyn Rule, pass: Pass, out: &mut (impl Write + Send)) -> io::Result<bool> {
    let mut acted = 0;
    let is_well = loop {
        match tokio::time::timeout(rule.limit(), rule.step(x)).await {
            Ok(Ok(done)) => {
                acted += done.acted;
                if !done.goes_on() {
                    break true;
                }
            }
            Ok(Err(error)) => {
                tracing::error!(rule = rule.name(), %error, "rule failed");
                break false;
            }
            Err(_) => {
                tracing::error!(rule = rule.name(), "step timed out");
                break false;
            }
        }
    };
    let told = Acted { rule: rule.name(), acted };
    if pass.is_json {
        writeln!(out, "{}", serde_json::to_string(&told)?)?;
    } else {
        writeln!(out, "{:<18} {}", told.rule, told.acted)?;
    }
    Ok(is_well)
}

/// Tells what the rule would do. `false`: it could not be found out.
async fn tell(x: &Context, rule: &dyn Rule, pass: Pass, out: &mut (impl Write + Send)) -> io::Result<bool> {
    let verdicts = match tokio::time::timeout(STEP_LIMIT, rule.look(x)).await {
        Ok(Ok(verdicts)) => verdicts,
        Ok(Err(error)) => {
            tracing::error!(rule = rule.name(), %error, "rule failed");
            return Ok(false);
        }
        Err(_) => {
            tracing::error!(rule = rule.name(), "look timed out");
            return Ok(false);
        }
    };
    for v in &verdicts {
        if pass.is_json {
            writeln!(out, "{}", serde_json::to_string(&Told { rule: rule.name(), verdict: v })?)?;
        } else {
            writeln!(out, "{}: {}: {}\n    because {}", rule.name(), v.of, v.does, v.evidence)?;
        }
    }
    Ok(true)
}
