//! Pairs to files and back.

use std::fs::File;

use selfjudge::preference::log::{
    DrawSpec, ExportFilter, Feedback, FeedbackTrust, LoggedPair, PairFormat, PairSource, Principal,
    Scope,
};
use selfjudge::preference::{Format, Message, Role, read_records};

use super::*;

/// Three pairs of which one may not be trained on.
async fn paired(log: &TrafficLog) {
    let chat = Prompt::Messages(vec![
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, "Say [\"hi\"]"),
    ]);
    for (prompt, p, train) in [
        (Prompt::Text("plain".to_owned()), 0.25, true),
        (chat, 0.0, true),
        (Prompt::Text("private".to_owned()), 0.25, false),
    ] {
        let mut new = record("ann", "");
        new.prompt = prompt;
        new.consent.train = train;
        new.verdicts = vec![by_default(verdict(0, 1, p))];
        new.pair_verdicts(PairSource::Tournament);
        log.append(new).await.unwrap();
    }
}

#[test]
fn jsonl_is_what_trl_reads() {
    on_both(async |config| {
        let log = open(&config).await;
        paired(&log).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let out = File::create(file.path()).unwrap();
        let filter = ExportFilter::default();
        let written = log.export_pairs(PairFormat::Jsonl, &filter, out).await;
        assert_eq!(written.unwrap(), 2);
        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            lines[0],
            json!({"prompt": "plain", "chosen": "right", "rejected": "left", "margin": 0.75, "source": "tournament"})
        );
        assert_eq!(lines[1]["prompt"][1]["role"], "user");
        assert_eq!(
            lines[1]["chosen"],
            json!([{"role": "assistant", "content": "right"}])
        );

        let none = ExportFilter {
            source: Some(PairSource::OnPolicy),
            min_margin: 0.0,
        };
        let count = log.export_pairs(PairFormat::Jsonl, &none, std::io::sink());
        assert_eq!(count.await.unwrap(), 0);
        let sure = ExportFilter {
            source: Some(PairSource::Tournament),
            min_margin: 0.9,
        };
        let count = log.export_pairs(PairFormat::Jsonl, &sure, std::io::sink());
        assert_eq!(count.await.unwrap(), 1);
    });
}

#[test]
fn what_was_exported_can_be_imported_once() {
    for format in [PairFormat::Jsonl, PairFormat::Parquet] {
        on_both(async |config| {
            let log = open(&config).await;
            paired(&log).await;
            let file = tempfile::NamedTempFile::new().unwrap();
            let filter = ExportFilter::default();
            let out = File::create(file.path()).unwrap();
            log.export_pairs(format, &filter, out).await.unwrap();
            let owner = Principal::of_key("importer");
            let consent = Consent {
                retain: true,
                train: true,
            };
            for _ in 0..2 {
                let read = log.import_pairs(format, file.path(), &owner, consent).await;
                assert_eq!(read.unwrap(), 2);
            }
            assert_eq!(log.stats().records, 5, "the second time nothing is new");
            let rows = log.draw(&DrawSpec::new(10)).await.unwrap();
            let imported: Vec<_> = rows.iter().filter(|row| row.principal == owner).collect();
            let chat = Prompt::Messages(vec![
                Message::new(Role::System, "Be brief."),
                Message::new(Role::User, "Say [\"hi\"]"),
            ]);
            let mut read = Vec::new();
            for row in imported {
                read.extend(log.get(&row.id, &Scope::All).await.unwrap());
            }
            let read = read.iter().find(|record| record.prompt == chat);
            let read = read.expect("the conversation came back");
            assert_eq!(read.samples[0].text, "right");
            assert_eq!(read.samples[1].text, "left");
            assert_eq!(read.pairs[0].source, PairSource::Imported);
        });
    }
}

