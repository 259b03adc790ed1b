//! House rules as tests. No server is started here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use surety_common::{
    domain::{Contract, ErrorCode, EventKind, FailureClass, Status, ids::Namespace},
    store::Keys,
};

/// A file of the repository.
struct File {
    /// From the root, with `/`.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).unwrap() {
        let e = e.unwrap();
        let name = e.file_name().into_string().unwrap();
        let is_hidden = name.starts_with('.') && name != ".github";
        if is_hidden || ["target", "node_modules", "__pycache__"].contains(&name.as_str()) {
            continue;
        }
        if e.file_type().unwrap().is_dir() {
            walk(&e.path(), out);
        } else {
            out.push(e.path());
        }
    }
}

/// A walk over nothing shows nothing.
fn some<T>(found: Vec<T>, what: &str) -> Vec<T> {
    assert!(!found.is_empty(), "found no {what}: this test would show nothing");
    found
}

/// Every text file whose path is wanted, sorted.
fn files(what: &str, want: impl Fn(&str) -> bool) -> Vec<File> {
    let root = root();
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let relative = |p: &Path| p.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
    let found = paths
        .iter()
        .map(|p| (relative(p), p))
        // Not ours: vendor/async-nats/README.md.
        .filter(|(path, _)| !path.starts_with("vendor/") && want(path))
        .filter_map(|(path, p)| Some(File { path, text: String::from_utf8(std::fs::read(p).unwrap()).ok()? }))
        .collect();
    some(found, what)
}

fn rust() -> Vec<File> {
    files("Rust files", |p| p.ends_with(".rs"))
}

fn scripts() -> Vec<File> {
    files("Lua scripts", |p| p.starts_with("common/src/store/scripts/") && p.ends_with(".lua"))
}

/// A part of a script: its kinds of guards.
fn is_fragment(f: &File) -> bool {
    f.path.contains("/scripts/guards/")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Whether a file is a test, or help for tests, as a whole.
fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/")
}

/// A file's lines with their numbers, each with whether it stands in test code.
fn lines(f: &File) -> impl Iterator<Item = (usize, &str, bool)> {
    let unit = f.text.lines().position(|l| l.trim() == "#[cfg(test)]").unwrap_or(usize::MAX);
    f.text.lines().enumerate().map(move |(n, l)| (n + 1, l, is_test_file(&f.path) || n >= unit))
}

/// Lines that break a rule; `excused` are paths with the reason, and each must be needed.
fn check(broken: Vec<(String, usize, String)>, excused: &[(&str, &str)]) {
    let (known, new): (Vec<_>, Vec<_>) =
        broken.into_iter().partition(|(path, ..)| excused.iter().any(|(p, _)| p == path));
    let text: Vec<_> = new.iter().map(|(path, n, line)| format!("{path}:{n}: {}", line.trim())).collect();
    assert!(text.is_empty(), "\n{}", text.join("\n"));
    for (path, reason) in excused {
        assert!(known.iter().any(|(p, ..)| p == path), "{path} needs its excuse no more: {reason}");
    }
}

/// Every requirement id in a text: a letter, a dash, two digits.
fn ids(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|w| is_id(w))
        .map(str::to_owned)
        .collect()
}

fn is_id(w: &str) -> bool {
    let b = w.as_bytes();
    b.len() == 4 && b[0].is_ascii_uppercase() && b[1] == b'-' && b[2..].iter().all(u8::is_ascii_digit)
}

/// The part of a document below a heading, up to the next one of the same or a higher level.
fn section<'a>(doc: &'a str, heading: &str) -> &'a str {
    let from = doc.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading:?}")) + 1;
    let level = heading.chars().take_while(|c| *c == '#').count();
    let body = &doc[from + heading.len()..];
    let ends = (1..=level).filter_map(|n| body.find(&format!("\n{} ", "#".repeat(n)))).min();
    &body[..ends.unwrap_or(body.len())]
}

