//! `docs/config.md` and `surety.sample.toml`, generated from the table of settings and that of handler keys. `make docs`
//! writes both; a test fails when the files differ from the tables.

use std::fmt::Write;

use super::{
    guards::{self, RuleRow},
    handlers::{self, HandlerRow},
    settings::{self, Row, table},
};

/// What stands above the tables of `docs/config.md`.
const INTRODUCTION: &str = "\
# Configuration

<!-- Generated from common/src/config by `make docs`. Do not edit: a test compares. -->

One file serves every process. It is optional, and so is every setting. Later layers win:

1. the defaults below;
2. the file: `--config FILE`, else `SURETY_CONFIG`, else `./surety.toml` where it exists; relative paths in it begin at its folder;
3. the environment: `SURETY_<SECTION>_<KEY>` in capitals, such as `SURETY_WORKER_SLOTS`; `NATS_URL`, `REDIS_URL` and
   `NATS_CONTEXT` too. Each name may end in `_FILE` and then names a file that holds the value, for secrets. An empty value
   counts as not set;
4. flags, such as `--slots`.

Logging in, TLS and contexts have their own page: [connecting.md](connecting.md).

Every problem of every layer is reported at once, with the place it came from and, for a mistyped name, the nearest known
one; the process then ends with exit code 78. `surety config` prints the settings in effect, with passwords masked.

| Kind | Written as |
|---|---|
| duration | a number and a unit: `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"1h 30m\"`, `\"720h\"`. 0 means \"not set\": the default applies, never \"at once\" |
| size | a number and `B`, `KiB`, `MiB` or `GiB`: `\"10MiB\"` |
| number | a whole number of at least 1 |
| share | a part of all: `\"50%\"`, `\"0.5%\"` |
| address | a URL; several NATS servers stand in one text, separated by commas. User and password are masked when printed |
| secret | a text that is never printed; better kept out of the file, in an environment variable that ends in `_FILE` |
| file | a path, from the folder that the process is started in. Empty: none |
| list | `[\"a\", \"b\"]` in the file, `a,b` in the environment and in flags |

A commented file with every setting is [`surety.sample.toml`](../surety.sample.toml).
";

/// Rules between settings, checked at load (`Settings::cross_check`).
const RULES: &str = "
## Rules between settings

Checked when the configuration is loaded:

- `lease.renewal` × 3 ≤ `lease.ttl` − `lease.margin`: two renewals may fail, and the third still comes in time
  ([ADR 0001](adr/0001-renewal-bound-is-inclusive.md)).
- `lease.ttl` < `layout.ack_wait`, and `lease.extend` × 2 < `layout.ack_wait`: a session is found dead before the broker
  hands its messages out again, and one lost extension is no reason to do so.
- `layout.events_age` > `attempt.finish`: the journal still holds the beginning of every open job.
- `reaper.overstay` > `attempt.kill_grace`: an attempt that is being stopped is not taken from its worker meanwhile.
- `worker.hand_on_limit` < `layout.max_deliver`: a worker buries a job of unknown type before the broker gives it up.
- `connection.call_timeout` < `lease.ttl` − `lease.margin`: one call that hangs does not cost the lease.
- `guards.crash_open` ≤ `guards.crash_longest`, as of every rule `open` ≤ `longest`. A rate rule's interval (`per` / `limit`), and
  what its burst takes at that rate, are at most 814 days.
- One way to log in to NATS; user with password, certificate with key; `redis_ca` and `redis_cert` with `rediss://` only.

Checked when a worker starts, against what `surety provision` made: the consumers' ack-wait against `lease.ttl` and
`lease.extend`, and every queue of `worker.queues` against the declared ones.
";

/// Changes while a process runs (`crate::reload`).
const RELOAD: &str = "
## Changing settings while a process runs

A worker or reaper reads its configuration again when the file changes (found within a few seconds, also when the file is
replaced by a rename or through a symbolic link, as Kubernetes does with a ConfigMap) and, at once, on SIGHUP:

