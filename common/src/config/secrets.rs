//! Settings that hold secrets, or name files that do. None of them is ever printed with what it holds.

use std::{
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
};

use super::value::Setting;
use crate::domain::text::mask;

/// A password or token. Printed as `***`; what it holds is had by [`Secret::reveal`] alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret of this text; of an empty one: none.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        !self.0.is_empty()
    }

    /// The secret itself, to hand to a server.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "\"***\"" } else { "\"\"" })
    }
}

impl Setting for Secret {
    const KIND: &'static str = "secret";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::String(s) => Ok(Some(Self(s.clone()))),
            // Not the value itself: it may be the secret without its quotes.
            _ => Err("it is not a text in quotes".to_owned()),
        }
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

/// One address or several, separated by commas; each may hold a password, which is not printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// What may be printed: user and password of each address are masked.
    pub fn masked(&self) -> String {
        self.parts().iter().map(|p| mask(p)).collect::<Vec<_>>().join(",")
    }

    /// Each address. One that has no scheme has scheme and login of the first.
    pub fn each(&self) -> Vec<String> {
        let parts = self.parts();
        let first = parts.first().map_or("", |p| p.trim());
        let start = first.rfind('@').map(|at| at + 1).or_else(|| first.find("://").map(|at| at + 3));
        let like = first.get(..start.unwrap_or(0)).unwrap_or("");
        let whole = |p: &str| if p.contains("://") { p.to_owned() } else { format!("{like}{p}") };
        parts.iter().map(|p| p.trim()).filter(|p| !p.is_empty()).map(whole).collect()
    }

    fn parts(&self) -> Vec<String> {
        let mut parts: Vec<String> = Vec::new();
        for part in self.0.split(',') {
            match parts.last_mut() {
                // Perhaps the end of a password that holds a comma.
                Some(last) if part.contains('@') && !part.contains("://") => *last = format!("{last},{part}"),
                _ => parts.push(part.to_owned()),
            }
        }
        parts
    }
}

impl Deref for Address {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Address {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl PartialEq<str> for Address {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<String> for Address {
    fn eq(&self, other: &String) -> bool {
        self.0 == *other
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.masked(), f)
    }
}

impl Setting for Address {
    const KIND: &'static str = "address";
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::String(s) => Ok(Some(Self(s.clone()))),
            _ => Err("it is not a text in quotes".to_owned()),
        }
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

/// The path of a file that is read when it is needed; empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilePath(PathBuf);

impl FilePath {
    /// The path, if one is set.
    pub fn get(&self) -> Option<&Path> {
        (!self.0.as_os_str().is_empty()).then_some(self.0.as_path())
    }
}

/// In the environment the name may end in `_FILE`, which then means the same: the path of the file.
pub(super) const FILE: &str = "file";

impl Setting for FilePath {
    const KIND: &'static str = FILE;
    fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::String(s) => Ok(Some(Self(s.into()))),
            other => Err(format!("{other} is not a path in quotes")),
        }
    }
    fn show(&self) -> String {
        format!("{:?}", self.0.display().to_string())
    }
}
