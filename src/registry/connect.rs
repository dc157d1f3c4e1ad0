//! Connections: made so that a signal ends the waiting for them, and through proxies as these want it.
//!
//! Looking up a name and connecting can't be interrupted, so both are done by a thread that is left behind if all is to stop.
//! It ends with its own time limit, or with the process.
//!
//! ```text
//! TLS, proxy      the library's: CONNECT host:443, TLS, GET /v2/...
//! plain, proxy    here:          GET http://host:5000/v2/...        (RFC 9112, 3.2.2: absolute form)
//! ```
//!
//! CONNECT to ports other than those of TLS is refused by proxies as they are shipped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport};
use ureq::{Agent, Proxy};

use crate::{Error, Kind, Result};

/// How soon a signal is noticed.
pub(super) const GLANCE: Duration = Duration::from_millis(50);

/// Whether all is to end.
#[derive(Debug)]
pub(super) struct Stop {
    stopped: AtomicBool,
    cancelled: Arc<AtomicBool>,
}

impl Stop {
    /// Stopped as well once `cancelled` is set.
    pub(super) fn new(cancelled: Arc<AtomicBool>) -> Self {
        Self { stopped: AtomicBool::new(false), cancelled }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Kind::Interrupted`] if all is to end.
    pub(super) fn check(&self) -> Result<()> {
        if self.stopped.load(Ordering::Relaxed) || self.is_cancelled() {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        Ok(())
    }

    /// What `work` comes to in a thread of its own, which is left to itself if all is to end.
    fn unless<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ureq::Error> + Send + 'static,
    ) -> Result<T, ureq::Error> {
        let (done, result) = mpsc::sync_channel(1);
        let work = move || drop(done.send(work()));
        std::thread::Builder::new().name("registry-connect".into()).spawn(work).map_err(ureq::Error::Io)?;
        loop {
            match result.recv_timeout(GLANCE) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => self.check().map_err(io::Error::other)?,
                Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("its thread panicked").into()),
            }
        }
    }
}

/// Requests to one origin, through `proxy` if there is one. `tls` says whether the origin is spoken to with it.
pub(super) fn agent(config: Config, proxy: Option<Proxy>, tls: bool, stop: &Arc<Stop>) -> Agent {
    let via = proxy.filter(|_| !tls).map(Via::new);
    // Of a connection on which nothing was asked before, the first that is sent is a request's head: see `Absolute`.
    let connector =
        Connect { inner: Arc::new(DefaultConnector::default()), via: via.clone(), stop: Arc::clone(stop) };
    let lookup = Lookup { instead: via.map(|via| via.proxy), stop: Arc::clone(stop) };
    Agent::with_parts(config, connector, lookup)
}

/// A proxy that is asked with the whole URL.
#[derive(Clone)]
struct Via {
    proxy: Uri,
    /// The header with a login, if it has one, with its line's end.
    authorization: String,
}

/// Nothing of its login in logs.
impl std::fmt::Debug for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Via")
    }
}

impl Via {
    fn new(proxy: Proxy) -> Self {
        let login = (proxy.username(), proxy.password());
        let authorization = match login {
            (None, None) => String::new(),
            (user, password) => {
                let login = format!("{}:{}", user.unwrap_or_default(), password.unwrap_or_default());
                format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(login))
            }
        };
        Self { proxy: proxy.uri().clone(), authorization }
    }
}

/// Looks up the name of who is connected to: the proxy's, where one is asked in place of the target.
#[derive(Debug, Clone)]
struct Lookup {
    instead: Option<Uri>,
    stop: Arc<Stop>,
}

impl Resolver for Lookup {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let (uri, config) = (self.instead.as_ref().unwrap_or(uri).clone(), config.clone());
        self.stop.unless(move || DefaultResolver::default().resolve(&uri, &config, timeout))
    }
}

#[derive(Debug)]
struct Connect {
    inner: Arc<DefaultConnector>,
    via: Option<Via>,
    stop: Arc<Stop>,
}

impl Connector for Connect {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<Box<dyn Transport>>, ureq::Error> {
        let inner = Arc::clone(&self.inner);
        let resolver = Lookup { instead: None, stop: Arc::clone(&self.stop) };
        // With the proxy's scheme, TLS is spoken to it.
        let uri = self.via.as_ref().map_or(details.uri, |via| &via.proxy).clone();
        let (config, addrs) = (details.config.clone(), details.addrs.clone());
        let (request_level, now, timeout) = (details.request_level, details.now, details.timeout);
        let current_time = Arc::clone(&details.current_time);
        let run_connector = Arc::clone(&details.run_connector);
        let register_shutdown = Arc::clone(&details.register_shutdown);
        let connected = self.stop.unless(move || {
            let details = ConnectionDetails {
                uri: &uri,
                addrs,
                config: &config,
                request_level,
                resolver: &resolver,
                now,
                timeout,
                current_time,
                run_connector,
                register_shutdown,
            };
            inner.connect(&details, None)
        })?;
        Ok(match (&self.via, connected) {
            (Some(via), Some(inner)) => {
                let scheme = details.uri.scheme_str().unwrap_or("http");
                let authority = details.uri.authority().map_or("", |authority| authority.as_str());
                let target = format!("{scheme}://{authority}");
                Some(Box::new(Absolute { inner, head: Some((target, via.authorization.clone())) }))
            }
            (_, connected) => connected,
        })
    }
}

/// A connection to a proxy, for one request: its target is made absolute.
struct Absolute {
    inner: Box<dyn Transport>,
    /// What goes before the path, and behind the request's line, until both were sent.
    head: Option<(String, String)>,
}

impl std::fmt::Debug for Absolute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Absolute").field(&self.inner).finish()
    }
}

/// The first bytes of a request with its target in absolute form.
fn absolute(request: &[u8], (target, headers): &(String, String)) -> Vec<u8> {
    let method = request.iter().position(|byte| *byte == b' ').map_or(0, |at| at + 1);
    let line = request.windows(2).position(|two| two == b"\r\n").map_or(request.len(), |at| at + 2);
    [&request[..method], target.as_bytes(), &request[method..line], headers.as_bytes(), &request[line..]].concat()
}

impl Transport for Absolute {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let Some(head) = self.head.take() else { return self.inner.transmit_output(amount, timeout) };
        let request = absolute(&self.inner.buffers().output()[..amount], &head);
        let mut left = &request[..];
        while !left.is_empty() {
            let output = self.inner.buffers().output();
            let (now, later) = left.split_at(left.len().min(output.len()));
            output[..now.len()].copy_from_slice(now);
            self.inner.transmit_output(now.len(), timeout)?;
            left = later;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout)
    }

    /// Never kept for another request.
    fn is_open(&mut self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_made_absolute() {
        let head = ("http://a:5000".to_string(), "Proxy-Authorization: Basic x\r\n".to_string());
        for (request, expected) in [
            (
                "GET /v2/x?y=1 HTTP/1.1\r\nhost: a:5000\r\n\r\n",
                "GET http://a:5000/v2/x?y=1 HTTP/1.1\r\nProxy-Authorization: Basic x\r\nhost: a:5000\r\n\r\n",
            ),
            (
                "PUT / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n",
                "PUT http://a:5000/ HTTP/1.1\r\nProxy-Authorization: Basic x\r\n\r\nGET / HTTP/1.1\r\n",
            ),
        ] {
            assert_eq!(String::from_utf8_lossy(&absolute(request.as_bytes(), &head)), expected);
        }
    }

    #[test]
    fn what_hangs_is_left_behind() {
        let cancelled = Arc::new(AtomicBool::new(false));
        let stop = Stop::new(Arc::clone(&cancelled));
        let (never, waits) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(GLANCE);
                cancelled.store(true, Ordering::Relaxed);
            });
            let done = stop.unless(move || waits.recv().map_err(|e| io::Error::other(e).into()));
            assert!(done.is_err());
        });
        drop(never);
        assert!(stop.check().is_err());
    }
}
