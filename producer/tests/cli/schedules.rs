//! `surety schedule`, and whether its previews are what the server does.

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use surety_common::domain::{ids::ScheduleName, schedule::When};
use surety_producer::client::{Client, JobBuilder};

use super::support::{Hand, World, finish, wait};

const CRON: [&str; 4] = ["--cron", "0 30 9 * * MON-FRI", "--zone", "Europe/Vienna"];

fn add<'a>(name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["schedule", "add", name, "report", "{\"n\":1}"], more].concat()
}

// Shows: J-04
#[tokio::test]
async fn a_schedule_is_added_listed_replaced_and_removed() {
    let w = World::provisioned().await;
    let said = w.run(&add("workdays", &CRON)).await.exits(0);
    assert!(
        said.out.starts_with("workdays: 0 30 9 * * MON-FRI in Europe/Vienna in queue default; next:\n"),
        "{}",
        said.out
    );
    assert!(said.out.lines().count() == 4 && said.out.contains(" 09:30:00 +0"), "{}", said.out);
    let beat = w.json(&add("beat", &["--every", "5m", "--queue", "critical"])).await;
    assert_eq!((&beat["pattern"], beat["next"].as_array().unwrap().len()), (&"@every 300s".into(), 3));
    w.run(&["enqueue", "thumbnail", "--id", "once", "--at", "2099-01-01T00:00:00Z"]).await.exits(0);

    let list = w.json(&["schedule", "list"]).await;
    let rows = list["schedules"].as_array().unwrap();
    let column = |name: &str| rows.iter().map(|r| r[name].as_str().unwrap_or("-")).collect::<Vec<_>>();
    assert_eq!(column("name"), ["workdays", "beat", "once"]);
    assert_eq!(column("kind"), ["cron", "every", "at"]);
    assert_eq!(column("queue"), ["default", "critical", "default"]);
    assert_eq!(column("type"), ["report", "report", "thumbnail"]);
    assert_eq!(column("zone"), ["Europe/Vienna", "-", "-"]);
    assert!(column("next_at").iter().all(|t| t.parse::<Timestamp>().is_ok()), "{list}");
    let table = w.run(&["schedule", "list", "--recurring"]).await.exits(0).out;
    assert!(table.contains("every 5m") && table.contains("0 30 9 * * MON-FRI in Europe/Vienna"), "{table}");
    assert!(!table.contains("once"), "{table}");
    assert_eq!(
        w.json(&["schedule", "list", "--queue", "critical"]).await["schedules"].as_array().unwrap().len(),
        1
    );
    let page = w.json(&["schedule", "list", "--limit", "2"]).await;
    assert_eq!(page["is_cut"], true);
    let after = page["next_after"].to_string();
    let rest = w.json(&["schedule", "list", "--after", &after]).await;
    assert_eq!((&rest["schedules"][0]["name"], &rest["is_cut"]), (&"once".into(), &false.into()));

    let next = w.run(&["schedule", "next", "workdays", "-n", "2"]).await.exits(0);
    assert!(
        next.out.lines().count() == 2 && next.out.lines().all(|l| l.contains(" 09:30:00 +0")),
        "{}",
        next.out
    );

    w.run(&add("workdays", &["--every", "1h"]))
        .await
        .exits(1)
        .complains("already (0 30 9 * * MON-FRI); --replace");
    let elsewhere = w.run(&add("workdays", &["--every", "1h", "--queue", "critical"])).await;
    elsewhere.exits(1).complains("queue default has a schedule");
    w.run(&add("once", &["--every", "1h"])).await.exits(1).complains("is a job that is scheduled");
    w.run(&add("workdays", &["--every", "1h", "--replace"])).await.exits(0);
    let list = w.json(&["schedule", "list", "--queue", "default", "--recurring"]).await;
    assert_eq!(list["schedules"].as_array().unwrap().len(), 1);
    assert_eq!(list["schedules"][0]["pattern"], "@every 3600s");

    let asked = w.run(&["schedule", "rm", "workdays"]).await.exits(2).complains("nothing was done");
    assert!(asked.out.contains("every 1h"), "{}", asked.out);
    assert_eq!(w.json(&["schedule", "rm", "workdays", "--yes"]).await["removed"]["queue"], "default");
    w.run(&["schedule", "rm", "workdays", "--yes"]).await.exits(1).complains("no schedule \"workdays\"");
    assert_eq!(w.json(&["schedule", "list", "--recurring"]).await["schedules"].as_array().unwrap().len(), 1);
}

