//! What a command says of an id that nobody knows.

use surety_common::domain::JobId;

use super::failure::Failure;

/// What an id that no source knows is told.
pub(super) fn unknown(id: &JobId) -> Failure {
    Failure::no(format!("unknown job {id}: no record, no waiting message and no journal event has this id"))
}
