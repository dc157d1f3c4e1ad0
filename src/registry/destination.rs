//! One repository of a registry, as far as it is written to (OCI distribution specification, "Push").
//!
//! ```text
//! HEAD blobs/DIGEST ─ 200 ───────────────────────────────────────────────────────────── it is there
//!                   └ POST blobs/uploads/?mount=DIGEST&from=REPOSITORY ─ 201 ────────── it is there now
//!                                                                      └ 202 ┐
//!                     POST blobs/uploads/ ─ 202, Location ───────────────────┴ PUT Location?digest=DIGEST ─ 201
//! PUT manifests/TAG, when all that it names is there
//! ```
//!
//! A `Location` may lead to another host, which isn't shown any login. An upload that breaks off is begun anew, after a look
//! whether it arrived all the same; one that isn't ended is cancelled when the [`Destination`] is dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Settings;
use super::auth::{Auth, encoded};
use super::endpoint::{Answered, Endpoint, PULL, PUSH, Place, Url, scope};
use super::http::{ATTEMPTS, Content, Failure, Http, Open, Request};
use crate::oci::{Descriptor, Digest, Reference, quoted};
use crate::{Context, Error, Kind, Result};

/// How long a registry is waited for that is told to forget an upload.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where an image is to go: the registry itself, never a mirror. Nothing is asked before it has to be.
pub struct Destination {
    http: Arc<Http>,
    endpoint: Endpoint,
    /// What is shown to mount from a repository.
    mounting: Mutex<BTreeMap<String, Arc<Auth>>>,
    uploads: Mutex<Uploads>,
}

/// Uploads that the registry has begun and that nobody is at.
#[derive(Default)]
struct Uploads {
    /// Good for any blob.
    fresh: Vec<Url>,
    broken: Vec<Url>,
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Destination {
    /// Once `cancelled` is set, all that waits for the registry ends as [`Kind::Interrupted`].
    pub fn new(name: &Reference, settings: &Arc<Settings>, cancelled: Arc<AtomicBool>) -> Result<Self> {
        Ok(Self {
            http: Http::new(settings, cancelled)?,
            endpoint: Endpoint::registry(name, settings, PUSH)?,
            mounting: Mutex::default(),
            uploads: Mutex::default(),
        })
    }

    /// Break off all that is under way, now and for good.
    pub fn stop(&self) {
        self.http.stop();
    }

    /// Whether the repository has a blob of that digest and length. What isn't said plainly isn't believed: then it is sent.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        self.has(&format!("blobs/{}", blob.digest), blob, "*/*")
    }

    /// The same of a manifest or index.
    pub fn has_manifest(&self, manifest: &Descriptor) -> Result<bool> {
        self.has(&format!("manifests/{}", manifest.digest), manifest, &manifest.media_type)
    }

    fn has(&self, what: &str, expected: &Descriptor, accept: &str) -> Result<bool> {
        let request = Request { accept, ..Request::new("HEAD") };
        let Answered { answer, .. } = self.ask(Place::Below(what), request)?;
        let says = |name, expected: String| ["", &expected].contains(&answer.header(name));
        Ok(answer.status() == 200
            && answer.header("content-length") == expected.size.to_string()
            && says("docker-content-digest", expected.digest.to_string()))
    }

    /// Let the repository have a blob that another repository of the registry has. Whether it has it now.
    ///
    /// # Errors
    /// If there is no answer. That the registry won't do it is none.
    pub fn mount(&self, blob: Digest, from: &str) -> Result<bool> {
        let auth = Arc::clone(
            self.mounting.lock().unwrap_or_else(PoisonError::into_inner).entry(from.into()).or_insert_with(|| {
                let scopes = vec![scope(&self.endpoint.repository, PUSH), scope(from, PULL)];
                Arc::new(Auth::for_scopes(scopes))
            }),
        );
        let what = format!("blobs/uploads/?mount={}&from={}", encoded(&blob.to_string()), encoded(from));
        let asked = self.endpoint.ask_as(&auth, &self.http, Place::Below(&what), Request::new("POST"));
        let answered = match asked {
            Ok(answered) => answered,
            Err(failure) => {
                self.http.check()?;
                // A token server that grants all of it or nothing, for one.
                tracing::debug!("{blob} isn't mounted from {from}: {}", failure.error);
                return Ok(false);
            }
        };
        match answered.status() {
            201 => self.check_digest(&answered, blob).map(|()| true),
            202 => {
                if let Ok(upload) = self.location(&answered) {
                    self.uploads().fresh.push(upload);
                }
                Ok(false)
            }
            _ => {
                tracing::debug!("{blob} isn't mounted from {from}: {}", answered.answer.complaint());
                Ok(false)
            }
        }
    }

