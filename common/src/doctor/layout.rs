//! Asking NATS what streams and consumers are like.

use std::time::Duration;

use async_nats::jetstream::stream::DiscardPolicy;
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    facts::{DispatcherFacts, Known, LaneFacts, LayoutFacts, Permissions, StreamFacts},
    permissions,
};
use crate::{
    broker::{
        Broker, BrokerError,
        drift::{self, filters},
        info::{ConsumerInfo, StreamInfo},
        place::CarrierStream,
        queues::LaneState,
        receipts,
        topology::{Lane, Layout},
    },
    domain::QueueName,
    pace::Transient,
};

/// Consumers that are asked about at once.
const AT_ONCE: usize = 16;
/// Times that the messages are counted, and the pause in between.
const COUNTS: usize = 5;
const COUNT_PAUSE: Duration = Duration::from_millis(100);

/// Asks what the user of the connection may ask; the rest is not known.
pub(super) struct Asking<'a> {
    pub(super) broker: &'a Broker,
    pub(super) publish: &'a Known<Option<Permissions>>,
}

impl Asking<'_> {
    /// Streams, and the consumers of the queues that are wanted. `is_full`: counts stray messages too.
    pub(super) async fn layout(
        &self,
        layout: &Layout,
        is_wanted: impl Fn(&QueueName) -> bool,
        is_full: bool,
    ) -> Result<LayoutFacts, BrokerError> {
        let n = self.broker.names();
        let mut out = LayoutFacts::default();
        match self.broker.found().await {
            Ok(found) => out.queues = found.queues,
            Err(e) if e.is_transient() => return Err(e),
            Err(e) => {
                out.unusable = Some(e.to_string());
                return Ok(out);
            }
        }
        let mut subjects = Vec::new();
        for want in layout.streams(n) {
            let mut facts = StreamFacts {
                carries: CarrierStream::ALL.into_iter().find(|c| n.stream(*c) == want.name),
                name: want.name.clone(),
                unknown: None,
                is_missing: false,
                drops_oldest: false,
                duplicate_window: want.duplicate_window,
                replicas: want.num_replicas,
                offline: Vec::new(),
                differences: Vec::new(),
            };
            match self.stream(&want.name).await? {
                Err(why) => facts.unknown = Some(why),
                Ok(None) => facts.is_missing = true,
                Ok(Some(i)) => {
                    let is_limited = i.config.max_messages > 0 || i.config.max_bytes > 0;
                    facts.drops_oldest = is_limited && i.config.discard == DiscardPolicy::Old;
                    facts.duplicate_window = i.config.duplicate_window;
                    facts.replicas = i.config.num_replicas;
                    facts.differences = drift::stream(&i.config, &want).0;
                    let peers = i.cluster.iter().flat_map(|c| &c.replicas);
                    facts.offline = peers.filter(|p| p.offline).map(|p| p.name.clone()).collect();
                    if facts.carries == Some(CarrierStream::Jobs) {
                        subjects = i.config.subjects;
                    }
                    if want.name == n.events() {
                        out.journaled = i.state.messages;
                    }
                }
            }
            out.streams.push(facts);
        }
        let mut covered = Vec::new();
        let lanes: Vec<Lane> = out.queues.iter().filter(|q| is_wanted(q)).flat_map(|q| n.lanes(q)).collect();
        let asked = stream::iter(lanes).map(|lane| async move {
            let info = self.consumer(&lane).await?;
            Ok::<_, BrokerError>((lane, info))
        });
        for (lane, info) in asked.buffered(AT_ONCE).try_collect::<Vec<_>>().await? {
            let is_declared = layout.queues.contains(&lane.queue);
            match &info {
                Ok(Some(i)) => covered.extend(filters(&i.config)),
                // Told as a missing consumer.
                Ok(None) if !is_declared => {}
                _ => covered.extend(lane.subjects.iter().cloned()),
            }
            out.lanes.push(lane_facts(layout, lane, is_declared, info));
        }
        if out.queues.iter().all(is_wanted) {
            subjects.retain(|s| !covered.iter().any(|c| permissions::covers(c, s)));
            out.uncovered = subjects;
        }
        if out.streams.iter().any(|s| s.name == n.pauses() && !s.is_missing) {
            let subject = format!("$JS.API.DIRECT.GET.{}", n.pauses());
            let found = self.ask(&subject, self.broker.pauses()).await?;
            out.pauses = found.map(|known| (known.pauses, known.now_ms));
        }
        if is_full {
            out.stray = self.stray(&out).await?;
            out.dispatcher = Some(self.dispatcher(layout).await?);
        }
        Ok(out)
    }

    /// A stream, `None` when there is none; not known where it may not be asked for.
    async fn stream(&self, name: &str) -> Result<Known<Option<StreamInfo>>, BrokerError> {
        let subject = format!("$JS.API.STREAM.INFO.{name}");
        self.ask(&subject, self.broker.stream_info(name)).await
    }

    async fn consumer(&self, lane: &Lane) -> Result<Known<Option<ConsumerInfo>>, BrokerError> {
        let subject = format!("$JS.API.CONSUMER.INFO.{}.{}", lane.stream, lane.consumer);
        self.ask(&subject, self.broker.consumer_info(&lane.stream, &lane.consumer)).await
    }

    async fn dispatcher(&self, layout: &Layout) -> Result<DispatcherFacts, BrokerError> {
        let (stream, consumer) = (self.broker.names().receipts(), receipts::CONSUMER);
        let subject = format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}");
        let info = self.ask(&subject, self.broker.consumer_info(&stream, consumer)).await?;
        let info = match info {
            Ok(info) => info,
            Err(why) => {
                return Ok(DispatcherFacts { stream, unknown: Some(why), ..DispatcherFacts::default() });
            }
        };
        let paused = info.as_ref().filter(|i| i.paused);
        Ok(DispatcherFacts {
            stream,
            unknown: None,
            is_missing: info.is_none(),
            paused_for: paused.map(|i| Duration::from_nanos(i.pause_remaining.unwrap_or(0))),
            pulls: info.as_ref().map_or(0, |i| i.num_waiting),
            waiting: info.as_ref().map_or(0, |i| i.num_pending + i.num_ack_pending),
            differences: info.map(|i| drift::consumer(&i.config, &layout.dispatcher()).0).unwrap_or_default(),
        })
    }

    async fn ask<T>(
        &self,
        subject: &str,
        call: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<Known<T>, BrokerError> {
        if let Ok(Some(p)) = self.publish
            && !p.permit(subject)
        {
            return Ok(Err(format!("this user may not publish to {subject}")));
        }
        match call.await {
            Ok(answer) => Ok(Ok(answer)),
            Err(BrokerError::Denied(why)) => Ok(Err(why)),
            Err(e) => Err(e),
        }
    }

    /// Messages of the job stream that are neither waiting nor held. Stream and consumers are not read at one moment, so the
    /// smallest of several differences is taken. `None`: not all of it may be asked for.
    async fn stray(&self, layout: &LayoutFacts) -> Result<Option<u64>, BrokerError> {
        let jobs = self.broker.names().jobs();
        let mut least = u64::MAX;
        for n in 0..COUNTS {
            if n > 0 {
                tokio::time::sleep(COUNT_PAUSE).await;
            }
            let mut seen = 0;
            for lane in layout.queues.iter().flat_map(|q| self.broker.names().lanes(q)) {
                if lane.of == CarrierStream::Jobs {
                    let Ok(info) = self.consumer(&lane).await? else { return Ok(None) };
                    seen += info.map_or(0, |i| i.num_pending + i.num_ack_pending);
                }
            }
            let Ok(Some(there)) = self.stream(&jobs).await? else { return Ok(None) };
            least = least.min(there.state.messages.saturating_sub(seen));
            if least == 0 {
                break;
            }
        }
        Ok(Some(least))
    }
}

fn lane_facts(
    layout: &Layout,
    lane: Lane,
    is_declared: bool,
    info: Known<Option<ConsumerInfo>>,
) -> LaneFacts {
    let (info, unknown) = match info {
        Ok(info) => (info, None),
        Err(why) => (None, Some(why)),
    };
    let differences = info.as_ref().filter(|_| is_declared);
    let differences = differences.map(|i| drift::consumer(&i.config, &layout.consumer(&lane)).0);
    LaneFacts {
        is_declared,
        unknown,
        state: info.as_ref().map_or_else(|| LaneState::missing(&lane), |i| LaneState::of(&lane, i)),
        ack_wait: info.as_ref().map_or(layout.ack_wait, |i| i.config.ack_wait),
        max_deliver: info.as_ref().map_or(layout.max_deliver, |i| i.config.max_deliver),
        differences: differences.unwrap_or_default(),
        of: lane.of,
        queue: lane.queue,
    }
}
