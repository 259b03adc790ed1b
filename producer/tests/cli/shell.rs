//! Completions and manual pages, as the programs that read them see them. No server is needed.

use std::{path::Path, process::Output};

use tokio::process::Command;

use super::support::{Said, finish, surety};

async fn run(folder: &Path, args: &[&str]) -> Said {
    let mut c = surety(folder);
    c.args(args);
    finish(c).await
}

async fn bash(folder: &Path, script: &str) -> Output {
    Command::new("bash").args(["-euc", script]).current_dir(folder).output().await.unwrap()
}

#[tokio::test]
async fn bash_completes_commands_options_and_values() {
    let folder = tempfile::tempdir().unwrap();
    // A broken configuration is in nobody's way here.
    std::fs::write(folder.path().join("surety.toml"), "nonsense").unwrap();
    let script = run(folder.path(), &["completions", "bash"]).await.exits(0).out;
    std::fs::write(folder.path().join("surety.bash"), script).unwrap();
    for (words, completed) in [
        ("surety dl", "dlq"),
        ("surety dlq re", "replay"),
        ("surety watch --ki", "--kind"),
        ("surety watch --kind fini", "finished"),
        ("surety completions ba", "bash"),
    ] {
        let ask = format!(
            ". ./surety.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _surety surety \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let out = bash(folder.path(), &ask).await;
        let said = String::from_utf8(out.stdout).unwrap();
        assert_eq!(said.trim(), completed, "{words}: {}", String::from_utf8_lossy(&out.stderr));
    }
    for (shell, part) in [("zsh", "#compdef surety"), ("fish", "complete -c surety")] {
        let script = run(folder.path(), &["completions", shell]).await.exits(0).out;
        assert!(script.contains(part) && script.contains("replay"), "{shell}");
    }
    let answer = run(folder.path(), &["--json", "completions", "fish"]).await.exits(0).json();
    assert_eq!(answer["shell"], "fish");
    run(folder.path(), &["completions", "tcsh"]).await.exits(2);
}

#[tokio::test]
async fn every_command_has_a_manual_page_with_its_example() {
    let folder = tempfile::tempdir().unwrap();
    let page = run(folder.path(), &["man", "dlq", "replay"]).await.exits(0).out;
    for part in ["surety\\-dlq\\-replay", "\\-\\-reason", "Example:"] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    let answer = run(folder.path(), &["--json", "man", "--out", "pages"]).await.exits(0).json();
    let files: Vec<&str> = answer["files"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    for name in ["surety", "surety-watch", "surety-dlq", "surety-dlq-replay"] {
        assert!(files.contains(&format!("pages/{name}.1").as_str()), "{files:?}");
    }
    for f in &files {
        let text = std::fs::read_to_string(folder.path().join(f)).unwrap();
        assert!(text.contains(".TH ") && text.contains("Example:"), "{f}");
    }
    assert!(!files.iter().any(|f| f.contains("help")), "{files:?}");
    run(folder.path(), &["man", "frobnicate"]).await.exits(2).complains("no command \"frobnicate\"");
    std::fs::write(folder.path().join("file"), "").unwrap();
    run(folder.path(), &["man", "--out", "file"]).await.exits(2).complains("cannot write file/");
}
