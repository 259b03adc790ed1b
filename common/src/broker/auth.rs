//! Who we are to NATS, and how the connection is encrypted.

use std::path::PathBuf;

use async_nats::{ConnectOptions, ServerAddr};

use super::BrokerError;
use crate::{config::Secret, domain::text::mask, tls::TlsFiles};

/// How to log in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Login {
    /// Not at all, or by the certificate.
    #[default]
    Open,
    Password {
        user: String,
        password: Secret,
    },
    Token(Secret),
    /// A file with JWT and seed.
    Credentials(PathBuf),
    /// A file with the seed of an nkey.
    Nkey(PathBuf),
}

/// Everything about the connection that is not its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    pub login: Login,
    pub tls: TlsFiles,
    /// TLS before the server's greeting.
    pub tls_first: bool,
    /// What the subjects of replies begin with; empty: `_INBOX`.
    pub inbox_prefix: String,
}

impl Default for Auth {
    fn default() -> Self {
        let tls = TlsFiles { server: "nats", ..TlsFiles::default() };
        Self { login: Login::Open, tls, tls_first: false, inbox_prefix: String::new() }
    }
}

/// The addresses in a list, and the login that they hold. They are taken apart, because the client logs the addresses.
pub(super) fn addresses(list: &str) -> Result<(Vec<ServerAddr>, Option<Login>), BrokerError> {
    let bad = |url: &str, why: &dyn std::fmt::Display| {
        BrokerError::Unfit(format!("{:?} is not a NATS URL: {why}", mask(url)))
    };
    let mut login: Option<Login> = None;
    let mut out = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let address: ServerAddr = part.parse().map_err(|e| bad(part, &e))?;
        let mut url = address.into_inner();
        let decode = |text: &str| {
            let plain = percent_encoding::percent_decode_str(text).decode_utf8();
            plain.map(String::from).map_err(|e| bad(part, &e))
        };
        let own = match (decode(url.username())?, url.password()) {
            (user, Some(password)) => {
                Some(Login::Password { user, password: Secret::new(decode(password)?) })
            }
            (token, None) if !token.is_empty() => Some(Login::Token(Secret::new(token))),
            _ => None,
        };
        if own.is_some() && login.is_some() && login != own {
            return Err(bad(part, &"its login differs from that of another address in the list"));
        }
        login = login.or(own);
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(bad(part, &"it cannot have a user"));
        }
        out.push(ServerAddr::from_url(url).map_err(|e| bad(part, &e))?);
    }
    if out.is_empty() {
        return Err(bad(list, &"it is empty"));
    }
    Ok((out, login))
}

impl Auth {
    /// Takes a login that an address held, where there is no other.
    pub(super) fn with(mut self, found: Option<Login>) -> Self {
        if self.login == Login::Open
            && let Some(login) = found
        {
            self.login = login;
        }
        self
    }

    /// How the server knows us, for messages.
    pub fn who(&self) -> String {
        match &self.login {
            Login::Password { user, .. } => format!("user {user:?}"),
            Login::Token(_) => "the token".to_owned(),
            Login::Credentials(file) => format!("the user of {}", file.display()),
            Login::Nkey(file) => format!("the nkey of {}", file.display()),
            Login::Open => match &self.tls.identity {
                Some((cert, _)) => format!("the owner of {}", cert.display()),
                None => "a client without login".to_owned(),
            },
        }
    }

    /// Puts login, TLS and inbox prefix into the client's options.
    /// Errors: `Unfit`, naming the setting and the file.
    pub(super) fn apply(&self, mut options: ConnectOptions) -> Result<ConnectOptions, BrokerError> {
        self.tls.read().map_err(BrokerError::Unfit)?;
        let read = |setting: &str, path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|e| {
                BrokerError::Unfit(format!("connection.{setting}: cannot read {}: {e}", path.display()))
            })
        };
        options = match &self.login {
            Login::Open => options,
            Login::Password { user, password } => {
                options.user_and_password(user.clone(), password.reveal().to_owned())
            }
            Login::Token(token) => options.token(token.reveal().to_owned()),
            Login::Credentials(path) => options.credentials(&read("nats_creds", path)?).map_err(|_| {
                BrokerError::Unfit(format!(
                    "connection.nats_creds: {} holds no NATS user: it needs a JWT and a seed, each between its lines of dashes",
                    path.display()
                ))
            })?,
            Login::Nkey(path) => {
                let text = read("nats_nkey", path)?;
                let seed = text.lines().map(str::trim).find(|l| l.starts_with("SU"));
                let seed = seed.filter(|s| nkeys::KeyPair::from_seed(s).is_ok()).ok_or_else(|| {
                    BrokerError::Unfit(format!(
                        "connection.nats_nkey: {} holds no seed of a user (SU…)",
                        path.display()
                    ))
                })?;
                options.nkey(seed.to_owned())
            }
        };
        if let Some(ca) = &self.tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((cert, key)) = &self.tls.identity {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if self.tls_first {
            options = options.tls_first();
        }
        // Whoever named an authority or a certificate wants no plain connection, whatever a server offers.
        if self.tls.is_set() || self.tls_first {
            options = options.require_tls(true);
        }
        if !self.inbox_prefix.is_empty() {
            options = options.custom_inbox_prefix(&self.inbox_prefix);
        }
        Ok(options)
    }

    /// What a failed connection means.
    pub(super) fn explain(&self, url: &str, e: &async_nats::ConnectError) -> BrokerError {
        use async_nats::ConnectErrorKind as K;
        if let Some(why) = self.tls.explain(e) {
            return BrokerError::Unfit(format!("nats at {url}: {why}"));
        }
        match e.kind() {
            K::AuthorizationViolation | K::Authentication => BrokerError::Denied(format!(
                "nats at {url} does not let {} in: unknown, or a wrong password or key",
                self.who()
            )),
            K::Tls | K::ServerParse => BrokerError::Unfit(format!("nats at {url}: {e}")),
            K::TimedOut => {
                let hint = if self.tls_first {
                    "; is it a server with `handshake_first`?"
                } else {
                    "; a server with `handshake_first` needs connection.nats_tls_first"
                };
                BrokerError::Unreachable(format!("{url}: no greeting in time{hint}"))
            }
            _ => BrokerError::Unreachable(format!("{url}: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_taken_out_of_addresses() {
        let (all, login) = addresses("nats://ann:p%40ss@a:1, b:2").unwrap();
        let shown: Vec<_> = all.iter().map(ServerAddr::as_url_str).collect();
        assert_eq!(shown, ["nats://a:1", "nats://b:2"]);
        assert_eq!(login, Some(Login::Password { user: "ann".into(), password: Secret::new("p@ss") }));
        assert_eq!(addresses("tls://t0ken@a").unwrap().1, Some(Login::Token(Secret::new("t0ken"))));
        for bad in ["", "http://a", "nats://a:b@h,nats://c:d@h"] {
            let e = addresses(bad).unwrap_err().to_string();
            assert!(!e.contains("a:b") && !e.contains("c:d"), "{e}");
        }
    }
}