/// The cells of the first table in a text, without its head.
fn table(text: &str) -> Vec<Vec<String>> {
    let rows = text.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|')).skip(2);
    let cells = |l: &str| {
        l.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`').to_owned()).collect::<Vec<_>>()
    };
    some(rows.map(cells).collect(), "table rows")
}

/// What each `Shows:` comment names, with the place of the comment.
fn shown() -> Vec<(String, String)> {
    let mut out = Vec::new();
    for f in files("sources", |p| p.ends_with(".rs") || p.starts_with("examples/")) {
        for (n, line, _) in lines(&f) {
            let line = line.trim_start();
            let Some(rest) = line.strip_prefix("// Shows:").or_else(|| line.strip_prefix("# Shows:")) else {
                continue;
            };
            out.extend(rest.split(',').map(|id| (id.trim().to_owned(), format!("{}:{n}", f.path))));
        }
    }
    some(out, "`Shows:` comments")
}

// Shows: V-02
#[test]
fn every_implemented_requirement_is_named_by_a_test() {
    let doc = read("docs/requirements.md");
    let implemented = some(ids(section(&doc, "## Implemented so far")), "implemented requirements");
    let shown: BTreeSet<_> = shown().into_iter().map(|(id, _)| id).collect();
    let missing: Vec<_> = implemented.iter().filter(|id| !shown.contains(*id)).cloned().collect();
    assert!(missing.is_empty(), "no test says that it shows {}", missing.join(" "));
    let once: BTreeSet<_> = implemented.iter().collect();
    assert_eq!(once.len(), implemented.len(), "an id is listed twice");
}

// Shows: V-02
#[test]
fn every_id_that_a_test_names_exists() {
    let doc = read("docs/requirements.md");
    let known: BTreeSet<String> = some(
        doc.lines().filter_map(|l| l.strip_prefix("- **")?.split("**").next()).map(str::to_owned).collect(),
        "requirements",
    )
    .into_iter()
    .collect();
    // The eight promises of the project, P1 to P8, may be named beside the requirements.
    let is_promise = |id: &str| matches!(id.as_bytes(), [b'P', b'1'..=b'8']);
    let unknown: Vec<_> =
        shown().into_iter().filter(|(id, _)| !known.contains(id) && !is_promise(id)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    for id in ids(section(&doc, "## Implemented so far")) {
        assert!(known.contains(&id), "{id} is listed as implemented and not described");
    }
}

// Shows: V-08
#[test]
#[should_panic(expected = "found no unicorns")]
fn a_walk_over_nothing_fails() {
    files("unicorns", |p| p.ends_with(".unicorn"));
}

// Shows: V-08
#[test]
#[should_panic(expected = "found no table rows")]
fn a_document_without_its_table_fails() {
    table("## A heading\n\nand no table");
}

/// Names of what a manifest depends on, in any section.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for (k, v) in manifest {
        if let Some(t) = v.as_table() {
            if ["dependencies", "dev-dependencies", "build-dependencies"].contains(&k.as_str()) {
                out.extend(t.keys().cloned());
            } else if k == "target" {
                out.extend(t.values().filter_map(toml::Value::as_table).flat_map(dependencies));
            }
        }
    }
    out
}

fn members() -> Vec<(String, toml::Table)> {
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let names = workspace["workspace"]["members"].as_array().unwrap();
    let all = names.iter().map(|m| {
        let m = m.as_str().unwrap().to_owned();
        let manifest = read(&format!("{m}/Cargo.toml")).parse().unwrap();
        (m, manifest)
    });
    some(all.collect(), "packages")
}

#[test]
fn only_common_and_the_tests_know_the_clients_and_the_crates_do_not_know_each_other() {
    for (member, manifest) in members() {
        let deps = dependencies(&manifest);
        assert!(!deps.is_empty(), "{member}");
        if !["common", "tests"].contains(&member.as_str()) {
            for client in ["redis", "async-nats"] {
                assert!(!deps.contains(client), "{member} depends on {client}: that is what common is for");
            }
        }
        if member != "tests" {
            let siblings: Vec<_> =
                deps.iter().filter(|d| d.starts_with("surety-") && *d != "surety-common").collect();
            assert!(siblings.is_empty(), "{member} depends on {siblings:?}");
        }
    }
}

// Shows: X-01
#[test]
fn the_domain_knows_no_clock_no_chance_and_no_client() {
    let mut broken = Vec::new();
    for f in files("domain files", |p| p.starts_with("common/src/domain/") && p.ends_with(".rs")) {
        for (n, line, is_test) in lines(&f) {
            let code = line.split("//").next().unwrap();
            let words: Vec<_> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let bad = ["tokio", "redis", "async_nats", "Instant", "SystemTime", "rand", "now", "boot_ms"];
            if !is_test && words.iter().any(|w| bad.contains(w)) {
                broken.push((f.path.clone(), n, line.to_owned()));
            }
        }
    }
    check(broken, &[]);
}

// Shows: X-01
#[test]
fn scripts_have_one_clock_that_of_redis() {
    for f in scripts() {
        let n = f.text.matches("'TIME'").count();
        assert_eq!(n, usize::from(f.path.ends_with("/prelude.lua")), "{}", f.path);
        assert!(!f.text.contains("os.time") && !f.text.contains("os.clock"), "{}", f.path);
    }
}

/// The comment that a script begins with.
fn header(script: &str) -> String {
    script.lines().take_while(|l| l.starts_with("--")).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_script_says_what_goes_in_what_comes_out_and_what_a_second_call_does() {
    let loader: String = read("common/src/store/script.rs").split_whitespace().collect();
    let frame = header(&read("common/src/store/scripts/prelude.lua"));
    for f in scripts().iter().filter(|f| is_fragment(f)) {
        let (_, name) = f.path.split_once("scripts/").unwrap();
        let name = name.trim_end_matches(".lua");
        assert!(loader.contains(&format!("\"{name}\"")), "{name} is never loaded");
        assert!(!f.text.contains("KEYS[") && !f.text.contains("ARGV["), "{name} gets its keys by its scope");
    }
    for f in scripts().into_iter().filter(|f| !is_fragment(f)) {
        let name = f.path.rsplit('/').next().unwrap().trim_end_matches(".lua");
        let header = header(&f.text);
        assert!(header.contains("Second call"), "{name}: what does a second call do?");
        if name == "prelude" {
            assert!(loader.contains("include_str!(\"scripts/prelude.lua\")"));
        } else {
            assert!(header.starts_with(&format!("-- {name}: ")), "{name}: begins with its purpose");
            assert!(header.contains("-- Result"), "{name}: what comes out?");
            let has_items = f.text.contains("#items");
            assert!(!has_items || header.contains("-- Item"), "{name}: what goes in?");
            let is_loaded = ["script!(", ","].iter().any(|by| loader.contains(&format!("{by}\"{name}\")")));
            assert!(is_loaded, "{name} is never loaded");
        }
        // Every key and every argument is described by the script or by the frame.
        for prefix in ["KEYS[", "ARGV["] {
            for used in f.text.split(prefix).skip(1) {
                let index = used.split(']').next().unwrap();
                let described = format!("{prefix}{index}]");
                let is_number = index.bytes().all(|b| b.is_ascii_digit());
                assert!(
                    !is_number || header.contains(&described) || frame.contains(&described),
                    "{name}: {described} is not described"
                );
            }
        }
    }
}

#[test]
fn scripts_get_every_key_and_build_none() {
    // Lists of keys that a script gathered from `KEYS`.
    let gathered = ["unpack(KEYS, ", "unpack(sets)", "unpack(gone)", "key, unpack(args"];
    // A scope of a guard has four, which stand in `KEYS` together, and knows those of the data set and of its sessions.
    let of_scope = ["sc.state", "sc.hold", "sc.wait", "sc.asleep", "sc.store", "sc.sessions"];
    let mut n = 0;
    for f in scripts() {
        for call in f.text.split("redis.call(").skip(1) {
            let args = call.split_once(',').map_or("", |(_, rest)| rest.trim_start());
            let is_time = call.starts_with("'TIME'");
            let mut given = gathered.iter().chain(&of_scope);
            let is_given = args.starts_with("KEYS[") || given.any(|g| args.starts_with(g));
            assert!(is_time || is_given, "{}: redis.call({}", f.path, call.lines().next().unwrap());
            let key = args.split(']').nth(1).unwrap_or("").trim_start();
            assert!(!key.starts_with(".."), "{}: a key is put together", f.path);
            n += 1;
        }
        for banned in ["redis.pcall", "'KEYS'", "'SCAN'", "math.random"] {
            assert!(!f.text.contains(banned), "{}: {banned}", f.path);
        }
    }
    assert!(n > 10, "only {n} calls found");
}

// Shows: E-08
#[test]
fn one_function_writes_journal_entries() {
    let all: String = scripts().into_iter().map(|f| f.text).collect();
    for (what, n) in
        [("struct.pack(EVENT", 1), ("'XADD'", 1), ("local function emit(", 1), ("local function flush(", 1)]
    {
        assert_eq!(all.matches(what).count(), n, "{what}");
    }
    // No Rust code of the product makes events or writes to the outbox: it only reads and publishes them.
    for f in rust() {
        if f.path.contains("/src/") && !is_test_file(&f.path) {
            let writes = f.text.contains(".xadd(") || f.text.contains("\"XADD\"");
            assert!(!writes, "{} writes to the outbox", f.path);
        }
    }
}

// Shows: I-02
#[test]
fn state_names_are_the_same_in_store_documents_and_code() {
    let doc = read("docs/state-machine.md");
    let prelude = read("common/src/store/scripts/prelude.lua");
    // The numbers of the scripts: `local QUEUED, … = 1, …`.
    let lua = |firsts: &[&str], prefix: &str| -> Vec<(String, u8)> {
        let mut all = Vec::new();
        for line in prelude.lines().filter_map(|l| l.strip_prefix("local ")) {
            let Some((names, codes)) = line.split_once(" = ") else { continue };
            if firsts.iter().any(|f| names.starts_with(&format!("{f}, "))) {
                let name = |n: &str| n.trim_start_matches(prefix).to_lowercase();
                let codes = codes.split(", ").map(|c| c.parse().unwrap());
                all.extend(names.split(", ").map(name).zip(codes));
            }
        }
        all
    };
    let documented = |heading: &str| -> Vec<(String, bool)> {
        let rows = table(section(&doc, heading));
        rows.into_iter().map(|r| (r[0].clone(), r[1] == "yes")).collect()
    };
    let statuses: Vec<_> = Status::ALL.iter().map(|s| (s.name().to_owned(), s.is_terminal())).collect();
    assert_eq!(documented("## Job states"), statuses);
    let contracts: Vec<_> = Contract::ALL
        .iter()
        .map(|c| (c.name().to_owned(), matches!(c, Contract::TerminalAcked | Contract::TerminalFailed)))
        .collect();
    assert_eq!(documented("## Contract states"), contracts);
    let coded: Vec<_> = Status::ALL.iter().map(|s| (s.name().to_owned(), s.code())).collect();
    assert_eq!(lua(&["QUEUED", "DONE"], ""), coded);
    let coded: Vec<_> = Contract::ALL.iter().map(|c| (c.name().to_owned(), c.code())).collect();
    assert_eq!(lua(&["C_CREATED"], "C_"), coded);
    // The names of the serialized form are those too.
    for s in Status::ALL {
        assert_eq!(serde_json::to_value(s).unwrap(), s.name());
        assert_eq!(Status::from_code(s.code()), Some(s));
    }
    for c in Contract::ALL {
        assert_eq!(serde_json::to_value(c).unwrap(), c.name());
    }
    let terminal: Vec<_> = Status::ALL.into_iter().filter(|s| s.is_terminal()).map(Status::name).collect();
    assert_eq!(terminal, ["done", "failed", "cancelled", "timed_out"]);
}

#[test]
fn the_layout_of_redis_is_documented() {
    let doc = read("docs/redis-keys.md");
    let keys = Keys::new(Namespace::new("surety").unwrap(), 1);
    let (job, s) = ("a".parse().unwrap(), "s".parse().unwrap());
    let mut made: BTreeSet<_> = [
        keys.guards(0),
        keys.store(0),
        keys.job(&job).replace(":a", ":<id>"),
        keys.data(&job).replace(":a", ":<id>"),
        keys.due(0),
        keys.outbox(0),
        keys.ended(0),
        keys.sessions(0),
        keys.session_info(0),
        keys.run(0, &s).replace("run:s", "run:<session>"),
        keys.bad(0),
        keys.set_aside(0, "<kind>", "<id>"),
    ]
    .into();
    made.extend(keys.guard(0, "<scope>"));
    let rows: BTreeSet<_> = table(section(&doc, "## Keys")).into_iter().map(|r| r[0].clone()).collect();
    assert_eq!(rows, made);
    let n_functions = read("common/src/store/keys.rs").matches("        self.key").count();
    // `run:-`, the record by partition and the general form are further ways to some of them.
    // The four of a guard scope are made in one.
    assert_eq!(n_functions, made.len() + 3 - 4, "a key was added: document it here and above");

    let prelude = read("common/src/store/scripts/prelude.lua");
    let mut fields = Vec::new();
    for line in prelude.lines().filter(|l| {
        l.starts_with("local V, ")
            || l.starts_with("local DUE, ")
            || l.starts_with("local QUEUE, ")
            || l.starts_with("local NOTIFY, ")
    }) {
        let names = line.trim_start_matches("local ").split(" = ").next().unwrap();
        fields.extend(names.split(", ").map(str::to_lowercase));
    }
    let documented: Vec<_> =
        table(section(&doc, "## The record")).into_iter().map(|r| r[1].clone()).collect();
    assert_eq!(documented, fields);
    let scripts: BTreeSet<_> = scripts()
        .into_iter()
        .filter(|f| !is_fragment(f))
        .map(|f| f.path.rsplit('/').next().unwrap().trim_end_matches(".lua").to_owned())
        .filter(|n| n != "prelude")
        .collect();
    let documented: BTreeSet<_> =
        table(section(&doc, "## Operations")).into_iter().map(|r| r[0].clone()).collect();
    assert_eq!(documented, scripts);
}

#[test]
fn the_protocol_lists_every_error_code() {
    let path = root().join("docs/protocol.md");
    if !path.exists() {
        eprintln!("docs/protocol.md is not written yet: nothing to compare");
        return;
    }
    let doc = std::fs::read_to_string(path).unwrap();
    let heading = doc
        .lines()
        .find(|l| l.starts_with('#') && l.to_lowercase().contains("error codes"))
        .expect("docs/protocol.md has a heading with \"error codes\"");
    let mut documented: Vec<_> = table(section(&doc, heading)).into_iter().map(|r| r[0].clone()).collect();
    let mut known: Vec<_> = ErrorCode::ALL.iter().map(|c| c.name().to_owned()).collect();
    documented.sort();
    known.sort();
    assert_eq!(documented, known);
}

/// Lines of Rust that hold a text, in product and test code.
fn lines_with(texts: &[&str]) -> Vec<(String, usize, String)> {
    let mut broken = Vec::new();
    for f in rust() {
        for (n, line, _) in lines(&f) {
            let code = line.split("//").next().unwrap();
            if texts.iter().any(|t| code.contains(t)) {
                broken.push((f.path.clone(), n, line.to_owned()));
            }
        }
    }
    broken
}

// Shows: X-12, V-07
#[test]
fn no_result_is_dropped_and_nothing_is_left_to_do() {
    // Put together, so that this file does not hold what it looks for.
    let found = lines_with(&[concat!("let ", "_ ="), concat!("todo", "!("), concat!("unimplemented", "!(")]);
    check(found, &[]);
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    for (member, manifest) in members() {
        // Results are never dropped by accident (`unused_must_use`), nor quietly on purpose.
        let lints = match manifest["lints"].get("workspace") {
            Some(_) => &workspace["workspace"]["lints"],
            None => &manifest["lints"],
        };
        assert_eq!(lints["rust"]["unused_must_use"].as_str(), Some("deny"), "{member}");
        let quiet = lints["clippy"]["let_underscore_must_use"].as_str();
        assert!(matches!(quiet, Some("warn" | "deny")), "{member}");
    }
}

// Shows: V-10
#[test]
fn tests_are_not_skipped_and_share_nothing_with_their_neighbours() {
    check(
        lines_with(&[concat!("#[ig", "nore")]),
        &[("worker/tests/keeper.rs", "a process that other tests start through the test binary")],
    );
    // Fixed ports, and what belongs to the whole process.
    let mut broken = lines_with(&["set_var(", "remove_var(", "set_current_dir(", "static mut "]);
    for f in rust().iter().filter(|f| is_test_file(&f.path)) {
        for (n, line, _) in lines(f) {
            if [":4222", ":6379", "port: Some(4", "port: Some(6"].iter().any(|t| line.contains(t)) {
                broken.push((f.path.clone(), n, line.to_owned()));
            }
        }
    }
    broken.retain(|(path, ..)| path != "tests/tests/suite/tidy.rs");
    check(broken, &[]);
}

// Shows: V-10
#[test]
fn tests_wait_for_conditions_and_never_for_a_time() {
    let mut broken = Vec::new();
    for f in rust() {
        let all: Vec<_> = lines(&f).collect();
        for (n, line, is_test) in &all {
            if !is_test || !line.split("//").next().unwrap().contains("sleep(") || line.contains('"') {
                continue;
            }
            // A sleep is the pause of a poll whose end, bound in time, stands just above it.
            let above = &all[n.saturating_sub(16)..*n];
            let is_bounded = above.iter().any(|(_, l, _)| {
                ["< until", "< deadline", "timeout(", "PATIENCE", "start_paused"]
                    .iter()
                    .any(|t| l.contains(t))
            });
            if !is_bounded {
                broken.push((f.path.clone(), *n, (*line).to_owned()));
            }
        }
    }
    check(
        broken,
        &[
            (
                "worker/tests/keeper.rs",
                "the process under test, which is killed; it ends by itself after a minute",
            ),
            ("tests/src/proxy.rs", "the proxy's own pause after a failed accept"),
        ],
    );
}

#[test]
fn the_repository_refers_to_nothing_outside_it() {
    let outside = [
        concat!("sha", "red/"),
        concat!("DESIGN", ".md"),
        concat!("PLATFORM", ".md"),
        concat!("STYLE", ".md"),
        concat!("/wo", "rk/"),
    ];
    let mut broken = Vec::new();
    for f in files("files", |p| p != "Cargo.lock") {
        for (n, line) in f.text.lines().enumerate() {
            if outside.iter().any(|o| line.contains(o)) {
                broken.push((f.path.clone(), n + 1, line.to_owned()));
            }
        }
    }
    check(broken, &[]);
}

#[test]
fn files_hold_one_idea() {
    let mut broken = Vec::new();
    for f in rust() {
        let n = lines(&f).filter(|(.., is_test)| !is_test).count();
        if n > 600 {
            broken.push((f.path.clone(), n, "lines without tests".into()));
        }
    }
    check(broken, &[]);
}

#[test]
fn documents_link_to_what_exists() {
    let mut n = 0;
    let mut broken = BTreeMap::new();
    for f in files("documents", |p| p.ends_with(".md")) {
        for link in f.text.split("](").skip(1).filter_map(|l| l.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            n += 1;
            if !root().join(&f.path).parent().unwrap().join(path).exists() {
                broken.insert(f.path.clone(), link.to_owned());
            }
        }
    }
    assert!(n > 0, "no links found: this test would show nothing");
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn every_error_code_says_what_to_do() {
    let doc = read("docs/errors.md");
    let headings: Vec<_> = some(doc.lines().filter_map(|l| l.strip_prefix("## ")).collect(), "headings");
    assert_eq!(headings, ErrorCode::ALL.iter().map(|c| c.name()).collect::<Vec<_>>());
    for c in ErrorCode::ALL {
        let text = section(&doc, &format!("## {}", c.name()));
        assert!(
            text.trim_start().starts_with(c.describe()),
            "{}: its meaning in the code is another",
            c.name()
        );
        assert_eq!(text.contains("*Retried.*"), c.class() == FailureClass::Retryable, "{}", c.name());
    }
}

// Shows: J-11
#[test]
fn the_protocol_names_every_field_kind_header_and_variable() {
    let doc = read("docs/protocol.md");
    let has = |what: &str| assert!(doc.contains(what), "docs/protocol.md does not name {what}");
    for k in EventKind::ALL {
        // In the table, or among the names for later.
        assert!(doc.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|w| w == k.name()), "{k:?}");
    }
    let schema = |name: &str| -> Vec<String> {
        let s: serde_json::Value = serde_json::from_str(&read(&format!("schema/{name}.json"))).unwrap();
        some(s["properties"].as_object().unwrap().keys().cloned().collect(), "properties")
    };
    for (name, heading) in [
        ("job", "## The job document"),
        ("event", "## The journal"),
        ("batch", "## Batches"),
        ("notice", "### Notices"),
        ("receipt", "## Receipts"),
    ] {
        let text = section(&doc, heading);
        for field in schema(name) {
            let is_there = [format!("`{field}`"), format!("`{field}."), format!("\"{field}\"")]
                .iter()
                .any(|f| text.contains(f));
            assert!(is_there, "{heading}: {name}.{field}");
        }
    }
    let headers = read("common/src/wire/headers.rs");
    let names = headers.lines().filter_map(|l| l.strip_prefix("pub const ")?.split('"').nth(1));
    for name in some(names.collect(), "headers") {
        if !["Nats-Expected-Stream", "tracestate"].contains(&name) {
            has(name);
        }
    }
    let command = read("worker/src/handler/command.rs");
    let variables = command.split("set(\"").skip(1).filter_map(|r| r.split('"').next());
    for v in some(variables.collect(), "variables of a handler") {
        has(&format!("`{v}`"));
    }
}

