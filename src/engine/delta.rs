//! What a container has changed, as what a layer is to do.

use std::os::unix::ffi::OsStrExt;

use crate::backend::changes::{Changes, EntryKind, What};
use crate::layer::pack::Item;

/// The items of a layer that makes the tree of its parent's. A layer can't hold a socket: it hides what was in the place
/// of one, and the packer counts the sockets that it leaves out.
pub fn items(changes: &Changes) -> Vec<Item> {
    let mut items = Vec::with_capacity(changes.list.len());
    for change in &changes.list {
        let path = change.path.as_os_str().as_bytes().to_vec();
        let hides = match change.what {
            What::Deleted => true,
            What::Replaced { .. } => change.kind == EntryKind::Socket,
            What::Added | What::Modified | What::Touched | What::Linked => false,
        };
        if hides {
            items.push(Item::Hide(path.clone()));
        }
        if change.what != What::Deleted {
            items.push(Item::Make(path));
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::changes::{Change, FeedMethod};

    #[test]
    fn a_socket_hides_what_was_in_its_place() {
        let change = |path: &str, what, kind| Change { path: path.into(), what, kind, size: None };
        let (file, socket) = (EntryKind::File, EntryKind::Socket);
        let list = vec![
            change("", What::Touched, EntryKind::Directory),
            change("a", What::Added, file),
            change("b", What::Deleted, file),
            change("c", What::Linked, file),
            change("d", What::Replaced { was: socket }, file),
            change("e", What::Replaced { was: file }, socket),
            change("f", What::Added, socket),
        ];
        let (make, hide) = (|path: &str| Item::Make(path.into()), |path: &str| Item::Hide(path.into()));
        let expected = [make(""), make("a"), hide("b"), make("c"), make("d"), hide("e"), make("e"), make("f")];
        assert_eq!(items(&Changes { list, method: FeedMethod::Send }), expected);
    }
}
