//! TLS for both servers: the files, checked before they are used, and what a failed handshake means.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_nats::rustls::{
    self, AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// Files for one server. The names of their settings begin with `<server>_`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// `nats` or `redis`.
    pub server: &'static str,
    /// Authorities that may vouch for the server; none: those of the system.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What the files hold: PEM text.
#[derive(Default)]
pub(crate) struct Pems {
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    /// Reads and checks the files. The error names the setting, the file, and what is wrong with it.
    pub(crate) fn read(&self) -> Result<Pems, String> {
        choose_provider();
        let server = self.server;
        let mut roots = RootCertStore::empty();
        let mut out = Pems::default();
        if let Some(path) = &self.ca {
            let setting = format!("connection.{server}_ca");
            let pem = read(&setting, path)?;
            for cert in certificates(&setting, path, &pem)? {
                roots.add(cert).map_err(|e| {
                    format!("{setting}: a certificate in {} cannot be used: {e}", path.display())
                })?;
            }
            out.ca = Some(pem);
        }
        if let Some((cert, key)) = &self.identity {
            let (of_cert, of_key) = (format!("connection.{server}_cert"), format!("connection.{server}_key"));
            let (cert_pem, key_pem) = (read(&of_cert, cert)?, read(&of_key, key)?);
            let chain = certificates(&of_cert, cert, &cert_pem)?;
            let private = PrivateKeyDer::from_pem_slice(&key_pem)
                .map_err(|_| format!("{of_key}: there is no private key (PEM) in {}", key.display()))?;
            ClientConfig::builder()
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, private)
                .map_err(|e| match e {
                    rustls::Error::InconsistentKeys(_) => {
                        format!("{of_key}: {} is not the key of {}", key.display(), cert.display())
                    }
                    e => format!("{of_cert}: {} cannot be used with {}: {e}", cert.display(), key.display()),
                })?;
            out.identity = Some((cert_pem, key_pem));
        }
        Ok(out)
    }

    /// Whether anything of TLS is set.
    pub(crate) fn is_set(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }

    /// What a failed handshake means and what to do about it; `None` when the cause is not TLS.
    pub(crate) fn explain(&self, error: &(dyn Error + 'static)) -> Option<String> {
        use rustls::Error as E;
        let server = self.server;
        let cause = cause(error)?;
        let give_ca = format!("give the certificate of its authority as connection.{server}_ca");
        Some(match cause {
            E::InvalidCertificate(why) => match why {
                CertificateError::UnknownIssuer => match &self.ca {
                    Some(ca) => format!(
                        "the server's certificate was not issued by an authority in {} (connection.{server}_ca)",
                        ca.display()
                    ),
                    None => {
                        format!("the server's certificate was issued by an unknown authority; {give_ca}")
                    }
                },
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!(
                        "the server's certificate is for another host ({why}); connect by a name that stands in it"
                    )
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    format!("the server's certificate has expired ({why})")
                }
                why => format!("the server's certificate is not valid ({why})"),
            },
            E::AlertReceived(AlertDescription::CertificateRequired) => format!(
                "the server wants a certificate of ours; set connection.{server}_cert and connection.{server}_key"
            ),
            E::AlertReceived(
                why @ (AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied),
            ) => match &self.identity {
                Some((cert, _)) => format!(
                    "the server refused our certificate {} (connection.{server}_cert): {why:?}",
                    cert.display()
                ),
                None => format!(
                    "the server refused the connection ({why:?}); it may want a certificate \
                     (connection.{server}_cert and connection.{server}_key)"
                ),
            },
            E::InvalidMessage(_) => "the server does not speak TLS on this port".to_owned(),
            E::NoCertificatesPresented => format!("the server presented no certificate ({server})"),
            other => format!("TLS: {other}"),
        })
    }
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{setting}: cannot read {}: {e}", path.display()))
}

fn certificates(setting: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{setting}: {} is not PEM: {e}", path.display()))?;
    if all.is_empty() {
        return Err(format!("{setting}: there is no certificate (PEM) in {}", path.display()));
    }
    Ok(all)
}

/// Chooses the implementation of the ciphers for the process, unless the program that we are part of did.
pub(crate) fn choose_provider() {
    let chosen = rustls::crypto::ring::default_provider().install_default();
    if let Err(earlier) = chosen {
        drop::<Arc<_>>(earlier);
    }
}

/// The error of TLS among the causes of an error.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // These two hide the error that they carry: their `source` is the source of that one.
        let carried = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let shared = e.downcast_ref::<Arc<dyn Error + Send + Sync>>();
        next = match (carried, shared) {
            (Some(inner), _) => Some(inner),
            (None, Some(inner)) => Some(&**inner),
            (None, None) => e.source(),
        };
    }
    None
}
