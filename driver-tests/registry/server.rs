//! A registry that a test makes up: what it answers is a function of what it is asked.
//!
//! It speaks HTTP/1.1 on loopback, with TLS where it is given a certificate. Where it isn't, it hangs up on whoever tries TLS.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::image::{TestImage, sha256};

const PATIENCE: Duration = Duration::from_secs(60);

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// By names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// As text, and as it came.
    pub(crate) body: String,
    pub(crate) bytes: Arc<Vec<u8>>,
}

/// What happens to a request whose head was read, and whose body wasn't.
#[derive(Debug, Clone)]
pub(crate) enum Early {
    /// It is read.
    Read,
    /// So much of it is; then the connection breaks.
    Break(usize),
    /// It is answered, and the connection closed.
    Refuse(Reply),
    /// Nothing happens.
    Stall,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }

    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// With a length, the true one unless a header says otherwise.
    Full { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// These bytes of a body of that length; then the connection breaks.
    Cut { reply: Box<Reply>, after: usize },
    /// These bytes of a body; then nothing more comes.
    Stall { reply: Box<Reply>, after: usize },
    /// The body byte by byte, each after that time.
    Trickle { reply: Box<Reply>, every: Duration },
    /// The body in chunks, and no length.
    Chunked { reply: Box<Reply> },
    /// The body again and again, without a length.
    Endless { reply: Box<Reply> },
    /// No HTTP.
    Raw(Vec<u8>),
}

