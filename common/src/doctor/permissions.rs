//! Whether the connection's user may publish to what this process needs.

use super::{
    Finding, Role,
    checks::PERMISSIONS,
    facts::{NatsFacts, Permissions},
};
use crate::broker::{
    receipts,
    topology::{Lane, Names},
};

/// Whether every subject that `inner` stands for is matched by `outer`. Both may have wildcards.
pub(super) fn covers(outer: &str, inner: &str) -> bool {
    let (mut o, mut i) = (outer.split('.'), inner.split('.'));
    loop {
        match (o.next(), i.next()) {
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(t)) if t != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// Whether some subject is matched by both.
pub(super) fn meets(a: &str, b: &str) -> bool {
    let (mut x, mut y) = (a.split('.'), b.split('.'));
    loop {
        match (x.next(), y.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

impl Permissions {
    /// Whether all of a subject may be published to.
    pub(super) fn permit(&self, subject: &str) -> bool {
        (self.allow.is_empty() || self.allow.iter().any(|a| covers(a, subject)))
            && !self.deny.iter().any(|d| meets(d, subject))
    }
}

/// How single messages of a stream are read. In a cluster the leader is asked before something counts as absent.
fn reads(stream: &str, is_clustered: bool) -> impl Iterator<Item = String> {
    let leader = is_clustered.then(|| format!("$JS.API.STREAM.MSG.GET.{stream}"));
    [format!("$JS.API.DIRECT.GET.{stream}")].into_iter().chain(leader)
}

/// What a role publishes to, beyond asking about itself. `is_dispatcher`: a worker that delivers receipts.
/// `is_clustered`: the server is one of several. (Where requesters
/// listen is known by their jobs alone.)
pub(super) fn needs(
    role: Role,
    n: &Names,
    lanes: &[Lane],
    is_dispatcher: bool,
    is_clustered: bool,
) -> Vec<String> {
    let ns = n.namespace();
    let mut all = vec![format!("$JS.API.STREAM.INFO.{}", n.jobs())];
    if role == Role::Operator {
        return all;
    }
    all.extend(match role {
        // The barriers of the journal are a reaper's alone.
        Role::Reaper => vec![format!("{ns}.events.>")],
        _ => vec![format!("{ns}.events.*"), format!("{ns}.events.*.ended")],
    });
    all.extend([format!("{ns}.dlq.>"), format!("{ns}.receipts.>")]);
    // What is paused: without it a worker starts nothing.
    let pauses = n.pauses();
    all.extend([format!("$JS.API.STREAM.INFO.{pauses}"), format!("$JS.API.DIRECT.GET.{pauses}")]);
    for lane in lanes {
        let (stream, consumer) = (&lane.stream, &lane.consumer);
        all.extend(reads(stream, is_clustered));
        all.push(format!("$JS.ACK.{stream}.{consumer}.>"));
        match role {
            Role::Worker => all.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")),
            _ => {
                all.push(format!("$JS.API.STREAM.MSG.DELETE.{stream}"));
                all.push(format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"));
            }
        }
    }
    if role == Role::Worker && is_dispatcher {
        let receipts = n.receipts();
        all.push(format!("$JS.API.CONSUMER.MSG.NEXT.{receipts}.{}", receipts::CONSUMER));
        all.push(format!("$JS.ACK.{receipts}.{}.>", receipts::CONSUMER));
    }
    if role == Role::Reaper {
        all.extend([n.receipts(), n.events()].iter().flat_map(|stream| reads(stream, is_clustered)));
        // The copy of a message that nobody delivers.
        all.push(format!("{ns}.jobs.>"));
        let advisories = n.advisories();
        all.push(format!("$JS.API.CONSUMER.MSG.NEXT.{advisories}.reaper"));
        all.push(format!("$JS.ACK.{advisories}.reaper.>"));
        // What a rebuild reads; when it is needed is too late to find out that it may not.
        all.push(format!("$JS.API.CONSUMER.MSG.NEXT.{}.*", n.events()));
    }
    all.sort();
    all.dedup();
    all
}

pub(super) fn judge(nats: &NatsFacts, out: &mut Vec<Finding>) {
    match &nats.publish {
        Ok(None) => {}
        Ok(Some(p)) => {
            let denied: Vec<_> = nats.needs.iter().filter(|s| !p.permit(s)).cloned().collect();
            if !denied.is_empty() {
                out.push(PERMISSIONS.refuse(
                    "this user at nats",
                    format!("it may not publish to {}", denied.join(", ")),
                    "allow these subjects under `permissions.publish` of the user",
                ));
            }
        }
        Err(why) => out.push(PERMISSIONS.unknown(
            "this user at nats",
            format!("what it may publish to is not known ({why})"),
            "allow it to publish to `$SYS.REQ.USER.INFO`, which tells it about itself",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_and_meet() {
        for (outer, inner, is_covered, is_met) in [
            ("a.b", "a.b", true, true),
            ("a.*", "a.b", true, true),
            ("a.>", "a.b.c", true, true),
            ("a.>", "a", false, false),
            ("a.*", "a.b.c", false, false),
            ("a.b", "a.*", false, true),
            ("a.*", "a.>", false, true),
            (">", "a.>", true, true),
            ("a.b.>", "a.>", false, true),
            ("a.*.c", "a.b.*", false, true),
            ("b.>", "a.>", false, false),
        ] {
            assert_eq!((covers(outer, inner), meets(outer, inner)), (is_covered, is_met), "{outer} {inner}");
        }
    }

    #[test]
    fn a_denied_part_denies_the_whole_and_no_list_allows_everything() {
        let p = |allow: &[&str], deny: &[&str]| Permissions {
            allow: allow.iter().map(|s| (*s).to_owned()).collect(),
            deny: deny.iter().map(|s| (*s).to_owned()).collect(),
        };
        assert!(p(&[], &[]).permit("$JS.ACK.J.q.>"));
        assert!(p(&["$JS.ACK.J.>"], &["$JS.ACK.J.other.>"]).permit("$JS.ACK.J.q.>"));
        assert!(!p(&["$JS.ACK.>"], &["$JS.ACK.J.q.1.>"]).permit("$JS.ACK.J.q.>"));
        assert!(!p(&["$JS.ACK.J.q.*"], &[]).permit("$JS.ACK.J.q.>"));
    }
}
