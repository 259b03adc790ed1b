//! Who runs this command.

/// `user@host`: the name of the effective user in `/etc/passwd`, or `uid-1000` where it has none.
pub(super) fn who() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = name_of(uid, &passwd).map_or_else(|| format!("uid-{uid}"), str::to_owned);
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

/// The name that a user has in a file of users.
fn name_of(uid: u32, passwd: &str) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_name_of_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_of(1000, passwd), Some("ann"));
        assert_eq!(name_of(0, passwd), Some("root"));
        assert_eq!(name_of(7, passwd), None);
        assert!(who().contains('@'));
    }
}
