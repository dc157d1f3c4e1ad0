//! One request after the other: time limits, redirects, another try where it is worth one.
//!
//! Redirects are followed here and not by the HTTP library: a login goes with a request to one [`Origin`] only, and from TLS
//! the way never leads to plain HTTP. What is sent is never redirected: only who was asked is to have it.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, Proxy, ProxyProtocol, SendBody};

use super::connect::{self, GLANCE, Stop};
use super::endpoint::{Origin, Url};
use super::{Settings, certs, words};
use crate::oci::quoted;
use crate::{Context, Error, Kind, Result};

/// Requests for the same thing until it is given up.
pub(super) const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// What a server may ask us to wait; more is for the user to decide.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;

/// What is asked for, wherever that is.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) accept: &'a str,
    /// For the first URL's origin alone.
    pub(super) authorization: Option<&'a str>,
    /// The byte to begin with.
    pub(super) from: u64,
    pub(super) content: Content<'a>,
}

/// What is sent along.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Nothing,
    Form(&'a str),
    /// With its media type.
    Bytes(&'a str, &'a [u8]),
    /// So many bytes of a reader. With `ask_first` nothing is sent before the server has had a look at the rest
    /// (RFC 9110, 10.1.1): what it says when it refuses is lost otherwise, should it hang up on the sender.
    Stream {
        size: u64,
        open: &'a Open<'a>,
        ask_first: bool,
    },
}

/// Makes what is to be sent readable from its beginning.
pub type Open<'a> = dyn Fn() -> Result<Box<dyn io::Read + Send>> + 'a;

impl<'a> Request<'a> {
    pub(super) fn new(method: &'static str) -> Self {
        Self { method, accept: "*/*", authorization: None, from: 0, content: Content::Nothing }
    }

    pub(super) fn get(accept: &'a str) -> Self {
        Self { accept, ..Self::new("GET") }
    }
}

/// An answer whose body isn't read yet.
pub(super) struct Answer {
    /// Where it is from, in the end.
    pub(super) url: Url,
    response: Response<Body>,
}

/// No answer, and whether it is worth another try.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) again: bool,
    /// Whether there may be an answer without TLS.
    pub(super) plain: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: false, plain: false }
    }
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A header's value; empty if there is none, or none that is text.
    pub(super) fn header(&self, name: &str) -> &str {
        header(self.response.headers(), name)
    }

    pub(super) fn headers<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.response.headers().get_all(name).into_iter().filter_map(|value| value.to_str().ok())
    }

    /// What the body's length is said to be, in bytes.
    pub(super) fn length(&self) -> Option<u64> {
        self.response.body().content_length()
    }

    pub(super) fn into_body(self) -> Box<dyn io::Read + Send> {
        Box::new(self.response.into_body().into_with_config().limit(u64::MAX).reader())
    }

    /// At most `most` bytes of the body.
    pub(super) fn read(self, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(self.into_body(), most), &mut bytes)?;
        Ok(bytes)
    }

    /// `404 Not Found: "manifest unknown"`, the status and the server's own words.
    pub(super) fn complaint(self) -> String {
        let status = self.response.status();
        let body = self.read(words::MOST).unwrap_or_default();
        format!("{status}: {}", words::of(&body))
    }

    /// The same for an answer that isn't the one that was due, by its status.
    pub(super) fn unexpected(self, due: &str) -> Error {
        Error::new(Kind::BadInput, format!("it answers {} where {due} was due", self.complaint()))
    }

    /// Whether another try may come to something else, and after what pause: the one that was asked for, or our own.
    pub(super) fn worth_another(&self) -> Option<Option<Duration>> {
        let is = matches!(self.status(), 408 | 429 | 500 | 502..=504);
        let wait = self.retry_after();
        (is && wait.is_none_or(|wait| wait <= LONGEST_PAUSE)).then_some(wait)
    }

    /// What it asks to wait (RFC 9110, 10.2.3): seconds or a date.
    fn retry_after(&self) -> Option<Duration> {
        let value = self.header("retry-after").trim();
        if let Ok(seconds) = value.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
        Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default())
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Connections, kept for the next request, and the way to end all of them.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) settings: Arc<Settings>,
    agents: Mutex<HashMap<Origin, Agent>>,
    stop: Arc<Stop>,
}

impl Http {
    /// Once `cancelled` is set, all that waits for a server ends.
    pub(super) fn new(settings: &Arc<Settings>, cancelled: Arc<AtomicBool>) -> Result<Arc<Self>> {
        let settings = Arc::clone(settings);
        let http = Arc::new(Self { settings, agents: Mutex::default(), stop: Arc::new(Stop::new(cancelled)) });
        let watched = Arc::downgrade(&http);
        let watch = move || {
            while let Some(http) = Weak::upgrade(&watched) {
                if http.stop.is_cancelled() {
                    return http.stop();
                }
                drop(http);
                std::thread::sleep(GLANCE);
            }
        };
        std::thread::Builder::new().name("registry-stop".into()).spawn(watch).context(|| "start a thread")?;
        Ok(http)
    }

