//! `docs/cli.md`, from the command line itself and the types of the answers. `make docs` writes it; the test here fails when
//! it is stale, and `tests/cli/reference.rs` compares it with what the commands really write.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;
use surety_common::{cancel::Report, wire::event::Event};

use super::{
    Cli, EXIT_CODES, audit, batch, dev, dlq, doctor, enqueue, events, guards, locks, pause, provision, purge,
    queues, replay, schedule, shell, watch, workers,
};
use crate::{bench, demo};

const INTRODUCTION: &str = "\
# Commands

Written by `make docs` from the command line itself; `surety COMMAND --help` says the same.

Data goes to stdout, everything else to stderr. With `--json` a command writes **one line of JSON**, where nothing else is
said: the fields are in a table below each command. Fields are added in later releases, and not changed. Times are RFC 3339,
`_ms` are milliseconds, `[]` stands for each element and `*` for each name. Fields that are not always there are left out, or
`null`, where there is nothing to say. A command that fails writes its reason to stderr, and may write no JSON.

Tables fit the terminal: the last column is cut, or each row becomes a block of lines; ids are never shortened. Elsewhere
nothing is cut to fit. Colours appear on terminals only; `NO_COLOR` and `--color never` switch them off.

What is hard to take back (`dlq replay` of several, `dlq purge`, `schedule rm`) is shown first and asked about at a terminal. Elsewhere, and
with `--json`, it needs `--yes` (else exit code 2). `cancel` names one job, whose message is kept as a dead letter: it is not
asked about.
";

/// What a command writes with `--json`: the command, when, and the shape.
fn shapes() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("enqueue", "", of::<enqueue::Answer>()),
        ("batch", "", of::<batch::Counts>()),
        ("status", "", of::<surety_common::view::JobView>()),
        ("why", "", of::<surety_common::why::Why>()),
        ("events", "", of::<events::Page>()),
        ("watch", "One line for each event", of::<Event>()),
        ("watch", "With --batch, at the end", of::<watch::batch::Outcomes>()),
        ("audit", "", of::<audit::Answer>()),
        ("cancel", "", of::<Report>()),
        ("queues", "", of::<queues::Answer>()),
        ("pause", "", of::<pause::Answer>()),
        ("pause", "With --list", of::<pause::list::Answer>()),
        ("resume", "", of::<pause::resume::Answer>()),
        ("workers", "", of::<workers::Answer>()),
        ("guards", "", of::<guards::Answer>()),
        ("guards reset", "", of::<guards::Reset>()),
        ("locks", "", of::<locks::Answer>()),
        ("locks release", "", of::<surety_common::locks::Released>()),
        ("doctor", "", of::<doctor::Report>()),
        ("dlq list", "", of::<dlq::Page>()),
        ("dlq show", "", of::<dlq::Shown>()),
        ("dlq replay", "", of::<replay::Answer>()),
        ("dlq replay", "Where --yes is missing", of::<replay::Preview>()),
        ("dlq purge", "", of::<purge::Receipt>()),
        ("dlq purge", "Where --yes is missing", of::<purge::Preview>()),
        ("schedule add", "", of::<schedule::add::Answer>()),
        ("schedule list", "", of::<schedule::list::Page>()),
        ("schedule rm", "", of::<schedule::remove::Answer>()),
        ("schedule rm", "Of a schedule that fires once", of::<Report>()),
        ("schedule rm", "Where --yes is missing", of::<schedule::remove::Preview>()),
        ("schedule next", "", of::<schedule::next::Answer>()),
        ("provision", "", of::<provision::Report>()),
        ("config", "", of::<provision::Effective>()),
        ("dev", "When everything runs", of::<dev::Running>()),
        ("bench", "", of::<bench::Report>()),
        ("bench", "With --guards", of::<bench::GuardReport>()),
        ("demo", "", of::<demo::Report>()),
        ("completions", "", of::<shell::Script>()),
        ("man", "", of::<shell::Page>()),
        ("man", "With --out", of::<shell::Written>()),
    ]
}

