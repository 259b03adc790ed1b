//! The environment of a handler: a base, what its table lets through, and which servers its worker is connected to, as what it
//! enqueues goes to the same Surety. Nothing else of the worker's environment, which may hold secrets.

use super::{Connection, Handler};
use crate::domain::text::without_login;

/// Where NATS is. Clients of other makers read it, too.
pub const NATS_URL: &str = "NATS_URL";
/// Where Redis is.
pub const REDIS_URL: &str = "REDIS_URL";
/// Prefix of subjects, streams and keys.
pub const NAMESPACE: &str = "SURETY_CONNECTION_NAMESPACE";

/// What every handler gets of the worker's environment. A `*` stands for any end.
pub const BASE: [&str; 15] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TZDIR",
    "TMPDIR",
    "TERM",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Beginnings of the names that we read ourselves, and that may hold our logins.
const OURS: [&str; 3] = ["SURETY_", "NATS_", "REDIS_"];

/// Whether every handler gets this variable.
pub fn is_base(name: &str) -> bool {
    BASE.iter().any(|p| matches(p, name))
}

/// Whether a name or beginning of a name covers a variable. One of ours is not covered by less than what it begins with.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        None => pattern == name,
        Some(begin) => {
            name.starts_with(begin) && OURS.iter().all(|o| !name.starts_with(o) || begin.starts_with(o))
        }
    }
}

/// Variables for a handler beside the base: what its table lets through, the servers, and what its table sets. Of two with the
/// same name the later one counts.
///
/// No secret comes to a handler unless its table says so: an address is handed without the login that it may hold.
pub fn variables(c: &Connection, handler: &Handler) -> Vec<(String, String)> {
    variables_in(
        c,
        handler,
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
    )
}