impl Reply {
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::Full { status, headers: vec![("Content-Type", content_type.to_string())], body: body.into() }
    }

    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::new(status, "application/json", body)
    }

    /// The OCI distribution specification's form of a failure.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#))
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(307, "text/plain", "elsewhere").with("Location", to)
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Full { headers, .. } = &mut self {
            headers.retain(|(known, _)| *known != name);
            headers.push((name, value.to_string()));
        }
        self
    }

    pub(crate) fn cut(self, after: usize) -> Self {
        Self::Cut { reply: Box::new(self), after }
    }

    pub(crate) fn stall(self, after: usize) -> Self {
        Self::Stall { reply: Box::new(self), after }
    }

    pub(crate) fn trickle(self, every: Duration) -> Self {
        Self::Trickle { reply: Box::new(self), every }
    }

    pub(crate) fn endless(self) -> Self {
        Self::Endless { reply: Box::new(self) }
    }

    pub(crate) fn chunked(self) -> Self {
        Self::Chunked { reply: Box::new(self) }
    }

    /// As it is to a `HEAD`: with the length of what isn't sent.
    fn without_body(self) -> Self {
        let Self::Full { status, mut headers, body } = self else { return self };
        if !headers.iter().any(|(name, _)| *name == "Content-Length") {
            headers.push(("Content-Length", body.len().to_string()));
        }
        Self::Full { status, headers, body: Vec::new() }
    }

    fn parts(&self) -> (u16, &[(&'static str, String)], &[u8]) {
        match self {
            Self::Full { status, headers, body } => (*status, headers, body),
            Self::Cut { reply, .. }
            | Self::Stall { reply, .. }
            | Self::Trickle { reply, .. }
            | Self::Chunked { reply }
            | Self::Endless { reply } => reply.parts(),
            Self::Raw(bytes) => (0, &[], bytes),
        }
    }
}

type Answering = dyn Fn(&Asked) -> Reply + Send + Sync;
type Looking = dyn Fn(&Asked) -> Early + Send + Sync;

/// A server; ended with all its connections when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    answer: Box<Answering>,
    early: Box<Looking>,
    tls: Option<Arc<ServerConfig>>,
    asked: Mutex<Vec<Asked>>,
    stopped: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer)
    }

    pub(crate) fn start_with(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_looking(tls, |_| Early::Read, answer)
    }

    /// One that looks at each request before it reads its body.
    pub(crate) fn start_looking(
        tls: Option<Arc<ServerConfig>>,
        early: impl Fn(&Asked) -> Early + Send + Sync + 'static,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let (asked, open, stopped) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { answer: Box::new(answer), early: Box::new(early), tls, asked, stopped, open });
        let of_thread = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(PATIENCE));
                of_thread.open.lock().expect("lock").push(stream.try_clone().expect("dup"));
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that was asked until now.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("lock").clone()
    }

    /// How often something whose path has this was asked for.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.contains(part)).count()
    }

    /// How often that was done to something whose path has this.
    pub(crate) fn count_of(&self, method: &str, part: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method && asked.path.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().expect("lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut first = [0];
        stream.peek(&mut first)?;
        let speaks_tls = first[0] == 0x16;
        let ending = stream.try_clone()?;
        let done = match (&self.tls, speaks_tls) {
            (Some(config), true) => {
                let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                self.converse(Box::new(StreamOwned::new(connection, stream)))
            }
            (None, false) => self.converse(Box::new(stream)),
            _ => Ok(()),
        };
        let _ = ending.shutdown(Shutdown::Both);
        done
    }

    fn converse(&self, wire: Box<dyn Wire>) -> io::Result<()> {
        let mut wire = BufReader::new(wire);
        while let Some(mut asked) = read_head(&mut wire)? {
            let length = asked.header("content-length").parse().unwrap_or(0);
            match (self.early)(&asked) {
                Early::Read => {
                    if asked.header("expect") == "100-continue" {
                        wire.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                        wire.get_mut().flush()?;
                    }
                    let mut body = vec![0; length];
                    wire.read_exact(&mut body)?;
                    asked.body = String::from_utf8_lossy(&body).into_owned();
                    asked.bytes = Arc::new(body);
                }
                early => {
                    self.asked.lock().expect("lock").push(asked);
                    return match early {
                        Early::Break(after) => wire.read_exact(&mut vec![0; after.min(length)]),
                        Early::Refuse(reply) => self.write(wire.get_mut(), &reply).map(drop),
                        _ => self.stall().map(drop),
                    };
                }
            }
            self.asked.lock().expect("lock").push(asked.clone());
            let mut reply = (self.answer)(&asked);
            if asked.method == "HEAD" {
                reply = reply.without_body();
            }
            if !self.write(wire.get_mut(), &reply)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn stall(&self) -> io::Result<bool> {
        while !self.stopped.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }

    /// Whether the connection goes on.
    fn write(&self, wire: &mut dyn Write, reply: &Reply) -> io::Result<bool> {
        let (status, headers, body) = reply.parts();
        if let Reply::Raw(bytes) = reply {
            wire.write_all(bytes)?;
            wire.flush()?;
            return Ok(false);
        }
        // Not even a head.
        if status == 0 {
            return self.stall();
        }
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let chunked = matches!(reply, Reply::Chunked { .. } | Reply::Endless { .. });
        if chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if !headers.iter().any(|(name, _)| *name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        wire.write_all(format!("{head}\r\n").as_bytes())?;
        match reply {
            Reply::Cut { after, .. } => {
                wire.write_all(&body[..*after])?;
                wire.flush()?;
                return Ok(false);
            }
            Reply::Stall { after, .. } => {
                wire.write_all(&body[..*after])?;
                wire.flush()?;
                return self.stall();
            }
            Reply::Trickle { every, .. } => {
                for byte in body {
                    std::thread::sleep(*every);
                    if self.stopped.load(Ordering::SeqCst) {
                        return Ok(false);
                    }
                    wire.write_all(&[*byte])?;
                    wire.flush()?;
                }
            }
            Reply::Endless { .. } => loop {
                write!(wire, "{:x}\r\n", body.len())?;
                wire.write_all(body)?;
                wire.write_all(b"\r\n")?;
            },
            Reply::Chunked { .. } => {
                for part in body.chunks(1000) {
                    write!(wire, "{:x}\r\n", part.len())?;
                    wire.write_all(part)?;
                    wire.write_all(b"\r\n")?;
                }
                wire.write_all(b"0\r\n\r\n")?;
            }
            _ => wire.write_all(body)?,
        }
        wire.flush()?;
        Ok(true)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        206 => "Partial Content",
        401 => "Unauthorized",
        403 => "Forbidden",
        400 => "Bad Request",
        404 => "Not Found",
        413 => "Payload Too Large",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Something",
    }
}

fn read_head(wire: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if wire.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let mut next = || words.next().unwrap_or_default().to_string();
    let (method, path) = (next(), next());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        wire.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    Ok(Some(Asked { method, path, headers, body: String::new(), bytes: Arc::default() }))
}

/// What a good registry has, by path, with its media type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content(pub(crate) BTreeMap<String, (String, Vec<u8>)>);

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Content {
    /// An image as `repository:tag`, also by its digests.
    pub(crate) fn image(mut self, repository: &str, tag: &str, image: &TestImage) -> Self {
        let config = image.config_bytes();
        let blobs = image.layers.iter().map(|layer| layer.blob.clone()).chain([config]);
        for blob in blobs {
            let path = format!("/v2/{repository}/blobs/sha256:{}", sha256(&blob));
            self.0.insert(path, ("application/octet-stream".into(), blob));
        }
        self.document(repository, tag, MANIFEST, image.manifest_bytes())
    }

    /// A manifest or index as `repository:tag`, and by its digest.
    pub(crate) fn document(mut self, repository: &str, tag: &str, media_type: &str, bytes: Vec<u8>) -> Self {
        for name in [tag.to_string(), format!("sha256:{}", sha256(&bytes))] {
            self.0.insert(format!("/v2/{repository}/manifests/{name}"), (media_type.into(), bytes.clone()));
        }
        self
    }

    /// A blob that no manifest here has to know.
    pub(crate) fn blob(mut self, repository: &str, bytes: Vec<u8>) -> Self {
        let path = format!("/v2/{repository}/blobs/sha256:{}", sha256(&bytes));
        self.0.insert(path, ("application/octet-stream".into(), bytes));
        self
    }

    /// As a good registry answers, ranges included.
    pub(crate) fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().expect("a part");
        let Some((media_type, bytes)) = self.0.get(path) else {
            return Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let from = asked.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        match from.map(|from| from.parse::<usize>().expect("a number")) {
            None => Reply::new(200, media_type, bytes.clone()),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206, media_type, &bytes[from..]).with("Content-Range", &range)
            }
        }
    }
}
