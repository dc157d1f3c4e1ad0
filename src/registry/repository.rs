//! One repository of a registry, as far as it is read.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Settings;
use super::blob::Blob;
use super::endpoint::{Endpoint, Place};
use super::http::{ATTEMPTS, Answer, Http, Request};
use super::words;
use crate::oci::{Descriptor, Reference, Remote, beyond};
use crate::{Context, Error, Kind, Result};

/// What a manifest may be. Docker's older form isn't asked for, as nothing can be made of it.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Where an image's name leads. Nothing is asked before it has to be.
#[derive(Debug)]
pub struct Repository(Arc<Shared>);

/// What readers of blobs need, too.
#[derive(Debug)]
pub(super) struct Shared {
    http: Arc<Http>,
    /// A tag or a digest.
    reference: String,
    /// Mirrors first.
    endpoints: Vec<Endpoint>,
    /// The one that answers: those before it didn't.
    first: AtomicUsize,
}

impl Repository {
    /// Once `cancelled` is set, all that waits for the registry ends as [`Kind::Interrupted`].
    ///
    /// # Errors
    /// For mirrors in the settings that make no sense.
    pub fn new(name: &Reference, settings: &Arc<Settings>, cancelled: Arc<AtomicBool>) -> Result<Self> {
        let digest = name.digest().map(|digest| digest.to_string());
        Ok(Self(Arc::new(Shared {
            http: Http::new(settings, cancelled)?,
            reference: digest.or_else(|| name.tag().map(str::to_string)).unwrap_or_default(),
            endpoints: Endpoint::all(name, settings)?,
            first: AtomicUsize::new(0),
        })))
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        self.0.http.stop();
    }
}

impl Remote for Repository {
    fn named(&self, most: u64) -> Result<(String, Vec<u8>)> {
        let (media_type, bytes) = self.0.document(&format!("manifests/{}", self.0.reference), most + 1)?;
        if bytes.len() as u64 > most {
            return Err(beyond(format!("it has more bytes than the limit of {most}"), "max_manifest_size"));
        }
        if media_type.starts_with("text/") {
            let why = format!("{}: it answers {} in place of a manifest", self.0.who(), words::of(&bytes));
            return Err(Error::new(Kind::BadInput, why));
        }
        Ok((media_type, bytes))
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let (_, bytes) = self.0.document(&format!("manifests/{}", descriptor.digest), descriptor.size + 1)?;
        Ok(bytes)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let what = format!("blobs/{}", descriptor.digest);
        Ok(Box::new(Blob::open(&self.0, what, descriptor.size)?))
    }

    fn stop(&self) {
        self.0.http.stop();
    }
}

impl Shared {
    /// Who is being asked, for messages.
    pub(super) fn who(&self) -> String {
        let endpoint = &self.endpoints[self.first.load(Ordering::Relaxed)];
        format!("registry {}", endpoint.name)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.http.check()
    }

    pub(super) fn pause(&self, attempt: u32) -> Result<()> {
        self.http.pause(attempt, None)
    }

    /// Why a body can't be read on.
    pub(super) fn why(&self, error: &io::Error) -> String {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(ureq::Error::Timeout(_)) => format!("nothing came for {} s", self.http.settings.timeout.as_secs()),
            _ => error.to_string(),
        }
    }

    /// A small body with its media type, read again if the connection breaks.
    fn document(&self, what: &str, most: u64) -> Result<(String, Vec<u8>)> {
        let mut attempt = 0;
        loop {
            let answer = self.get(what, MANIFESTS, 0)?;
            let media_type =
                answer.header("content-type").split(';').next().unwrap_or_default().trim().to_lowercase();
            match answer.read(most) {
                Ok(bytes) => return Ok((media_type, bytes)),
                Err(e) => {
                    self.check()?;
                    attempt += 1;
                    if attempt == ATTEMPTS {
                        let why = format!("{}: {what} broke off {ATTEMPTS} times: {}", self.who(), self.why(&e));
                        return Err(Error::new(Kind::System, why));
                    }
                    self.pause(attempt - 1)?;
                }
            }
        }
    }

    /// What is below the repository, of the first endpoint that has it.
    pub(super) fn get(&self, what: &str, accept: &str, from: u64) -> Result<Answer> {
        let mut at = self.first.load(Ordering::Relaxed);
        loop {
            let endpoint = &self.endpoints[at];
            match self.ask(endpoint, what, accept, from).context(|| format!("registry {}", endpoint.name)) {
                Err(e) if at + 1 < self.endpoints.len() && e.kind() != Kind::Interrupted => {
                    let next = &self.endpoints[at + 1].name;
                    tracing::warn!("{e}; asking {next} instead");
                    at += 1;
                }
                asked => {
                    self.first.fetch_max(at, Ordering::Relaxed);
                    return asked;
                }
            }
        }
    }

    fn ask(&self, endpoint: &Endpoint, what: &str, accept: &str, from: u64) -> Result<Answer> {
        let request = Request { from, ..Request::get(accept) };
        let answered = endpoint.ask(&self.http, Place::Below(what), request).map_err(|failure| failure.error)?;
        if matches!(answered.status(), 200 | 206) { Ok(answered.answer) } else { Err(answered.refusal(endpoint)) }
    }
}
