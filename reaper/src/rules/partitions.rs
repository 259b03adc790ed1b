//! Each partition by itself: on a cluster one may be away while the others are not, and does not keep them waiting.

use std::{future::Future, pin::Pin};

use futures::{StreamExt, stream};

use crate::rule::{Context, Done, RuleError};

/// Partitions that are looked at side by side. Those of a master that is away cost their limits of time together, not one after the
/// other.
const AT_ONCE: usize = 32;

/// What is done to one partition.
type Part<'a> = Pin<Box<dyn Future<Output = Result<Done, RuleError>> + Send + 'a>>;

/// Does this to every partition and adds up. Where some fail the others are done all the same, and the first error is returned.
pub(super) async fn each<'a>(x: &'a Context, part: impl Fn(u32) -> Part<'a>) -> Result<Done, RuleError> {
    let all: Vec<Part<'a>> = (0..x.c.store.keys().partitions()).map(part).collect();
    sum(stream::iter(all).buffer_unordered(AT_ONCE).collect().await)
}

fn sum(parts: Vec<Result<Done, RuleError>>) -> Result<Done, RuleError> {
    let mut all = Done::default();
    let mut failed = Ok(());
    for part in parts {
        match part {
            Ok(done) => {
                all.acted += done.acted;
                all.passed += done.passed;
                all.is_partial |= done.is_partial;
            }
            Err(e) => failed = failed.and(Err(e)),
        }
    }
    failed.map(|()| all)
}

#[cfg(test)]
mod tests {
    use surety_common::store::StoreError;

    use super::*;

    #[test]
    fn the_first_error_is_returned_when_all_are_done() {
        let done = |acted| Ok(Done { acted, passed: 1, is_partial: acted > 1 });
        assert_eq!(sum(vec![done(1), done(2)]).unwrap(), Done { acted: 3, passed: 2, is_partial: true });
        let away = |name: &str| Err(RuleError::Store(StoreError::Unreachable(name.to_owned())));
        let e = sum(vec![done(1), away("first"), away("second")]).unwrap_err();
        assert!(e.to_string().contains("first"), "{e}");
    }
}
