//! What TLS is told: whom to believe, and who we are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use crate::{Context, Error, Kind, Result};

/// The configuration for a registry (`HOST` or `HOST:PORT`): this host's authorities, and those of the registry's
/// directories in `certs`.
///
/// # Errors
/// For files there that can't be used. An unreadable authority that is ignored would end in a riddle.
pub(super) fn tls(host: &str, certs: &[PathBuf], insecure: bool) -> Result<TlsConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = Vec::new();
    if !insecure {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!("some of this host's certificate authorities: {error}");
        }
        roots.extend(found.certs.iter().map(|der| Certificate::from_der(der).to_owned()));
    }
    let mut client = None;
    for directory in certs.iter().map(|directory| directory.join(host)).filter(|directory| directory.is_dir()) {
        let list = || format!("read {}", directory.display());
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(&directory).context(list)? {
            files.push(entry.context(list)?.path());
        }
        files.sort();
        for file in files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => {
                    roots.extend(chain(&file)?.iter().map(|der| Certificate::from_der(der).to_owned()));
                }
                Some("cert") if client.is_none() => client = Some(pair(&file, &provider)?),
                _ => {}
            }
        }
    }
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(RootCerts::from(roots))
        .client_cert(client)
        .disable_verification(insecure)
        .build())
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = fs::read(file).context(|| format!("read {}", file.display()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::new(Kind::Invalid, format!("{} has no certificate", file.display()))),
        Err(e) => Err(Error::new(Kind::Invalid, format!("{}: {e}", file.display()))),
    }
}

/// `NAME.cert`, and the `NAME.key` beside it.
fn pair(file: &Path, provider: &CryptoProvider) -> Result<ClientCert> {
    let key_file = file.with_extension("key");
    if !key_file.exists() {
        let why = format!("{} has no {} beside it", file.display(), key_file.display());
        return Err(Error::new(Kind::Invalid, why).with_hint("a certificate of an authority is named *.crt"));
    }
    let chain = chain(file)?;
    let pem = fs::read(&key_file).context(|| format!("read {}", key_file.display()))?;
    let invalid = |why: String| Error::new(Kind::Invalid, format!("{}: {why}", key_file.display()));
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| invalid(e.to_string()))?;
    // ureq expects this of its callers.
    CertifiedKey::from_der(chain.clone(), key, provider)
        .map_err(|e| invalid(format!("not of this certificate: {e}")))?;
    let chain: Vec<_> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let key = PrivateKey::from_pem(&pem).map_err(|e| invalid(e.to_string()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}
