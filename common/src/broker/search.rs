//! Looking for receipts in the journal, message by message: no consumer is made, so it needs no more than the right to read.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Broker, BrokerError, endings::Start, pull::Delivery};
use crate::wire::headers;

/// Messages of one page.
const PAGE: usize = 200;

/// What the journal says of the receipts of some jobs.
#[derive(Debug, Default)]
pub struct Journaled {
    /// By job and generation.
    pub receipts: HashMap<(String, u32), JournaledReceipt>,
    /// Those that were delivered.
    pub delivered: HashSet<(String, u32)>,
}

/// A receipt as its `finished` event has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournaledReceipt {
    /// Byte for byte.
    pub body: String,
    /// Who is to be told (JSON), or empty.
    pub notify: String,
    /// `traceparent`, or empty.
    pub trace: String,
}

/// An event, with what matters here left as it is written.
#[derive(Deserialize)]
struct Event<'a> {
    job: String,
    #[serde(rename = "gen")]
    generation: u32,
    kind: String,
    #[serde(default)]
    trace: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Finished<'a> {
    #[serde(borrow)]
    receipt: &'a RawValue,
    #[serde(borrow, default)]
    notify: Option<&'a RawValue>,
}

impl Broker {
    /// Searches the journal of a queue from a time on (milliseconds of its clock) for the receipts of these jobs and
    /// generations, and for their deliveries. Reads until all are found, or to the end.
    pub async fn journaled_receipts(
        &self,
        queue: &str,
        from_ms: u64,
        wanted: &HashSet<(String, u32)>,
    ) -> Result<Journaled, BrokerError> {
        let mut out = Journaled::default();
        self.walk(&self.names().event_subject(&format!("{queue}.ended")), from_ms, |m| {
            let is_ours = m
                .header(headers::ENDED)
                .is_none_or(|ids| ids.split(',').any(|id| wanted.iter().any(|(job, _)| job == id)));
            if is_ours {
                finished(&m.payload, wanted, &mut out.receipts);
            }
            out.receipts.len() < wanted.len()
        })
        .await?;
        self.walk(&self.names().event_subject(queue), from_ms, |m| {
            for e in events(&m.payload) {
                let key = (e.job, e.generation);
                if e.kind == "receipt_delivered" && wanted.contains(&key) {
                    out.delivered.insert(key);
                }
            }
            out.delivered.len() < wanted.len()
        })
        .await?;
        Ok(out)
    }

    /// Visits the messages of a subject of the journal from a time on, until `visit` has enough.
    async fn walk(
        &self,
        subject: &str,
        from_ms: u64,
        mut visit: impl FnMut(&Delivery) -> bool,
    ) -> Result<(), BrokerError> {
        let stream = self.names().events();
        let mut place = Start::Time(from_ms);
        loop {
            let (page, is_more) = self.messages_at(&stream, place, subject, PAGE).await?;
            for m in &page {
                if !visit(m) {
                    return Ok(());
                }
            }
            match page.last() {
                Some(last) if is_more => place = Start::Sequence(last.sequence + 1),
                _ => return Ok(()),
            }
        }
    }
}

/// The events of a message; what cannot be read is told by those who read the journal for itself.
fn events(body: &[u8]) -> Vec<Event<'_>> {
    let items: Vec<&RawValue> = serde_json::from_slice(body).unwrap_or_default();
    items.into_iter().filter_map(|e| serde_json::from_str(e.get()).ok()).collect()
}

fn finished(
    body: &[u8],
    wanted: &HashSet<(String, u32)>,
    out: &mut HashMap<(String, u32), JournaledReceipt>,
) {
    for e in events(body) {
        let key = (e.job, e.generation);
        if e.kind != "finished" || !wanted.contains(&key) {
            continue;
        }
        if let Some(f) = e.data.and_then(|d| serde_json::from_str::<Finished<'_>>(d.get()).ok()) {
            let receipt = JournaledReceipt {
                body: f.receipt.get().to_owned(),
                notify: f.notify.map(|n| n.get().to_owned()).unwrap_or_default(),
                trace: e.trace,
            };
            out.insert(key, receipt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: R-16
    #[test]
    fn a_receipt_is_found_with_its_very_bytes() {
        let body = br#"[{"v":1,"job":"a","gen":2,"kind":"started"},
            {"v":1,"job":"a","gen":2,"kind":"finished","trace":"t","data":{"receipt":{"b": 1.50,  "a":"\u00e4"},"notify":{"subject":"x"}}},
            {"v":1,"job":"a","gen":1,"kind":"finished","data":{"receipt":{}}}, 7]"#;
        let wanted = HashSet::from([("a".to_owned(), 2), ("b".to_owned(), 1)]);
        let mut out = HashMap::new();
        finished(body, &wanted, &mut out);
        let receipt = JournaledReceipt {
            body: r#"{"b": 1.50,  "a":"\u00e4"}"#.into(),
            notify: r#"{"subject":"x"}"#.into(),
            trace: "t".into(),
        };
        assert_eq!(out, HashMap::from([(("a".to_owned(), 2), receipt)]));
    }
}
