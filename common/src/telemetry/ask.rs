//! The other side of [`super::server`]: a process on this host is asked whether it is ready. For health checks where there
//! is nothing else that speaks HTTP, as in a container with one program.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use super::Listen;

/// Longest wait for the connection, and for the next piece of the answer, which itself comes within a second.
const WITHIN: Duration = Duration::from_secs(2);
/// Longest answer that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Why it is not ready.
#[derive(Debug, thiserror::Error)]
enum NotReady {
    #[error(
        "nobody to ask: telemetry.listen is off; set it (--listen, SURETY_TELEMETRY_LISTEN) for the process too"
    )]
    Off,
    #[error("no answer at {address}: {source}")]
    Silent { address: SocketAddr, source: io::Error },
    /// What it said.
    #[error("not ready: {0}")]
    No(String),
}

/// Where a process that listens there is reached from the same host: one that listens everywhere, on the loopback.
fn reached(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Asks the process that listens there; blocks for some seconds at most. Its answer, one line of JSON, or why there is none.
fn ask(listen: Listen) -> Result<String, NotReady> {
    let Listen::At(address) = listen else { return Err(NotReady::Off) };
    let address = reached(address);
    let said = exchange(address).map_err(|source| NotReady::Silent { address, source })?;
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or((said.as_str(), ""));
    let body = body.trim().to_owned();
    if head.starts_with("HTTP/1.1 200 ") { Ok(body) } else { Err(NotReady::No(body)) }
}

fn exchange(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut said = String::new();
    stream.take(LONGEST).read_to_string(&mut said)?;
    Ok(said)
}

/// What `surety-worker health` and `surety-reaper health` do: exit code 0 when it is ready, 1 when not, 78 when there is
/// nothing to ask. The answer goes to stderr, where a health check keeps it.
pub fn health(program: &str, listen: Listen) -> ExitCode {
    match ask(listen) {
        Ok(said) => {
            eprintln!("{program}: {said}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{program}: {e}");
            ExitCode::from(if matches!(e, NotReady::Off) { 78 } else { 1 })
        }
    }
}

/// The arguments of this process without the first one after its name, where that is this word.
pub fn arguments_after(word: &str) -> Option<Vec<std::ffi::OsString>> {
    let all: Vec<_> = std::env::args_os().collect();
    let is_it = all.get(1).is_some_and(|a| a == word);
    is_it.then(|| all.into_iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, a)| a).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_reached_on_the_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.1.2.3:9464", "10.1.2.3:9464"),
        ] {
            assert_eq!(reached(listens.parse().unwrap()), asked.parse().unwrap());
        }
        assert!(matches!(ask(Listen::Off), Err(NotReady::Off)));
    }
}
