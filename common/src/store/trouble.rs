//! What an error of Redis means for its caller: the one place that knows its codes.

use redis::{ErrorKind, RedisError, RedisResult, Value};

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It passes by itself at this server, or the client already looks elsewhere: the call is repeated.
    Passing,
    /// This server is not, or not yet, the one that takes writes: the address may lead to another one by now, so the connection is
    /// made anew before the call is repeated.
    Elsewhere,
    /// Repeating does not help.
    Lasting,
}

/// What an error code means. Codes that this table does not name are of the call, and last.
fn of_code(code: &str) -> Trouble {
    match code {
        // A replica, or a master that became one under a call that waited; one that loads may be a replica that syncs.
        "READONLY" | "MASTERDOWN" | "UNBLOCKED" | "LOADING" => Trouble::Elsewhere,
        // A cluster that moves slots or elects: the client looks again where they are. NOSCRIPT: the script was loaded at a node
        // that has failed over since.
        "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "NOSCRIPT" => Trouble::Passing,
        // Writes are refused until memory, disk or replicas are there again; another script runs for long.
        "OOM" | "MISCONF" | "NOREPLICAS" | "BUSY" => Trouble::Passing,
        _ => Trouble::Lasting,
    }
}

/// What an error means.
pub(super) fn of(e: &RedisError) -> Trouble {
    if e.is_io_error()
        || e.is_timeout()
        || e.is_connection_dropped()
        || e.is_connection_refusal()
        || e.kind() == ErrorKind::ClusterConnectionNotFound
    {
        return Trouble::Passing;
    }
    e.code().map_or(Trouble::Lasting, of_code)
}

/// Whether an answer says that the connection leads to the wrong server.
pub(super) fn is_elsewhere(answer: &RedisResult<Value>) -> bool {
    match answer {
        Ok(Value::ServerError(e)) => of_code(e.code()) == Trouble::Elsewhere,
        Ok(_) => false,
        Err(e) => of(e) == Trouble::Elsewhere,
    }
}

/// Whether the answers to a pipeline say so.
pub(super) fn are_elsewhere(answers: &RedisResult<Vec<Value>>) -> bool {
    match answers {
        Ok(all) => {
            all.iter().any(|v| matches!(v, Value::ServerError(e) if of_code(e.code()) == Trouble::Elsewhere))
        }
        Err(e) => of(e) == Trouble::Elsewhere,
    }
}

/// Whether the server refuses writes for now, and answers otherwise.
pub(super) fn refuses_writes(e: &RedisError) -> bool {
    matches!(e.code(), Some("OOM" | "MISCONF" | "NOREPLICAS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code that Redis 7 and Valkey answer with (their sources, `shared.*err` and `addReplyErrorFormat`).
    const CODES: &[(&str, Trouble)] = &[
        ("READONLY", Trouble::Elsewhere),
        ("MASTERDOWN", Trouble::Elsewhere),
        ("UNBLOCKED", Trouble::Elsewhere),
        ("LOADING", Trouble::Elsewhere),
        ("MOVED", Trouble::Passing),
        ("ASK", Trouble::Passing),
        ("TRYAGAIN", Trouble::Passing),
        ("CLUSTERDOWN", Trouble::Passing),
        ("NOSCRIPT", Trouble::Passing),
        ("OOM", Trouble::Passing),
        ("MISCONF", Trouble::Passing),
        ("NOREPLICAS", Trouble::Passing),
        ("BUSY", Trouble::Passing),
        ("ERR", Trouble::Lasting),
        ("WRONGTYPE", Trouble::Lasting),
        ("CROSSSLOT", Trouble::Lasting),
        ("NOAUTH", Trouble::Lasting),
        ("WRONGPASS", Trouble::Lasting),
        ("NOPERM", Trouble::Lasting),
        ("EXECABORT", Trouble::Lasting),
        ("BUSYKEY", Trouble::Lasting),
        ("BUSYGROUP", Trouble::Lasting),
        ("NOGROUP", Trouble::Lasting),
        ("NOTBUSY", Trouble::Lasting),
        ("UNKILLABLE", Trouble::Lasting),
        ("NOGOODSLAVE", Trouble::Lasting),
        ("NOQUORUM", Trouble::Lasting),
        ("NOPROTO", Trouble::Lasting),
        ("NOMASTERLINK", Trouble::Lasting),
        ("INPROG", Trouble::Lasting),
        ("IOERR", Trouble::Lasting),
        ("DENIED", Trouble::Lasting),
    ];

    #[test]
    fn each_code_of_the_server_has_its_meaning() {
        for (code, want) in CODES {
            assert_eq!(of_code(code), *want, "{code}");
        }
    }
}