#[test]
fn the_write_order_names_every_fault_point() {
    let doc = read("docs/write-order.md");
    let mut points = BTreeSet::new();
    for f in rust().iter().filter(|f| f.path.contains("/src/") && !is_test_file(&f.path)) {
        points.extend(
            f.text.split("fault::point(\"").skip(1).filter_map(|r| Some(r.split('"').next()?.to_owned())),
        );
    }
    for p in some(points.into_iter().collect(), "fault points") {
        assert!(doc.contains(&format!("`{p}`")), "docs/write-order.md does not name {p}");
    }
}

// Shows: G-02
#[test]
fn a_worker_asks_for_live_settings_where_it_finds_the_new_ones() {
    use surety_common::config::{Reload, table};
    let live: Vec<_> = table().iter().filter(|r| r.reload == Reload::Live).collect();
    let live =
        some(live.iter().map(|r| format!("settings.{}.{}", r.section, r.key)).collect(), "live settings");
    let mut broken = Vec::new();
    for f in files("files of the worker", |p| p.starts_with("worker/src/") && p.ends_with(".rs")) {
        for (n, line, is_test) in lines(&f) {
            // `Shared::settings` are those of the start.
            if !is_test && live.iter().any(|l| line.contains(l)) {
                broken.push((f.path.clone(), n, line.to_owned()));
            }
        }
    }
    check(broken, &[("worker/src/cli.rs", "the log, which begins with the settings of the start")]);
}

