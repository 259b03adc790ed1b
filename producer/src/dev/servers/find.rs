//! Which binaries: found, and new enough.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs, io,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{ServerError, process::Process};

/// How long `--version` may take.
const VERSION_WITHIN: Duration = Duration::from_secs(10);

pub(super) static NATS: Program = Program {
    name: "nats-server",
    variable: "SURETY_NATS_SERVER",
    minimum: Version(2, 14, 2),
    hint: " (Debian's package is too old)",
};
pub(super) static REDIS: Program =
    Program { name: "redis-server", variable: "SURETY_REDIS_SERVER", minimum: Version(7, 0, 0), hint: "" };

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u64, u64, u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The version in `nats-server: v2.15.1` or `Redis server v=7.0.15 sha=…`.
    fn parse(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let digits = word.strip_prefix('v')?;
            let digits = digits.strip_prefix('=').unwrap_or(digits);
            let mut parts = digits
                .split('.')
                .map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default())
                .map(str::parse::<u64>);
            let major = parts.next()?.ok()?;
            let minor = parts.next()?.ok()?;
            let patch = parts.next().and_then(Result::ok).unwrap_or(0);
            Some(Self(major, minor, patch))
        })
    }
}

#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) variable: &'static str,
    pub(super) minimum: Version,
    pub(super) hint: &'static str,
}

/// The `nats-server` to use (2.14.2 or newer), as an absolute path where one can be had.
///
/// Looked for in this order: `SURETY_NATS_SERVER`; `.servers/bin` of the current folder or of any
/// parent of it; `.servers/bin` of any folder above the running executable; `PATH`. The variable, when
/// set, must be usable; elsewhere a binary that is too old is passed over. Runs `--version` and so
/// blocks for some milliseconds.
///
/// # Errors
/// [`ServerError::NotFound`], saying what was found and why it cannot be used.
pub fn find_nats_server() -> Result<PathBuf, ServerError> {
    NATS.find()
}

/// The `redis-server` to use (7.0.0 or newer); looked for like [`find_nats_server`] does, with
/// `SURETY_REDIS_SERVER`.
///
/// # Errors
/// [`ServerError::NotFound`], saying what was found and why it cannot be used.
pub fn find_redis_server() -> Result<PathBuf, ServerError> {
    REDIS.find()
}

impl Program {
    pub(super) fn find(&self) -> Result<PathBuf, ServerError> {
        self.find_in(env::var_os(self.variable).filter(|value| !value.is_empty()), &self.candidates())
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let here = env::current_dir().ok();
        let executable = env::current_exe().ok();
        let above = [here.as_deref(), executable.as_deref().and_then(Path::parent)]
            .into_iter()
            .flatten()
            .flat_map(Path::ancestors)
            .map(|folder| folder.join(".servers/bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let mut seen = BTreeSet::new();
        above
            .chain(env::split_paths(&path).filter(|folder| folder.is_absolute()))
            .map(|folder| folder.join(self.name))
            .filter(|candidate| seen.insert(candidate.clone()))
            .collect()
    }

    fn find_in(&self, set: Option<OsString>, candidates: &[PathBuf]) -> Result<PathBuf, ServerError> {
        let not_found = |detail| ServerError::NotFound { program: self.name, detail };
        if let Some(set) = set {
            // Absolute, for the server is started in another folder.
            let path = std::path::absolute(&set).unwrap_or_else(|_| PathBuf::from(set));
            return match self.check(&path) {
                Ok(()) => Ok(path),
                Err(reason) => Err(not_found(format!("{} is set, but {reason}", self.variable))),
            };
        }
        let mut reasons = Vec::new();
        for candidate in candidates.iter().filter(|path| is_executable(path)) {
            match self.check(candidate) {
                Ok(()) => return Ok(candidate.clone()),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(not_found(if reasons.is_empty() {
            format!("found none in .servers/bin or PATH, need >= {}", self.minimum)
        } else {
            reasons.join("; ")
        }))
    }

    fn check(&self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        if !is_executable(path) {
            return Err(format!("{shown} is not an executable file"));
        }
        let text = version_text(path).map_err(|error| format!("{shown} cannot be run: {error}"))?;
        match Version::parse(&text) {
            Some(version) if version >= self.minimum => Ok(()),
            Some(version) => {
                Err(format!("found {shown} is version {version}, need >= {}{}", self.minimum, self.hint))
            }
            None => Err(format!("found {shown} does not tell its version")),
        }
    }
}

pub(super) fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What `path --version` prints, in bounded time.
fn version_text(path: &Path) -> io::Result<String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Process::new(command.spawn()?);
    // The few bytes of a version fit into the pipe, so the program ends without a reader.
    let deadline = std::time::Instant::now() + VERSION_WITHIN;
    while process.exited()?.is_none() {
        if std::time::Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "--version does not end"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    let mut text = String::new();
    if let Some(output) = process.child.as_mut().and_then(|child| child.stdout.take()) {
        output.take(4096).read_to_string(&mut text)?;
    }
    Ok(text)
}