    /// End all requests and bodies, those of other threads too, and begin no more.
    pub(super) fn stop(&self) {
        self.stop.stop();
        for (_, agent) in self.agents.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            agent.shutdown();
        }
    }

    /// # Errors
    /// [`Kind::Interrupted`] if all is to end.
    pub(super) fn check(&self) -> Result<()> {
        self.stop.check()
    }

    /// Wait before the try after number `attempt` (0, 1, ...), or as long as a server said.
    pub(super) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Result<()> {
        let until = Instant::now() + asked.unwrap_or(FIRST_PAUSE * 2_u32.pow(attempt));
        while Instant::now() < until {
            self.check()?;
            std::thread::sleep(GLANCE.min(until.saturating_duration_since(Instant::now())));
        }
        self.check()
    }

    /// Ask until there is an answer that another try wouldn't change.
    pub(super) fn steady(&self, ask: impl Fn() -> Result<Answer, Failure>) -> Result<Answer, Failure> {
        let mut attempt = 0;
        loop {
            self.check()?;
            let asked = ask();
            let another = match &asked {
                Ok(answer) => answer.worth_another(),
                Err(failure) => failure.again.then_some(None),
            };
            match another {
                Some(wait) if attempt + 1 < ATTEMPTS => {
                    match asked {
                        Ok(answer) => {
                            tracing::debug!("{}: {}, another try", answer.url.origin, answer.response.status());
                        }
                        Err(failure) => tracing::debug!("{}, another try", failure.error),
                    }
                    self.pause(attempt, wait)?;
                    attempt += 1;
                }
                _ => {
                    if asked.is_err() {
                        self.check()?;
                    }
                    return asked;
                }
            }
        }
    }

    /// Send a request, and follow where its answer leads. Errors name who is to blame unless that is who was asked.
    pub(super) fn request(&self, to: &Url, request: &Request<'_>) -> Result<Answer, Failure> {
        let mut url = to.clone();
        for _ in 0..=REDIRECTS {
            let is_first = url.origin == to.origin;
            let blame = |error: Error| if is_first { error } else { error.context(&url.origin) };
            let sent = self.send(request, &url, request.authorization.filter(|_| is_first));
            let response = sent.map_err(|failure| Failure { error: blame(failure.error), ..failure })?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { url, response });
            }
            let bad = |why: String| Failure::from(blame(Error::new(Kind::BadInput, why)));
            match request.content {
                Content::Form(_) => return Err(bad("it redirects what holds a login".into())),
                Content::Bytes(..) | Content::Stream { .. } => return Err(bad("it redirects what is sent".into())),
                // The others make it a GET.
                Content::Nothing if !matches!(request.method, "GET" | "HEAD") && !matches!(status, 307 | 308) => {
                    return Err(bad(format!("it redirects a {} by {status}", request.method)));
                }
                Content::Nothing => {}
            }
            let location = header(response.headers(), "location");
            let next = url.join(location).map_err(|e| bad(format!("it redirects nowhere: {e}")))?;
            self.check_way(&url, &next, "it redirects").map_err(blame)?;
            url = next;
        }
        Err(Error::new(Kind::BadInput, format!("it redirects more than {REDIRECTS} times, last to {}", url.origin))
            .into())
    }

    /// # Errors
    /// [`Kind::BadInput`] where an answer from one address leads from TLS to plain HTTP at another; `what` it does by that.
    pub(super) fn check_way(&self, from: &Url, to: &Url, what: &str) -> Result<()> {
        if from.origin.tls && !to.origin.tls && !to.origin.may_be_plain(&self.settings) {
            return Err(Error::new(Kind::BadInput, format!("{what} from TLS to plain HTTP at {}", to.origin)));
        }
        Ok(())
    }

    fn send(&self, request: &Request<'_>, url: &Url, authorization: Option<&str>) -> Result<Response<Body>, Failure> {
        let agent = self.agent(&url.origin)?;
        let mut call = ureq::http::Request::builder().method(request.method).uri(url.to_string());
        call = call.header("accept", request.accept);
        if let Some(authorization) = authorization {
            call = call.header("authorization", authorization);
        }
        if request.from > 0 {
            call = call.header("range", format!("bytes={}-", request.from));
        }
        let invalid = |e: ureq::http::Error| Error::new(Kind::Invalid, e.to_string());
        let sent = match &request.content {
            // With the header that says so.
            Content::Nothing if matches!(request.method, "POST" | "PUT") => {
                agent.run(call.body("").map_err(invalid)?)
            }
            Content::Nothing => agent.run(call.body(()).map_err(invalid)?),
            Content::Form(form) => {
                call = call.header("content-type", "application/x-www-form-urlencoded");
                agent.run(call.body(*form).map_err(invalid)?)
            }
            Content::Bytes(media_type, bytes) => {
                agent.run(call.header("content-type", *media_type).body(*bytes).map_err(invalid)?)
            }
            Content::Stream { size, open, ask_first } => {
                let mut body = open()?;
                call = call.header("content-type", "application/octet-stream").header("content-length", *size);
                if *ask_first {
                    call = call.header("expect", "100-continue");
                }
                agent.run(call.body(SendBody::from_reader(&mut body)).map_err(invalid)?)
            }
        };
        sent.map_err(|e| self.failure(&url.origin, e))
    }

    fn agent(&self, origin: &Origin) -> Result<Agent> {
        // Whoever stops holds it, too: no request can begin afterwards that isn't stopped.
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        if let Some(agent) = agents.get(origin) {
            return Ok(agent.clone());
        }
        let timeout = Some(self.settings.timeout);
        let proxy = self.proxy(origin)?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("reflinkd/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .timeout_per_write(timeout)
            .proxy(proxy.clone().filter(|_| origin.tls));
        if origin.tls {
            let insecure = origin.settings(&self.settings).is_some_and(|host| host.insecure);
            let tls = certs::tls(&origin.to_string(), &self.settings.certs, insecure);
            config = config.tls_config(tls?);
        } else if let Some(proxy) = &proxy {
            let host = format!("{}:{}", proxy.host(), proxy.port());
            config = config.tls_config(certs::tls(&host, &self.settings.certs, false)?);
        }
        let agent = connect::agent(config.build(), proxy, origin.tls, &self.stop);
        agents.insert(origin.clone(), agent.clone());
        Ok(agent)
    }

    fn proxy(&self, origin: &Origin) -> Result<Option<Proxy>> {
        let Some(proxy) = self.settings.proxies.of(origin.tls, &origin.host, origin.port) else { return Ok(None) };
        // What it says may be a password.
        let invalid = || Error::new(Kind::Invalid, "the proxy of the environment isn't a URL of http or https");
        let proxy = Proxy::new(proxy).map_err(|_| invalid())?;
        if !matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
            return Err(invalid());
        }
        Ok(Some(proxy))
    }

    /// Why a request came to nothing.
    fn failure(&self, origin: &Origin, error: ureq::Error) -> Failure {
        if let Err(stopped) = self.check() {
            return stopped.into();
        }
        let fail = |kind, why: String| Failure::from(Error::new(kind, why));
        match error {
            ureq::Error::Timeout(_) => {
                let why = format!("no answer within {} s", self.settings.timeout.as_secs());
                Failure { again: true, plain: true, ..fail(Kind::System, why) }
            }
            ureq::Error::HostNotFound => fail(Kind::NotFound, "its name leads nowhere".into()),
            ureq::Error::Rustls(e) => tls_failure(origin, &e),
            ureq::Error::Io(e) => match e.get_ref() {
                // What was to be sent couldn't be read.
                Some(inner) if inner.is::<Error>() => Error::system("read", &e).into(),
                Some(inner) if inner.is::<rustls::Error>() => match inner.downcast_ref() {
                    Some(e) => tls_failure(origin, e),
                    None => connection_failure(&e),
                },
                _ => connection_failure(&e),
            },
            ureq::Error::ConnectProxyFailed(why) => {
                // Of a port without TLS it may refuse that alone.
                Failure { plain: true, ..fail(Kind::Denied, format!("the proxy refuses: {}", quoted(&why))) }
            }
            ureq::Error::Protocol(why) => fail(Kind::BadInput, format!("it doesn't speak HTTP: {why}")),
            other => fail(Kind::System, other.to_string()),
        }
    }
}

