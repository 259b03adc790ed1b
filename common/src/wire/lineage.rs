//! `parent`, `root` and `depth` of the job document.

use super::job::JobDocument;
use crate::domain::{
    JobId,
    lineage::{Lineage, LineageError},
};

/// Reads the three fields. The error has each problem with the field that it is about.
pub(super) fn read(doc: &JobDocument) -> Result<Option<Lineage>, Vec<(&'static str, String)>> {
    let mut problems = Vec::new();
    let mut id = |field, text: Option<&str>| {
        text.and_then(|t| JobId::new(t).map_err(|e| problems.push((field, e.to_string()))).ok())
    };
    let (parent, root) = (id("parent", doc.parent.as_deref()), id("root", doc.root.as_deref()));
    if doc.parent.is_none() {
        let goes_with =
            || "goes with `parent`: a job that nobody's handler enqueued is its own root".to_owned();
        problems.extend(doc.root.is_some().then(|| ("root", goes_with())));
        problems.extend(doc.depth.is_some().then(|| ("depth", goes_with())));
    }
    let Some(parent) = parent.filter(|_| problems.is_empty()) else {
        return if problems.is_empty() { Ok(None) } else { Err(problems) };
    };
    Lineage::new(parent, root, doc.depth).map(Some).map_err(|e| {
        let field = match e {
            LineageError::OutOfRange(_) | LineageError::NoRoot(_) => "depth",
            LineageError::RootIsFarther(_) => "root",
        };
        vec![(field, e.to_string())]
    })
}

impl JobDocument {
    /// Writes a lineage. A child of its root names the parent alone, which says it all: so releases that know no more can
    /// run it, too.
    pub fn set_lineage(&mut self, lineage: &Lineage) {
        let is_farther = lineage.depth() > 1;
        self.parent = Some(lineage.parent().to_string());
        self.root = is_farther.then(|| lineage.root().to_string());
        self.depth = is_farther.then(|| lineage.depth());
    }

    /// Fills in the lineage of whoever enqueues it, unless it names another parent, or says more itself.
    pub fn adopt(&mut self, lineage: &Lineage) {
        let says_more = self.root.is_some() || self.depth.is_some();
        let is_ours = self.parent.as_deref().is_none_or(|p| p == lineage.parent().as_str());
        if is_ours && !says_more {
            self.set_lineage(lineage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(fields: &str) -> JobDocument {
        serde_json::from_str(&format!(r#"{{"type":"a"{fields}}}"#)).unwrap()
    }

    fn told(d: &JobDocument) -> (Option<&str>, Option<&str>, Option<u32>) {
        (d.parent.as_deref(), d.root.as_deref(), d.depth)
    }

    #[test]
    fn problems_name_their_field() {
        for (fields, want) in [
            (r#","parent":"no id""#, vec!["parent"]),
            (r#","parent":"no id","root":"neither one""#, vec!["parent", "root"]),
            (r#","root":"r","depth":3"#, vec!["root", "depth"]),
            (r#","parent":"p","depth":0"#, vec!["depth"]),
            (r#","parent":"p","root":"r","depth":1"#, vec!["root"]),
        ] {
            let found: Vec<_> = read(&doc(fields)).unwrap_err().into_iter().map(|(f, _)| f).collect();
            assert_eq!(found, want, "{fields}");
        }
        assert_eq!(read(&doc("")), Ok(None));
    }

    #[test]
    fn a_lineage_is_read_as_it_was_written() {
        let root = JobId::new("r").unwrap();
        let child = Lineage::of_children(&root, None);
        let grandchild = Lineage::of_children(&JobId::new("c").unwrap(), Some(&child));
        let mut d = doc("");
        d.set_lineage(&child);
        assert_eq!(told(&d), (Some("r"), None, None));
        assert_eq!(read(&d), Ok(Some(child)));
        d.set_lineage(&grandchild);
        assert_eq!(told(&d), (Some("c"), Some("r"), Some(2)));
        assert_eq!(read(&d), Ok(Some(grandchild)));
    }

    #[test]
    fn what_the_document_says_wins_over_what_its_process_knows() {
        let child = Lineage::of_children(&JobId::new("r").unwrap(), None);
        let ours = Lineage::of_children(&JobId::new("c").unwrap(), Some(&child));
        let adopted = |fields: &str| {
            let mut d = doc(fields);
            d.adopt(&ours);
            d
        };
        let known = (Some("c"), Some("r"), Some(2));
        assert_eq!(told(&adopted("")), known);
        assert_eq!(told(&adopted(r#","parent":"c""#)), known);
        assert_eq!(told(&adopted(r#","parent":"x""#)), (Some("x"), None, None));
        assert_eq!(told(&adopted(r#","parent":"c","root":"z""#)), (Some("c"), Some("z"), None));
    }
}
