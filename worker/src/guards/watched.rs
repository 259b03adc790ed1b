//! Types that this worker was told to ask about before their claims. Forgotten soon: that a type is calm again is told to
//! nobody, and a job that asks in vain costs a call.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use surety_common::{clock::boot_ms, domain::TypeName};

/// For so long a type is asked about without being told again.
const KEPT: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct WatchedTypes {
    /// Until then (boot-time milliseconds) there may be one; 0 almost always, and then nothing else is looked at.
    until_ms: AtomicU64,
    types: Mutex<HashMap<TypeName, u64>>,
}

impl WatchedTypes {
    /// The store says that jobs of this type ask first, for so long.
    pub(super) fn add(&self, kind: &TypeName, left: Duration) {
        let until_ms = boot_ms().saturating_add(u64::try_from(left.min(KEPT).as_millis()).unwrap_or(0));
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        types.retain(|_, until| *until > boot_ms());
        types.insert(kind.clone(), until_ms);
        self.until_ms.fetch_max(until_ms, Ordering::Release);
    }

    /// Whether jobs of this type ask first.
    pub(super) fn has(&self, kind: &TypeName) -> bool {
        let until_ms = self.until_ms.load(Ordering::Acquire);
        if until_ms == 0 || boot_ms() >= until_ms {
            return false;
        }
        let types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        types.get(kind).is_some_and(|until| *until > boot_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_type_that_was_told_is_asked_about() {
        let (types, bad): (WatchedTypes, TypeName) = (WatchedTypes::default(), "bad".parse().unwrap());
        assert!(!types.has(&bad));
        types.add(&bad, Duration::from_secs(60));
        assert!(types.has(&bad) && !types.has(&"good".parse().unwrap()));
        types.add(&bad, Duration::ZERO);
        assert!(!types.has(&bad), "it is over");
    }
}
