//! Environment variables with the program's prefix that have no meaning: a former name is refused, an unknown one is named in the log.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::{Command, CommandFactory};

use super::Cli;
use settings::did_you_mean;

const PREFIX: &str = "SELFJUDGE_";

/// Variables that are no options.
const OTHER: [&str; 3] = ["SELFJUDGE_LOG", "SELFJUDGE_FAULT", "SELFJUDGE_FAULT_UNTIL"];

/// Former names, and the present ones.
const FORMER: [(&str, &str); 1] = [("SELFJUDGE_DTYPE", "SELFJUDGE_WEIGHTS")];

/// Beginnings of names that other programs set or read: the project's tests and examples, and Kubernetes, which gives every program the
/// addresses of a service `selfjudge`.
const FOREIGN: [&str; 11] = [
    "FUZZ_",
    "KEY",
    "NODE_MODULES",
    "PORT",
    "PYTHON",
    "REQUIRE",
    "SERVICE_",
    "SHARED",
    "SMOLLM2",
    "TEST_",
    "WRITE_DOCS",
];

/// Checks the names of the process's variables.
///
/// # Errors
/// Errors if a variable has a former name; the message has the present one.
pub(super) fn check() -> anyhow::Result<()> {
    let known = known(&Cli::command());
    let names = std::env::vars_os().map(|(name, _)| name);
    for finding in findings(names, &known) {
        match finding {
            Finding::Former { name, present } => {
                anyhow::bail!("the environment variable {name} is now {present}: rename it")
            }
            Finding::Unknown { name, nearest } => {
                let nearest = nearest.map(|nearest| format!("; did you mean {PREFIX}{nearest}?"));
                tracing::warn!(
                    "the environment variable {name} has no effect{}",
                    nearest.unwrap_or_default()
                );
            }
        }
    }
    Ok(())
}

/// Returns the names of all variables that have a meaning.
fn known(command: &Command) -> BTreeSet<String> {
    let own = command
        .get_arguments()
        .filter_map(|option| option.get_env());
    let own = own.map(|name| name.to_string_lossy().into_owned());
    let inner = command.get_subcommands().flat_map(known);
    own.chain(inner).chain(OTHER.map(str::to_owned)).collect()
}

#[derive(Debug, PartialEq)]
enum Finding<'a> {
    Former {
        name: String,
        present: &'static str,
    },
    Unknown {
        name: String,
        /// The nearest name without its prefix.
        nearest: Option<&'a str>,
    },
}

/// Returns the names that have no meaning, sorted.
fn findings(names: impl Iterator<Item = OsString>, known: &BTreeSet<String>) -> Vec<Finding<'_>> {
    let names: BTreeSet<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !known.contains(name))
        .collect();
    let all = known.iter().filter_map(|name| name.strip_prefix(PREFIX));
    let all: Vec<&str> = all.collect();
    let mut findings = Vec::new();
    for name in names {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let former = FORMER.iter().find(|(former, _)| *former == name);
        if let Some((_, present)) = former {
            findings.push(Finding::Former { name, present });
        } else if !FOREIGN.iter().any(|foreign| rest.starts_with(foreign)) {
            let nearest = did_you_mean(rest, &all);
            findings.push(Finding::Unknown { name, nearest });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_a_meaning_are_found() {
        let known = known(&Cli::command());
        let of = |names: &[&str]| {
            let names = names.iter().map(OsString::from);
            findings(names, &known)
        };
        let every: Vec<&str> = known.iter().map(String::as_str).collect();
        assert!(every.len() > 15 && every.contains(&"SELFJUDGE_WEIGHTS"));
        assert_eq!(of(&every), []);
        assert_eq!(
            of(&[
                "PATH",
                "SELFJUDGE_TEST_POSTGRES",
                "SELFJUDGE_REQUIRE",
                "SELFJUDGE_SMOLLM2",
                "SELFJUDGE_PORT_8080_TCP_ADDR",
                "SELFJUDGE_SERVICE_HOST",
            ]),
            []
        );
        let unknown = |name: &str, nearest| Finding::Unknown {
            name: name.to_owned(),
            nearest,
        };
        assert_eq!(
            of(&["SELFJUDGE_WEIGTHS", "SELFJUDGE_DTYPE", "SELFJUDGE_COLOUR"]),
            [
                unknown("SELFJUDGE_COLOUR", None),
                Finding::Former {
                    name: "SELFJUDGE_DTYPE".to_owned(),
                    present: "SELFJUDGE_WEIGHTS"
                },
                unknown("SELFJUDGE_WEIGTHS", Some("WEIGHTS")),
            ]
        );
        // What a former name became exists, and no name that has a meaning is called foreign.
        for (former, present) in FORMER {
            assert!(known.contains(present) && !known.contains(former));
        }
        for name in &known {
            let rest = name.strip_prefix(PREFIX).unwrap_or_default();
            assert!(!FOREIGN.contains(&rest), "{name}");
        }
    }
}
