//! Whom an image's `User` names, as its own passwd and group files have it.
//!
//! The forms and their meaning are Docker's: `user`, `uid`, `user:group`, `uid:gid` and mixtures. A name must be in
//! the container's files; a number need not be. Without a group the user's own is taken, with the supplementary groups
//! that list the user.

use std::path::Path;

use crate::sys::rooted;
use crate::{Error, Kind, Result};

/// Longer account files are nobody's.
const LONGEST_FILE: u64 = 16 << 20;

/// Numbers to run as, and the home directory to start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub supplementary: Vec<u32>,
    pub home: String,
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Look up `user` in the tree at `root`. An empty one is root.
pub(super) fn resolve(root: &Path, user: &str) -> Result<Identity> {
    let passwd = lines(root, "/etc/passwd")?;
    let group = lines(root, "/etc/group")?;
    find(user, &passwd, &group)
}

fn find(user: &str, passwd: &[Vec<String>], group: &[Vec<String>]) -> Result<Identity> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let accounts = passwd.iter().filter_map(|fields| account(fields));
    let account = match name {
        "" => accounts.into_iter().find(|account| account.uid == 0),
        _ => {
            let number = name.parse::<u32>().ok();
            accounts.into_iter().find(|account| account.name == name || Some(account.uid) == number)
        }
    };
    let uid = match (&account, name, name.parse::<u32>()) {
        (Some(account), _, _) => account.uid,
        (None, "", _) => 0,
        (None, _, Ok(number)) => number,
        (None, _, Err(_)) => return Err(missing("user", name, "/etc/passwd")),
    };
    let gid = match group_name.filter(|group| !group.is_empty()) {
        None => account.as_ref().map_or(0, |account| account.gid),
        Some(wanted) => match group.iter().find(|fields| fields.first().is_some_and(|name| name == wanted)) {
            Some(fields) => number(fields.get(2)).ok_or_else(|| missing("group", wanted, "/etc/group"))?,
            None => wanted.parse().map_err(|_| missing("group", wanted, "/etc/group"))?,
        },
    };
    let supplementary = match (&account, group_name) {
        (Some(account), None) => {
            let members = group.iter().filter(|fields| {
                fields.get(3).is_some_and(|members| members.split(',').any(|member| member == account.name))
            });
            members.filter_map(|fields| number(fields.get(2))).filter(|member| *member != gid).collect()
        }
        _ => Vec::new(),
    };
    let home = account.map(|account| account.home).filter(|home| !home.is_empty()).unwrap_or_else(|| "/".into());
    Ok(Identity { uid, gid, supplementary, home })
}

/// `name:password:uid:gid:gecos:home:shell` (passwd(5)).
fn account(fields: &[String]) -> Option<Account> {
    Some(Account {
        name: fields.first()?.clone(),
        uid: number(fields.get(2))?,
        gid: number(fields.get(3))?,
        home: fields.get(5).cloned().unwrap_or_default(),
    })
}

fn number(field: Option<&String>) -> Option<u32> {
    field?.parse().ok()
}

fn lines(root: &Path, path: &str) -> Result<Vec<Vec<String>>> {
    let bytes = rooted::read(root, path, LONGEST_FILE)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(|line| line.trim().split(':').map(str::to_string).collect()).collect())
}

fn missing(what: &str, name: &str, file: &str) -> Error {
    Error::new(Kind::NotFound, format!("{what} {name:?} is not in the container's {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Vec<Vec<String>> {
        text.lines().map(|line| line.split(':').map(str::to_string).collect()).collect()
    }

    fn resolve(user: &str) -> Result<(u32, u32, Vec<u32>, String)> {
        let passwd = table("root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\nbroken");
        let group = table("root:x:0:\nwww:x:33:\nmail:x:8:www,other\nadm:x:4:www");
        find(user, &passwd, &group).map(|i| (i.uid, i.gid, i.supplementary, i.home))
    }

    #[test]
    fn every_form_is_understood() {
        let www = |groups: &[u32]| (33, 33, groups.to_vec(), "/var/www".to_string());
        for (user, expected) in [
            ("", (0, 0, vec![], "/root".into())),
            ("www", www(&[8, 4])),
            ("33", www(&[8, 4])),
            ("www:mail", (33, 8, vec![], "/var/www".into())),
            ("www:7", (33, 7, vec![], "/var/www".into())),
            ("1000", (1000, 0, vec![], "/".into())),
            ("1000:1000", (1000, 1000, vec![], "/".into())),
        ] {
            assert_eq!(resolve(user).expect(user), expected, "{user}");
        }
    }

    #[test]
    fn names_must_be_there() {
        for user in ["nobody", "www:nogroup", "-1"] {
            assert_eq!(resolve(user).expect_err(user).kind(), Kind::NotFound);
        }
    }
}
