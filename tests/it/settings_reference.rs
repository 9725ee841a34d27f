//! A test of `docs/settings.md`, which lists every option of the command line and every key of the settings files with its doc
//! comment.
//!
//! `SELFJUDGE_WRITE_DOCS=1 cargo test -p selfjudge --test it settings_reference` writes the page.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use selfjudge::{cli::Cli, learn::LearnConfig};
use serde::Serialize;
use serde_json::Value;
use syn::{Attribute, Expr, Fields, Item, Lit, Meta, Type};
use train::{config::JsftConfig, dpo::run::DpoRunConfig};

use crate::support::root;

const HEAD: &str = "# Settings\n\n\
    Every option of the command line and every key of the files of settings. This page is generated from the program's doc comments; a\n\
    test compares it (`tests/it/settings_reference.rs` says how it is written).\n";

#[test]
fn the_reference_of_settings_is_the_programs() {
    let mut page = HEAD.to_owned();
    commands(&mut page, &Cli::command(), "selfjudge", true);
    let structs = Structs::read();
    file(
        &mut page,
        &structs,
        "Learning: `serve --learn FILE`",
        "LearnConfig",
        &LearnConfig::default(),
    );
    file(
        &mut page,
        &structs,
        "`train jsft --config FILE`",
        "JsftConfig",
        &JsftConfig::default(),
    );
    file(
        &mut page,
        &structs,
        "`train dpo --config FILE`",
        "DpoRunConfig",
        &DpoRunConfig::default(),
    );
    let path = root().join("docs/settings.md");
    if std::env::var_os("SELFJUDGE_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/settings.md is out of date, run: SELFJUDGE_WRITE_DOCS=1 cargo test -p selfjudge --test it settings_reference"
    );
}

#[test]
fn every_setting_has_a_plain_meaning() {
    let page = fs::read_to_string(root().join("docs/settings.md")).unwrap();
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    assert!(rows.len() > 200, "{}", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "a cell has no table: {row}");
        let meaning = cells[2].trim();
        assert!(!meaning.is_empty(), "a setting needs a doc comment: {row}");
        assert!(!meaning.contains("[`") && !meaning.contains("\\|"), "{row}");
        let default = cells[1].trim().trim_matches('`');
        let is_number = default.parse::<f64>().is_ok();
        assert!(!is_number || default.len() < 10, "a number is short: {row}");
    }
}

/// Writes the options of a command and of its subcommands.
fn commands(page: &mut String, command: &clap::Command, path: &str, top: bool) {
    let options = command.get_arguments().filter(|option| {
        let named = option.get_long().is_some() || option.is_positional();
        named && !option.is_hide_set() && option.get_id() != "help" && option.get_id() != "version"
    });
    let rows: Vec<String> = options.map(option_row).collect();
    if !rows.is_empty() {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let heading = match top {
            true => "Every command".to_owned(),
            false => format!("`{path}`"),
        };
        let about = if top {
            String::new()
        } else {
            format!("{about}\n\n")
        };
        write!(
            page,
            "\n## {heading}\n\n{about}| option | default | meaning |\n|---|---|---|\n"
        )
        .unwrap();
        page.extend(rows);
    }
    for inner in command
        .get_subcommands()
        .filter(|inner| inner.get_name() != "help")
    {
        commands(page, inner, &format!("{path} {}", inner.get_name()), false);
    }
}

fn option_row(option: &clap::Arg) -> String {
    let values = option.get_value_names().unwrap_or_default();
    let takes = option.get_action().takes_values();
    let value = values.first().map(ToString::to_string).filter(|_| takes);
    let name = match (option.get_long(), value) {
        (Some(long), Some(value)) => format!("`--{long} {value}`"),
        (Some(long), None) => format!("`--{long}`"),
        (None, value) => format!("`{}`", value.unwrap_or_default()),
    };
    let defaults: Vec<_> = option
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let default = match takes && !defaults.is_empty() {
        true => format!("`{}`", defaults.join(",")),
        false => String::new(),
    };
    let env = option
        .get_env()
        .map(|env| format!(" (`{}`)", env.to_string_lossy()));
    let help = option
        .get_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    format!(
        "| {name}{} | {default} | {} |\n",
        env.unwrap_or_default(),
        cell(&help)
    )
}

