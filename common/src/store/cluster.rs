//! What a Redis Cluster looks like: which of its nodes serves what, and how it is.

use redis::{InfoDict, Value, cluster_routing::Slot};

use super::script::{Store, StoreError};

/// A server by its name in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // An IPv6 address stands in brackets, as in a URL.
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Slots that lie side by side, and who serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    first: u16,
    last: u16,
    master: Node,
    replicas: Vec<Node>,
}

/// All slots that are served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range>);

impl Ranges {
    /// Reads the answer to `CLUSTER SLOTS`; a node without a host is on that of whoever answered. What is no range is left out.
    pub(super) fn read(answer: &Value, answered: &str) -> Self {
        let Value::Array(ranges) = answer else { return Self::default() };
        let range = |v: &Value| {
            let Value::Array(parts) = v else { return None };
            let [Value::Int(first), Value::Int(last), nodes @ ..] = parts.as_slice() else { return None };
            let mut nodes = nodes.iter().filter_map(|n| node(n, answered));
            Some(Range {
                first: u16::try_from(*first).ok()?,
                last: u16::try_from(*last).ok()?,
                master: nodes.next()?,
                replicas: nodes.collect(),
            })
        };
        Self(ranges.iter().filter_map(range).collect())
    }

    /// Every node, masters first.
    pub(super) fn nodes(&self) -> Vec<Node> {
        let masters = self.0.iter().map(|r| &r.master);
        let mut all: Vec<Node> = Vec::new();
        for node in masters.chain(self.0.iter().flat_map(|r| &r.replicas)) {
            if !all.contains(node) {
                all.push(node.clone());
            }
        }
        all
    }
}

fn node(value: &Value, answered: &str) -> Option<Node> {
    let Value::Array(parts) = value else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = match host {
        Value::BulkString(h) => String::from_utf8(h.clone()).ok()?,
        Value::SimpleString(h) => h.clone(),
        _ => String::new(),
    };
    let host = match host.as_str() {
        // A name that the cluster does not know yet.
        "?" => return None,
        "" => answered.to_owned(),
        _ => host,
    };
    Some(Node { host, port: u16::try_from(*port).ok()? })
}

/// A node that serves slots, and what it has of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    pub node: Node,
    pub replicas: Vec<Node>,
    /// Partitions whose keys it has.
    pub partitions: Vec<u32>,
}

/// A cluster as one of its nodes sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterState {
    /// In the order of their slots.
    pub masters: Vec<Master>,
    /// Partitions whose slot nobody serves.
    pub unserved: Vec<u32>,
    /// `cluster_state` is `ok`.
    pub is_ok: bool,
    /// Slots that are served, of 16384.
    pub slots_ok: u64,
    /// The least number of partitions with which every master has one, as the slots lie now; `None`: more than there may be.
    pub least_partitions: Option<u32>,
}

/// As many partitions as `layout.partitions` may say.
const MOST_PARTITIONS: u32 = 99;

impl ClusterState {
    /// `slot` gives the slot of a partition.
    pub(super) fn of(ranges: &Ranges, info: &InfoDict, partitions: u32, slot: impl Fn(u32) -> Slot) -> Self {
        let owner = |p: u32| {
            let here = |r: &&Range| (r.first..=r.last).any(|s| Slot::new(s) == Some(slot(p)));
            ranges.0.iter().find(here).map(|r| &r.master)
        };
        let mut masters: Vec<Master> = Vec::new();
        for r in &ranges.0 {
            if masters.iter().all(|m| m.node != r.master) {
                let (node, replicas) = (r.master.clone(), r.replicas.clone());
                masters.push(Master { node, replicas, partitions: Vec::new() });
            }
        }
        let mut unserved = Vec::new();
        for p in 0..partitions {
            match masters.iter_mut().find(|m| owner(p) == Some(&m.node)) {
                Some(master) => master.partitions.push(p),
                None => unserved.push(p),
            }
        }
        let mut without: Vec<&Node> = masters.iter().map(|m| &m.node).collect();
        let least_partitions = (0..MOST_PARTITIONS).find_map(|p| {
            without.retain(|m| owner(p) != Some(m));
            without.is_empty().then_some(p + 1)
        });
        Self {
            unserved,
            is_ok: info.get::<String>("cluster_state").as_deref() == Some("ok"),
            slots_ok: info.get("cluster_slots_ok").unwrap_or(0),
            least_partitions,
            masters,
        }
    }
}

impl Store {
    /// The cluster, where this is one: two calls.
    pub async fn cluster(&self) -> Result<Option<ClusterState>, StoreError> {
        let mut c = self.connection();
        if !c.is_cluster() {
            return Ok(None);
        }
        let info: InfoDict = redis::cmd("CLUSTER").arg("INFO").query_async(&mut c).await?;
        let slots: Value = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut c).await?;
        let ranges = Ranges::read(&slots, "");
        Ok(Some(ClusterState::of(&ranges, &info, self.keys().partitions(), |p| self.slot(p))))
    }
}

#[cfg(test)]
mod tests {
    use redis::FromRedisValue;

    use super::*;

    fn text(t: &str) -> Value {
        Value::BulkString(t.into())
    }

    fn server(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    fn at(host: &str, port: u16) -> Node {
        Node { host: host.into(), port }
    }

    #[test]
    fn nodes_are_read_from_the_slots_masters_first() {
        let answer = Value::Array(vec![
            range(0, 99, vec![server(text("a"), 1), server(text("b"), 2)]),
            range(100, 199, vec![server(text(""), 3), server(text("?"), 4)]),
            range(200, 299, vec![server(Value::Nil, 3)]),
            Value::Int(7),
        ]);
        let ranges = Ranges::read(&answer, "here");
        assert_eq!(ranges.nodes(), [at("a", 1), at("here", 3), at("b", 2)]);
        assert_eq!(Ranges::read(&Value::Nil, "here"), Ranges::default());
        assert_eq!((at("a", 1).to_string(), at("::1", 2).to_string()), ("a:1".into(), "[::1]:2".into()));
    }

    #[test]
    fn partitions_are_counted_where_their_slots_are() {
        let answer = Value::Array(vec![
            range(0, 5460, vec![server(text("a"), 1)]),
            range(5461, 10922, vec![server(text("b"), 1), server(text("r"), 1)]),
            range(10923, 16000, vec![server(text("c"), 1)]),
        ]);
        let info =
            InfoDict::from_redis_value(text("cluster_state:ok\r\ncluster_slots_ok:16001\r\n")).unwrap();
        let slots = [1, 2, 16100, 6000, 7, 12000];
        let slot = |p: u32| Slot::new(slots[p as usize % 6]).unwrap();
        let state = ClusterState::of(&Ranges::read(&answer, ""), &info, 4, slot);
        let found: Vec<_> =
            state.masters.iter().map(|m| (m.node.host.as_str(), m.partitions.as_slice())).collect();
        assert_eq!(found, [("a", &[0, 1][..]), ("b", &[3]), ("c", &[])]);
        assert_eq!((state.unserved.as_slice(), state.is_ok, state.slots_ok), (&[2][..], true, 16001));
        assert_eq!(state.least_partitions, Some(6));
        assert_eq!(state.masters[1].replicas, [at("r", 1)]);
    }
}
