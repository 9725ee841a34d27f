//! The data and programs that tests need, and the `cfg`s by which a test without them is ignored and counted.
//!
//! `tests/data` is committed. The larger data lies beside the project (`../shared/data`, or `data` below `SELFJUDGE_SHARED`) and is used
//! where it is; servers and programs of others are used where `SELFJUDGE_REQUIRE` lists them (`postgres`, `clients`, `transformers`,
//! `node`, `lm-eval`, `pyarrow`, `smollm2`; `REQUIRE_ALL=1` lists all).

use std::path::{Path, PathBuf};

/// The programs that tests may need, and the `cfg` of each.
const PROGRAMS: [(&str, &str); 7] = [
    ("postgres", "has_postgres"),
    ("clients", "has_clients"),
    ("transformers", "has_transformers"),
    ("node", "has_node"),
    ("lm-eval", "has_lm_eval"),
    ("pyarrow", "has_pyarrow"),
    ("smollm2", "has_smollm2"),
];

/// Returns the root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns a folder of the committed data.
pub fn data(folder: &str) -> PathBuf {
    root().join("tests/data").join(folder)
}

/// Returns a folder of the data beside the project. Tests that call it are ignored without `has_data`.
pub fn shared_data(folder: &str) -> PathBuf {
    shared().join(folder)
}

fn shared() -> PathBuf {
    let root = std::env::var_os("SELFJUDGE_SHARED");
    root.map_or_else(|| self::root().join("../shared"), PathBuf::from)
        .join("data")
}

/// Sets the `cfg`s of a crate whose tests need more than the repository; called by its build script.
pub fn emit_cfgs() {
    for variable in ["SELFJUDGE_SHARED", "SELFJUDGE_REQUIRE", "REQUIRE_ALL"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(has_data)");
    if shared().is_dir() {
        println!("cargo::rustc-cfg=has_data");
    }
    let variable = |name: &str| std::env::var(name).ok();
    let (all, list) = (variable("REQUIRE_ALL"), variable("SELFJUDGE_REQUIRE"));
    for (name, cfg) in PROGRAMS {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        if is_listed(name, all.as_deref(), list.as_deref()) {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
}

fn is_listed(name: &str, all: Option<&str>, list: Option<&str>) -> bool {
    let listed = || list?.split(',').find(|listed| listed.trim() == name);
    all == Some("1") || listed().is_some()
}

#[test]
fn programs_are_listed_by_name_or_all() {
    for (all, list, listed) in [
        (None, None, false),
        (Some("1"), None, true),
        (Some("0"), Some("clients, node"), true),
        (Some(""), Some("postgres"), false),
    ] {
        assert_eq!(is_listed("node", all, list), listed, "{all:?} {list:?}");
    }
}
