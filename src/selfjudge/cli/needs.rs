//! Flags that have no effect without another one. Given alone they are refused by name, instead of being silently ignored.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

/// A flag, and the flags of which it needs one; all by their ids.
type Need = (&'static str, &'static [&'static str]);

const LOG: &[&str] = &["data_dir", "log_url"];

/// The needs of each command's flags.
const NEEDS: &[(&[&str], &[Need])] = &[
    (
        &["serve"],
        &[
            ("rate_burst", &["rate_limit"]),
            ("tls_cert", &["tls_key"]),
            ("tls_key", &["tls_cert"]),
            ("learn", &["data_dir"]),
            ("trainer_threads", &["learn"]),
            ("trainer_share", &["learn"]),
            ("canary_share", &["learn"]),
            ("admin_host", &["admin_listen"]),
            ("train", &["retain"]),
            ("retain", LOG),
            ("retention_days", LOG),
            ("strangers", LOG),
            ("records_quota", LOG),
            ("log_quota", LOG),
            ("max_record", LOG),
            ("on_log_failure", LOG),
            ("trust_feedback", LOG),
            ("trust_user", LOG),
            ("no_redaction", LOG),
            ("redact_command", LOG),
            ("redaction_salt_file", LOG),
        ],
    ),
    (
        &["train", "dpo"],
        &[
            ("follow", &["data_dir"]),
            ("data_dir", &["follow"]),
            ("log_url", &["follow"]),
            ("redaction_salt_file", &["follow"]),
            ("trust_feedback", &["follow"]),
            ("learn", &["follow"]),
            ("chat_template", &["follow"]),
            ("chat_template_kwargs", &["follow"]),
            ("allow_untrained_judge", &["follow"]),
            ("admin_listen", &["follow"]),
            ("admin_key_file", &["admin_listen"]),
            ("admin_host", &["admin_listen"]),
            ("metrics_listen", &["follow"]),
        ],
    ),
];

/// Checks that no flag was typed without the one that it needs. An environment variable without effect is no error, because other
/// commands read it too.
///
/// # Errors
/// Names the first such flag and what it needs.
pub(super) fn check(command: &Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    for (path, needs) in NEEDS {
        let Some((command, matches)) = at(command, matches, path) else {
            continue;
        };
        let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let given =
            |id: &str| typed(id) || matches.value_source(id) == Some(ValueSource::EnvVariable);
        let alone = needs
            .iter()
            .find(|(flag, needed)| typed(flag) && !needed.iter().any(|id| given(id)));
        if let Some((flag, needed)) = alone {
            let needed: Vec<String> = needed.iter().map(|id| long(command, id)).collect();
            let message = format!("{} needs {}\n", long(command, flag), needed.join(" or "));
            return Err(
                clap::Error::raw(ErrorKind::MissingRequiredArgument, message).with_cmd(command),
            );
        }
    }
    Ok(())
}

/// Returns the subcommand of this path and what it was given, if it was called.
fn at<'a>(
    mut command: &'a Command,
    mut matches: &'a ArgMatches,
    path: &[&str],
) -> Option<(&'a Command, &'a ArgMatches)> {
    for name in path {
        // Another program with these flags (`pocket`) has other subcommands, and clap panics at a name that it does not know.
        command = command.find_subcommand(name)?;
        matches = matches.subcommand_matches(name)?;
    }
    Some((command, matches))
}

/// Returns an option as it is typed.
fn long(command: &Command, id: &str) -> String {
    let option = command.get_arguments().find(|option| option.get_id() == id);
    let long = option.and_then(|option| option.get_long());
    format!("--{}", long.unwrap_or(id))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::{Cli, parse_command_line};
    use super::*;

    /// Returns a value that the option accepts.
    fn value(id: &str) -> Option<&'static str> {
        match id {
            "train"
            | "retain"
            | "trust_user"
            | "no_redaction"
            | "follow"
            | "allow_untrained_judge" => None,
            "strangers" => Some("retain"),
            "on_log_failure" => Some("refuse"),
            "trust_feedback" => Some("always"),
            "trainer_share" | "canary_share" => Some("0.5"),
            "admin_listen" | "metrics_listen" => Some("127.0.0.1:0"),
            "chat_template_kwargs" => Some("{}"),
            _ => Some("1"),
        }
    }

    #[test]
    fn a_flag_without_effect_is_refused_with_what_it_needs() {
        let root = Cli::command();
        for (path, needs) in NEEDS {
            let command = path.iter().fold(&root, |command, name| {
                command.find_subcommand(name).unwrap()
            });
            for (flag, needed) in *needs {
                for id in needed.iter().chain([flag]) {
                    assert!(
                        command.get_arguments().any(|arg| arg.get_id() == id),
                        "{id}"
                    );
                }
                let words = |ids: &[&str]| {
                    let mut words = vec!["selfjudge".to_owned()];
                    words.extend(path.iter().map(ToString::to_string));
                    for id in ids {
                        words.push(long(command, id));
                        words.extend(value(id).map(str::to_owned));
                    }
                    words
                };
                let error = parse_command_line::<Cli, _, _>(words(&[flag])).unwrap_err();
                let said = error.to_string();
                let line = said.lines().next().unwrap();
                let needed_flags: Vec<String> = needed.iter().map(|id| long(command, id)).collect();
                let expected = format!(
                    "error: {} needs {}",
                    long(command, flag),
                    needed_flags.join(" or ")
                );
                assert_eq!(line, expected, "{said}");
                // Given together, neither is refused for lack of the other.
                for id in *needed {
                    if let Err(error) = parse_command_line::<Cli, _, _>(words(&[flag, id])) {
                        let said = error.to_string();
                        assert!(!said.contains(&expected), "{said}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_default_is_no_flag_that_was_typed() {
        parse_command_line::<Cli, _, _>(["selfjudge", "serve"]).unwrap();
        parse_command_line::<Cli, _, _>(["selfjudge", "train", "dpo"]).unwrap();
    }
}
