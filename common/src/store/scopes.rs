//! Guard scopes as they are now, for people: read, and changed by nobody.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashSet},
};

use super::{
    guards::{Scope, read_params},
    script::{Store, StoreError},
};
use crate::domain::guard::GuardKind;

/// What a scope holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeState {
    pub scope: Scope,
    pub partition: u32,
    /// The store's clock when it was read (ms).
    pub now_ms: u64,
    /// What its kind keeps in its state.
    pub fields: BTreeMap<String, String>,
    /// Holds, offers among them.
    pub held: u64,
    /// Who stands in line; of a rate limit: whose promised moment has not come.
    pub waiting: u64,
    /// Of a loop guard: jobs of the work that was asked for most often; 0 where not even all its jobs are as many as are allowed.
    pub repeats: u64,
}

/// A scope in use, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeAt {
    pub partition: u32,
    pub scope: Scope,
}

/// Scopes that are read in one go.
const AT_ONCE: usize = 500;

/// State, holds, those in line, those of them behind the clock.
type Read = (BTreeMap<String, String>, u64, u64, u64);

impl Store {
    /// Every scope in use, in all partitions: by kind, then by label. Two round trips for each 500 of them.
    pub async fn scopes_in_use(&self) -> Result<Vec<ScopeAt>, StoreError> {
        let mut out = Vec::new();
        for partition in 0..self.keys().partitions() {
            let (mut cursor, mut seen) = (0, HashSet::new());
            loop {
                let (next, found) = self.scan_scopes(partition, cursor, AT_ONCE).await?;
                // A scan may give a member twice.
                let new = found.into_iter().filter(|s| seen.insert(s.hash.clone()));
                out.extend(new.map(|scope| ScopeAt { partition, scope }));
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        out.sort_by(|a, b| by_name(&a.scope, &b.scope));
        Ok(out)
    }

    /// What these scopes hold, in their order; one that is idle since is left out. At most three round trips for each 500 of a
    /// partition.
    pub async fn scope_states(&self, scopes: &[ScopeAt]) -> Result<Vec<ScopeState>, StoreError> {
        let mut out: Vec<Option<ScopeState>> = Vec::new();
        out.resize_with(scopes.len(), || None);
        for p in 0..self.keys().partitions() {
            let (places, hashes): (Vec<usize>, Vec<&str>) = scopes
                .iter()
                .enumerate()
                .filter(|(_, s)| s.partition == p)
                .map(|(i, s)| (i, s.scope.hash.as_str()))
                .unzip();
            for (places, hashes) in places.chunks(AT_ONCE).zip(hashes.chunks(AT_ONCE)) {
                for (place, state) in places.iter().zip(self.states_in(p, hashes).await?) {
                    if let Some(at) = out.get_mut(*place) {
                        *at = state;
                    }
                }
            }
        }
        Ok(out.into_iter().flatten().collect())
    }

    /// What every scope holds: [`Store::scope_states`] of [`Store::scopes_in_use`].
    pub async fn scopes(&self) -> Result<Vec<ScopeState>, StoreError> {
        self.scope_states(&self.scopes_in_use().await?).await
    }

    /// One scope; `None` where it is not in use.
    pub async fn scope_state(&self, p: u32, hash: &str) -> Result<Option<ScopeState>, StoreError> {
        Ok(self.states_in(p, &[hash]).await?.into_iter().flatten().next())
    }

    async fn states_in(&self, p: u32, hashes: &[&str]) -> Result<Vec<Option<ScopeState>>, StoreError> {
        let now_ms = self.now_ms_of(p).await?;
        let mut reads = redis::pipe();
        for hash in hashes {
            let [state, hold, wait, _] = self.keys().guard(p, hash);
            reads.cmd("HGETALL").arg(state).cmd("HLEN").arg(hold).cmd("ZCARD").arg(&wait);
            reads.cmd("ZCOUNT").arg(wait).arg(format!("({now_ms}000")).arg("+inf");
        }
        let found: Vec<redis::Value> = reads.query_async(&mut self.connection()).await?;
        let mut out = Vec::with_capacity(hashes.len());
        for (hash, values) in hashes.iter().zip(found.chunks(4)) {
            let read: Read = redis::from_redis_value(redis::Value::Array(values.to_vec()))
                .map_err(|e| StoreError::Decode(e.to_string()))?;
            out.push(state_of(p, hash, now_ms, read));
        }
        // How often each work was asked for is read where it can make a difference: of most roots it cannot.
        let is_full = |s: &&mut ScopeState| {
            let [most, ..] = s.scope.params;
            s.scope.kind == GuardKind::Loop && s.waiting >= most
        };
        let full: Vec<&mut ScopeState> = out.iter_mut().flatten().filter(is_full).collect();
        if full.is_empty() {
            return Ok(out);
        }
        let mut reads = redis::pipe();
        for state in &full {
            let [_, hold, ..] = self.keys().guard(p, &state.scope.hash);
            reads.cmd("HGETALL").arg(hold);
        }
        let works: Vec<BTreeMap<String, u64>> = reads.query_async(&mut self.connection()).await?;
        for (state, works) in full.into_iter().zip(works) {
            state.repeats = works.into_values().max().unwrap_or(0);
        }
        Ok(out)
    }

    /// How many stand before a member in the line of a scope; `None` where it is not in line.
    pub async fn place_in_line(&self, p: u32, hash: &str, member: &str) -> Result<Option<u64>, StoreError> {
        let [_, _, wait, _] = self.keys().guard(p, hash);
        Ok(redis::cmd("ZRANK").arg(wait).arg(member).query_async(&mut self.connection()).await?)
    }
}

fn by_name(a: &Scope, b: &Scope) -> Ordering {
    (a.kind, &a.label).cmp(&(b.kind, &b.label))
}

fn state_of(partition: u32, hash: &str, now_ms: u64, read: Read) -> Option<ScopeState> {
    let (mut fields, held, in_line, ahead) = read;
    let label = fields.remove("label").unwrap_or_default();
    let (kind, params) = fields.remove("params").as_deref().and_then(read_params)?;
    let scope = Scope { kind, params, label, hash: hash.to_owned() };
    let waiting = if kind == GuardKind::Rate { ahead } else { in_line };
    Some(ScopeState { scope, partition, now_ms, fields, held, waiting, repeats: 0 })
}