#[test]
fn many_pages_are_exported_whole() {
    on_both(async |config| {
        let log = open(&config).await;
        let mut new = record("ann", "p");
        new.verdicts = vec![by_default(verdict(0, 1, 0.25)); 700];
        new.pair_verdicts(PairSource::Tournament);
        log.append(new.clone()).await.unwrap();
        log.append(new).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let out = File::create(file.path()).unwrap();
        let everything = ExportFilter::default();
        let written = log.export_pairs(PairFormat::Jsonl, &everything, out);
        assert_eq!(written.await.unwrap(), 1400);
        let records = read_records(file.path(), Format::Trl).unwrap();
        assert_eq!(records.len(), 1400);
    });
}

#[test]
fn a_broken_file_is_named_and_what_stands_before_it_is_kept() {
    let (dir, config) = sqlite();
    run(async {
        let log = open(&config).await;
        let file = dir.path().join("pairs.jsonl");
        let line = r#"{"prompt":"q","chosen":"a","rejected":"b"}"#;
        std::fs::write(&file, format!("{line}\nnot json\n")).unwrap();
        let owner = Principal::anonymous();
        let consent = Consent {
            retain: true,
            train: false,
        };
        let said = log
            .import_pairs(PairFormat::Jsonl, &file, &owner, consent)
            .await;
        let Err(LogError::File(message)) = said else {
            panic!("{said:?}")
        };
        assert!(message.contains("pairs.jsonl:2"), "{message}");
        assert_eq!(log.stats().records, 1);
        let said = log
            .import_pairs(PairFormat::Parquet, &file, &owner, consent)
            .await;
        assert!(matches!(said, Err(LogError::File(_))), "{said:?}");
    });
}

/// Verdicts that make no pair, each in a record of its own.
fn about_nothing() -> Vec<LoggedVerdict> {
    let mut low = by_default(verdict(0, 1, 0.01));
    low.label_mass = 0.49;
    let mut lower = low.clone();
    lower.label_mass = 1e-4;
    let mut named = verdict(0, 1, 0.01);
    named.principles = vec!["polite".to_owned()];
    vec![low, lower, named]
}

#[test]
fn verdicts_about_nothing_and_under_a_calls_own_principles_make_no_pair_and_leave_in_no_export() {
    on_both(async |config| {
        let log = open(&config).await;
        paired(&log).await;
        for verdict in about_nothing() {
            let mut new = record("ann", "p");
            new.verdicts = vec![verdict.clone()];
            new.pair_verdicts(PairSource::Tournament);
            assert_eq!(new.pairs, [], "{verdict:?}");
            // A log of an earlier version has such pairs.
            new.pairs = vec![LoggedPair {
                chosen: 1,
                rejected: 0,
                margin: 0.99,
                source: PairSource::Tournament,
                principles: verdict.principles.clone(),
            }];
            log.append(new).await.unwrap();
        }
        let everything = ExportFilter::default();
        let written = log.export_pairs(PairFormat::Jsonl, &everything, std::io::sink());
        assert_eq!(written.await.unwrap(), 2, "only those of `paired`");
    });
}

#[test]
fn verdicts_about_nothing_and_under_a_calls_own_principles_corroborate_nothing() {
    on_both(async |mut config| {
        config.trust = FeedbackTrust::Corroborated;
        let log = open(&config).await;
        let ann = Principal::of_key("ann");
        let preferred = Feedback::Preferred { sample: 1 };
        for verdict in about_nothing() {
            let mut new = record("ann", "p");
            new.verdicts = vec![verdict.clone()];
            let id = log.append(new).await.unwrap();
            let outcome = log
                .add_feedback(&id, &ann, preferred.clone())
                .await
                .unwrap();
            assert_eq!(outcome.pairs, 0, "{verdict:?}");
        }
        let mut new = record("ann", "p");
        new.verdicts = vec![by_default(verdict(0, 1, 0.01))];
        let id = log.append(new).await.unwrap();
        let outcome = log.add_feedback(&id, &ann, preferred).await.unwrap();
        assert_eq!(outcome.pairs, 1, "the default question does corroborate");
    });
}