fn of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.inline_subschemas = true;
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// The rows of a shape: path, type, whether it is always there, meaning.
fn rows(path: &str, schema: &Value, is_always: bool, out: &mut Vec<[String; 4]>) {
    let is = |t: &str| match &schema["type"] {
        Value::String(s) => s == t,
        Value::Array(all) => all.iter().any(|s| s == t),
        _ => false,
    };
    if let Some(fields) = schema["properties"].as_object() {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let is_null = is("null");
        for (name, field) in fields {
            let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let is_always = is_always && !is_null && required.contains(&name.as_str());
            rows(&at, field, is_always, out);
        }
        return;
    }
    if is("array") {
        // An empty list has no elements, so nothing in them is always there but with them.
        return rows(
            &format!("{path}[]"),
            &described(&schema["items"], schema),
            is_always && !is("null"),
            out,
        );
    }
    if schema["additionalProperties"].is_object() {
        let each = described(&schema["additionalProperties"], schema);
        return rows(&format!("{path}.*"), &each, is_always, out);
    }
    // `Option` of a structure.
    if let Some(some) = schema["anyOf"].as_array().and_then(|a| a.iter().find(|s| s["type"] != "null")) {
        return rows(path, &described(some, schema), false, out);
    }
    // Names of an enumeration: together, or each with a meaning of its own.
    let each = schema["oneOf"].as_array().into_iter().flatten().filter_map(|one| one["const"].as_str());
    let names: Vec<String> = each.map(|n| format!("`{n}`")).collect();
    let kind = ["string", "integer", "number", "boolean", "object"].into_iter().find(|t| is(t));
    let kind =
        kind.unwrap_or(if names.is_empty() { "any JSON" } else { "string" }).replace("integer", "number");
    let mut meaning = schema["description"].as_str().unwrap_or_default().replace('\n', " ");
    // Links of the API documentation lead nowhere here.
    meaning = meaning.replace("[`", "`").replace("`]", "`");
    if !names.is_empty() {
        meaning = format!("{meaning} One of {}", names.join(" "));
    }
    let always = if is_always && !is("null") { "yes" } else { "no" };
    out.push([path.to_owned(), kind, always.to_owned(), meaning]);
}

/// A part with the description of the field that it stands in, where it has none.
fn described(part: &Value, whole: &Value) -> Value {
    let mut part = part.clone();
    if let (Some(part), Some(text)) = (part.as_object_mut(), whole.get("description")) {
        part.entry("description").or_insert_with(|| text.clone());
    }
    part
}

fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|").replace('\n', " ")
}

fn argument(a: &Arg) -> String {
    let names: Vec<String> = a
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .filter(|_| a.get_action().takes_values())
        .collect();
    let short = a.get_short().map(|s| format!("-{s},"));
    let long = a.get_long().map(|l| format!("--{l}"));
    let what: Vec<String> = short.into_iter().chain(long).chain(names).collect();
    let help = a.get_long_help().or_else(|| a.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut notes = Vec::new();
    if a.get_action().takes_values() {
        let values: Vec<String> =
            a.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
        if !values.is_empty() {
            notes.push(format!("one of {}", values.join(" ")));
        }
        let defaults: Vec<String> =
            a.get_default_values().iter().map(|v| format!("`{}`", v.display())).collect();
        if !defaults.is_empty() {
            notes.push(format!("default {}", defaults.join(" ")));
        }
    }
    if let Some(env) = a.get_env() {
        notes.push(format!("or `{}`", env.display()));
    }
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
    format!("| `{}` | {} |\n", cell(&what.join(" ")), cell(&format!("{help}{notes}")))
}

fn arguments<'a>(of: impl Iterator<Item = &'a Arg>) -> String {
    let listed: String = of
        .filter(|a| !a.is_hide_set() && !["help", "version"].contains(&a.get_id().as_str()))
        .map(argument)
        .collect();
    if listed.is_empty() { listed } else { format!("\n| Argument | Meaning |\n|---|---|\n{listed}") }
}

