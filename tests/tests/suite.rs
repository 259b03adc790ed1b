//! The integration suite: one file per capability, real servers per test.
#![allow(clippy::disallowed_methods, reason = "test code")]

mod suite {
    mod asked_again;
    mod attempts;
    mod audit;
    mod basics;
    mod cancel;
    mod chaos;
    mod clocks;
    mod cluster;
    mod compose;
    mod contract;
    mod control;
    mod dashboards;
    mod deadlines;
    mod doctor;
    mod drain;
    mod faults;
    mod guards;
    mod health;
    mod intake;
    mod keepers;
    mod lineage;
    mod logins;
    mod logs;
    mod lost;
    mod lost_receipts;
    mod metrics;
    mod model;
    mod operate;
    mod outage;
    mod partitions;
    mod pauses;
    mod permissions;
    mod producers;
    mod provisioning;
    mod reaper;
    mod receipts;
    mod redis_loss;
    mod refusals;
    mod reload;
    mod retention;
    mod schedules;
    mod scripts;
    mod slow;
    mod stack;
    mod stray;
    mod tidy;
    mod tls;
    mod troubles;
    mod unreadable;
    mod waiting;
    mod why;
}
