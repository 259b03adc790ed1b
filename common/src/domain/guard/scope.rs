//! For whom a guard is kept: a template over the job, such as `{queue}/{meta.workspace}`.

use std::fmt;

use crate::domain::Job;

/// Longest rendered scope (bytes); a longer one is told apart by its hash all the same, and shown cut.
pub const SHOWN: usize = 256;

/// In the place of a value of a payload that cannot be read.
const UNREADABLE: &str = "\u{fffd}";

/// One piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Queue,
    Type,
    Key,
    Meta(String),
    /// Names from the outside in.
    Payload(Vec<String>),
}

/// What a scope is made of. Written as text with `{queue}`, `{type}`, `{key}`, `{meta.NAME}` and `{payload.NAME…}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    written: String,
    pieces: Vec<Piece>,
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("{0:?} has a {{ without its }}")]
    Open(String),
    #[error(
        "{{{0}}} is not known; known are {{queue}}, {{type}}, {{key}}, {{meta.NAME}} and {{payload.NAME}}"
    )]
    Unknown(String),
}

impl Template {
    /// Reads a template.
    pub fn new(written: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = written;
        while let Some((text, after)) = rest.split_once('{') {
            if !text.is_empty() {
                pieces.push(Piece::Text(text.to_owned()));
            }
            let (name, after) =
                after.split_once('}').ok_or_else(|| TemplateError::Open(written.to_owned()))?;
            pieces.push(piece(name).ok_or_else(|| TemplateError::Unknown(name.to_owned()))?);
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self { written: written.to_owned(), pieces })
    }

    /// The scope of a job. `None` where the job lacks what the template names: the guard is not for it.
    pub fn render(&self, job: &Job) -> Option<String> {
        let mut out = String::with_capacity(self.written.len() + 16);
        self.render_into(job, &mut out).then_some(out)
    }

    /// [`Template::render`], put behind what is in `out` already. `false`: the guard is not for this job, and `out` has a part of it.
    pub fn render_into(&self, job: &Job, out: &mut String) -> bool {
        self.try_render(job, out).is_some()
    }

    fn try_render(&self, job: &Job, out: &mut String) -> Option<()> {
        let reads_payload = self.pieces.iter().any(|p| matches!(p, Piece::Payload(_)));
        let payload =
            reads_payload.then(|| serde_json::from_str::<serde_json::Value>(job.payload.get()).ok());
        for p in &self.pieces {
            match p {
                Piece::Text(t) => out.push_str(t),
                Piece::Queue => out.push_str(job.queue.as_str()),
                Piece::Type => out.push_str(job.kind.as_str()),
                Piece::Key => out.push_str(job.key.as_deref()?),
                Piece::Meta(name) => out.push_str(job.meta.get(name)?),
                Piece::Payload(path) => {
                    // A document that can be read has a payload that can be, too. If it ever does not, all such jobs share a
                    // scope: no guard is left out because of it.
                    let Some(payload) = payload.as_ref()? else {
                        out.push_str(UNREADABLE);
                        continue;
                    };
                    let value = path.iter().try_fold(payload, |v, name| v.get(name))?;
                    match value {
                        serde_json::Value::String(s) => out.push_str(s),
                        serde_json::Value::Number(n) => out.push_str(&n.to_string()),
                        serde_json::Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
                        _ => return None,
                    }
                }
            }
        }
        Some(())
    }
}

fn piece(name: &str) -> Option<Piece> {
    match name {
        "queue" => Some(Piece::Queue),
        "type" => Some(Piece::Type),
        "key" => Some(Piece::Key),
        _ => {
            let (head, rest) = name.split_once('.').filter(|(_, rest)| !rest.is_empty())?;
            match head {
                "meta" => Some(Piece::Meta(rest.to_owned())),
                "payload" => Some(Piece::Payload(rest.split('.').map(str::to_owned).collect())),
                _ => None,
            }
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{JobId, QueueName},
        wire::job,
    };

    fn a_job(body: &str) -> Job {
        let document = job::parse(body.as_bytes()).unwrap();
        job::check(document, JobId::new("j1").unwrap(), QueueName::new("default").unwrap()).unwrap()
    }

    #[test]
    fn a_scope_is_made_of_what_the_job_says() {
        let job = a_job(
            r#"{"type":"scrape","key":"k 1","meta":{"workspace":"42","thread":"7","agent":"web"},"payload":{"repo":"acme/site","n":{"deep":3}}}"#,
        );
        let render = |t: &str| Template::new(t).unwrap().render(&job);
        assert_eq!(render("{queue}/{type}").unwrap(), "default/scrape");
        assert_eq!(render("{meta.workspace}/{meta.thread}/{meta.agent}").unwrap(), "42/7/web");
        assert_eq!(render("{payload.repo}").unwrap(), "acme/site");
        assert_eq!(render("n={payload.n.deep}:{key}").unwrap(), "n=3:k 1");
        assert_eq!(render("all").unwrap(), "all", "one scope for every job");
    }

    #[test]
    fn a_job_without_what_a_template_names_is_not_guarded_by_it() {
        let job = a_job(r#"{"type":"scrape","payload":{"repo":{"owner":"acme"}}}"#);
        for t in ["{key}", "{meta.workspace}", "{payload.repo}", "{payload.repo.name}"] {
            assert_eq!(Template::new(t).unwrap().render(&job), None, "{t}");
        }
    }

    #[test]
    fn a_template_that_is_not_one_says_what_is_known() {
        assert_eq!(Template::new("{queue").unwrap_err().to_string(), "\"{queue\" has a { without its }");
        let text = Template::new("{kind}").unwrap_err().to_string();
        assert!(text.contains("{kind}") && text.contains("{payload.NAME}"), "{text}");
        assert!(Template::new("{meta.}").is_err());
    }
}
