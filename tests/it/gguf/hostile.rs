//! Headers that lie: every count, length, offset and depth is compared with the file before anything is allocated.

use std::path::Path;

use model::gguf::GgufFile;

use super::writer::{ARRAY, BOOL, STRING, U32, Writer, array, string};
use crate::support::{data, largest_allocation};

/// More than anything that the files of this test take, with room for what other tests do at the same time.
const MOST_BYTES: usize = 2 << 30;

fn open(dir: &Path, bytes: &[u8]) -> Result<GgufFile, String> {
    let path = dir.join("bad.gguf");
    std::fs::write(&path, bytes).unwrap();
    GgufFile::open(&path).map_err(|error| {
        let message = error.to_string();
        assert!(message.contains("bad.gguf"), "{message}");
        assert!(message.len() < 400 && !message.contains('\n'), "{message}");
        message
    })
}

/// A valid file.
fn good() -> Writer {
    Writer::new()
        .text("general.architecture", "llama")
        .tensor("a", &[32, 2], 8, 0)
        .tensor("b", &[4], 0, 96)
        .data(112)
}

#[test]
fn what_a_header_claims_is_compared_with_the_file() {
    let huge = u64::MAX.to_le_bytes();
    let new = Writer::new;
    let nested: Vec<u8> = [
        array(ARRAY, 1),
        array(ARRAY, 1),
        array(ARRAY, 1),
        array(ARRAY, 1),
        array(U32, 0),
    ]
    .concat();
    let one = |bytes: &[u8]| new().raw("k", ARRAY, bytes).bytes();
    let with = |change: &dyn Fn(&mut Writer)| {
        let mut writer = good();
        change(&mut writer);
        writer.bytes()
    };
    let tensor =
        |shape: &[u64], kind: u32, offset: u64| good().tensor("c", shape, kind, offset).bytes();
    let table = [
        (Vec::new(), "truncated"),
        (b"GGU".to_vec(), "truncated"),
        (b"GGML12345678".to_vec(), "not a GGUF file"),
        (
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "Git LFS",
        ),
        (with(&|w| w.version = 1), "version 1"),
        (with(&|w| w.version = 4), "version 4"),
        (with(&|w| w.version = 3 << 24), "big-endian"),
        (with(&|w| w.keys = Some(u64::MAX)), "limit is 65536"),
        (
            Writer {
                keys: Some(60_000),
                ..new()
            }
            .bytes(),
            "truncated",
        ),
        (with(&|w| w.tensors = Some(u64::MAX)), "limit is 100000"),
        (with(&|w| w.tensors = Some(99_999)), "dimensions"),
        (
            new().raw("k", STRING, &huge).bytes(),
            "limit is 67108864 bytes",
        ),
        (
            new()
                .raw("k", STRING, &(60_u64 << 20).to_le_bytes())
                .bytes(),
            "truncated",
        ),
        (
            new().raw(&"k".repeat(70_000), U32, &[0; 4]).bytes(),
            "limit is 65535",
        ),
        (new().raw("k", 13, &[0; 8]).bytes(), "13 is not a type"),
        (new().raw("k", u32::MAX, &[0; 8]).bytes(), "is not a type"),
        (
            new().count("k", 1).count("k", 2).bytes(),
            "`k` is given twice",
        ),
        (one(&array(U32, u64::MAX)), "limit is 16777216"),
        (one(&array(U32, 1 << 24)), "truncated"),
        (one(&array(STRING, 1 << 24)), "truncated"),
        (one(&array(ARRAY, 1 << 24)), "truncated"),
        (one(&nested), "nested more than 4 deep"),
        (
            new().count("general.alignment", 0).bytes(),
            "general.alignment is 0",
        ),
        (
            new().count("general.alignment", 24).bytes(),
            "general.alignment is 24",
        ),
        (
            new().count("general.alignment", 4).bytes(),
            "general.alignment is 4",
        ),
        (
            new().count("general.alignment", 1 << 31).bytes(),
            "general.alignment is",
        ),
        (
            new().text("general.alignment", "32").bytes(),
            "general.alignment is not",
        ),
        (tensor(&[], 0, 0), "0 dimensions"),
        (tensor(&[1; 5], 0, 0), "5 dimensions"),
        (tensor(&[32, 0], 0, 0), "shape [0, 32]"),
        (tensor(&[31], 8, 0), "blocks of 32"),
        (tensor(&[128], 12, 0), "Q4_K"),
        (tensor(&[u64::MAX], 0, 0), "too large"),
        (tensor(&[1 << 32, 1 << 32], 0, 0), "too large"),
        (tensor(&[1 << 40, 1 << 16, 1 << 6], 0, 0), "too large"),
        (tensor(&[8], 0, 16), "multiple of the alignment"),
        (tensor(&[8], 0, 128), "truncated"),
        (tensor(&[8], 0, u64::MAX - 31), "truncated"),
        (tensor(&[1 << 40], 0, 0), "truncated"),
        (tensor(&[8], 0, 64), "overlap"),
        (tensor(&[8], 23, 0), "IQ4_XS"),
        (tensor(&[8], 10, 0), "Q2_K"),
        (tensor(&[8], 77, 0), "type 77"),
        (
            good().tensor("a", &[8], 0, 0).bytes(),
            "`a` is listed twice",
        ),
        (
            good().tensor(&"n".repeat(2000), &[8], 0, 0).bytes(),
            "limit is 1024",
        ),
        (good().count("split.count", 3).bytes(), "3 parts"),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (at, (bytes, word)) in table.into_iter().enumerate() {
        let error = open(dir.path(), &bytes).expect_err(word);
        assert!(error.contains(word), "{at}: {error}");
    }
    let largest = largest_allocation();
    assert!(largest < MOST_BYTES, "{largest} bytes");
}

#[test]
fn a_valid_file_is_read_in_both_versions_and_any_alignment() {
    let dir = tempfile::tempdir().unwrap();
    for version in [2, 3] {
        let mut writer = good();
        writer.version = version;
        let file = open(dir.path(), &writer.bytes()).unwrap();
        assert_eq!(file.tensor_names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(file.shape("a"), Some(&[2, 32][..]));
        assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
        assert!(file.count("general.architecture").is_err());
        assert_eq!(file.count("absent").unwrap(), None);
    }
    let mut wide = good().count("general.alignment", 4096);
    wide.alignment = 4096;
    let error = open(dir.path(), &wide.bytes()).unwrap_err();
    assert!(error.contains("multiple of the alignment 4096"), "{error}");
    let mut wide = Writer::new()
        .count("general.alignment", 4096)
        .tensor("a", &[4], 0, 0)
        .data(16);
    wide.alignment = 4096;
    assert!(open(dir.path(), &wide.bytes()).is_ok());
}

#[test]
fn values_have_the_type_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let strings = [array(STRING, 2), string("x"), string("yz")].concat();
    let bytes = Writer::new()
        .raw("flag", BOOL, &[1])
        .raw("odd", BOOL, &[2])
        .raw("negative", 5, &(-3_i32).to_le_bytes())
        .raw("small", 6, &1e-5_f32.to_le_bytes())
        .raw("nan", 6, &f32::NAN.to_le_bytes())
        .raw("texts", ARRAY, &strings)
        .raw(
            "numbers",
            ARRAY,
            &[
                array(6, 2),
                1.5_f32.to_le_bytes().into(),
                2_f32.to_le_bytes().into(),
            ]
            .concat(),
        )
        .raw(
            "latin",
            STRING,
            &[&3_u64.to_le_bytes()[..], &[0xE9, b'x', 0xFF]].concat(),
        )
        .raw("none", ARRAY, &array(STRING, 0))
        .raw("nested", ARRAY, &[array(ARRAY, 1), array(U32, 0)].concat())
        .bytes();
    let file = open(dir.path(), &bytes).unwrap();
    assert_eq!(file.flag("flag").unwrap(), Some(true));
    assert_eq!(file.number("small").unwrap(), Some(1e-5));
    assert_eq!(file.texts("texts").unwrap().unwrap(), ["x", "yz"]);
    assert_eq!(file.texts("none").unwrap().unwrap(), [""; 0]);
    assert_eq!(file.numbers("numbers").unwrap().unwrap(), [1.5, 2.0]);
    for error in [
        file.flag("odd").unwrap_err(),
        file.count("negative").unwrap_err(),
        file.count("small").unwrap_err(),
        file.number("nan").unwrap_err(),
        file.integers("numbers").unwrap_err(),
        file.integers("nested").unwrap_err(),
        file.texts("numbers").unwrap_err(),
        file.text("latin").unwrap_err(),
        file.text("texts").unwrap_err(),
    ] {
        assert!(error.to_string().contains("metadata `"), "{error}");
    }
}

#[test]
fn truncation_anywhere_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(data("gguf").join("blocks.gguf")).unwrap();
    assert!(open(dir.path(), &bytes).is_ok());
    // The last tensor is padded to the alignment.
    for end in (0..bytes.len() - 32).step_by(7) {
        let error = open(dir.path(), &bytes[..end]).unwrap_err();
        assert!(error.contains("truncated"), "cut at {end}: {error}");
    }
}
