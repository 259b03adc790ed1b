//! How often a handler's reports reach the journal. Reports above the bound are folded: the last one counts, and says how many were
//! left out before it.

use std::time::{Duration, Instant};

use super::control::Line;

/// Reports at once.
pub(super) const BURST: u32 = 200;
/// Reports a second, for as long as it goes on.
pub(super) const PER_SECOND: u32 = 20;

/// A bucket of reports that may go out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    left: f64,
    at: Instant,
}

impl Rate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: f64::from(BURST), at: now }
    }

    /// Takes one out. The error: how long until there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * f64::from(PER_SECOND)).min(f64::from(BURST));
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.left) / f64::from(PER_SECOND)))
    }
}

/// The reports of one attempt on their way.
#[derive(Debug)]
pub(super) struct Folding {
    rate: Rate,
    /// The last report that has to wait.
    waits: Option<Line>,
    /// Reports that it stands for, besides itself.
    folded: u64,
    is_told: bool,
}

impl Folding {
    pub(super) fn new(now: Instant) -> Self {
        Self { rate: Rate::new(now), waits: None, folded: 0, is_told: false }
    }

    /// Takes a line in; gives the report that goes out now, if one does. The error: how long until one may.
    pub(super) fn offer(&mut self, line: Line, now: Instant) -> Result<Option<Line>, Duration> {
        if line.kind().is_none() {
            return Ok(None);
        }
        if self.waits.replace(line).is_some() {
            self.folded += 1;
        }
        self.due(now)
    }

    /// The report that waits, where its time has come. The error: how long until then.
    pub(super) fn due(&mut self, now: Instant) -> Result<Option<Line>, Duration> {
        if self.waits.is_none() {
            return Ok(None);
        }
        self.rate.take(now)?;
        Ok(self.last())
    }

    /// What waits, at the end of the attempt.
    pub(super) fn last(&mut self) -> Option<Line> {
        let folded = std::mem::take(&mut self.folded);
        self.waits.take().map(|line| Line { folded, ..line })
    }

    /// Whether somebody has to be told that reports are folded: once.
    pub(super) fn is_news(&mut self) -> bool {
        self.folded > 0 && !std::mem::replace(&mut self.is_told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> Line {
        Line { iteration: Some(n), ..Line::default() }
    }

    #[test]
    fn a_flood_is_folded_and_its_last_report_counts() {
        let start = Instant::now();
        let mut f = Folding::new(start);
        let out: Vec<Line> = (0..100_000).filter_map(|n| f.offer(line(n), start).ok().flatten()).collect();
        assert_eq!(out.len(), BURST as usize);
        assert!(f.is_news() && !f.is_news());
        assert!(f.due(start).is_err());
        let last = f.due(start + Duration::from_millis(60)).unwrap().unwrap();
        assert_eq!((last.iteration, last.folded), (Some(99_999), 100_000 - u64::from(BURST) - 1));
        assert!(last.event().unwrap().1.contains("\"folded\":99799"));
        assert!(f.due(start).unwrap().is_none());
    }

    #[test]
    fn a_hundred_reports_in_a_second_are_a_hundred_events() {
        let start = Instant::now();
        let mut f = Folding::new(start);
        let at = |n| start + Duration::from_millis(n * 10);
        let out = (0..100).filter(|n| f.offer(line(*n), at(*n)).unwrap().is_some()).count();
        assert_eq!(out, 100);
        assert!(f.offer(Line::default(), start).unwrap().is_none(), "no report");
    }
}
