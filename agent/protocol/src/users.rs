//! Users by name, as the files of a container's image know them.

/// What the files say of a user.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The user's number.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
    /// All groups. The user's own is among them: else a program that takes on another group would leave it,
    /// and reach what is kept from its members.
    pub groups: Vec<u32>,
}

/// Somebody whom the files do not know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} {name} in {file}")]
pub struct Unknown {
    what: &'static str,
    name: String,
    file: &'static str,
}

/// Finds `USER[:GROUP]`, names or numbers, as an image or a user of Docker writes it, in the texts of
/// /etc/passwd and /etc/group.
pub fn find(name: &str, passwd: &str, group: &str) -> Result<Found, Unknown> {
    let (user, own_group) = match name.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (name, None),
    };
    let line = |line: &&str, name: &str, number: usize| {
        let mut fields = line.split(':');
        let is_name = fields.next() == Some(name);
        is_name || fields.nth(number - 1) == Some(name)
    };
    let number = |line: &str, at: usize| line.split(':').nth(at)?.parse::<u32>().ok();
    let entry = passwd.lines().find(|l| line(l, user, 2));
    let unknown = |what, name: &str, file| Unknown {
        what,
        name: name.to_owned(),
        file,
    };
    let uid = entry
        .and_then(|entry| number(entry, 2))
        .or(user.parse().ok());
    let uid = uid.ok_or_else(|| unknown("user", user, "/etc/passwd"))?;
    if let Some(name) = own_group.filter(|name| !name.is_empty()) {
        let entry = group.lines().find(|l| line(l, name, 2));
        let gid = entry
            .and_then(|entry| number(entry, 2))
            .or(name.parse().ok());
        let gid = gid.ok_or_else(|| unknown("group", name, "/etc/group"))?;
        let groups = vec![gid];
        return Ok(Found { uid, gid, groups });
    }
    let name = entry
        .and_then(|entry| entry.split(':').next())
        .unwrap_or(user);
    let has = |line: &&str| {
        let members = line.split(':').nth(3).unwrap_or_default();
        members.split(',').any(|member| member == name)
    };
    let gid = entry.and_then(|entry| number(entry, 3)).unwrap_or(0);
    let others = group.lines().filter(has);
    let others = others.filter_map(|line| number(line, 2));
    let others = others.filter(|other| *other != gid);
    let groups = std::iter::once(gid).chain(others).collect();
    Ok(Found { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, images whose user has a name run as another, or not at all.
    #[test]
    fn names_are_found_in_the_containers_files() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbad\nwww:x:33:34::/:/bin/false\n";
        let group = "root:x:0:\nwww:x:34:\nlogs:x:5:www,other\nx:x:6:other,root\n";
        let found = |name| find(name, passwd, group).unwrap();
        let of = |uid, gid, groups: &[u32]| Found {
            uid,
            gid,
            groups: groups.to_vec(),
        };
        assert_eq!(found("www"), of(33, 34, &[34, 5]));
        assert_eq!(found("33"), of(33, 34, &[34, 5]));
        assert_eq!(found("www:logs"), of(33, 5, &[5]));
        assert_eq!(found("www:7"), of(33, 7, &[7]));
        assert_eq!(found("1000"), of(1000, 0, &[0]));
        assert_eq!(found("root"), of(0, 0, &[0, 6]));
        let own = find("0", "", "root:x:0:root\n").unwrap();
        assert_eq!(own, of(0, 0, &[0]));
        for name in ["nobody", "www:none", ""] {
            assert!(find(name, passwd, group).is_err(), "{name}");
        }
    }
}