```sh
kill -HUP $(pidof surety-worker)
docker compose kill --signal HUP worker reaper
systemctl reload surety-worker           # with ExecReload=/bin/kill -HUP $MAINPID in the unit
```

The layers are those of the start: environment and flags still win over the file, and a file that is named by a variable
ending in `_FILE` is read again (such a file is not watched: send SIGHUP). Where `./surety.toml` did not exist at the start,
it is read as soon as it does; a file that was read once must stay.

- **A bad file is refused as a whole**: one record in the log has every problem (`alert = \"config_refused\"`; in the human format
  each problem stands on a line of its own below it), `surety_config_ok` is 0, and the process goes on with what it had.
  `surety config --config FILE` checks a file beforehand. A file that became empty is refused, too: a full disk or a hasty editor does
  that. Where the defaults are meant, leave a comment in it.
- **`live` settings** hold for whatever begins after the change: a deadline that is armed, an attempt that is started, a
  receipt that is tried, a pause of the reaper. What has begun keeps what it was given. A pause that is too long now is ended.
- **`restart` settings** keep the value of the start. The log names those that differ, with both values, and
  `surety_config_restart_pending` counts them. The rules between settings hold for the mixture too, or the file is refused.
- **Handlers**: a table of a type that is there already is live, from the next attempt on; a type that is added or removed
  waits for a restart.
- **Rules of guards** are live, all of them. A job that waits in line is judged by the new ones when its turn comes or after
  `guards.fallback`: also where its rule is gone, or its limit was raised. One that waits for the moment that a rate limit promised
  to it comes at that moment, or after ten minutes (`guards.fallback`, where that is longer), or at once after `surety guards reset`.
  A changed rule holds for all from the first job on that asks under it ([guards.md](guards.md#looking-at-guards)). A change that
  removes every rule is logged as a warning.

Counted as `surety_config_reloads_total` by result (`applied`, `unchanged`, `refused`).
";

const HANDLERS: &str = "
## [handlers.<type>]

One table for each job type that is performed by a command. What the command is given and may answer is in
[protocol.md](protocol.md#handlers).

```toml
[handlers.thumbnail]
command = [\"python3\", \"handlers/thumbnail.py\"]
timeout = \"2m\"
env = { LANG = \"C.UTF-8\" }
exit_codes = { 3 = \"stuck\" }
```
";

const GUARDS: &str = "
## [guards.<kind>.<name>]

One table for each rule; `<kind>` is `rate`, `concurrency`, `breaker` or `crash_loop`, `<name>` is yours. What guards do, and what a job sees of
them, is in [guards.md](guards.md).

```toml
";

/// The sections with their settings.
fn sections() -> impl Iterator<Item = (&'static str, &'static str, impl Iterator<Item = &'static Row>)> {
    settings::sections()
        .iter()
        .map(|(name, meaning)| (*name, meaning.trim(), table().iter().filter(|r| r.section == *name)))
}

/// The default as a TOML file would have it.
fn as_toml(kind: &str, default: &str) -> String {
    match kind {
        "number" | "true or false" => default.to_owned(),
        "list" => {
            let items: Vec<_> =
                default.split(',').filter(|s| !s.is_empty()).map(|s| format!("{s:?}")).collect();
            format!("[{}]", items.join(", "))
        }
        _ => format!("{default:?}"),
    }
}

fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|")
}

/// The text of `docs/config.md`.
pub fn markdown() -> String {
    let mut out = INTRODUCTION.to_owned();
    let mut line = |text: String| {
        // Writing to a string cannot fail.
        if writeln!(out, "{text}").is_err() {
            tracing::debug!("a string refused text");
        }
    };
    for (section, meaning, rows) in sections() {
        line(format!(
            "\n## [{section}]\n\n{meaning}\n\n| Key | Kind | Default | Reload | Meaning |\n|---|---|---|---|---|"
        ));
        for r in rows {
            let (default, reload) = (as_toml(r.kind, r.default), r.reload.name());
            line(format!("| `{}` | {} | `{default}` | {reload} | {} |", r.key, r.kind, cell(r.meaning)));
        }
    }
    line(format!(
        "{GUARDS}{}```\n\n| Key | Kind of rule | Kind | When absent | Meaning |\n|---|---|---|---|---|",
        guards::EXAMPLE
    ));
    for RuleRow { kinds, key, kind, absent, meaning } in guards::ROWS {
        line(format!("| `{key}` | {} | {kind} | {absent} | {} |", kinds.join(", "), cell(meaning)));
    }
    line(RULES.trim_end().to_owned());
    line(RELOAD.trim_end().to_owned());
    line(format!("{HANDLERS}\n| Key | Kind | When absent | Meaning |\n|---|---|---|---|"));
    for HandlerRow { key, kind, absent, meaning } in handlers::ROWS {
        line(format!("| `{key}` | {kind} | {absent} | {} |", cell(meaning)));
    }
    out
}

