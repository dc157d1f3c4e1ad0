//! A tar writer that shares nothing with the product: the `tar` crate's header setters, PAX and GNU records
//! by hand.

// Each test binary that includes this uses another part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;

/// One entry as it is to be written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Raw {
    pub(crate) kind: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) rdev: (u32, u32),
}

impl Raw {
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Self { kind, name: name.as_ref().to_vec(), mode, ..Self::default() }
    }

    pub(crate) fn link(mut self, link: impl AsRef<[u8]>) -> Self {
        self.link = link.as_ref().to_vec();
        self
    }

    pub(crate) fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }
}

/// How what doesn't fit a plain header is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Pax,
    Gnu,
}

/// A tar under construction.
#[derive(Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn of(entries: &[Raw]) -> Vec<u8> {
        let mut tar = Self::default();
        for entry in entries {
            tar.entry(entry, Style::Pax);
        }
        tar.end()
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    pub(crate) fn entry(&mut self, raw: &Raw, style: Style) {
        let mut records = Vec::new();
        let mut header = match style {
            Style::Pax => tar::Header::new_ustar(),
            Style::Gnu => tar::Header::new_gnu(),
        };
        for (what, kind, long) in [(&raw.name, b'L', &b"path"[..]), (&raw.link, b'K', b"linkpath")] {
            if what.len() <= 100 {
                continue;
            }
            match style {
                Style::Pax => record(&mut records, long, what),
                Style::Gnu => self.block(kind, b"././@LongLink", &[what, &b"\0"[..]].concat()),
            }
        }
        // Times that GNU headers can't hold go into records in both styles, as attributes do.
        let plain = raw.mtime.1 == 0 && (raw.mtime.0 >= 0 || style == Style::Gnu);
        if !plain {
            record(&mut records, b"mtime", decimal(raw.mtime).as_bytes());
        }
        for (key, value) in &raw.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &key[..]].concat(), value);
        }
        let old = header.as_old_mut();
        put(&mut old.name, &raw.name);
        put(&mut old.linkname, &raw.link);
        header.set_mode(raw.mode);
        header.set_size(raw.data.len() as u64);
        match style {
            Style::Gnu => {
                // The crate writes big ids in base 256.
                header.set_uid(raw.uid.into());
                header.set_gid(raw.gid.into());
                let mut field = [if raw.mtime.0 < 0 { 0xff } else { 0x80 }; 12];
                field[1..4].fill(if raw.mtime.0 < 0 { 0xff } else { 0 });
                field[4..].copy_from_slice(&raw.mtime.0.to_be_bytes());
                header.as_old_mut().mtime = field;
            }
            Style::Pax => {
                for (key, id) in [(&b"uid"[..], raw.uid), (b"gid", raw.gid)] {
                    if id > 0o7_777_777 {
                        record(&mut records, key, id.to_string().as_bytes());
                    }
                }
                header.set_uid(raw.uid.min(0o7_777_777).into());
                header.set_gid(raw.gid.min(0o7_777_777).into());
                header.set_mtime(raw.mtime.0.max(0) as u64);
            }
        }
        if matches!(raw.kind, b'3' | b'4') {
            header.set_device_major(raw.rdev.0).expect("major");
            header.set_device_minor(raw.rdev.1).expect("minor");
        }
        header.as_old_mut().linkflag = [raw.kind];
        header.set_cksum();
        if !records.is_empty() {
            self.block(b'x', b"PaxHeader", &records);
        }
        self.0.extend(header.as_bytes());
        self.payload(&raw.data);
    }

    /// A header of type `kind` with a payload.
    pub(crate) fn block(&mut self, kind: u8, name: &[u8], payload: &[u8]) {
        let mut header = tar::Header::new_ustar();
        put(&mut header.as_old_mut().name, name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(payload.len() as u64);
        header.as_old_mut().linkflag = [kind];
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.payload(payload);
    }

    /// An `x` header with these records.
    pub(crate) fn pax(&mut self, records: &[(&str, &[u8])]) {
        let mut payload = Vec::new();
        for (key, value) in records {
            record(&mut payload, key.as_bytes(), value);
        }
        self.block(b'x', b"PaxHeader", &payload);
    }

    pub(crate) fn payload(&mut self, data: &[u8]) {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }
}

fn put(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field.fill(0);
    field[..length].copy_from_slice(&value[..length]);
}

/// `LENGTH KEY=VALUE\n`, the length counting its own digits.
pub(crate) fn record(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend(length.to_string().as_bytes());
    to.push(b' ');
    to.extend(key);
    to.push(b'=');
    to.extend(value);
    to.push(b'\n');
}

/// Seconds and nanoseconds after them as a decimal fraction.
fn decimal((seconds, nanoseconds): (i64, u32)) -> String {
    match seconds < 0 && nanoseconds > 0 {
        true => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        false => format!("{seconds}.{nanoseconds:09}"),
    }
}
