//! Where a job comes from: the job whose handler enqueued it, the first of that line, and how far it is from there.

use super::ids::JobId;

/// Largest depth that is told. What is deeper has this one, so that a chain which nothing stops can go on for ever.
pub const DEPTH_CAP: u32 = 1_000_000;

/// The line that a job comes from. A job that nobody's handler enqueued has none: it is its own root, at depth 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    parent: JobId,
    root: JobId,
    depth: u32,
}

/// Why a lineage cannot be. `Display` is one line for people, without the name of a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    #[error("{0} is out of range 1 to {DEPTH_CAP}")]
    OutOfRange(u32),
    #[error("{0} is not the parent: then the depth is at least 2")]
    RootIsFarther(JobId),
    #[error("{0} needs the root, too")]
    NoRoot(u32),
}

impl Lineage {
    /// From what is known: without `root` the parent is the root; without `depth` it is the smallest that fits.
    /// Errors: a depth that is no depth, or one that does not fit to the distance of parent and root. (A parent that is the root
    /// may be deep itself: see [`Lineage::of_firing`].)
    pub fn new(parent: JobId, root: Option<JobId>, depth: Option<u32>) -> Result<Self, LineageError> {
        if let Some(d) = depth.filter(|d| !(1..=DEPTH_CAP).contains(d)) {
            return Err(LineageError::OutOfRange(d));
        }
        let is_child_of_root = root.as_ref().is_none_or(|r| *r == parent);
        match (root, depth) {
            (None, Some(d)) if d > 1 => Err(LineageError::NoRoot(d)),
            (Some(r), Some(1)) if !is_child_of_root => Err(LineageError::RootIsFarther(r)),
            (root, depth) => Ok(Self {
                root: root.unwrap_or_else(|| parent.clone()),
                depth: depth.unwrap_or(if is_child_of_root { 1 } else { 2 }),
                parent,
            }),
        }
    }

    /// What every job carries that the handler of job `id` enqueues. `own`: the lineage of that job.
    pub fn of_children(id: &JobId, own: Option<&Self>) -> Self {
        Self {
            parent: id.clone(),
            root: own.map_or(id, |l| &l.root).clone(),
            depth: own.map_or(0, |l| l.depth).saturating_add(1).min(DEPTH_CAP),
        }
    }

    /// The lineage of one firing (job `id`) of a recurring schedule whose document has this one. It begins a line of its own, or
    /// what a schedule does in a year would count as the doing of the one job that made it; but it is as deep as it is, so that
    /// jobs which make schedules which make jobs are seen.
    #[must_use]
    pub fn of_firing(self, id: &JobId) -> Self {
        Self { root: id.clone(), ..self }
    }

    /// The job whose handler enqueued this one.
    pub fn parent(&self) -> &JobId {
        &self.parent
    }

    /// The first job of the line: one that nobody's handler enqueued, or a firing of a schedule.
    pub fn root(&self) -> &JobId {
        &self.root
    }

    /// Steps from the root, 1 to [`DEPTH_CAP`].
    pub fn depth(&self) -> u32 {
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> JobId {
        JobId::new(name).unwrap()
    }

    fn made(root: Option<&str>, depth: Option<u32>) -> Result<(String, u32), LineageError> {
        let l = Lineage::new(id("p"), root.map(id), depth)?;
        Ok((l.root.to_string(), l.depth))
    }

    #[test]
    fn what_is_not_said_is_the_nearest_that_fits() {
        for (root, depth, want) in [
            (None, None, ("p", 1)),
            (None, Some(1), ("p", 1)),
            (Some("p"), None, ("p", 1)),
            (Some("p"), Some(5), ("p", 5)),
            (Some("r"), None, ("r", 2)),
            (Some("r"), Some(7), ("r", 7)),
        ] {
            assert_eq!(made(root, depth), Ok((want.0.to_owned(), want.1)), "{root:?} {depth:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(made(None, Some(0)), Err(LineageError::OutOfRange(0)));
        assert_eq!(made(Some("r"), Some(DEPTH_CAP + 1)), Err(LineageError::OutOfRange(DEPTH_CAP + 1)));
        assert_eq!(made(None, Some(2)), Err(LineageError::NoRoot(2)));
        assert_eq!(made(Some("r"), Some(1)), Err(LineageError::RootIsFarther(id("r"))));
    }

    #[test]
    fn children_keep_the_root_and_are_one_deeper_up_to_the_cap() {
        let child = Lineage::of_children(&id("a"), None);
        assert_eq!(child, Lineage::new(id("a"), None, None).unwrap());
        let grandchild = Lineage::of_children(&id("b"), Some(&child));
        assert_eq!(grandchild, Lineage::new(id("b"), Some(id("a")), Some(2)).unwrap());
        let firing = grandchild.of_firing(&id("beat-7"));
        let of_firing = Lineage::of_children(&id("beat-7"), Some(&firing));
        assert_eq!(of_firing, Lineage::new(id("beat-7"), Some(id("beat-7")), Some(3)).unwrap());
        let deepest = Lineage::new(id("b"), Some(id("a")), Some(DEPTH_CAP)).unwrap();
        assert_eq!(Lineage::of_children(&id("c"), Some(&deepest)).depth(), DEPTH_CAP);
    }
}