// Shows: J-04, J-10, I-02
#[tokio::test]
async fn each_firing_is_a_job_that_can_be_looked_at_cancelled_and_run() {
    let w = World::provisioned().await;
    w.run(&add("beat", &["--every", "1s"])).await.exits(0);
    let hand = Hand::start(&w).await;
    let due = async || {
        let (page, _) = hand.c.broker.messages("SURETY_SCHED", 1, "surety.due.*.beat", 10).await.unwrap();
        page.into_iter().map(|m| format!("beat-{}", m.sequence)).collect::<Vec<_>>()
    };
    wait("two firings", async || due().await.len() >= 2).await;
    w.run(&["schedule", "rm", "beat", "--yes"]).await.exits(0);
    let jobs = due().await;
    let (first, second) = (jobs[0].as_str(), jobs[1].as_str());
    let s = w.json(&["status", first]).await;
    assert_eq!(
        (&s["status"], &s["type"], &s["source"]),
        (&"queued".into(), &"report".into(), &"queue".into())
    );
    w.run(&["cancel", first]).await.exits(0);
    assert_eq!(w.json(&["status", first]).await["status"], "cancelled");
    hand.granted(second).await;
    assert_eq!(w.json(&["status", second]).await["status"], "running");
    // The name of the schedule is no job.
    w.run(&["status", "beat"]).await.exits(1).complains("unknown job beat");
}

// Shows: J-04, T-14
#[tokio::test]
async fn a_schedule_for_one_time_is_a_job_of_that_name() {
    let w = World::provisioned().await;
    let answer = w.json(&add("launch", &["--at", "2099-01-01T10:00:00+01:00"])).await;
    assert_eq!(answer["next"], serde_json::json!(["2099-01-01T09:00:00Z"]));
    let s = w.json(&["status", "launch"]).await;
    assert_eq!((&s["status"], &s["due_at"]), (&"scheduled".into(), &"2099-01-01T09:00:00Z".into()));
    w.run(&add("launch", &["--at", "2099-01-01T10:00:00Z"])).await.exits(1).complains("was used before");
    w.run(&["schedule", "rm", "launch"]).await.exits(2).complains("nothing was done");
    w.run(&["schedule", "rm", "launch", "--yes"]).await.exits(0);
    assert_eq!(w.json(&["status", "launch"]).await["status"], "cancelled");
    w.run(&add("launch", &["--at", "2099-01-01T10:00:00Z"])).await.exits(1).complains("was used before");
}

#[tokio::test]
async fn what_cannot_be_a_schedule_is_refused_in_one_line() {
    let w = World::provisioned().await;
    for (args, part) in [
        (&["--cron", "30 9 * * *"][..], "put the seconds first: \"0 30 9 * * *\""),
        (&["--cron", "0 0 0 * * 7"], "day of week: 7 is out of range 0 to 6 (0 is Sunday)"),
        (&["--cron", "0 0 0 L * *"], "day of month: \"L\" cannot be read"),
        (&["--cron", "0 0 0 30 2 *"], "never fires within five years"),
        (&["--cron", "0 0 0 * * *", "--zone", "Europe/Viena"], "did you mean \"Europe/Vienna\"?"),
        (&["--cron", "0 0 0 * * *", "--zone", "+02:00"], "\"+02:00\" is not known"),
        (&["--every", "999ms"], "the shortest is 1s"),
        (&["--every", "5"], "not a duration"),
        (&["--every", "5m", "--zone", "UTC"], "--zone goes with --cron only"),
        (&["--at", "2020-01-01T00:00:00Z"], "is in the past by the clock of nats-server"),
        (&["--at", "noon"], "not a point in time"),
        (&["--every", "5m", "--at", "2099-01-01T00:00:00Z"], "cannot be used with"),
        (&[], "--cron"),
        (&["--every", "5m", "--queue", "defualt"], "did you mean \"default\"?"),
        (&["--at", "2099-01-01T00:00:00Z", "--queue", "defualt"], "did you mean \"default\"?"),
    ] {
        w.run(&add("a", args)).await.exits(2).complains(part);
    }
    let long = "x".repeat(65);
    for bad in ["has.dot", "a b", "", long.as_str()] {
        w.run(&add(bad, &["--every", "5m"])).await.exits(2).complains("1 to 64 of A-Z a-z 0-9 _ -");
    }
    let doc = ["schedule", "add", "a", "--doc", "{\"type\":\"report\",\"id\":\"same\"}"];
    w.run(&[&doc[..], &["--every", "5m"]].concat()).await.exits(2).complains("names each of its jobs itself");
    let at = ["--at", "2099-01-01T00:00:00Z"];
    w.run(&[&doc[..], &at].concat()).await.exits(2).complains("id \"same\" is not \"a\"");
    w.run(&["schedule", "add", "a", "Bad Type", "--every", "5m"]).await.exits(2).complains("type");
    w.run(&["schedule", "next", "--cron", "* * * * *"]).await.exits(2).complains("put the seconds first");
    w.run(&["schedule", "next", "a", "--zone", "UTC"]).await.exits(2).complains("cannot be used with");
    w.run(&["schedule", "next", "nobody"]).await.exits(1).complains("no schedule \"nobody\"");
    w.run(&["schedule", "rm", "a", "--queue", "defualt"])
        .await
        .exits(2)
        .complains("did you mean \"default\"?");
    assert_eq!(w.json(&["schedule", "list"]).await["schedules"], serde_json::json!([]));
}

