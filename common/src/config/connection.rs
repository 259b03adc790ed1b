//! What must hold among the settings of the connection.

use super::settings::Connection;

impl Connection {
    /// Every problem, each naming its settings.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut out = Vec::new();
        let ways = [
            ("nats_user", !self.nats_user.is_empty() || self.nats_password.is_set()),
            ("nats_token", self.nats_token.is_set()),
            ("nats_creds", self.nats_creds.get().is_some()),
            ("nats_nkey", self.nats_nkey.get().is_some()),
            ("a user or token in nats_url", self.nats_url.contains('@')),
        ];
        let used: Vec<_> = ways.iter().filter(|(_, is_used)| *is_used).map(|(name, _)| *name).collect();
        if used.len() > 1 {
            out.push(format!("connection: {} are several ways to log in; keep one", used.join(" and ")));
        }
        if self.nats_user.is_empty() == self.nats_password.is_set() {
            out.push("connection: nats_user and nats_password belong together; set both".to_owned());
        }
        if !self.redis_user.is_empty() && !self.redis_password.is_set() {
            out.push("connection.redis_user: redis_password is not set; set both".to_owned());
        }
        if self.redis_url.contains('@') && (!self.redis_user.is_empty() || self.redis_password.is_set()) {
            out.push(
                "connection: a password in redis_url and redis_password are two ways to log in; keep one"
                    .to_owned(),
            );
        }
        for (cert, key, names) in [
            (&self.nats_cert, &self.nats_key, "nats_cert and nats_key"),
            (&self.redis_cert, &self.redis_key, "redis_cert and redis_key"),
        ] {
            if cert.get().is_some() != key.get().is_some() {
                out.push(format!("connection: {names} belong together; set both"));
            }
        }
        let wants_tls = self.redis_ca.get().is_some() || self.redis_cert.get().is_some();
        if wants_tls && !["rediss://", "valkeys://"].iter().any(|s| self.redis_url.starts_with(s)) {
            out.push(format!(
                "connection.redis_url: {} is not encrypted, so redis_ca and redis_cert do nothing; write rediss://",
                self.redis_url.masked()
            ));
        }
        let prefix = &self.nats_inbox_prefix;
        let is_token = |t: &str| !t.is_empty() && !t.contains([' ', '\t', '\r', '\n', '*', '>']);
        if !prefix.is_empty() && !prefix.split('.').all(is_token) {
            out.push(format!(
                "connection.nats_inbox_prefix: {prefix:?} is not a subject without wildcards, like \"_INBOX_worker\""
            ));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use crate::config::{Address, Settings, load_text, private_servers};

    type Given<'a> = &'a [(&'a str, &'a str)];

    fn load(file: &str, env: Given<'_>, flags: Given<'static>) -> Result<Settings, String> {
        let env: BTreeMap<_, _> = env.iter().copied().collect();
        let flags = flags.iter().map(|(k, v)| (*k, (*v).to_owned(), "flag")).collect();
        load_text(Some((file, "f")), &|k| env.get(k).map(|v| (*v).to_owned()), &flags)
            .map_err(|e| e.to_string())
    }

    /// A home folder with these contexts.
    fn home(contexts: Given<'_>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let nats = dir.path().join(".config/nats");
        std::fs::create_dir_all(nats.join("context")).unwrap();
        for (name, json) in contexts {
            std::fs::write(nats.join("context").join(format!("{name}.json")), json).unwrap();
        }
        std::fs::write(nats.join("context.txt"), "prod\n").unwrap();
        dir
    }

    const PROD: &str = r#"{"description":"","url":"tls://prod:4222","user":"ann","password":"s3cret","ca":"~/ca.pem",
        "inbox_prefix":"_INBOX_ann","tls_first":true,"color_scheme":"red"}"#;

