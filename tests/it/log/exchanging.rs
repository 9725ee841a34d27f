//! Tests of exporting pairs to files and of importing them.

use std::fs::File;
use std::path::Path;

use judge::{Format, OnUnusable, PlainText, Record, RecordReader, read_records};
use parquet::basic::{Compression, Repetition};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use text::{Message, Role};
use traffic_log::{
    DrawSpec, ExportFilter, Feedback, FeedbackTrust, Imported, LoggedPair, LoggedRecord,
    PairFormat, PairSource, Principal, PromptKind, Scope, export_pairs, import_pairs,
};

use super::*;
use crate::support::{python, root};

/// Appends three pairs, one of them without consent to train.
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
        let pairs = new
            .verdicts
            .iter()
            .filter_map(|v| v.default_pair(PairSource::Tournament));
        new.pairs.extend(pairs);
        log.records.append(new).await.unwrap();
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
        let written = export_pairs(&log, PairFormat::Jsonl, &filter, out).await;
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
            ..ExportFilter::default()
        };
        let count = export_pairs(&log, PairFormat::Jsonl, &none, std::io::sink());
        assert_eq!(count.await.unwrap(), 0);
        let sure = ExportFilter {
            source: Some(PairSource::Tournament),
            min_margin: 0.9,
            ..ExportFilter::default()
        };
        let count = export_pairs(&log, PairFormat::Jsonl, &sure, std::io::sink());
        assert_eq!(count.await.unwrap(), 1);
    });
}

/// Imports a file into the log.
async fn import(
    log: &TrafficLog,
    format: Option<PairFormat>,
    file: &Path,
) -> Result<Imported, LogError> {
    let owner = Principal::of_key("importer");
    let consent = Consent {
        retain: true,
        train: true,
    };
    import_pairs(log, format, PlainText::Raw, file, &owner, consent).await
}

/// Returns every imported record.
async fn imported(log: &TrafficLog) -> Vec<LoggedRecord> {
    let rows = log.replay.draw(&DrawSpec::new(100)).await.unwrap();
    let owner = Principal::of_key("importer");
    let mut read = Vec::new();
    for row in rows.iter().filter(|row| row.principal == owner) {
        read.extend(log.records.get(&row.id, &Scope::All).await.unwrap());
    }
    read
}

#[test]
fn what_was_exported_can_be_imported_once() {
    for format in [PairFormat::Jsonl, PairFormat::Json, PairFormat::Parquet] {
        on_both(async |config| {
            let log = open(&config).await;
            paired(&log).await;
            let chat = Prompt::Messages(vec![
                Message::new(Role::System, "Be brief."),
                Message::new(Role::User, "Say [\"hi\"]"),
            ]);
            let plain = Prompt::Text("plain".to_owned());
            let dir = tempfile::tempdir().unwrap();
            for kind in [PromptKind::Plain, PromptKind::Conversation] {
                let path = dir.path().join(format!("{kind:?}"));
                let filter = ExportFilter {
                    prompts: Some(kind),
                    ..ExportFilter::default()
                };
                let out = File::create(&path).unwrap();
                let written = export_pairs(&log, format, &filter, out).await.unwrap();
                assert_eq!(written, 1);
            }
            for counts in [(1, 0), (0, 1)] {
                for kind in [PromptKind::Plain, PromptKind::Conversation] {
                    let path = dir.path().join(format!("{kind:?}"));
                    let read = import(&log, Some(format), &path).await.unwrap();
                    assert_eq!(((read.new, read.known), read.skipped.count), (counts, 0));
                }
            }
            assert_eq!(log.stats().records, 5, "a second import must add no record");
            let read = imported(&log).await;
            for (prompt, margin) in [(chat, 1.0), (plain, 0.75)] {
                let read = read.iter().find(|record| record.prompt == prompt);
                let read = read.expect("every exported record must be imported");
                assert_eq!(read.samples[0].text, "right");
                assert_eq!(read.samples[1].text, "left");
                assert_eq!(read.pairs[0].source, PairSource::Tournament);
                assert_eq!(read.pairs[0].margin, margin);
            }
        });
    }
}

