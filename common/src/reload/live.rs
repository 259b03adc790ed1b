//! The configuration in force.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::config::{Change, ConfigError, Reload, Settings};

/// The configuration in force, shared by all parts of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LiveSettings {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    now: ArcSwap<Settings>,
    /// Counts what was adopted; raised after `now` is the new one.
    changed: watch::Sender<u64>,
    /// One offer at a time: each is compared with what the one before it left.
    offers: Mutex<()>,
}

/// What came of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// In force from now on.
    pub live: Vec<Change>,
    /// Waits for a restart; the value of the start stays in force.
    pub restart: Vec<Change>,
}

impl LiveSettings {
    /// Begins with the settings of the start.
    pub fn new(settings: Settings) -> Self {
        let now = ArcSwap::from_pointee(settings);
        let inner = Inner { now, changed: watch::Sender::new(0), offers: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The settings in force. Takes no lock; still, what handles many jobs in one call asks once for all of them.
    pub fn now(&self) -> Arc<Settings> {
        self.inner.now.load_full()
    }

    /// Is woken after each change; ask for [`LiveSettings::now`] then.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Takes what is live of settings that passed the checks of a start. Refused where the mixture with those that wait for a
    /// restart does not fit together.
    pub fn offer(&self, new: &Settings) -> Result<Adopted, ConfigError> {
        let _one = self.inner.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let was = self.now();
        let (live, restart) =
            was.changes(new).into_iter().partition::<Vec<_>, _>(|c| c.reload == Reload::Live);
        if !live.is_empty() {
            self.inner.now.store(Arc::new(was.adopted(new)?));
            self.inner.changed.send_modify(|n| *n += 1);
        }
        Ok(Adopted { live, restart })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    fn settings(text: &str) -> Settings {
        load_text(Some((text, "surety.toml")), &|_| None, &vec![]).unwrap()
    }

    #[test]
    fn who_subscribed_is_woken_by_what_took_effect_and_by_nothing_else() {
        let live = LiveSettings::new(settings(""));
        let seen = live.subscribe();
        let before = live.now();
        let adopted = live.offer(&settings("[worker]\nslots = 3")).unwrap();
        assert_eq!((adopted.live.len(), adopted.restart.len()), (0, 1));
        assert!(!seen.has_changed().unwrap() && Arc::ptr_eq(&before, &live.now()));
        let adopted = live.offer(&settings("[worker]\ndrain = \"3s\"")).unwrap();
        assert_eq!((adopted.live.len(), adopted.restart.len()), (1, 0));
        assert!(seen.has_changed().unwrap());
        // A snapshot stays what it was.
        assert_ne!(before.worker.drain, live.now().worker.drain);
    }

    // Shows: G-08
    #[test]
    fn a_mixture_that_does_not_fit_changes_nothing() {
        let live = LiveSettings::new(settings(""));
        let bad = settings(
            "[layout]\nevents_age = \"2000h\"\n[attempt]\nfinish = \"1000h\"\n[worker]\ndrain = \"3s\"",
        );
        assert!(live.offer(&bad).is_err());
        assert!(live.now().changes(&settings("")).is_empty());
    }
}
