//! `[guards.loop]`: for whom the loop guard is, and its limits.

use super::{Count, settings::LoopSettings};
use crate::domain::{Job, TypeName, guard::loops::LoopLimits};

/// Stands for every type.
const EVERY: &str = "*";

impl LoopSettings {
    /// Whether it looks at a job: at one with a parent, whose type is not exempt.
    pub fn is_for(&self, job: &Job) -> bool {
        job.lineage.is_some() && !self.exempt.iter().any(|t| t == EVERY || t == job.kind.as_str())
    }

    /// The limits.
    pub fn limits(&self) -> LoopLimits {
        let Self { depth: Count(depth), repeats, fan_out, window, .. } = self;
        LoopLimits {
            depth: u32::try_from(*depth).unwrap_or(u32::MAX),
            repeats: repeats.0,
            fan_out: fan_out.0,
            window: *window,
        }
    }

    /// What is no type.
    pub(super) fn problems(&self) -> Vec<String> {
        let named = self.exempt.iter().filter(|t| *t != EVERY);
        named.filter_map(|t| Some(format!("guards.loop.exempt: {}", TypeName::new(t).err()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        config::{Settings, load_text},
        domain::{JobId, QueueName},
        wire::job::{check, parse},
    };

    fn settings(text: &str, env: &[(&str, &str)]) -> Result<Settings, String> {
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        load_text(Some((text, "test")), &env, &vec![]).map_err(|e| e.to_string())
    }

    #[test]
    fn the_table_inside_guards_is_read_from_file_and_environment() {
        let s = settings(
            "[guards]\noffer = \"7s\"\n[guards.loop]\ndepth = 3\nexempt = [\"poll\"]\n",
            &[("SURETY_GUARDS_LOOP_REPEATS", "9"), ("SURETY_GUARDS_LOOP_DEPTH", "4")],
        )
        .unwrap();
        let limits = s.guards_loop.limits();
        assert_eq!((limits.depth, limits.repeats, limits.fan_out), (4, 9, 100_000));
        let e =
            settings("[guards.loop]\ndeepth = 3\nexempt = [\"No Type\"]\n[guards.loops]\n", &[]).unwrap_err();
        for part in [
            "guards.loop.deepth (test): unknown setting; did you mean \"depth\"?",
            "guards.loops (test): unknown setting; did you mean \"loop\"?",
        ] {
            assert!(e.contains(part), "{part}\n{e}");
        }
        let e = settings("[guards.loop]\nexempt = [\"No Type\"]\n", &[]).unwrap_err();
        assert!(e.contains("guards.loop.exempt: type \"No Type\""), "{e}");
        let e = settings("[guards]\nloop = 3\n", &[]).unwrap_err();
        assert!(e.contains("guards.loop must be a table"), "{e}");
    }

    #[test]
    fn it_is_for_jobs_with_a_parent_whose_type_is_not_exempt() {
        let job = |body: &str| {
            let (id, queue) = (JobId::new("j").unwrap(), QueueName::new("default").unwrap());
            check(parse(body.as_bytes()).unwrap(), id, queue).unwrap()
        };
        let (orphan, child) = (job(r#"{"type":"fix"}"#), job(r#"{"type":"fix","parent":"p"}"#));
        let is_for = |exempt: &str, job| {
            let text = format!("[guards.loop]\nexempt = {exempt}\n");
            settings(&text, &[]).unwrap().guards_loop.is_for(job)
        };
        assert!(is_for("[]", &child) && !is_for("[]", &orphan));
        assert!(is_for("[\"poll\"]", &child) && !is_for("[\"fix\"]", &child) && !is_for("[\"*\"]", &child));
    }
}
