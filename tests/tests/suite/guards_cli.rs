//! `surety guards`, `surety locks` and `surety config`: what they say of guards is whole, or says that it is not.

use surety_common::{
    domain::guard::GuardKind,
    store::{GuardAct, GuardItem, GuardReply, Scope},
};
use surety_tests::world::World;

/// Asks a guard for these members, which do `work`, as a worker does; whether each passes.
async fn ask(world: &World, scope: &Scope, members: &[&str]) -> Vec<bool> {
    let c = world.connect().await;
    let of = |member: &&str| GuardItem {
        act: GuardAct::Ask { arrival_ms: 1, ack_subject: "".into(), work: "work".into(), keeps: false },
        member: format!("{member}/1").into(),
        scopes: vec![0].into(),
    };
    let items: Vec<GuardItem<'static>> = members.iter().map(of).collect();
    let answer = c.store.guard(0, None, 60_000, std::slice::from_ref(scope), &items).await.unwrap();
    answer.replies.iter().map(|r| matches!(r, GuardReply::Passes(_))).collect()
}

#[tokio::test]
async fn while_the_store_is_not_whole_guards_and_locks_say_so() {
    let world = World::start().await;
    let c = world.connect().await;
    for command in ["guards", "locks"] {
        let said = world.surety(&[command]).await.exits(0);
        assert!(!said.err.contains("not all"), "{}", said.err);
        assert!(world.ask(&[command]).await.get("store_closed").is_none());
    }
    // As while it is rebuilt.
    let mut redis = world.redis.plain(0).await;
    let store = c.store.keys().store(0);
    let _: () = redis::cmd("HSET").arg(&store).arg("gate").arg(1).query_async(&mut redis).await.unwrap();
    for command in ["guards", "locks"] {
        let said = world.surety(&[command]).await.exits(0);
        assert!(said.err.contains("this is not all") && said.err.contains("rebuilt"), "{}", said.err);
        assert!(!said.err.contains("nothing is held") && !said.err.contains("nobody waits"), "{}", said.err);
        assert!(world.ask(&[command]).await["store_closed"].is_string());
    }
    let _: () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
    for command in ["guards", "locks"] {
        assert!(world.surety(&[command]).await.exits(0).err.contains("this is not all"));
    }
}

// Shows: S-08
#[tokio::test]
async fn a_root_that_is_stopped_for_repeats_is_listed_as_full() {
    let world = World::start().await;
    let scope = Scope::new(GuardKind::Loop, "", "root", [3, 60_000, 1000, 0]);
    assert_eq!(ask(&world, &scope, &["a", "b"]).await, [true, true]);
    let listed = world.ask(&["guards"]).await;
    assert_eq!(listed["guards"], serde_json::json!([]), "{listed}");
    assert_eq!(ask(&world, &scope, &["c", "d"]).await, [true, false]);
    let guard = world.ask(&["guards"]).await["guards"][0].clone();
    assert_eq!(guard["is_full"], true, "{guard}");
    assert_eq!(guard["now"], "3 jobs counted, 3 of them for the same work", "{guard}");
}

// Shows: S-08
#[tokio::test]
async fn a_reset_tells_what_the_guard_holds_after_it_and_of_which_kind_it_is() {
    let world = World::start().await;
    let scope = Scope::new(GuardKind::Rate, "api", "acme", [60_000_000, 60_000_000, 0, 0]);
    assert_eq!(ask(&world, &scope, &["a", "b"]).await, [true, true]);
    assert_eq!(world.ask(&["guards"]).await["guards"][0]["is_full"], true);
    let said = world.surety(&["guards", "reset", "api: acme", "--kind", "concurrency"]).await.exits(1).err;
    assert!(said.contains("kept by a guard of kind rate, and not concurrency"), "{said}");
    assert!(!said.contains("did you mean"), "{said}");
    let reset = world.ask(&["guards", "reset", "api: acme"]).await;
    let guard = &reset["guard"];
    assert_eq!(
        (&guard["is_full"], &guard["now"]),
        (&false.into(), &"2 of 2 may start at once".into()),
        "{guard}"
    );
}

#[tokio::test]
async fn the_settings_in_effect_have_the_rules_of_guards() {
    let rules = r#"
[guards.rate.api]
scope = "{meta.workspace}"
types = ["scrape"]
limit = 100
per = "1m"
burst = 10
[guards.breaker.host]
scope = "{payload.host}"
"#;
    let world = World::with(rules).await;
    let said = world.surety(&["config"]).await.exits(0).out;
    for line in [
        "guards.rate.api = one every 600ms, 10 at once; scope {meta.workspace}; types scrape",
        "guards.breaker.host = 50% of 20 or more fail in 1m; open for 30s to 10m; scope {payload.host}",
    ] {
        assert!(said.lines().any(|l| l == line), "{line:?} is not in:\n{said}");
    }
    let told = world.ask(&["config"]).await;
    let names: Vec<_> = told["guards"].as_array().unwrap().iter().map(|g| (&g["kind"], &g["name"])).collect();
    assert_eq!(names, [(&"breaker".into(), &"host".into()), (&"rate".into(), &"api".into())], "{told}");
}