/// The text of `surety.sample.toml`.
pub fn sample() -> String {
    let mut out = "\
# Every setting of Surety with its default. Generated from common/src/config by `make docs`: copy it to surety.toml,
# then take the `#` away from the lines that you change. docs/config.md explains layers, kinds and rules. A process that runs
# takes changes of what is marked `live` (at once on SIGHUP); the rest waits for its restart.
"
    .to_owned();
    let mut line = |text: String| {
        if writeln!(out, "{text}").is_err() {
            tracing::debug!("a string refused text");
        }
    };
    for (section, meaning, rows) in sections() {
        line(format!("\n# {meaning}\n[{section}]"));
        for r in rows {
            let (default, reload) = (as_toml(r.kind, r.default), r.reload.name());
            line(format!("# {} ({}; {reload})\n#{} = {default}", r.meaning.trim(), r.kind, r.key));
        }
    }
    line("\n# Rules that may defer a start; one table for each.".to_owned());
    for text in guards::EXAMPLE.lines() {
        line(if text.is_empty() || text.starts_with("# ") { text.to_owned() } else { format!("#{text}") });
    }
    line(
        "\n# A command that performs a job type; one table for each type.\n#[handlers.thumbnail]".to_owned(),
    );
    for HandlerRow { key, kind, absent, meaning } in handlers::ROWS {
        let example = handlers::example(key);
        line(format!("# {} ({kind}; when absent: {absent})\n#{key} = {example}", meaning.trim()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    // `UPDATE=1 cargo test -p surety-common config_doc` rewrites the files.
    // Shows: G-06
    #[test]
    fn config_doc_matches_the_settings() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (name, want) in [("docs/config.md", markdown()), ("surety.sample.toml", sample())] {
            let path = root.join(name);
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&path, &want).unwrap();
            }
            let have = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(have, want, "{name} is not what the settings say; run `make docs`");
        }
    }

    // Shows: G-06
    #[test]
    fn every_setting_is_documented_with_kind_default_and_meaning() {
        assert!(!table().is_empty() && !handlers::ROWS.is_empty());
        let doc = markdown();
        for r in table() {
            assert!(!r.kind.is_empty() && !r.meaning.trim().is_empty(), "{}.{}", r.section, r.key);
            assert!(doc.contains(&format!("| `{}` | {} |", r.key, r.kind)), "{}.{}", r.section, r.key);
        }
    }

    // Shows: G-06
    #[test]
    fn the_sample_is_read_as_it_is_and_with_every_line_taken_in() {
        let all = sample();
        let defaults = load_text(Some(("", "none")), &|_| None, &vec![]).unwrap().values();
        // As from a pipe: of no folder.
        assert_eq!(load_text(Some((&all, "/dev/stdin")), &|_| None, &vec![]).unwrap().values(), defaults);
        let taken: String = all
            .lines()
            .map(|l| l.strip_prefix('#').filter(|r| !r.starts_with(' ')).unwrap_or(l).to_owned() + "\n")
            .collect();
        let s = load_text(Some((&taken, "/dev/stdin")), &|_| None, &vec![]).unwrap();
        assert_eq!(s.values(), defaults);
        assert!(s.handlers.contains_key("thumbnail"));
        assert_eq!(s.guard_rules.len(), 4);
    }
}