fn connection_failure(error: &io::Error) -> Failure {
    let failed = Error::system("connection", error).to_string();
    let why = failed.strip_prefix("connection: ").unwrap_or(&failed);
    // What the standard library says before the resolver's own words; it has no kind for it.
    if let Some(why) = why.strip_prefix("failed to lookup address information: ") {
        let error = Error::new(Kind::NotFound, format!("its name leads nowhere: {why}"));
        return Failure { error, again: why.contains("Temporary"), plain: false };
    }
    if error.kind() == io::ErrorKind::ConnectionRefused {
        let error = Error::new(Kind::System, "it can't be reached: connection refused");
        return Failure { error, again: false, plain: true };
    }
    Failure { error: Error::new(Kind::System, format!("the connection broke: {why}")), again: true, plain: true }
}

fn tls_failure(origin: &Origin, error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::InvalidCertificate(reason) => {
            // It may quote all names that a certificate has.
            let why: String = reason.to_string().chars().filter(|c| !c.is_control()).take(300).collect();
            let error = Error::new(Kind::Denied, format!("its certificate isn't to be believed: {why}"));
            match reason {
                rustls::CertificateError::UnknownIssuer => {
                    let file = format!("/etc/docker/certs.d/{origin}/ca.crt");
                    error.with_hint(format!("if you know who vouches for it, put their certificate at {file}")).into()
                }
                _ => error.into(),
            }
        }
        rustls::Error::AlertReceived(alert) => {
            Error::new(Kind::Denied, format!("it refuses TLS with us: {alert:?}")).into()
        }
        other => {
            let error = Error::new(Kind::System, format!("it doesn't speak TLS: {other}"));
            Failure { plain: true, ..error.into() }
        }
    }
}