/// Returns a text in the form of a table cell.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// A key of a settings file.
struct Key {
    name: String,
    doc: String,
    /// The name of the type, without `Option` and `Vec`.
    kind: String,
    flattened: bool,
}

/// The structs of the sources by name.
struct Structs(BTreeMap<String, Vec<Key>>);

impl Structs {
    fn read() -> Self {
        let mut structs = BTreeMap::new();
        for folder in ["src/selfjudge/learn", "src/train", "src/kernels/device"] {
            read_folder(&root().join(folder), &mut structs);
        }
        Self(structs)
    }
}

fn read_folder(folder: &Path, structs: &mut BTreeMap<String, Vec<Key>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(&path, structs);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
            for item in source.items {
                if let Item::Struct(item) = item
                    && let Fields::Named(fields) = item.fields
                {
                    let keys = fields.named.iter().filter_map(|field| {
                        let serde = words(&field.attrs);
                        let skipped = serde.iter().any(|word| word == "skip");
                        (!skipped).then(|| Key {
                            name: field.ident.as_ref().unwrap().to_string(),
                            doc: doc(&field.attrs),
                            kind: kind(&field.ty),
                            flattened: serde.iter().any(|word| word == "flatten"),
                        })
                    });
                    structs.insert(item.ident.to_string(), keys.collect());
                }
            }
        }
    }
}

/// Returns the words of a field's `serde` attributes.
fn words(attributes: &[Attribute]) -> Vec<String> {
    let mut words = Vec::new();
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("serde"))
    {
        let parsed = attribute.parse_nested_meta(|meta| {
            words.push(
                meta.path
                    .get_ident()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            );
            match meta.value() {
                Ok(value) => value.parse::<Lit>().map(drop),
                Err(_) => Ok(()),
            }
        });
        parsed.unwrap();
    }
    words
}

fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes
        .iter()
        .filter_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
                Expr::Lit(text) => match &text.lit {
                    Lit::Str(text) => Some(text.value()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        });
    lines.collect::<Vec<_>>().join("\n")
}

fn kind(ty: &Type) -> String {
    let Type::Path(path) = ty else {
        return String::new();
    };
    let last = path.path.segments.last().unwrap();
    match &last.arguments {
        syn::PathArguments::AngleBracketed(inner) => match inner.args.first() {
            Some(syn::GenericArgument::Type(inner)) => kind(inner),
            _ => last.ident.to_string(),
        },
        _ => last.ident.to_string(),
    }
}

/// Writes the keys of a settings file.
fn file(page: &mut String, structs: &Structs, title: &str, root: &str, defaults: &impl Serialize) {
    // Through text: as a value, a number of single precision would have the digits of a double.
    let defaults = serde_json::to_string(defaults).unwrap();
    let defaults: Value = serde_json::from_str(&defaults).unwrap();
    write!(
        page,
        "\n## {title}\n\nA TOML file. Keys and tables that it lacks keep their defaults.\n"
    )
    .unwrap();
    table(page, structs, root, "", &defaults);
}

fn table(page: &mut String, structs: &Structs, name: &str, path: &str, defaults: &Value) {
    let mut rows = String::new();
    let mut inner = Vec::new();
    let mut open = vec![name];
    while let Some(name) = open.pop() {
        for key in &structs.0[name] {
            if key.flattened {
                open.push(&key.kind);
                continue;
            }
            let default = &defaults[&key.name];
            if structs.0.contains_key(&key.kind)
                && (default.is_object() || default.is_null() || *default == Value::Array(vec![]))
            {
                inner.push((key, default));
                if default.is_object() {
                    continue;
                }
            }
            let shown = match default {
                Value::Null => String::new(),
                default => format!("`{default}`"),
            };
            writeln!(rows, "| `{}` | {shown} | {} |", key.name, cell(&key.doc)).unwrap();
        }
    }
    if !rows.is_empty() {
        let heading = if path.is_empty() {
            String::new()
        } else {
            format!("### `[{path}]`\n\n")
        };
        write!(
            page,
            "\n{heading}| key | default | meaning |\n|---|---|---|\n{rows}"
        )
        .unwrap();
    }
    for (key, default) in inner {
        let path = match path {
            "" => key.name.clone(),
            path => format!("{path}.{}", key.name),
        };
        table(page, structs, &key.kind, &path, default);
    }
}