#[tokio::test]
async fn a_cron_expression_is_previewed_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut c = super::support::surety(folder.path());
    c.args(["schedule", "next", "--cron", "0 30 2 * * *", "--zone", "Europe/Vienna", "-n", "2"]);
    c.args(["--from", "2027-03-27T00:00:00Z"]);
    let said = finish(c).await.exits(0);
    // The clocks change on the day between.
    assert_eq!(said.out, "Sat 2027-03-27 02:30:00 +01:00\nMon 2027-03-29 02:30:00 +02:00\n");
}

/// Expressions that match at `t` in a zone, and later as their fields say.
fn expressions(t: Timestamp) -> Vec<(String, &'static str)> {
    let mut out = Vec::new();
    for zone in ["UTC", "Europe/Vienna", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"] {
        let z = t.to_zoned(TimeZone::get(zone).unwrap());
        let (s, m, h, d, mo) = (z.second(), z.minute(), z.hour(), z.day(), z.month());
        let names = ["sun", "MON", "tue", "WED", "thu", "FRI", "sat"];
        let weekday = usize::try_from(z.weekday().to_sunday_zero_offset()).unwrap();
        let (today, other) = (names[weekday], names[(weekday + 3) % 7]);
        for text in [
            format!("{s} {m} {h} * * *"),
            format!("{s} {m} {h} {d} {mo} *"),
            format!("{s} {m} */1 * * ?"),
            // Both days restricted, a star with a step of one and of more.
            format!("{s} {m} {h} {d} * {other}"),
            format!("{s} {m} {h} */1 * {today}"),
            format!("{s} {m} {h} {d},*/9 * {other}"),
            format!("{s},59 {m}/7 {h}-23/3 1-{d} {mo}-12 *"),
            // Over a change of the clocks, where this month has no other day of these left.
            format!("{s} {m} {h},2 14,{d} 3,{mo} *"),
        ] {
            out.push((text, zone));
        }
    }
    out
}

// Shows: J-04
#[tokio::test]
async fn the_preview_is_what_the_server_says_it_does_next() {
    let w = World::provisioned().await;
    let c = w.connect().await;
    let client = Client::on(c.broker.clone(), &w.settings()).await.unwrap();
    let queue = "default".parse().unwrap();
    let server_now = async || {
        let ms = c.broker.now_ms().await.unwrap();
        Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap()
    };
    // All are stored well before they fire for the first time; on a machine that is too busy for that, once more.
    for round in 0..5 {
        let first = server_now().await.round(jiff::Unit::Second).unwrap().checked_add(4.seconds()).unwrap();
        let all = expressions(first);
        for (n, (text, zone)) in all.iter().enumerate() {
            let when = When::cron(text, Some(zone)).unwrap();
            let name = ScheduleName::new(&format!("r{round}-{n}")).unwrap();
            client.schedule(&queue, &name, &when, JobBuilder::new("noop"), true).await.unwrap();
        }
        if server_now().await.checked_add(1.second()).unwrap() >= first {
            continue;
        }
        for (n, (text, zone)) in all.iter().enumerate() {
            let subject = c.broker.names().due_subject("default", &format!("r{round}-{n}"));
            let fired = async || c.broker.last_message("SURETY_SCHED", &subject).await.unwrap();
            wait(&format!("{text:?} in {zone} to fire"), async || fired().await.is_some()).await;
            let said: Timestamp =
                fired().await.unwrap().header("Nats-Schedule-Next").unwrap().parse().unwrap();
            let ours = When::cron(text, Some(zone)).unwrap().next(first, first, 1);
            assert_eq!(ours, [said], "{text:?} in {zone} after {first}");
        }
        return;
    }
    panic!("this machine is too busy");
}
