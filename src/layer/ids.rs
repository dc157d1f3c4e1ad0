//! Maps of user and group ids: a tar has those of the container's user namespace, a tree on disk the host's.
//!
//! Where an inode says who somebody is: its owner and group, the named users and groups of its ACLs, and the root of the
//! namespace that its capabilities count in.

use serde::{Deserialize, Serialize};

use super::attributes::{ACCESS_ACL, CAPABILITY, DEFAULT_ACL};
use super::reader::Attributes;
use crate::error::{Context, Error, Kind, Result};

/// `size` ids from `container` on are those from `host` on. The names are Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    #[serde(rename = "container_id")]
    pub container: u32,
    #[serde(rename = "host_id")]
    pub host: u32,
    pub size: u32,
}

/// Which ids on the host those of a container are. Without ranges, each is itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Lists")]
pub struct IdMaps {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

/// What nobody has checked yet.
#[derive(Deserialize)]
struct Lists {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

/// Ranges of users, and of groups: the kernel takes as many for a namespace (UID_GID_MAP_MAX_EXTENTS,
/// linux/user_namespace.h).
const MOST_RANGES: usize = 340;

#[derive(Debug, Clone, Copy)]
enum Way {
    ToHost,
    ToContainer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    User,
    Group,
}

impl IdMaps {
    /// Maps of users and groups.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a range without ids or past the last one (2^32 - 2; the next is nobody's), for ranges
    /// that share ids, the container's or the host's, and for more ranges than a user namespace can have.
    pub fn new(uids: Vec<IdRange>, gids: Vec<IdRange>) -> Result<Self> {
        check(&uids).context(|| "id map of users")?;
        check(&gids).context(|| "id map of groups")?;
        Ok(Self { uids, gids })
    }

    /// Whether every id is itself because there are no ranges.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// The host's ids of a user and a group of the container.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for one that no range has.
    pub fn to_host(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        Ok((self.map(Whose::User, uid, Way::ToHost)?, self.map(Whose::Group, gid, Way::ToHost)?))
    }

    /// The container's ids of a user and a group of the host.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for one that no range has.
    pub fn to_container(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        Ok((self.map(Whose::User, uid, Way::ToContainer)?, self.map(Whose::Group, gid, Way::ToContainer)?))
    }

    /// The host's ids of the container's root.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it has none.
    pub fn root(&self) -> Result<(u32, u32)> {
        self.to_host(0, 0).map_err(|error| Error::new(Kind::Invalid, error.to_string()))
    }

    /// Make what a tar says of an entry what its inode is to have.
    pub(crate) fn map_in(&self, attributes: &mut Attributes) -> Result<()> {
        if self.is_identity() { Ok(()) } else { self.attributes(attributes, Way::ToHost) }
    }

    /// Make what an inode has what a tar is to say of it. Capabilities that count below the container's root are made such
    /// that name no root, as Docker does it: they mean the same, and who unpacks them may have another map.
    pub(crate) fn map_out(&self, attributes: &mut Attributes) -> Result<()> {
        if !self.is_identity() {
            self.attributes(attributes, Way::ToContainer)?;
        }
        if let Some(capability) = attributes.xattrs.get_mut(CAPABILITY)
            && root_of(capability).is_some_and(|root| *root == [0; 4])
        {
            capability.truncate(CAPABILITY_V2);
            capability[REVISION] = 2;
        }
        Ok(())
    }

