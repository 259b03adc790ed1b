//! Explaining a job while the store cannot be read: its message and the journal still tell much, and this is when one asks.

use super::{
    Facts, QueueFacts, Why,
    explain::explain,
    gather::{Story, whereabouts},
};
use crate::{
    broker::Broker,
    domain::{JobId, QueueName},
    lookup::{LookupError, generation},
    view::JobView,
    wire::event::Event,
};

/// Explains a job from its message in one of `queues` and the journal; `None` when neither knows it, which does not mean that
/// nobody does. `failure`: why the store could not be read. Errors: the broker could not be read either, or the journal is of a
/// newer release.
pub async fn without_store(
    broker: &Broker,
    queues: &[QueueName],
    id: &JobId,
    failure: &str,
) -> Result<Option<Why>, LookupError> {
    let known = broker.pauses().await?;
    let mut story = Story::of(id);
    let mut last: Option<Event> = None;
    let unreadable = broker
        .look_through_journal(None, 0, |e| {
            let is_newer = |l: &Event| (l.generation, l.rev) <= (e.generation, e.rev);
            if e.job == id.as_str() && last.as_ref().is_none_or(is_newer) {
                last = Some(e.clone());
            }
            story.add(e);
        })
        .await?;
    let waiting = broker.find_carrier(queues, id).await?;
    let view = match (last, waiting) {
        // A replay that no worker has taken is not in the journal under its own generation yet.
        (Some(e), Some((queue, m))) if generation(&m) > e.generation => JobView::of_carrier(id, &queue, &m),
        (Some(e), _) => {
            let newer = || LookupError::NewerRelease { id: id.clone(), status: e.status.clone() };
            JobView::of_event(id, &e).ok_or_else(newer)?
        }
        (None, Some((queue, m))) => JobView::of_carrier(id, &queue, &m),
        (None, None) => return Ok(None),
    };
    let (events, is_cut) = story.told();
    let mut f = Facts {
        store_unread: Some(failure.to_owned()),
        events,
        is_cut,
        unknown: vec![format!("its record, its owner, its guards, its locks and the workers: {failure}")],
        ..Facts::of(id.clone(), known.now_ms, view)
    };
    if unreadable > 0 {
        f.unknown.push(format!("{unreadable} journal messages held something unreadable"));
    }
    if !f.view.is_terminal {
        let (queue, kind, key) = (&f.view.queue, f.view.job_type.as_deref(), f.view.key.as_deref());
        f.pauses = known.pauses.all_of(queue, kind, key, known.now_ms).cloned().collect();
    }
    if let Some(lane) = whereabouts(broker, &mut f).await {
        f.queue = Some(QueueFacts { lane, workers: None, slots: 0, busy: 0, types: None });
    }
    Ok(Some(explain(f)))
}
