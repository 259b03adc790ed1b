//! Bounded label values: names that come from jobs must not make a series each for ever.

use std::{
    collections::HashSet,
    sync::{LazyLock, Mutex, PoisonError},
};

/// Stands for every value beyond the bound.
pub const OTHER: &str = "other";

/// Values of one label in this process, first come first served.
#[derive(Debug)]
pub struct Labels {
    cap: usize,
    seen: Mutex<HashSet<String>>,
}

impl Labels {
    /// At most `cap` values, and [`OTHER`].
    pub fn new(cap: usize) -> Self {
        Self { cap, seen: Mutex::default() }
    }

    /// The value itself while there is room, else [`OTHER`]. A value that was given room keeps it.
    pub fn of<'a>(&self, value: &'a str) -> &'a str {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(value) {
            return value;
        }
        if seen.len() < self.cap {
            seen.insert(value.to_owned());
            return value;
        }
        OTHER
    }
}

/// Most values of the label `queue`, and of the label `type`, in one process.
pub const CAP: usize = 100;

/// Values of the label `queue`.
pub static QUEUES: LazyLock<Labels> = LazyLock::new(|| Labels::new(CAP));
/// Values of the label `type`.
pub static TYPES: LazyLock<Labels> = LazyLock::new(|| Labels::new(CAP));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_beyond_the_bound_share_one_label() {
        let l = Labels::new(2);
        assert_eq!([l.of("a"), l.of("b"), l.of("c"), l.of("a"), l.of("d")], ["a", "b", OTHER, "a", OTHER]);
    }
}
