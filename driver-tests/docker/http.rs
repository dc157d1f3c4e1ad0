//! As much of HTTP/1.1 over a unix socket as a client needs that must be able to do it wrongly.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::serve::DEADLINE;

/// A connection, on which requests are written by hand.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON: {e}: {}", self.text()))
    }

    /// What it complains about.
    pub(crate) fn err(&self) -> String {
        self.json()["Err"].as_str().unwrap_or_else(|| panic!("no Err in {}", self.text())).to_string()
    }
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Self {
        Self::try_open(socket).unwrap_or_else(|e| panic!("connect to {}: {e}", socket.display()))
    }

    pub(crate) fn try_open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        // So that a test fails that would wait for ever.
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), stream })
    }

    /// Send bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("send");
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// As dockerd 20.10 does it: POST, an empty Host, no Content-Type.
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) {
        self.send(format!("POST {path} HTTP/1.1\r\nHost: \r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
        self.send(body);
    }

    /// The head of a request whose body comes in chunks.
    pub(crate) fn begin_chunked(&mut self, path: &str) {
        self.send(format!("POST {path} HTTP/1.1\r\nHost: \r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes());
    }

    pub(crate) fn chunk(&mut self, bytes: &[u8]) {
        self.try_chunk(bytes).expect("send a chunk");
    }

    pub(crate) fn try_chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.try_send(format!("{:x}\r\n", bytes.len()).as_bytes())?;
        self.try_send(bytes)?;
        self.try_send(b"\r\n")
    }

    pub(crate) fn end_chunks(&mut self) {
        self.send(b"0\r\n\r\n");
    }

    /// Say that nothing more comes, but go on listening.
    pub(crate) fn shut_sending(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shutdown");
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().expect("a whole answer")
    }

    /// The next answer, or why it isn't a whole one.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let mut body = Vec::new();
        let (status, headers) = self.answer_into(&mut body)?;
        Ok(Answer { status, headers, body })
    }

    /// The next answer, its body to some place else.
    pub(crate) fn answer_into(&mut self, body: &mut dyn Write) -> io::Result<(u16, Vec<(String, String)>)> {
        let (status, headers) = self.head()?;
        let header = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        if header("transfer-encoding") == Some("chunked") {
            self.read_chunks(body)?;
        } else {
            let length: u64 = header("content-length").unwrap_or("0").parse().expect("a number");
            self.copy(length, body)?;
        }
        Ok((status, headers))
    }

    /// Status and headers, named in small letters.
    pub(crate) fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status =
            first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {first:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
    }

    fn read_chunks(&mut self, body: &mut dyn Write) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let length = u64::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("no length of a chunk: {line:?}"));
            self.copy(length, body)?;
            assert_eq!(self.line()?, "", "the end of a chunk");
            if length == 0 {
                return Ok(());
            }
        }
    }

    fn copy(&mut self, length: u64, to: &mut dyn Write) -> io::Result<()> {
        let copied = io::copy(&mut (&mut self.reader).take(length), to)?;
        if copied < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8(line.to_vec()).expect("UTF-8")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Read so many bytes of whatever comes.
    pub(crate) fn read_some(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).expect("read");
        bytes
    }
}