    fn attributes(&self, attributes: &mut Attributes, way: Way) -> Result<()> {
        attributes.uid = self.map(Whose::User, attributes.uid, way)?;
        attributes.gid = self.map(Whose::Group, attributes.gid, way)?;
        for (name, value) in &mut attributes.xattrs {
            match name.as_slice() {
                ACCESS_ACL | DEFAULT_ACL => self.acl(value, way).context(|| "its ACL")?,
                CAPABILITY => {
                    if let Some(root) = root_of(value) {
                        let id = self.map(Whose::User, u32::from_le_bytes(*root), way);
                        *root = id.context(|| "its capabilities")?.to_le_bytes();
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `struct posix_acl_xattr_header` and `posix_acl_xattr_entry` (linux/posix_acl_xattr.h): a version, then tag,
    /// permissions and id of each entry. What isn't of that form is left to the kernel, which refuses it.
    fn acl(&self, acl: &mut [u8], way: Way) -> Result<()> {
        const NAMED_USER: [u8; 2] = [2, 0];
        const NAMED_GROUP: [u8; 2] = [8, 0];
        let Some((_version, entries)) = acl.split_first_chunk_mut::<4>() else { return Ok(()) };
        for [tag @ .., _, _, a, b, c, d] in entries.as_chunks_mut::<8>().0 {
            let whose = match *tag {
                NAMED_USER => Whose::User,
                NAMED_GROUP => Whose::Group,
                _ => continue,
            };
            let id = self.map(whose, u32::from_le_bytes([*a, *b, *c, *d]), way)?;
            [*a, *b, *c, *d] = id.to_le_bytes();
        }
        Ok(())
    }

    fn map(&self, whose: Whose, id: u32, way: Way) -> Result<u32> {
        let ranges = if whose == Whose::User { &self.uids } else { &self.gids };
        if ranges.is_empty() {
            return Ok(id);
        }
        let found = ranges.iter().find_map(|range| {
            let (from, to) = match way {
                Way::ToHost => (range.container, range.host),
                Way::ToContainer => (range.host, range.container),
            };
            id.checked_sub(from).filter(|&at| at < range.size).map(|at| to + at)
        });
        found.ok_or_else(|| {
            let (kind, side) = match way {
                Way::ToHost => (Kind::BadInput, "container"),
                Way::ToContainer => (Kind::Unsupported, "host"),
            };
            let whose = if whose == Whose::User { "user" } else { "group" };
            Error::new(kind, format!("{side} {whose} {id} is in no range of the id map"))
        })
    }
}

impl TryFrom<Lists> for IdMaps {
    type Error = Error;

    fn try_from(Lists { uids, gids }: Lists) -> Result<Self> {
        Self::new(uids, gids)
    }
}

fn check(ranges: &[IdRange]) -> Result<()> {
    let bad = |why: String| Err(Error::new(Kind::Invalid, why));
    if ranges.len() > MOST_RANGES {
        return bad(format!("{} ranges, and no namespace has more than {MOST_RANGES}", ranges.len()));
    }
    let shared = |one: u32, size: u32, other: u32, its: u32| one < other + its && other < one + size;
    for (number, range) in ranges.iter().enumerate() {
        let &IdRange { container, host, size } = range;
        if size == 0 {
            return bad(format!("the range at container id {container} has no ids"));
        }
        if container.checked_add(size).is_none() || host.checked_add(size).is_none() {
            return bad(format!("the range of {size} ids from {container} to {host} goes past the last id"));
        }
        for before in &ranges[..number] {
            if shared(container, size, before.container, before.size) {
                return bad(format!(
                    "two ranges share ids of the container, at {container} and {}",
                    before.container
                ));
            }
            if shared(host, size, before.host, before.size) {
                return bad(format!("two ranges share ids of the host, at {host} and {}", before.host));
            }
        }
    }
    Ok(())
}

/// Length of `struct vfs_cap_data` (linux/capability.h): revision and flags, and two times permitted and inheritable.
const CAPABILITY_V2: usize = 20;
/// The highest byte of the first number, which is little-endian.
const REVISION: usize = 3;

/// The root id that stands behind it in `struct vfs_ns_cap_data`, revision 3.
fn root_of(capability: &mut [u8]) -> Option<&mut [u8; 4]> {
    if capability.get(REVISION) != Some(&3) {
        return None;
    }
    capability.get_mut(CAPABILITY_V2..)?.try_into().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn range(container: u32, host: u32, size: u32) -> IdRange {
        IdRange { container, host, size }
    }

    #[test]
    fn ids_go_both_ways_or_are_named() {
        let maps = IdMaps::new(
            vec![range(0, 100_000, 1000), range(1000, 5000, 1), range(70_000, 0, 10)],
            vec![range(0, 200_000, 65_536)],
        )
        .unwrap();
        for (container, host) in
            [((0, 0), (100_000, 200_000)), ((999, 7), (100_999, 200_007)), ((1000, 0), (5000, 200_000))]
        {
            assert_eq!(maps.to_host(container.0, container.1).unwrap(), host);
            assert_eq!(maps.to_container(host.0, host.1).unwrap(), container);
        }
        assert_eq!(maps.to_host(70_009, 65_535).unwrap(), (9, 265_535));
        assert_eq!(maps.root().unwrap(), (100_000, 200_000));
        let error = |result: Result<(u32, u32)>| {
            let error = result.unwrap_err();
            (error.kind(), error.to_string())
        };
        let unmapped = |side: &str| format!("{side} is in no range of the id map");
        assert_eq!(error(maps.to_host(1001, 0)), (Kind::BadInput, unmapped("container user 1001")));
        assert_eq!(error(maps.to_host(0, 65_536)), (Kind::BadInput, unmapped("container group 65536")));
        assert_eq!(error(maps.to_container(10, 200_000)), (Kind::Unsupported, unmapped("host user 10")));
        assert_eq!(error(maps.to_container(0, u32::MAX)), (Kind::Unsupported, unmapped("host group 4294967295")));
        let rootless = IdMaps::new(vec![range(1, 1, 1)], Vec::new()).unwrap();
        assert_eq!(error(rootless.root()), (Kind::Invalid, unmapped("container user 0")));
        assert_eq!(rootless.to_host(1, 77).unwrap(), (1, 77), "no ranges of groups");
        let identity = IdMaps::default();
        assert!(identity.is_identity() && !rootless.is_identity());
        assert_eq!(identity.to_host(7, u32::MAX).unwrap(), (7, u32::MAX));
    }

    #[test]
    fn maps_that_cannot_be() {
        for (ranges, why) in [
            (vec![range(5, 6, 0)], "has no ids"),
            (vec![range(u32::MAX, 0, 1)], "past the last id"),
            (vec![range(0, u32::MAX - 9, 10)], "past the last id"),
            (vec![range(0, 0, u32::MAX), range(u32::MAX - 1, 7, 1)], "share ids of the container"),
            (vec![range(0, 1000, 10), range(9, 2000, 10)], "share ids of the container, at 9 and 0"),
            (vec![range(10, 1000, 10), range(0, 1009, 10)], "share ids of the host, at 1009 and 1000"),
            ((0..341).map(|id| range(id, id, 1)).collect(), "no namespace has more than 340"),
            (vec![range(0, 1000, 10), range(50, 995, 20)], "share ids of the host"),
        ] {
            for maps in [IdMaps::new(ranges.clone(), Vec::new()), IdMaps::new(Vec::new(), ranges)] {
                let error = maps.unwrap_err();
                assert_eq!(error.kind(), Kind::Invalid);
                assert!(error.to_string().contains(why), "{error}");
            }
        }
        let full = IdMaps::new(vec![range(0, 0, u32::MAX)], vec![range(0, 10, 5), range(5, 15, 5)]).unwrap();
        assert!(IdMaps::new((0..340).map(|id| range(id, id, 1)).collect(), Vec::new()).is_ok());
        assert_eq!(full.to_host(u32::MAX - 1, 9).unwrap(), (u32::MAX - 1, 19));
    }

    #[test]
    fn on_the_wire_they_are_dockers_and_checked() {
        let maps = IdMaps::new(vec![range(0, 100_000, 65_536)], Vec::new()).unwrap();
        let text = r#"{"uids":[{"container_id":0,"host_id":100000,"size":65536}],"gids":[]}"#;
        assert_eq!(serde_json::to_string(&maps).unwrap(), text);
        assert_eq!(serde_json::from_str::<IdMaps>(text).unwrap(), maps);
        let error = serde_json::from_str::<IdMaps>(&text.replace("65536", "0")).unwrap_err();
        assert!(error.to_string().contains("has no ids"), "{error}");
    }

    #[test]
    fn capabilities_lose_the_containers_root_and_no_other() {
        let capability = |revision: u8, root: &[u8]| {
            let mut value = vec![1, 0, 0, revision];
            value.extend([9; 16]);
            value.extend(root);
            value
        };
        let out = |maps: &IdMaps, value: Vec<u8>| {
            let xattrs = [(CAPABILITY.to_vec(), value)].into();
            let (uid, gid) = maps.root().unwrap();
            let mut attributes = Attributes { uid, gid, xattrs, ..Attributes::default() };
            maps.map_out(&mut attributes).map(|()| attributes.xattrs.remove(CAPABILITY).unwrap())
        };
        let (plain, root_3000) = (capability(2, &[]), capability(3, &3000_u32.to_le_bytes()));
        let identity = IdMaps::default();
        assert_eq!(out(&identity, capability(3, &[0; 4])).unwrap(), plain);
        for unchanged in [&plain, &root_3000, &vec![1, 0, 0, 3], &vec![1], &vec![], &capability(1, &[])] {
            assert_eq!(out(&identity, unchanged.clone()).unwrap(), *unchanged);
        }
        let maps = IdMaps::new(vec![range(0, 3000, 1), range(7, 0, 1)], Vec::new()).unwrap();
        assert_eq!(out(&maps, root_3000).unwrap(), plain);
        assert_eq!(out(&maps, capability(3, &[0; 4])).unwrap(), capability(3, &7_u32.to_le_bytes()));
        let error = out(&maps, capability(3, &[1, 0, 0, 0])).unwrap_err();
        assert_eq!(error.to_string(), "its capabilities: host user 1 is in no range of the id map");
        assert_eq!(error.kind(), Kind::Unsupported);
    }
}
