//! The scopes of a job. Each is made once and shared by all jobs that ask for it: its hash and label cost more than asking.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use surety_common::{
    config::{GuardRule, Limits, Settings},
    domain::{
        Job,
        guard::{Gate, GuardKind},
    },
    store::Scope,
};

/// A scope and its partition.
pub(crate) type Place = (u32, Arc<Scope>);

/// Scopes that are remembered for each rule; when there are more, all are forgotten and made again as they come.
const REMEMBERED: usize = 4096;

/// Scopes that were made, for jobs to come.
#[derive(Default)]
pub(super) struct Scopes(Mutex<Made>);

#[derive(Default)]
struct Made {
    /// The settings that they follow from: others have other limits.
    from: Option<Arc<Settings>>,
    /// By value, for each rule; those of locks come last.
    of: Vec<HashMap<String, Place>>,
    value: String,
}

impl Scopes {
    /// The scopes of a job: those of the rules, in their order, and its locks. `partitions`: how many there are.
    pub(super) fn of(&self, now: Arc<Settings>, partitions: u32, job: &Job) -> Vec<Place> {
        if now.guard_rules.is_empty() && job.locks.is_empty() {
            return Vec::new();
        }
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { from, of, value } = made.following(&now);
        let offer_ms = offer_ms(&now);
        let mut out = Vec::with_capacity(now.guard_rules.len() + job.locks.len());
        let mut of = of.iter_mut();
        for (rule, known) in now.guard_rules.iter().zip(of.by_ref()) {
            value.clear();
            if rule.is_for(job) && rule.scope.render_into(job, value) {
                out.push(known_or(known, partitions, value, |v| scope(rule, offer_ms, v)));
            }
        }
        if let Some(known) = of.next() {
            let lock = |name: &str| Scope::new(GuardKind::Lock, "", name, [1, offer_ms, 0, 0]);
            out.extend(job.locks.iter().map(|name| known_or(known, partitions, name, lock)));
        }
        *from = Some(now);
        out
    }
}

impl Made {
    fn following(&mut self, now: &Arc<Settings>) -> &mut Self {
        if !self.from.as_ref().is_some_and(|from| Arc::ptr_eq(from, now)) {
            self.of = now.guard_rules.iter().map(|_| HashMap::new()).collect();
            self.of.push(HashMap::new());
        }
        self
    }
}

fn known_or(
    known: &mut HashMap<String, Place>,
    partitions: u32,
    value: &str,
    make: impl FnOnce(&str) -> Scope,
) -> Place {
    if let Some((p, scope)) = known.get(value) {
        return (*p, scope.clone());
    }
    if known.len() >= REMEMBERED {
        known.clear();
    }
    let scope = make(value);
    let place = (scope.partition(partitions), Arc::new(scope));
    known.insert(value.to_owned(), place.clone());
    place
}

/// How long an offered slot stands (ms).
pub(super) fn offer_ms(now: &Settings) -> u64 {
    u64::try_from(now.guards.offer.as_millis()).unwrap_or(u64::MAX)
}

fn scope(rule: &GuardRule, offer_ms: u64, value: &str) -> Scope {
    let params = match rule.limits {
        Limits::Rate(r) => [r.interval_us, r.tolerance_us, 0, 0],
        Limits::Concurrency(slots) => [slots, offer_ms, 0, 0],
        Limits::Gate(g) => Gate { offer_s: offer_ms.div_ceil(1000), ..g }.params(),
    };
    Scope::new(rule.kind(), &rule.name, value, params)
}

#[cfg(test)]
mod tests {
    use surety_common::{
        config::load_text,
        domain::{JobId, QueueName},
        wire::job,
    };

    use super::*;

    fn settings(limit: u32) -> Arc<Settings> {
        let text = format!("[guards.concurrency.k]\nscope = \"{{key}}\"\nlimit = {limit}\n");
        Arc::new(load_text(Some((&text, "surety.toml")), &|_| None, &vec![]).unwrap())
    }

    fn a_job(body: &str) -> Job {
        let document = job::parse(body.as_bytes()).unwrap();
        job::check(document, JobId::new("j1").unwrap(), QueueName::new("default").unwrap()).unwrap()
    }

    // Shows: G-08
    #[test]
    fn a_scope_is_made_once_and_anew_when_the_settings_change() {
        let (scopes, job) = (Scopes::default(), a_job(r#"{"type":"noop","key":"a","locks":["l"]}"#));
        let four = settings(4);
        let first = scopes.of(four.clone(), 16, &job);
        let [(_, slots), (_, lock)] = &first[..] else { panic!("{first:?}") };
        assert_eq!((slots.kind, slots.params[0]), (GuardKind::Concurrency, 4));
        assert_eq!((lock.kind, lock.label.as_str()), (GuardKind::Lock, "l"));
        let again = scopes.of(four, 16, &job);
        assert!(first.iter().zip(&again).all(|((p, a), (q, b))| p == q && Arc::ptr_eq(a, b)));
        let other = scopes.of(settings(7), 16, &job);
        assert_eq!(other[0].1.params[0], 7, "a limit that is not in force any more");
        assert_eq!(other[0].1.hash, slots.hash, "the same scope, with another limit");
    }

    #[test]
    fn what_no_rule_is_for_has_no_scope_and_many_values_are_not_remembered_for_ever() {
        let (scopes, four) = (Scopes::default(), settings(4));
        assert!(scopes.of(four.clone(), 16, &a_job(r#"{"type":"noop"}"#)).is_empty());
        for n in 0..2 * REMEMBERED {
            let job = a_job(&format!(r#"{{"type":"noop","key":"{n}"}}"#));
            assert_eq!(scopes.of(four.clone(), 16, &job).len(), 1);
        }
        assert!(scopes.0.lock().unwrap().of.iter().all(|known| known.len() <= REMEMBERED));
    }
}
