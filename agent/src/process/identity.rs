//! `user[:group]` as an image writes it, resolved with the image's own `/etc/passwd` and `/etc/group`.
//!
//! Both files are the image's and not trusted: they are read up to [`MAX_FILE`] bytes, and lines that do not
//! parse are passed over.

use std::io::Read;

use agent_protocol::message::ProcessPlan;

use crate::failure::Failure;

/// Stops a hostile image from filling the agent's memory.
const MAX_FILE: u64 = 1 << 20;

/// Who a process is.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// User ID.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub groups: Vec<u32>,
    /// From `/etc/passwd`; `/` for a user that it does not know, as Docker does.
    pub home: String,
}

/// Resolves the plan's user and groups. Called inside the container's root.
pub fn resolve(plan: &ProcessPlan) -> Result<Identity, Failure> {
    identify(&plan.user, &plan.additional_groups, &read("/etc/passwd"), &read("/etc/group"))
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Resolves `user[:group]` and additional groups with the text of the two files.
///
/// # Errors
/// A name that they do not know.
pub fn identify(spec: &str, additional: &[String], passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (user, primary) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(PasswdEntry::parse)
        .find(|entry| entry.name == user || Some(entry.uid) == number);
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(Failure::agent(format!("user {user:?}: no such user in the image's /etc/passwd")));
        }
    };
    let gid = match primary {
        Some(name) => group_id(name, group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    // An explicit group replaces the user's memberships, as in Docker.
    if let (Some(entry), None) = (&entry, primary) {
        let member = |g: &GroupEntry| g.members.split(',').any(|name| name == entry.name);
        groups.extend(group.lines().filter_map(GroupEntry::parse).filter(member).map(|g| g.gid));
    }
    for name in additional {
        groups.push(group_id(name, group)?);
    }
    let home = entry.map_or("/", |entry| entry.home).to_owned();
    Ok(Identity { uid, gid, groups, home })
}

fn group_id(name: &str, group: &str) -> Result<u32, Failure> {
    let known =
        group.lines().filter_map(GroupEntry::parse).find(|entry| entry.name == name).map(|entry| entry.gid);
    known
        .or_else(|| name.parse().ok())
        .ok_or_else(|| Failure::agent(format!("group {name:?}: no such group in the image's /etc/group")))
}

struct PasswdEntry<'f> {
    name: &'f str,
    uid: u32,
    gid: u32,
    home: &'f str,
}

impl<'f> PasswdEntry<'f> {
    fn parse(line: &'f str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(PasswdEntry { name, uid, gid, home })
    }
}

struct GroupEntry<'f> {
    name: &'f str,
    gid: u32,
    members: &'f str,
}

impl<'f> GroupEntry<'f> {
    fn parse(line: &'f str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/false\nnohome:x:7:8:::\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlogs:x:4:web,other\n:x:9:web\nbad:x:many:web\n";

    fn who(spec: &str) -> Identity {
        identify(spec, &[], PASSWD, GROUP).unwrap()
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let web = Identity { uid: 33, gid: 33, groups: vec![33, 4], home: "/var/www".into() };
        assert_eq!(who("web"), web);
        assert_eq!(who("33"), web);
        assert_eq!(who("").uid, 0);
        assert_eq!(who("").home, "/root");
        assert_eq!(who("nohome").home, "/");
    }

    #[test]
    fn an_unknown_number_is_a_user_of_group_zero_and_an_unknown_name_is_an_error() {
        assert_eq!(who("1234"), Identity { uid: 1234, gid: 0, groups: vec![0], home: "/".into() });
        assert!(identify("nobody", &[], PASSWD, GROUP).unwrap_err().message.contains("nobody"));
        assert!(identify("web:nogroup", &[], PASSWD, GROUP).unwrap_err().message.contains("nogroup"));
    }

    #[test]
    fn an_explicit_group_replaces_the_memberships_and_more_can_be_added() {
        assert_eq!(who("web:root").groups, [0]);
        assert_eq!(who("12:50"), Identity { uid: 12, gid: 50, groups: vec![50], home: "/".into() });
        let more = identify("web", &["77".into(), "root".into()], PASSWD, GROUP).unwrap();
        assert_eq!(more.groups, [33, 4, 77, 0]);
    }
}
