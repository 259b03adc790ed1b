//! Which servers a worker is connected to, as it hands that to its handlers: what they enqueue goes to the same Surety.

use super::Connection;

/// Where NATS is. Clients of other makers read it, too.
pub const NATS_URL: &str = "NATS_URL";
/// Where Redis is.
pub const REDIS_URL: &str = "REDIS_URL";
/// Prefix of subjects, streams and keys.
pub const NAMESPACE: &str = "SURETY_CONNECTION_NAMESPACE";

/// Variables for the environment of a handler, which inherits this process's. `own`: what the handler's table sets, which stands.
///
/// No secret comes into an environment that did not have it: where this process logs in, it hands out no address, and the handler
/// finds one as it did before.
pub fn variables(c: &Connection, own: &[(String, String)]) -> Vec<(String, String)> {
    variables_in(c, own, &|name| std::env::var_os(name).is_some())
}

/// [`variables`] in another environment, where `is_inherited` are the variables that it has.
fn variables_in(
    c: &Connection,
    own: &[(String, String)],
    is_inherited: &dyn Fn(&str) -> bool,
) -> Vec<(String, String)> {
    let is_own = |names: &[&str]| own.iter().any(|(k, _)| names.contains(&k.as_str()));
    let mut out = Vec::new();
    let mut hand = |name: &str, value: &str, others: &[&str]| {
        if is_own(&[&[name], others].concat()) {
            return;
        }
        out.push((name.to_owned(), value.to_owned()));
        // What would count for more, or beside it, counts as not set when it is empty.
        let shadows = others.iter().filter(|o| is_inherited(o));
        out.extend(shadows.map(|o| ((*o).to_owned(), String::new())));
    };
    let is_nats_open = c.nats_user.is_empty()
        && !c.nats_password.is_set()
        && !c.nats_token.is_set()
        && [&c.nats_creds, &c.nats_nkey, &c.nats_key].iter().all(|f| f.get().is_none());
    if is_nats_open && !c.nats_url.contains('@') {
        let mut others =
            vec!["NATS_URL_FILE", "SURETY_CONNECTION_NATS_URL", "SURETY_CONNECTION_NATS_URL_FILE"];
        if c.nats_context.is_empty() {
            others.extend(["NATS_CONTEXT", "SURETY_CONNECTION_NATS_CONTEXT"]);
        }
        hand(NATS_URL, &c.nats_url, &others);
    }
    let is_redis_open = c.redis_user.is_empty() && !c.redis_password.is_set() && c.redis_key.get().is_none();
    if is_redis_open && !c.redis_url.contains('@') {
        let others = ["REDIS_URL_FILE", "SURETY_CONNECTION_REDIS_URL", "SURETY_CONNECTION_REDIS_URL_FILE"];
        hand(REDIS_URL, &c.redis_url, &others);
    }
    hand(NAMESPACE, &c.namespace, &[]);
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

    fn given(c: &Connection, own: &[&str], inherited: &[&str]) -> Vec<String> {
        let own: Vec<_> = own.iter().map(|k| ((*k).to_owned(), "own".to_owned())).collect();
        let all = variables_in(c, &own, &|name| inherited.contains(&name));
        all.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[test]
    fn a_handler_is_handed_the_servers_unless_its_table_names_others() {
        let nats = "NATS_URL=nats://127.0.0.1:24222";
        let redis = "REDIS_URL=redis://127.0.0.1:26379";
        let namespace = "SURETY_CONNECTION_NAMESPACE=mine";
        assert_eq!(given(&here(), &[], &[NATS_URL]), [nats, redis, namespace]);
        assert_eq!(given(&here(), &["SURETY_CONNECTION_NATS_URL"], &[]), [redis, namespace]);
        assert_eq!(given(&here(), &[REDIS_URL, NAMESPACE], &[]), [nats]);
        // What it inherits must not count for more.
        let shadowed = given(&here(), &[], &["SURETY_CONNECTION_NATS_URL", "NATS_CONTEXT"]);
        assert_eq!(shadowed, [nats, "SURETY_CONNECTION_NATS_URL=", "NATS_CONTEXT=", redis, namespace]);
        let by_context = Connection { nats_context: "prod".into(), ..here() };
        assert_eq!(given(&by_context, &[], &["NATS_CONTEXT"]), [nats, redis, namespace]);
    }

    #[test]
    fn a_handler_is_handed_no_secret() {
        let names = |c: Connection| -> Vec<String> {
            let all = variables_in(&c, &[], &|_| false);
            assert!(!format!("{all:?}").contains("s3cret"), "{all:?}");
            all.into_iter().map(|(k, _)| k).collect()
        };
        for c in [
            Connection { nats_url: "nats://ann:s3cret@h:4222,nats://i:4222".into(), ..here() },
            Connection { nats_user: "ann".into(), nats_password: Secret::new("s3cret"), ..here() },
            Connection { nats_token: Secret::new("s3cret"), ..here() },
        ] {
            assert_eq!(names(c), [REDIS_URL, NAMESPACE]);
        }
        for c in [
            Connection { redis_url: "redis://:s3cret@h:6379".into(), ..here() },
            Connection { redis_password: Secret::new("s3cret"), ..here() },
        ] {
            assert_eq!(names(c), [NATS_URL, NAMESPACE]);
        }
    }
}
