//! What the reader says of an archive, without a filesystem.

use reflinkd::Result;
use reflinkd::layer::reader::{Archive, Entry, What};
use sha2::{Digest, Sha256};

/// Files longer than this aren't put together: holes have no bytes in the archive.
pub(crate) const MOST_CONTENT: u64 = 16 << 20;

/// An entry, and of a file its content.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) entry: Entry,
    /// SHA-256; none for what is no file, and for what is longer than [`MOST_CONTENT`].
    pub(crate) sha256: Option<[u8; 32]>,
}

/// All entries up to the archive's end.
pub(crate) fn list(tar: &[u8], max_bytes: u64) -> Result<Vec<Listed>> {
    let mut stream = tar;
    let mut archive = Archive::new(&mut stream, max_bytes, &|| false);
    let mut listed = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let sha256 = content(&mut archive, &entry)?.map(|content| Sha256::digest(content).into());
        listed.push(Listed { entry, sha256 });
    }
    Ok(listed)
}

/// The whole content of a file, holes filled.
pub(crate) fn content(archive: &mut Archive<'_>, entry: &Entry) -> Result<Option<Vec<u8>>> {
    let What::File { size, map } = &entry.what else { return Ok(None) };
    if *size > MOST_CONTENT {
        return Ok(None);
    }
    let whole = [reflinkd::layer::reader::Segment { offset: 0, length: *size }];
    let mut content = vec![0; usize::try_from(*size).expect("below the most")];
    for part in map.as_deref().unwrap_or(&whole) {
        let (mut at, end) = (part.offset, part.offset + part.length);
        while at < end {
            let lent = archive.data(end - at)?;
            let from = usize::try_from(at).expect("inside the file");
            content[from..from + lent.len()].copy_from_slice(lent);
            at += lent.len() as u64;
        }
    }
    Ok(Some(content))
}