/// Every command that does something, with its name after `surety`.
fn commands(at: &Command, name: &str, out: &mut Vec<(String, Command)>) {
    for c in at.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let name = format!("{name} {}", c.get_name()).trim().to_owned();
        // One that asks for no subcommand is one by itself too.
        if !c.is_subcommand_required_set() {
            out.push((name.clone(), c.clone()));
        }
        commands(c, &name, out);
    }
}

fn root() -> Command {
    let mut root = Cli::command();
    root.build();
    root
}

fn markdown() -> String {
    let root = root();
    let (codes, _) = EXIT_CODES.split_once("\n\n").unwrap();
    let codes = codes.strip_prefix("Exit codes:\n").unwrap();
    let mut out = format!("{INTRODUCTION}\n## Exit codes\n\n| Code | Means |\n|---|---|\n");
    for (code, meaning) in codes.lines().filter_map(|l| l.trim().split_once("  ")) {
        writeln!(out, "| {code} | {} |", cell(meaning)).unwrap();
    }
    out.push_str("\n## Options of every command\n");
    out.push_str(&arguments(root.get_arguments().filter(|a| a.is_global_set())));
    let (mut all, shapes) = (Vec::new(), shapes());
    commands(&root, "", &mut all);
    for (name, mut c) in all {
        let about = c.get_long_about().or_else(|| c.get_about()).map(ToString::to_string).unwrap_or_default();
        let usage = c.render_usage().to_string().replace("Usage: ", "");
        writeln!(out, "\n## surety {name}\n\n{about}\n\n```text\n{usage}\n```").unwrap();
        out.push_str(&arguments(c.get_arguments().filter(|a| !a.is_global_set())));
        let help = c.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (before, examples) = help.split_once("Example:\n").unwrap_or_default();
        if !before.trim().is_empty() {
            writeln!(out, "\n```text\n{}\n```", before.trim()).unwrap();
        }
        let examples: Vec<&str> = examples.lines().map(str::trim).collect();
        writeln!(out, "\n```sh\n{}\n```", examples.join("\n")).unwrap();
        for (_, when, schema) in shapes.iter().filter(|(of, ..)| *of == name) {
            let when =
                if when.is_empty() { "With `--json`".to_owned() } else { format!("{when}, with `--json`") };
            writeln!(out, "\n{when}:\n\n| Field | Type | Always | Meaning |\n|---|---|---|---|").unwrap();
            let mut fields = Vec::new();
            rows("", schema, true, &mut fields);
            for [path, kind, always, meaning] in fields {
                writeln!(out, "| `{path}` | {kind} | {always} | {} |", cell(&meaning)).unwrap();
            }
        }
    }
    out
}

// `UPDATE=1 cargo test -p surety-producer reference` rewrites the file.
#[test]
fn the_reference_is_what_the_command_line_says() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let want = markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &want).unwrap();
    }
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(have == want, "docs/cli.md is not what the command line says; run `make docs`");
}

#[test]
fn every_command_says_what_its_json_is() {
    let (mut all, shapes) = (Vec::new(), shapes());
    commands(&root(), "", &mut all);
    for (name, _) in &all {
        assert!(shapes.iter().any(|(of, ..)| of == name), "surety {name}: add its answer to `shapes`");
    }
    for (of, ..) in &shapes {
        assert!(all.iter().any(|(name, _)| name == of), "there is no command {of:?}");
    }
    // The README lists them too.
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    for (name, _) in &all {
        let (noun, verb) = name.split_once(' ').unwrap_or((name, ""));
        let row = readme.lines().find(|l| l.starts_with('|') && l.contains(&format!("`surety {noun}")));
        assert!(row.is_some_and(|r| r.contains(verb)), "README.md does not list surety {name}");
    }
}