/// The README of the vendored client names every file that differs from the published one.
#[test]
fn what_is_changed_in_the_vendored_client_is_marked() {
    let mut paths = Vec::new();
    walk(&root().join("vendor/async-nats/src"), &mut paths);
    let is_marked = |p: &PathBuf| std::fs::read_to_string(p).unwrap().contains("SURETY");
    let mut marked: Vec<_> = paths.iter().filter(|p| is_marked(p)).map(|p| p.file_name().unwrap()).collect();
    marked.sort();
    let readme = read("vendor/async-nats/README.md");
    let mut named: Vec<_> = table(&readme).into_iter().map(|row| row[0].clone()).collect();
    named.retain(|path| path.starts_with("src/"));
    named.sort_by_key(|path| path.rsplit('/').next().unwrap().to_owned());
    let named: Vec<_> = named.iter().map(|path| Path::new(path).file_name().unwrap()).collect();
    assert_eq!(marked, named);
    let patch = read("vendor/async-nats.patch");
    let mut patched: Vec<_> = patch
        .lines()
        .filter_map(|l| l.strip_prefix("+++ b/"))
        .map(|l| Path::new(l.split('\t').next().unwrap()).file_name().unwrap())
        .collect();
    patched.sort();
    assert_eq!(marked, patched);
}
