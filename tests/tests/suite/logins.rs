//! Every way to log in to NATS, against servers that want it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Value, json};
use surety_tests::world::World;

/// A world whose NATS has this configuration; `SURETY_…` variables and arguments log in.
async fn logs_in(w: &World, env: &[(&str, &str)], args: &[&str]) {
    let port = format!("nats://127.0.0.1:{}", w.nats.port());
    let (redis, args) = (w.redis.url(), args.to_vec());
    let address: &[&str] =
        if args.contains(&"--nats") || args.contains(&"--context") { &[] } else { &["--nats", &port] };
    let all = [address, &["--redis", &redis], &args].concat();
    w.surety_bare_with(env, &[&all[..], &["provision"]].concat()).await.exits(0);
    let none = w.surety(&["queues"]).await.exits(78);
    assert!(none.err.contains("does not let a client without login in"), "{}", none.err);
}

fn file(w: &World, name: &str, text: &str) -> String {
    let path = w.path(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn by_token() {
    let w = World::on("", "authorization { token: \"s3cret\" }", &[]).await;
    let path = file(&w, "token", "s3cret\n");
    logs_in(&w, &[("SURETY_CONNECTION_NATS_TOKEN_FILE", &path)], &[]).await;
    let url = format!("nats://s3cret@127.0.0.1:{}", w.nats.port());
    logs_in(&w, &[], &["--nats", &url]).await;
}

#[tokio::test]
async fn by_a_user_in_the_address() {
    let w = World::on("", "authorization { user: ann, password: \"p@ss:/w\" }", &[]).await;
    let url = format!("nats://ann:p%40ss%3A%2Fw@127.0.0.1:{}", w.nats.port());
    // Also where the client logs all that it knows.
    let path = file(&w, "url", &url);
    let env = [("NATS_URL_FILE", path.as_str()), ("SURETY_LOG", "trace")];
    let redis = w.redis.url();
    let said = w.surety_bare_with(&env, &["--redis", &redis, "provision"]).await.exits(0);
    assert!(said.err.contains("TRACE") || said.err.contains("DEBUG"), "{}", said.err);
    for secret in ["p@ss", "p%40ss"] {
        assert!(!said.err.contains(secret) && !said.out.contains(secret), "{}", said.err);
    }
    let shown = w.surety_bare_with(&env, &["config"]).await.exits(0);
    assert!(shown.out.contains("nats://***@127.0.0.1") && !shown.out.contains("ss%3A"), "{}", shown.out);
}

#[tokio::test]
async fn by_a_context_of_the_nats_command() {
    let w = World::on("", "authorization { user: ann, password: s3cret }", &[]).await;
    let contexts = w.dir.path().join("home/.config/nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    let context = json!({ "url": w.nats.url(), "user": "ann", "password": "s3cret" });
    std::fs::write(contexts.join("here.json"), context.to_string()).unwrap();
    logs_in(&w, &[("HOME", &w.path("home"))], &["--context", "here"]).await;
}

#[tokio::test]
async fn by_nkey() {
    let key = KeyPair::new(KeyPairType::User);
    let w =
        World::on("", &format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key()), &[]).await;
    let path = file(&w, "user.nk", &format!("{}\n", key.seed().unwrap()));
    logs_in(&w, &[], &["--nats-nkey", &path]).await;
    let other = KeyPair::new(KeyPairType::User);
    let path = file(&w, "other.nk", &other.seed().unwrap());
    let e = w.surety(&["--nats-nkey", &path, "queues"]).await.exits(78).err;
    assert!(e.contains(&format!("does not let the nkey of {path} in")), "{e}");
}

/// A token that `by` says about `of`.
fn token(by: &KeyPair, of: &KeyPair, name: &str, nats: Value) -> String {
    let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let head = encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": by.public_key(), "name": name, "sub": of.public_key(), "nats": nats,
    });
    let text = format!("{head}.{}", encode(&claims));
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(by.sign(text.as_bytes()).unwrap()))
}

#[tokio::test]
async fn by_credentials() {
    use KeyPairType::{Account, Operator, User};
    let [operator, system, account, user] = [Operator, Account, Account, User].map(KeyPair::new);
    let of_operator = token(&operator, &operator, "op", json!({ "type": "operator", "version": 2 }));
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let of_account =
        token(&operator, &account, "acc", json!({ "type": "account", "version": 2, "limits": limits }));
    let of_system = token(&operator, &system, "sys", json!({ "type": "account", "version": 2 }));
    let rights = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let of_user = token(&account, &user, "ann", rights);
    let server = format!(
        "operator: {of_operator}\nsystem_account: {1}\nresolver: MEMORY\n\
         resolver_preload: {{ {0}: {of_account}, {1}: {of_system} }}",
        account.public_key(),
        system.public_key()
    );
    let w = World::on("", &server, &[]).await;
    let seed = user.seed().unwrap();
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    let path = file(&w, "ann.creds", &creds);
    logs_in(&w, &[], &["--nats-creds", &path]).await;
    logs_in(&w, &[("SURETY_CONNECTION_NATS_CREDS_FILE", &path)], &[]).await;
}
