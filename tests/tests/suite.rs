//! The integration suite: one file per capability, real servers per test.
#![allow(clippy::disallowed_methods, reason = "test code")]

mod suite {
    mod basics;
    mod drain;
    mod outage;
    mod intake;
    mod attempts;
    mod lost;
    mod faults;
    mod model;
    mod scripts;
    mod producers;
    mod tidy;
}