/// [`variables`] in another environment.
fn variables_in(
    c: &Connection,
    handler: &Handler,
    environment: impl Iterator<Item = (String, String)>,
) -> Vec<(String, String)> {
    let mut own: Vec<(String, String)> = Vec::new();
    // Most have none, and need not look.
    if !handler.inherit.is_empty() {
        own.extend(environment.filter(|(name, _)| handler.inherit.iter().any(|p| matches(p, name))));
    }
    own.extend(handler.env.iter().cloned());
    let mut out = Vec::with_capacity(3 + own.len());
    let mut hand = |name: &str, value: String, others: &[&str]| {
        if !own.iter().any(|(k, _)| k == name || others.contains(&k.as_str())) {
            out.push((name.to_owned(), value));
        }
    };
    let bare = |each: Vec<String>| each.iter().map(|a| without_login(a)).collect::<Vec<_>>().join(",");
    let others = [
        "NATS_URL_FILE",
        "SURETY_CONNECTION_NATS_URL",
        "SURETY_CONNECTION_NATS_URL_FILE",
        "NATS_CONTEXT",
        "SURETY_CONNECTION_NATS_CONTEXT",
    ];
    hand(NATS_URL, bare(c.nats_url.each()), &others);
    let others = ["REDIS_URL_FILE", "SURETY_CONNECTION_REDIS_URL", "SURETY_CONNECTION_REDIS_URL_FILE"];
    hand(REDIS_URL, bare(c.redis_url.each()), &others);
    hand(NAMESPACE, c.namespace.clone(), &[]);
    out.extend(own);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Secret, load_text};

    fn here() -> Connection {
        Connection {
            nats_url: "nats://127.0.0.1:24222".into(),
            redis_url: "redis://127.0.0.1:26379".into(),
            namespace: "mine".into(),
            ..load_text(None, &|_| None, &vec![]).unwrap().connection
        }
    }

    /// What a handler gets whose table has this, of a worker with these variables.
    fn given(c: &Connection, table: &str, environment: &[&str]) -> Vec<String> {
        let text = format!("[handlers.x]\ncommand = [\"x\"]\n{table}");
        let settings = load_text(Some((&text, "test")), &|_| None, &vec![]).unwrap();
        let environment = environment.iter().map(|k| ((*k).to_owned(), "worker's".to_owned()));
        let all = variables_in(c, &settings.handlers["x"], environment);
        all.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    const NATS: &str = "NATS_URL=nats://127.0.0.1:24222";
    const REDIS: &str = "REDIS_URL=redis://127.0.0.1:26379";
    const MINE: &str = "SURETY_CONNECTION_NAMESPACE=mine";

    #[test]
    fn a_handler_is_handed_the_servers_unless_its_table_names_others() {
        assert_eq!(given(&here(), "", &["NATS_URL", "SECRET"]), [NATS, REDIS, MINE]);
        let own = r#"env = { SURETY_CONNECTION_NATS_URL = "own" }"#;
        assert_eq!(given(&here(), own, &[]), [REDIS, MINE, "SURETY_CONNECTION_NATS_URL=own"]);
        let own = r#"env = { REDIS_URL = "own", SURETY_CONNECTION_NAMESPACE = "own" }"#;
        assert_eq!(given(&here(), own, &[]), [NATS, "REDIS_URL=own", "SURETY_CONNECTION_NAMESPACE=own"]);
        // What it is to inherit stands where the worker has it.
        let own = r#"inherit = ["NATS_CONTEXT"]"#;
        assert_eq!(given(&here(), own, &["NATS_CONTEXT"]), [REDIS, MINE, "NATS_CONTEXT=worker's"]);
        assert_eq!(given(&here(), own, &[]), [NATS, REDIS, MINE]);
    }

    #[test]
    fn a_handler_inherits_what_its_table_names_and_nothing_of_ours_by_a_short_pattern() {
        let all =
            ["AWS_REGION", "AWS_KEY", "HTTPS_PROXY", "SURETY_CONNECTION_REDIS_PASSWORD", "NATS_CREDS", "S"];
        let names = |inherit: &str| -> Vec<String> {
            let given = given(&here(), &format!("inherit = {inherit}"), &all);
            given.iter().filter_map(|v| Some(v.strip_suffix("=worker's")?.to_owned())).collect()
        };
        assert_eq!(names("[]"), [""; 0]);
        assert_eq!(names(r#"["AWS_*", "HTTPS"]"#), ["AWS_REGION", "AWS_KEY"]);
        assert_eq!(names(r#"["*"]"#), ["AWS_REGION", "AWS_KEY", "HTTPS_PROXY", "S"]);
        assert_eq!(names(r#"["S*", "N*", "SURETY*"]"#), ["S"]);
        assert_eq!(names(r#"["SURETY_*"]"#), ["SURETY_CONNECTION_REDIS_PASSWORD"]);
        assert_eq!(names(r#"["NATS_CREDS"]"#), ["NATS_CREDS"]);
        for bad in [r#"[""]"#, r#"["A*B"]"#, r#"["A=B"]"#, r#"["A B"]"#, r#""A""#, "[1]"] {
            let text = format!("[handlers.x]\ncommand = [\"x\"]\ninherit = {bad}");
            let e = load_text(Some((&text, "test")), &|_| None, &vec![]).unwrap_err().to_string();
            assert!(e.contains("handlers.x.inherit"), "{bad}: {e}");
        }
    }

    #[test]
    fn the_base_holds_no_name_that_may_be_a_secret() {
        for name in ["PATH", "HOME", "LC_ALL", "TZ"] {
            assert!(is_base(name), "{name}");
        }
        for name in
            ["SURETY_CONNECTION_REDIS_PASSWORD", "NATS_URL", "REDIS_URL", "AWS_KEY", "PATHS", "LC", ""]
        {
            assert!(!is_base(name), "{name}");
        }
    }

    #[test]
    fn a_handler_is_handed_no_secret() {
        for (nats, redis) in [
            ("nats://ann:s3cret@h:4222,nats://i:4222", "redis://:s3cret@h:6379/2"),
            ("nats://ann:s3cret@h:4222,i:4222", "rediss://ann:s3cret@h:6379?db=1"),
            ("s3cret@h:4222", "redis+unix:///run/r?db=1&user=ann&pass=s3cret"),
            ("nats://ann:s3c,s3cret@h:4222", "redis://ann:s3cret/x@h:6379"),
        ] {
            let c = Connection {
                nats_url: nats.into(),
                redis_url: redis.into(),
                nats_password: Secret::new("s3cret"),
                redis_password: Secret::new("s3cret"),
                nats_token: Secret::new("s3cret"),
                ..here()
            };
            let all = given(&c, "", &["SURETY_CONNECTION_REDIS_PASSWORD", "NATS_URL"]);
            assert!(!format!("{all:?}").contains("s3c") && !format!("{all:?}").contains("ann"), "{all:?}");
            assert_eq!(all.len(), 3, "{all:?}");
        }
        let c = Connection { nats_url: "nats://a:b@h:4222,i:4222".into(), ..here() };
        assert_eq!(given(&c, "", &[])[0], "NATS_URL=nats://h:4222,nats://i:4222");
        let c = Connection { redis_url: "redis+unix:///run/r?db=1&user=a&pass=b".into(), ..here() };
        assert_eq!(given(&c, "", &[])[1], "REDIS_URL=redis+unix:///run/r?db=1");
    }
}