#[test]
fn a_parquet_file_has_one_kind_of_prompt_and_lists_of_messages() {
    on_both(async |config| {
        let log = open(&config).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.parquet");
        let export = async |prompts| {
            let filter = ExportFilter {
                prompts,
                ..ExportFilter::default()
            };
            let out = File::create(&path).unwrap();
            export_pairs(&log, PairFormat::Parquet, &filter, out).await
        };
        assert_eq!(export(None).await.unwrap(), 0);
        assert!(read_records(&path, Format::Auto).unwrap().is_empty());
        paired(&log).await;
        let mixed = export(None).await.unwrap_err().to_string();
        assert!(mixed.contains("--prompts"), "{mixed}");
        export(Some(PromptKind::Conversation)).await.unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let schema = reader.metadata().file_metadata().schema();
        // `datasets` reads this shape as a list of structs of `role` and `content`.
        for side in &schema.get_fields()[..3] {
            let list = &side.get_fields()[0];
            assert_eq!(list.get_basic_info().repetition(), Repetition::REPEATED);
            let message = list.get_fields()[0].get_fields();
            let names: Vec<&str> = message.iter().map(|field| field.name()).collect();
            assert_eq!(names, ["role", "content"], "{}", side.name());
        }
        let records = read_records(&path, Format::Trl).unwrap();
        let [Record::Pair(pair)] = records.as_slice() else {
            panic!("{records:?}");
        };
        assert_eq!(pair.messages.len(), 2);
        assert_eq!((pair.chosen.as_str(), pair.plain), ("right", false));
    });
}

/// Compares rows and types with those that pyarrow reads; `datasets`, pandas and TRL read with pyarrow.
#[test]
#[cfg_attr(
    not(has_pyarrow),
    ignore = "needs Python with pyarrow: SELFJUDGE_REQUIRE=pyarrow"
)]
fn pyarrow_opens_what_is_exported() {
    let script = root().join("tests/clients/pairs.py");
    let mut reader = python(&[script.to_str().unwrap()], "--check");
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let log = open(&LogConfig::sqlite(&dir.path().join("log.sqlite"))).await;
        paired(&log).await;
        paired(&log).await;
        let text = json!({"prompt": "plain", "chosen": "right", "rejected": "left", "margin": 0.75, "source": "tournament"});
        let chat = json!({
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say [\"hi\"]"}],
            "chosen": [{"role": "assistant", "content": "right"}],
            "rejected": [{"role": "assistant", "content": "left"}],
            "margin": 1.0, "source": "tournament",
        });
        let mut expected = serde_json::Map::new();
        for (kind, row) in [(PromptKind::Plain, text), (PromptKind::Conversation, chat)] {
            for (format, ending) in [
                (PairFormat::Parquet, "parquet"),
                (PairFormat::Json, "json"),
                (PairFormat::Jsonl, "jsonl"),
            ] {
                let name = format!("{kind:?}.{ending}");
                let filter = ExportFilter {
                    prompts: Some(kind),
                    ..ExportFilter::default()
                };
                let out = File::create(dir.path().join(&name)).unwrap();
                assert_eq!(export_pairs(&log, format, &filter, out).await.unwrap(), 2);
                expected.insert(name, json!([row, row]));
            }
        }
        let expected = serde_json::to_vec(&expected).unwrap();
        std::fs::write(dir.path().join("expected.json"), expected).unwrap();
    });
    let read = reader.arg(dir.path()).output().unwrap();
    assert!(
        read.status.success(),
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
}

