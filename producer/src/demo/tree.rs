//! The files that the jobs are about, and what is true of them.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::run::DemoError;

/// Larger files are passed over: the demo is about jobs, not about hashing.
const SIZE_CAP: u64 = 256 * 1024;

/// A folder with files in it.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) root: PathBuf,
    pub(super) files: Vec<PathBuf>,
}

/// What a handler has to find out about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Truth {
    /// Hexadecimal, lower case.
    pub(super) sha256: String,
    pub(super) lines: u64,
}

impl Tree {
    /// The first `n` files, by name, of `root` or of the first usual place that has as many. Blocks.
    /// Errors: `Tree`, with what to do.
    pub(super) fn find(root: Option<PathBuf>, n: usize) -> Result<Self, DemoError> {
        let no = |text: String| DemoError::Tree(text);
        if let Some(root) = root {
            let root = fs::canonicalize(&root).map_err(|e| no(format!("{}: {e}", root.display())))?;
            let files = walk(&root, n);
            return match files.len() {
                found if found < n => Err(no(format!(
                    "{} has {found} files that fit (plain names, at most 256 KiB); at most --files {found} can be had",
                    root.display()
                ))),
                _ => Ok(Self { root, files }),
            };
        }
        let places = places();
        let found = places.iter().find_map(|root| {
            let files = walk(root, n);
            (files.len() >= n).then(|| Self { root: root.clone(), files })
        });
        found.ok_or_else(|| {
            let tried: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
            no(format!("no {n} files in any of {}; name a folder with --tree", tried.join(", ")))
        })
    }
}

/// Where a machine with a Rust toolchain has many files.
fn places() -> Vec<PathBuf> {
    let home = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cargo = home("CARGO_HOME").or_else(|| home("HOME").map(|h| h.join(".cargo")));
    let mut all: Vec<PathBuf> = cargo.map(|c| c.join("registry/src")).into_iter().collect();
    all.extend(sysroot().map(|s| s.join("share")));
    all.extend(["/usr/share", "/usr/include"].map(PathBuf::from));
    all.into_iter().filter_map(|p| fs::canonicalize(p).ok()).collect()
}

fn sysroot() -> Option<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|p| p.is_absolute())
}

/// Up to `n` files below `root`, by name. What cannot be read is passed over, as are symbolic links.
fn walk(root: &Path, n: usize) -> Vec<PathBuf> {
    let mut files = Vec::with_capacity(n);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut names: Vec<(OsString, fs::FileType)> =
            entries.flatten().filter_map(|e| Some((e.file_name(), e.file_type().ok()?))).collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        let mut below = Vec::new();
        for (name, kind) in names {
            let path = folder.join(name);
            if kind.is_dir() {
                below.push(path);
            } else if kind.is_file() && is_plain(&path) && is_readable(&path) {
                files.push(path);
                if files.len() == n {
                    return files;
                }
            }
        }
        folders.extend(below.into_iter().rev());
    }
    files
}

/// Whether a path stands in JSON, in a shell variable and in the output of `sha256sum` as it is.
fn is_plain(path: &Path) -> bool {
    path.to_str().is_some_and(|p| p.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\'))
}

fn is_readable(path: &Path) -> bool {
    fs::File::open(path).and_then(|f| f.metadata()).is_ok_and(|m| m.len() <= SIZE_CAP)
}

/// What is true of a file. Blocks.
pub(super) fn truth(path: &Path) -> io::Result<Truth> {
    let bytes = fs::read(path)?;
    let sha256 = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let lines = bytes.iter().filter(|b| **b == b'\n').count() as u64;
    Ok(Truth { sha256, lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_fit_are_taken_and_a_short_tree_says_how_many_there_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b", "a b", "sub/c", "d\"e"] {
            fs::write(dir.path().join(name), "x\n").unwrap();
        }
        fs::write(dir.path().join("large"), vec![0; 300_000]).unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("link")).unwrap();
        let tree = Tree::find(Some(dir.path().to_owned()), 2).unwrap();
        let names: Vec<_> = tree.files.iter().map(|f| f.strip_prefix(&tree.root).unwrap()).collect();
        assert_eq!(names, [Path::new("b"), Path::new("sub/c")]);
        let e = Tree::find(Some(dir.path().to_owned()), 3).unwrap_err();
        assert!(e.to_string().contains("has 2 files that fit"), "{e}");
    }

    #[test]
    fn the_truth_is_the_known_digest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let t = truth(file.path()).unwrap();
        assert_eq!(t.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(t.lines, 0);
    }
}
