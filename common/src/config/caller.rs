//! The job whose handler this process is part of, as its environment says.

use crate::domain::{
    JobId, Lineage,
    ids::NameError,
    lineage::{DEPTH_CAP, LineageError},
};

/// Names the job whose handler runs; set by the worker.
pub const JOB_ID: &str = "SURETY_JOB_ID";
/// The parent of that job, where it has one.
pub const PARENT: &str = "SURETY_PARENT";
/// The root of that job: itself where it has no parent.
pub const ROOT: &str = "SURETY_ROOT";
/// The depth of that job: 0 where it has no parent.
pub const DEPTH: &str = "SURETY_DEPTH";

/// An environment that no worker makes. Names the variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    #[error("{JOB_ID}: {0}")]
    Job(#[source] NameError),
    #[error("{ROOT}: {0}")]
    Root(#[source] NameError),
    #[error("{DEPTH}: {0:?} is not a depth")]
    Depth(String),
    #[error("{ROOT} and {DEPTH}: {0}")]
    Lineage(#[source] LineageError),
}

/// What jobs carry that this process enqueues; `None` outside of handlers.
pub fn lineage() -> Result<Option<Lineage>, CallerError> {
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the environment")]
    lineage_in(&|name| std::env::var(name).ok())
}

/// [`lineage`] of another environment. An empty value counts as not set; a worker of an older release sets no root and no
/// depth, and then the job itself is taken as the root.
pub fn lineage_in(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Lineage>, CallerError> {
    let set = |name| env(name).filter(|v| !v.is_empty());
    let Some(job) = set(JOB_ID) else { return Ok(None) };
    let job = JobId::new(&job).map_err(CallerError::Job)?;
    let root = set(ROOT).map(|r| JobId::new(&r).map_err(CallerError::Root)).transpose()?;
    let depth = set(DEPTH)
        .map(|text| text.parse::<u32>().map_err(|_| CallerError::Depth(text)))
        .transpose()?
        .map(|d| d.saturating_add(1).min(DEPTH_CAP));
    let Some(root) = root else { return Ok(Some(Lineage::of_children(&job, None))) };
    Lineage::new(job, Some(root), depth).map(Some).map_err(CallerError::Lineage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<(String, String, u32)>, CallerError> {
        let env = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let told = |l: Lineage| (l.parent().to_string(), l.root().to_string(), l.depth());
        lineage_in(&env).map(|l| l.map(told))
    }

    #[test]
    fn children_come_one_below_the_job_that_the_environment_names() {
        let child = |p: &str, r: &str, d| Ok(Some((p.to_owned(), r.to_owned(), d)));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[(JOB_ID, "")]), Ok(None));
        assert_eq!(read(&[(ROOT, "r"), (DEPTH, "3")]), Ok(None));
        assert_eq!(read(&[(JOB_ID, "a")]), child("a", "a", 1));
        assert_eq!(read(&[(JOB_ID, "a"), (ROOT, "a"), (DEPTH, "0")]), child("a", "a", 1));
        assert_eq!(read(&[(JOB_ID, "a"), (ROOT, "r"), (DEPTH, "3")]), child("a", "r", 4));
        assert_eq!(read(&[(JOB_ID, "a"), (ROOT, "a"), (DEPTH, "3")]), child("a", "a", 4));
        assert_eq!(read(&[(JOB_ID, "a"), (ROOT, "r"), (DEPTH, "1000000")]), child("a", "r", DEPTH_CAP));
    }

    #[test]
    fn what_no_worker_writes_is_refused_by_its_name() {
        let said = |pairs: &[(&str, &str)]| read(pairs).unwrap_err().to_string();
        assert!(said(&[(JOB_ID, "no id")]).starts_with("SURETY_JOB_ID: job id \"no id\""));
        assert!(said(&[(JOB_ID, "a"), (ROOT, "no id")]).starts_with("SURETY_ROOT: "));
        assert!(said(&[(JOB_ID, "a"), (ROOT, "r"), (DEPTH, "-1")]).starts_with("SURETY_DEPTH: \"-1\""));
        assert!(said(&[(JOB_ID, "a"), (ROOT, "r"), (DEPTH, "0")]).contains("at least 2"));
    }
}
