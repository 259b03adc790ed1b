//! Where a job's message is: in which of the streams that carry jobs, and at which sequence.

use std::fmt;

use super::pull::Delivery;

/// A stream that carries jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CarrierStream {
    /// Jobs to do now.
    Jobs,
    /// Schedules, and the jobs that came due by one.
    Sched,
}

impl CarrierStream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Jobs, Self::Sched];

    /// The name without its namespace, as records and events have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jobs => "JOBS",
            Self::Sched => "SCHED",
        }
    }
}

/// A carrier, written `JOBS:1234` in records, events and dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Carrier {
    pub stream: CarrierStream,
    pub sequence: u64,
}

impl Carrier {
    /// A message of `JOBS`.
    pub fn jobs(sequence: u64) -> Self {
        Self { stream: CarrierStream::Jobs, sequence }
    }

    /// Reads the written form. `None`: it is of no stream that this release knows.
    pub fn parse(text: &str) -> Option<Self> {
        let (stream, sequence) = text.rsplit_once(':')?;
        let stream = CarrierStream::ALL.into_iter().find(|s| s.name() == stream)?;
        Some(Self { stream, sequence: sequence.parse().ok()? })
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.stream.name(), self.sequence)
    }
}

impl Delivery {
    /// The carrier that this message is. Its subject tells the stream: `<ns>.jobs.…`, else `<ns>.due.…` or `<ns>.sched.…`.
    pub fn carrier(&self) -> Carrier {
        let stream = match self.subject.split('.').nth(1) {
            Some("due" | "sched") => CarrierStream::Sched,
            _ => CarrierStream::Jobs,
        };
        Carrier { stream, sequence: self.sequence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carriers_are_written_and_read_back() {
        for (carrier, text) in [
            (Carrier::jobs(17), "JOBS:17"),
            (Carrier { stream: CarrierStream::Sched, sequence: 4 }, "SCHED:4"),
        ] {
            assert_eq!(carrier.to_string(), text);
            assert_eq!(Carrier::parse(text), Some(carrier));
        }
        for bad in ["", "17", "JOBS", "JOBS:", "JOBS:x", "DLQ:4"] {
            assert_eq!(Carrier::parse(bad), None, "{bad:?}");
        }
    }
}