    #[test]
    fn secrets_come_from_files_and_are_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name).display().to_string();
            std::fs::write(&path, text).unwrap();
            path
        };
        let (password, url) = (file("p", "hunter2\n"), file("u", "redis://joe:hunter3@r:1/2\n"));
        let env = [
            ("NATS_URL", "nats://n:1"),
            ("SURETY_CONNECTION_NATS_USER", "ann"),
            ("SURETY_CONNECTION_NATS_PASSWORD_FILE", &password),
            ("SURETY_CONNECTION_NATS_CA_FILE", "/ca.pem"),
            ("REDIS_URL_FILE", &url),
        ];
        let s = load("", &env, &[]).unwrap();
        assert_eq!(s.connection.nats_password.reveal(), "hunter2");
        // A path needs no file around it.
        assert_eq!(s.connection.nats_ca.get(), Some(Path::new("/ca.pem")));
        assert_eq!(&*s.connection.redis_url, "redis://joe:hunter3@r:1/2");
        let shown = format!("{s:?} {:?}", s.values());
        assert!(!shown.contains("hunter") && shown.contains("***@r:1/2"), "{shown}");
        let gone = load("", &[("REDIS_URL_FILE", "/nowhere")], &[]).unwrap_err();
        assert!(gone.contains("REDIS_URL_FILE: cannot read \"/nowhere\""), "{gone}");
    }

    #[test]
    fn wrong_secrets_are_not_quoted() {
        let e = load("[connection]\nnats_password = 12345", &[], &[]).unwrap_err();
        assert!(e.contains("connection.nats_password") && !e.contains("12345"), "{e}");
    }

    #[test]
    fn a_context_is_used_when_it_is_named() {
        let dir = home(&[("prod", PROD)]);
        let home = dir.path().to_str().unwrap();
        for named in [
            load("[connection]\nnats_context = \"prod\"", &[("HOME", home)], &[]),
            load("", &[("HOME", home), ("NATS_CONTEXT", "prod")], &[]),
            load("", &[("HOME", home)], &[("connection.nats_context", "selected")]),
            load(
                "",
                &[("XDG_CONFIG_HOME", &format!("{home}/.config")), ("HOME", home)],
                &[("connection.nats_context", "prod")],
            ),
        ] {
            let c = named.unwrap().connection;
            assert_eq!((&*c.nats_url, &*c.nats_user), ("tls://prod:4222", "ann"));
            assert_eq!(c.nats_password.reveal(), "s3cret");
            assert_eq!(c.nats_ca.get(), Some(dir.path().join("ca.pem").as_path()));
            assert_eq!((&*c.nats_inbox_prefix, c.nats_tls_first), ("_INBOX_ann", true));
        }
        // Never because it happens to be selected.
        let c = load("", &[("HOME", home)], &[]).unwrap().connection;
        assert_eq!(&*c.nats_url, "nats://127.0.0.1:4222");
    }

    #[test]
    fn a_context_replaces_lower_layers_and_yields_to_its_own_and_higher_ones() {
        let dir = home(&[("prod", PROD)]);
        let home = dir.path().to_str().unwrap();
        let file =
            "[connection]\nnats_url = \"nats://file\"\nnats_creds = \"/x.creds\"\nredis_url = \"redis://r\"";
        let c = load(file, &[("HOME", home)], &[("connection.nats_context", "prod")]).unwrap().connection;
        assert_eq!((&*c.nats_url, c.nats_creds.get()), ("tls://prod:4222", None));
        assert_eq!(&*c.redis_url, "redis://r");
        let env = [("HOME", home), ("NATS_CONTEXT", "prod"), ("NATS_URL", "nats://env")];
        let c = load(file, &env, &[("connection.nats_inbox_prefix", "_I")]).unwrap().connection;
        assert_eq!((&*c.nats_url, &*c.nats_user, &*c.nats_inbox_prefix), ("nats://env", "ann", "_I"));
    }

    #[test]
    fn a_context_that_cannot_be_used_says_why() {
        let dir = home(&[("prod", PROD), ("nsc", r#"{"nsc":"nsc://a/b/c"}"#), ("bad", r#"{"password":7}"#)]);
        let home = dir.path().to_str().unwrap();
        for (name, why) in
            [("prd", "did you mean \"prod\"?"), ("nsc", "sets nsc"), ("bad", "is not a NATS context: line 1")]
        {
            let e = load("", &[("HOME", home), ("NATS_CONTEXT", name)], &[]).unwrap_err();
            assert!(e.contains("connection.nats_context (NATS_CONTEXT)") && e.contains(why), "{e}");
        }
    }

    // Shows: G-07
    #[test]
    fn logins_and_files_that_do_not_fit_together_are_refused() {
        for (bad, why) in [
            ("nats_user = \"a\"", "nats_user and nats_password belong together"),
            ("nats_password = \"p\"", "nats_user and nats_password belong together"),
            ("nats_token = \"t\"\nnats_creds = \"f\"", "nats_token and nats_creds are several ways"),
            ("nats_url = \"nats://a:b@h\"\nnats_nkey = \"f\"", "several ways to log in"),
            ("nats_cert = \"c\"", "nats_cert and nats_key belong together"),
            ("redis_key = \"k\"", "redis_cert and redis_key belong together"),
            ("redis_user = \"u\"", "redis_password is not set"),
            ("redis_ca = \"c\"", "write rediss://"),
            ("nats_inbox_prefix = \"_INBOX.>\"", "is not a subject without wildcards"),
        ] {
            let e = load(&format!("[connection]\n{bad}"), &[], &[]).unwrap_err();
            assert!(e.contains(why), "{bad}: {e}");
        }
    }

    #[test]
    fn nodes_of_a_cluster_stand_beside_each_other_with_one_login() {
        let each = |url: &str| Address::from(url).each();
        assert_eq!(each("redis://a:1"), ["redis://a:1"]);
        assert_eq!(each("rediss://a:1, b:2,rediss://c:3"), ["rediss://a:1", "rediss://b:2", "rediss://c:3"]);
        assert_eq!(each("redis://u:p,w@a,b:2"), ["redis://u:p,w@a", "redis://u:p,w@b:2"]);
        assert_eq!(each("localhost:1"), ["localhost:1"]);
    }

    #[test]
    fn servers_of_our_own_get_no_login_of_others() {
        let dir = home(&[("prod", PROD)]);
        let home = dir.path().to_str().unwrap();
        let env: BTreeMap<_, _> =
            [("HOME", home), ("NATS_CONTEXT", "prod"), ("SURETY_CONNECTION_REDIS_PASSWORD", "p")].into();
        let file = "[connection]\nnats_token = \"t\"\nnats_context = \"gone\"\nnamespace = \"mine\"";
        let flags = private_servers("nats://n".into(), "redis://r".into(), "dev");
        let s = load_text(Some((file, "f")), &|k| env.get(k).map(|v| (*v).to_owned()), &flags).unwrap();
        let c = s.connection;
        assert_eq!((&*c.nats_url, &*c.redis_url, &*c.namespace), ("nats://n", "redis://r", "mine"));
        assert!(!c.nats_token.is_set() && c.nats_user.is_empty() && !c.redis_password.is_set());
    }
}
