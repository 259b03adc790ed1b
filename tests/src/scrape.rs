//! Asking a process for its metrics and health, and a strict reader of the text format of Prometheus.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::process::Process;

/// Where a process that was told to listen on port 0 does so, from its log.
pub async fn address(process: &mut Process) -> SocketAddr {
    const SAYS: &str = "health at http://";
    process.logged(SAYS).await;
    let log = process.log();
    let rest = log.split(SAYS).nth(1).unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

/// `GET path`: status code and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let asked = async {
        let mut s = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        s.write_all(request.as_bytes()).await.unwrap();
        let mut all = String::new();
        s.read_to_string(&mut all).await.unwrap();
        all
    };
    let all = timeout(Duration::from_secs(30), asked).await.expect("an answer in time");
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {all:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// `/readyz`: whether it is ready, and what it says of each part.
pub async fn ready(address: SocketAddr) -> (bool, serde_json::Value) {
    let (status, body) = get(address, "/readyz").await;
    let v: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(v["ready"], status == 200, "{body}");
    (status == 200, v["parts"].clone())
}

/// One series with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// What one scrape showed.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Type of each family.
    pub kinds: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

fn is_name(s: &str) -> bool {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    s.starts_with(is_start) && s.chars().all(|c| is_start(c) || c.is_ascii_digit())
}

impl Scrape {
    /// Scrapes a process.
    pub async fn of(address: SocketAddr) -> Self {
        let (status, body) = get(address, "/metrics").await;
        assert_eq!(status, 200, "{body}");
        Self::read(&body)
    }

    /// Reads the text format; panics where it is not met.
    pub fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut out = Self::default();
        let mut seen = BTreeSet::new();
        let mut helped = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(is_name(name) && !help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(helped.contains(name), "{name} has no help");
                assert!(out.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
            } else {
                assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
                let s = sample(line);
                assert!(out.kinds.contains_key(out.family(&s.name)), "{line}: no type before it");
                assert!(seen.insert((s.name.clone(), s.labels.clone())), "{line}: comes twice");
                out.samples.push(s);
            }
        }
        out.check_histograms();
        out
    }

    /// The family of a sample's name.
    pub fn family<'a>(&self, name: &'a str) -> &'a str {
        let of = |suffix| {
            name.strip_suffix(suffix).filter(|n| self.kinds.get(*n).is_some_and(|k| k == "histogram"))
        };
        of("_bucket").or_else(|| of("_sum")).or_else(|| of("_count")).unwrap_or(name)
    }

    fn check_histograms(&self) {
        let mut last: BTreeMap<(String, BTreeMap<String, String>), (f64, f64)> = BTreeMap::new();
        for s in self.samples.iter().filter(|s| s.name.ends_with("_bucket")) {
            let mut labels = s.labels.clone();
            let le = labels.remove("le").unwrap_or_else(|| panic!("{s:?}"));
            let le: f64 = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
            let before = last.insert((self.family(&s.name).to_owned(), labels), (le, s.value));
            let (bound, count) = before.unwrap_or((f64::NEG_INFINITY, 0.0));
            assert!(le > bound && s.value >= count, "{s:?}: buckets must grow");
        }
        for ((family, labels), (le, count)) in last {
            let n = self.samples.iter().find(|s| s.name == format!("{family}_count") && s.labels == labels);
            assert!(le.is_infinite() && n.is_some_and(|n| n.value == count), "{family} {labels:?}");
        }
    }

    /// Samples of this name with these labels among theirs.
    pub fn find<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        let has = |s: &Sample| labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|x| x == v));
        self.samples.iter().filter(move |s| s.name == name && has(s))
    }

    /// Sum of [`Scrape::find`]; `None` where there is no such series.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.find(name, labels).map(|s| s.value).reduce(|a, b| a + b)
    }

    /// Values that a label has in a metric.
    pub fn values(&self, name: &str, label: &str) -> BTreeSet<String> {
        self.find(name, &[]).filter_map(|s| s.labels.get(label).cloned()).collect()
    }
}

/// `name{a="b"} 1`.
fn sample(line: &str) -> Sample {
    let at = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let (name, mut rest) = line.split_at(at);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        while !inner.starts_with('}') {
            let (label, tail) = inner.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let mut value = String::new();
            let mut chars = tail.char_indices();
            let end = loop {
                match chars.next().unwrap_or_else(|| panic!("{line}: a value has no end")) {
                    (n, '"') => break n + 1,
                    (_, '\\') => match chars.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, c @ ('\\' | '"'))) => value.push(c),
                        other => panic!("{line}: {other:?} after a backslash"),
                    },
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}: {label} comes twice");
            inner = &tail[end..];
            inner = inner.strip_prefix(',').unwrap_or(inner);
        }
        rest = &inner[1..];
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        v => v.parse().unwrap_or_else(|_| panic!("{line}: {v:?} is no number")),
    };
    Sample { name: name.to_owned(), labels, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_text_is_read() {
        let text = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\\\"d\",e=\"\"} 2\na_total 3\n\
                    # HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1.5\nh_count 2\n";
        let s = Scrape::read(text);
        assert_eq!(s.sum("a_total", &[("b", "c\"d")]), Some(2.0));
        assert_eq!((s.sum("a_total", &[]), s.sum("b", &[])), (Some(5.0), None));
        assert_eq!((s.family("h_bucket"), s.family("a_total")), ("h", "a_total"));
    }

    #[test]
    fn a_bad_text_is_not() {
        let head = "# HELP a x\n# TYPE a gauge\n";
        let histogram = "# HELP a x\n# TYPE a histogram\na_sum 1\n";
        for bad in [
            "a 1\n".to_owned(),
            format!("{head}a 1\na 2\n"),
            format!("{head}a 1"),
            format!("{head}a{{b=c}} 1\n"),
            format!("{head}a{{b=\"c\"}} one\n"),
            format!("{head}{head}a 1\n"),
            format!("{histogram}a_bucket{{le=\"1\"}} 1\na_count 1\n"),
            format!("{histogram}a_bucket{{le=\"1\"}} 2\na_bucket{{le=\"+Inf\"}} 1\na_count 1\n"),
        ] {
            assert!(std::panic::catch_unwind(|| Scrape::read(&bad)).is_err(), "{bad}");
        }
    }
}
