//! Guard scopes as they are now, for people: read, and changed by nobody.

use std::collections::BTreeMap;

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
    /// Who stands in line; of a rate limit: slots that are booked and not reached.
    pub waiting: u64,
}

/// Scopes that are read in one go.
const AT_ONCE: usize = 500;

impl Store {
    /// Every scope in use, in all partitions: by kind, then by label.
    pub async fn scopes(&self) -> Result<Vec<ScopeState>, StoreError> {
        let mut out = Vec::new();
        for p in 0..self.keys().partitions() {
            for skip in (0..).step_by(AT_ONCE) {
                let found = self.guard_scopes(p, u64::MAX / 4096, skip, AT_ONCE).await?;
                let n = found.len();
                for s in found {
                    out.extend(self.scope_state(p, &s.scope.hash).await?);
                }
                if n < AT_ONCE {
                    break;
                }
            }
        }
        out.sort_by(|a, b| (a.scope.kind, &a.scope.label).cmp(&(b.scope.kind, &b.scope.label)));
        Ok(out)
    }

    /// One scope; `None` where it is not in use.
    pub async fn scope_state(&self, p: u32, hash: &str) -> Result<Option<ScopeState>, StoreError> {
        let mut c = self.connection();
        let [state, hold, wait, _] = self.keys().guard(p, hash);
        let mut fields: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(&state).query_async(&mut c).await?;
        let label = fields.remove("label").unwrap_or_default();
        let Some((kind, params)) = fields.remove("params").as_deref().and_then(read_params) else {
            return Ok(None);
        };
        let now_ms = self.now_ms_of(p).await?;
        let held: u64 = redis::cmd("HLEN").arg(&hold).query_async(&mut c).await?;
        let after = if kind == GuardKind::Rate { format!("({}000", now_ms) } else { "-inf".into() };
        let waiting: u64 = redis::cmd("ZCOUNT").arg(&wait).arg(after).arg("+inf").query_async(&mut c).await?;
        let scope = Scope { kind, params, label, hash: hash.to_owned() };
        Ok(Some(ScopeState { scope, partition: p, now_ms, fields, held, waiting }))
    }

    /// How many stand before a member in the line of a scope; `None` where it is not in line.
    pub async fn place_in_line(&self, p: u32, hash: &str, member: &str) -> Result<Option<u64>, StoreError> {
        let [_, _, wait, _] = self.keys().guard(p, hash);
        Ok(redis::cmd("ZRANK").arg(wait).arg(member).query_async(&mut self.connection()).await?)
    }
}