#[test]
fn parquet_is_read_whatever_it_is_compressed_with() {
    let schema = "message m { OPTIONAL BINARY prompt (UTF8); OPTIONAL BINARY chosen (UTF8); OPTIONAL BINARY rejected (UTF8); \
                  OPTIONAL DOUBLE score_chosen; OPTIONAL BINARY question (UTF8); }";
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(Default::default()),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let properties = WriterProperties::builder().set_compression(compression);
        let schema = parse_message_type(schema).unwrap();
        let out = file.reopen().unwrap();
        let mut writer =
            SerializedFileWriter::new(out, schema.into(), properties.build().into()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for values in [["p", "q"], ["c", "d"], ["r", "s"]] {
            let mut column = group.next_column().unwrap().unwrap();
            let values = values.map(ByteArray::from);
            let column_writer = column.typed::<ByteArrayType>();
            column_writer
                .write_batch(&values, Some(&[1, 1]), None)
                .unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        let scores = column.typed::<DoubleType>();
        scores.write_batch(&[8.5], Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        // The second row has a question beside its prompt.
        let mut column = group.next_column().unwrap().unwrap();
        let questions = column.typed::<ByteArrayType>();
        questions
            .write_batch(&[ByteArray::from("why?")], Some(&[0, 1]), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let mut reader = RecordReader::open(file.path(), Format::Auto, OnUnusable::Skip).unwrap();
        let Some(Ok(Record::Pair(pair))) = reader.next() else {
            panic!("{compression:?}");
        };
        assert_eq!((pair.messages[0].content.as_str(), pair.plain), ("p", true));
        assert!(reader.next().is_none());
        let skipped = reader.skipped().to_string();
        assert!(
            skipped.contains("record 2") && skipped.contains("`question`"),
            "{skipped}"
        );
    }
}

#[test]
fn records_that_cannot_be_used_are_left_out_and_counted() {
    on_both(async |config| {
        let log = open(&config).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pairs.jsonl");
        let hh = |q: &str, a: &str| format!("\\n\\nHuman: {q}\\n\\nAssistant: {a}");
        let lines = [
            r#"{"prompt":"q","chosen":"a","rejected":"b","source":"web","margin":3.5}"#.to_owned(),
            format!(
                r#"{{"chosen":"{}","rejected":"{}"}}"#,
                hh("q", "x"),
                hh("r", "y")
            ),
            r#"{"prompt":"q","chosen":"a","rejected":null}"#.to_owned(),
            r#"{"prompt":"q","chosen":"a","rejected":"c","tools":[{"name":"f"}]}"#.to_owned(),
            r#"{"prompt":"q","chosen":"a","rejected":"d","source":"on_policy","margin":1.5}"#
                .to_owned(),
            r#"{"prompt":"q","chosen":"a","rejected":"e"}"#.to_owned(),
        ];
        std::fs::write(&file, lines.join("\n")).unwrap();
        let read = import(&log, None, &file).await.unwrap();
        assert_eq!((read.new, read.skipped.count), (2, 4));
        let records = imported(&log).await;
        assert_eq!(records.len(), 2);
        for record in records {
            // A margin of another data set is no probability, and its source is none of this log's.
            assert_eq!(record.pairs[0].source, PairSource::Imported);
            assert_eq!(record.pairs[0].margin, 1.0);
            assert_eq!(record.prompt, Prompt::Text("q".to_owned()));
        }
    });
}

#[test]
fn many_pages_are_exported_whole() {
    on_both(async |config| {
        let log = open(&config).await;
        let mut new = record("ann", "p");
        new.verdicts = vec![by_default(verdict(0, 1, 0.25)); 700];
        let pairs = new
            .verdicts
            .iter()
            .filter_map(|v| v.default_pair(PairSource::Tournament));
        new.pairs.extend(pairs);
        log.records.append(new.clone()).await.unwrap();
        log.records.append(new).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let out = File::create(file.path()).unwrap();
        let everything = ExportFilter::default();
        let written = export_pairs(&log, PairFormat::Jsonl, &everything, out);
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
        let result = import(&log, Some(PairFormat::Jsonl), &file).await;
        let Err(LogError::File(message)) = result else {
            panic!("{result:?}")
        };
        assert!(message.contains("pairs.jsonl:2"), "{message}");
        assert_eq!(log.stats().records, 1);
        let result = import(&log, Some(PairFormat::Parquet), &file).await;
        assert!(matches!(result, Err(LogError::File(_))), "{result:?}");
    });
}

/// Returns verdicts that make no pair, each for a record of its own.
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
            let pairs = new
                .verdicts
                .iter()
                .filter_map(|v| v.default_pair(PairSource::Tournament));
            new.pairs.extend(pairs);
            assert_eq!(new.pairs, [], "{verdict:?}");
            // A log of an earlier version has such pairs.
            new.pairs = vec![LoggedPair {
                chosen: 1,
                rejected: 0,
                margin: 0.99,
                source: PairSource::Tournament,
                principles: verdict.principles.clone(),
            }];
            log.records.append(new).await.unwrap();
        }
        let everything = ExportFilter::default();
        let written = export_pairs(&log, PairFormat::Jsonl, &everything, std::io::sink());
        assert_eq!(
            written.await.unwrap(),
            2,
            "only the pairs of `paired` must be exported"
        );
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
            let id = log.records.append(new).await.unwrap();
            let outcome = log
                .feedback
                .add(&id, &ann, preferred.clone())
                .await
                .unwrap();
            assert_eq!(outcome.pairs, 0, "{verdict:?}");
        }
        let mut new = record("ann", "p");
        new.verdicts = vec![by_default(verdict(0, 1, 0.01))];
        let id = log.records.append(new).await.unwrap();
        let outcome = log.feedback.add(&id, &ann, preferred).await.unwrap();
        assert_eq!(
            outcome.pairs, 1,
            "the verdict on the default question must support the feedback"
        );
    });
}
