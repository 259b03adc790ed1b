//! Relative paths in a configuration file: they begin at its folder, wherever a process is started.

use std::path::{Path, PathBuf};

use toml::Value;

/// The folder that the paths of this file begin at. `None`: it is no file of a folder (a pipe: `--config <(…)`).
pub(super) fn folder(file: &str) -> Option<PathBuf> {
    let folder = std::path::absolute(file).ok()?.parent()?.to_owned();
    let is_special = ["/dev", "/proc"].iter().any(|special| folder.starts_with(special));
    (!is_special).then_some(folder)
}

/// A path as it counts from the folder. One that is absolute, empty, or begins with `~` stays.
pub(super) fn resolve(folder: &Path, value: &mut Value) {
    if let Value::String(path) = value
        && !path.is_empty()
        && !path.starts_with(['/', '~'])
    {
        *path = folder.join(path.strip_prefix("./").unwrap_or(path)).display().to_string();
    }
}

/// The table of a handler: its program where it is a path and no name to be searched for, and its working folder, which is that of the
/// file where none is set. So arguments that are paths count from there too.
pub(super) fn resolve_handler(folder: &Path, value: &mut Value) {
    let Some(table) = value.as_table_mut() else { return };
    if let Some(program) = table.get_mut("command").and_then(Value::as_array_mut).and_then(|c| c.first_mut())
        && program.as_str().is_some_and(|p| p.contains('/'))
    {
        resolve(folder, program);
    }
    match table.get_mut("cwd") {
        Some(cwd) => resolve(folder, cwd),
        None => {
            table.insert("cwd".to_owned(), Value::String(folder.display().to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Settings, load_text};

    fn load(text: &str, file: &str) -> Settings {
        load_text(Some((text, file)), &|_| None, &vec![]).unwrap()
    }

    #[test]
    fn what_is_relative_in_a_file_begins_at_its_folder() {
        let text = r#"
            [connection]
            nats_creds = "creds/worker.creds"
            redis_url = "rediss://127.0.0.1"
            redis_ca = "/etc/ca.pem"
            [worker]
            state_dir = "state"
            [handlers.a]
            command = ["./run.sh", "data/x"]
            [handlers.b]
            command = ["python3", "b.py"]
            cwd = "b"
            [handlers.c]
            command = ["/bin/true"]
            cwd = "/srv"
        "#;
        let s = load(text, "/srv/app/surety.toml");
        let of = |name: &str| {
            let h = &s.handlers[name];
            (h.command[0].clone(), h.cwd.as_ref().unwrap().display().to_string())
        };
        assert_eq!(of("a"), ("/srv/app/run.sh".into(), "/srv/app".into()));
        assert_eq!(s.handlers["a"].command[1], "data/x", "an argument is what the program makes of it");
        assert_eq!(of("b"), ("python3".into(), "/srv/app/b".into()));
        assert_eq!(of("c"), ("/bin/true".into(), "/srv".into()));
        assert_eq!(s.worker.state_dir, "/srv/app/state");
        assert_eq!(
            s.connection.nats_creds.get().unwrap().display().to_string(),
            "/srv/app/creds/worker.creds"
        );
        assert_eq!(s.connection.redis_ca.get().unwrap().display().to_string(), "/etc/ca.pem");
    }

    #[test]
    fn what_another_layer_sets_and_what_comes_through_a_pipe_begins_where_the_process_is() {
        let flags = vec![("worker.state_dir", "mine".to_owned(), "--state-dir")];
        let s =
            load_text(Some(("[worker]\nstate_dir = \"x\"", "/srv/surety.toml")), &|_| None, &flags).unwrap();
        assert_eq!(s.worker.state_dir, "mine");
        assert_eq!(load("", "/srv/surety.toml").worker.state_dir, ".surety/state", "a default");
        let s = load("[handlers.a]\ncommand = [\"./a\"]", "/dev/fd/63");
        assert_eq!((s.handlers["a"].command[0].as_str(), s.handlers["a"].cwd.as_ref()), ("./a", None));
    }
}
