//! Kinds of settings: how a value is read, and what is said when it cannot be.

use std::time::Duration;

use crate::{
    clock::{format_span, parse_span},
    telemetry::{Listen, LogFormat},
};

/// A kind of setting. A value from the environment or a flag comes as a string; one from a file may have its own type.
pub trait Setting: Sized {
    /// For the documentation: `duration`, `size`, …
    const KIND: &'static str;
    /// Reads a value; the error says what is allowed. `Ok(None)` means "not set" (a duration of 0).
    fn read(value: &toml::Value) -> Result<Option<Self>, String>;
    /// The value as a file would have it, without secrets.
    fn show(&self) -> String;
}

/// A duration with its unit: `30s`. 0 means not set.
pub type Span = Duration;

impl Setting for Duration {
    const KIND: &'static str = "duration";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        let text = match value {
            toml::Value::String(s) => s.as_str(),
            toml::Value::Integer(0) => "0",
            other => return Err(format!("{other} needs a unit; write \"30s\", \"5m\", \"250ms\"")),
        };
        parse_span(text).map(|d| (!d.is_zero()).then_some(d))
    }
    fn show(&self) -> String {
        format!("{:?}", format_span(*self))
    }
}

/// A number of bytes: `10MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl Setting for Size {
    const KIND: &'static str = "size";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        let bad = || format!("{value} is not a size; write a number with B, KiB, MiB or GiB, like \"10MiB\"");
        let toml::Value::String(s) = value else { return Err(bad()) };
        let s = s.trim();
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let n: u64 = number.parse().map_err(|_| bad())?;
        let factor: u64 = match unit.trim() {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(bad()),
        };
        n.checked_mul(factor).map(|n| Some(Self(n))).ok_or_else(bad)
    }
    fn show(&self) -> String {
        match self.0 {
            n if n > 0 && n.is_multiple_of(1 << 20) => format!("\"{}MiB\"", n >> 20),
            n if n > 0 && n.is_multiple_of(1 << 10) => format!("\"{}KiB\"", n >> 10),
            n => format!("\"{n}B\""),
        }
    }
}

/// A whole number of at least 1 and at most `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count<const MAX: u64>(pub u64);

impl<const MAX: u64> Setting for Count<MAX> {
    const KIND: &'static str = "number";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        let n = match value {
            toml::Value::Integer(n) => u64::try_from(*n).ok(),
            toml::Value::String(s) => s.trim().parse().ok(),
            _ => None,
        };
        match n {
            Some(n) if (1..=MAX).contains(&n) => Ok(Some(Self(n))),
            _ => Err(format!("{value} is not a whole number from 1 to {MAX}")),
        }
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// A share of all, per mille: `50%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share(pub(super) u64);

impl Setting for Share {
    const KIND: &'static str = "share";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        let percent = value.as_str().and_then(|s| s.trim().strip_suffix('%'));
        match percent.and_then(|n| n.trim().parse::<f64>().ok()) {
            Some(n) if (0.1..=100.0).contains(&n) => Ok(Some(Self((n * 10.0).round() as u64))),
            _ => Err(format!("{value} is not a share from \"0.1%\" to \"100%\"")),
        }
    }
    fn show(&self) -> String {
        format!("\"{}%\"", self.0 as f64 / 10.0)
    }
}

impl Setting for bool {
    const KIND: &'static str = "true or false";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::Boolean(b) => Ok(Some(*b)),
            toml::Value::String(s) if s == "true" => Ok(Some(true)),
            toml::Value::String(s) if s == "false" => Ok(Some(false)),
            other => Err(format!("{other} is neither true nor false")),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    const KIND: &'static str = "text";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::String(s) => Ok(Some(s.clone())),
            other => Err(format!("{other} is not a text in quotes")),
        }
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

/// A list; from the environment, separated by commas.
impl Setting for Vec<String> {
    const KIND: &'static str = "list";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::String(s) => {
                Ok(Some(s.split(',').map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()))
            }
            toml::Value::Array(items) => items
                .iter()
                .map(|i| i.as_str().map(str::to_owned).ok_or_else(|| format!("{i} is not a text in quotes")))
                .collect::<Result<Vec<_>, _>>()
                .map(Some),
            other => Err(format!("{other} is not a list like [\"a\", \"b\"]")),
        }
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

/// Durations in their order, at least one, each above 0; from the environment, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans(pub Vec<Duration>);

impl Setting for Spans {
    const KIND: &'static str = "list of durations";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        let texts = Vec::<String>::read(value)?.unwrap_or_default();
        let spans: Vec<Duration> = texts.iter().map(|t| parse_span(t)).collect::<Result<_, _>>()?;
        if spans.is_empty() || spans.iter().any(Duration::is_zero) {
            return Err(format!("{value} needs at least one duration, each above 0"));
        }
        Ok(Some(Self(spans)))
    }
    fn show(&self) -> String {
        format!("{:?}", self.0.iter().copied().map(format_span).collect::<Vec<_>>())
    }
}

/// How a worker chooses among its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The first queue with work always goes first.
    Strict,
    /// Each queue gets a share of the slots that come free, by its weight (`name:weight` in the list of queues).
    Weighted,
}

impl Setting for Choice {
    const KIND: &'static str = "strict or weighted";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value.as_str() {
            Some("strict") => Ok(Some(Self::Strict)),
            Some("weighted") => Ok(Some(Self::Weighted)),
            _ => Err(format!("{value} is neither \"strict\" nor \"weighted\"")),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Strict => "\"strict\"".into(),
            Self::Weighted => "\"weighted\"".into(),
        }
    }
}

impl Setting for Listen {
    const KIND: &'static str = "address with port, or off";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::String(s) => s.parse().map(Some),
            other => Err(format!("{other} is not a text in quotes")),
        }
    }
    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for LogFormat {
    const KIND: &'static str = "human or json";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::String(s) => s.parse().map(Some),
            other => Err(format!("{other} is not a text in quotes")),
        }
    }
    fn show(&self) -> String {
        format!("{:?}", self.name())
    }
}