    /// Send a blob of that digest and length. `open` gives its bytes, all of them or an error, as often as it takes.
    ///
    /// # Errors
    /// What the registry says; what `open` and its reader say.
    pub fn put_blob(&self, blob: &Descriptor, open: &Open<'_>) -> Result<()> {
        let who = || format!("registry {}: blob {}", self.endpoint.name, blob.digest);
        let mut attempt = 0;
        loop {
            let upload = self.begin_upload().context(who)?;
            let joint = if upload.path.contains('?') { '&' } else { '?' };
            let path = format!("{}{joint}digest={}", upload.path, encoded(&blob.digest.to_string()));
            let to = Url { path, origin: upload.origin.clone() };
            let content = Content::Stream { size: blob.size, open, ask_first: attempt > 0 };
            let request = Request { content, ..Request::new("PUT") };
            let asked = self.endpoint.ask(&self.http, Place::At(&to), request);
            if let Ok(answered) = &asked
                && answered.status() == 201
            {
                return self.check_digest(answered, blob.digest).context(who);
            }
            self.uploads().broken.push(upload);
            let asked = asked.map(|answered| (answered.status(), answered));
            let wait = match &asked {
                // Another of the registry's servers may have begun it.
                Ok((404, _)) => Some(None),
                Ok((_, answered)) => answered.answer.worth_another(),
                Err(failure) => failure.again.then_some(None),
            };
            match (wait, asked) {
                (Some(wait), _) if attempt + 1 < ATTEMPTS => self.http.pause(attempt, wait)?,
                (_, Ok((status, answered))) => {
                    let is_odd = status < 400;
                    return Err(if is_odd {
                        answered.answer.unexpected("201 Created")
                    } else {
                        answered.refusal(&self.endpoint)
                    })
                    .context(who);
                }
                (_, Err(failure)) => {
                    self.http.check()?;
                    return Err(failure.error).context(who);
                }
            }
            attempt += 1;
            if self.has_blob(blob)? {
                return Ok(());
            }
        }
    }

    /// Give a manifest or index a tag, or have it by its digest alone. All that it names is to be there.
    ///
    /// # Errors
    /// What the registry says; [`Kind::BadInput`] if it says that it has another one.
    pub fn put_manifest(&self, tag: Option<&str>, media_type: &str, bytes: &[u8]) -> Result<()> {
        let digest = Digest::of(bytes);
        let what = format!("manifests/{}", tag.map_or_else(|| digest.to_string(), str::to_string));
        let who = || format!("registry {}: {what}", self.endpoint.name);
        let request = Request { content: Content::Bytes(media_type, bytes), ..Request::new("PUT") };
        let answered = self.endpoint.ask(&self.http, Place::Below(&what), request).map_err(|failure| failure.error);
        let answered = answered.context(who)?;
        match answered.status() {
            200..=202 => self.check_digest(&answered, digest),
            status if status < 400 => Err(answered.answer.unexpected("201 Created")),
            _ => Err(answered.refusal(&self.endpoint)),
        }
        .context(who)
    }

    fn ask(&self, place: Place<'_>, request: Request<'_>) -> Result<Answered> {
        let asked = self.endpoint.ask(&self.http, place, request).map_err(|failure| failure.error);
        asked.context(|| format!("registry {}", self.endpoint.name))
    }

    fn uploads(&self) -> std::sync::MutexGuard<'_, Uploads> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the next blob is to be put.
    fn begin_upload(&self) -> Result<Url> {
        if let Some(upload) = self.uploads().fresh.pop() {
            return Ok(upload);
        }
        let asked = self.endpoint.ask(&self.http, Place::Below("blobs/uploads/"), Request::new("POST"));
        let answered = asked.map_err(|failure| failure.error)?;
        match answered.status() {
            202 => self.location(&answered),
            status if status < 400 => Err(answered.answer.unexpected("202 Accepted")),
            _ => Err(answered.refusal(&self.endpoint)),
        }
    }

    fn location(&self, answered: &Answered) -> Result<Url> {
        let from = &answered.answer.url;
        let location = answered.answer.header("location");
        if location.is_empty() {
            return Err(Error::new(Kind::BadInput, "it doesn't say where the blob is to go"));
        }
        let nowhere = |e: Error| Error::new(Kind::BadInput, format!("it would have the blob go nowhere: {e}"));
        let to = from.join(location).map_err(nowhere)?;
        self.http.check_way(from, &to, "it would have the blob go").map_err(|e| {
            e.with_hint("behind a proxy with TLS, a registry has to know that it is spoken to by https://")
        })?;
        Ok(to)
    }

    /// That the registry has what it was sent, by its own word if it gives that.
    fn check_digest(&self, answered: &Answered, expected: Digest) -> Result<()> {
        match answered.answer.header("docker-content-digest") {
            said if said.is_empty() || said == expected.to_string() => Ok(()),
            said => {
                let why = format!("it says that it has {} in place of {expected}", quoted(said));
                Err(Error::new(Kind::BadInput, why))
            }
        }
    }
}

/// Uploads that weren't ended are cancelled, as far as the registry does that.
impl Drop for Destination {
    fn drop(&mut self) {
        self.http.stop();
        let Uploads { fresh, broken } = std::mem::take(&mut *self.uploads());
        if fresh.is_empty() && broken.is_empty() {
            return;
        }
        let settings =
            Settings { timeout: LAST_WORDS.min(self.http.settings.timeout), ..(*self.http.settings).clone() };
        let Ok(http) = Http::new(&Arc::new(settings), Arc::default()) else { return };
        for upload in fresh.iter().chain(&broken) {
            let shown = self.endpoint.shown_at(upload);
            let authorization = shown.as_ref().map(|shown| shown.value.as_str());
            let cancelled = http.request(upload, &Request { authorization, ..Request::new("DELETE") });
            // Whoever doesn't answer one won't answer the others.
            if let Err(Failure { error, .. }) = cancelled {
                tracing::debug!("uploads to {} aren't cancelled: {error}", upload.origin);
                break;
            }
        }
        http.stop();
    }
}
