//! JSON Schemas of the wire documents, generated from the Rust types. `make docs` writes them to `schema/`; a test fails
//! when the files differ from the types.

use schemars::{Schema, schema_for};

use super::{
    batch::BatchPart,
    control::{ControlReply, ControlRequest},
    event::Event,
    job::JobDocument,
    notice::Notice,
    pause::PauseDocument,
    receipt::Receipt,
};

/// File name (without folder) and schema of every wire document.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("job.json", schema_for!(JobDocument)),
        ("event.json", schema_for!(Event)),
        ("receipt.json", schema_for!(Receipt)),
        ("notice.json", schema_for!(Notice)),
        ("batch.json", schema_for!(BatchPart)),
        ("pause.json", schema_for!(PauseDocument)),
        ("control-request.json", schema_for!(ControlRequest)),
        ("control-reply.json", schema_for!(ControlReply)),
    ]
}

/// The text of a schema file.
pub fn render(schema: &Schema) -> String {
    let mut s = serde_json::to_string_pretty(schema).unwrap_or_default();
    s.push('\n');
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    // `UPDATE=1 cargo test -p surety-common schema` rewrites the files.
    #[test]
    fn schema_files_match_the_types() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../schema");
        let docs = all();
        assert!(!docs.is_empty());
        for (name, schema) in docs {
            let path = dir.join(name);
            let want = render(&schema);
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, &want).unwrap();
            }
            let have = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(have, want, "{} is not what the types say; run `make docs`", path.display());
        }
    }
}
